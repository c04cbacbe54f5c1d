"""The rollout's part of the plan: which policies the replicas are to hold now, and when the next step is due.

Pure. It knows the past by the status alone, and where that is lost by what the RayService is told: from any state it goes on at the
step that the replicas are at, and never past one. The serving policy is left only for a candidate that went through every step.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import datetime

from controller import analysis, names, resources
from controller import status as statuses
from controller.model import (
    CandidateRow,
    CandidateStatus,
    Event,
    Json,
    Observed,
    Problem,
    Replicas,
    Revision,
    RolloutEnd,
    RolloutStep,
)
from controller.steps import short


@dataclass(frozen=True)
class Rollout:
    """What the replicas are to hold, and what there is to say of it.

    Attributes:
        serving: the policy that answers, None where there is none yet; `candidate` the one that is tried beside it.
        progress: of what is under way, None when nothing is.
        wanted: the revision that all this is for; `end` is how it ended, where it has ended just now.
        message: how far it is; `problem` is why it does not get on.
    """

    serving: Json | None
    candidate: Json | None = None
    progress: CandidateStatus | None = None
    wanted: Revision | None = None
    end: RolloutEnd | None = None
    message: str = ""
    problem: Problem | None = None


def rolled_out(observed: Observed, recorded: tuple[Revision, ...], approved: Revision | None, incumbent: Json | None) -> Rollout:
    """The rollout of the policy that is asked for.

    Args:
        approved: the policy of this spec, once it may be served.
        incumbent: what the RayService is told to serve, or what is to be served in its place while there is nothing better.
    """
    if observed.spec.paused or is_switching(observed):
        # The RayService goes on as it is told, and the clock of a step is not looked at.
        return Rollout(incumbent, tried(observed), observed.status.candidate)
    pin = observed.spec.served_revision
    wanted = next((revision for revision in recorded if revision.number == pin), None) if pin else approved
    if pin and (wanted is None or not wanted.is_approved):
        return Rollout(incumbent, problem=_unusable_pin(pin, wanted, recorded))
    if wanted is None:
        return Rollout(incumbent)
    before = previous(observed, recorded, wanted, incumbent)
    if before is None:
        return Rollout(policy(wanted), progress=_told(observed, wanted, incumbent), wanted=wanted)
    end = _request(observed, wanted) or (wanted.rollout if is_over(wanted, observed) else None)
    if end and end.outcome == "Promoted":
        return Rollout(policy(wanted), progress=_told(observed, wanted, incumbent), wanted=wanted, end=end)
    if end:
        return Rollout(before, wanted=wanted, end=end, problem=_stays_back(end, wanted, before))
    if _digest(incumbent) == wanted.digest or observed.spec.rollout.strategy == "Direct" or pin:
        return _taking_over(observed, wanted, before, incumbent)
    return _trying(observed, wanted, before)


def is_over(wanted: Revision, observed: Observed) -> bool:
    """Whether the rollout of a revision has failed by the rules of today: it is not tried again before they, or the training, change.

    Whoever pins it wants it all the same.
    """
    end = wanted.rollout
    is_pinned = observed.spec.served_revision == wanted.number
    return end is not None and end.outcome != "Promoted" and end.trial == observed.spec.rollout.trial and not is_pinned


def previous(observed: Observed, recorded: tuple[Revision, ...], wanted: Revision, incumbent: Json | None) -> Json | None:
    """The policy that serves until the wanted one does; None where there is none to go back to."""
    if incumbent and incumbent["digest"] != wanted.digest:
        return incumbent
    # The replicas are told to take the wanted one over: as long as one of them has not, the other one is not given up.
    last = observed.status.serving
    if last is None or last.digest == wanted.digest or last.uri is None:
        return None
    return {"uri": last.uri, "digest": last.digest, "revision": last.revision}


def is_switching(observed: Observed) -> bool:
    """Whether KubeRay has, or gets, another cluster to build: the one that serves is told nothing new before they have switched."""
    spec, live = observed.spec, observed.ray_service
    if live is None:
        return False
    has_old_pods = live.hash != resources.serving_hash(spec) or live.pods_hash not in (None, live.hash)
    return live.switching or (spec.serving.ray_service is None and has_old_pods)


def tried(observed: Observed) -> Json | None:
    """The candidate that the RayService is told to try."""
    return resources.tried_policy(observed.owner, observed.ray_service.serve_config) if observed.ray_service else None


def policy(revision: Revision) -> Json:
    """A revision as `user_config` names it."""
    return {"uri": revision.uri, "digest": revision.digest, "revision": revision.number}


def recorded_end(recorded: tuple[Revision, ...], rollout: Rollout) -> tuple[Revision, ...]:
    """The history with how this rollout ended."""
    if rollout.end is None or rollout.wanted is None:
        return recorded
    number = rollout.wanted.number
    return tuple(replace(revision, rollout=rollout.end) if revision.number == number else revision for revision in recorded)


def events(observed: Observed, rollout: Rollout) -> tuple[Event, ...]:
    """What is told of a rollout: each step once, and its end."""
    before, now = observed.status.candidate, rollout.progress
    asked = [request for verb in (names.PROMOTE, names.ABORT) for request in [observed.request(verb)] if request and not request.problem]
    if rollout.end and rollout.wanted and rollout.wanted.rollout != rollout.end:
        # That a revision stays back is told by Degraded.
        message = f"revision {rollout.wanted.number}: {rollout.end.message}"
        return (Event("Normal", "Promoted", message),) if rollout.end.outcome == "Promoted" else ()
    if asked:
        return (Event("Warning", "RequestRefused", "there is no rollout to promote or to abort"),)
    is_new_step = now is not None and (before is None or (before.digest, before.step) != (now.digest, now.step))
    if now and is_new_step and now.step <= now.steps:
        share = f"answers {now.weight} % of the sessions" if now.mode == "Canary" else "is asked beside the serving policy, and compared"
        return (Event("Normal", now.mode, f"revision {now.revision} ({short(now.digest)}) {share}: step {now.step} of {now.steps}"),)
    return ()


def _taking_over(observed: Observed, wanted: Revision, before: Json, incumbent: Json | None) -> Rollout:
    """The replicas are told to serve the wanted policy; one that refuses it, or takes too long, brings back the one before."""
    progress = _told(observed, wanted, incumbent)
    failure = _refusal(observed, wanted.digest) or _overdue(observed, progress, "took it over")
    if failure and _digest(incumbent) == wanted.digest and observed.spec.rollout.on_fail == "Rollback":
        return _rolled_back(observed, wanted, before, failure)
    return Rollout(policy(wanted), progress=progress, wanted=wanted, problem=failure)


def _trying(observed: Observed, wanted: Revision, before: Json) -> Rollout:
    """One step of a canary or shadow."""
    rules, seen = observed.spec.rollout, observed.replicas
    progress = _progress(observed, wanted)
    step = rules.steps[progress.step - 1]
    candidate = {**policy(wanted), "mode": rules.strategy, "weight": step.weight, "timeBudgetMilliseconds": rules.analysis.time_budget_ms}
    here = Rollout(before, candidate, progress, wanted, message=_step_message(progress, "no replica could be asked"))
    if not isinstance(seen, Replicas):
        return here
    found = analysis.measured(seen, before["digest"], wanted.digest)
    failure = _candidate_refusal(seen, wanted.digest) or analysis.objection(found, rules.analysis)
    holding = [row for row in seen.rows if _holds(row.candidate, candidate)]
    is_held = bool(seen.rows) and len(holding) == len(seen.rows) == seen.running
    if not is_held and not progress.held_since:
        failure = failure or _overdue(observed, progress, "took it in")
        here = replace(here, message=_step_message(progress, f"{len(holding)} of {seen.running} replicas have it"))
        return _failed(observed, wanted, here, failure) if failure else here
    held_since = progress.held_since or statuses.timestamp(observed.now)
    progress = replace(progress, held_since=held_since)
    here = replace(here, progress=progress, message=_step_message(progress, analysis.summary(found)))
    if failure:
        return _failed(observed, wanted, here, failure)
    over_since_s = _age_s(held_since, observed.now) - step.seconds
    if over_since_s < 0:
        return here
    failure = analysis.returns(found, rules.analysis, len(rules.steps))
    if failure:
        return _failed(observed, wanted, here, failure)
    answers = found.candidate.requests + found.compared
    if answers < rules.analysis.min_requests:
        failure = _starved(observed, answers) if over_since_s > rules.progress_deadline_s else None
        return _failed(observed, wanted, here, failure) if failure else here
    return _next_step(observed, wanted, here, progress, analysis.summary(found))


def _next_step(observed: Observed, wanted: Revision, here: Rollout, progress: CandidateStatus, said: str) -> Rollout:
    rules, now = observed.spec.rollout, statuses.timestamp(observed.now)
    if progress.step < len(rules.steps):
        step: RolloutStep = rules.steps[progress.step]
        after = replace(progress, step=progress.step + 1, weight=step.weight, since=now, held_since=None)
        candidate = {**(here.candidate or {}), "weight": step.weight}
        return replace(here, candidate=candidate, progress=after, message=_step_message(after, "the replicas are told so"))
    after = replace(progress, step=progress.step + 1, weight=100, since=now, held_since=None)
    end = RolloutEnd("Promoted", rules.trial, "AnalysisPassed", f"it went through every step and takes over: {said}")
    return Rollout(policy(wanted), progress=after, wanted=wanted, end=end)


def _failed(observed: Observed, wanted: Revision, here: Rollout, failure: Problem) -> Rollout:
    if observed.spec.rollout.on_fail == "Hold":
        name = observed.owner.name
        advice = f"spec.rollout.onFail is Hold: kubectl policymodel promote {name}, or kubectl policymodel abort {name}"
        return replace(here, problem=Problem(failure.reason, f"{here.message}; {failure.message}. {advice}"))
    assert here.serving
    return _rolled_back(observed, wanted, here.serving, failure)


def _rolled_back(observed: Observed, wanted: Revision, before: Json, why: Problem) -> Rollout:
    end = RolloutEnd("RolledBack", observed.spec.rollout.trial, why.reason, why.message)
    return Rollout(before, wanted=wanted, end=end, problem=_stays_back(end, wanted, before))


def _request(observed: Observed, wanted: Revision) -> RolloutEnd | None:
    """How a request that nobody has seen to ends the rollout."""
    trial = observed.spec.rollout.trial
    abort, promote = observed.request(names.ABORT), observed.request(names.PROMOTE)
    if abort and not abort.problem and abort.revision in (None, wanted.number):
        return RolloutEnd("Aborted", trial, "Aborted", f"{abort.user} has aborted its rollout")
    if promote and not promote.problem and promote.revision in (None, wanted.number):
        return RolloutEnd("Promoted", trial, "Promoted", f"{promote.user} has promoted it past the steps that were left")
    return None


def _progress(observed: Observed, wanted: Revision) -> CandidateStatus:
    """Where the trial of a policy is: as the status has it, or as the RayService is told, or at its beginning."""
    rules, known = observed.spec.rollout, observed.status.candidate
    is_known = known is not None and (known.digest, known.mode, known.steps) == (wanted.digest, rules.strategy, len(rules.steps))
    if known and is_known and known.step <= len(rules.steps) and known.weight == rules.steps[known.step - 1].weight:
        return known
    told = tried(observed)
    index = 0
    if told and told["digest"] == wanted.digest and told.get("mode") == rules.strategy:
        # Below the told weight there may be no step any more; the step that is not above it is where the sessions are.
        index = max((i for i, step in enumerate(rules.steps) if step.weight <= told.get("weight", 0)), default=0)
    step = rules.steps[index]
    since = statuses.timestamp(observed.now)
    return CandidateStatus(wanted.number, wanted.digest, rules.strategy, step.weight, index + 1, len(rules.steps), since)


def _told(observed: Observed, wanted: Revision, incumbent: Json | None) -> CandidateStatus | None:
    """The progress of a policy that takes over; None once it has."""
    known, seen = observed.status.candidate, observed.replicas
    is_everywhere = isinstance(seen, Replicas) and bool(seen.rows) and all(row.digest == wanted.digest for row in seen.rows)
    if _digest(incumbent) == wanted.digest and (is_everywhere or (known is None and not isinstance(seen, Replicas))):
        return None
    if known and known.digest == wanted.digest and known.weight == 100:
        return known
    return CandidateStatus(wanted.number, wanted.digest, "Direct", 100, 1, 0, statuses.timestamp(observed.now))


def _holds(row: CandidateRow | None, candidate: Json) -> bool:
    asked = (candidate["digest"], candidate["mode"], candidate["weight"])
    return row is not None and row.is_loaded and (row.digest, row.mode, row.weight) == asked


def _refusal(observed: Observed, digest: str) -> Problem | None:
    """Why a replica does not take over a policy. One that is missing is made again, and then it is there."""
    rows = observed.replicas.rows if isinstance(observed.replicas, Replicas) else ()
    refused = next((row for row in rows if row.error_digest == digest and row.error and row.error.reason != "Missing"), None)
    if refused is None or refused.error is None:
        return None
    return Problem("LoadFailed", f"the replica {refused.replica} refuses it: {refused.error.reason}: {refused.error.message}")


def _candidate_refusal(seen: Replicas, digest: str) -> Problem | None:
    """Why a replica does not have the candidate, or has set it aside."""
    for row in seen.rows:
        found = row.candidate
        if found and found.digest == digest and found.problem and found.problem.reason != "Missing":
            what = "has set it aside" if found.is_set_aside else "refuses it"
            message = f"the replica {row.replica} {what}: {found.problem.reason}: {found.problem.message}"
            return Problem("SetAside" if found.is_set_aside else "LoadFailed", message)
    return None


def _overdue(observed: Observed, progress: CandidateStatus | None, done: str) -> Problem | None:
    """That the replicas do not get on, where they can be asked."""
    deadline_s = observed.spec.rollout.progress_deadline_s
    if progress is None or not isinstance(observed.replicas, Replicas) or _age_s(progress.since, observed.now) <= deadline_s:
        return None
    return Problem(
        "ProgressDeadlineExceeded",
        f"not every replica {done} within {deadline_s} s (spec.rollout.progressDeadlineSeconds)",
    )


def _starved(observed: Observed, requests: int) -> Problem:
    rules = observed.spec.rollout
    return Problem(
        "TooFewRequests",
        f"{requests} requests came to it, spec.rollout.analysis.minRequests asks for {rules.analysis.min_requests}, and "
        f"{rules.progress_deadline_s} s have passed since its step was over (spec.rollout.progressDeadlineSeconds)",
    )


def _stays_back(end: RolloutEnd, wanted: Revision, before: Json) -> Problem:
    """What is told of a revision that is not served after all."""
    advice = "It is not tried again before spec.training or spec.rollout changes, or somebody promotes it"
    what = "was aborted" if end.outcome == "Aborted" else "was rolled back"
    message = f"revision {wanted.number} ({short(wanted.digest)}) {what}, revision {before['revision']} serves: {end.message}. {advice}"
    return Problem(end.outcome, message)


def _unusable_pin(number: int, wanted: Revision | None, recorded: tuple[Revision, ...]) -> Problem:
    if wanted is None:
        known = ", ".join(str(revision.number) for revision in recorded) or "none"
        return Problem("NoSuchRevision", f"spec.servedRevision: there is no revision {number}; there are: {known}")
    message = f"spec.servedRevision: revision {number} has not passed the gate, and nobody has approved it"
    return Problem("RevisionNotApproved", message)


def _step_message(progress: CandidateStatus, said: str) -> str:
    share = f"answers {progress.weight} % of the sessions" if progress.mode == "Canary" else "is compared"
    return f"revision {progress.revision} {share} (step {progress.step} of {progress.steps}): {said}"


def _age_s(since: str, now: datetime) -> float:
    return (now - datetime.fromisoformat(since)).total_seconds()


def _digest(policy: Json | None) -> str | None:
    return policy["digest"] if policy else None
