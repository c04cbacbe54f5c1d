"""Kubernetes: observe() and apply(). The only module that talks to the API server and to the replicas.

Existence is decided by GET and LIST here, never by what a watch has shown. May not decide anything.
"""

from __future__ import annotations

import logging
import threading
import uuid
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from kubernetes import client, config
from kubernetes.dynamic import DynamicClient
from kubernetes.dynamic.exceptions import ApiException, ForbiddenError, NotFoundError, ResourceNotFoundError
from urllib3.exceptions import HTTPError

from controller import capacity, names, observation, resources, words
from controller import status as statuses
from controller.loop import ActionRefused, Key, NotObserved
from controller.model import (
    Action,
    Apply,
    Capacity,
    Create,
    Delete,
    Event,
    ForgetPending,
    JobState,
    Observed,
    Owner,
    RayServiceState,
    Replicas,
    Rival,
    Status,
    Unknown,
)
from controller.replicas import replicas_at
from controller.spec import Json, Spec, spec_of

API_TIMEOUT_S = (5, 30)
REPLICAS_TIMEOUT_S = (2, 5)
# The kubelet of the pod answers, and its node may be in trouble.
LOG_TIMEOUT_S = (2, 5)
# The second is read where the first holds no progress: an environment that prints each step leaves much behind it.
LOG_TAILS = (40, 5000)
LOG_BYTES = 1024 * 1024

_API_VERSIONS = {
    names.KIND: names.API_VERSION,
    "Job": "batch/v1",
    "Pod": "v1",
    "Event": "v1",
    "PersistentVolumeClaim": "v1",
    "Ingress": "networking.k8s.io/v1",
    "RayService": "ray.io/v1",
    "RayCluster": "ray.io/v1",
    "RayJob": "ray.io/v1",
    "Node": "v1",
}


NOT_OVER = "status.phase!=Succeeded,status.phase!=Failed"


