"""What the app says of a training, an evaluation or a pruning: lines of its log, and the last word of its pod. Pure.

The image may be its user's, so it may say anything: what is not whole is taken for nothing.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

from controller import names
from controller.model import FoundBy, Progress, SearchStatus, TrialStatus
from controller.spec import Json

# Of a search: the schema's bound, and what a trial may be said to be.
MOST_TRIALS = 32
TRIAL_STATES = ("Pending", "Training", "Stopped", "Finished", "Failed")


def last_progress(log: str) -> Progress | None:
    """The newest progress line of a training log; lines that are none are passed over."""
    for progress in _progress_lines(log):
        if _is_progress(progress):
            return Progress(
                iteration=int(progress["iteration"]),
                env_steps=int(progress["envSteps"]),
                episode_return_mean=progress.get("episodeReturnMean"),
                percent=float(progress["progressPercent"]),
                eta_s=progress.get("etaSeconds"),
                episode_return_std=progress.get("episodeReturnStd"),
                steps_per_s=progress.get("stepsPerSecond"),
            )
    return None


def last_attempt(log: str) -> int:
    """Which attempt of its run a training log tells of last; 0 where it tells of none, as that of an older image."""
    for progress in _progress_lines(log):
        match progress:
            case {"attempt": int(attempt)} if is_number(attempt):
                return attempt
    return 0


def last_search(log: str) -> SearchStatus | None:
    """How the trials of a search stand, as the newest line of a training log tells that does."""
    for progress in _progress_lines(log):
        match progress.get("search"):
            case {"best": int(best), "trials": list(told)}:
                trials = [_trial_status(one) for one in told[:MOST_TRIALS]]
                return SearchStatus(best, tuple(trial for trial in trials if trial))
    return None


def _progress_lines(log: str) -> Iterator[Json]:
    """What the lines of a training log tell of its progress, the newest first."""
    for line in reversed(log.splitlines()):
        progress = parsed(line).get("progress")
        if isinstance(progress, Mapping):
            yield progress


def found_by(result: Json) -> FoundBy | None:
    """Which trial of a search a training's result is; None where nothing was searched for, or it is not told as it should be."""
    match result.get("search"):
        case {"trial": int(trial), "seed": int(seed), "config": Mapping() as config, "trials": list(told)} if _is_drawn(config):
            return FoundBy(trial, len(told), seed, config)
    return None


def ended_search(result: Json, before: SearchStatus | None) -> SearchStatus | None:
    """How the trials of a search have ended, as its result tells; what they had drawn is known from its progress, if that was seen."""
    found = found_by(result)
    if found is None:
        return None
    drawn = {trial.trial: trial.config for trial in (before.trials if before else ())} | {found.trial: found.config}
    trials = []
    for number, told in enumerate(result["search"]["trials"][:MOST_TRIALS], start=1):
        match told:
            case [str(state), int(env_steps), mean] if state in TRIAL_STATES and (mean is None or is_number(mean)):
                trials.append(TrialStatus(number, state, drawn.get(number), env_steps, mean))
            case _:
                return None
    return SearchStatus(found.trial, tuple(trials))


def _trial_status(told: Any) -> TrialStatus | None:
    match told:
        case {"trial": int(number), "state": str(state), "config": Mapping() as config, "envSteps": int(steps)} if _is_drawn(config):
            mean = told.get("episodeReturnMean")
            is_measured = mean is None or is_number(mean)
            return TrialStatus(number, state, config, steps, mean) if is_measured and state in TRIAL_STATES else None
    return None


def _is_drawn(config: Json) -> bool:
    """Whether these are settings: the image may be its user's, and the status holds what JSON can."""
    return all(
        isinstance(value, bool | str) or is_number(value) or (isinstance(value, list) and all(is_number(part) for part in value))
        for value in config.values()
    )


def parsed(line: str) -> dict[str, Any]:
    """A JSON object in a line, or {} where the line is none."""
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def is_number(value: Any) -> bool:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number that no float holds
        return False


def _is_progress(progress: Json) -> bool:
    counted = all(is_number(progress.get(name)) for name in ("iteration", "envSteps", "progressPercent"))
    may_miss = ("episodeReturnMean", "episodeReturnStd", "stepsPerSecond", "etaSeconds")
    return counted and all(progress.get(name) is None or is_number(progress[name]) for name in may_miss)


def is_result(word: Json, role: str) -> bool:
    """Whether a last word holds what a revision, or an evaluation, is made from. The image may be its user's: it may say anything."""
    result = word.get("result")
    if role == names.ROLE_PRUNE:
        return isinstance(result, Mapping) and isinstance(result.get("pruned"), int)
    if not isinstance(result, Mapping) or not isinstance(result.get("digest"), str):
        return False
    evaluation = result.get("evaluation")
    if role == names.ROLE_EVALUATE or evaluation is not None:
        return _is_evaluation(evaluation) and (role == names.ROLE_EVALUATE or _is_publication(result))
    return _is_publication(result)


def _is_publication(result: Json) -> bool:
    are_counted = all(isinstance(result.get(name), int | None) for name in ("envSteps", "seed"))
    are_told = all(isinstance(result.get(name), str | None) for name in ("configHash", "stoppedBy"))
    return isinstance(result.get("uri"), str) and are_counted and are_told and _is_moment(result.get("trainedAt"))


def _is_moment(text: Any) -> bool:
    if text is None:
        return True
    try:
        return datetime.fromisoformat(text).tzinfo is not None
    except (TypeError, ValueError):
        return False


def _is_evaluation(evaluation: Any) -> bool:
    if not isinstance(evaluation, Mapping) or not isinstance(evaluation.get("id"), str):
        return False
    are_whole = all(isinstance(evaluation.get(name), int) for name in ("episodes", "seed"))
    are_numbers = all(is_number(evaluation.get(name)) for name in ("mean", "std"))
    return are_whole and evaluation["episodes"] >= 2 and are_numbers and _is_against(evaluation.get("against"))


def _is_against(against: Any) -> bool:
    if against is None:
        return True
    if not isinstance(against, Mapping) or not isinstance(against.get("digest"), str):
        return False
    if "problem" in against:
        return isinstance(against["problem"], str)
    return all(is_number(against.get(name)) for name in ("mean", "std", "differenceMean", "differenceStd"))


def is_error(word: Json) -> bool:
    error = word.get("error")
    return isinstance(error, Mapping) and all(isinstance(error.get(name), str) for name in ("reason", "message"))
