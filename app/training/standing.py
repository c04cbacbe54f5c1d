"""Where each trial of a search stands, which one is best, and what is written down of it. Knows nothing of Ray and of RLlib.

A trial's directory (`runs/<run>/trials/<number>`) holds its checkpoints, and `trial.json` once it has ended. The run's `search.json` says
how the search came out: from then on nothing but the best trial's checkpoints is needed.
"""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from app.storage import Place, children, read_json, remove, remove_file, write_aside
from app.training.checkpoints import STATE_FILE, RunState, restored_state
from app.training.search import Trial
from app.training.stop import RECENT_EPISODES, Point, Stop, progress_line

TRIALS, CHECKPOINTS = "trials", "checkpoints"
TRIAL_FILE, OUTCOME_FILE = "trial.json", "search.json"

State = Literal["Pending", "Training", "Stopped", "Finished", "Failed"]


@dataclass(frozen=True)
class Standing:
    """What is known of one trial.

    Attributes:
        state: Stopped by the scheduler because it lagged, Finished by its criterion, Failed because it diverged or its process broke.
        stopped_by: the criterion that it has met.
        reason: why it failed.
        curve: its points so far.
        time_s: seconds trained.
        steps_per_s: of its last iteration.
    """

    trial: Trial
    state: State = "Pending"
    stopped_by: str | None = None
    reason: str | None = None
    curve: tuple[Point, ...] = ()
    time_s: float = 0.0
    steps_per_s: float = 0.0

    @property
    def has_ended(self) -> bool:
        return self.state in ("Stopped", "Finished", "Failed")

    @property
    def env_steps(self) -> int:
        return self.curve[-1].env_steps if self.curve else 0

    @property
    def episode_return_mean(self) -> float | None:
        return self.curve[-1].episode_return_mean if self.curve else None

    def with_point(self, point: Point, time_s: float) -> "Standing":
        """The standing after one more iteration; a point that is known already changes nothing."""
        if point.iteration <= len(self.curve):
            return replace(self, state="Training", time_s=time_s)
        steps = point.env_steps - self.env_steps
        rate = steps / (time_s - self.time_s) if time_s > self.time_s else 0.0
        return replace(self, state="Training", curve=(*self.curve, point), time_s=time_s, steps_per_s=rate)


@dataclass(frozen=True)
class Outcome:
    """How a search came out.

    Attributes:
        best: the number of the best trial; `iteration` is its last one.
        stopped_by: the criterion that ended its training; `search` where it was stopped because it lagged, and is the best in the end.
        told: state, environment steps and mean return of each trial, in their order.
    """

    best: int
    iteration: int
    stopped_by: str
    told: tuple[tuple[str, int, float | None], ...]


def best(standings: Iterable[Standing]) -> Standing | None:
    """The trial with the highest mean return of its latest episodes; of equal ones that with fewer environment steps. One with too few
    episodes is the best only where all have too few; one that failed never is, nor one that has not begun."""
    able = [standing for standing in standings if standing.state != "Failed" and standing.curve]
    return max(able, key=_rank, default=None)


def _rank(standing: Standing) -> tuple[bool, bool, float, int, int]:
    mean, episodes = standing.episode_return_mean, sum(point.episodes for point in standing.curve)
    # A mean of few episodes says little: those that succeed may be the first to end.
    return episodes >= RECENT_EPISODES, mean is not None, mean or 0.0, -standing.env_steps, -standing.trial.number


def place_of_trial(run: Place, number: int) -> Place:
    """Where all of one trial is."""
    return run / TRIALS / f"{number:02d}"


def known_standing(run: Place, trial: Trial) -> Standing:
    """What an earlier attempt has left of a trial. One whose last checkpoint was lost has not ended."""
    place = place_of_trial(run, trial.number)
    kept = restored_state(place / CHECKPOINTS, lambda _: None) or RunState([], 0.0)
    standing = Standing(trial, curve=tuple(kept.curve), time_s=kept.time_s)
    match read_json(place / TRIAL_FILE):
        case {"state": "Failed", "reason": str(reason)}:
            return replace(standing, state="Failed", reason=reason)
        case {"state": "Stopped" | "Finished" as state, "iteration": int(iteration), "stoppedBy": stopped_by} if iteration <= len(
            kept.curve
        ):
            return replace(standing, state=state, stopped_by=stopped_by)
    return standing


