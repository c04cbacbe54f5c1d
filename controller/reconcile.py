"""plan(observed) -> Plan: every decision of the operator is here.

Pure: no clock (`now` is observed), no I/O, no framework; the same function decides in a cluster and in local mode. It never acts on
a difference between two specs and never reads `phase` back, so it reaches the right end from any state. Stopping after any action
is safe: create, then switch, then delete.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

from controller import gate, names, resources
from controller import status as statuses
from controller.model import (
    Action,
    Apply,
    Condition,
    Create,
    Delete,
    Evaluation,
    Images,
    JobState,
    Json,
    Observed,
    Plan,
    Problem,
    Replicas,
    Revision,
    ServingStatus,
    Settings,
    Spec,
    Status,
    TrainingStatus,
    Unknown,
)

ROLLING_OUT_S = 1.0
WORKING_S = 3.0
TROUBLED_S = 10.0
WATCHING_S = 30.0
# The history in the status; a run that has dropped out says its result again when it is asked for.
REVISIONS_KEPT = 20
PAUSED = "spec.paused is true: nothing is changed until it is false"


@dataclass(frozen=True)
class Step:
    """One part of the plan: what is found, what is done about it, and whether it is under way."""

    finding: Condition
    actions: tuple[Action, ...] = ()
    under_way: str = ""
    problem: Problem | None = None

    @property
    def is_done(self) -> bool:
        return self.finding.status == "True"


def plan(observed: Observed, settings: Settings) -> Plan:
    """What is to be done next, and what is to be said of what was seen."""
    if observed.deleting:
        # The owner references do the rest.
        return Plan(observed.status)
    observed = replace(observed, spec=_as_stored(observed))
    images = observed.status.images or Images(settings.training_image, settings.serving_image)
    recorded = revisions(observed)
    candidate = next((revision for revision in reversed(recorded) if revision.run == observed.spec.run), None)

    accepted = acceptance(observed, settings)
    storage = storing(observed, settings)
    trained = training(observed, settings, images, candidate, accepted, storage)
    approved = approval(observed, settings, images, candidate, accepted)
    target = _policy(candidate) if candidate and approved.is_done else incumbent(observed, recorded)
    served = serving(observed, images, target)
    exposed = exposure(observed, settings)

    steps: tuple[Step, ...] = (accepted, storage, trained, approved, served, exposed)
    actions = tuple(action for step in steps for action in step.actions) + tuple(stale_jobs(observed))
    if observed.spec.paused:
        steps, actions = tuple(_paused(step) for step in steps), ()
    status = _status(observed, settings, images, recorded, candidate, steps)
    requeue_after_s = WATCHING_S if observed.spec.paused else _requeue_after_s(steps)
    return Plan(status, actions, statuses.events(observed.status, status), requeue_after_s)


def revisions(observed: Observed) -> tuple[Revision, ...]:
    """The history: what the status recorded, and what finished Jobs say that it has not recorded yet."""
    spec, history = observed.spec, list(observed.status.revisions)
    for job in sorted(observed.jobs, key=lambda job: job.name):
        if job.role == names.ROLE_TRAIN and job.result and _is_publication(job, job.result, history):
            history.append(_revision(job, job.result, observed, 1 + max((revision.number for revision in history), default=0)))
        if job.role == names.ROLE_EVALUATE and job.result and job.evaluation == spec.evaluation(job.run):
            evaluation = _evaluation(job.result)
            evaluated = (job.run, job.result["digest"])
            history = [
                replace(revision, evaluation=evaluation) if (revision.run, revision.digest) == evaluated else revision
                for revision in history
            ]
    # Only the run that the spec asks for is judged by the gate that the spec states; the others keep the verdict they got.
    judged = [_judged(revision, observed) if revision.run == spec.run else revision for revision in history]
    serving_now = observed.status.serving.revision if observed.status.serving else None
    oldest_kept = len(judged) - REVISIONS_KEPT
    return tuple(
        revision
        for index, revision in enumerate(judged)
        if index >= oldest_kept or revision.run == spec.run or revision.number == serving_now
    )


def acceptance(observed: Observed, settings: Settings) -> Step:
    """Whether the spec can be followed here: what the schema cannot know."""
    entry_point = observed.spec.environment.get("entryPoint")
    if entry_point and not any(_is_within(entry_point, prefix) for prefix in settings.entry_point_prefixes):
        allowed = ", ".join(settings.entry_point_prefixes) or "none"
        return _refused(
            "EntryPointNotAllowed",
            f"spec.environment.entryPoint: {entry_point} is not within the packages that this operator allows ({allowed}); "
            "its --entry-point-prefix (Helm: entryPointPrefixes) says which",
        )
    rival = _older_rival(observed)
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
                statuses.TRAINED, "True", "Published", f"revision {candidate.number} ({_short(candidate.digest)}) was published{steps}"
            )
        )
    if not accepted.is_done:
        return _untrained("NotAccepted", "no training before the spec is accepted")
    if storage.problem:
        return _untrained(storage.problem.reason, storage.problem.message)
    if any(other.run != spec.run and other.phase == "Running" for other in jobs):
        return _untrained("Superseding", "the training of an earlier spec is being stopped", under_way="Training")
    if job is None:
        begins_with = _warm_start(observed)
        if isinstance(begins_with, Problem):
            return _untrained(begins_with.reason, begins_with.message, problem=begins_with)
        manifest = resources.training_job(owner, spec, settings, images, candidate.digest if candidate else None, begins_with)
        message = f"there is no Job for this spec yet; {manifest['metadata']['name']} is asked for"
        return _untrained("Starting", message, (Create(manifest),), under_way="Training")
    if job.deleting:
        return _untrained("Stopping", f"the Job {job.name} is being deleted, and is started anew when it is gone", under_way="Training")
    if _is_outdated(job, observed):
        return _untrained("Stopping", _outdated_message(job), (Delete("Job", job.name),), under_way="Training")
    if candidate and job.replaces is None and job.phase != "Running":
        message = f"the bundle of revision {candidate.number} ({_short(candidate.digest)}) is not where the replicas look: it is made again"
        return _untrained("BundleLost", message, (Delete("Job", job.name),), under_way="Training")
    if job.phase == "Failed" or (job.phase == "Succeeded" and job.problem):
        problem = job.problem or Problem("TrainingFailed", "the Job failed without a word")
        return _untrained(
            problem.reason, f"{problem.message}. Change the spec, or retry as it is: delete the Job {job.name}", problem=problem
        )
    if job.phase == "Succeeded":
        # Its pod is gone, and its result with it; a new Job finds the run published and says the result again.
        return _untrained(
            "ResultLost",
            f"the Job {job.name} has finished, but its pod is gone: it is asked again",
            (Delete("Job", job.name),),
            under_way="Training",
        )
    if job.problem:
        return _untrained(job.problem.reason, job.problem.message, problem=job.problem, under_way="Training")
    return _untrained("Training", _progress_message(job), under_way="Training")


def approval(observed: Observed, settings: Settings, images: Images, candidate: Revision | None, accepted: Step) -> Step:
    """Whether the run's policy may be served: its evaluation, as the gate asks today, against the gate."""
    if candidate is None:
        return _unapproved("NotTrained", "there is no policy of this spec to evaluate yet")
    wanted = observed.spec.evaluation(candidate.run)
    if candidate.evaluation and _is_asked_for(candidate, observed):
        verdict = gate.verdict(candidate.evaluation, observed.spec.gate)
        if verdict.outcome == "Pass":
            return Step(Condition(statuses.APPROVED, "True", "GatePassed", f"revision {candidate.number}: {verdict.message}"))
        advice = "Train longer or otherwise (spec.training), or ask for less (spec.gate)"
        message = f"revision {candidate.number} is not served: {verdict.message}. {advice}"
        return _unapproved("GateFailed", message, problem=Problem("GateFailed", message))
    if not accepted.is_done:
        return _unapproved("NotAccepted", "no evaluation before the spec is accepted")
    job = next((job for job in observed.jobs if job.role == names.ROLE_EVALUATE and job.evaluation == wanted), None)
    if job is None:
        manifest = resources.evaluation_job(observed.owner, observed.spec, settings, images, candidate)
        message = f"revision {candidate.number} has to be evaluated; the Job {manifest['metadata']['name']} is asked for"
        return _unapproved("Evaluating", message, (Create(manifest),), under_way="Evaluating")
    if job.deleting:
        return _unapproved("Stopping", f"the Job {job.name} is being deleted, and is started anew when it is gone", under_way="Evaluating")
    if _is_outdated(job, observed):
        return _unapproved("Stopping", _outdated_message(job), (Delete("Job", job.name),), under_way="Evaluating")
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
    return _unapproved(
        "Evaluating", f"revision {candidate.number} is evaluated by the Job {job.name}", problem=job.problem, under_way="Evaluating"
    )


