"""What the inputs of an action distribution stand for, in NumPy. Runs in the server: it may not import gymnasium, torch or RLlib.

One row of inputs holds, leaf by leaf in the order of `app.spaces.leaves`:

| leaf | inputs | distribution |
| --- | --- | --- |
| Discrete | `n` logits | Categorical |
| MultiDiscrete | logits of each element, row-major | a Categorical for each element |
| MultiBinary | two logits for each element, row-major | a Categorical of 0 and 1 for each element |
| Box | means of all elements, then the logarithms of their standard deviations | Normal, then unsquashed and clipped |

Source: rllib/core/distribution/torch/torch_distribution.py and unsquash_action in rllib/utils/spaces/space_utils.py (Ray 2.60).
"""

from collections.abc import Iterator, Sequence
from math import prod
from typing import Any

import numpy as np

from app.reader import PartRefused
from app.spaces import Array, Arrays, Box, Discrete, LeafSpace, MultiBinary, MultiDiscrete, Space, leaves


class MaskRefused(PartRefused):
    """What a client sent is no mask of the actions."""


def categories(space: LeafSpace) -> tuple[int, ...]:
    """How many categories each categorical of a leaf has, one for each element; none for a Box."""
    match space:
        case Discrete(n):
            return (n,)
        case MultiDiscrete(nvec):
            return tuple(nvec.ravel().tolist())
        case MultiBinary(shape):
            return (2,) * prod(shape)
    return ()


def inputs_size(space: LeafSpace) -> int:
    """How many inputs the distribution of a leaf has."""
    return 2 * prod(space.shape) if isinstance(space, Box) else sum(categories(space))


def first_action(space: LeafSpace) -> Any:
    """What category 0 stands for: an integer, or int64 of the leaf's shape."""
    return space.start if isinstance(space, Discrete | MultiDiscrete) else 0


class ActionDistribution:
    """The distribution over the actions of a space."""

    def __init__(self, space: Space) -> None:
        self._parts: list[tuple[LeafSpace, slice]] = []
        end = 0
        for leaf in leaves(space):
            begin, end = end, end + inputs_size(leaf.space)
            self._parts.append((leaf.space, slice(begin, end)))
        self.size = end

    def greedy(self, inputs: Array) -> Arrays:
        """The likeliest actions.

        Args:
            inputs: float of shape (batch, size); minus infinity for a category that may not be chosen.

        Returns:
            One array for each leaf, of shape (batch, *leaf.space.shape), as the environment takes it.
        """
        return tuple(_likeliest(space, inputs[:, part]) for space, part in self._parts)

    def sampled(self, inputs: Array, random: np.random.Generator) -> Arrays:
        """Random actions; arguments and result as for `greedy`."""
        return tuple(_drawn(space, inputs[:, part], random) for space, part in self._parts)

    def categoricals(self, inputs: Array) -> list[list[Array]]:
        """For each leaf the inputs of each of its categoricals, each of shape (batch, categories)."""
        return [list(_categoricals(space, inputs[:, part])) for space, part in self._parts]


def _categoricals(space: LeafSpace, inputs: Array) -> Iterator[Array]:
    begin = 0
    for count in categories(space):
        yield inputs[:, begin : begin + count]
        begin += count


def _likeliest(space: LeafSpace, inputs: Array) -> Array:
    if isinstance(space, Box):
        return _unsquashed(space, inputs[:, : inputs.shape[1] // 2])
    return _chosen(space, inputs)


def _drawn(space: LeafSpace, inputs: Array, random: np.random.Generator) -> Array:
    if isinstance(space, Box):
        mean, log_std = np.split(inputs.astype(np.float64), 2, axis=1)
        drawn: Array = mean + np.exp(log_std) * random.standard_normal(mean.shape)
        return _unsquashed(space, drawn)
    # The largest of logits with Gumbel noise is a draw from their softmax: https://arxiv.org/abs/1611.01144, equation 1
    noisy: Array = inputs + random.gumbel(size=inputs.shape)
    return _chosen(space, noisy)


def _chosen(space: LeafSpace, scores: Array) -> Array:
    """The category with the largest score of each categorical, as the environment takes it."""
    chosen = np.stack([one.argmax(axis=1) for one in _categoricals(space, scores)], axis=1)
    actions: Array = (chosen.reshape(-1, *space.shape) + first_action(space)).astype(space.dtype)
    return actions


def _unsquashed(space: Box, actions: Array) -> Array:
    shaped = actions.reshape(-1, *space.shape)
    if space.is_bounded:
        shaped = np.clip(space.low + (shaped + 1.0) * (space.high - space.low) / 2.0, space.low, space.high)
    return shaped.astype(space.dtype)


class MaskReader:
    """Reads the masks that clients send for a space of actions, a batch at a time.

    A mask has 0 for an action that may not be chosen, else 1. For Discrete it is a list of `n` of them, for MultiDiscrete nested lists
    as deep as the action, with such a list for each element.
    """

    def __init__(self, space: Space) -> None:
        self._space = space if isinstance(space, Discrete | MultiDiscrete) else None

    def batch(self, sent: Sequence[Any], pointer: str = "", numbered: bool = True) -> Array:
        """The masks as one array.

        Args:
            sent: decoded JSON, one item a mask; any content.
            pointer: where the first item lies in the body.
            numbered: whether items lie at `pointer/0`, `pointer/1`, ... (else the only item lies at `pointer`).

        Returns:
            Bools of shape (len(sent), inputs of the distribution), true where an action is allowed.

        Raises:
            MaskRefused: naming the first bad part by its pointer.
        """
        if self._space is None:
            raise MaskRefused(pointer, "may stand only where the actions are Discrete or MultiDiscrete")
        counts = self._space.nvec if isinstance(self._space, MultiDiscrete) else np.array(self._space.n)
        return np.array([_allowed(item, counts, f"{pointer}/{i}" if numbered else pointer) for i, item in enumerate(sent)], dtype=bool)


def _allowed(sent: Any, counts: Array, pointer: str) -> list[bool]:
    length = len(counts) if counts.ndim else int(counts)
    if not isinstance(sent, list) or len(sent) != length:
        raise MaskRefused(pointer, f"must be a list of {length} items")
    if counts.ndim:
        return [allowed for i, item in enumerate(sent) for allowed in _allowed(item, counts[i], f"{pointer}/{i}")]
    for i, item in enumerate(sent):
        if type(item) not in (int, float) or item not in (0, 1):
            raise MaskRefused(f"{pointer}/{i}", "must be 0 or 1")
    if not any(sent):
        raise MaskRefused(pointer, "must allow at least one action")
    return [bool(item) for item in sent]
