"""The rollout's part of the plan: which policies the replicas are to hold now, and when the next step is due.

Every policy, whatever the strategy, is first loaded by every replica beside the one that serves, answering nothing: a bundle that cannot
be loaded is found before anybody meets it, and a session that pins a policy finds it in every replica. Then come the steps of the
strategy, and then the policy takes over.

Pure. It knows the past by the status alone, and where that is lost by what the RayService is told: from any state it goes on at the
step that the replicas are at, and never past one. The serving policy is left only for a candidate that went through every step.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from controller import analysis, names
from controller import status as statuses
from controller.model import CandidateRow, CandidateStatus, Event, Observed, Problem, Replicas, Revision, RolloutEnd, ServingStatus
from controller.spec import Json, RolloutSpec
from controller.steps import short, tried_policy
from controller.switching import is_switching

# How far behind the clock of a rollout is set that is stopped.
STOPPED_S = 10.0


@dataclass(frozen=True)
class Stage:
    """What the replicas are told to do with a candidate.

    Attributes:
        mode, weight: as `user_config.candidate` says it.
        step: the number of the step of `spec.rollout.steps`, 0 for what comes before and after them.
    """

    mode: Literal["Canary", "Shadow"]
    weight: int
    seconds: int
    step: int = 0


def stages(rules: RolloutSpec) -> tuple[Stage, ...]:
    """All that a policy goes through before it takes over."""
    loaded = Stage("Canary", 0, 0)
    if rules.strategy == "Direct":
        return (loaded,)
    steps = tuple(Stage(rules.strategy, step.weight, step.seconds, number) for number, step in enumerate(rules.steps, start=1))
    # Nobody may pin what is only compared. Replicas take a policy over one after the other: from the first one on it may be pinned in all.
    return (loaded, *steps, loaded) if rules.strategy == "Shadow" else (loaded, *steps)


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

    @property
    def revoked(self) -> str | None:
        """The digest of a policy that was taken back, if one was."""
        return self.wanted.digest if self.wanted and self.end and self.end.outcome != "Promoted" else None


def rolled_out(observed: Observed, recorded: tuple[Revision, ...], approved: Revision | None, incumbent: Json | None) -> Rollout:
    """The rollout of the policy that is asked for.

    Args:
        approved: the policy of this spec, once it may be served.
        incumbent: what the RayService is told to serve, or what is to be served in its place while there is nothing better.
    """
    # In both cases the RayService goes on as it is told.
    if observed.spec.paused:
        return Rollout(incumbent, tried_policy(observed), observed.status.candidate)
    if is_switching(observed):
        # It will have other replicas: there a step begins anew.
        return Rollout(incumbent, tried_policy(observed), _stopped(observed.status.candidate, observed))
    pin = observed.spec.served_revision
    wanted = next((revision for revision in recorded if revision.number == pin), None) if pin else approved
    if pin and (wanted is None or not wanted.is_approved or not wanted.is_kept):
        return Rollout(incumbent, problem=_unusable_pin(pin, wanted, recorded))
    if wanted is None:
        return Rollout(incumbent)
    before = previous(observed, recorded, wanted, incumbent)
    if before is None:
        return Rollout(policy(wanted), progress=_takeover(observed, wanted, incumbent), wanted=wanted)
    end = _request(observed, wanted) or (wanted.rollout if is_over(wanted, observed) else None)
    if end and end.outcome == "Promoted":
        return Rollout(policy(wanted), progress=_takeover(observed, wanted, incumbent), wanted=wanted, end=end)
    if end:
        return Rollout(before, wanted=wanted, end=end, problem=_stays_back(end, wanted, before))
    rules = replace(observed.spec.rollout, strategy="Direct", steps=()) if pin else observed.spec.rollout
    if _digest(incumbent) == wanted.digest or (rules.strategy == "Direct" and not _can_try(observed)):
        return _taking_over(observed, wanted, before, incumbent)
    if not _can_try(observed):
        message = f"the image of the replicas is older than spec.rollout.strategy {rules.strategy}; name a newer one in spec.serving.image"
        return Rollout(before, wanted=wanted, problem=Problem("ImageTooOld", message))
    return _trying(observed, wanted, before, rules)


def is_over(wanted: Revision, observed: Observed) -> bool:
    """Whether the rollout of a revision has failed by the rules of today: it is not tried again before they, or the training, change."""
    end = wanted.rollout
    return end is not None and end.outcome != "Promoted" and end.trial == _trial(observed, wanted)


def _trial(observed: Observed, wanted: Revision) -> str:
    """What the end of a rollout is true of: today's rules. Whoever pins a revision that has failed by them wants it tried once more."""
    is_pinned = observed.spec.served_revision == wanted.number
    return f"{observed.spec.rollout.trial}-pinned" if is_pinned else observed.spec.rollout.trial


