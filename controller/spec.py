"""What the user asks for: frozen dataclasses, and the parsing of a defaulted PolicyModel into them. May not talk to anything."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from controller import names

Json = Mapping[str, Any]

# Seeds are below this: the schema's bound.
SEEDS = 2**31
# Of one evaluation: the schema's bound.
MOST_EPISODES = 100_000


@dataclass(frozen=True)
class Schedule:
    """When a spec is trained another time; `starting_deadline_s` is how late that may begin."""

    cron: str
    time_zone: str
    starting_deadline_s: int


@dataclass(frozen=True)
class MLflowSpec:
    """A tracking server; `experiment` is None where it is to be named after the PolicyModel."""

    tracking_uri: str
    experiment: str | None = None
    secret_name: str | None = None


@dataclass(frozen=True)
class TrackingSpec:
    """Where the figures of a training are told, beside its log. No part of what is learnt, and so of no run."""

    tensor_board: bool = False
    mlflow: MLflowSpec | None = None


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
    schedule: Schedule | None = None
    engine: str = names.JOB
    tracking: TrackingSpec = TrackingSpec()
    search: Json | None = None


@dataclass(frozen=True)
class AgainstServing:
    """How much worse than the serving policy a new one may be: one of the two is given.

    Attributes:
        max_regression: in units of return.
        max_regression_std: in standard deviations of the serving policy's returns.
        confidence: of the whole comparison, over all its looks.
    """

    max_regression: float | None
    max_regression_std: float | None
    confidence: float


@dataclass(frozen=True)
class GateSpec:
    episodes: int
    seed: int
    min_return: float
    against_serving: AgainstServing | None = None
    max_episodes: int | None = None
    on_fail: Literal["Hold", "Retrain"] = "Hold"
    max_retrains: int = 2

    @property
    def looks(self) -> tuple[int, ...]:
        """After how many episodes the gate judges: the first number, and while that is inconclusive twice as many, up to the limit.

        A gate that only asks for a return looks once, as long as nobody allows it more: its figures stay those of one 95 % bound.
        """
        limit = self.max_episodes or (min(4 * self.episodes, MOST_EPISODES) if self.against_serving else self.episodes)
        return tuple(self.episodes << doubling for doubling in range((limit // self.episodes).bit_length()))


@dataclass(frozen=True)
class Look:
    """An evaluation that the gate asks for: `episodes` episodes from `seed` on.

    Attributes:
        against: the digest of the policy that plays the same episodes, or None.
    """

    id: str
    episodes: int
    seed: int
    against: str | None = None


@dataclass(frozen=True)
class Trigger:
    """Why a spec is trained another time.

    Attributes:
        origin: the run that the spec makes by itself; a trigger counts for this spec alone.
        id: of the request, the run that failed its gate, or the scheduled time.
        number: counts the trainings of this spec beyond its first; it is added to the seed, so that each is another draw.
        retrains: how many of them in a row the gate has asked for.
        user: who asked, as the request claims; None of the gate.
    """

    kind: Literal["Request", "Gate", "Schedule"]
    origin: str
    id: str
    number: int
    retrains: int = 0
    user: str | None = None

    @property
    def asker(self) -> str:
        """Who asked, in words."""
        return {"Request": "a request", "Gate": "the gate", "Schedule": "the schedule"}[self.kind]


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
    """Where checkpoints and bundles lie: in a claim, or else in `s3`.

    Attributes:
        access_modes: of an existing claim they are not in the spec: () until it was seen.
        keep_revisions: how many of the newest are kept, beside those that are needed.
    """

    size: str | None
    access_modes: tuple[str, ...]
    storage_class_name: str | None
    existing_claim: str | None
    deletion_policy: Literal["Delete", "Retain"]
    keep_revisions: int
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
class DecisionLog:
    """Where replicas note what they decide: a claim of the user's, and how much of it they may fill."""

    claim_name: str
    max_megabytes: int


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
    decision_log: DecisionLog | None
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
    rollout: RolloutSpec
    served_revision: int | None = None
    image_pull_secrets: tuple[str, ...] = ()
    paused: bool = False
    trigger: Trigger | None = None

    @property
    def origin(self) -> str:
        """The run that this spec makes by itself: a hash of the training fields."""
        return names.digest_of(self._training_fields())

    @property
    def run(self) -> str:
        """The run that is asked for: that of the training fields, or another one of them that a trigger asked for. Nothing else
        retrains."""
        made_from = self._training_fields()
        return names.digest_of({**made_from, "trigger": self.trigger.id} if self.trigger else made_from)

    @property
    def seed(self) -> int:
        """The seed of the run."""
        return (self.training.seed + (self.trigger.number if self.trigger else 0)) % SEEDS

    def _training_fields(self) -> dict[str, Any]:
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
        if self.training.search:
            made_from["search"] = self.training.search
        return made_from

    def looks(self, run: str, against: str | None = None) -> tuple[Look, ...]:
        """The evaluations of the policy of a run that the gate may ask for, one after the other.

        Args:
            against: the digest that it is compared with. The serving policy was chosen by its return on the seeds of its own gate, so
                it looks better there than it is: each comparison has seeds that neither was chosen by.
        """
        seed = self.gate.seed
        if against:
            seed = (seed + int(names.digest_of({"run": run, "against": against}), 16)) % SEEDS
        made_from = {"run": run, "seed": seed, **({"against": against} if against else {})}
        return tuple(Look(names.digest_of({**made_from, "episodes": episodes}), episodes, seed, against) for episodes in self.gate.looks)