def write_ended(run: Place, standing: Standing) -> None:
    """Notes that a trial has ended, and how."""
    content = {
        "state": standing.state,
        "iteration": len(standing.curve),
        "stoppedBy": standing.stopped_by,
        **({"reason": standing.reason} if standing.reason else {}),
    }
    write_aside(place_of_trial(run, standing.trial.number) / TRIAL_FILE, json.dumps(content).encode())


def write_outcome(run: Place, outcome: Outcome) -> None:
    """Notes how the search came out."""
    content = {"best": outcome.best, "iteration": outcome.iteration, "stoppedBy": outcome.stopped_by, "trials": outcome.told}
    write_aside(run / OUTCOME_FILE, json.dumps(content).encode())


def known_outcome(run: Place, trials: int) -> Outcome | None:
    """How the search of an earlier attempt came out, None where it did not."""
    match read_json(run / OUTCOME_FILE):
        case {"best": int(number), "iteration": int(last), "stoppedBy": str(stopped_by), "trials": list(told)} if len(told) == trials:
            return Outcome(number, last, stopped_by, tuple((state, steps, mean) for state, steps, mean in told))
    return None


def outcome_of(standings: Mapping[int, Standing], winner: Standing) -> Outcome:
    """The outcome of a search whose trials have all ended, or will not begin."""
    told = ((standing.state, standing.env_steps, _rounded(standing.episode_return_mean)) for standing in standings.values())
    stopped_by = winner.stopped_by or ("search" if winner.state == "Stopped" else "timeSeconds")
    return Outcome(winner.trial.number, len(winner.curve), stopped_by, tuple(told))


def remove_outcome(run: Place) -> None:
    """Forgets how the search came out."""
    remove_file(run, OUTCOME_FILE)


def remove_trials(run: Place, but: int | None = None) -> None:
    """Removes what trials have left, but for one.

    Raises:
        OSError: the storage failed.
    """
    for name in children(run / TRIALS):
        place = run / TRIALS / name
        if but is not None and place == place_of_trial(run, but):
            continue
        for checkpoint in children(place / CHECKPOINTS):
            remove(place / CHECKPOINTS / checkpoint, STATE_FILE)
        remove(place, TRIAL_FILE)


def progress_of(standings: Mapping[int, Standing], stop: Stop, time_s: float) -> dict[str, Any] | None:
    """The progress line of a search: its figures are those of the best trial so far, the share and the time left those of the whole.

    Args:
        stop: the criteria; the time is that of the whole search, the others are those of each trial.
        time_s: seconds that the search has taken.

    Returns:
        None before any trial has a point.
    """
    first = best(standings.values())
    if first is None:
        return None
    shares = [100.0 if one.has_ended else stop.without_time.progress_percent(one.curve, one.time_s) for one in standings.values()]
    percent = sum(shares) / len(shares)
    if stop.time_s:
        percent = min(100.0, max(percent, 100 * time_s / stop.time_s))
    steps_per_s = sum(one.steps_per_s for one in standings.values() if one.state == "Training")
    return {
        **progress_line(first.curve[-1], percent, time_s, steps_per_s),
        "search": {"best": first.trial.number, "trials": [_told(one) for one in standings.values()]},
    }


def _told(standing: Standing) -> dict[str, Any]:
    told = {
        "trial": standing.trial.number,
        "state": standing.state,
        "config": dict(standing.trial.chosen),
        "envSteps": standing.env_steps,
        "episodeReturnMean": _rounded(standing.episode_return_mean),
    }
    return {name: value for name, value in told.items() if value is not None}


def _rounded(mean: float | None) -> float | None:
    """A mean return as it is told of each of many trials."""
    return None if mean is None else round(mean, 2)