def previous(observed: Observed, recorded: tuple[Revision, ...], wanted: Revision, incumbent: Json | None) -> Json | None:
    """The policy that serves until the wanted one does; None where there is none to go back to."""
    if incumbent and incumbent["digest"] != wanted.digest:
        return incumbent
    # The replicas are told to take the wanted one over: as long as one of them has not, the other one is not given up.
    last = observed.status.serving
    if last is None or last.digest == wanted.digest or last.uri is None:
        return None
    return seen_policy(last)


def seen_policy(seen: ServingStatus) -> Json:
    """What was last seen to serve, as `user_config` names it. The history may be lost, or cut, and with it its revision."""
    return {"uri": seen.uri, "digest": seen.digest, "revision": seen.revision}


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
    if is_switching(observed):
        return ()
    asked = [request for verb in (names.PROMOTE, names.ABORT) for request in [observed.request(verb)] if request and not request.problem]
    if rollout.end and rollout.wanted and rollout.wanted.rollout != rollout.end:
        # That a revision stays back is told by Degraded.
        message = f"revision {rollout.wanted.number}: {rollout.end.message}"
        return (Event("Normal", "Promoted", message),) if rollout.end.outcome == "Promoted" else ()
    if asked:
        return (Event("Warning", "RequestRefused", "there is no rollout to promote or to abort"),)
    is_new_step = now is not None and now.step > 0 and (before is None or (before.digest, before.step) != (now.digest, now.step))
    if now and is_new_step:
        share = f"answers {now.weight} % of the sessions" if now.mode == "Canary" else "is asked beside the serving policy, and compared"
        return (Event("Normal", now.mode, f"revision {now.revision} ({short(now.digest)}) {share}: step {now.step} of {now.steps}"),)
    return ()


def _taking_over(observed: Observed, wanted: Revision, before: Json, incumbent: Json | None) -> Rollout:
    """The replicas are told to serve the wanted policy; one that refuses it, or takes too long, brings back the one before."""
    progress = _takeover(observed, wanted, incumbent)
    failure = _refusal(observed, wanted.digest) or _overdue(observed, progress, "took it over")
    if failure and _digest(incumbent) == wanted.digest and observed.spec.rollout.on_fail == "Rollback":
        return _rolled_back(observed, wanted, before, failure)
    return Rollout(policy(wanted), progress=progress, wanted=wanted, problem=failure)


