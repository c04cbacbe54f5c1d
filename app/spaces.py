"""Spaces as JSON, and what a client may send for one. Runs in the server: it may not import gymnasium or torch.

| space | JSON in the manifest | what a client sends or gets |
| --- | --- | --- |
| Box | `{"type": "Box", "shape": [4], "dtype": "float32", "low": [...], "high": [...]}` | nested lists of numbers, `shape` deep |
| Discrete | `{"type": "Discrete", "n": 2, "start": 0}` | an integer from `start` to `start + n - 1` |
| MultiDiscrete | `{"type": "MultiDiscrete", "nvec": [3, 2], "start": [0, 0]}` | nested lists of integers, each as in its own Discrete |
| MultiBinary | `{"type": "MultiBinary", "shape": [3]}` | nested lists of 0 and 1, `shape` deep |
| Tuple | `{"type": "Tuple", "spaces": [...]}` | a list with one item a space |
| Dict | `{"type": "Dict", "spaces": {"key": ...}}` | an object with all the keys and no other |

`low` and `high` are nested lists as the shape says, or one number for all; null stands for unbounded. `nvec` and `start` are nested
lists of one shape. Tuple and Dict hold any spaces, themselves too. What is sent for a Box of bool is 0 or 1.

Arrays hold a batch: one for each leaf (a space that holds no others), in the order of `leaves`.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Union

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Arrays = tuple[Array, ...]


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

    shape = ()
    dtype = np.dtype(np.int64)


@dataclass(frozen=True, eq=False)
class MultiDiscrete:
    """Arrays of integers, each element from its `start` to `start + nvec - 1` (both int64, of one shape)."""

    nvec: Array
    start: Array

    dtype = np.dtype(np.int64)

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the arrays."""
        return self.nvec.shape


@dataclass(frozen=True)
class MultiBinary:
    """Arrays of 0 and 1."""

    shape: tuple[int, ...]

    dtype = np.dtype(np.int8)


@dataclass(frozen=True, eq=False)
class Tuple:
    """One value of each space."""

    spaces: "tuple[Space, ...]"


@dataclass(frozen=True, eq=False)
class Dict:
    """One value of each space under its key; the keys are sorted."""

    spaces: "Mapping[str, Space]"


LeafSpace = Box | Discrete | MultiDiscrete | MultiBinary
Space = Union[LeafSpace, Tuple, Dict]  # noqa: UP007 - mypy reads `|` with an alias that names itself only so


@dataclass(frozen=True, eq=False)
class Leaf:
    """A space that holds no others, and where its value lies.

    Attributes:
        pointer: JSON pointer below the whole value, such as "/camera/0"; empty for the whole.
        space: its shape and dtype are those of its array, without the batch.
    """

    pointer: str
    space: LeafSpace


def leaves(space: Space, pointer: str = "") -> tuple[Leaf, ...]:
    """The leaves in the order of their arrays: a Tuple's one after another, a Dict's by sorted key, as Gymnasium has them."""
    match space:
        case Tuple(spaces):
            return tuple(leaf for i, one in enumerate(spaces) for leaf in leaves(one, f"{pointer}/{i}"))
        case Dict(spaces):
            return tuple(leaf for key, one in spaces.items() for leaf in leaves(one, f"{pointer}/{escaped(key)}"))
    return (Leaf(pointer, space),)


def parsed_space(described: Any) -> Space:
    """The space that a manifest describes.

    Raises:
        ValueError: it describes no space that is known here.
    """
    match described:
        case {"type": "Discrete", "n": int(n), "start": int(start)} if n >= 1:
            return Discrete(n, start)
        case {"type": "Box", "shape": list(shape), "dtype": str(dtype), "low": low, "high": high}:
            sizes, kind = tuple(int(size) for size in shape), np.dtype(dtype)
            return Box(sizes, kind, _bound(low, sizes, kind, -np.inf), _bound(high, sizes, kind, np.inf))
        case {"type": "MultiDiscrete", "nvec": list(nvec), "start": list(start)}:
            counts, starts = np.array(nvec, dtype=np.int64), np.array(start, dtype=np.int64)
            if counts.shape == starts.shape and (counts >= 1).all():
                return MultiDiscrete(counts, starts)
        case {"type": "MultiBinary", "shape": list(shape)}:
            return MultiBinary(tuple(int(size) for size in shape))
        case {"type": "Tuple", "spaces": list(spaces)}:
            return Tuple(tuple(parsed_space(one) for one in spaces))
        case {"type": "Dict", "spaces": dict(spaces)}:
            return Dict({key: parsed_space(spaces[key]) for key in sorted(spaces)})
    raise ValueError("a space must be a Box, Discrete, MultiDiscrete, MultiBinary, Tuple or Dict with all their fields")


