"""What the planner reads and what it answers: frozen dataclasses, and the parsing of a defaulted PolicyModel into them.

May not talk to anything. `Observed` holds facts, with `None` for "there is none" and `Unknown` for "could not be found out".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal

from controller import names

Json = Mapping[str, Any]


@dataclass(frozen=True)
class TrainingSpec:
    algorithm: str
    image: str | None
    config: Json
    stop: Json
    workers: int
    seed: int
    checkpoint_every: int
    backoff_limit: int
    resources: Json
    template: Json
    warm_start: str = "None"


@dataclass(frozen=True)
class GateSpec:
    episodes: int
    seed: int
    min_return: float


@dataclass(frozen=True)
class S3Spec:
    """A bucket, and how it is reached."""

    bucket: str
    prefix: str
    endpoint: str | None = None
    region: str | None = None
    secret_name: str | None = None
    path_style: bool | None = None


@dataclass(frozen=True)
class StorageSpec:
    """Where checkpoints and bundles lie: in a claim, or else in `s3`. `access_modes` of an existing claim are not in the spec: () until
    it was seen."""

    size: str | None
    access_modes: tuple[str, ...]
    storage_class_name: str | None
    existing_claim: str | None
    deletion_policy: Literal["Delete", "Retain"]
    s3: S3Spec | None = None


@dataclass(frozen=True)
class IngressSpec:
    host: str
    class_name: str | None
    tls_secret_name: str | None
    annotations: Json


@dataclass(frozen=True)
class Autoscaling:
    """How many replicas there may be, and the requests per second that each is to answer."""

    least: int
    most: int
    target_requests_per_second: float


@dataclass(frozen=True)
class ServingSpec:
    route: str
    image: str | None
    http_proxy: Literal["HAProxy", "Serve"]
    replicas: int
    autoscaling: Autoscaling | None
    out_of_bounds: Literal["Answer", "Reject"]
    max_body_bytes: int
    access_log: bool
    ray_service: str | None
    resources: Json
    template: Json
    ingress: IngressSpec | None

    @property
    def replica_range(self) -> range:
        """The numbers of replicas that are as asked for."""
        scale = self.autoscaling
        return range(scale.least, scale.most + 1) if scale else range(self.replicas, self.replicas + 1)


@dataclass(frozen=True)
class Spec:
    environment: Json
    training: TrainingSpec
    gate: GateSpec
    storage: StorageSpec
    serving: ServingSpec
    image_pull_secrets: tuple[str, ...] = ()
    paused: bool = False

    @property
    def run(self) -> str:
        """The run that this spec asks for: a hash of the training fields. Nothing else retrains."""
        made_from = {
            "environment": self.environment,
            "algorithm": self.training.algorithm,
            "config": self.training.config,
            "stop": self.training.stop,
            "workers": self.training.workers,
            "seed": self.training.seed,
        }
        if self.training.image:
            made_from["image"] = self.training.image
        if self.training.warm_start != "None":
            made_from["warmStart"] = self.training.warm_start
        return names.digest_of(made_from)

    def evaluation(self, run: str) -> str:
        """The evaluation that the gate asks for, of the policy of a run."""
        return names.digest_of({"run": run, "episodes": self.gate.episodes, "seed": self.gate.seed})


@dataclass(frozen=True)
class Owner:
    """The identity of one PolicyModel."""

    namespace: str
    name: str
    uid: str
    generation: int = 1


@dataclass(frozen=True)
class Problem:
    """Why something does not get on, in words for its user."""

    reason: str
    message: str


@dataclass(frozen=True)
class Evaluation:
    """Figures of one evaluation; `mean` and `std` in units of return."""

    id: str
    mean: float
    std: float
    episodes: int
    seed: int
    lower: float = 0.0


@dataclass(frozen=True)
class Revision:
    """A published policy."""

    number: int
    digest: str
    uri: str
    run: str
    trained_at: str | None = None
    image: str | None = None
    seed: int | None = None
    env_steps: int | None = None
    parent: int | None = None
    verdict: Literal["Pass", "Fail"] | None = None
    evaluation: Evaluation | None = None
    stopped_by: str | None = None


@dataclass(frozen=True)
class Condition:
    type: str
    status: Literal["True", "False", "Unknown"]
    reason: str
    message: str
    last_transition_time: str = ""
    observed_generation: int = 0


@dataclass(frozen=True)
class Progress:
    """The last progress line of a training Job; the spread is the standard deviation of the returns that the mean is of."""

    iteration: int
    env_steps: int
    episode_return_mean: float | None
    percent: float
    eta_s: float | None
    episode_return_std: float | None = None
    steps_per_s: float | None = None


@dataclass(frozen=True)
class JobState:
    """A training or evaluation Job of ours.

    Attributes:
        hash: that of the fields that its pods were made from; None where an older operator made it.
        replaces: the digest of the lost bundle that it makes again.
        result: its termination message, once it has succeeded and while its pod is there.
    """

    name: str
    role: str
    run: str
    phase: Literal["Running", "Succeeded", "Failed"]
    evaluation: str | None = None
    deleting: bool = False
    hash: str | None = None
    replaces: str | None = None
    attempt: int = 1
    start_time: str | None = None
    image: str | None = None
    result: Json | None = None
    problem: Problem | None = None
    progress: Progress | None = None


@dataclass(frozen=True)
class ChildState:
    """A claim or an Ingress, as it lives. `foreign`: it bears the name of ours, and another made it."""

    manifest: Json
    foreign: bool = False
    deleting: bool = False
    problem: Problem | None = None


@dataclass(frozen=True)
class RayServiceState:
    """The RayService that serves.

    Attributes:
        hash: the hash of the fields that the RayService was made from; `pods_hash`: that of the pods that serve, where there are any.
        switching: KubeRay prepares a second cluster while a first one serves.
        claims: the claims that its pods mount; None where it has no pods, as on one machine.
    """

    serve_config: str = ""
    hash: str | None = None
    foreign: bool = False
    deleting: bool = False
    switching: bool = False
    pods_hash: str | None = None
    problem: Problem | None = None
    claims: tuple[str, ...] | None = None


@dataclass(frozen=True)
class ReplicaRow:
    """What one replica says of itself; `manners`: how it answers, in the words of `user_config`, as far as its image tells."""

    replica: str
    digest: str | None
    error_digest: str | None = None
    error: Problem | None = None
    manners: Json = field(default_factory=dict)


@dataclass(frozen=True)
class Replicas:
    """What the replicas say, gathered by the one that was asked; `running` is how many Serve knows."""

    running: int
    rows: tuple[ReplicaRow, ...]


@dataclass(frozen=True)
class Unknown:
    """Could not be found out, and why."""

    why: str


@dataclass(frozen=True)
class Images:
    training: str
    serving: str


@dataclass(frozen=True)
class TrainingStatus:
    job: str
    run: str
    attempt: int
    start_time: str | None
    progress: Progress | None


@dataclass(frozen=True)
class ServingStatus:
    """What the replicas were seen to serve; `uri` is where its bundle lies, if that is known."""

    digest: str
    revision: int | None
    return_mean: float | None
    replicas_ready: int
    replicas: int
    uri: str | None = None


@dataclass(frozen=True)
class Status:
    """The status of a PolicyModel: the only memory there is between two reconciles."""

    observed_generation: int = 0
    phase: str = ""
    url: str | None = None
    images: Images | None = None
    conditions: tuple[Condition, ...] = ()
    training: TrainingStatus | None = None
    serving: ServingStatus | None = None
    candidate: Revision | None = None
    revisions: tuple[Revision, ...] = ()

    def condition(self, type_: str) -> Condition | None:
        return next((condition for condition in self.conditions if condition.type == type_), None)


@dataclass(frozen=True)
class Rival:
    """Another PolicyModel that names the same RayService; `is_maker`: it is the RayService of its own."""

    name: str
    created: str
    is_maker: bool = False


@dataclass(frozen=True)
class Observed:
    """Everything that a plan is made from, read in one go."""

    now: datetime
    owner: Owner
    spec: Spec
    status: Status
    created: str = ""
    deleting: bool = False
    jobs: tuple[JobState, ...] = ()
    claim: ChildState | None = None
    ray_service: RayServiceState | None = None
    ingress: ChildState | None = None
    replicas: Replicas | Unknown | None = None
    rivals: tuple[Rival, ...] = ()


@dataclass(frozen=True)
class Settings:
    """How the operator was started.

    Attributes:
        storage_root: URI under which each PolicyModel has `<namespace>/<name>`.
        base_url: where Serve answers, or None for the Service or the Ingress of the cluster.
        in_cluster: whether there are claims and Ingresses.
    """

    training_image: str
    serving_image: str
    storage_root: str = "file:///storage"
    entry_point_prefixes: tuple[str, ...] = ()
    base_url: str | None = None
    in_cluster: bool = True


@dataclass(frozen=True)
class _Written:
    """An action that writes a manifest."""

    manifest: Json

    @property
    def kind(self) -> str:
        return str(self.manifest["kind"])

    @property
    def name(self) -> str:
        return str(self.manifest["metadata"]["name"])


@dataclass(frozen=True)
class Apply(_Written):
    """Server-side apply of a manifest, under a field manager."""

    field_manager: str = names.FIELD_MANAGER


@dataclass(frozen=True)
class Create(_Written):
    """Creation of a Job: it cannot be changed afterwards, and a second one under its name is refused by the API."""


@dataclass(frozen=True)
class Delete:
    """Deletion in the foreground: the object is there until its pods are gone."""

    kind: str
    name: str
    why: str = ""


Action = Apply | Create | Delete


@dataclass(frozen=True)
class Event:
    type: Literal["Normal", "Warning"]
    reason: str
    message: str


@dataclass(frozen=True)
class Plan:
    """What is to be done, and what is to be said of what was seen.

    Attributes:
        requeue_after_s: seconds until the next look, even if nothing calls for one.
    """

    status: Status
    actions: tuple[Action, ...] = ()
    events: tuple[Event, ...] = ()
    requeue_after_s: float = 30.0


def spec_of(document: Json) -> Spec:
    """The spec of a PolicyModel that the schema has validated and defaulted.

    Args:
        document: the whole object, as the API server or `schema.defaulted` gives it.

    Raises:
        KeyError: a field that the schema defaults or requires is missing, so the object never went through it.
    """
    spec = document["spec"]
    training, gate, storage, serving = spec["training"], spec["gate"], spec["storage"], spec["serving"]
    pvc, s3, ingress, autoscaling = storage.get("pvc", {}), storage.get("s3"), serving.get("ingress"), serving.get("autoscaling")
    return Spec(
        environment=spec["environment"],
        image_pull_secrets=tuple(secret["name"] for secret in spec["imagePullSecrets"]),
        paused=spec["paused"],
        training=TrainingSpec(
            algorithm=training["algorithm"],
            image=training.get("image"),
            config=training["config"],
            stop=training["stop"],
            workers=training["workers"],
            seed=training["seed"],
            checkpoint_every=training["checkpointEvery"],
            backoff_limit=training["backoffLimit"],
            resources=training["resources"],
            template=training.get("template", {}),
            warm_start=str(training.get("warmStart", "None")),
        ),
        gate=GateSpec(episodes=gate["episodes"], seed=gate["seed"], min_return=gate["minReturn"]),
        storage=StorageSpec(
            size=pvc.get("size"),
            access_modes=() if s3 or "existingClaim" in pvc else tuple(pvc.get("accessModes", ["ReadWriteOnce"])),
            storage_class_name=pvc.get("storageClassName"),
            existing_claim=pvc.get("existingClaim"),
            deletion_policy=storage["deletionPolicy"],
            s3=S3Spec(
                bucket=s3["bucket"],
                prefix=s3["prefix"],
                endpoint=s3.get("endpoint"),
                region=s3.get("region"),
                secret_name=s3.get("secretName"),
                path_style=s3.get("pathStyle"),
            )
            if s3
            else None,
        ),
        serving=ServingSpec(
            route=serving["route"],
            image=serving.get("image"),
            http_proxy=serving.get("httpProxy", "HAProxy"),
            replicas=serving.get("replicas", 1),
            autoscaling=Autoscaling(autoscaling["min"], autoscaling["max"], autoscaling["targetRequestsPerSecond"])
            if autoscaling
            else None,
            out_of_bounds=serving["outOfBounds"],
            max_body_bytes=serving["maxBodyBytes"],
            access_log=serving["accessLog"],
            ray_service=serving.get("rayService"),
            resources=serving.get("resources", {}),
            template=serving.get("template", {}),
            ingress=IngressSpec(
                host=ingress["host"],
                class_name=ingress.get("className"),
                tls_secret_name=ingress.get("tlsSecretName"),
                annotations=ingress["annotations"],
            )
            if ingress
            else None,
        ),
    )