def _trying(observed: Observed, wanted: Revision, before: Json, rules: RolloutSpec) -> Rollout:
    """One stage on the way of a candidate."""
    seen, progress = observed.replicas, _progress(observed, wanted, rules)
    stage = stages(rules)[progress.stage]
    candidate = {**policy(wanted), "mode": stage.mode, "weight": stage.weight, "timeBudgetMilliseconds": rules.analysis.time_budget_ms}
    here = Rollout(before, candidate, progress, wanted, message=_stage_message(progress, "no replica could be asked"))
    if not isinstance(seen, Replicas):
        return here
    found = analysis.measured(seen, before["digest"], wanted.digest)
    failure = progress.failure or _candidate_refusal(seen, wanted.digest) or analysis.objection(found, rules.analysis)
    holding = [row for row in seen.rows if _holds(row.candidate, candidate)]
    is_held = bool(seen.rows) and len(holding) == len(seen.rows) == seen.running
    if not is_held and not progress.held_since:
        failure = failure or _overdue(observed, progress, "took it in")
        said = f"{len(holding)} of {seen.running} replicas have it{missing(observed, wanted.digest)}"
        here = replace(here, message=_stage_message(progress, said))
        return _failed(observed, wanted, here, failure) if failure else here
    held_since = progress.held_since or statuses.timestamp(observed.now)
    progress = replace(progress, held_since=held_since)
    here = replace(here, progress=progress, message=_stage_message(progress, analysis.summary(found)))
    if failure:
        return _failed(observed, wanted, here, failure)
    over_since_s = statuses.age_s(held_since, observed.now) - stage.seconds
    if over_since_s < 0:
        return here
    answered = found.candidate.requests
    if stage.step and answered < rules.analysis.min_requests:
        failure = _starved(observed, answered) if over_since_s > rules.progress_deadline_s else None
        return _failed(observed, wanted, here, failure) if failure else here
    failure = analysis.returns(found, rules.analysis, len(rules.steps)) if stage.step else None
    if failure:
        return _failed(observed, wanted, here, failure)
    return _next_stage(observed, wanted, here, rules, analysis.summary(found))


def _next_stage(observed: Observed, wanted: Revision, here: Rollout, rules: RolloutSpec, said: str) -> Rollout:
    progress, ways = here.progress, stages(rules)
    assert progress
    now, index = statuses.timestamp(observed.now), progress.stage + 1
    if index < len(ways):
        after = replace(progress, stage=index, step=ways[index].step, weight=ways[index].weight, since=now, held_since=None)
        candidate = {**(here.candidate or {}), "mode": ways[index].mode, "weight": ways[index].weight}
        return replace(here, candidate=candidate, progress=after, message=_stage_message(after, "the replicas are told so"))
    after = replace(progress, stage=index, step=0, weight=100, since=now, held_since=None)
    through = f"it went through every step: {said}" if rules.steps else "every replica has loaded it"
    end = RolloutEnd("Promoted", _trial(observed, wanted), "AnalysisPassed" if rules.steps else "Loaded", f"{through}; it takes over")
    return Rollout(policy(wanted), progress=after, wanted=wanted, end=end)


def _failed(observed: Observed, wanted: Revision, here: Rollout, failure: Problem) -> Rollout:
    if observed.spec.rollout.on_fail == "Hold":
        name = observed.owner.name
        advice = f"spec.rollout.onFail is Hold: kubectl policymodel promote {name}, or kubectl policymodel abort {name}"
        assert here.progress
        held = replace(here.progress, failure=failure, failed_trial=_trial(observed, wanted))
        return replace(here, progress=held, problem=Problem(failure.reason, f"{here.message}; {failure.message}. {advice}"))
    assert here.serving
    return _rolled_back(observed, wanted, here.serving, failure)


def _rolled_back(observed: Observed, wanted: Revision, before: Json, why: Problem) -> Rollout:
    end = RolloutEnd("RolledBack", _trial(observed, wanted), why.reason, why.message)
    return Rollout(before, wanted=wanted, end=end, problem=_stays_back(end, wanted, before))


def _request(observed: Observed, wanted: Revision) -> RolloutEnd | None:
    """How a request that nobody has seen to ends the rollout."""
    trial = _trial(observed, wanted)
    abort, promote = observed.request(names.ABORT), observed.request(names.PROMOTE)
    if abort and not abort.problem and abort.revision in (None, wanted.number):
        return RolloutEnd("Aborted", trial, "Aborted", f"{abort.user} has aborted its rollout")
    if promote and not promote.problem and promote.revision in (None, wanted.number):
        return RolloutEnd("Promoted", trial, "Promoted", f"{promote.user} has promoted it past the steps that were left")
    return None


