"""Turns objects of the Kubernetes API into facts. Pure: it asks nobody, and it decides nothing about what is done."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from controller import names
from controller.model import ChildState, JobState, Owner, Problem, RayServiceState, Request
from controller.pods import first_line, first_problem, has_ended_well, job_problem, last_word, setback
from controller.spec import Json
from controller.words import is_result, last_attempt, last_progress, last_search, parsed

# KubeRay says something of a new object within a second or two.
KUBERAY_GRACE_S = 60
# Of each claim of a request: it is kept in the status.
REQUEST_CHARACTERS = 253


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


def job_state(job: Json, pods: Sequence[Json], log: str | None, now: datetime, events: Sequence[Json] = ()) -> JobState:
    """A Job of ours.

    Args:
        pods: the pods of this Job, in any order.
        log: the tail of what its running pod has written; "" where none runs, None where one does that is not heard.
        events: of the Job, read only where it has no pod now.
    """
    status = job.get("status", {})
    ended = {condition["type"]: condition for condition in status.get("conditions", []) if condition["status"] == "True"}
    container = job["spec"]["template"]["spec"]["containers"][0]
    end = _End(ended.get("Failed"), "Complete" in ended)
    attempt = max(1, status.get("failed", 0) + status.get("active", 0) + status.get("succeeded", 0))
    return _state(names.JOB, job, container, end, attempt, pods, (), log, now, _job_creation_problem(job, events))


def ray_job_state(job: Json, pods: Sequence[Json], log: str | None, now: datetime, cluster: Json | None = None) -> JobState:
    """A RayJob of ours.

    Args:
        pods: those of its submitter, which bear the Job's name that KubeRay gave them, and of its cluster, among others.
        log: the tail of what its running submitter has written; "" where none runs, None where one does that is not heard.
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
            return _End({"reason": reason, "message": first_line(status.get("message", ""))})
    return _End()


def _state(
    kind: str,
    job: Json,
    container: Json,
    end: _End,
    attempt: int,
    pods: Sequence[Json],
    nodes: Sequence[Json],
    log: str | None,
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
    said_so_far = log or ""
    progress, told_attempt = last_progress(said_so_far), last_attempt(said_so_far)
    by_age = sorted(pods, key=lambda pod: str(pod["metadata"].get("creationTimestamp", "")))
    words = [word for pod in by_age for word in [last_word(pod, container["name"])] if word]
    said = next((word["result"] for word in reversed(words) if is_result(word, labels[names.LABEL_ROLE])), None)
    if kind == names.RAY_JOB and end.failed and said:
        # Its submitter saw the run end well: KubeRay may have been away too long to see it, and says then that it failed.
        end = _End(is_complete=True)
    result = said if end.is_complete else None
    # Of an attempt that failed there is no result to miss: the pod that ended well may be gone while this one is still there.
    if end.is_complete and result is None and any(has_ended_well(pod, container["name"]) for pod in by_age):
        advice = "spec.training.image has to be made from the operator's training image"
        problem: Problem | None = Problem("NoResult", f"the {kind} {metadata['name']} ended well but said no result; {advice}")
    elif end.failed:
        problem = job_problem(end.failed, words, [*nodes, *by_age])
    else:
        # A training that gets on is not stuck, whatever becomes of one of its workers.
        problem = first_problem(by_age if progress else [*by_age, *nodes], now, "spec.training") or hindrance
    return JobState(
        name=metadata["name"],
        role=labels[names.LABEL_ROLE],
        run=labels.get(names.LABEL_RUN, ""),
        evaluation=labels.get(names.LABEL_EVALUATION),
        phase="Failed" if end.failed else "Succeeded" if end.is_complete else "Running",
        deleting="deletionTimestamp" in metadata,
        hash=annotations.get(names.ANNOTATION_HASH),
        replaces=annotations.get(names.ANNOTATION_REPLACES),
        attempt=max(attempt, told_attempt),
        start_time=job.get("status", {}).get("startTime"),
        image=container["image"],
        result=result,
        problem=problem,
        progress=progress,
        prunes=prunes(metadata),
        kind=kind,
        setback=setback(by_age, container["name"], attempt, told_attempt),
        search=last_search(said_so_far),
        is_unheard=log is None,
    )


def prunes(metadata: Json) -> tuple[str, ...]:
    """The digests that a Job removes."""
    return tuple(metadata.get("annotations", {}).get(names.ANNOTATION_PRUNES, "").split())


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
        first_problem(pods, now, "spec.serving") or _creation_problem(prepared, "spec.serving") or _application_problem(status, application)
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


def _application_problem(status: Json, application: str) -> Problem | None:
    for key in ("activeServiceStatus", "pendingServiceStatus"):
        found = status.get(key, {}).get("applicationStatuses", {}).get(application, {})
        if found.get("status") in ("DEPLOY_FAILED", "UNHEALTHY"):
            return Problem(
                "ServeFailed", f"the Serve application {application} is {found['status']}: {first_line(found.get('message', ''))}"
            )
    return None
