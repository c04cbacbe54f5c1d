"""Turns objects of the Kubernetes API into facts. Pure: it asks nobody, and it decides nothing about what is done."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from controller import names
from controller.model import (
    CandidateRow,
    ChildState,
    FoundBy,
    JobState,
    Json,
    Owner,
    Problem,
    Progress,
    RayServiceState,
    ReplicaRow,
    Replicas,
    Request,
    Returns,
    SearchStatus,
    Tally,
    Trial,
    TrialStatus,
)

# For some seconds after its creation no pod is scheduled yet, and that is no problem.
SCHEDULING_GRACE_S = 15
# KubeRay says something of a new object within a second or two.
KUBERAY_GRACE_S = 60
# Of each claim of a request: it is kept in the status.
REQUEST_CHARACTERS = 253
# Of a search: the schema's bound, and what a trial may be said to be.
MOST_TRIALS = 32
TRIAL_STATES = ("Pending", "Training", "Stopped", "Finished", "Failed")


class ReportUnusable(ValueError):
    """A report of the replicas by which nothing can be said; its text is for the user of a PolicyModel."""


def is_owned(child: Json, owner: Owner) -> bool:
    return any(reference.get("uid") == owner.uid for reference in child["metadata"].get("ownerReferences", []))


def requests(metadata: Json) -> dict[str, Request]:
    """The one-shot requests in the annotations of a PolicyModel, by their verbs.

    Args:
        metadata: its `managedFields` tell who has written an annotation, where there are any.
    """
    found = {verb: metadata.get("annotations", {}).get(names.request_annotation(verb)) for verb in names.REQUESTS}
    return {verb: _request(verb, text, _field_manager(verb, metadata)) for verb, text in found.items() if text is not None}


def _request(verb: str, text: str, field_manager: str | None) -> Request:
    match parsed(text):
        case {"id": str(request_id), "user": str(user), "time": str(time), **more}:
            is_short = all(0 < len(claim) <= REQUEST_CHARACTERS for claim in (request_id, user, time))
        case _:
            is_short = False
    if not is_short:
        return Request(names.digest_of({"text": text}), problem="has to hold JSON with id, user and time")
    revision = more.get("revision")
    if verb == names.APPROVE and type(revision) is not int:
        return Request(request_id, problem="has to name a revision by its number")
    return Request(request_id, user, time, field_manager, revision)


def _field_manager(verb: str, metadata: Json) -> str | None:
    """Which program wrote an annotation, as the API server has noted."""
    field = f"f:{names.request_annotation(verb)}"
    writers = [
        entry
        for entry in metadata.get("managedFields", [])
        if field in entry.get("fieldsV1", {}).get("f:metadata", {}).get("f:annotations", {})
    ]
    last: Json = max(writers, key=lambda entry: str(entry.get("time", "")), default={})
    return last.get("manager")


def job_state(job: Json, pods: Sequence[Json], log: str, now: datetime, events: Sequence[Json] = ()) -> JobState:
    """A Job of ours.

    Args:
        pods: the pods of this Job, in any order.
        log: the tail of what its running pod has written, or "".
        events: of the Job, read only where it has no pod now.
    """
    status = job.get("status", {})
    ended = {condition["type"]: condition for condition in status.get("conditions", []) if condition["status"] == "True"}
    container = job["spec"]["template"]["spec"]["containers"][0]
    end = _End(ended.get("Failed"), "Complete" in ended)
    attempt = max(1, status.get("failed", 0) + status.get("active", 0) + status.get("succeeded", 0))
    return _state(names.JOB, job, container, end, attempt, pods, (), log, now, _job_creation_problem(job, events))


def ray_job_state(job: Json, pods: Sequence[Json], log: str, now: datetime, cluster: Json | None = None) -> JobState:
    """A RayJob of ours.

    Args:
        pods: those of its submitter, which bear the Job's name that KubeRay gave them, and of its cluster, among others.
        log: the tail of what its running submitter has written, or "".
        cluster: its RayCluster, read only where KubeRay waits for its pods.
    """
    status = job.get("status", {})
    container = job["spec"]["submitterPodTemplate"]["spec"]["containers"][0]
    submitters = [pod for pod in pods if is_of_job(pod, job)]
    nodes = [pod for pod in pods if pod["metadata"].get("labels", {}).get("ray.io/cluster") == status.get("rayClusterName", "")]
    hindrance = _creation_problem(cluster or {}, "spec.training") or _unheeded(names.RAY_JOB, job, now)
    return _state(names.RAY_JOB, job, container, _ray_job_end(status), max(1, len(submitters)), submitters, nodes, log, now, hindrance)


def is_of_job(pod: Json, job: Json) -> bool:
    """Whether a pod is of a Job, or of the Job that KubeRay makes for a RayJob under its name."""
    return bool(pod["metadata"].get("labels", {}).get("batch.kubernetes.io/job-name") == job["metadata"]["name"])


def is_without_a_pod(job: Json) -> bool:
    """Whether a Job that has not ended has no pod now: its events say why, where the API server refuses it."""
    status = job.get("status", {})
    has_ended = any(
        condition["type"] in ("Complete", "Failed") and condition["status"] == "True" for condition in status.get("conditions", [])
    )
    return not status.get("active") and not has_ended


def cluster_to_come(ray_job: Json) -> str | None:
    """The RayCluster of a RayJob, as long as KubeRay waits for its pods: its conditions say why, where the API server refuses some."""
    status = ray_job.get("status", {})
    is_awaited = status.get("jobDeploymentStatus", "") in ("", "Initializing", "Waiting", "Retrying")
    return status.get("rayClusterName") or None if is_awaited else None


def is_unbound(claim: Json) -> bool:
    """Whether a claim waits for its volume: its events say why."""
    return bool(claim.get("status", {}).get("phase") != "Bound")


@dataclass(frozen=True)
class _End:
    """How a Job has ended, if it has: `failed` has the reason and the message."""

    failed: Json | None = None
    is_complete: bool = False


def _ray_job_end(status: Json) -> _End:
    match status.get("jobDeploymentStatus"):
        case "Complete" if status.get("jobStatus") == "SUCCEEDED":
            return _End(is_complete=True)
        case "Complete":
            return _End({"reason": "TrainingFailed", "message": f"the Ray job was ended by somebody ({status.get('jobStatus')})"})
        case "Failed" | "ValidationFailed":
            reason = "DeadlineExceeded" if status.get("reason") == "DeadlineExceeded" else "TrainingFailed"
            # Further lines are the driver's log, and that may hold a secret of the environment's.
            return _End({"reason": reason, "message": _first_line(status.get("message", ""))})
    return _End()


def _state(
    kind: str,
    job: Json,
    container: Json,
    end: _End,
    attempt: int,
    pods: Sequence[Json],
    nodes: Sequence[Json],
    log: str,
    now: datetime,
    hindrance: Problem | None,
) -> JobState:
    """What a Job and a RayJob have in common.

    Args:
        pods: those that say what comes out.
        nodes: those of the Ray cluster that it has beside them.
        hindrance: why it has no pods, as far as that is known.
    """
    metadata = job["metadata"]
    labels, annotations = metadata["labels"], metadata.get("annotations", {})
    progress = last_progress(log)
    by_age = sorted(pods, key=lambda pod: str(pod["metadata"].get("creationTimestamp", "")))
    words = [word for pod in by_age for word in [_last_word(pod, container["name"])] if word]
    said = next((word["result"] for word in reversed(words) if _is_result(word, labels[names.LABEL_ROLE])), None)
    if kind == names.RAY_JOB and end.failed and said:
        # Its submitter saw the run end well: KubeRay may have been away too long to see it, and says then that it failed.
        end = _End(is_complete=True)
    result = said if end.is_complete else None
    # Of an attempt that failed there is no result to miss: the pod that ended well may be gone while this one is still there.
    if end.is_complete and result is None and any(_has_ended_well(pod, container["name"]) for pod in by_age):
        advice = "spec.training.image has to be made from the operator's training image"
        problem: Problem | None = Problem("NoResult", f"the {kind} {metadata['name']} ended well but said no result; {advice}")
    elif end.failed:
        problem = _job_problem(end.failed, words, [*nodes, *by_age])
    else:
        # A training that gets on is not stuck, whatever becomes of one of its workers.
        problem = _first_problem(by_age if progress else [*by_age, *nodes], now, "spec.training") or hindrance
    return JobState(
        name=metadata["name"],
        role=labels[names.LABEL_ROLE],
        run=labels.get(names.LABEL_RUN, ""),
        evaluation=labels.get(names.LABEL_EVALUATION),
        phase="Failed" if end.failed else "Succeeded" if end.is_complete else "Running",
        deleting="deletionTimestamp" in metadata,
        hash=annotations.get(names.ANNOTATION_HASH),
        replaces=annotations.get(names.ANNOTATION_REPLACES),
        attempt=attempt,
        start_time=job.get("status", {}).get("startTime"),
        image=container["image"],
        result=result,
        problem=problem,
        progress=progress,
        prunes=prunes(metadata),
        kind=kind,
        setback=_setback(by_age, container["name"]),
        search=last_search(log),
    )


def prunes(metadata: Json) -> tuple[str, ...]:
    """The digests that a Job removes."""
    return tuple(metadata.get("annotations", {}).get(names.ANNOTATION_PRUNES, "").split())


def last_progress(log: str) -> Progress | None:
    """The newest progress line of a training log; lines that are none are passed over."""
    for line in reversed(log.splitlines()):
        progress = parsed(line).get("progress")
        if isinstance(progress, Mapping) and _is_progress(progress):
            return Progress(
                iteration=int(progress["iteration"]),
                env_steps=int(progress["envSteps"]),
                episode_return_mean=progress.get("episodeReturnMean"),
                percent=float(progress["progressPercent"]),
                eta_s=progress.get("etaSeconds"),
                episode_return_std=progress.get("episodeReturnStd"),
                steps_per_s=progress.get("stepsPerSecond"),
            )
    return None


def last_search(log: str) -> SearchStatus | None:
    """How the trials of a search stand, as the newest line of a training log tells that does."""
    for line in reversed(log.splitlines()):
        progress = parsed(line).get("progress")
        match progress.get("search") if isinstance(progress, Mapping) else None:
            case {"best": int(best), "trials": list(told)}:
                trials = [_trial_status(one) for one in told[:MOST_TRIALS]]
                return SearchStatus(best, tuple(trial for trial in trials if trial))
    return None


def found_by(result: Json) -> FoundBy | None:
    """Which trial of a search a training's result is; None where nothing was searched for, or it is not told as it should be."""
    match result.get("search"):
        case {"trial": int(trial), "seed": int(seed), "config": Mapping() as config, "trials": list(told)} if _is_drawn(config):
            return FoundBy(trial, len(told), seed, config)
    return None


