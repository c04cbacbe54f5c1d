"""The revisions of a PolicyModel: what is published, how it was evaluated, what the gate says of it, and who approved it.

Pure. May not decide what is done: it says what is so, from the status and from what finished Jobs say.

A revision that was pruned stays in the history as a record: others name it as their parent, and its number is never used again. It is no
policy any more: nothing here takes it for the policy of its run.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from controller import gate, names, words
from controller.model import Against, Approval, Evaluation, JobState, Observed, Revision
from controller.spec import Json, Look
from controller.steps import told_policy

# Records of pruned revisions go when there are this many newer ones. What is not pruned stays in the status: nobody else knows of it.
RECORDS_KEPT = 50


def revisions(observed: Observed) -> tuple[Revision, ...]:
    """The history: what the status recorded, and what finished Jobs and requests say that it has not recorded yet."""
    history = list(observed.status.revisions)
    for job in sorted(observed.jobs, key=lambda job: job.name):
        if job.role == names.ROLE_TRAIN and job.result and _is_publication(job, job.result, history):
            history.append(_revision(job, job.result, observed, 1 + max((revision.number for revision in history), default=0)))
        if job.role == names.ROLE_EVALUATE and job.result:
            history = [_evaluated(revision, job, job.result, observed) for revision in history]
    approved = [with_approval(revision, observed) for revision in _with_retention(history, observed)]
    # Only the run that the spec asks for is judged by the gate that the spec states; the others keep the verdict they got.
    judged = [_judged(revision, observed) if revision.run == observed.spec.run else revision for revision in approved]
    oldest = len(judged) - RECORDS_KEPT
    return tuple(revision for index, revision in enumerate(judged) if index >= oldest or revision.retention != "Pruned")


def newest(recorded: tuple[Revision, ...], run: str) -> Revision | None:
    """The published policy of a run: where one was lost and made again otherwise, that. One that was pruned is none."""
    return next((revision for revision in reversed(recorded) if revision.run == run and revision.is_kept), None)


def holding(recorded: tuple[Revision, ...], digest: str) -> Revision | None:
    """The newest revision with a digest: two runs may come out alike."""
    return next((revision for revision in reversed(recorded) if revision.digest == digest), None)


def opponent(observed: Observed, candidate: Revision | None) -> str | None:
    """The digest that the gate compares a policy with: the one that was last seen to serve, or that is told to.

    Returns:
        None where the gate does not compare, or there is nothing to compare with: nothing serves yet, or the policy itself does. So
        a policy that the gate let through stays so: it is not measured against what it replaced for ever.
    """
    if observed.spec.gate.against_serving is None:
        return None
    told = told_policy(observed)
    serving = observed.status.serving.digest if observed.status.serving else told["digest"] if told else None
    return None if candidate and candidate.digest == serving else serving


def wanted_look(candidate: Revision, observed: Observed) -> Look | None:
    """The evaluation that a policy still needs: the first, or the next one while the gate cannot tell; None where it has its verdict."""
    looks = observed.spec.looks(candidate.run, opponent(observed, candidate))
    evaluation = candidate.evaluation
    if evaluation is None or not _is_asked_for(candidate, observed):
        return looks[0]
    if verdict(candidate, observed).outcome != "Inconclusive":
        return None
    return next((look for look in looks if look.episodes > evaluation.episodes), None)


def verdict(candidate: Revision, observed: Observed) -> gate.Verdict:
    """What the gate, as the spec states it, says of an evaluated policy."""
    assert candidate.evaluation is not None
    rules = observed.spec.gate
    # What serves without anybody's word has been through its comparison; what serves by somebody's has not, and it stays told.
    is_compared = opponent(observed, candidate) is not None or candidate.approval is not None
    return gate.verdict(gate.judged(candidate.evaluation, rules), rules, is_compared=is_compared)


def evaluation_of(result: Json) -> Evaluation:
    """The figures that a finished Job tells, without what the gate makes of them."""
    figures = result["evaluation"]
    against = figures.get("against")
    return Evaluation(
        id=figures["id"],
        mean=float(figures["mean"]),
        std=float(figures["std"]),
        episodes=int(figures["episodes"]),
        seed=int(figures["seed"]),
        against=_against(against) if against else None,
    )


def _against(figures: Json) -> Against:
    if "problem" in figures:
        return Against(figures["digest"], problem=figures["problem"])
    mean, std = float(figures["mean"]), float(figures["std"])
    return Against(figures["digest"], mean, std, float(figures["differenceMean"]), float(figures["differenceStd"]))


def _is_publication(job: JobState, result: Json, history: list[Revision]) -> bool:
    """Whether a result is news: the first of its run, or the bundle that replaces the one that was lost."""
    last = newest(tuple(history), job.run)
    return last is None or (job.replaces == last.digest and result["digest"] != last.digest)


def _revision(job: JobState, result: Json, observed: Observed, number: int) -> Revision:
    spec, last = observed.spec, observed.status.training
    is_of_this_spec = job.run == spec.run
    return Revision(
        number=number,
        digest=result["digest"],
        uri=result["uri"],
        run=job.run,
        trained_at=result.get("trainedAt"),
        image=job.image,
        seed=spec.seed if is_of_this_spec else result.get("seed"),
        env_steps=result.get("envSteps"),
        parent=observed.status.serving.revision if observed.status.serving else None,
        evaluation=evaluation_of(result) if result.get("evaluation") else None,
        stopped_by=result.get("stoppedBy"),
        trigger=spec.trigger if is_of_this_spec else last.trigger if last and last.run == job.run else None,
        config_hash=result.get("configHash"),
        found_by=words.found_by(result),
    )


def _with_retention(history: list[Revision], observed: Observed) -> list[Revision]:
    """The history with what prune Jobs have removed, or were told to: from then on a policy may be gone in part, whatever becomes of the
    Job."""
    jobs = [job for job in observed.jobs if job.role == names.ROLE_PRUNE]
    told = {digest for job in jobs for digest in job.prunes}
    done = {digest for job in jobs if job.phase == "Succeeded" and not job.problem for digest in job.prunes}
    # A run that was trained again may have come out the same: then the bundle belongs to the newer revision.
    anew = {revision.digest for revision in history if revision.is_kept} - told

    def retention(revision: Revision) -> Literal["Pruning", "Pruned"] | None:
        if revision.retention == "Pruned" or revision.digest in done or (revision.retention == "Pruning" and revision.digest in anew):
            return "Pruned"
        return "Pruning" if revision.digest in told else revision.retention

    return [replace(revision, retention=retention(revision)) for revision in history]


def _evaluated(revision: Revision, job: JobState, result: Json, observed: Observed) -> Revision:
    """The revision with the figures of a Job, where they are those that it needs; an image of its user's may say any."""
    if revision.run != observed.spec.run or (revision.run, revision.digest) != (job.run, result["digest"]):
        return revision
    look, evaluation = wanted_look(revision, observed), evaluation_of(result)
    is_wanted = look is not None and job.evaluation == look.id and _look_of(evaluation) == look
    return replace(revision, evaluation=evaluation) if is_wanted else revision


