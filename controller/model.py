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
class Against:
    """What the serving policy did in the same episodes, all in units of return.

    Attributes:
        mean, std: of its own returns.
        difference_mean, difference_std: of the candidate's return less its, episode by episode.
        margin: how far below 0 the difference may lie; `lower`, `upper`: the bounds of its mean.
        problem: why it could not be played; then there are no figures.
    """

    digest: str
    mean: float = 0.0
    std: float = 0.0
    difference_mean: float = 0.0
    difference_std: float = 0.0
    margin: float = 0.0
    lower: float = 0.0
    upper: float = 0.0
    problem: str | None = None


@dataclass(frozen=True)
class Evaluation:
    """Figures of one evaluation; `mean`, `std` and the bounds of the mean in units of return."""

    id: str
    mean: float
    std: float
    episodes: int
    seed: int
    lower: float = 0.0
    upper: float = 0.0
    against: Against | None = None


@dataclass(frozen=True)
class Approval:
    """By whose word a revision may be served, whatever the gate says. All of it is claimed: the audit log is the authority."""

    user: str
    field_manager: str | None
    time: str


@dataclass(frozen=True)
class Request:
    """A one-shot request that stands in an annotation.

    Attributes:
        id: tells it from the one before; `status.lastHandledRequests` holds the last that was seen to.
        user, field_manager, time: who claims to ask, with which program, and when.
        revision: what it is about, where it is about a revision.
        problem: why it cannot be read.
    """

    id: str
    user: str = ""
    time: str = ""
    field_manager: str | None = None
    revision: int | None = None
    problem: str | None = None


@dataclass(frozen=True)
class RolloutEnd:
    """How the rollout of a revision ended; `trial` says by which rules it was rolled out."""

    outcome: Literal["Promoted", "RolledBack", "Aborted"]
    trial: str
    reason: str
    message: str


@dataclass(frozen=True)
class FoundBy:
    """Which trial of a search a policy is.

    Attributes:
        trials: how many there were.
        config: the settings that it had drawn.
    """

    trial: int
    trials: int
    seed: int
    config: Json


@dataclass(frozen=True)
class Revision:
    """A published policy.

    Attributes:
        config_hash: sha256 of everything that PPO was told.
        parent: the number of the revision that served when it was published.
        retention: None while it is kept. `Pruning`: a Job has been told to remove it, and it may be gone in part; `Pruned`: it is gone, and
            its record stays for those that name it. Either way it is no policy to choose any more, and its number is no other's.
    """

    number: int
    digest: str
    uri: str
    run: str
    trained_at: str | None = None
    image: str | None = None
    seed: int | None = None
    env_steps: int | None = None
    parent: int | None = None
    verdict: Literal["Pass", "Fail", "Inconclusive"] | None = None
    evaluation: Evaluation | None = None
    approval: Approval | None = None
    trigger: Trigger | None = None
    rollout: RolloutEnd | None = None
    stopped_by: str | None = None
    config_hash: str | None = None
    retention: Literal["Pruning", "Pruned"] | None = None
    found_by: FoundBy | None = None

    @property
    def is_kept(self) -> bool:
        return self.retention is None

    @property
    def is_approved(self) -> bool:
        return self.verdict == "Pass" or self.approval is not None

    @property
    def is_good(self) -> bool:
        """Whether it can be served, and was not stopped on its way. The first one of all has had no rollout."""
        return self.is_kept and self.is_approved and (self.rollout is None or self.rollout.outcome == "Promoted")

    @property
    def origin(self) -> str:
        """The run that its spec makes by itself."""
        return self.trigger.origin if self.trigger else self.run


@dataclass(frozen=True)
class Condition:
    type: str
    status: Literal["True", "False", "Unknown"]
    reason: str
    message: str
    last_transition_time: str = ""
    observed_generation: int = 0


