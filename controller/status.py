"""The status of a PolicyModel: its conditions, the phase and the events that follow from them, and its form in the API.

May not decide what is done (`reconcile` does), and may claim only what was observed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from datetime import datetime
from typing import Any

from controller import names
from controller.model import (
    Against,
    Approval,
    CandidateStatus,
    Condition,
    Evaluation,
    Event,
    FoundBy,
    Images,
    Problem,
    Progress,
    Revision,
    RolloutEnd,
    ScheduleStatus,
    SearchStatus,
    ServingStatus,
    Status,
    TrainingStatus,
    TrialStatus,
    UndoneSwitch,
)
from controller.spec import Json, Trigger

ACCEPTED, TRAINED, APPROVED = "Accepted", "Trained", "Approved"
AVAILABLE, READY, PROGRESSING, DEGRADED = "Available", "Ready", "Progressing", "Degraded"

# What a condition has to become for its event to be a warning.
_BAD = {(ACCEPTED, "False"), (DEGRADED, "True"), (AVAILABLE, "False")}
# These go through many reasons on their way, and each is news; of the others only a change of status is.
_TOLD_BY_REASON = {TRAINED, APPROVED, DEGRADED}
# What waits for another condition is told by that one.
_WAITS = {"NotTrained", "NotAccepted"}
# What asks something of a rollout.
ROLLOUT_REQUESTS = {names.PROMOTE, names.ABORT}


def timestamp(moment: datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def age_s(since: str, now: datetime) -> float:
    """Seconds from a timestamp until now."""
    return (now - datetime.fromisoformat(since)).total_seconds()


def dated(conditions: Sequence[Condition], before: Status, now: datetime, generation: int) -> tuple[Condition, ...]:
    """The conditions with the time of their last change of status."""

    def since(condition: Condition) -> str:
        last = before.condition(condition.type)
        return last.last_transition_time if last and last.status == condition.status else timestamp(now)

    return tuple(replace(condition, last_transition_time=since(condition), observed_generation=generation) for condition in conditions)


def phase(conditions: Sequence[Condition]) -> str:
    """One word for people."""
    by_type = {condition.type: condition for condition in conditions}
    if by_type[PROGRESSING].reason == "Paused":
        return "Paused"
    if by_type[ACCEPTED].status == "False":
        return "Refused"
    if by_type[READY].status == "True":
        return "Ready"
    if by_type[READY].status == "Unknown" and by_type[PROGRESSING].status == by_type[DEGRADED].status == "False":
        return "Unknown"
    if by_type[PROGRESSING].status == "True" and by_type[DEGRADED].status == "False":
        return by_type[PROGRESSING].reason
    if by_type[DEGRADED].status == "True":
        return "Degraded"
    return "Pending"


def events(before: Status, after: Status) -> tuple[Event, ...]:
    """What has changed, as a diary tells it: each thing once, where it belongs."""
    news = [condition for condition in after.conditions if _is_news(condition, before)]
    told = [Event("Warning" if (item.type, item.status) in _BAD else "Normal", item.reason, item.message) for item in news]
    # Where two conditions say the same, the warning is kept.
    unique = {(event.reason, event.message): event for event in sorted(told, key=lambda event: event.type)}
    return tuple(event for event in dict.fromkeys(told) if event in unique.values())


def _is_news(condition: Condition, before: Status) -> bool:
    last = before.condition(condition.type)
    if last and last.status == "Unknown" and condition.status == "True" and before.candidate is None:
        # It was asked in vain for a moment, and serves on: replicas that are slow to answer would fill the diary.
        return False
    has_new_reason = last is None or (last.status, last.reason) != (condition.status, condition.reason)
    has_new_status = last is None or last.status != condition.status
    if condition.status == "Unknown" or condition.reason in _WAITS:
        return False
    if condition.type == PROGRESSING:
        # Training and evaluation are told by Trained and Approved.
        return has_new_reason and condition.reason in ("RollingOut", "Paused")
    if condition.type == DEGRADED:
        return has_new_reason and condition.status == "True"
    if condition.type in _TOLD_BY_REASON:
        return has_new_reason
    is_from_the_start = last is None and condition.status == "False"
    return (
        has_new_status
        and (condition.type == ACCEPTED or not is_from_the_start)
        and not (condition.type == READY and condition.status == "False")
    )


def with_doubt(status: Status, reason: str, message: str, now: datetime) -> Status:
    """The status where nothing could be seen: what rests on what is seen now is not known, and the rest is as it was."""
    doubts = [Condition(type_, "Unknown", reason, message) for type_ in (AVAILABLE, READY)]
    others = [condition for condition in status.conditions if condition.type not in (AVAILABLE, READY)]
    conditions = (*others, *dated(doubts, status, now, status.observed_generation))
    return replace(status, conditions=conditions, phase=phase(conditions) if others else "Unknown")


def with_failure(status: Status, before: Status, reason: str, message: str, now: datetime) -> Status:
    """The status after an action that the backend refused: what was planned has not happened."""
    failed = Condition(DEGRADED, "True", reason, message)
    others = [condition for condition in status.conditions if condition.type != DEGRADED]
    conditions = (*others, *dated([failed], before, now, status.observed_generation))
    return replace(status, conditions=conditions, phase=phase(conditions))


def with_rollout_of(status: Status, before: Status) -> Status:
    """The status where the replicas could not be told what was planned: the rollout stands where it stood, and requests to it wait."""
    ends = {revision.number: revision.rollout for revision in before.revisions}
    handled = {verb: id_ for verb, id_ in status.last_handled_requests.items() if verb not in ROLLOUT_REQUESTS}
    waiting = {verb: id_ for verb, id_ in before.last_handled_requests.items() if verb in ROLLOUT_REQUESTS}
    revisions = tuple(replace(revision, rollout=ends.get(revision.number)) for revision in status.revisions)
    return replace(status, candidate=before.candidate, revisions=revisions, last_handled_requests={**handled, **waiting})


def document_of(status: Status) -> dict[str, Any]:
    """The status as the API holds it; what is not known is left out."""
    training, serving = status.training, status.serving
    document = {
        "observedGeneration": status.observed_generation,
        "phase": status.phase,
        "url": status.url,
        "images": vars(status.images) if status.images else None,
        "conditions": [
            {
                "type": condition.type,
                "status": condition.status,
                "reason": condition.reason,
                "message": condition.message,
                "lastTransitionTime": condition.last_transition_time,
                "observedGeneration": condition.observed_generation,
            }
            for condition in status.conditions
        ],
        "training": _training_document(training) if training else None,
        "schedule": _schedule_document(status.schedule) if status.schedule else None,
        "serving": _without_none(
            {
                "revision": serving.revision,
                "digest": serving.digest,
                "uri": serving.uri,
                "returnMean": serving.return_mean,
                "replicasReady": serving.replicas_ready,
                "replicas": serving.replicas,
            }
        )
        if serving
        else None,
        "candidate": _candidate_document(status.candidate) if status.candidate else None,
        "revisions": [_revision_document(revision) for revision in status.revisions],
        "undoneSwitch": vars(status.undone_switch) if status.undone_switch else None,
        "lastHandledRequests": dict(status.last_handled_requests) or None,
    }
    return _without_none(document)


def status_of(document: Json) -> Status:
    """The status that the API holds; what an older operator did not write is taken as not known, and what a newer one added is left out."""
    images, training, serving = document.get("images"), document.get("training"), document.get("serving")
    revisions = tuple(_revision_of(revision) for revision in document.get("revisions", []))
    candidate, schedule = document.get("candidate", {}), document.get("schedule")
    return Status(
        observed_generation=document.get("observedGeneration", 0),
        phase=document.get("phase", ""),
        url=document.get("url"),
        images=Images(images["training"], images["serving"]) if images else None,
        conditions=tuple(
            Condition(
                condition["type"],
                condition["status"],
                condition["reason"],
                condition["message"],
                condition["lastTransitionTime"],
                condition.get("observedGeneration", 0),
            )
            for condition in document.get("conditions", [])
        ),
        training=_training_of(training) if training else None,
        schedule=ScheduleStatus(schedule["cron"], schedule["timeZone"], schedule["nextTime"], schedule.get("lastTime"))
        if schedule
        else None,
        serving=ServingStatus(
            serving["digest"],
            serving.get("revision"),
            serving.get("returnMean"),
            serving.get("replicasReady", 0),
            serving.get("replicas", 0),
            serving.get("uri"),
        )
        if serving
        else None,
        candidate=_candidate_of(candidate) if "since" in candidate else None,
        revisions=revisions,
        undone_switch=UndoneSwitch(**_known(UndoneSwitch, document["undoneSwitch"])) if "undoneSwitch" in document else None,
        last_handled_requests=document.get("lastHandledRequests", {}),
    )


def _candidate_document(candidate: CandidateStatus) -> dict[str, Any]:
    return _without_none(
        {
            "revision": candidate.revision,
            "digest": candidate.digest,
            "mode": candidate.mode,
            "weight": candidate.weight,
            "stage": candidate.stage,
            "step": candidate.step,
            "steps": candidate.steps,
            "since": candidate.since,
            "heldSince": candidate.held_since,
            "failure": vars(candidate.failure) | {"trial": candidate.failed_trial} if candidate.failure else None,
        }
    )


def _candidate_of(document: Json) -> CandidateStatus:
    failure = document.get("failure", {})
    return CandidateStatus(
        revision=document["revision"],
        digest=document["digest"],
        mode=document["mode"],
        weight=document["weight"],
        stage=document["stage"],
        step=document["step"],
        steps=document["steps"],
        since=document["since"],
        held_since=document.get("heldSince"),
        failure=Problem(failure["reason"], failure["message"]) if failure else None,
        failed_trial=failure.get("trial"),
    )


def _schedule_document(schedule: ScheduleStatus) -> dict[str, Any]:
    times = {"nextTime": schedule.next_time, "lastTime": schedule.last_time}
    return _without_none({"cron": schedule.cron, "timeZone": schedule.time_zone, **times})


def _training_document(training: TrainingStatus) -> dict[str, Any]:
    document: dict[str, Any] = {
        "job": training.job,
        "run": training.run,
        "attempt": training.attempt,
        "startTime": training.start_time,
        "trigger": _trigger_document(training.trigger),
        "search": _search_document(training.search) if training.search else None,
    }
    if training.progress:
        document |= {
            "iteration": training.progress.iteration,
            "envSteps": training.progress.env_steps,
            "episodeReturnMean": training.progress.episode_return_mean,
            "episodeReturnStd": training.progress.episode_return_std,
            "stepsPerSecond": training.progress.steps_per_s,
            "progressPercent": training.progress.percent,
            "progress": progress_text(training.progress),
        }
    return _without_none(document)


def _search_document(search: SearchStatus) -> dict[str, Any]:
    trials = [
        _without_none(
            {
                "trial": trial.trial,
                "state": trial.state,
                "config": dict(trial.config) if trial.config is not None else None,
                "envSteps": trial.env_steps,
                "episodeReturnMean": trial.episode_return_mean,
            }
        )
        for trial in search.trials
    ]
    return _without_none({"best": search.best, "trials": trials})


def _search_of(document: Json) -> SearchStatus:
    trials = (
        TrialStatus(trial["trial"], trial["state"], trial.get("config"), trial.get("envSteps"), trial.get("episodeReturnMean"))
        for trial in document.get("trials", [])
    )
    return SearchStatus(document.get("best"), tuple(trials))


def _training_of(document: Json) -> TrainingStatus:
    progress = None
    if "iteration" in document:
        progress = Progress(
            document["iteration"],
            document.get("envSteps", 0),
            document.get("episodeReturnMean"),
            document.get("progressPercent", 0.0),
            _eta_s(document.get("progress", "")),
            document.get("episodeReturnStd"),
            document.get("stepsPerSecond"),
        )
    return TrainingStatus(
        document["job"],
        document["run"],
        document.get("attempt", 1),
        document.get("startTime"),
        progress,
        _trigger_of(document.get("trigger")),
        _search_of(document["search"]) if "search" in document else None,
    )


def progress_text(progress: Progress) -> str:
    """How far a training is, in a word: `45% 12s`."""
    return f"{progress.percent:.0f}%" + (f" {progress.eta_s:.0f}s" if progress.eta_s is not None else "")


def _eta_s(text: str) -> float | None:
    """The time left that a `progress_text` tells."""
    left = text.partition(" ")[2]
    return float(left.removesuffix("s")) if left else None


def _revision_document(revision: Revision) -> dict[str, Any]:
    return _without_none(
        {
            "number": revision.number,
            "digest": revision.digest,
            "uri": revision.uri,
            "run": revision.run,
            "trainedAt": revision.trained_at,
            "image": revision.image,
            "seed": revision.seed,
            "envSteps": revision.env_steps,
            "stoppedBy": revision.stopped_by,
            "configHash": revision.config_hash,
            "parent": revision.parent,
            "verdict": revision.verdict,
            "evaluation": _evaluation_document(revision.evaluation) if revision.evaluation else None,
            "approval": _approval_document(revision.approval) if revision.approval else None,
            "rollout": vars(revision.rollout) if revision.rollout else None,
            "trigger": _trigger_document(revision.trigger),
            "retention": revision.retention,
            "search": _found_by_document(revision.found_by) if revision.found_by else None,
        }
    )


def _revision_of(document: Json) -> Revision:
    evaluation, approval, rollout = (document.get(name) for name in ("evaluation", "approval", "rollout"))
    return Revision(
        number=document["number"],
        digest=document["digest"],
        uri=document["uri"],
        run=document["run"],
        trained_at=document.get("trainedAt"),
        image=document.get("image"),
        seed=document.get("seed"),
        env_steps=document.get("envSteps"),
        stopped_by=document.get("stoppedBy"),
        parent=document.get("parent"),
        verdict=document.get("verdict"),
        evaluation=_evaluation_of(evaluation) if evaluation else None,
        approval=Approval(approval["user"], approval.get("fieldManager"), approval["time"]) if approval else None,
        rollout=RolloutEnd(rollout["outcome"], rollout["trial"], rollout["reason"], rollout["message"]) if rollout else None,
        trigger=_trigger_of(document.get("trigger")),
        config_hash=document.get("configHash"),
        retention=document.get("retention"),
        found_by=_found_by_of(document["search"]) if "search" in document else None,
    )


def _found_by_document(found: FoundBy) -> dict[str, Any]:
    return {"trial": found.trial, "trials": found.trials, "seed": found.seed, "config": dict(found.config)}


def _found_by_of(document: Json) -> FoundBy:
    return FoundBy(document["trial"], document["trials"], document["seed"], document.get("config", {}))


def _evaluation_document(evaluation: Evaluation) -> dict[str, Any]:
    against = evaluation.against
    return _without_none({**vars(evaluation), "against": _against_document(against) if against else None})


def _evaluation_of(document: Json) -> Evaluation:
    against = document.get("against")
    return Evaluation(**{**_known(Evaluation, document), "against": _against_of(against) if against else None})


def _against_document(against: Against) -> dict[str, Any]:
    if against.problem:
        return {"digest": against.digest, "problem": against.problem}
    return {
        "digest": against.digest,
        "mean": against.mean,
        "std": against.std,
        "differenceMean": against.difference_mean,
        "differenceStd": against.difference_std,
        "margin": against.margin,
        "lower": against.lower,
        "upper": against.upper,
    }


def _against_of(document: Json) -> Against:
    if "problem" in document:
        return Against(document["digest"], problem=document["problem"])
    return Against(
        document["digest"],
        document["mean"],
        document["std"],
        document["differenceMean"],
        document["differenceStd"],
        document["margin"],
        document["lower"],
        document["upper"],
    )


def _approval_document(approval: Approval) -> dict[str, Any]:
    return _without_none({"user": approval.user, "fieldManager": approval.field_manager, "time": approval.time})


def _trigger_document(trigger: Trigger | None) -> dict[str, Any] | None:
    return _without_none(vars(trigger)) if trigger else None


def _trigger_of(document: Json | None) -> Trigger | None:
    return Trigger(**_known(Trigger, document)) if document else None


def _known(kind: type[Any], document: Json) -> dict[str, Any]:
    """The fields of a dataclass that a document holds; what a newer operator wrote beside them is left out."""
    return {field.name: document[field.name] for field in fields(kind) if field.name in document}


def _without_none(document: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in document.items() if value is not None}