def incumbent(observed: Observed, recorded: tuple[Revision, ...]) -> Json | None:
    """The policy that goes on serving while there is no better one: what the RayService is told to serve, or, where the RayService
    was lost, what was last seen to serve, or the newest approved revision."""
    if observed.ray_service:
        policy = resources.served_policy(observed.owner, observed.ray_service.serve_config)
        if policy:
            return policy
    last = observed.status.serving
    seen = next((revision for revision in recorded if last and revision.number == last.revision), None)
    if seen is None and last and last.uri:
        # The history may be lost, or cut, and with it what served.
        return {"uri": last.uri, "digest": last.digest, "revision": last.revision}
    approved = [revision for revision in recorded if revision.verdict == "Pass"]
    return _policy(seen or (approved[-1] if approved else None))


def serving(observed: Observed, images: Images, target: Json | None) -> Step:
    """The RayService, and the policy that it is told to serve. Its finding is `Ready` but for what comes before it."""
    spec, owner, live = observed.spec, observed.owner, observed.ray_service
    name = resources.ray_service_name(owner, spec)
    text = resources.serve_config(owner, spec, target, live.serve_config if live else "")
    switch = Apply(resources.serve_config_patch(owner, spec, text), names.SERVE_FIELD_MANAGER)
    if spec.serving.ray_service:
        if live is None:
            return _unready(
                "RayServiceMissing", f"spec.serving.rayService: there is no RayService {name} in this namespace; create it", is_problem=True
            )
        if _older_rival(observed):
            return _unready("RayServiceInUse", f"the RayService {name} is driven by another PolicyModel")
    elif live is None:
        return _unready(
            "CreatingRayService",
            f"there is no RayService yet; {name} is asked for",
            (Apply(resources.ray_service(owner, spec, images)), switch),
        )
    elif live.foreign and not live.deleting:
        return _unready(
            "NameInUse", f"the RayService {name} belongs to somebody else; name it in spec.serving.rayService to adopt it", is_problem=True
        )
    if live.deleting:
        after = "create it again when it is gone" if spec.serving.ray_service else "it is made anew when it is gone"
        return _unready("RayServiceDeleting", f"the RayService {name} is being deleted; {after}", under_way="RollingOut")
    if not spec.serving.ray_service and live.hash != resources.serving_hash(spec):
        return _unready(
            "SwitchingCluster",
            f"the RayService {name} gets new pods: KubeRay builds a second cluster and switches to it",
            (Apply(resources.ray_service(owner, spec, images)),),
            under_way="RollingOut",
        )
    has_old_pods = not spec.serving.ray_service and live.pods_hash not in (None, live.hash)
    if live.switching or has_old_pods:
        # The serving cluster gets no new serveConfigV2 now (KubeRay), so a change of policy waits for the switch.
        why = f": {live.problem.message}" if live.problem else ""
        return _unready(
            "SwitchingCluster",
            f"KubeRay prepares a second cluster for {name}; the first one goes on serving{why}",
            under_way="RollingOut",
            problem=live.problem,
        )
    if spec.serving.ray_service and live.serve_config.strip() and not resources.parsed_serve_config(live.serve_config):
        message = f"serveConfigV2 of the RayService {name} cannot be read; mend it, for there may be applications of others in it"
        return _unready("ServeConfigUnreadable", message, is_problem=True)
    neighbour = resources.route_neighbour(owner, spec, live.serve_config) if spec.serving.ray_service else None
    if neighbour:
        message = (
            f"spec.serving.route: {spec.serving.route} is the route of the application {neighbour} in the RayService {name}; name another"
        )
        return _unready("RouteInUse", message, is_problem=True)
    if spec.serving.ray_service and resources.is_name_taken(owner, live.serve_config):
        message = (
            f"the RayService {name} has an application {owner.name} that is not this PolicyModel's, and it would be overwritten; "
            "rename one of the two"
        )
        return _unready("NameInUse", message, is_problem=True)
    if resources.parsed_serve_config(live.serve_config) != resources.parsed_serve_config(text):
        return _unready("RollingOut", _rollout_message(target, name), (switch,), under_way="RollingOut")
    return replicas(observed, target)


