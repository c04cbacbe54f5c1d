"""Whether a decision can be given to a client, and whether two are the same. Pure: arrays in, a word or a count out."""

import numpy as np

from app.policy import ATOL, Decision
from app.spaces import Array, Arrays, Box, Discrete, LeafSpace, MultiBinary, MultiDiscrete, Space, leaves

# Reasons why an answer is counted against a candidate, beside `RAISED` and `SLOW` of `app.serving.tally`.
NOT_FINITE = "NotFinite"
IMPOSSIBLE = "Impossible"

# Two actions of a Box are the same where no element differs by more than this share of its range, or of itself where it has none.
SAME_SHARE = 0.05
# Up to this size an array is faster looked at number by number.
SHORT = 32


class Soundness:
    """Tells why a decision cannot be given to a client.

    Args:
        space: of the actions.
    """

    def __init__(self, space: Space) -> None:
        self._leaves = [leaf.space for leaf in leaves(space)]
        self._limits = (space.start, space.start + space.n) if isinstance(space, Discrete) else None

    def flaw_of(self, decision: Decision, count: int) -> str | None:
        """Why it cannot; None where it can.

        Args:
            decision: of any shape and content.
            count: how many observations it is for.
        """
        if _has_nan(decision.action_dist_inputs) or any(_has_nan(state) for state in decision.state):
            return NOT_FINITE
        if self._limits is not None and count == 1 and decision.actions[0].shape == (1,):
            # The commonest of all: Python's own numbers are compared in a fraction of the time.
            return None if self._limits[0] <= decision.actions[0].item() < self._limits[1] else IMPOSSIBLE
        for space, actions in zip(self._leaves, decision.actions, strict=True):
            if actions.shape != (count, *space.shape):
                return IMPOSSIBLE
            if actions.dtype.kind == "f" and not np.isfinite(actions).all():
                return NOT_FINITE
            if not _are_possible(space, actions):
                return IMPOSSIBLE
        return None


def _has_nan(array: Array) -> bool:
    if array.size <= SHORT:
        total = sum(array.ravel().tolist())
        # NaN makes a sum NaN; so do two infinities, which are looked at below.
        if total == total:
            return False
    return bool(np.isnan(array).any())


def _are_possible(space: LeafSpace, actions: Array) -> bool:
    match space:
        case Discrete(n, start):
            return bool(((actions >= start) & (actions < start + n)).all())
        case MultiDiscrete(nvec, start):
            return bool(((actions >= start) & (actions < start + nvec)).all())
        case MultiBinary():
            return bool(((actions == 0) | (actions == 1)).all())
        case Box() if space.is_bounded:
            # Clipped in another precision than the bounds are told in.
            slack = ATOL * np.maximum(1.0, space.high - space.low)
            return bool(((actions >= space.low - slack) & (actions <= space.high + slack)).all())
    # A Box without bounds, or with some: the trainer does not clip its actions, so neither does any policy.
    return True


def agreements(space: Space, one: Arrays, other: Arrays) -> int:
    """For how many observations two batches of actions are the same.

    Args:
        space: of the actions.
        one, other: arrays as in `Decision.actions`.
    """
    same = np.ones(len(one[0]), bool)
    for leaf, ours, theirs in zip(leaves(space), one, other, strict=True):
        equal = _are_near(leaf.space, ours, theirs) if isinstance(leaf.space, Box) else ours == theirs
        same &= equal.reshape(len(same), -1).all(axis=1)
    return int(same.sum())


def _are_near(space: Box, one: Array, other: Array) -> Array:
    scale = space.high - space.low if space.is_bounded else np.maximum(1.0, np.abs(one))
    near: Array = np.abs(one.astype(np.float64) - other) <= SAME_SHARE * scale
    return near