def ended_search(result: Json, before: SearchStatus | None) -> SearchStatus | None:
    """How the trials of a search have ended, as its result tells; what they had drawn is known from its progress, if that was seen."""
    found = found_by(result)
    if found is None:
        return None
    drawn = {trial.trial: trial.config for trial in (before.trials if before else ())} | {found.trial: found.config}
    trials = []
    for number, told in enumerate(result["search"]["trials"][:MOST_TRIALS], start=1):
        match told:
            case [str(state), int(env_steps), mean] if state in TRIAL_STATES and (mean is None or _is_number(mean)):
                trials.append(TrialStatus(number, state, drawn.get(number), env_steps, mean))
            case _:
                return None
    return SearchStatus(found.trial, tuple(trials))


def _trial_status(told: Any) -> TrialStatus | None:
    match told:
        case {"trial": int(number), "state": str(state), "config": Mapping() as config, "envSteps": int(steps)} if _is_drawn(config):
            mean = told.get("episodeReturnMean")
            is_measured = mean is None or _is_number(mean)
            return TrialStatus(number, state, config, steps, mean) if is_measured and state in TRIAL_STATES else None
    return None


def _is_drawn(config: Json) -> bool:
    """Whether these are settings: the image may be its user's, and the status holds what JSON can."""
    return all(
        isinstance(value, bool | str) or _is_number(value) or (isinstance(value, list) and all(_is_number(part) for part in value))
        for value in config.values()
    )