def replicas(observed: Observed, target: Json | None) -> Step:
    """Whether every replica says that it serves the target."""
    seen, wanted = observed.replicas, observed.spec.serving.replica_range
    problem = observed.ray_service.problem if observed.ray_service else None
    if target is None:
        return _unready("NoPolicyYet", problem.message if problem else "the RayService waits for a first policy", problem=problem)
    if problem and not isinstance(seen, Replicas):
        return _unready(problem.reason, problem.message, problem=problem, under_way="RollingOut")
    if seen is None:
        return _unready("NoReplica", "no replica answers yet", under_way="RollingOut")
    if isinstance(seen, Unknown):
        return Step(
            Condition(statuses.READY, "Unknown", "StatusUnknown", f"the replicas could not be asked: {seen.why}"), under_way="RollingOut"
        )
    refused = next(((row, row.error) for row in seen.rows if row.error and row.error_digest == target["digest"]), None)
    ready = sum(row.digest == target["digest"] for row in seen.rows)
    if refused:
        row, error = refused
        meanwhile = "it goes on serving what it has" if row.digest else "it has no policy to answer with"
        message = f"the replica {row.replica} refuses {_short(target['digest'])}: {error.reason}: {error.message}; {meanwhile}"
        if error.reason == "Missing" and not _mounts_the_claim(observed):
            claim = resources.claim_name(observed.owner, observed.spec)
            message += (
                f". The RayService {observed.spec.serving.ray_service} mounts no claim {claim}: it has to, at {resources.STORAGE_PATH}"
            )
        return _unready("LoadFailed", message, is_problem=True, under_way="RollingOut")
    manners = resources.manners(observed.spec)
    # What a replica does not tell (its image is older) is taken as agreed.
    behind = sum(any(row.manners.get(name, value) != value for name, value in manners.items()) for row in seen.rows)
    if behind:
        message = f"{_replicas(behind)} of {len(seen.rows)} still to take over {', '.join(manners)}"
        return _unready("RollingOut", message, under_way="RollingOut")
    if ready == len(seen.rows) == seen.running and ready in wanted:
        return Step(
            Condition(
                statuses.READY,
                "True",
                "Serving",
                f"revision {target['revision']} ({_short(target['digest'])}) answers on {_replicas(ready)}",
            )
        )
    return _unready(
        "RollingOut",
        f"revision {target['revision']} ({_short(target['digest'])}) answers on {ready} of {_replicas(max(wanted.start, seen.running))}",
        under_way="RollingOut",
    )


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


