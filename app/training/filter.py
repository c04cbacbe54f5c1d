"""RLlib's MeanStdFilter, with what several env runners have seen put together rightly. Imports RLlib.

RLlib 2.60 merges runners by how far each one's mean has moved, taken for the mean of what it has seen (`RunningStat.update` in
rllib/utils/filter.py): with one worker a mean of 10000 is found to be 5000.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from ray.rllib.connectors.env_to_module import MeanStdFilter
from ray.rllib.utils.filter import RunningStat
from ray.rllib.utils.numpy import SMALL_NUMBER

from app.spaces import Array

FILTER_CLIP = 10.0


@dataclass(frozen=True, eq=False)
class Moments:
    """How many values were seen, their mean, and the sum of their squared differences from it."""

    count: int
    mean: Array
    squares: Array

    def __add__(self, other: "Moments") -> "Moments":
        """Of the values of both. Source: https://en.wikipedia.org/wiki/Algorithms_for_calculating_variance#Parallel_algorithm."""
        count = self.count + other.count
        if count == 0:
            return self
        between = other.mean - self.mean
        squares = self.squares + other.squares + between**2 * (self.count * other.count / count)
        return Moments(count, self.mean + between * (other.count / count), squares)

    def __sub__(self, part: "Moments") -> "Moments":
        """Of the values that are left without a part of them; there have to be some."""
        count = self.count - part.count
        mean = (self.count * self.mean - part.count * part.mean) / count
        squares = self.squares - part.squares - (mean - part.mean) ** 2 * (part.count * count / self.count)
        return Moments(count, mean, squares.clip(min=0))


class MergingMeanStdFilter(MeanStdFilter):  # type: ignore[misc] # mypy does not follow RLlib
    """Each runner goes on from the merged values, so what is new in it is what it has seen less those."""

    def merge_states(self, states: list[dict[str, Any]]) -> dict[str, Any]:
        """Adds what each runner has seen since the last merge."""
        stats = _stats(self)
        before = merged = _moments(stats)
        for state in states:
            (one,) = state.values()
            seen = _moments(RunningStat.from_state(one["running_stats"][0]))
            if seen.count > before.count:
                merged = merged + (seen - before)
        _set(stats, merged)
        return dict(self.get_state())


def known_moments(pipeline: Any) -> Moments | None:
    """What the filter in an env-to-module pipeline has seen; None where there is no filter."""
    return next((_moments(_stats(one)) for one in pipeline.connectors if isinstance(one, MergingMeanStdFilter)), None)


def begin_with(pipeline: Any, moments: Moments) -> None:
    """Lets the filter in a pipeline go on from what another one has seen."""
    for one in pipeline.connectors:
        if isinstance(one, MergingMeanStdFilter):
            _set(_stats(one), moments)


def filtered(pipeline: Any, observations: Array) -> Array:
    """Observations as the module sees them: what a filter in the pipeline makes of them, once it has taken all of them in.

    Args:
        pipeline: an env-to-module pipeline.
        observations: float32 of shape (batch, *observation).
    """
    for one in pipeline.connectors:
        if isinstance(one, MergingMeanStdFilter):
            stats = _stats(one)
            mean = observations.mean(axis=0, dtype=np.float64)
            new = Moments(len(observations), mean, ((observations - mean) ** 2).sum(axis=0))
            _set(stats, _moments(stats) + new)
            # Source: rllib/utils/filter.py (Ray 2.60).
            observations = ((observations - stats.mean) / (stats.std + SMALL_NUMBER)).clip(-FILTER_CLIP, FILTER_CLIP)
    return observations.astype(np.float32)


def _stats(one: MergingMeanStdFilter) -> Any:
    if one._filters is None:
        one._init_new_filters()
    (known,) = one._filters.values()
    return known.running_stats


def _moments(stats: Any) -> Moments:
    return Moments(stats.num_pushes, stats.mean_array, stats.sum_sq_diff_array)


def _set(stats: Any, moments: Moments) -> None:
    stats.num_pushes, stats.mean_array, stats.sum_sq_diff_array = moments.count, moments.mean, moments.squares