def _judged(revision: Revision, observed: Observed) -> Revision:
    if revision.evaluation is None:
        return replace(revision, verdict=None)
    evaluation = gate.judged(revision.evaluation, observed.spec.gate)
    is_asked_for = _is_asked_for(revision, observed)
    return replace(revision, evaluation=evaluation, verdict=verdict(revision, observed).outcome if is_asked_for else None)


def with_approval(revision: Revision, observed: Observed) -> Revision:
    """The revision with the approval that a request gives it."""
    asked = observed.request(names.APPROVE)
    if asked is None or asked.problem or asked.revision != revision.number or not revision.is_kept:
        return revision
    return replace(revision, approval=Approval(asked.user, asked.field_manager, asked.time))


def _is_asked_for(revision: Revision, observed: Observed) -> bool:
    """Whether a revision was evaluated as the gate asks today; the figures come from an image that may be its user's.

    What serves is asked for no comparison, and one that it has been through does no harm.
    """
    if revision.evaluation is None:
        return False
    found = _look_of(revision.evaluation)
    if found not in observed.spec.looks(revision.run, found.against):
        return False
    serving = observed.status.serving
    return found.against == opponent(observed, revision) or (serving is not None and serving.digest == revision.digest)


def _look_of(evaluation: Evaluation) -> Look:
    return Look(evaluation.id, evaluation.episodes, evaluation.seed, evaluation.against.digest if evaluation.against else None)