def stale_jobs(observed: Observed) -> Iterable[Delete]:
    """Jobs that nobody asks for any more. What a Job has published goes into the status before the Job goes."""
    wanted = observed.spec.evaluation(observed.spec.run)
    recorded = {revision.run: revision.evaluation.id if revision.evaluation else None for revision in observed.status.revisions}
    for job in observed.jobs:
        is_unrecorded = bool(job.result) and job.role == names.ROLE_TRAIN and job.run not in recorded
        if job.deleting or is_unrecorded:
            continue
        if job.role == names.ROLE_TRAIN and job.run != observed.spec.run:
            yield Delete("Job", job.name, "the spec asks for another run")
        if job.role == names.ROLE_EVALUATE and (job.evaluation != wanted or recorded.get(job.run) == wanted):
            yield Delete("Job", job.name, "its evaluation is not needed any more")


def _status(
    observed: Observed,
    settings: Settings,
    images: Images,
    recorded: tuple[Revision, ...],
    candidate: Revision | None,
    steps: tuple[Step, ...],
) -> Status:
    accepted, _, trained, approved, served, _ = steps
    ready = _ready(steps)
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
        [accepted.finding, trained.finding, approved.finding, availability(observed, recorded), ready, progressing, degraded],
        observed.status,
        observed.now,
        observed.owner.generation,
    )
    is_rolling_out = candidate is not None and approved.is_done and not served.is_done and was_rolling_out
    return Status(
        observed_generation=observed.owner.generation,
        phase=statuses.phase(conditions),
        url=resources.url(observed.owner, observed.spec, settings),
        images=images,
        conditions=conditions,
        training=_training_status(observed),
        serving=_serving_status(observed, recorded),
        candidate=candidate if is_rolling_out else None,
        revisions=recorded,
    )