@dataclass(frozen=True)
class TrialStatus:
    """One policy that a search trains.

    Attributes:
        config: the settings that it has drawn, as far as they are known.
    """

    trial: int
    state: str
    config: Json | None = None
    env_steps: int | None = None
    episode_return_mean: float | None = None


@dataclass(frozen=True)
class SearchStatus:
    """How the trials of a search stand, and which is the best so far."""

    best: int | None
    trials: tuple[TrialStatus, ...]


@dataclass(frozen=True)
class Progress:
    """The last progress line of a training Job; the spread is the standard deviation of the returns that the mean is of.

    Where it searches, iteration, steps and returns are those of the best trial so far, and the rest are the whole search's.
    """

    iteration: int
    env_steps: int
    episode_return_mean: float | None
    percent: float
    eta_s: float | None
    episode_return_std: float | None = None
    steps_per_s: float | None = None


@dataclass(frozen=True)
class JobState:
    """A training, evaluation or prune Job of ours.

    Attributes:
        kind: Job, or RayJob of a training on a Ray cluster.
        run: whose policy it makes or plays; "" of a prune Job.
        prunes: the digests that it removes.
        hash: that of the fields that its pods were made from; None where an older operator made it.
        replaces: the digest of the lost bundle that it makes again.
        result: its termination message, once it has succeeded and while its pod is there.
        setback: how the newest attempt that failed has ended, in words.
        search: how the trials of a training stand that searches, as it has last said.
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
    prunes: tuple[str, ...] = ()
    kind: str = names.JOB
    setback: str | None = None
    search: SearchStatus | None = None


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
        pending_since: when the second cluster was made.
        unready_pods: of the second cluster, by their names.
        active_config: the spec of the RayCluster that serves, read only where there is a second one, or one was given up.
    """

    serve_config: str = ""
    hash: str | None = None
    foreign: bool = False
    deleting: bool = False
    switching: bool = False
    pods_hash: str | None = None
    problem: Problem | None = None
    claims: tuple[str, ...] | None = None
    pending_since: str | None = None
    active_config: Json | None = None
    unready_pods: tuple[str, ...] = ()


@dataclass(frozen=True)
class Capacity:
    """What a node has left.

    Attributes:
        free: by the name of the resource, in cores, bytes or pieces; below 0 where more is promised than there is.
        is_home: pods of the PolicyModel run there.
        is_tainted: only pods that tolerate it run there.
    """

    name: str
    free: Mapping[str, float]
    labels: Mapping[str, str] = field(default_factory=dict)
    is_home: bool = False
    is_tainted: bool = False


@dataclass(frozen=True)
class CandidateRow:
    """The candidate as one replica has it; `problem` is why it was not loaded, or set aside."""

    digest: str
    mode: str
    weight: int
    is_loaded: bool
    is_set_aside: bool = False
    problem: Problem | None = None


@dataclass(frozen=True)
class Tally:
    """What one policy did in a trial.

    Attributes:
        requests: that it was to answer; `errors`: those of them that the serving policy had to.
        inference_s: of all its inferences together.
        actions: of a Discrete space, how often each was chosen.
    """

    requests: int = 0
    errors: int = 0
    inferences: int = 0
    inference_s: float = 0.0
    sessions: int = 0
    actions: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Trial:
    """What one replica has counted of both policies since it has the candidate; `compared` and `agreed` are those of a shadow."""

    serving: Tally
    candidate: Tally
    compared: int = 0
    agreed: int = 0


@dataclass(frozen=True)
class ReplicaRow:
    """What one replica says of itself.

    Attributes:
        manners: how it answers, in the words of `user_config`, as far as its image tells.
        can_try: whether its image knows of candidates.
    """

    replica: str
    digest: str | None
    error_digest: str | None = None
    error: Problem | None = None
    manners: Json = field(default_factory=dict)
    candidate: CandidateRow | None = None
    trial: Trial | None = None
    can_try: bool = True


