"""When a training ends and how far it is. Pure: no clock, no RLlib."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from app.errors import InputError

FIELD = "spec.training.stop"
CRITERIA = ("episodeReturnMean", "envSteps", "iterations", "timeSeconds", "plateauIterations")
# RLlib reports the episodes that ended in one iteration, in late training two or three; a mean of so few says little.
RECENT_EPISODES = 20


@dataclass(frozen=True)
class Point:
    """One point of the learning curve.

    Attributes:
        iteration: training iterations done.
        env_steps: environment steps done.
        episodes: episodes that ended in this iteration.
        return_sum: sum of their returns, exploring.
        episode_return_mean: mean return of the latest episodes, at least `RECENT_EPISODES` of them and whole iterations; of all
            while there are fewer, None before the first.
        return_square_sum: sum of the squares of the returns.
        episode_return_std: standard deviation of the returns that the mean is of.
    """

    iteration: int
    env_steps: int
    episodes: int
    return_sum: float
    episode_return_mean: float | None
    return_square_sum: float = 0.0
    episode_return_std: float | None = None


def progress_line(last: Point, percent: float, time_s: float, steps_per_s: float) -> dict[str, Any]:
    """How far a training is, as its log tells it.

    Args:
        last: its newest point.
        percent: the share that is behind, from 0 to 100.
        time_s: seconds spent on it, over all attempts.
    """
    return {
        "iteration": last.iteration,
        "envSteps": last.env_steps,
        "episodeReturnMean": last.episode_return_mean,
        "episodeReturnStd": last.episode_return_std,
        "progressPercent": round(percent, 1),
        "stepsPerSecond": round(steps_per_s, 1),
        "etaSeconds": round(time_s * (100 - percent) / percent, 1) if percent > 0 else None,
    }


def next_point(curve: Sequence[Point], env_steps: int, episodes: int, return_sum: float, return_square_sum: float = 0.0) -> Point:
    """The point that follows on a curve after an iteration in which these episodes ended."""
    count, total, squares = episodes, return_sum, return_square_sum
    for point in reversed(curve):
        if count >= RECENT_EPISODES:
            break
        count += point.episodes
        total += point.return_sum
        squares += point.return_square_sum
    mean = total / count if count else None
    # Rounding may leave a little less than nothing of equal returns.
    std = None if mean is None else math.sqrt(max(0.0, squares / count - mean**2))
    return Point(len(curve) + 1, env_steps, episodes, return_sum, mean, return_square_sum, std)


@dataclass(frozen=True)
class Stop:
    """Criteria of which any one ends a training; None where it is not asked for."""

    episode_return_mean: float | None = None
    env_steps: int | None = None
    iterations: int | None = None
    time_s: float | None = None
    plateau_iterations: int | None = None

    def reached(self, curve: Sequence[Point], time_s: float) -> str | None:
        """The name of the criterion that ends the training after the last point of its curve, None while there is none."""
        if not curve:
            return None
        return next((name for name, share in self._shares(curve, time_s).items() if share >= 1), None)

    def progress_percent(self, curve: Sequence[Point], time_s: float) -> float:
        """The largest share of any criterion, from 0 to 100. A plateau ends as soon as the return rises, so it counts only when it is met.

        Args:
            curve: what was trained so far.
            time_s: seconds spent on it, over all attempts.
        """
        if not curve:
            return 0.0
        return 100 * min(
            1.0, max(share for name, share in self._shares(curve, time_s).items() if name != "plateauIterations" or share >= 1)
        )

    @property
    def without_time(self) -> "Stop":
        """The other criteria alone."""
        return replace(self, time_s=None)

    def _shares(self, curve: Sequence[Point], time_s: float) -> dict[str, float]:
        """How much of each criterion is behind; from 1 on it is met."""
        last = curve[-1]
        return {
            "episodeReturnMean": self._return_share(curve),
            "envSteps": _share(last.env_steps, self.env_steps),
            "iterations": _share(last.iteration, self.iterations),
            "timeSeconds": _share(time_s, self.time_s),
            "plateauIterations": _share(_iterations_since_best(curve), self.plateau_iterations),
        }

    def _return_share(self, curve: Sequence[Point]) -> float:
        """How much of the way from the first mean return to the wanted one is behind."""
        last = curve[-1].episode_return_mean
        if self.episode_return_mean is None or last is None or sum(point.episodes for point in curve) < RECENT_EPISODES:
            return 0.0
        if last >= self.episode_return_mean:
            return 1.0
        first = min(point.episode_return_mean for point in curve if point.episode_return_mean is not None)
        return min(0.99, max(0.0, (last - first) / (self.episode_return_mean - first)))


def _iterations_since_best(curve: Sequence[Point]) -> int:
    """Iterations since the mean return was at its highest, counted from where it is one of enough episodes."""
    best, since, episodes = -math.inf, 0, 0
    for point in curve:
        episodes += point.episodes
        mean = point.episode_return_mean
        if mean is None or episodes < RECENT_EPISODES:
            continue
        since = 0 if mean > best else since + 1
        best = max(best, mean)
    return since


def _share(done: float, wanted: float | None) -> float:
    return 0.0 if wanted is None else done / wanted


def parsed_stop(stop: Any) -> Stop:
    """The criteria that `spec.training.stop` asks for.

    Raises:
        InputError: none is given, a name is unknown, or a value is not allowed.
    """
    if not isinstance(stop, dict) or not stop:
        raise InputError("InvalidConfig", f"{FIELD} must hold at least one of {', '.join(CRITERIA)}")
    for name, value in stop.items():
        if name not in CRITERIA:
            raise InputError("InvalidConfig", f"{FIELD}.{name} is no criterion; allowed are {', '.join(CRITERIA)}")
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            raise InputError("InvalidConfig", f"{FIELD}.{name} must be a number")
        if name != "episodeReturnMean" and value < 1:
            raise InputError("InvalidConfig", f"{FIELD}.{name} must be 1 or more")
    return Stop(*(stop.get(name) for name in CRITERIA))
