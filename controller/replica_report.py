"""What the replicas say of themselves at `GET <route>/v1/status`, as facts. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from controller.model import CandidateRow, Problem, ReplicaRow, Replicas, Returns, Tally, Trial
from controller.spec import Json
from controller.words import is_number


class ReportUnusable(ValueError):
    """A report of the replicas by which nothing can be said; its text is for the user of a PolicyModel."""


def replicas(report: Json) -> Replicas:
    """What `GET <route>/v1/status` says.

    Raises:
        ReportUnusable: it is true and does not tell enough; the text says what is missing.
        KeyError, TypeError, ValueError, AttributeError: it is not such an answer.
    """
    if report["runningReplicas"] is None:
        raise ReportUnusable("Serve did not tell the asked replica in time how many replicas run")
    if not isinstance(report["runningReplicas"], int):
        raise TypeError("runningReplicas is a count")
    returns = {str(digest): _returns(told) for digest, told in (report.get("returns") or {}).items()}
    return Replicas(report["runningReplicas"], tuple(_replica_row(row) for row in report["replicas"]), returns)


def _replica_row(row: Json) -> ReplicaRow:
    serving, error, manners = row["serving"] or {}, row.get("error") or {}, row.get("manners") or {}
    if not all(isinstance(part, Mapping) for part in (serving, error, manners)):
        raise TypeError("serving, error and manners of a replica are objects")
    if not all(isinstance(text, str | None) for text in (row["replica"], serving.get("digest"), error.get("digest"))):
        raise TypeError("names and digests are text")
    problem = Problem(str(error["reason"]), str(error["message"])) if error else None
    candidate, trial = row.get("candidate"), row.get("trial")
    return ReplicaRow(
        replica=row["replica"],
        digest=serving.get("digest"),
        error_digest=error.get("digest"),
        error=problem,
        manners=manners,
        candidate=_candidate_row(candidate) if candidate else None,
        trial=_trial(trial) if trial else None,
        can_try="candidate" in row,
    )


def _candidate_row(candidate: Json) -> CandidateRow:
    error = candidate.get("error")
    return CandidateRow(
        digest=str(candidate["digest"]),
        mode=str(candidate["mode"]),
        weight=int(candidate["weight"]),
        is_loaded=candidate["loaded"] is True,
        is_set_aside=candidate.get("setAside") is True,
        problem=Problem(str(error["reason"]), str(error["message"])) if error else None,
    )


def _trial(trial: Json) -> Trial:
    shadow = trial.get("shadow") or {}
    return Trial(
        _tally(trial["serving"]), _tally(trial["candidate"]), _counted(shadow.get("compared", 0)), _counted(shadow.get("agreed", 0))
    )


def _tally(tally: Json) -> Tally:
    counts = {name: _counted(tally[name]) for name in ("requests", "errors", "inferences", "sessions")}
    actions = {str(action): _counted(count) for action, count in tally.get("actions", {}).items()}
    return Tally(**counts, inference_s=_measured(tally["inferenceSeconds"]), actions=actions)


def _returns(told: Json) -> Returns:
    return Returns(_counted(told["episodes"]), _measured(told["mean"]), _measured(told["std"]))


def _counted(value: Any) -> int:
    if type(value) is not int or value < 0:
        raise TypeError("a count is an integer of 0 or more")
    return value


def _measured(value: Any) -> float:
    if not is_number(value):
        raise TypeError("what is measured is a finite number")
    return float(value)