@dataclass(frozen=True)
class Returns:
    """Returns of the finished episodes that clients have reported; `mean` and `std` in units of return."""

    episodes: int
    mean: float
    std: float


@dataclass(frozen=True)
class Replicas:
    """What the replicas say, gathered by the one that was asked; `running` is how many Serve knows, `returns` are by digest."""

    running: int
    rows: tuple[ReplicaRow, ...]
    returns: Mapping[str, Returns] = field(default_factory=dict)


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
    trigger: Trigger | None = None
    search: SearchStatus | None = None

    @property
    def origin(self) -> str:
        """The run that its spec makes by itself."""
        return self.trigger.origin if self.trigger else self.run


@dataclass(frozen=True)
class ScheduleStatus:
    """The schedule that is followed: its next time, and the last one that a training was asked for at."""

    cron: str
    time_zone: str
    next_time: str
    last_time: str | None = None


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
class CandidateStatus:
    """The revision that is being rolled out.

    Attributes:
        weight: percent of the sessions that it is to answer; 100 where it takes over.
        stage: index into `controller.rollout.stages`; beyond them it takes over.
        step: of `spec.rollout.steps`, from 1; 0 before and after them. `steps` is how many there are.
        since: when the replicas were told so; `held_since`: when all of them were seen to do so.
    """

    revision: int
    digest: str
    mode: Literal["Direct", "Canary", "Shadow"]
    weight: int
    stage: int
    step: int
    steps: int
    since: str
    held_since: str | None = None


@dataclass(frozen=True)
class UndoneSwitch:
    """A change of the pods that was given up: it is not tried again before another one is asked for.

    Attributes:
        hash: of the serving fields that asked for it.
        forgotten: how often KubeRay was told to forget its pending cluster.
    """

    hash: str
    reason: str
    message: str
    forgotten: int = 0


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
    candidate: CandidateStatus | None = None
    revisions: tuple[Revision, ...] = ()
    undone_switch: UndoneSwitch | None = None
    last_handled_requests: Mapping[str, str] = field(default_factory=dict)
    schedule: ScheduleStatus | None = None

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
    """Everything that a plan is made from, read in one go.

    Attributes:
        free: what the nodes have left; None where nobody asked: it matters only before the pods that serve are changed.
    """

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
    free: tuple[Capacity, ...] | Unknown | None = None
    requests: Mapping[str, Request] = field(default_factory=dict)

    def request(self, verb: str) -> Request | None:
        """The request of a verb that nobody has seen to yet. A pause lets all of them wait."""
        asked = self.requests.get(verb)
        is_new = asked is not None and asked.id != self.status.last_handled_requests.get(verb)
        return asked if is_new and not self.spec.paused else None


@dataclass(frozen=True)
class Settings:
    """How the operator was started.

    Attributes:
        storage_root: URI under which each PolicyModel has `<namespace>/<name>`.
        base_url: where Serve answers, or None for the Service or the Ingress of the cluster.
        in_cluster: whether there are claims and Ingresses.
        nodes_may_be_added: a pod that finds no room brings a node with it, so what the nodes have left says nothing.
    """

    training_image: str
    serving_image: str
    storage_root: str = "file:///storage"
    entry_point_prefixes: tuple[str, ...] = ()
    base_url: str | None = None
    in_cluster: bool = True
    nodes_may_be_added: bool = False


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
    """Creation of a Job or a RayJob: it cannot be changed afterwards, and a second one under its name is refused by the API."""


@dataclass(frozen=True)
class Delete:
    """Deletion in the foreground: the object is there until its pods are gone."""

    kind: str
    name: str
    why: str = ""


@dataclass(frozen=True)
class ForgetPending:
    """Lets KubeRay forget the second cluster that it prepares for a RayService: `status.pendingServiceStatus` is taken away."""

    name: str
    kind: str = "RayService"


Action = Apply | Create | Delete | ForgetPending


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