def _progress(observed: Observed, wanted: Revision, rules: RolloutSpec) -> CandidateStatus:
    """Where a candidate is on its way: as the status has it, or as the RayService is told, or at its beginning."""
    ways, known = stages(rules), observed.status.candidate
    if known and (known.digest, known.mode, known.steps) == (wanted.digest, rules.strategy, len(rules.steps)) and known.stage < len(ways):
        stage = ways[known.stage]
        if (known.weight, known.step) == (stage.weight, stage.step):
            is_judged_anew = known.failed_trial != _trial(observed, wanted)
            return replace(known, failure=None, failed_trial=None) if is_judged_anew else known
    told, index = tried_policy(observed), 0
    if told and told["digest"] == wanted.digest and told.get("mode") == rules.strategy == "Canary":
        # There may be no step of the told weight any more; the one that is not above it is where the sessions are.
        index = max(i for i, stage in enumerate(ways) if stage.weight <= told.get("weight", 0))
    stage, since = ways[index], statuses.timestamp(observed.now)
    return CandidateStatus(wanted.number, wanted.digest, rules.strategy, stage.weight, index, stage.step, len(rules.steps), since)


def _takeover(observed: Observed, wanted: Revision, incumbent: Json | None) -> CandidateStatus | None:
    """The progress of a policy that takes over; None once it has."""
    known, seen = observed.status.candidate, observed.replicas
    is_everywhere = isinstance(seen, Replicas) and bool(seen.rows) and all(row.digest == wanted.digest for row in seen.rows)
    if _digest(incumbent) == wanted.digest and (is_everywhere or (known is None and not isinstance(seen, Replicas))):
        return None
    if known and known.digest == wanted.digest and known.weight == 100:
        return known
    return CandidateStatus(wanted.number, wanted.digest, "Direct", 100, 1, 0, 0, statuses.timestamp(observed.now))


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
    if progress is None or not isinstance(observed.replicas, Replicas) or statuses.age_s(progress.since, observed.now) <= deadline_s:
        return None
    return Problem(
        "ProgressDeadlineExceeded",
        f"not every replica {done} within {deadline_s} s (spec.rollout.progressDeadlineSeconds){missing(observed, progress.digest)}",
    )


def missing(observed: Observed, digest: str) -> str:
    """Where a replica has looked for a bundle in vain, as the end of a sentence, or ""."""
    rows = observed.replicas.rows if isinstance(observed.replicas, Replicas) else ()
    for row in rows:
        errors = [(row.error_digest, row.error), *([(row.candidate.digest, row.candidate.problem)] if row.candidate else [])]
        for named, problem in errors:
            if named == digest and problem and problem.reason == "Missing":
                return f": the replica {row.replica} looked for it: {problem.message}"
    return ""


def _stopped(progress: CandidateStatus | None, observed: Observed) -> CandidateStatus | None:
    """Progress whose time does not count. That is noted now and then only: each note is a write."""
    if progress is None or (progress.held_since is None and statuses.age_s(progress.since, observed.now) < STOPPED_S):
        return progress
    return replace(progress, since=statuses.timestamp(observed.now), held_since=None)


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
    known = ", ".join(str(revision.number) for revision in recorded if revision.is_kept) or "none"
    if wanted is None:
        return Problem("NoSuchRevision", f"spec.servedRevision: there is no revision {number}; there are: {known}")
    if not wanted.is_kept:
        message = f"spec.servedRevision: revision {number} was pruned (spec.storage.keepRevisions); there are: {known}"
        return Problem("RevisionPruned", message)
    message = f"spec.servedRevision: revision {number} has not passed the gate, and nobody has approved it"
    return Problem("RevisionNotApproved", message)


def _stage_message(progress: CandidateStatus, said: str) -> str:
    if not progress.step:
        return f"revision {progress.revision} ({short(progress.digest)}) is loaded beside the serving policy: {said}"
    share = f"answers {progress.weight} % of the sessions" if progress.mode == "Canary" else "is compared"
    return f"revision {progress.revision} ({short(progress.digest)}) {share} (step {progress.step} of {progress.steps}): {said}"


def _can_try(observed: Observed) -> bool:
    """Whether the replicas know of candidates: an image of an earlier day may not."""
    rows = observed.replicas.rows if isinstance(observed.replicas, Replicas) else ()
    return all(row.can_try for row in rows)


def _digest(policy: Json | None) -> str | None:
    return policy["digest"] if policy else None