def described_space(space: Space) -> dict[str, Any]:
    """The JSON of a space; `parsed_space` reads it."""
    match space:
        case Discrete(n, start):
            return {"type": "Discrete", "n": n, "start": start}
        case MultiDiscrete(nvec, start):
            return {"type": "MultiDiscrete", "nvec": nvec.tolist(), "start": start.tolist()}
        case MultiBinary(shape):
            return {"type": "MultiBinary", "shape": list(shape)}
        case Tuple(spaces):
            return {"type": "Tuple", "spaces": [described_space(one) for one in spaces]}
        case Dict(spaces):
            return {"type": "Dict", "spaces": {key: described_space(one) for key, one in spaces.items()}}
        case Box(shape, dtype, low, high):
            bounds = {"low": _described_bound(low), "high": _described_bound(high)}
            return {"type": "Box", "shape": list(shape), "dtype": str(dtype), **bounds}


def _bound(described: Any, shape: tuple[int, ...], dtype: np.dtype[Any], unbounded: float) -> Array:
    numbers = np.array(described, dtype=object)
    filled = np.where(numbers == None, unbounded, numbers)  # noqa: E711 - elementwise
    wide = filled.astype(np.float64)
    # As the elements have it: 4.8 is a little more in float32, and is not out of bounds.
    as_elements = wide.astype(dtype).astype(np.float64) if np.issubdtype(dtype, np.floating) else wide
    return np.broadcast_to(as_elements, shape)


def _described_bound(bound: Array) -> Any:
    flat = [float(value) if np.isfinite(value) else None for value in bound.flat]
    if len(set(flat)) == 1:
        return flat[0]
    return np.array(flat, dtype=object).reshape(bound.shape).tolist()


def leaf_values(space: Space, value: Any) -> list[Any]:
    """The values of the leaves of one value of a space, in the order of `leaves`."""
    match space:
        case Tuple(spaces):
            return [part for one, item in zip(spaces, value, strict=True) for part in leaf_values(one, item)]
        case Dict(spaces):
            return [part for key, one in spaces.items() for part in leaf_values(one, value[key])]
    return [value]


def assembled(space: Space, values: Sequence[Any]) -> Any:
    """One value of a space, put together from the values of its leaves: tuples for Tuple, dicts for Dict."""
    return _assembled(space, iter(values), tuple)


def _assembled(space: Space, values: Iterator[Any], sequence: type) -> Any:
    match space:
        case Tuple(spaces):
            return sequence([_assembled(one, values, sequence) for one in spaces])
        case Dict(spaces):
            return {key: _assembled(one, values, sequence) for key, one in spaces.items()}
    return next(values)


def batched(space: Space, values: Sequence[Any]) -> Arrays:
    """Values of a space, as an environment or a program has them, as one batch; nothing is checked."""
    columns = zip(*(leaf_values(space, value) for value in values), strict=True)
    return tuple(np.array(column, dtype=leaf.space.dtype) for leaf, column in zip(leaves(space), columns, strict=True))


def value_at(space: Space, arrays: Arrays, index: int) -> Any:
    """One item of a batch as an environment takes it: a Discrete as an integer, any other leaf as an array, also one without dimensions."""
    parts = zip(leaves(space), arrays, strict=True)
    return assembled(space, [array[index] if isinstance(leaf.space, Discrete) else np.asarray(array[index]) for leaf, array in parts])


def as_json(space: Space, arrays: Arrays) -> list[Any]:
    """The items of a batch as JSON values; `ObservationReader.batch` reads them.

    Args:
        space: of the items: observations or actions.
        arrays: one for each leaf, each of shape (batch, *leaf.space.shape).

    Returns:
        One value for each item.
    """
    if not isinstance(space, Tuple | Dict):
        items: list[Any] = _numbers(arrays[0]).tolist()
        return items
    columns = [_numbers(array).tolist() for array in arrays]
    return [_assembled(space, iter(parts), list) for parts in zip(*columns, strict=True)]


def _numbers(array: Array) -> Array:
    return array.astype(np.uint8) if array.dtype == np.bool_ else array


def escaped(key: str) -> str:
    """A key as it stands in a JSON pointer (RFC 6901)."""
    return key.replace("~", "~0").replace("/", "~1")
