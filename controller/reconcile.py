"""plan(observed) -> Plan: every decision of the operator is here.

Pure: no clock (`now` is observed), no I/O, no framework; the same function decides in a cluster and in local mode. It never acts on
a difference between two specs and never reads `phase` back, so it reaches the right end from any state. Stopping after any action
is safe: create, then switch, then delete.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from controller import approving, history, names, resources, retention, retraining, rollout, scheduling, serving, switching, words
from controller import status as statuses
from controller.model import (
    Action,
    Apply,
    Condition,
    Create,
    Delete,
    Event,
    Images,
    JobState,
    Observed,
    Plan,
    Problem,
    Revision,
    SearchStatus,
    Settings,
    Status,
    TrainingStatus,
)
from controller.rollout import Rollout
from controller.spec import Spec
from controller.steps import Step, is_outdated, outdated_message, short, with_its_claim

ROLLING_OUT_S = 1.0
WORKING_S = 3.0
TROUBLED_S = 10.0
WATCHING_S = 30.0
# So that a scheduled time has come when it is looked for.
JUST_AFTER_S = 0.1
PAUSED = "spec.paused is true: nothing is changed until it is false"


def plan(observed: Observed, settings: Settings) -> Plan:
    """What is to be done next, and what is to be said of what was seen."""
    if observed.deleting:
        # The owner references do the rest.
        return Plan(observed.status)
    observed = replace(observed, spec=replace(_as_stored(observed), trigger=retraining.trigger(observed)))
    observed = replace(observed, jobs=tuple(_as_last_heard(job, observed) for job in observed.jobs))
    images = observed.status.images or Images(settings.training_image, settings.serving_image)
    recorded = history.revisions(observed)
    candidate = history.newest(recorded, observed.spec.run)

    accepted = acceptance(observed, settings)
    storage = storing(observed, settings)
    trained = training(observed, settings, images, candidate, accepted, storage)
    approved = approving.approval(observed, settings, images, candidate, accepted)
    wanted = rollout.rolled_out(observed, recorded, candidate if approved.is_done else None, serving.incumbent(observed, recorded))
    recorded = rollout.recorded_end(recorded, wanted)
    served = serving.served(observed, images, wanted)
    exposed = exposure(observed, settings)

    steps: tuple[Step, ...] = (accepted, storage, trained, approved, served, exposed)
    stale = [*_stale_trainings(observed), *approving.stale_evaluations(observed, candidate)]
    retained = retention.pruned(observed, settings, recorded, wanted, steps)
    steps = (*steps, retained)
    actions = (*(action for step in steps for action in step.actions), *stale)
    if observed.spec.paused:
        steps, actions = tuple(_paused(step) for step in steps), ()
    status = _status(observed, settings, images, recorded, wanted, steps)
    requeue_after_s = _requeue_after_s(observed, steps, wanted)
    asked_for = (*retraining.events(observed, recorded), *scheduling.events(observed), *_attempt_events(observed, status))
    told = (*asked_for, *rollout.events(observed, wanted), *retention.events(observed, recorded))
    return Plan(status, actions, (*told, *statuses.events(observed.status, status)), requeue_after_s)


def acceptance(observed: Observed, settings: Settings) -> Step:
    """Whether the spec can be followed here: what the schema cannot know."""
    field = "entryPoint" if "entryPoint" in observed.spec.environment else "id"
    named = str(observed.spec.environment[field])
    # Of an id, Gymnasium imports what stands before a colon.
    if ":" in named and not any(_is_within(named, prefix) for prefix in settings.entry_point_prefixes):
        allowed = ", ".join(settings.entry_point_prefixes) or "none"
        return _refused(
            "EntryPointNotAllowed",
            f"spec.environment.{field}: {named} is not within the packages that this operator allows ({allowed}); "
            "its --entry-point-prefix (Helm: entryPointPrefixes) says which",
        )
    unschedulable = scheduling.problem(observed.spec.training.schedule)
    if unschedulable:
        return _refused(unschedulable.reason, unschedulable.message)
    storage = observed.spec.storage
    if resources.is_ray_job(observed.spec, settings) and storage.access_modes and "ReadWriteMany" not in storage.access_modes:
        # Of a claim that is made here the schema knows.
        return _refused(
            "ClaimNotShared",
            f"spec.training.engine: RayJob moves between nodes, and the claim {storage.existing_claim} can be mounted on one node only; "
            "spec.storage has to be s3, or a claim that is ReadWriteMany",
        )
    rival = serving.older_rival(observed)
    if rival:
        return _refused(
            "RayServiceInUse",
            f"spec.serving.rayService: {observed.spec.serving.ray_service} is driven by the PolicyModel {rival} already; "
            "one PolicyModel is allowed per RayService",
        )
    return Step(Condition(statuses.ACCEPTED, "True", "Accepted", "the spec can be followed"))


def storing(observed: Observed, settings: Settings) -> Step:
    """The claim that checkpoints and bundles lie in. Its finding is not shown: it is the reason of others when it fails."""
    claim, spec = observed.claim, observed.spec
    done = Step(Condition("Stored", "True", "Stored", ""))
    if not settings.in_cluster or spec.storage.s3:
        return done
    if spec.storage.existing_claim:
        if claim is None:
            return _unstored("ClaimMissing", f"spec.storage.pvc.existingClaim: there is no claim {spec.storage.existing_claim}; create it")
        return done
    desired = resources.claim(observed.owner, spec)
    if claim is None:
        return replace(done, actions=(Apply(desired),))
    if claim.deleting:
        return _unstored(
            "ClaimDeleting", f"the claim {names.claim(observed.owner.name)} is being deleted, and is made anew when it is gone"
        )
    if claim.foreign:
        return _unstored(
            "NameInUse", f"the claim {names.claim(observed.owner.name)} belongs to somebody else; delete or rename one of the two"
        )
    if claim.problem:
        return _unstored(claim.problem.reason, claim.problem.message)
    # A claim is immutable but for its metadata, and that changes with deletionPolicy alone.
    if not resources.is_covered(desired["metadata"], claim.manifest["metadata"]):
        return replace(done, actions=(Apply(resources.claim_as_it_is(desired, claim.manifest)),))
    return done


def training(observed: Observed, settings: Settings, images: Images, candidate: Revision | None, accepted: Step, storage: Step) -> Step:
    """The run that the spec asks for: at most one live Job, and none where the run is published already and its bundle is there.

    A bundle that replicas miss is asked for once: the Job looks whether it is lost, and only then trains again. Where it is there (the
    replicas mount another volume), or goes again, its user has to say so.
    """
    spec, owner = observed.spec, observed.owner
    jobs = [job for job in observed.jobs if job.role == names.ROLE_TRAIN]
    job = next((job for job in jobs if job.run == spec.run), None)
    is_asked_again = bool(job and job.replaces and job.result)
    if candidate and (is_asked_again or not _is_missed(candidate, observed)):
        steps = f" after {candidate.env_steps} environment steps" if candidate.env_steps else ""
        steps += f", stopped by {candidate.stopped_by}" if candidate.stopped_by else ""
        return Step(
            Condition(
                statuses.TRAINED, "True", "Published", f"revision {candidate.number} ({short(candidate.digest)}) was published{steps}"
            )
        )
    if not accepted.is_done:
        return _untrained("NotAccepted", "no training before the spec is accepted")
    if storage.problem:
        return _untrained(storage.problem.reason, storage.problem.message)
    superseded = next((other for other in jobs if other.run != spec.run and other.phase == "Running"), None)
    if superseded:
        return _lost(superseded) or _untrained("Superseding", "the training of an earlier spec is being stopped", under_way="Training")
    prune = retention.live_job(observed)
    if job is None and prune:
        return _untrained("Pruning", f"the training begins when the Job {prune.name} has removed old revisions", under_way="Training")
    if job is None:
        begins_with = _warm_start(observed, candidate)
        if isinstance(begins_with, Problem):
            return _untrained(begins_with.reason, begins_with.message, problem=begins_with)
        lost = candidate.digest if candidate else None
        manifest = resources.training_job(owner, spec, settings, images, lost, history.opponent(observed, candidate), begins_with)
        message = f"there is no {manifest['kind']} for {_asked_for(spec)} yet; {manifest['metadata']['name']} is asked for"
        return _untrained("Starting", message, (Create(manifest),), under_way="Training")
    if job.deleting:
        message = f"the {job.kind} {job.name} is being deleted, and is started anew when it is gone"
        return _lost(job) or _untrained("Stopping", message, under_way="Training")
    if is_outdated(job, observed):
        return _untrained("Stopping", outdated_message(job), (Delete(job.kind, job.name),), under_way="Training")
    if candidate and job.replaces is None and job.phase != "Running":
        message = f"the bundle of revision {candidate.number} ({short(candidate.digest)}) is not where the replicas look: it is made again"
        return _untrained("BundleLost", message, (Delete(job.kind, job.name),), under_way="Training")
    if job.phase == "Failed" or (job.phase == "Succeeded" and job.problem):
        problem = job.problem or Problem("TrainingFailed", f"the {job.kind} failed without a word")
        return _untrained(
            problem.reason, f"{problem.message}. Change the spec, or retry as it is: delete the {job.kind} {job.name}", problem=problem
        )
    if job.phase == "Succeeded":
        # Its pod is gone, and its result with it; a new Job finds the run published and says the result again.
        return _untrained(
            "ResultLost",
            f"the {job.kind} {job.name} has finished, but its pod is gone: it is asked again",
            (Delete(job.kind, job.name),),
            under_way="Training",
        )
    hindrance = with_its_claim(job.problem, observed)
    if hindrance:
        return _untrained(hindrance.reason, hindrance.message, problem=hindrance, under_way="Training")
    return _untrained("Training", _progress_message(job), under_way="Training")


def exposure(observed: Observed, settings: Settings) -> Step:
    """The Ingress."""
    done, live, owner = Step(Condition("Exposed", "True", "Exposed", "")), observed.ingress, observed.owner
    if not settings.in_cluster:
        return done
    if observed.spec.serving.ingress is None:
        is_left_over = live is not None and not live.foreign and not live.deleting
        return replace(done, actions=(Delete("Ingress", owner.name),)) if is_left_over else done
    if live and live.deleting:
        return Step(
            Condition("Exposed", "False", "IngressDeleting", f"the Ingress {owner.name} is being deleted, and is made anew when it is gone")
        )
    if live and live.foreign:
        message = f"the Ingress {owner.name} belongs to somebody else; delete or rename one of the two"
        return Step(Condition("Exposed", "False", "NameInUse", message), problem=Problem("NameInUse", message))
    desired = resources.ingress(owner, observed.spec)
    if live is None or not resources.is_covered(desired, live.manifest):
        return Step(Condition("Exposed", "False", "ExposingRoute", f"the Ingress {owner.name} is written"), (Apply(desired),))
    return done


def _stale_trainings(observed: Observed) -> Iterable[Delete]:
    """Training Jobs of other runs. What a Job has published goes into the status before the Job goes."""
    recorded = {revision.run for revision in observed.status.revisions if revision.is_kept}
    for job in observed.jobs:
        is_unrecorded = bool(job.result) and job.run not in recorded
        if job.role == names.ROLE_TRAIN and job.run != observed.spec.run and not (job.deleting or is_unrecorded):
            yield Delete(job.kind, job.name, "another run is asked for")


def _status(
    observed: Observed,
    settings: Settings,
    images: Images,
    recorded: tuple[Revision, ...],
    wanted: Rollout,
    steps: tuple[Step, ...],
) -> Status:
    accepted, _, trained, approved, served, *_ = steps
    ready = _ready(steps, is_pinned=observed.spec.served_revision is not None)
    problem = next((step.problem for step in steps if step.problem), None)
    # What cannot be asked for a moment goes on as it was: a policy that served is not rolled out by that.
    was_rolling_out = served.finding.status != "Unknown" or observed.status.candidate is not None
    under_way = next((step for step in (trained, approved, served) if step.under_way and (step is not served or was_rolling_out)), None)
    if observed.spec.paused:
        progressing = Condition(statuses.PROGRESSING, "False", "Paused", PAUSED)
    elif under_way:
        progressing = Condition(statuses.PROGRESSING, "True", under_way.under_way, under_way.finding.message)
    else:
        progressing = Condition(statuses.PROGRESSING, "False", "Idle", "nothing is under way")
    degraded = (
        Condition(statuses.DEGRADED, "True", problem.reason, problem.message)
        if problem
        else Condition(statuses.DEGRADED, "False", "AsExpected", "nothing is wrong")
    )
    conditions = statuses.dated(
        [accepted.finding, trained.finding, approved.finding, serving.availability(observed, recorded), ready, progressing, degraded],
        observed.status,
        observed.now,
        observed.owner.generation,
    )
    return Status(
        observed_generation=observed.owner.generation,
        phase=statuses.phase(conditions),
        url=resources.url(observed.owner, observed.spec, settings),
        images=images,
        conditions=conditions,
        training=_training_status(observed, settings),
        serving=serving.serving_status(observed, recorded),
        candidate=wanted.progress,
        revisions=recorded,
        undone_switch=switching.undone_switch(observed),
        last_handled_requests=retraining.handled(observed),
        schedule=scheduling.status(observed),
    )


def _ready(steps: tuple[Step, ...], *, is_pinned: bool) -> Condition:
    """True when what this generation asks for answers on every replica; else the first thing that stands in the way. What is pinned is
    asked for, whatever is trained meanwhile."""
    accepted, _, trained, approved, served, exposed, _ = steps
    for step in (accepted, *(() if is_pinned else (trained, approved)), served, exposed):
        if not step.is_done:
            unknown = step.finding.status == "Unknown"
            return Condition(statuses.READY, "Unknown" if unknown else "False", step.finding.reason, step.finding.message)
    return served.finding


def _training_status(observed: Observed, settings: Settings) -> TrainingStatus | None:
    """The training Job; of a run that was triggered, its trigger also while there is no Job: it is remembered nowhere else."""
    spec = observed.spec
    job = next((job for job in observed.jobs if job.role == names.ROLE_TRAIN and job.run == spec.run), None)
    if job is None:
        name = resources.training_name(observed.owner, spec, settings)
        return TrainingStatus(name, spec.run, 1, None, None, spec.trigger) if spec.trigger else None
    progress = job.progress if job.phase == "Running" else None
    # Kubernetes does not count what was drained, and the pod that does is not always heard.
    before = _last_told(job, observed)
    attempt = max(job.attempt, before.attempt) if before else job.attempt
    return TrainingStatus(job.name, job.run, attempt, job.start_time, progress, spec.trigger, _search(job, observed))


def _as_last_heard(job: JobState, observed: Observed) -> JobState:
    """A Job, with the progress that it was last heard of where its pod runs on and is not heard."""
    before = _last_told(job, observed) if job.is_unheard else None
    return replace(job, progress=before.progress) if before and before.attempt >= job.attempt else job


def _last_told(job: JobState, observed: Observed) -> TrainingStatus | None:
    """What was last told of a Job; nothing of one that bore its name before."""
    last = observed.status.training
    return last if last and (last.job, last.start_time) == (job.name, job.start_time) else None


def _search(job: JobState, observed: Observed) -> SearchStatus | None:
    """How the trials of a search stand, or were last seen to: a pod that has ended says it no more."""
    last = observed.status.training
    before = last.search if last and last.run == job.run else None
    if job.result:
        return words.ended_search(job.result, before) or before
    told = job.search or before
    if told and job.phase == "Failed":
        return replace(told, trials=tuple(replace(trial, state="Pending") if trial.state == "Training" else trial for trial in told.trials))
    return told


def _attempt_events(observed: Observed, status: Status) -> tuple[Event, ...]:
    """That a run is tried again, and why."""
    before, now = observed.status.training, status.training
    if not (before and now and before.job == now.job and before.attempt < now.attempt):
        return ()
    setback = next((job.setback for job in observed.jobs if job.name == now.job), None) or "a pod is gone"
    message = f"{setback}; attempt {now.attempt} goes on from the last checkpoint, if there is one"
    return (Event("Warning", "AttemptFailed", message),)


def _paused(step: Step) -> Step:
    """A step of which nothing is done: it does not claim that anything is asked for."""
    if not step.actions:
        return step
    finding = step.finding if step.is_done else replace(step.finding, reason="Paused", message=PAUSED)
    return replace(step, finding=finding, actions=(), under_way="")


def _requeue_after_s(observed: Observed, steps: tuple[Step, ...], wanted: Rollout) -> float:
    """Until the next look, or the next scheduled time."""
    next_in_s = scheduling.next_in_s(observed)
    looks_in_s = WATCHING_S if observed.spec.paused else _looks_in_s(steps, wanted)
    return looks_in_s if next_in_s is None else min(looks_in_s, max(ROLLING_OUT_S, next_in_s + JUST_AFTER_S))


def _looks_in_s(steps: tuple[Step, ...], wanted: Rollout) -> float:
    """A problem is mended by somebody, and most of what they do is seen by a watch: to look each second would only load the API."""
    under_way = {step.under_way for step in steps}
    is_seen = all(step.finding.status != "Unknown" for step in steps)
    if wanted.wanted and wanted.candidate and not wanted.problem and is_seen:
        # Whatever else is wrong: a candidate that fails is to be seen soon.
        return ROLLING_OUT_S
    if any(step.problem for step in steps):
        return TROUBLED_S
    if "RollingOut" in under_way and is_seen:
        return ROLLING_OUT_S
    return WORKING_S if under_way - {""} else WATCHING_S


def _warm_start(observed: Observed, candidate: Revision | None) -> Revision | Problem | None:
    """The revision that the run begins with; none where none is asked for, or where nothing serves yet.

    Nor where what is asked for is what serves and the run's own bundle is lost: that may be what serves, and what the run began with is
    known to its checkpoint alone.
    """
    asked, recorded, serving = observed.spec.training.warm_start, observed.status.revisions, observed.status.serving
    kept = [revision for revision in recorded if revision.is_kept]
    if asked == "None" or (asked == "Serving" and candidate):
        return None
    if asked == "Serving":
        return history.holding(tuple(kept), serving.digest) if serving else None
    found = next((revision for revision in recorded if str(revision.number) == asked), None)
    known = ", ".join(str(revision.number) for revision in kept) or "none"
    if found is None:
        return Problem("RevisionUnknown", f"spec.training.warmStart: there is no revision {asked}; there are: {known}")
    if not found.is_kept:
        message = f"spec.training.warmStart: revision {asked} was pruned (spec.storage.keepRevisions); there are: {known}"
        return Problem("RevisionPruned", message)
    return found


def _is_missed(candidate: Revision, observed: Observed) -> bool:
    """Whether a replica says that the bundle of a revision is not there, and looks where it ought to be."""
    return serving.mounts_the_claim(observed) and bool(rollout.missing(observed, candidate.digest))


def _as_stored(observed: Observed) -> Spec:
    """The spec with the access modes that the claim has: an existing one is not described in it, and one that was kept may have others."""
    spec, claim = observed.spec, observed.claim
    modes = claim.manifest.get("spec", {}).get("accessModes") if claim else None
    return replace(spec, storage=replace(spec.storage, access_modes=tuple(modes))) if modes else spec


def _is_within(named: str, prefix: str) -> bool:
    module = named.partition(":")[0]
    return module == prefix or module.startswith(prefix + ".")


def _refused(reason: str, message: str) -> Step:
    return Step(Condition(statuses.ACCEPTED, "False", reason, message), problem=Problem(reason, message))


def _unstored(reason: str, message: str) -> Step:
    return Step(Condition("Stored", "False", reason, message), problem=Problem(reason, message))


def _untrained(reason: str, message: str, actions: tuple[Action, ...] = (), *, under_way: str = "", problem: Problem | None = None) -> Step:
    return Step(Condition(statuses.TRAINED, "False", reason, message), actions, under_way, problem)


def _lost(job: JobState) -> Step | None:
    """That a Job which has to go is kept by a node that does not answer."""
    lost = job.problem if job.problem and job.problem.reason == "NodeLost" else None
    return _untrained(lost.reason, lost.message, problem=lost, under_way="Training") if lost else None


def _progress_message(job: JobState) -> str:
    if job.progress is None:
        return f"the {job.kind} {job.name} is starting" + (f" again: {job.setback}" if job.setback else "")
    figures = f"iteration {job.progress.iteration}, {job.progress.env_steps} environment steps"
    if job.progress.episode_return_mean is not None:
        spread = "" if job.progress.episode_return_std is None else f" ± {job.progress.episode_return_std:.1f}"
        figures += f", mean return {job.progress.episode_return_mean:.1f}{spread}"
    if job.progress.steps_per_s is not None:
        figures += f", {job.progress.steps_per_s:.0f} steps/s"
    heard = ", and was last heard of at" if job.is_unheard else ":"
    return f"the {job.kind} {job.name} is training{heard} {figures} ({statuses.progress_text(job.progress)})"


def _asked_for(spec: Spec) -> str:
    if spec.trigger is None:
        return "this spec"
    return f"another training of this spec, which {spec.trigger.asker} has asked for (seed {spec.seed}),"
