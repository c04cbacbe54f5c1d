"""Retention's part of the plan: which revisions are let go, and the Job that removes them from the storage.

The controller cannot reach a claim, so a Job removes what it is handed. It is asked for only while nothing else is under way, one at a
time, and no training begins beside it: a policy that is removed is never one that is just being made. From the moment that there is a
Job, its revisions are no policies to choose any more (`Revision.retention`), however the Job ends; so nothing ever depends on how
far it came.

Never let go, however old: what answers, what the RayService is told to serve or to try, what this plan is about to tell it, a pin, what
`warmStart` names, the policy of the spec's own run, and what an evaluation compares with.
"""

from __future__ import annotations

from controller import history, names, resources
from controller.model import Condition, Create, Delete, Event, JobState, Observed, Problem, Replicas, Revision, Settings
from controller.rollout import Rollout
from controller.steps import Step, is_outdated, outdated_message, told_policy, tried_policy

# Of one Job: its arguments, and how long it works.
MOST_AT_ONCE = 20


def pruned(observed: Observed, settings: Settings, recorded: tuple[Revision, ...], wanted: Rollout, steps: tuple[Step, ...]) -> Step:
    """The prune Job. Its finding is not shown; where it fails, that is a problem of the whole.

    Args:
        steps: everything else that is planned.
    """
    job = live_job(observed)
    if job:
        return _pruning(observed, job, steps)
    due = beyond(observed, recorded, wanted)[:MOST_AT_ONCE]
    if not due or observed.spec.paused or not _is_quiet(observed, steps):
        return Step(Condition("Retained", "True", "Retained", ""))
    # They are `Pruning` from the Job itself, once it is there: its creation may be refused.
    manifest = resources.prune_job(observed.owner, observed.spec, settings, sorted({revision.digest for revision in due}))
    return _busy("Pruning", f"the Job {manifest['metadata']['name']} is asked for", (Create(manifest),))


def live_job(observed: Observed) -> JobState | None:
    """The prune Job that there is, finished or not: while one is there, no training begins."""
    return next((job for job in observed.jobs if job.role == names.ROLE_PRUNE), None)


def beyond(observed: Observed, recorded: tuple[Revision, ...], wanted: Rollout) -> list[Revision]:
    """The revisions that are to go, oldest first: those beyond `keepRevisions` that nobody needs, and those that a Job was told of
    before and has not removed. Two runs may have come out the same: a bundle stays as long as one that is kept has its digest."""
    kept = [revision for revision in recorded if revision.is_kept]
    # What the gate refused, or a rollout ended, must not push out what can be gone back to.
    good = [revision for revision in kept if revision.is_good]
    newest = [revision for known in (kept, good) for revision in known[-observed.spec.storage.keep_revisions :]]
    needed = _needed(observed, recorded, wanted) | {revision.digest for revision in newest}
    return [revision for revision in recorded if revision.retention != "Pruned" and revision.digest not in needed]


def events(observed: Observed, recorded: tuple[Revision, ...]) -> tuple[Event, ...]:
    """What is told of revisions that are gone since the last status."""
    before = {revision.number for revision in observed.status.revisions if revision.retention == "Pruned"}
    gone = [str(revision.number) for revision in recorded if revision.retention == "Pruned" and revision.number not in before]
    if not gone:
        return ()
    which = f"revision{'' if len(gone) == 1 else 's'} {', '.join(gone)}"
    limit = observed.spec.storage.keep_revisions
    return (Event("Normal", "Pruned", f"{which}: bundle, evaluations and checkpoints are removed (spec.storage.keepRevisions: {limit})"),)


def _needed(observed: Observed, recorded: tuple[Revision, ...], wanted: Rollout) -> set[str]:
    """The digests that stay, however old they are."""
    spec, status, seen = observed.spec, observed.status, observed.replicas
    rows = seen.rows if isinstance(seen, Replicas) else ()
    named = [
        *(policy["digest"] for policy in (told_policy(observed), tried_policy(observed), wanted.serving, wanted.candidate) if policy),
        *(known.digest for known in (status.serving, status.candidate, wanted.wanted) if known),
        *(row.digest for row in rows),
        *(row.candidate.digest for row in rows if row.candidate),
        *(revision.digest for revision in recorded if revision.run == spec.run and revision.is_kept),
        *(revision.digest for revision in recorded if revision.number == spec.served_revision and revision.is_kept),
        *(revision.digest for revision in recorded if str(revision.number) == spec.training.warm_start and revision.is_kept),
        history.opponent(observed, history.newest(recorded, spec.run)),
    ]
    return {digest for digest in named if digest}


def _is_quiet(observed: Observed, steps: tuple[Step, ...]) -> bool:
    """Whether nothing else is under way. A training Job of another run may still say its result again: its revision has to be known."""
    if any(step.under_way or step.actions for step in steps):
        return False
    # What cannot be mounted now may come back, with all that is in it.
    if any(step.finding.type == "Stored" and not step.is_done for step in steps):
        return False
    return not any(job.phase == "Running" or job.deleting or job.run != observed.spec.run for job in observed.jobs)


def _pruning(observed: Observed, job: JobState, steps: tuple[Step, ...]) -> Step:
    """What becomes of the Job that there is."""
    is_awaited = any(step.finding.reason == "Pruning" for step in steps)
    if job.deleting:
        return _busy("Stopping", f"the Job {job.name} is being deleted")
    if is_outdated(job, observed):
        return _busy("Stopping", outdated_message(job), (Delete("Job", job.name, "it is made anew"),))
    if job.problem or job.phase == "Failed":
        problem = job.problem or Problem("PruneFailed", "the Job failed without a word")
        # What is trained goes first: what this Job has left is asked for again when all is quiet.
        actions = (Delete("Job", job.name, "a training waits for it"),) if is_awaited else ()
        advice = f"Old revisions stay in the storage meanwhile. Retry: delete the Job {job.name}"
        finding = Condition("Retained", "False", problem.reason, problem.message)
        return Step(finding, actions, problem=Problem(problem.reason, f"{problem.message}. {advice}"))
    if job.phase == "Running":
        return _busy("Pruning", f"the Job {job.name} removes {len(job.prunes)} policies")
    is_recorded = not any(revision.digest in job.prunes and revision.retention != "Pruned" for revision in observed.status.revisions)
    return _busy("Pruned", f"the Job {job.name} is done", (Delete("Job", job.name, "it is done"),) if is_recorded else ())


def _busy(reason: str, message: str, actions: tuple[Create | Delete, ...] = ()) -> Step:
    return Step(Condition("Retained", "False", reason, message), actions, under_way="Pruning")
