"""Reads what clients send for a space, a batch at a time, and says which part of it is wrong. Runs in the server: it may not import
gymnasium or torch.
"""

from collections.abc import Sequence
from math import isnan
from typing import Any

import numpy as np

from app.spaces import Array, Arrays, Box, Dict, Discrete, LeafSpace, MultiBinary, MultiDiscrete, Space, Tuple, escaped, leaves

# Up to this length a vector is faster looked at element by element than as an array.
SHORT_VECTOR = 16


class PartRefused(Exception):
    """A part of what a client sent is not what it has to be.

    Args:
        pointer: JSON pointer (RFC 6901) to the bad part.
        detail: what is expected there; never what was sent.
    """

    def __init__(self, pointer: str, detail: str) -> None:
        super().__init__(detail)
        self.pointer = pointer
        self.detail = detail


class ObservationRefused(PartRefused):
    """What a client sent is no value of the space."""


class ObservationReader:
    """Reads what clients send for a space, a batch at a time."""

    def __init__(self, space: Space) -> None:
        self._space = space
        self._leaves = leaves(space)
        self._readers = tuple(_LeafReader(leaf.space) for leaf in self._leaves)
        self._whole = self._readers[0] if not isinstance(space, Tuple | Dict) else None
        self._limited = [
            (i, leaf.space) for i, leaf in enumerate(self._leaves) if isinstance(leaf.space, Box) and not leaf.space.is_unlimited
        ]
        self._vector_bounds = _vector_bounds(space)

    def batch(self, sent: Sequence[Any], pointer: str = "", numbered: bool = True) -> Arrays:
        """The observations, one array for each leaf.

        Args:
            sent: decoded JSON, one item an observation; any content.
            pointer: where the first item lies in the body.
            numbered: whether items lie at `pointer/0`, `pointer/1`, ... (else the only item lies at `pointer`).

        Returns:
            For each leaf an array of shape (len(sent), *leaf.space.shape) and the dtype of the leaf.

        Raises:
            ObservationRefused: naming the first bad part by its pointer.
        """
        if self._whole is not None:
            return (self._whole.batch(sent, pointer, numbered),)
        items = [_checked_parts(self._space, item, f"{pointer}/{i}" if numbered else pointer) for i, item in enumerate(sent)]
        columns = zip(*items, strict=True) if items else [()] * len(self._leaves)
        return tuple(
            reader.batch(column, pointer, numbered, leaf.pointer)
            for reader, leaf, column in zip(self._readers, self._leaves, columns, strict=True)
        )

    def out_of_bounds(self, observations: Arrays) -> int:
        """How many observations of the batch lie outside the bounds of a Box."""
        if self._vector_bounds is not None and len(observations[0]) == 1:
            return int(
                any(not low <= value <= high for value, (low, high) in zip(observations[0][0].tolist(), self._vector_bounds, strict=True))
            )
        outside: Any = None
        for index, space in self._limited:
            batch = observations[index]
            beyond = (batch < space.low) | (batch > space.high)
            if beyond.any():
                rows = beyond.reshape(len(batch), -1).any(axis=1)
                outside = rows if outside is None else outside | rows
        return 0 if outside is None else int(outside.sum())


def _vector_bounds(space: Space) -> list[tuple[float, float]] | None:
    """The bounds of each element of a short vector; None for any other space."""
    if not isinstance(space, Box) or len(space.shape) != 1 or space.shape[0] > SHORT_VECTOR or space.is_unlimited:
        return None
    return list(zip(space.low.tolist(), space.high.tolist(), strict=True))


def _checked_parts(space: Space, sent: Any, pointer: str) -> list[Any]:
    """The parts of one item that are to be read as its leaves.

    Raises:
        ObservationRefused: a list or an object is not the one that the space has there.
    """
    match space:
        case Tuple(spaces):
            if not isinstance(sent, list) or len(sent) != len(spaces):
                raise ObservationRefused(pointer, f"must be a list of {len(spaces)} items")
            return [
                part for i, (one, item) in enumerate(zip(spaces, sent, strict=True)) for part in _checked_parts(one, item, f"{pointer}/{i}")
            ]
        case Dict(spaces):
            listed = ", ".join(spaces)
            if not isinstance(sent, dict):
                raise ObservationRefused(pointer, f"must be an object with the keys {listed}")
            for key in spaces:
                if key not in sent:
                    raise ObservationRefused(f"{pointer}/{escaped(key)}", "is missing")
            if len(sent) != len(spaces):
                raise ObservationRefused(pointer, f"must have no other keys than {listed}")
            return [part for key, one in spaces.items() for part in _checked_parts(one, sent[key], f"{pointer}/{escaped(key)}")]
    return [sent]