def ray_service_state(
    ray_service: Json, pods: Sequence[Json], owner: Owner, application: str, now: datetime, clusters: Mapping[str, Json] | None = None
) -> RayServiceState:
    """A RayService, ours or adopted.

    Args:
        pods: the pods of its clusters.
        application: the name of our Serve application in it.
        clusters: its RayClusters by their names, as far as they were read.
    """
    metadata, status = ray_service["metadata"], ray_service.get("status", {})
    active = status.get("activeServiceStatus", {}).get("rayClusterName")
    pending = status.get("pendingServiceStatus", {}).get("rayClusterName")
    prepared = (clusters or {}).get(pending, {})
    problem = (
        _first_problem(pods, now, "spec.serving")
        or _creation_problem(prepared, "spec.serving")
        or _application_problem(status, application)
    )
    problem = problem or _unheeded("RayService", ray_service, now)
    return RayServiceState(
        serve_config=ray_service["spec"].get("serveConfigV2", ""),
        hash=metadata.get("annotations", {}).get(names.ANNOTATION_HASH),
        foreign=not is_owned(ray_service, owner),
        deleting="deletionTimestamp" in metadata,
        switching=bool(active and pending),
        pods_hash=_pods_hash(pods, active),
        problem=problem,
        claims=tuple(_mounted_claims(ray_service["spec"].get("rayClusterConfig", {}))),
        pending_since=prepared.get("metadata", {}).get("creationTimestamp") if active and pending else None,
        active_config=(clusters or {}).get(active, {}).get("spec"),
        unready_pods=tuple(_unready(pods, pending)) if active and pending else (),
    )


