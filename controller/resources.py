"""Pure builders of every manifest that the operator writes.

May not read anything but its arguments, and may not change them. What a change here does to a running cluster:
`ray_service` is applied only when `serving_hash` changes, which is made from the user's fields alone; so an upgrade of the operator
never re-renders `rayClusterConfig` (KubeRay would build a second cluster for everybody).
"""

from __future__ import annotations

import dataclasses
import json
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from controller import names
from controller.model import Images, Owner, Revision, Settings
from controller.spec import Json, Look, Spec, TrackingSpec

RAY_VERSION = "2.60.0"
STORAGE_PATH = "/storage"
# Where a replica finds the claim of spec.serving.decisionLog; app.serving.decision_log knows it too.
DECISIONS_PATH = "/decisions"
S3_SECRET_PATH = "/var/run/secrets/policymodel.dev/s3"
# The key in the user's Secret, in the format of AWS's shared credentials file.
S3_CREDENTIALS = "credentials"
# Seconds that a training Job gets beyond spec.training.stop.timeSeconds, for start-up, export and evaluation.
START_AND_EXPORT_S = 900
EVALUATION_DEADLINE_S = 3600
PRUNE_DEADLINE_S = 3600
PRUNE_BACKOFF_LIMIT = 3
# Removing files takes no more, whatever a training does.
PRUNE_RESOURCES: Json = {"requests": {"cpu": "50m", "memory": "128Mi"}, "limits": {"memory": "1Gi"}}

# A submitter waits, and says what it hears.
SUBMITTER_RESOURCES: Json = {"requests": {"cpu": "50m", "memory": "128Mi"}, "limits": {"memory": "512Mi"}}
PLAIN_RESOURCES = ("cpu", "memory", "ephemeral-storage")
OBJECT_STORE_BYTES = "134217728"

# Ray starts workers at nice 15, behind everything else on the node.
SERVE_ENVIRONMENT = {"RAY_SERVE_THROUGHPUT_OPTIMIZED": "1", "RAY_worker_niceness": "0"}
# HAProxy in place of Serve's Python proxy takes a query from 60 ms to 5 ms at 4 connections, and the door in each replica doubles its rate.
HAPROXY_ENVIRONMENT = {
    "RAY_SERVE_ENABLE_HA_PROXY": "1",
    "RAY_SERVE_HAPROXY_NBTHREAD": "1",
    # Acting is idempotent, so HAProxy may ask another replica where one is killed in the middle of an answer.
    "RAY_SERVE_HAPROXY_RETRY_ON": "conn-failure empty-response",
    # Above a quarter of the file descriptors that this allows for, HAProxy keeps no connection to a replica alive: each request then
    # opens and resets one, which takes a third of the throughput, and uvicorn holds what belonged to it for 90 s. HAProxy asks for 2.5
    # descriptors a connection and does not start without them, so this is no more than any node allows a pod.
    "RAY_SERVE_HAPROXY_MAXCONN": "7000",
    # A client that says nothing is given up after an hour otherwise. Connections that wait for their next request have 90 s of their own.
    "RAY_SERVE_HAPROXY_TIMEOUT_CLIENT_S": "60",
    # A line of log for each request, read by a Python process: the replicas count for themselves.
    "RAY_SERVE_HAPROXY_METRICS_ENABLED": "0",
    # Another one goes to a UDP port of syslog that nobody in the pod listens at, for a fifth of HAProxy's time: now one in a million does.
    # HAProxy must have a target, and tells in its log of errors of each that refuses (/dev/null does: it would have to be a socket).
    "RAY_SERVE_HAPROXY_LOG_TARGET": "127.0.0.1:514 sample 1:1000000",
    "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "app.door:middlewares",
}
DEFAULT_HEAD_RESOURCES: Json = {"requests": {"cpu": "300m", "memory": "2Gi"}}

_CONTAINER_SECURITY = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}, "readOnlyRootFilesystem": True}
_POD_SECURITY = {
    "runAsNonRoot": True,
    "runAsUser": 1000,
    "runAsGroup": 1000,
    "fsGroup": 1000,
    "fsGroupChangePolicy": "OnRootMismatch",
    "seccompProfile": {"type": "RuntimeDefault"},
}


def storage_uri(owner: Owner, spec: Spec, settings: Settings) -> str:
    s3 = spec.storage.s3
    if s3 and settings.in_cluster:
        return f"s3://{s3.bucket}/{s3.prefix}/{owner.namespace}/{owner.name}"
    return f"{settings.storage_root}/{owner.namespace}/{owner.name}"