def _ready(steps: tuple[Step, ...]) -> Condition:
    """True when what this generation asks for answers on every replica; else the first thing that stands in the way."""
    _, _, trained, approved, served, exposed = steps
    for step in (steps[0], trained, approved, served, exposed):
        if not step.is_done:
            unknown = step.finding.status == "Unknown"
            return Condition(statuses.READY, "Unknown" if unknown else "False", step.finding.reason, step.finding.message)
    return served.finding


def availability(observed: Observed, recorded: tuple[Revision, ...]) -> Condition:
    """Whether an approved revision answers, whichever it is."""
    seen = observed.replicas
    if isinstance(seen, Unknown):
        return Condition(statuses.AVAILABLE, "Unknown", "StatusUnknown", f"the replicas could not be asked: {seen.why}")
    answering = [row for row in seen.rows if row.digest] if seen else []
    if not answering:
        return Condition(statuses.AVAILABLE, "False", "NoPolicy", "no replica has a policy to answer with")
    known = {revision.digest: revision for revision in recorded}
    ours = [row for row in answering if row.digest in known]
    if not ours:
        return Condition(statuses.AVAILABLE, "False", "UnknownPolicy", "a policy answers that this PolicyModel has not made")
    digest = str(ours[0].digest)
    return Condition(
        statuses.AVAILABLE, "True", "PolicyAnswers", f"revision {known[digest].number} ({_short(digest)}) answers on {_replicas(len(ours))}"
    )


def _serving_status(observed: Observed, recorded: tuple[Revision, ...]) -> ServingStatus | None:
    """What answers: while replicas differ, the policy that was serving until now, for as long as one of them holds it."""
    seen, before = observed.replicas, observed.status.serving
    if isinstance(seen, Unknown):
        return before
    digests = [row.digest for row in seen.rows if row.digest] if seen else []
    if not seen or not digests:
        # Nothing answers now; what did is remembered, for it is what serves again where the RayService is lost.
        return replace(before, replicas_ready=0, replicas=0) if before else None
    digest = before.digest if before and before.digest in digests else digests[0]
    revision = next((revision for revision in reversed(recorded) if revision.digest == digest), None)
    told = resources.served_policy(observed.owner, observed.ray_service.serve_config) if observed.ray_service else None
    named = told["uri"] if told and told["digest"] == digest else None
    known = before.uri if before and before.digest == digest else None
    return ServingStatus(
        digest=digest,
        revision=revision.number if revision else None,
        return_mean=revision.evaluation.mean if revision and revision.evaluation else None,
        replicas_ready=digests.count(digest),
        replicas=seen.running,
        uri=revision.uri if revision else named or known,
    )


def _training_status(observed: Observed) -> TrainingStatus | None:
    job = next((job for job in observed.jobs if job.role == names.ROLE_TRAIN and job.run == observed.spec.run), None)
    if job is None:
        return None
    return TrainingStatus(job.name, job.run, job.attempt, job.start_time, job.progress if job.phase == "Running" else None)


