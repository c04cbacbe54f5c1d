"""Spaces as JSON, and what a client may send for one. Runs in the server: it may not import gymnasium or torch.

| space | JSON in the manifest | what a client sends or gets |
| --- | --- | --- |
| Box | `{"type": "Box", "shape": [4], "dtype": "float32", "low": [...], "high": [...]}` | nested lists of numbers, `shape` deep |
| Discrete | `{"type": "Discrete", "n": 2, "start": 0}` | an integer from `start` to `start + n - 1` |

`low` and `high` are nested lists as the shape says, or one number for all; null stands for unbounded.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


class ObservationRefused(Exception):
    """What a client sent is no observation of the space.

    Args:
        pointer: JSON pointer (RFC 6901) to the bad part, relative to the observation.
        detail: what is expected there; never what was sent.
    """

    def __init__(self, pointer: str, detail: str) -> None:
        super().__init__(detail)
        self.pointer = pointer
        self.detail = detail


@dataclass(frozen=True, eq=False)
class Box:
    """Arrays of one shape, each element within its bounds (inclusive; infinite where unbounded)."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    low: Array
    high: Array

    @property
    def is_bounded(self) -> bool:
        """Whether every element has two finite bounds."""
        return bool(np.isfinite(self.low).all() and np.isfinite(self.high).all())

    @property
    def is_unlimited(self) -> bool:
        """Whether no element has a bound, so that nothing is out of bounds."""
        return not (np.isfinite(self.low).any() or np.isfinite(self.high).any())


@dataclass(frozen=True)
class Discrete:
    """Integers from `start` to `start + n - 1`."""

    n: int
    start: int = 0


Space = Box | Discrete


def parsed_space(described: dict[str, Any]) -> Space:
    """The space that a manifest describes.

    Raises:
        ValueError: it describes no space that is known here.
    """
    match described:
        case {"type": "Discrete", "n": int(n), "start": int(start)}:
            return Discrete(n, start)
        case {"type": "Box", "shape": list(shape), "dtype": str(dtype), "low": low, "high": high}:
            sizes = tuple(int(size) for size in shape)
            return Box(sizes, np.dtype(dtype), _bound(low, sizes, -np.inf), _bound(high, sizes, np.inf))
    raise ValueError("a space must be a Box or a Discrete with all their fields")


def described_space(space: Space) -> dict[str, Any]:
    """The JSON of a space; `parsed_space` reads it."""
    if isinstance(space, Discrete):
        return {"type": "Discrete", "n": space.n, "start": space.start}
    bounds = {"low": _described_bound(space.low), "high": _described_bound(space.high)}
    return {"type": "Box", "shape": list(space.shape), "dtype": str(space.dtype), **bounds}


def _bound(described: Any, shape: tuple[int, ...], unbounded: float) -> Array:
    numbers = np.array(described, dtype=object)
    filled = np.where(numbers == None, unbounded, numbers)  # noqa: E711 - elementwise
    return np.broadcast_to(filled.astype(np.float64), shape)


def _described_bound(bound: Array) -> Any:
    flat = [float(value) if np.isfinite(value) else None for value in bound.flat]
    if len(set(flat)) == 1:
        return flat[0]
    return np.array(flat, dtype=object).reshape(bound.shape).tolist()


class ObservationReader:
    """Reads what clients send for one Box space, a batch at a time."""

    def __init__(self, space: Box) -> None:
        self._space = space
        self._is_integer = np.issubdtype(space.dtype, np.integer)
        self._range = np.iinfo(space.dtype) if self._is_integer else np.finfo(space.dtype)

    def batch(self, sent: Sequence[Any], pointer: str = "", numbered: bool = True) -> Array:
        """The observations as one array.

        Args:
            sent: decoded JSON, one item an observation; any content.
            pointer: where the first item lies in the body.
            numbered: whether items lie at `pointer/0`, `pointer/1`, ... (else the only item lies at `pointer`).

        Returns:
            Array of shape (len(sent), *space.shape) and the dtype of the space.

        Raises:
            ObservationRefused: naming the first bad part by its pointer.
        """
        if _is_numbers(sent, len(self._space.shape) + 1):
            try:
                wide = np.array(sent, dtype=np.float64)
            except (ValueError, OverflowError):  # ragged, or an integer beyond any float
                wide = None
            if wide is not None and wide.shape[1:] == self._space.shape and self._is_representable(wide):
                return wide.astype(self._space.dtype)
        for index, item in enumerate(sent):
            self._refuse_bad_part(item, self._space.shape, f"{pointer}/{index}" if numbered else pointer)
        raise ObservationRefused(pointer, f"must have shape {list(self._space.shape)}")

    def out_of_bounds(self, batch: Array) -> int:
        """How many observations of the batch lie outside the bounds of the space."""
        if self._space.is_unlimited:
            return 0
        outside = (batch < self._space.low) | (batch > self._space.high)
        return int(outside.reshape(len(batch), -1).any(axis=1).sum()) if outside.any() else 0

    def _is_representable(self, wide: Array) -> bool:
        if not np.isfinite(wide).all():
            return False
        if self._is_integer and (wide != np.floor(wide)).any():
            return False
        return bool((np.abs(wide) <= self._range.max).all() and (wide >= self._range.min).all())

    def _refuse_bad_part(self, part: Any, shape: tuple[int, ...], pointer: str) -> None:
        if shape:
            if not isinstance(part, list) or len(part) != shape[0]:
                whole = f"the observation has shape {list(self._space.shape)}"
                raise ObservationRefused(pointer, f"must be a list of {shape[0]} items ({whole})")
            for index, item in enumerate(part):
                self._refuse_bad_part(item, shape[1:], f"{pointer}/{index}")
            return
        if type(part) not in (int, float):
            raise ObservationRefused(pointer, "must be a number")
        if not self._is_number_representable(part):
            kind = f"an integer of type {self._space.dtype}" if self._is_integer else f"a finite number of type {self._space.dtype}"
            raise ObservationRefused(pointer, f"must be {kind}")

    def _is_number_representable(self, number: int | float) -> bool:
        try:
            return self._is_representable(np.array([float(number)]))
        except OverflowError:
            return False


def _is_numbers(part: Any, depth: int) -> bool:
    """Whether `part` is lists, `depth` deep, of nothing but JSON numbers (a bool is none, though NumPy takes it for one)."""
    if depth == 1:
        return set(map(type, part)) <= {int, float}
    return all(type(item) is list for item in part) and all(_is_numbers(item, depth - 1) for item in part)