def claim_name(owner: Owner, spec: Spec) -> str:
    return spec.storage.existing_claim or names.claim(owner.name)


def ray_service_name(owner: Owner, spec: Spec) -> str:
    return spec.serving.ray_service or owner.name


def url(owner: Owner, spec: Spec, settings: Settings) -> str:
    """Where queries are answered: the Ingress, or else the Service inside the cluster."""
    ingress = spec.serving.ingress
    if settings.in_cluster and ingress:
        base = f"{'https' if ingress.tls_secret_name else 'http'}://{ingress.host}"
    else:
        base = settings.base_url or f"http://{names.serve_service(ray_service_name(owner, spec))}.{owner.namespace}.svc:{names.SERVE_PORT}"
    return base + spec.serving.route


def job_hash(spec: Spec) -> str:
    """A hash of the user's fields that decide whether a Job gets through, and not what it learns: a run's name does not tell them."""
    training = spec.training
    fields = {
        "resources": training.resources,
        "template": training.template,
        "backoffLimit": training.backoff_limit,
        "imagePullSecrets": list(spec.image_pull_secrets),
        "s3": _s3_access(spec),
        "engine": training.engine if training.engine != names.JOB else None,
        "tracking": dataclasses.asdict(training.tracking) if training.tracking != TrackingSpec() else None,
    }
    return names.digest_of({key: value for key, value in fields.items() if value})


def training_name(owner: Owner, spec: Spec, settings: Settings) -> str:
    return names.training_ray_job(owner.name, spec.run) if is_ray_job(spec, settings) else names.training_job(owner.name, spec.run)


def is_ray_job(spec: Spec, settings: Settings) -> bool:
    """One machine has no nodes to spread over: `policymodel run` trains in a process, whichever engine is asked for."""
    return spec.training.engine == names.RAY_JOB and settings.in_cluster


def training_job(
    owner: Owner,
    spec: Spec,
    settings: Settings,
    images: Images,
    replaces: str | None = None,
    against: str | None = None,
    begins_with: Revision | None = None,
) -> Json:
    """The Job, or the RayJob, that trains, publishes and evaluates the run that the spec asks for.

    Args:
        replaces: the digest that the run was published with, where its bundle is lost.
        against: the digest that the gate compares it with, if any.
        begins_with: the revision that a warm start goes on from.
    """
    training = spec.training
    arguments = {
        "--storage": storage_uri(owner, spec, settings),
        "--run": spec.run,
        "--environment": json.dumps(spec.environment),
        "--config": json.dumps(training.config),
        "--stop": json.dumps(training.stop),
        "--workers": str(training.workers),
        "--seed": str(spec.seed),
        "--checkpoint-every": str(training.checkpoint_every),
        "--evaluation": _evaluation(spec.looks(spec.run, against)[0]),
    }
    if training.search:
        arguments["--search"] = json.dumps(training.search)
    if begins_with:
        arguments["--warm-start"] = json.dumps({"run": begins_with.run, "digest": begins_with.digest})
    if training.tracking != TrackingSpec():
        arguments["--tracking"] = json.dumps(_tracking(owner, training.tracking))
    deadline_s = (training.stop["timeSeconds"] + START_AND_EXPORT_S) * (training.backoff_limit + 1)
    annotations = {names.ANNOTATION_REPLACES: replaces} if replaces else {}
    if is_ray_job(spec, settings):
        words = [*_flags(arguments | {"--engine": names.RAY_JOB}), *_allow_list(settings)]
        return _ray_job(words, owner, spec, settings, training.image or images.training, deadline_s, annotations)
    return _job(
        names.training_job(owner.name, spec.run),
        names.ROLE_TRAIN,
        {names.LABEL_RUN: spec.run},
        ["-m", "app.train", *_flags(arguments), *_allow_list(settings)],
        owner,
        spec,
        training.image or images.training,
        training.resources,
        backoff_limit=training.backoff_limit,
        deadline_s=deadline_s,
        annotations=annotations,
        secret=_tracking_secret(spec),
    )


