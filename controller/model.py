"""What the planner reads and what it answers, as frozen dataclasses; what the user asks for is in `spec`.

May not talk to anything. `Observed` holds facts, with `None` for "there is none" and `Unknown` for "could not be found out".
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

from controller import names
from controller.spec import Json, Spec, Trigger


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
        is_unheard: its pod runs, and how far it is cannot be read of its log now.
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
    is_unheard: bool = False


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
        failure: why it stays where it is (`onFail: Hold`), for as long as the rules are those it failed by, `failed_trial`.
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
    failure: Problem | None = None
    failed_trial: str | None = None


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
