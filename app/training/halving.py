"""Which trial of a search lags behind the others: Tune's asynchronous successive halving. Imports Ray Tune, and starts no Ray.

Tune's scheduler is asked, and its own records of it are not kept: what each trial did stands in its checkpoints, from which a new attempt
tells the scheduler the same again. So a trial is judged alike, however often the search was interrupted.
"""

from types import SimpleNamespace

from ray.tune.schedulers import ASHAScheduler, TrialScheduler

from app.training.stop import Point, Stop

STEPS, RETURN = "env_steps", "episode_return_mean"
# At each rung a trial goes on that is among the best third of those that came by it.
REDUCTION = 3
RUNGS, RUNGS_WITHOUT_END = 3, 12
# Before that a return says nothing of the settings.
LEAST_ITERATIONS, LEAST_ITERATIONS_WITHOUT_END = 5, 10


def rungs(stop: Stop, batches: list[int]) -> list[int]:
    """At how many environment steps trials are compared, lowest first.

    Args:
        batches: environment steps of an iteration, of each trial.

    Returns:
        A 27th, a 9th and a third of what a trial may take, as far as each trial has done some iterations then; where it may take any
        number of steps, ever three times as many.
    """
    ends = [stop.env_steps] if stop.env_steps else []
    if stop.iterations:
        ends.append(stop.iterations * min(batches))
    if not ends:
        return [LEAST_ITERATIONS_WITHOUT_END * max(batches) * REDUCTION**power for power in range(RUNGS_WITHOUT_END)]
    end = int(min(ends))
    first = max(-(-end // REDUCTION**RUNGS), LEAST_ITERATIONS * max(batches))
    return [first] + [first * REDUCTION**power for power in range(1, RUNGS) if first * REDUCTION**power < end]


class Halving:
    """Asynchronous successive halving by environment steps and mean return.

    Source: https://arxiv.org/abs/1810.05934.
    """

    def __init__(self, rungs: list[int]) -> None:
        self._rungs = rungs
        # One more than the last rung: the logarithm that counts rungs is rounded.
        self._asha = ASHAScheduler(
            time_attr=STEPS,
            metric=RETURN,
            mode="max",
            grace_period=rungs[0],
            max_t=rungs[-1] + 1,
            reduction_factor=REDUCTION,
            stop_last_trials=False,
        )
        self._known: dict[int, SimpleNamespace] = {}

    def is_behind(self, number: int, point: Point) -> bool:
        """Takes note of a point of a trial; gives whether the trial is to be stopped there."""
        if point.episode_return_mean is None:
            return False
        return self._asked(number, point.env_steps, point.episode_return_mean)

    def has_finished(self, number: int, point: Point) -> None:
        """A trial has met its criterion: from there on its return is what the others are held against."""
        if point.episode_return_mean is None:
            return
        for rung in self._rungs:
            if rung > point.env_steps:
                self._asked(number, rung, point.episode_return_mean)

    def _asked(self, number: int, env_steps: int, episode_return_mean: float) -> bool:
        if number not in self._known:
            self._known[number] = SimpleNamespace(trial_id=str(number))
            self._asha.on_trial_add(None, self._known[number])
        decision = self._asha.on_trial_result(None, self._known[number], {STEPS: env_steps, RETURN: episode_return_mean})
        return bool(decision == TrialScheduler.STOP)