@dataclass(frozen=True)
class RolloutStep:
    """One step on the way to a new policy; `weight` is its share of the sessions in percent, 0 where it is only compared."""

    weight: int
    seconds: int


@dataclass(frozen=True)
class AnalysisSpec:
    """By what a policy is stopped on its way.

    Attributes:
        max_error_ratio: of the requests that it is asked, those that the serving policy had to answer for.
        max_latency_ratio: its mean time of an inference over that of the serving policy.
        max_action_distance: total variation distance of the two distributions of actions, 0 to 1; None does not look at it.
        max_return_regression: how far the mean of its episode returns may lie below, in units of return; None does not look at it.
        min_requests: that it has to have answered before it goes on.
        time_budget_ms: of one inference, beyond which a replica sets it aside at once.
    """

    confidence: float
    max_error_ratio: float
    max_latency_ratio: float
    max_action_distance: float | None
    max_return_regression: float | None
    min_requests: int
    time_budget_ms: int


@dataclass(frozen=True)
class RolloutSpec:
    strategy: Literal["Direct", "Canary", "Shadow"]
    steps: tuple[RolloutStep, ...]
    drain_s: int
    progress_deadline_s: int
    on_fail: Literal["Rollback", "Hold"]
    analysis: AnalysisSpec

    @property
    def trial(self) -> str:
        """What a policy has been tried by: after a change of it, one that failed is tried again."""
        made_from = {"strategy": self.strategy, "steps": [vars(step) for step in self.steps], "analysis": vars(self.analysis)}
        return names.digest_of({**made_from, "deadline": self.progress_deadline_s, "onFail": self.on_fail})


def spec_of(document: Json) -> Spec:
    """The spec of a PolicyModel that the schema has validated and defaulted.

    Args:
        document: the whole object, as the API server or `schema.defaulted` gives it.

    Raises:
        KeyError: a field that the schema defaults or requires is missing, so the object never went through it.
    """
    spec = document["spec"]
    training, gate, storage, serving = spec["training"], spec["gate"], spec["storage"], spec["serving"]
    rollout, analysis, schedule = spec["rollout"], spec["rollout"]["analysis"], training.get("schedule")
    pvc, s3, ingress, autoscaling = storage.get("pvc", {}), storage.get("s3"), serving.get("ingress"), serving.get("autoscaling")
    return Spec(
        environment=spec["environment"],
        image_pull_secrets=tuple(secret["name"] for secret in spec["imagePullSecrets"]),
        paused=spec["paused"],
        served_revision=spec.get("servedRevision"),
        rollout=RolloutSpec(
            strategy=rollout["strategy"],
            steps=tuple(RolloutStep(step.get("weight", 0), step["seconds"]) for step in rollout.get("steps", ())),
            drain_s=rollout["drainSeconds"],
            progress_deadline_s=rollout["progressDeadlineSeconds"],
            on_fail=rollout["onFail"],
            analysis=AnalysisSpec(
                confidence=analysis["confidence"],
                max_error_ratio=analysis["maxErrorRatio"],
                max_latency_ratio=analysis["maxLatencyRatio"],
                max_action_distance=analysis.get("maxActionDistance"),
                max_return_regression=analysis.get("maxReturnRegression"),
                min_requests=analysis["minRequests"],
                time_budget_ms=analysis["timeBudgetMilliseconds"],
            ),
        ),
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
            schedule=Schedule(schedule["cron"], schedule["timeZone"], schedule["startingDeadlineSeconds"]) if schedule else None,
            engine=training.get("engine", names.JOB),
            tracking=_tracking(training.get("tracking", {})),
            search=training.get("search"),
        ),
        gate=GateSpec(
            episodes=gate["episodes"],
            seed=gate["seed"],
            min_return=gate["minReturn"],
            against_serving=AgainstServing(
                max_regression=gate["againstServing"].get("maxRegression"),
                max_regression_std=gate["againstServing"].get("maxRegressionStd"),
                confidence=gate["againstServing"]["confidence"],
            )
            if "againstServing" in gate
            else None,
            max_episodes=gate.get("maxEpisodes"),
            on_fail=gate["onFail"],
            max_retrains=gate["maxRetrains"],
        ),
        storage=StorageSpec(
            size=pvc.get("size"),
            access_modes=() if s3 or "existingClaim" in pvc else tuple(pvc.get("accessModes", ["ReadWriteOnce"])),
            storage_class_name=pvc.get("storageClassName"),
            existing_claim=pvc.get("existingClaim"),
            deletion_policy=storage["deletionPolicy"],
            keep_revisions=storage["keepRevisions"],
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
            decision_log=DecisionLog(log["claimName"], log["maxMegabytes"]) if (log := serving.get("decisionLog")) else None,
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


def _tracking(tracking: Json) -> TrackingSpec:
    mlflow = tracking.get("mlflow")
    server = MLflowSpec(mlflow["trackingUri"], mlflow.get("experiment"), mlflow.get("secretName")) if mlflow else None
    return TrackingSpec(tracking.get("tensorBoard", False), server)