class _LeafReader:
    """Reads a batch of one leaf: numbers of one shape within limits that its array cannot leave."""

    def __init__(self, space: LeafSpace) -> None:
        self._shape = space.shape
        self._dtype = space.dtype
        self._is_integer = not np.issubdtype(space.dtype, np.floating)
        self._least, self._most = _limits(space)
        self._is_encoded = not isinstance(space, Box)
        # The limits of a short vector that is alike in all its elements, as Python's own numbers: see `_is_vector`. Beyond a part of them
        # that no sum of such a vector leaves, the array is looked at.
        self._vector_limits: tuple[float, float] | None = None
        if isinstance(space, Box) and len(space.shape) == 1 and 0 < space.shape[0] <= SHORT_VECTOR and not self._is_integer:
            self._vector_limits = float(self._least[0]) / SHORT_VECTOR, float(self._most[0]) / SHORT_VECTOR

    def batch(self, sent: Sequence[Any], pointer: str, numbered: bool, below: str = "") -> Array:
        """The array of the leaf; `below` is the leaf's pointer below each item.

        Raises:
            ObservationRefused: naming the first bad part by its pointer.
        """
        if self._vector_limits is not None and len(sent) == 1 and self._is_vector(sent[0], *self._vector_limits):
            return np.array(sent, dtype=self._dtype)
        if _is_numbers(sent, len(self._shape) + 1):
            try:
                wide = np.array(sent, dtype=np.float64)
            except (ValueError, OverflowError):  # ragged, or an integer beyond any float
                wide = None
            if wide is not None and wide.shape[1:] == self._shape and self._is_representable(wide, self._least, self._most):
                return wide.astype(self._dtype)
        for index, item in enumerate(sent):
            place = f"{pointer}/{index}{below}" if numbered else f"{pointer}{below}"
            self._refuse_bad_part(item, self._shape, self._least, self._most, place)
        raise ObservationRefused(pointer, f"must have shape {list(self._shape)}")

    def _is_vector(self, item: Any, least: float, most: float) -> bool:
        """Whether the only item of a batch is a short vector of numbers within its limits.

        The commonest of all requests: Python's own numbers are compared in a third of the time that NumPy takes to begin.
        """
        if type(item) is not list or len(item) != self._shape[0] or not set(map(type, item)) <= {int, float}:
            return False
        # NaN may slip through a comparison, but not through a sum.
        return least <= min(item) and max(item) <= most and not isnan(sum(item))

    def _is_representable(self, wide: Array, least: Array, most: Array) -> bool:
        # A comparison with NaN is false, and the limits are finite.
        if not ((wide >= least) & (wide <= most)).all():
            return False
        return not (self._is_integer and (wide != np.floor(wide)).any())

    def _refuse_bad_part(self, part: Any, shape: tuple[int, ...], least: Array, most: Array, pointer: str) -> None:
        if shape:
            if not isinstance(part, list) or len(part) != shape[0]:
                whole = f"the whole has shape {list(self._shape)}"
                raise ObservationRefused(pointer, f"must be a list of {shape[0]} items ({whole})")
            for index, item in enumerate(part):
                self._refuse_bad_part(item, shape[1:], least[index], most[index], f"{pointer}/{index}")
            return
        if type(part) not in (int, float):
            raise ObservationRefused(pointer, "must be a number")
        if not self._is_number_representable(part, least, most):
            raise ObservationRefused(pointer, f"must be {self._expected(least, most)}")

    def _is_number_representable(self, number: int | float, least: Array, most: Array) -> bool:
        try:
            return self._is_representable(np.array(float(number)), least, most)
        except OverflowError:
            return False

    def _expected(self, least: Array, most: Array) -> str:
        if self._is_encoded:
            return f"an integer from {int(least)} to {int(most)}"
        return f"an integer of type {self._dtype}" if self._is_integer else f"a finite number of type {self._dtype}"


def _limits(space: LeafSpace) -> tuple[Array, Array]:
    """The least and the greatest float64 that a leaf's array can hold, each of the leaf's shape."""
    least: Any
    most: Any
    match space:
        case Discrete(n, start):
            least, most = np.float64(start), np.float64(start + n - 1)
        case MultiDiscrete(nvec, start):
            least, most = start.astype(np.float64), (start + nvec - 1).astype(np.float64)
        case MultiBinary():
            least, most = np.float64(0), np.float64(1)
        case Box(_, dtype):
            least, most = dtype_limits(dtype)
    return np.broadcast_to(least, space.shape), np.broadcast_to(most, space.shape)


def dtype_limits(dtype: np.dtype[Any]) -> tuple[Any, Any]:
    """The least and the greatest float64 that an array of this type can hold."""
    if dtype == np.bool_:
        return np.float64(0), np.float64(1)
    if np.issubdtype(dtype, np.floating):
        return np.float64(np.finfo(dtype).min), np.float64(np.finfo(dtype).max)
    most = np.float64(np.iinfo(dtype).max)
    # The largest integers of 64 bits are rounded up to one more than there is.
    return np.float64(np.iinfo(dtype).min), most if int(most) <= np.iinfo(dtype).max else np.nextafter(most, 0)


def _is_numbers(part: Any, depth: int) -> bool:
    """Whether `part` is lists, `depth` deep, of nothing but JSON numbers (a bool is none, though NumPy takes it for one)."""
    if depth == 1:
        return set(map(type, part)) <= {int, float}
    return all(type(item) is list for item in part) and all(_is_numbers(item, depth - 1) for item in part)
