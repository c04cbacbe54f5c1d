"""The gate's part of the plan: which evaluation is asked for, and whether a policy may be served."""

from __future__ import annotations

from collections.abc import Iterable

from controller import gate, history, names, resources, retraining
from controller import status as statuses
from controller.model import Action, Condition, Create, Delete, Images, JobState, Observed, Problem, Revision, Settings
from controller.spec import Look
from controller.steps import Step, is_outdated, outdated_message, with_its_claim


def approval(observed: Observed, settings: Settings, images: Images, candidate: Revision | None, accepted: Step) -> Step:
    """Whether the run's policy may be served: its evaluation, as the gate asks today, against the gate; or somebody's word."""
    if candidate is None:
        return _unapproved("NotTrained", "there is no policy of this spec to evaluate yet")
    if candidate.approval:
        return Step(Condition(statuses.APPROVED, "True", "GateOverridden", _override_message(candidate, observed)))
    look = history.wanted_look(candidate, observed)
    if look is None:
        return _judgement(candidate, history.verdict(candidate, observed), observed)
    if not accepted.is_done:
        return _unapproved("NotAccepted", "no evaluation before the spec is accepted")
    job = next((job for job in observed.jobs if job.role == names.ROLE_EVALUATE and job.evaluation == look.id), None)
    if job is None:
        manifest = resources.evaluation_job(observed.owner, observed.spec, settings, images, candidate, look)
        message = (
            f"revision {candidate.number} has to be evaluated{_so_far(candidate)}; the Job {manifest['metadata']['name']} is asked for"
        )
        return _unapproved("Evaluating", message, (Create(manifest),), under_way="Evaluating")
    return _evaluating(observed, candidate, look, job)


def stale_evaluations(observed: Observed, candidate: Revision | None) -> Iterable[Delete]:
    """Evaluation Jobs that nobody asks for any more; one whose figures are not in the status yet has to wait until they are."""
    look = history.wanted_look(candidate, observed) if candidate and not candidate.approval else None
    told = candidate.evaluation.id if candidate and candidate.evaluation else None
    before = next((revision for revision in observed.status.revisions if candidate and revision.number == candidate.number), None)
    recorded = before.evaluation.id if before and before.evaluation else None
    for job in observed.jobs:
        is_unrecorded = job.evaluation == told and recorded != told
        is_wanted = look is not None and job.evaluation == look.id
        if job.role == names.ROLE_EVALUATE and not (job.deleting or is_wanted or is_unrecorded):
            yield Delete("Job", job.name, "its evaluation is not needed any more")


def _judgement(candidate: Revision, verdict: gate.Verdict, observed: Observed) -> Step:
    if verdict.outcome == "Pass":
        return Step(Condition(statuses.APPROVED, "True", "GatePassed", f"revision {candidate.number}: {verdict.message}"))
    reason = "GateFailed" if verdict.outcome == "Fail" else "GateInconclusive"
    message = f"revision {candidate.number} is not served: {verdict.message}"
    if retraining.is_due(candidate, observed):
        rules, trigger = observed.spec.gate, observed.spec.trigger
        number = (trigger.retrains if trigger else 0) + 1
        return _unapproved(
            reason, f"{message}. It is trained again from another seed ({number} of {rules.max_retrains})", under_way="Training"
        )
    by_hand = f"approve it: kubectl policymodel approve {observed.owner.name} --revision {candidate.number}"
    if verdict.outcome == "Fail":
        advice = f"Train longer or otherwise (spec.training), ask for less (spec.gate), or {by_hand}"
    else:
        advice = f"Allow more episodes (spec.gate.maxEpisodes), ask for less (spec.gate), or {by_hand}"
    message = f"{message}. {advice}"
    return _unapproved(reason, message, problem=Problem(reason, message))


def _evaluating(observed: Observed, candidate: Revision, look: Look, job: JobState) -> Step:
    """The Job that makes the wanted evaluation."""
    if job.deleting:
        return _unapproved("Stopping", f"the Job {job.name} is being deleted, and is started anew when it is gone", under_way="Evaluating")
    if is_outdated(job, observed):
        return _unapproved("Stopping", outdated_message(job), (Delete("Job", job.name),), under_way="Evaluating")
    if job.phase == "Failed" or (job.phase == "Succeeded" and job.problem):
        problem = job.problem or Problem("EvaluationFailed", "the Job failed without a word")
        return _unapproved(problem.reason, f"{problem.message}. Retry: delete the Job {job.name}", problem=problem)
    known = [revision.digest for revision in observed.status.revisions if revision.run == candidate.run]
    if job.result and job.result["digest"] in known and job.result["digest"] != candidate.digest:
        message = f"the Job {job.name} has evaluated the bundle that was lost: it is asked again"
        return _unapproved("Stopping", message, (Delete("Job", job.name),), under_way="Evaluating")
    if job.result:
        message = f"the Job {job.name} tells of another evaluation than the one that spec.gate asks for"
        advice = "spec.training.image has to be made from the operator's training image"
        return _unapproved("NoResult", f"{message}; {advice}. Retry: delete the Job {job.name}", problem=Problem("NoResult", message))
    if job.phase == "Succeeded":
        return _unapproved("ResultLost", f"the Job {job.name} is asked again", (Delete("Job", job.name),), under_way="Evaluating")
    message = f"revision {candidate.number} is evaluated in {look.episodes} episodes by the Job {job.name}{_so_far(candidate)}"
    return _unapproved("Evaluating", message, problem=with_its_claim(job.problem, observed), under_way="Evaluating")


def _so_far(candidate: Revision) -> str:
    if candidate.verdict != "Inconclusive" or candidate.evaluation is None:
        return ""
    return f", for {candidate.evaluation.episodes} episodes could not tell"


def _override_message(candidate: Revision, observed: Observed) -> str:
    word = candidate.approval
    assert word is not None
    said = f"{candidate.verdict}: {history.verdict(candidate, observed).message}" if candidate.verdict else "not evaluated"
    by = f"{word.user} at {word.time}" + (f" with {word.field_manager}" if word.field_manager else "")
    return f"revision {candidate.number} is approved by {by}, whatever the gate says ({said})"


def _unapproved(
    reason: str, message: str, actions: tuple[Action, ...] = (), *, under_way: str = "", problem: Problem | None = None
) -> Step:
    return Step(Condition(statuses.APPROVED, "False", reason, message), actions, under_way, problem)