def _creation_problem(cluster: Json, field: str) -> Problem | None:
    """Why a RayCluster gets no pods: a quota, or an admission webhook, refuses them."""
    for condition in cluster.get("status", {}).get("conditions", []):
        if condition["type"] == "ReplicaFailure" and condition["status"] == "True":
            return _not_created(f"the RayCluster {cluster['metadata']['name']}", condition.get("message", ""), field)
    return None


def _job_creation_problem(job: Json, events: Sequence[Json]) -> Problem | None:
    """The same of a Job, which tells it by events alone; they outlive the trouble."""
    of_pods = [event for event in events if event.get("reason") in ("FailedCreate", "SuccessfulCreate", "SuccessfulDelete", "Suspended")]
    newest = max(of_pods, key=_event_time, default=None)
    if newest is None or newest["reason"] != "FailedCreate":
        return None
    # What a prune Job asks for is nobody's to choose.
    field = None if job["metadata"]["labels"].get(names.LABEL_ROLE) == names.ROLE_PRUNE else "spec.training"
    return _not_created(f"the Job {job['metadata']['name']}", newest.get("message", ""), field)


def _not_created(whose: str, why: Any, field: str | None) -> Problem:
    advice = f"; check {field}.resources" if field else ""
    return Problem("PodsNotCreated", f"{whose} cannot create its pods: {' '.join(str(why).split())}{advice}")


def _event_time(event: Json) -> str:
    return str(event.get("lastTimestamp") or event["metadata"]["creationTimestamp"])


def _unheeded(kind: str, made: Json, now: datetime) -> Problem | None:
    """That KubeRay has not said a word of an object, long after it was made."""
    metadata = made["metadata"]
    created = metadata.get("creationTimestamp")
    is_anothers = "managedBy" in made.get("spec", {})  # MultiKueue's, in another cluster
    if made.get("status") or is_anothers or not created or (now - datetime.fromisoformat(created)).total_seconds() < KUBERAY_GRACE_S:
        return None
    advice = f"does its operator run, and does it watch the namespace {metadata.get('namespace')}?"
    return Problem("KubeRaySilent", f"KubeRay has not taken up the {kind} {metadata['name']}, which was made at {created}; {advice}")


def _mounted_claims(cluster: Json) -> Iterable[str]:
    for group in (cluster.get("headGroupSpec", {}), *cluster.get("workerGroupSpecs", [])):
        for volume in group.get("template", {}).get("spec", {}).get("volumes", []):
            if "persistentVolumeClaim" in volume:
                yield volume["persistentVolumeClaim"]["claimName"]


def _pods_hash(pods: Sequence[Json], cluster: str | None) -> str | None:
    of_cluster = [pod["metadata"] for pod in pods if pod["metadata"].get("labels", {}).get("ray.io/cluster") == cluster]
    return next((hash_ for pod in of_cluster for hash_ in [pod.get("annotations", {}).get(names.ANNOTATION_HASH)] if hash_), None)


def _unready(pods: Sequence[Json], cluster: str) -> Iterable[str]:
    for pod in pods:
        is_ready = any(
            condition["type"] == "Ready" and condition["status"] == "True" for condition in pod.get("status", {}).get("conditions", [])
        )
        if pod["metadata"].get("labels", {}).get("ray.io/cluster") == cluster and not is_ready:
            yield pod["metadata"]["name"]


def ray_clusters(ray_service: Json) -> list[str]:
    """Names of the clusters that a RayService has, or prepares."""
    status = ray_service.get("status", {})
    found = [status.get(key, {}).get("rayClusterName") for key in ("activeServiceStatus", "pendingServiceStatus")]
    return [name for name in found if name]