def _ray_job(
    words: list[str], owner: Owner, spec: Spec, settings: Settings, image: str, deadline_s: int, annotations: Mapping[str, str]
) -> Json:
    """The same training as a Ray job, on a cluster of its own.

    The driver runs on the head and learns there; each worker pod has room for one env runner. KubeRay makes a Job of the submitter's pod,
    which says what the driver says (`app.submit`): it is what a training Job's pod is to the operator, and its attempts are the run's. A
    new attempt goes to the same cluster; a head that is lost is made anew in it.
    """
    training = spec.training
    labels = {names.LABEL_RUN: spec.run}
    head = {**_ray_container("ray-head", image, spec, training.resources, _storage_mounts(spec)), **_env_from(_tracking_secret(spec))}
    worker = _ray_container("ray-worker", image, spec, _without_devices(training.resources), [])
    submitter = {
        **_training_container(names.ROLE_TRAIN, image, ["-m", "app.submit", *words], spec, SUBMITTER_RESOURCES),
        "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}],
    }
    runner = _pod(worker, names.ROLE_ENV_RUNNER, owner, spec, training.template, stores=False)
    runner["spec"]["topologySpreadConstraints"] = [_apart(runner["metadata"]["labels"])]
    group = {
        "groupName": "env-runners",
        "replicas": training.workers,
        "minReplicas": training.workers,
        "maxReplicas": training.workers,
        "rayStartParams": {"num-cpus": "1", "num-gpus": "0", "object-store-memory": OBJECT_STORE_BYTES, "disable-usage-stats": "true"},
        "template": runner,
    }
    cluster = {
        "rayVersion": RAY_VERSION,
        "enableInTreeAutoscaling": False,
        "authOptions": {"mode": "disabled"},
        "headGroupSpec": {
            # No env runner finds room here: the driver learns.
            "rayStartParams": {
                "dashboard-host": "0.0.0.0",
                "num-cpus": "0",
                "object-store-memory": OBJECT_STORE_BYTES,
                "disable-usage-stats": "true",
            },
            "template": _pod(head, names.ROLE_LEARNER, owner, spec, training.template),
        },
        **({"workerGroupSpecs": [group]} if training.workers else {}),
    }
    pod = _pod(submitter, names.ROLE_TRAIN, owner, spec, training.template, stores=False)
    pod["metadata"]["labels"].update(labels)
    pod["spec"]["restartPolicy"] = "Never"
    metadata = _metadata(training_name(owner, spec, settings), owner, annotations={names.ANNOTATION_HASH: job_hash(spec), **annotations})
    metadata["labels"].update({names.LABEL_ROLE: names.ROLE_TRAIN, **labels})
    return {
        "apiVersion": "ray.io/v1",
        "kind": names.RAY_JOB,
        "metadata": metadata,
        "spec": {
            "submissionMode": "K8sJobMode",
            "entrypoint": shlex.join(["python", "-m", "app.train", *words]),
            "shutdownAfterJobFinishes": True,
            "activeDeadlineSeconds": deadline_s,
            "submitterConfig": {"backoffLimit": training.backoff_limit},
            "submitterPodTemplate": pod,
            "rayClusterSpec": cluster,
        },
    }


def _ray_container(name: str, image: str, spec: Spec, wanted_resources: Json, mounts: list[Json]) -> dict[str, Any]:
    """A node of the Ray cluster that trains; KubeRay gives the command."""
    container = _training_container(name, image, [], spec, wanted_resources)
    container["volumeMounts"] = [*mounts, {"name": "tmp", "mountPath": "/tmp"}]
    return {key: value for key, value in container.items() if key not in ("command", "args")}


def _apart(labels: Json) -> Json:
    """Brings the pods with our labels to different nodes, as far as there are nodes with room."""
    selector = {"matchLabels": {name: labels[name] for name in (names.LABEL_NAME, names.LABEL_ROLE)}}
    return {"maxSkew": 1, "topologyKey": "kubernetes.io/hostname", "whenUnsatisfiable": "ScheduleAnyway", "labelSelector": selector}


def _without_devices(wanted: Json) -> Json:
    """Resources but for GPUs and their like: those are the learner's."""
    return {kind: {name: amount for name, amount in quantities.items() if name in PLAIN_RESOURCES} for kind, quantities in wanted.items()}


def evaluation_job(owner: Owner, spec: Spec, settings: Settings, images: Images, revision: Revision, look: Look) -> Json:
    """The Job that evaluates a published policy as the gate asks today, without training."""
    training = spec.training
    arguments = {
        "--storage": storage_uri(owner, spec, settings),
        "--digest": revision.digest,
        "--evaluation": _evaluation(look),
    }
    return _job(
        names.evaluation_job(owner.name, look.id),
        names.ROLE_EVALUATE,
        {names.LABEL_RUN: revision.run, names.LABEL_EVALUATION: look.id},
        ["-m", "app.evaluate", *_flags(arguments), *_allow_list(settings)],
        owner,
        spec,
        training.image or images.training,
        training.resources,
        backoff_limit=training.backoff_limit,
        deadline_s=EVALUATION_DEADLINE_S,
    )