def _paused(step: Step) -> Step:
    """A step of which nothing is done: it does not claim that anything is asked for."""
    if not step.actions:
        return step
    finding = step.finding if step.is_done else replace(step.finding, reason="Paused", message=PAUSED)
    return replace(step, finding=finding, actions=(), under_way="")


def _requeue_after_s(steps: tuple[Step, ...]) -> float:
    """A problem is mended by somebody, and most of what they do is seen by a watch: to look each second would only load the API."""
    under_way = {step.under_way for step in steps}
    if any(step.problem for step in steps):
        return TROUBLED_S
    if "RollingOut" in under_way and all(step.finding.status != "Unknown" for step in steps):
        return ROLLING_OUT_S
    return WORKING_S if under_way - {""} else WATCHING_S


def _is_publication(job: JobState, result: Json, history: list[Revision]) -> bool:
    """Whether a result is news: the first of its run, or the bundle that replaces the one that was lost."""
    last = next((revision for revision in reversed(history) if revision.run == job.run), None)
    return last is None or (job.replaces == last.digest and result["digest"] != last.digest)


def _warm_start(observed: Observed) -> Revision | Problem | None:
    """The revision that the run begins with; none where none is asked for, or where nothing serves yet."""
    asked, recorded, serving = observed.spec.training.warm_start, observed.status.revisions, observed.status.serving
    if asked == "None":
        return None
    if asked == "Serving":
        return next((revision for revision in reversed(recorded) if serving and revision.digest == serving.digest), None)
    found = next((revision for revision in recorded if str(revision.number) == asked), None)
    known = ", ".join(str(revision.number) for revision in recorded) or "none"
    return found or Problem("RevisionUnknown", f"spec.training.warmStart: there is no revision {asked}; known are {known}")


def _is_missed(candidate: Revision, observed: Observed) -> bool:
    """Whether a replica says that the bundle of a revision is not there, and looks where it ought to be."""
    if not _mounts_the_claim(observed):
        return False
    rows = observed.replicas.rows if isinstance(observed.replicas, Replicas) else ()
    return any(row.error and row.error.reason == "Missing" and row.error_digest == candidate.digest for row in rows)


def _mounts_the_claim(observed: Observed) -> bool:
    """Whether the pods of the RayService have the claim of the bundles, as far as is known; an adopted one is made by others."""
    live = observed.ray_service
    if observed.spec.storage.s3 or observed.spec.serving.ray_service is None or live is None or live.claims is None:
        return True
    return resources.claim_name(observed.owner, observed.spec) in live.claims


def _revision(job: JobState, result: Json, observed: Observed, number: int) -> Revision:
    return Revision(
        number=number,
        digest=result["digest"],
        uri=result["uri"],
        run=job.run,
        trained_at=result.get("trainedAt"),
        image=job.image,
        seed=observed.spec.training.seed if job.run == observed.spec.run else None,
        env_steps=result.get("envSteps"),
        parent=observed.status.serving.revision if observed.status.serving else None,
        evaluation=_evaluation(result) if result.get("evaluation") else None,
        stopped_by=result.get("stoppedBy"),
    )


def _evaluation(result: Json) -> Evaluation:
    figures = result["evaluation"]
    mean, std, episodes = float(figures["mean"]), float(figures["std"]), int(figures["episodes"])
    return Evaluation(figures["id"], mean, std, episodes, int(figures["seed"]), gate.lower_bound(mean, std, episodes))


def _judged(revision: Revision, observed: Observed) -> Revision:
    evaluation = revision.evaluation
    if evaluation is None or not _is_asked_for(revision, observed):
        return replace(revision, verdict=None)
    return replace(revision, verdict=gate.verdict(evaluation, observed.spec.gate).outcome)


def _is_asked_for(revision: Revision, observed: Observed) -> bool:
    """Whether a revision was evaluated as the gate asks today; the figures come from an image that may be its user's."""
    found, gate_spec = revision.evaluation, observed.spec.gate
    asked = (observed.spec.evaluation(revision.run), gate_spec.episodes, gate_spec.seed)
    return found is not None and (found.id, found.episodes, found.seed) == asked