def claim_state(claim: Json, owner: Owner, events: Iterable[Json]) -> ChildState:
    """The claim of ours. One that outlived its PolicyModel (`deletionPolicy: Retain`) has no owner and bears our label: it is ours."""
    metadata = claim["metadata"]
    labels = metadata.get("labels", {})
    is_ours = (labels.get(names.LABEL_NAME), labels.get(names.LABEL_MANAGED_BY)) == (owner.name, names.FIELD_MANAGER)
    is_kept = is_ours and not metadata.get("ownerReferences")
    problem = None
    if is_unbound(claim):
        warnings = [event for event in events if event.get("type") == "Warning"]
        if warnings:
            last = max(warnings, key=_event_time)
            message = (
                f"the claim {metadata['name']} cannot be bound: {last['message']}; check spec.storage.pvc and the cluster's StorageClasses"
            )
            problem = Problem("StorageNotBound", message)
    return ChildState(claim, not (is_owned(claim, owner) or is_kept), "deletionTimestamp" in metadata, problem)


def ingress_state(ingress: Json, owner: Owner) -> ChildState:
    return ChildState(ingress, not is_owned(ingress, owner), "deletionTimestamp" in ingress["metadata"])


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


def parsed(line: str) -> dict[str, Any]:
    """A JSON object in a line, or {} where the line is none."""
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_progress(progress: Json) -> bool:
    counted = all(_is_number(progress.get(name)) for name in ("iteration", "envSteps", "progressPercent"))
    may_miss = ("episodeReturnMean", "episodeReturnStd", "stepsPerSecond", "etaSeconds")
    return counted and all(progress.get(name) is None or _is_number(progress[name]) for name in may_miss)


def _is_result(word: Json, role: str) -> bool:
    """Whether a last word holds what a revision, or an evaluation, is made from. The image may be its user's: it may say anything."""
    result = word.get("result")
    if role == names.ROLE_PRUNE:
        return isinstance(result, Mapping) and isinstance(result.get("pruned"), int)
    if not isinstance(result, Mapping) or not isinstance(result.get("digest"), str):
        return False
    evaluation = result.get("evaluation")
    if role == names.ROLE_EVALUATE or evaluation is not None:
        return _is_evaluation(evaluation) and (role == names.ROLE_EVALUATE or _is_publication(result))
    return _is_publication(result)


def _is_publication(result: Json) -> bool:
    are_counted = all(isinstance(result.get(name), int | None) for name in ("envSteps", "seed"))
    are_told = all(isinstance(result.get(name), str | None) for name in ("configHash", "stoppedBy"))
    return isinstance(result.get("uri"), str) and are_counted and are_told and _is_moment(result.get("trainedAt"))


def _is_moment(text: Any) -> bool:
    if text is None:
        return True
    try:
        return datetime.fromisoformat(text).tzinfo is not None
    except (TypeError, ValueError):
        return False


def _is_evaluation(evaluation: Any) -> bool:
    if not isinstance(evaluation, Mapping) or not isinstance(evaluation.get("id"), str):
        return False
    are_whole = all(isinstance(evaluation.get(name), int) for name in ("episodes", "seed"))
    are_numbers = all(_is_number(evaluation.get(name)) for name in ("mean", "std"))
    return are_whole and evaluation["episodes"] >= 2 and are_numbers and _is_against(evaluation.get("against"))


def _is_against(against: Any) -> bool:
    if against is None:
        return True
    if not isinstance(against, Mapping) or not isinstance(against.get("digest"), str):
        return False
    if "problem" in against:
        return isinstance(against["problem"], str)
    return all(_is_number(against.get(name)) for name in ("mean", "std", "differenceMean", "differenceStd"))


def _is_error(word: Json) -> bool:
    error = word.get("error")
    return isinstance(error, Mapping) and all(isinstance(error.get(name), str) for name in ("reason", "message"))


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
    if not _is_number(value):
        raise TypeError("what is measured is a finite number")
    return float(value)


def _ended(pod: Json, container: str) -> Json:
    """How a container of a pod ended, or {}. Others beside it (a mesh puts its own into every pod) say nothing of ours."""
    found: Json = next((status for status in pod.get("status", {}).get("containerStatuses", []) if status["name"] == container), {})
    ended: Json = found.get("state", {}).get("terminated") or {}
    return ended


def _has_ended_well(pod: Json, container: str) -> bool:
    return _ended(pod, container).get("exitCode") == 0