def prune_job(owner: Owner, spec: Spec, settings: Settings, digests: Sequence[str]) -> Json:
    """The Job that removes policies from the storage. Its image is the operator's own of today: one of the user's, or of an earlier day,
    may not know how."""
    return _job(
        names.prune_job(owner.name, digests),
        names.ROLE_PRUNE,
        {},
        ["-m", "app.prune", "--storage", storage_uri(owner, spec, settings), "--delete", *digests],
        owner,
        spec,
        settings.training_image,
        PRUNE_RESOURCES,
        backoff_limit=PRUNE_BACKOFF_LIMIT,
        deadline_s=PRUNE_DEADLINE_S,
        annotations={names.ANNOTATION_PRUNES: " ".join(digests)},
    )


def claim(owner: Owner, spec: Spec) -> Json:
    """The claim for checkpoints, bundles and evaluations. `deletionPolicy: Retain` leaves it without an owner, so it outlives us."""
    storage = spec.storage
    claim_spec: dict[str, Any] = {
        "accessModes": list(storage.access_modes),
        "resources": {"requests": {"storage": storage.size}},
    }
    if storage.storage_class_name:
        claim_spec["storageClassName"] = storage.storage_class_name
    metadata = _metadata(names.claim(owner.name), owner, owned=storage.deletion_policy == "Delete")
    return _hashed({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": metadata, "spec": claim_spec})


def claim_as_it_is(desired: Json, live: Json) -> Json:
    """The wanted claim with the spec that the living one has: a claim's spec is immutable, and one that was kept may have another."""
    kept = {name: live["spec"][name] for name in ("accessModes", "resources", "storageClassName") if name in live.get("spec", {})}
    return {**desired, "spec": kept}


def ingress(owner: Owner, spec: Spec) -> Json:
    """The Ingress for the route. Only `spec.serving.ingress` may be asked for it to be built."""
    wanted = spec.serving.ingress
    assert wanted is not None
    service = {"name": names.serve_service(ray_service_name(owner, spec)), "port": {"number": names.SERVE_PORT}}
    path = {"path": spec.serving.route, "pathType": "Prefix", "backend": {"service": service}}
    ingress_spec: dict[str, Any] = {"rules": [{"host": wanted.host, "http": {"paths": [path]}}]}
    if wanted.class_name:
        ingress_spec["ingressClassName"] = wanted.class_name
    if wanted.tls_secret_name:
        ingress_spec["tls"] = [{"hosts": [wanted.host], "secretName": wanted.tls_secret_name}]
    metadata = _metadata(owner.name, owner, annotations=wanted.annotations)
    return _hashed({"apiVersion": "networking.k8s.io/v1", "kind": "Ingress", "metadata": metadata, "spec": ingress_spec})


def serving_hash(spec: Spec) -> str:
    """A hash of the user's fields that shape the RayCluster: while it stays, the RayCluster stays."""
    serving = spec.serving
    fields = {
        "image": serving.image,
        "httpProxy": serving.http_proxy if serving.http_proxy != "HAProxy" else None,
        "resources": serving.resources,
        "template": serving.template,
        "imagePullSecrets": list(spec.image_pull_secrets),
        "existingClaim": spec.storage.existing_claim,
        "decisionLog": serving.decision_log.claim_name if serving.decision_log else None,
        # Where in the bucket the policy lies is told by serveConfigV2.
        "s3": _s3_access(spec),
    }
    return names.digest_of({key: value for key, value in fields.items() if value})


def ray_service(owner: Owner, spec: Spec, images: Images) -> Json:
    """The RayService, without `serveConfigV2`: that has a writer of its own (`serve_config`)."""
    config = {
        "rayVersion": RAY_VERSION,
        "authOptions": {"mode": "disabled"},
        "headGroupSpec": {
            # The replicas are processes of the head pod; each asks for 0.1 of these.
            "rayStartParams": {
                "dashboard-host": "0.0.0.0",
                "num-cpus": "8",
                "object-store-memory": OBJECT_STORE_BYTES,
                "disable-usage-stats": "true",
            },
            "template": _head_pod(owner, spec, images),
        },
    }
    return restored_ray_service(owner, serving_hash(spec), config)


def restored_ray_service(owner: Owner, hash_: str, config: Json) -> Json:
    """The RayService with the config that one of its clusters has.

    Args:
        hash_: of the user's fields that the config was made from.
    """
    return {
        "apiVersion": "ray.io/v1",
        "kind": "RayService",
        "metadata": _metadata(owner.name, owner, annotations={names.ANNOTATION_HASH: hash_}),
        "spec": {"rayClusterDeletionDelaySeconds": 60, "rayClusterConfig": config},
    }


def _head_pod(owner: Owner, spec: Spec, images: Images) -> Json:
    serving, template = spec.serving, spec.serving.template
    proxy = HAPROXY_ENVIRONMENT if serving.http_proxy == "HAProxy" else {}
    ports = {"gcs-server": 6379, "dashboard": 8265, "serve": names.SERVE_PORT, "metrics": 8080}
    healthz = {"httpGet": {"path": "/api/gcs_healthz", "port": "dashboard"}, "timeoutSeconds": 5}
    container = {
        "name": "ray-head",
        "image": serving.image or images.serving,
        "imagePullPolicy": "IfNotPresent",
        "env": _environment({"HOME": "/tmp", **SERVE_ENVIRONMENT, **proxy, **_s3_environment(spec)}, template),
        "ports": [{"name": name, "containerPort": port} for name, port in ports.items()],
        "resources": serving.resources or DEFAULT_HEAD_RESOURCES,
        # KubeRay's own probes need wget and bash in the image.
        "readinessProbe": {**healthz, "periodSeconds": 5, "failureThreshold": 10},
        "livenessProbe": {**healthz, "initialDelaySeconds": 30, "periodSeconds": 10, "failureThreshold": 12},
        "securityContext": _CONTAINER_SECURITY,
        "volumeMounts": [
            *_storage_mounts(spec, read_only=True),
            {"name": "tmp", "mountPath": "/tmp"},
            *([{"name": "decisions", "mountPath": DECISIONS_PATH}] if serving.decision_log else []),
        ],
    }
    pod = _pod(container, names.ROLE_SERVE, owner, spec, template)
    if serving.decision_log:
        pod["spec"]["volumes"].append({"name": "decisions", "persistentVolumeClaim": {"claimName": serving.decision_log.claim_name}})
    # A pod says which fields it was made from: KubeRay's status is too late to tell whether the pods that serve are the new ones.
    pod["metadata"]["annotations"] = {**pod["metadata"].get("annotations", {}), names.ANNOTATION_HASH: serving_hash(spec)}
    return pod


def manners(spec: Spec) -> Json:
    """How replicas are to answer, whichever policy does: `user_config` but for the policy."""
    serving = spec.serving
    return {
        "route": serving.route,
        "outOfBounds": serving.out_of_bounds,
        "maxBodyBytes": serving.max_body_bytes,
        "accessLog": serving.access_log,
    }


def serve_config(
    owner: Owner, spec: Spec, policy: Json | None, live: str = "", candidate: Json | None = None, revoked: str | None = None
) -> str:
    """The text of `serveConfigV2`: our application, and those of others that the live text holds.

    Args:
        policy: `{uri, digest, revision}` of the policy to serve, or None while there is no approved one.
        candidate: the same with `mode`, `weight` and `timeBudgetMilliseconds`, of the policy that is tried beside it.
        revoked: the digest of a policy that was taken back: replicas that have taken it over answer nobody by it, pinned or not.
        live: the text as it stands; only an adopted RayService has applications of others in it.
    """
    serving, scale = spec.serving, spec.serving.autoscaling
    user_config = {**manners(spec), "drainSeconds": spec.rollout.drain_s}
    if serving.decision_log:
        total_bytes = serving.decision_log.max_megabytes * 1024**2
        user_config["decisionLog"] = {"directory": f"{owner.namespace}/{owner.name}", "totalBytes": total_bytes}
    if policy:
        user_config["serving"] = dict(policy)
    if candidate:
        user_config["candidate"] = dict(candidate)
    if revoked:
        user_config["revoked"] = revoked
    replicas: dict[str, Any] = {"num_replicas": serving.replicas}
    if scale:
        counted = {"policy_function": "app.autoscaling:RequestsPerSecond", "policy_kwargs": {"target": scale.target_requests_per_second}}
        replicas = {"autoscaling_config": {"min_replicas": scale.least, "max_replicas": scale.most, "policy": counted}}
    application = {
        "name": owner.name,
        "import_path": "app.serve:build",
        "route_prefix": serving.route,
        "deployments": [
            {
                "name": names.DEPLOYMENT,
                **replicas,
                "user_config": user_config,
            }
        ],
    }
    settings = {
        "proxy_location": "EveryNode",
        "http_options": {"host": "0.0.0.0", "port": names.SERVE_PORT},
        "logging_config": {"encoding": "JSON", "enable_access_log": False},
    }
    config = parsed_serve_config(live)
    if not spec.serving.ray_service:
        return yaml.safe_dump({**settings, "applications": [application]}, sort_keys=False)
    others = _objects(config.get("applications"))
    ours = next((index for index, other in enumerate(others) if other.get("name") == owner.name), len(others))
    applications = [*others[:ours], application, *others[ours + 1 :]]
    return yaml.safe_dump({**settings, **config, "applications": applications}, sort_keys=False)


def serve_config_patch(owner: Owner, spec: Spec, text: str) -> Json:
    """What server-side apply writes for a rollout: `serveConfigV2`, and nothing else of the RayService."""
    metadata = {"name": ray_service_name(owner, spec), "namespace": owner.namespace}
    return {"apiVersion": "ray.io/v1", "kind": "RayService", "metadata": metadata, "spec": {"serveConfigV2": text}}


def parsed_serve_config(text: str) -> dict[str, Any]:
    """The parsed text of a live `serveConfigV2`, or {} where somebody wrote what is no mapping."""
    try:
        parsed = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError):
        # PyYAML lets a date such as 2026-02-30 and brackets a thousand deep through to Python.
        return {}
    return parsed if isinstance(parsed, dict) else {}


def served_policy(owner: Owner, text: str) -> Json | None:
    """The policy `{uri, digest, revision}` that a live `serveConfigV2` asks for, if any; its revision is None where none is named."""
    return _named_policy(owner, text, "serving")


def tried_policy(owner: Owner, text: str) -> Json | None:
    """The policy that a live `serveConfigV2` asks to be tried beside the one that serves, if any."""
    return _named_policy(owner, text, "candidate")


def _named_policy(owner: Owner, text: str, member: str) -> Json | None:
    for application in _objects(parsed_serve_config(text).get("applications")):
        for deployment in _objects(application.get("deployments")):
            if application.get("name") == owner.name and deployment.get("name") == names.DEPLOYMENT:
                config = deployment.get("user_config")
                named: Any = config.get(member) if isinstance(config, dict) else None
                match named:
                    case {"uri": str(), "digest": str()}:
                        return {"revision": None, **named}
    return None


def _objects(listed: Any) -> list[dict[str, Any]]:
    """The objects of a list in a text that anybody may have written."""
    return [found for found in listed if isinstance(found, dict)] if isinstance(listed, list) else []


def route_neighbour(owner: Owner, spec: Spec, text: str) -> str | None:
    """The application of somebody else that has our route in a live `serveConfigV2`: Serve would refuse two."""
    for application in _objects(parsed_serve_config(text).get("applications")):
        if application.get("name") != owner.name and application.get("route_prefix") == spec.serving.route:
            return str(application.get("name"))
    return None


def is_name_taken(owner: Owner, text: str) -> bool:
    """Whether a live `serveConfigV2` has an application of somebody else's under our name: without our deployment in it."""
    applications = [found for found in _objects(parsed_serve_config(text).get("applications")) if found.get("name") == owner.name]
    deployments = [deployment for found in applications for deployment in _objects(found.get("deployments"))]
    return bool(applications) and all(deployment.get("name") != names.DEPLOYMENT for deployment in deployments)


def is_covered(desired: Any, live: Any) -> bool:
    """Whether everything that `desired` says stands in `live`, in its order; what others added there is theirs.

    cert-manager puts the path of a challenge into an Ingress (`acme.cert-manager.io/http01-edit-in-place`): to write ours over it
    would be a quarrel without end. What we no longer ask for shows by the hash (`_hashed`).
    """
    if isinstance(desired, Mapping):
        return isinstance(live, Mapping) and all(key in live and is_covered(value, live[key]) for key, value in desired.items())
    if isinstance(desired, list):
        # Each item is looked for behind the one before it.
        rest = iter(live if isinstance(live, list) else [])
        return isinstance(live, list) and all(any(is_covered(item, found) for found in rest) for item in desired)
    return bool(desired == live)


def _job(
    name: str,
    role: str,
    labels: Mapping[str, str],
    arguments: list[str],
    owner: Owner,
    spec: Spec,
    image: str,
    wanted_resources: Json,
    *,
    backoff_limit: int,
    deadline_s: int,
    annotations: Mapping[str, str] | None = None,
    secret: str | None = None,
) -> Json:
    container = {**_training_container(role, image, arguments, spec, wanted_resources), **_env_from(secret)}
    container["volumeMounts"] = [
        *_storage_mounts(spec),
        {"name": "tmp", "mountPath": "/tmp"},
        {"name": "shm", "mountPath": "/dev/shm"},
    ]
    pod = _pod(container, role, owner, spec, spec.training.template)
    pod["metadata"]["labels"].update(labels)
    pod["spec"]["restartPolicy"] = "Never"
    pod["spec"]["terminationGracePeriodSeconds"] = 30
    pod["spec"]["volumes"].append({"name": "shm", "emptyDir": {"medium": "Memory"}})
    metadata = _metadata(name, owner, annotations={names.ANNOTATION_HASH: job_hash(spec), **(annotations or {})})
    metadata["labels"].update({names.LABEL_ROLE: role, **labels})
    # Exit code 2 says that the input is wrong and a retry cannot help; an eviction is nobody's fault and costs no attempt.
    rules = [
        {"action": "FailJob", "onExitCodes": {"containerName": role, "operator": "In", "values": [2]}},
        {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
    ]
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": metadata,
        "spec": {
            "backoffLimit": backoff_limit,
            "activeDeadlineSeconds": deadline_s,
            "podFailurePolicy": {"rules": rules},
            "podReplacementPolicy": "Failed",
            "template": pod,
        },
    }


def _training_container(name: str, image: str, arguments: list[str], spec: Spec, wanted_resources: Json) -> dict[str, Any]:
    return {
        "name": name,
        "image": image,
        "imagePullPolicy": "IfNotPresent",
        "command": ["python"],
        "args": arguments,
        "env": _environment({"HOME": "/tmp", **_s3_environment(spec)}, spec.training.template),
        "resources": wanted_resources,
        "securityContext": _CONTAINER_SECURITY,
    }


def _tracking(owner: Owner, tracking: TrackingSpec) -> Json:
    """What `--tracking` says."""
    server = tracking.mlflow
    if server is None:
        return {"tensorBoard": tracking.tensor_board}
    tags = {"namespace": owner.namespace, "name": owner.name}
    mlflow = {"trackingUri": server.tracking_uri, "experiment": server.experiment or f"{owner.namespace}/{owner.name}", "tags": tags}
    return {"tensorBoard": tracking.tensor_board, "mlflow": mlflow}


def _tracking_secret(spec: Spec) -> str | None:
    """Whose keys become variables of the container that trains."""
    server = spec.training.tracking.mlflow
    return server.secret_name if server else None


def _env_from(secret: str | None) -> Json:
    return {"envFrom": [{"secretRef": {"name": secret}}]} if secret else {}


def _pod(container: Json, role: str, owner: Owner, spec: Spec, template: Json, *, stores: bool = True) -> dict[str, Any]:
    """A pod with one container of ours.

    Args:
        stores: it reads or writes the storage: it has its volumes, and is placed where they can be mounted.
    """
    pod_spec: dict[str, Any] = {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": dict(_POD_SECURITY),
        "containers": [container],
        "volumes": [
            *(_storage_volumes(owner, spec) if stores else []),
            {"name": "tmp", "emptyDir": {}},
        ],
    }
    affinity = _affinity(owner, spec) if stores else None
    if affinity:
        pod_spec["affinity"] = affinity
    if spec.image_pull_secrets:
        pod_spec["imagePullSecrets"] = [{"name": secret} for secret in spec.image_pull_secrets]
    pod_spec |= {key: template[key] for key in ("nodeSelector", "tolerations", "priorityClassName", "runtimeClassName") if key in template}
    labels = {**template.get("labels", {}), names.LABEL_NAME: owner.name, names.LABEL_ROLE: role}
    metadata: dict[str, Any] = {"labels": labels}
    if template.get("annotations"):
        metadata["annotations"] = dict(template["annotations"])
    return {"metadata": metadata, "spec": pod_spec}


def _storage_mounts(spec: Spec, read_only: bool = False) -> list[Json]:
    """Where a container finds what the pod's volumes hold: the claim, or the credentials of the bucket if a Secret has them."""
    s3 = spec.storage.s3
    if s3 is None:
        return [{"name": "policies", "mountPath": STORAGE_PATH, **({"readOnly": True} if read_only else {})}]
    return [{"name": "s3-credentials", "mountPath": S3_SECRET_PATH, "readOnly": True}] if s3.secret_name else []


def _storage_volumes(owner: Owner, spec: Spec) -> list[Json]:
    s3 = spec.storage.s3
    if s3 is None:
        return [{"name": "policies", "persistentVolumeClaim": {"claimName": claim_name(owner, spec)}}]
    secret = {"secretName": s3.secret_name, "items": [{"key": S3_CREDENTIALS, "path": S3_CREDENTIALS}]}
    return [{"name": "s3-credentials", "secret": secret}] if s3.secret_name else []


def _s3_access(spec: Spec) -> Json | None:
    """How pods reach the bucket; None without one."""
    if spec.storage.s3 is None:
        return None
    access = dataclasses.asdict(dataclasses.replace(spec.storage.s3, bucket="", prefix=""))
    return {"kind": "S3"} | {name: value for name, value in access.items() if value not in ("", None)}


def _s3_environment(spec: Spec) -> dict[str, str]:
    """The variables that the app reads (`app.objects`): those of AWS's own tools, and one that they lack."""
    s3 = spec.storage.s3
    if s3 is None:
        return {}
    given = {
        "AWS_ENDPOINT_URL_S3": s3.endpoint,
        "AWS_REGION": s3.region,
        "AWS_SHARED_CREDENTIALS_FILE": f"{S3_SECRET_PATH}/{S3_CREDENTIALS}" if s3.secret_name else None,
        "POLICYMODEL_S3_PATH_STYLE": None if s3.path_style is None else str(s3.path_style).lower(),
    }
    return {name: value for name, value in given.items() if value is not None}


def _affinity(owner: Owner, spec: Spec) -> Json | None:
    """Brings the pods that share a claim to one node, where it can be mounted on one node only.

    A disk that is attached to a second node is refused (`Multi-Attach error`), and its pod waits in ContainerCreating without a word;
    one that the scheduler cannot place says so. The first pod of all goes anywhere: a pod that matches its own term is let through while
    no other does (https://kubernetes.io/docs/concepts/scheduling-eviction/assign-pod-node/#inter-pod-affinity-and-anti-affinity).
    """
    modes = spec.storage.access_modes
    if spec.storage.s3 or "ReadWriteMany" in modes:
        return None
    term = {"labelSelector": {"matchLabels": {names.LABEL_NAME: owner.name}}, "topologyKey": "kubernetes.io/hostname"}
    if modes:
        return {"podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [term]}}
    # A claim of others that was not seen yet: it may be mounted on many nodes.
    return {"podAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 100, "podAffinityTerm": term}]}}


def _metadata(name: str, owner: Owner, *, annotations: Mapping[str, str] | None = None, owned: bool = True) -> dict[str, Any]:
    metadata: dict[str, Any] = {
        "name": name,
        "namespace": owner.namespace,
        "labels": {names.LABEL_MANAGED_BY: names.FIELD_MANAGER, names.LABEL_NAME: owner.name},
    }
    if annotations:
        metadata["annotations"] = dict(annotations)
    if owned:
        metadata["ownerReferences"] = [
            {
                "apiVersion": names.API_VERSION,
                "kind": names.KIND,
                "name": owner.name,
                "uid": owner.uid,
                "controller": True,
                "blockOwnerDeletion": True,
            }
        ]
    return metadata


def _hashed(manifest: dict[str, Any]) -> Json:
    """The manifest with its own hash as an annotation: a field that is no longer asked for shows as a change, too."""
    annotations = {**manifest["metadata"].get("annotations", {}), names.ANNOTATION_HASH: names.digest_of(manifest)}
    return {**manifest, "metadata": {**manifest["metadata"], "annotations": annotations}}


def _evaluation(look: Look) -> str:
    asked = {"id": look.id, "episodes": look.episodes, "seed": look.seed}
    return json.dumps({**asked, "against": look.against} if look.against else asked)


def _environment(ours: Mapping[str, str], template: Json) -> list[Json]:
    """The variables of a container; the user's word counts where both have one. Ray writes its token, sockets and logs under HOME and
    /tmp."""
    by_name: dict[str, Json] = {name: {"name": name, "value": value} for name, value in ours.items()}
    by_name.update({variable["name"]: variable for variable in template.get("env", [])})
    return list(by_name.values())


def _flags(arguments: Mapping[str, str]) -> list[str]:
    return [word for flag, value in arguments.items() for word in (flag, value)]


def _allow_list(settings: Settings) -> list[str]:
    return [word for prefix in settings.entry_point_prefixes for word in ("--entry-point-prefix", prefix)]
