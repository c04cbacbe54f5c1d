"""A PolicyModel in words: `status` and `history`, for a terminal of any width. Pure: a view and a clock in, text out."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

from controller import status as statuses
from controller.model import CandidateStatus, Condition, Evaluation, FoundBy, Progress, Revision, SearchStatus
from controller.spec import Json, Trigger
from controller.steps import short
from controller.verbs import view as verb_view
from controller.verbs.view import UNUSABLE_PIN, View, span

DONE, UNDER_WAY, WRONG, WAITS, UNKNOWN = "✓", "…", "✗", "·", "?"
LEAST_WIDTH = 40
BAR = 20
LABEL = 10
# Of the history in the status: what `history` has more to say of.
REVISIONS_SHOWN = 5
_COLOURS = {DONE: "\033[32m", WRONG: "\033[31m", UNDER_WAY: "\033[33m", UNKNOWN: "\033[33m"}
_BOLD, _PLAIN = "\033[1m", "\033[0m"


@dataclass(frozen=True)
class Row:
    """One branch of the tree; the first line stands beside its label and mark."""

    label: str
    mark: str
    lines: tuple[str, ...]


def status_text(view: View, now: datetime, width: int) -> str:
    """The tree of one PolicyModel: run, gate, rollout, replicas, revisions, and what comes next."""
    rows = [
        *_accepted(view, now),
        _training(view, now),
        *_schedule(view, now),
        _gate(view, now),
        _rollout(view, now),
        _replicas(view, now),
        *_revisions(view),
        *_asked(view),
        *_trouble(view, now),
        _next(view, now),
    ]
    lines = [_heading(view)]
    for index, row in enumerate(rows):
        lines += _drawn(row, max(LEAST_WIDTH, width), is_last=index == len(rows) - 1)
    return "\n".join(lines) + "\n"


def coloured(text: str) -> str:
    """The same with its marks in colour and its first line in bold."""
    for mark, colour in _COLOURS.items():
        text = text.replace(f" {mark} ", f" {colour}{mark}{_PLAIN} ")
    first, _, rest = text.partition("\n")
    return f"{_BOLD}{first}{_PLAIN}\n{rest}"


def history_text(view: View) -> str:
    """A line for each revision, oldest first."""
    if not view.status.revisions:
        return f"{view.name} has published no policy yet\n"
    head = ("REVISION", "TRAINED", "STEPS", "SEED", "RETURN", "GATE", "ROLLOUT", "DIGEST", "")
    rows: list[tuple[str, ...]] = [head, *(_history_row(view, revision) for revision in view.status.revisions)]
    if any(revision.found_by for revision in view.status.revisions):
        found = ["SEARCH", *(_found_by(revision.found_by) if revision.found_by else "-" for revision in view.status.revisions)]
        rows = [(*row[:-1], cell, row[-1]) for row, cell in zip(rows, found, strict=True)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = ["   ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
    return "\n".join(lines) + "\n"


def revision_text(view: View, revision: Revision) -> str:
    """All that is known of one revision."""
    trigger, evaluation, end, word = revision.trigger, revision.evaluation, revision.rollout, revision.approval
    facts = {
        "revision": f"{revision.number}" + (f", {_standing(view, revision)}" if _standing(view, revision) else ""),
        "digest": revision.digest,
        "bundle": revision.uri,
        "trained": revision.trained_at,
        "run": revision.run,
        "why": _why(trigger) if trigger else "a change of spec.training",
        "seed": None if revision.seed is None else str(revision.seed),
        "search": f"{_found_by(revision.found_by)} (seed {revision.found_by.seed})" if revision.found_by else None,
        "steps": None if revision.env_steps is None else str(revision.env_steps),
        "stopped by": revision.stopped_by,
        "image": revision.image,
        "configuration": revision.config_hash,
        "served before": None if revision.parent is None else f"revision {revision.parent}",
        "gate": revision.verdict or "no verdict of the gate as the spec states it",
        "evaluation": _figures(evaluation) if evaluation else None,
        "approved by": f"{word.user} at {word.time}" + (f" with {word.field_manager}" if word.field_manager else "") if word else None,
        "rollout": f"{end.outcome}, {end.reason}: {end.message}" if end else None,
    }
    return "".join(f"{name:<15}{fact}\n" for name, fact in facts.items() if fact is not None)


def _found_by(found: FoundBy) -> str:
    """Which trial of a search a policy is: `trial 3 of 8: lr 0.001, fcnetHiddens [64, 64]`."""
    return f"trial {found.trial} of {found.trials}: {_settings(found.config)}"


def _settings(config: Json) -> str:
    return ", ".join(f"{name} {value}" for name, value in config.items())


def _why(trigger: Trigger) -> str:
    asked_by = f" of {trigger.user}" if trigger.user else ""
    return f"{trigger.kind} {trigger.id}{asked_by}, training {trigger.number + 1} of its spec"


def bar(share: float, cells: int = BAR) -> str:
    """A share of 1 as a bar."""
    full = round(min(1.0, max(0.0, share)) * cells)
    return f"[{'#' * full}{'-' * (cells - full)}]"


def _heading(view: View) -> str:
    def said(type_: str) -> str:
        found = view.status.condition(type_)
        return f"{type_}={found.status if found else 'Unknown'}"

    phase = "Deleting" if view.is_deleting else view.status.phase or "Unknown"
    generation = f"generation {view.generation}" if view.is_seen else f"generation {view.generation}, not seen by the operator yet"
    return "   ".join([f"{view.namespace}/{view.name}", phase, said(statuses.AVAILABLE), said(statuses.READY), generation])


def _drawn(row: Row, width: int, *, is_last: bool) -> Iterable[str]:
    branch, below = ("└─ ", "   ") if is_last else ("├─ ", "│  ")
    head, rest = f"{branch}{row.label:<{LABEL}}{row.mark} ", below + " " * (LABEL + 2)
    for line in row.lines:
        # Commands are copied: they are never broken in two.
        wrapped = (
            [line] if line.startswith("$ ") else textwrap.wrap(line, width - len(head), break_long_words=False, break_on_hyphens=False)
        )
        for part in wrapped:
            yield (head + part).rstrip()
            head = rest


def _accepted(view: View, now: datetime) -> list[Row]:
    found = view.status.condition(statuses.ACCEPTED)
    return [Row("spec", WRONG, (_finding(found, now),))] if found and found.status == "False" else []


def _training(view: View, now: datetime) -> Row:
    found, training = view.status.condition(statuses.TRAINED), view.status.training
    if found is None:
        return Row("training", WAITS, ("nothing is known yet",))
    again: tuple[str, ...] = ()
    if training and training.trigger:
        again = (f"asked for by {training.trigger.asker}: training {training.trigger.number + 1} of this spec",)
    if training and training.search:
        again = (*again, *_searched(training.search))
    if found.status == "True":
        return Row("training", DONE, (found.message, *again))
    if _waits(found):
        return Row("training", WAITS, (found.message, *again))
    if not _is_under_way(view, "Training") or view.reason(statuses.DEGRADED) == found.reason:
        return Row("training", WRONG, (_finding(found, now), *again))
    if training is None or training.progress is None:
        return Row("training", UNDER_WAY, (found.message, *again))
    attempt = f", attempt {training.attempt}" if training.attempt > 1 else ""
    return Row("training", UNDER_WAY, (*_progress(training.progress), f"Job {training.job}{attempt}", *again))


def _searched(search: SearchStatus) -> Iterable[str]:
    """How the trials of a search stand: how many are in which state, and the best with what it has drawn."""
    states = [trial.state for trial in search.trials]
    counts = [f"{states.count(state)} {state.lower()}" for state in dict.fromkeys(states)]
    yield f"search: {joined(counts)} of {len(states)} trials" if counts else "search: no trial is told of"
    for trial in search.trials:
        if trial.trial == search.best:
            mean = "" if trial.episode_return_mean is None else f", mean return {trial.episode_return_mean:.1f}"
            yield f"best: trial {trial.trial}{mean}" + (f", {_settings(trial.config)}" if trial.config else "")


def _schedule(view: View, now: datetime) -> list[Row]:
    schedule = view.status.schedule
    if schedule is None:
        return []
    left_s = -statuses.age_s(schedule.next_time, now)
    last = f"; the last was asked for at {schedule.last_time}" if schedule.last_time else ""
    return [Row("schedule", WAITS, (f"trains again at {schedule.next_time}, in {span(max(0.0, left_s))}{last}",))]


def _progress(progress: Progress) -> tuple[str, str]:
    left = "" if progress.eta_s is None else f"  {span(progress.eta_s)} left"
    figures = f"iteration {progress.iteration}, {progress.env_steps} environment steps"
    if progress.steps_per_s is not None:
        figures += f" ({progress.steps_per_s:.0f} per second)"
    if progress.episode_return_mean is not None:
        figures += f", mean return {progress.episode_return_mean:.1f}"
    if progress.episode_return_std is not None:
        figures += f" (standard deviation {progress.episode_return_std:.1f})"
    return f"{bar(progress.percent / 100)} {progress.percent:.0f}%{left}", figures


def _gate(view: View, now: datetime) -> Row:
    found = view.status.condition(statuses.APPROVED)
    if found is None:
        return Row("gate", WAITS, ("nothing is known yet",))
    if found.status == "True":
        return Row("gate", DONE, (found.message,))
    if _waits(found):
        return Row("gate", WAITS, (found.message,))
    if _is_under_way(view, "Evaluating") and view.reason(statuses.DEGRADED) != found.reason:
        return Row("gate", UNDER_WAY, (found.message,))
    return Row("gate", WRONG, (_finding(found, now),))


def _rollout(view: View, now: datetime) -> Row:
    candidate, back, ready = view.status.candidate, verb_view.stayed_back(view), view.status.condition(statuses.READY)
    pin = (f"revision {view.pin} is pinned (spec.servedRevision)",) if view.pin else ()
    if candidate:
        mark = WRONG if verb_view.is_held_at_its_step(view) else UNDER_WAY
        said = (ready.message,) if ready and ready.status != "True" else ()
        return Row("rollout", mark, (*_way(view, candidate, now), *said, *pin))
    if back and back.rollout:
        what = "was aborted" if back.rollout.outcome == "Aborted" else "was rolled back"
        return Row("rollout", WRONG, (f"revision {back.number} {what}: {back.rollout.reason}: {back.rollout.message}", *pin))
    if ready and (ready.reason == "ImageTooOld" or (view.pin and ready.reason in UNUSABLE_PIN)):
        return Row("rollout", WRONG, (_finding(ready, now),))
    if ready and ready.status == "True":
        return Row("rollout", DONE, ("nothing is being rolled out", *pin))
    return Row("rollout", WAITS, (_rules(view), *pin))


def _rules(view: View) -> str:
    if view.strategy == "Direct" or not view.steps:
        return "Direct: every replica loads the next policy, and then takes it over"
    steps = ", ".join((f"{step.weight} % for " if step.weight else "") + span(step.seconds) for step in view.steps)
    return f"{view.strategy}: {steps}"


def _way(view: View, candidate: CandidateStatus, now: datetime) -> tuple[str, ...]:
    """Where a candidate is: the steps, the one that it is at in brackets, and how long it has been there."""
    since = f"told {span(statuses.age_s(candidate.since, now))} ago"
    if candidate.weight == 100:
        return (f"revision {candidate.revision} takes over ({since})",)
    names = [f"{step.weight} %" if step.weight else f"shadow {number}" for number, step in enumerate(view.steps, start=1)]
    stages = ["load", *(names if candidate.steps else []), "take over"]
    at = min(candidate.step, len(stages) - 1)
    way = " > ".join(f"[{stage}]" if index == at else stage for index, stage in enumerate(stages))
    left_s = verb_view.step_left_s(view, candidate, now)
    if left_s is None:
        return (f"{candidate.mode}: {way}  ({since})",)
    seconds = view.steps[candidate.step - 1].seconds
    spent = f"{bar(1.0 if seconds == 0 else 1 - left_s / seconds)} {span(min(seconds, seconds - left_s))} of {span(seconds)}"
    return f"{candidate.mode}: {way}", spent


def _replicas(view: View, now: datetime) -> Row:
    serving, ready = view.status.serving, view.status.condition(statuses.READY)
    available = view.status.condition(statuses.AVAILABLE)
    if serving is None:
        said = (ready.message,) if ready and ready.reason in ("NoReplica", "CreatingRayService", "ServeFailed") else ()
        return Row("replicas", WAITS, ("no policy has answered yet", *said))
    number = f"revision {serving.revision}" if serving.revision else "a policy that is in no revision"
    mean = "" if serving.return_mean is None else f", mean return {serving.return_mean:.1f} in its evaluation"
    line = f"{number} ({short(serving.digest)}) answers on {serving.replicas_ready} of {serving.replicas} replicas{mean}"
    url = (view.status.url,) if view.status.url else ()
    if available is None or available.status == "Unknown":
        why = (available.message,) if available else ()
        return Row("replicas", UNKNOWN, (f"last seen: {line}", *why, *url))
    if available.status == "False":
        return Row("replicas", WRONG, (f"NOTHING ANSWERS: {_finding(available, now)}", f"revision {serving.revision} did until then", *url))
    is_told_elsewhere = ready is None or ready.status == "True" or view.status.candidate or not _is_of_the_replicas(view, ready)
    said = () if ready is None or is_told_elsewhere else (ready.message,)
    is_settled = serving.replicas_ready == serving.replicas and not said
    return Row("replicas", DONE if is_settled else UNDER_WAY, (line, *said, *url))


def _is_of_the_replicas(view: View, ready: Condition) -> bool:
    """Whether what stands in the way of Ready is told by no other row."""
    others = [view.reason(type_) for type_ in (statuses.ACCEPTED, statuses.TRAINED, statuses.APPROVED)]
    others += ["RolledBack", "Aborted", *UNUSABLE_PIN, "ImageTooOld"]
    return ready.reason not in others


def _revisions(view: View) -> list[Row]:
    known = view.status.revisions
    if not known:
        return []
    told = [f"{revision.number} {_standing(view, revision) or _gated(revision)}" for revision in known[-REVISIONS_SHOWN:]]
    more = "" if len(known) <= REVISIONS_SHOWN else f"  ({len(known) - REVISIONS_SHOWN} more: {view.command('history')})"
    return [Row("revisions", WAITS, ("; ".join(told) + more,))]


def _asked(view: View) -> list[Row]:
    """Requests that nobody has seen to yet."""
    waits = " (it waits while the PolicyModel is paused)" if view.paused else " (the operator has not seen to it yet)"
    told = [
        f"{verb}{f' of revision {asked.revision}' if asked.revision else ''} by {asked.user} at {asked.time}{waits}"
        for verb, asked in view.requests.items()
        if not asked.problem
    ]
    return [Row("asked", UNDER_WAY, tuple(told))] if told else []


def _trouble(view: View, now: datetime) -> list[Row]:
    """What is wrong that no other row tells, such as a write that the API server refused."""
    found = view.status.condition(statuses.DEGRADED)
    told = [view.reason(type_) for type_ in (statuses.ACCEPTED, statuses.TRAINED, statuses.APPROVED, statuses.READY)]
    is_untold = found is not None and found.status == "True" and found.reason not in told
    return [Row("trouble", WRONG, (_finding(found, now),))] if found and is_untold else []


def _next(view: View, now: datetime) -> Row:
    advice = verb_view.advice(view, now)
    widest = max((len(command) for command, _ in advice.commands), default=0)
    commands = tuple(f"$ {command:<{widest}}  # {what}" for command, what in advice.commands)
    return Row("next", "→", (advice.text, *commands))


def _finding(condition: Condition, now: datetime) -> str:
    lasting = f" (for {span(statuses.age_s(condition.last_transition_time, now))})" if condition.last_transition_time else ""
    return f"{condition.reason}{lasting}: {condition.message}"


def _waits(condition: Condition) -> bool:
    return condition.reason in ("NotTrained", "NotAccepted", "Paused")


def _is_under_way(view: View, what: str) -> bool:
    return view.is_(statuses.PROGRESSING, "True") and view.reason(statuses.PROGRESSING) == what


def _standing(view: View, revision: Revision) -> str:
    """What a revision does just now, or ""."""
    candidate = view.status.candidate
    told = []
    if revision.number == view.serving:
        told.append("served" if view.is_(statuses.AVAILABLE, "False") else "serves")
    if candidate and candidate.revision == revision.number:
        told.append("takes over" if candidate.weight == 100 else _trial(candidate))
    if revision.number == view.pin:
        told.append("pinned")
    if not revision.is_kept:
        told.append("pruned" if revision.retention == "Pruned" else "being pruned")
    return ", ".join(told)


def _trial(candidate: CandidateStatus) -> str:
    return f"{candidate.mode.lower()} {candidate.weight} %" if candidate.mode == "Canary" else candidate.mode.lower()


def _gated(revision: Revision) -> str:
    """How far a revision got, in a word or two."""
    if revision.rollout and revision.rollout.outcome != "Promoted":
        return "aborted" if revision.rollout.outcome == "Aborted" else "rolled back"
    if revision.approval:
        return "approved"
    return {"Pass": "passed", "Fail": "failed its gate", "Inconclusive": "not told by its gate", None: "not judged"}[revision.verdict]


def _history_row(view: View, revision: Revision) -> tuple[str, ...]:
    evaluation, end = revision.evaluation, revision.rollout
    gate: str = revision.verdict or "-"
    if revision.approval:
        gate += f", approved by {revision.approval.user}"
    return (
        str(revision.number),
        revision.trained_at or "-",
        "-" if revision.env_steps is None else str(revision.env_steps),
        "-" if revision.seed is None else str(revision.seed),
        f"{evaluation.mean:.1f} (>= {evaluation.lower:.1f})" if evaluation else "-",
        gate,
        "-" if end is None else end.outcome if end.outcome == "Promoted" else f"{end.outcome}: {end.reason}",
        short(revision.digest),
        _standing(view, revision),
    )


def _figures(evaluation: Evaluation) -> str:
    said = (
        f"mean return {evaluation.mean:.1f} (between {evaluation.lower:.1f} and {evaluation.upper:.1f}) over {evaluation.episodes} episodes"
    )
    against = evaluation.against
    if against is None:
        return said
    if against.problem:
        return f"{said}; not compared: {against.problem}"
    bounds = f"between {against.lower:+.2f} and {against.upper:+.2f}, {against.margin:.2f} less is allowed"
    return f"{said}; against {short(against.digest)} {against.difference_mean:+.2f} ({bounds})"


def joined(items: Sequence[object]) -> str:
    """A list for people: `1, 2 and 3`."""
    words = [str(item) for item in items]
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