def _as_stored(observed: Observed) -> Spec:
    """The spec with the access modes that the claim has: an existing one is not described in it, and one that was kept may have others."""
    spec, claim = observed.spec, observed.claim
    modes = claim.manifest.get("spec", {}).get("accessModes") if claim else None
    return replace(spec, storage=replace(spec.storage, access_modes=tuple(modes))) if modes else spec


def _policy(revision: Revision | None) -> Json | None:
    return {"uri": revision.uri, "digest": revision.digest, "revision": revision.number} if revision else None


def _older_rival(observed: Observed) -> str | None:
    """Who drives the RayService already: the PolicyModel that made it, or the one that named it first; of two of the same second, the
    first by name."""
    maker = next((rival.name for rival in observed.rivals if rival.is_maker), None)
    if maker or observed.spec.serving.ray_service is None:
        return maker
    older = [rival.name for rival in observed.rivals if (rival.created, rival.name) < (observed.created, observed.owner.name)]
    return min(older, default=None)


def _is_within(entry_point: str, prefix: str) -> bool:
    module = entry_point.partition(":")[0]
    return module == prefix or module.startswith(prefix + ".")


def _refused(reason: str, message: str) -> Step:
    return Step(Condition(statuses.ACCEPTED, "False", reason, message), problem=Problem(reason, message))


def _unstored(reason: str, message: str) -> Step:
    return Step(Condition("Stored", "False", reason, message), problem=Problem(reason, message))


def _untrained(reason: str, message: str, actions: tuple[Action, ...] = (), *, under_way: str = "", problem: Problem | None = None) -> Step:
    return Step(Condition(statuses.TRAINED, "False", reason, message), actions, under_way, problem)


def _unapproved(
    reason: str, message: str, actions: tuple[Action, ...] = (), *, under_way: str = "", problem: Problem | None = None
) -> Step:
    return Step(Condition(statuses.APPROVED, "False", reason, message), actions, under_way, problem)


def _unready(
    reason: str,
    message: str,
    actions: tuple[Action, ...] = (),
    *,
    under_way: str = "",
    problem: Problem | None = None,
    is_problem: bool = False,
) -> Step:
    found = Problem(reason, message) if is_problem else problem
    return Step(Condition(statuses.READY, "False", reason, message), actions, under_way, found)


def _is_outdated(job: JobState, observed: Observed) -> bool:
    """Whether a Job that does not get on was made before the user mended what its pods are made from. One that gets on is left alone."""
    is_stuck = job.problem is not None or job.phase == "Failed"
    return is_stuck and job.hash not in (None, resources.job_hash(observed.spec))


def _outdated_message(job: JobState) -> str:
    why = f" ({job.problem.message})" if job.problem else ""
    return f"the Job {job.name} does not get on{why}: it is made anew with the resources, template and secrets that the spec has now"


def _progress_message(job: JobState) -> str:
    if job.progress is None:
        return f"the Job {job.name} is starting"
    figures = f"iteration {job.progress.iteration}, {job.progress.env_steps} environment steps"
    if job.progress.episode_return_mean is not None:
        spread = "" if job.progress.episode_return_std is None else f" ± {job.progress.episode_return_std:.1f}"
        figures += f", mean return {job.progress.episode_return_mean:.1f}{spread}"
    if job.progress.steps_per_s is not None:
        figures += f", {job.progress.steps_per_s:.0f} steps/s"
    return f"the Job {job.name} is training: {figures} ({statuses.progress_text(job.progress)})"


def _rollout_message(target: Json | None, name: str) -> str:
    if target is None:
        return f"the RayService {name} is told its application"
    return f"the RayService {name} is told to serve revision {target['revision']} ({_short(target['digest'])})"


def _replicas(number: int) -> str:
    return f"{number} replica" + ("" if number == 1 else "s")


def _short(digest: str) -> str:
    return digest[:19]