def _last_word(pod: Json, container: str) -> dict[str, Any]:
    lines = str(_ended(pod, container).get("message", "")).strip().splitlines()
    return parsed(lines[-1]) if lines else {}


def _setback(pods: Sequence[Json], container: str) -> str | None:
    """How the newest of the pods that failed has ended, as far as it is still there."""
    failed = [pod for pod in pods if pod.get("status", {}).get("phase") == "Failed"]
    if not failed:
        return None
    ended, word = _ended(failed[-1], container), _last_word(failed[-1], container)
    if _is_error(word):
        why = f"ended with {word['error']['reason']}: {word['error']['message']}"
    elif ended.get("reason") == "OOMKilled":
        why = "ran out of memory (spec.training.resources.limits.memory)"
    else:
        why = f"was ended by exit code {ended['exitCode']}" if "exitCode" in ended else "ended without a word"
    return f"the pod {failed[-1]['metadata']['name']} {why}"


def _job_problem(failed: Json, words: Sequence[Json], pods: Sequence[Json]) -> Problem:
    errors = [word["error"] for word in reversed(words) if _is_error(word)]
    # That the head has gone is what a submitter sees when the training is ended: the cause is told elsewhere, where it is.
    error = next((error for error in errors if error["reason"] != "HeadLost"), None)
    if error is None and errors and failed.get("reason") != "DeadlineExceeded":
        error = errors[0]
    if error:
        return Problem(error["reason"], error["message"])
    for pod in reversed(pods):
        for container in pod.get("status", {}).get("containerStatuses", []):
            ended = container.get("state", {}).get("terminated", {})
            if ended.get("reason") == "OOMKilled":
                message = (
                    "the container ran out of memory; allow more (spec.training.resources.limits.memory), or train with fewer environments"
                )
                return Problem("OutOfMemory", message)
    return Problem(failed.get("reason") or "TrainingFailed", failed.get("message") or "the Job failed without a word")


def _first_problem(pods: Sequence[Json], now: datetime, field: str) -> Problem | None:
    return next((problem for pod in pods for problem in [_pod_problem(pod, now, field)] if problem), None)


def _pod_problem(pod: Json, now: datetime, field: str) -> Problem | None:
    """Why a pod does not start, in words for the user of a PolicyModel."""
    name, status = pod["metadata"]["name"], pod.get("status", {})
    for container in status.get("containerStatuses", []):
        waiting = container.get("state", {}).get("waiting", {})
        reason, message = waiting.get("reason", ""), waiting.get("message", "")
        if reason in ("ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull"):
            advice = f"check {field}.image and spec.imagePullSecrets"
            why = f"the image {container['image']} cannot be pulled for the pod {name} ({message or reason})"
            return Problem("ImagePullFailed", f"{why}; {advice}")
        if reason in ("CreateContainerConfigError", "CreateContainerError", "RunContainerError"):
            return Problem("PodNotStarted", f"the pod {name} cannot start: {message or reason}; check {field}.template")
        if reason == "CrashLoopBackOff":
            last = container.get("lastState", {}).get("terminated", {})
            said = f"{last.get('reason', '')} (exit code {last.get('exitCode', '?')})"
            return Problem("PodCrashes", f"the pod {name} crashes again and again: {said}; read kubectl logs --previous {name}")
    for condition in status.get("conditions", []):
        if condition["type"] == "PodScheduled" and condition["status"] == "False" and _age_s(condition, now) > SCHEDULING_GRACE_S:
            return Problem(
                "Unschedulable",
                f"no node takes the pod {name}: {condition.get('message', '')}; check {field}.resources and {field}.template",
            )
    return None


def _age_s(condition: Json, now: datetime) -> float:
    since = condition.get("lastTransitionTime")
    return (now - datetime.fromisoformat(since)).total_seconds() if since else 0.0


def _application_problem(status: Json, application: str) -> Problem | None:
    for key in ("activeServiceStatus", "pendingServiceStatus"):
        found = status.get(key, {}).get("applicationStatuses", {}).get(application, {})
        if found.get("status") in ("DEPLOY_FAILED", "UNHEALTHY"):
            return Problem(
                "ServeFailed", f"the Serve application {application} is {found['status']}: {_first_line(found.get('message', ''))}"
            )
    return None


def _first_line(text: str) -> str:
    return next((line for line in text.splitlines() if line.strip()), "")[:500]