class Cluster:
    """The cluster that the operator runs in, or that the kubeconfig names.

    Args:
        looks_at_nodes: before a second cluster is asked for.
    """

    def __init__(self, *, looks_at_nodes: bool = True) -> None:
        self._looks_at_nodes = looks_at_nodes
        try:
            config.load_incluster_config()
        except config.ConfigException:
            config.load_kube_config()
        self._core = client.CoreV1Api()
        self._dynamic = DynamicClient(client.ApiClient())
        self._discovery = threading.Lock()
        self._resources: dict[str, Any] = {}

    def observe(self, key: Key) -> Observed | None:
        """Everything that a plan for one PolicyModel needs, or None where there is no such PolicyModel.

        Raises:
            ApiException: the API server could not say whether there is one.
            NotObserved: there is one, and the API server would not say what belongs to it.
        """
        namespace, name = key
        document = self._get(names.KIND, namespace, name)
        if document is None:
            return None
        metadata, now = document["metadata"], datetime.now(UTC)
        owner = Owner(namespace, name, metadata["uid"], metadata["generation"])
        status = statuses.status_of(document.get("status", {}))
        try:
            return self._observed(owner, document, status, now)
        except (ApiException, ResourceNotFoundError, HTTPError) as error:
            raise NotObserved(owner, status, now, _in_words(error)) from error

    def _observed(self, owner: Owner, document: Json, status: Status, now: datetime) -> Observed:
        namespace, name, metadata, spec = owner.namespace, owner.name, document["metadata"], spec_of(document)
        # Jobs before their pods: a Job that has finished is read with the last word of its pod.
        jobs = self._list("Job", namespace, f"{names.LABEL_NAME}={name}")
        ray_jobs = self._ray_jobs(owner, spec)
        pods = self._list("Pod", namespace, f"{names.LABEL_NAME}={name}")
        ray_service, serving = self._ray_service(owner, spec, status, now)
        claim = None if spec.storage.s3 else self._get("PersistentVolumeClaim", namespace, resources.claim_name(owner, spec))
        ingress = self._get("Ingress", namespace, name)
        return Observed(
            now=now,
            owner=owner,
            spec=spec,
            status=status,
            created=metadata["creationTimestamp"],
            deleting="deletionTimestamp" in metadata,
            jobs=(*self._job_states(owner, jobs, pods, now), *self._ray_job_states(owner, ray_jobs, pods, now)),
            claim=observation.claim_state(claim, owner, self._events(claim) if observation.is_unbound(claim) else []) if claim else None,
            ray_service=serving,
            ingress=observation.ingress_state(ingress, owner) if ingress else None,
            replicas=self._replicas(owner, spec, ray_service) if ray_service else None,
            rivals=tuple(self._rivals(owner, spec)),
            free=self._free(owner) if self._looks_at_nodes and serving and _changes_the_pods(serving, spec, status) else None,
            requests=observation.requests(metadata),
        )

    def apply(self, owner: Owner, action: Action) -> None:
        """Does one thing.

        Raises:
            ActionRefused: the API server would not, and why.
        """
        try:
            resource = self._resource(action.kind)
            if isinstance(action, Create):
                resource.create(body=action.manifest, namespace=owner.namespace, _request_timeout=API_TIMEOUT_S)
            elif isinstance(action, Apply):
                resource.server_side_apply(
                    body=action.manifest,
                    namespace=owner.namespace,
                    field_manager=action.field_manager,
                    force_conflicts=True,
                    _request_timeout=API_TIMEOUT_S,
                )
            elif isinstance(action, ForgetPending):
                resource.status.patch(
                    body={"status": {"pendingServiceStatus": None}},
                    name=action.name,
                    namespace=owner.namespace,
                    content_type="application/merge-patch+json",
                    _request_timeout=API_TIMEOUT_S,
                )
            else:
                self._delete(owner, action)
        except (ApiException, ResourceNotFoundError) as error:
            raise ActionRefused(f"{type(action).__name__} {action.kind} {action.name}: {_in_words(error)}") from error

    def publish(self, owner: Owner, status: Status, events: Iterable[Event]) -> None:
        """Writes the status, then its events. A PolicyModel that has gone meanwhile needs neither.

        An event that is refused (in a namespace that is on its way out, say) is lost, and the log says so: the status tells the state.
        """
        body = {
            "apiVersion": names.API_VERSION,
            "kind": names.KIND,
            "metadata": {"name": owner.name, "namespace": owner.namespace, "uid": owner.uid},
            "status": statuses.document_of(status),
        }
        try:
            self._resource(names.KIND).status.server_side_apply(
                body=body,
                name=owner.name,
                namespace=owner.namespace,
                field_manager=names.FIELD_MANAGER,
                force_conflicts=True,
                _request_timeout=API_TIMEOUT_S,
            )
        except NotFoundError:
            return
        for event in events:
            try:
                self._record(owner, event)
            except ApiException as error:
                lost = f"{event.reason}: {event.message}"
                logging.getLogger(__name__).warning("%s/%s: no event %r: %s", owner.namespace, owner.name, lost, _in_words(error))

    def keys(self, namespaces: Sequence[str]) -> list[Key]:
        """Every PolicyModel there is, in these namespaces or, where none is named, in all."""
        return [(document["metadata"]["namespace"], document["metadata"]["name"]) for document in self._documents(namespaces)]

    def statuses(self, namespaces: Sequence[str]) -> list[tuple[Key, Status]]:
        """What was last written of every PolicyModel in these namespaces or, where none is named, in all; the unreadable are left out."""
        found: list[tuple[Key, Status]] = []
        for document in self._documents(namespaces):
            key = (document["metadata"]["namespace"], document["metadata"]["name"])
            try:
                found.append((key, statuses.status_of(document.get("status", {}))))
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                logging.getLogger(__name__).warning("%s/%s: its status cannot be read: %r", *key, error)
        return found

    def driven_by(self, namespace: str, ray_service: str) -> list[Key]:
        """The PolicyModels that a RayService serves."""
        return [
            (namespace, document["metadata"]["name"])
            for document in self._list(names.KIND, namespace)
            if ray_service == document["spec"]["serving"].get("rayService", document["metadata"]["name"])
        ]

    def _documents(self, namespaces: Sequence[str]) -> list[dict[str, Any]]:
        if not namespaces:
            return self._list(names.KIND, None)
        found: list[dict[str, Any]] = []
        for namespace in namespaces:
            try:
                found += self._list(names.KIND, namespace)
            except ApiException as error:
                # One that has gone, and its rights with it, keeps no other from being looked after.
                logging.getLogger(__name__).warning("the PolicyModels of %s: %s", namespace, _in_words(error))
        return found

    def _resource(self, kind: str) -> Any:
        """The API of a kind. The discovery behind it is no work for several threads at once: it forgets what it knows to look again.

        Raises:
            ResourceNotFoundError: the API server does not know the kind, or could not say.
        """
        with self._discovery:
            if kind not in self._resources:
                self._resources[kind] = self._dynamic.resources.get(api_version=_API_VERSIONS[kind], kind=kind)
            return self._resources[kind]

    def _get(self, kind: str, namespace: str, name: str) -> dict[str, Any] | None:
        try:
            found = self._resource(kind).get(name=name, namespace=namespace, _request_timeout=API_TIMEOUT_S)
        except NotFoundError:
            return None
        return dict(found.to_dict())

    def _list(self, kind: str, namespace: str | None, labels: str | None = None, fields: str | None = None) -> list[dict[str, Any]]:
        found = self._resource(kind).get(namespace=namespace, label_selector=labels, field_selector=fields, _request_timeout=API_TIMEOUT_S)
        return [dict(item) for item in found.to_dict()["items"]]

    def _delete(self, owner: Owner, action: Delete) -> None:
        try:
            self._resource(action.kind).delete(
                name=action.name,
                namespace=owner.namespace,
                body={"propagationPolicy": "Foreground"},
                _request_timeout=API_TIMEOUT_S,
            )
        except NotFoundError:
            logging.getLogger(__name__).info("%s %s is gone already", action.kind, action.name)

    def _job_states(self, owner: Owner, jobs: list[dict[str, Any]], pods: list[dict[str, Any]], now: datetime) -> Iterable[JobState]:
        for job in jobs:
            if observation.is_owned(job, owner):
                of_job = [pod for pod in pods if observation.is_of_job(pod, job)]
                log = self._log(of_job, job["spec"]["template"]["spec"]["containers"][0]["name"])
                events = self._events(job) if observation.is_without_a_pod(job) else []
                yield observation.job_state(job, of_job, log, now, events)

    def _ray_jobs(self, owner: Owner, spec: Spec) -> list[dict[str, Any]]:
        try:
            return self._list("RayJob", owner.namespace, f"{names.LABEL_NAME}={owner.name}")
        except ResourceNotFoundError:
            # Without KubeRay there is none; the attempt to make one says so.
            return []
        except ForbiddenError:
            if spec.training.engine == names.RAY_JOB:
                raise
            # Rights of an earlier day do not allow it, and then none was made.
            return []

    def _ray_job_states(
        self, owner: Owner, ray_jobs: list[dict[str, Any]], pods: list[dict[str, Any]], now: datetime
    ) -> Iterable[JobState]:
        for job in ray_jobs:
            if observation.is_owned(job, owner):
                submitters = [pod for pod in pods if observation.is_of_job(pod, job)]
                awaited = observation.cluster_to_come(job)
                cluster = self._ray_clusters(owner, [awaited]).get(awaited) if awaited else None
                yield observation.ray_job_state(job, pods, self._log(submitters, names.ROLE_TRAIN), now, cluster)

    def _log(self, pods: list[dict[str, Any]], container: str) -> str | None:
        """The tail of the running pod's log, as far back as to its newest progress: that is news, not a fact to decide by.

        Returns:
            "" where no pod runs; None where one does and is not heard: its log cannot be read, or holds no progress among so much else.
        """
        # The node of one that is on its way out may be gone: its kubelet would be waited for.
        alive = [pod for pod in pods if "deletionTimestamp" not in pod["metadata"]]
        running = next((pod for pod in alive if pod.get("status", {}).get("phase") == "Running"), None)
        if running is None:
            return ""
        for lines in LOG_TAILS:
            try:
                log = self._tail(running["metadata"], container, lines)
            except (ApiException, HTTPError):
                return None
            is_whole = log.count(b"\n") < lines and len(log) < LOG_BYTES
            text = log.decode(errors="replace")
            if is_whole or words.last_progress(text):
                return text
        return None

    def _tail(self, metadata: Mapping[str, Any], container: str, lines: int) -> bytes:
        answer = self._core.read_namespaced_pod_log(
            metadata["name"],
            metadata["namespace"],
            container=container,
            tail_lines=lines,
            # The image may be its user's, and its lines of any length.
            limit_bytes=LOG_BYTES,
            _preload_content=False,
            _request_timeout=LOG_TIMEOUT_S,
        )
        return bytes(answer.data)

    def _events(self, involved: Mapping[str, Any]) -> list[dict[str, Any]]:
        metadata = involved["metadata"]
        return self._list("Event", metadata["namespace"], fields=f"involvedObject.uid={metadata['uid']}")

    def _ray_service(self, owner: Owner, spec: Spec, status: Status, now: datetime) -> tuple[dict[str, Any] | None, RayServiceState | None]:
        try:
            found = self._get("RayService", owner.namespace, resources.ray_service_name(owner, spec))
        except ResourceNotFoundError:
            # Without KubeRay there is none; the attempt to make one says so.
            found = None
        if found is None:
            return None, None
        names_of_clusters = observation.ray_clusters(found)
        pods = self._list("Pod", owner.namespace, f"ray.io/cluster in ({','.join(names_of_clusters)})") if names_of_clusters else []
        is_pending = "rayClusterName" in found.get("status", {}).get("pendingServiceStatus", {})
        is_read = is_pending or status.undone_switch is not None
        clusters = self._ray_clusters(owner, names_of_clusters) if is_read else {}
        return found, observation.ray_service_state(found, pods, owner, owner.name, now, clusters)

    def _ray_clusters(self, owner: Owner, names_of_clusters: Iterable[str]) -> dict[str, dict[str, Any]]:
        """Those that may be read: rights of an earlier day do not allow it, and then nothing is undone."""
        try:
            read = {name: self._get("RayCluster", owner.namespace, name) for name in names_of_clusters}
        except (ApiException, ResourceNotFoundError) as error:
            logging.getLogger(__name__).warning("the RayClusters of %s/%s: %s", owner.namespace, owner.name, _in_words(error))
            return {}
        return {name: cluster for name, cluster in read.items() if cluster}

    def _free(self, owner: Owner) -> tuple[Capacity, ...] | Unknown:
        """What the nodes have left; an operator that watches some namespaces only may not ask."""
        try:
            return capacity.capacities(self._list("Node", None), self._list("Pod", None, fields=NOT_OVER), owner)
        except (ApiException, ResourceNotFoundError) as error:
            return Unknown(_in_words(error))
        except ValueError as error:
            return Unknown(f"what the pods ask for: {error}")

    def _replicas(self, owner: Owner, spec: Spec, ray_service: Json) -> Replicas | Unknown | None:
        """What the replicas say of themselves, through the Service inside the cluster."""
        service = names.serve_service(ray_service["metadata"]["name"])
        has_endpoint = bool(ray_service.get("status", {}).get("numServeEndpoints"))
        url = f"http://{service}.{owner.namespace}.svc:{names.SERVE_PORT}{spec.serving.route}/v1/status"
        return replicas_at(url, has_endpoint, REPLICAS_TIMEOUT_S)

    def _rivals(self, owner: Owner, spec: Spec) -> Iterable[Rival]:
        if spec.serving.ray_service is None:
            # The RayService of one's own has no rival: who made it drives it.
            return
        for document in self._list(names.KIND, owner.namespace):
            metadata, named = document["metadata"], document["spec"]["serving"].get("rayService")
            if metadata["uid"] != owner.uid and spec.serving.ray_service == (named or metadata["name"]):
                yield Rival(metadata["name"], metadata["creationTimestamp"], is_maker=named is None)

    def _record(self, owner: Owner, event: Event) -> None:
        now = statuses.timestamp(datetime.now(UTC))
        body = {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"name": f"{owner.name}.{uuid.uuid4().hex[:16]}", "namespace": owner.namespace},
            "involvedObject": {
                "apiVersion": names.API_VERSION,
                "kind": names.KIND,
                "name": owner.name,
                "namespace": owner.namespace,
                "uid": owner.uid,
            },
            "type": event.type,
            "reason": event.reason,
            "message": event.message[:1024],
            "source": {"component": names.FIELD_MANAGER},
            "firstTimestamp": now,
            "lastTimestamp": now,
            "count": 1,
        }
        self._resource("Event").create(body=body, namespace=owner.namespace, _request_timeout=API_TIMEOUT_S)


def _changes_the_pods(serving: RayServiceState, spec: Spec, status: Status) -> bool:
    """Whether the nodes matter now: to read all pods of a cluster is much."""
    asked, undone = resources.serving_hash(spec), status.undone_switch
    return spec.serving.ray_service is None and serving.hash not in (None, asked) and not (undone and undone.hash == asked)


def _in_words(error: Exception) -> str:
    if isinstance(error, ResourceNotFoundError):
        return "the API server does not know this kind; is KubeRay installed?"
    body = words.parsed(getattr(error, "body", None) or "")
    return str(body.get("message") or getattr(error, "reason", None) or error)
