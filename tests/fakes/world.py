"""A world for the planner: Kubernetes, KubeRay, training and replicas in a few lines each, with faults to order.

It refuses what the real ones refuse (a second Job under one name, a write by a manager who does not own the object), so that a plan
which only works in a kinder world fails here.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import yaml

from controller import names, observation, reconcile, resources, retraining, schema
from controller.model import (
    Action,
    Apply,
    CandidateRow,
    Capacity,
    Create,
    Delete,
    ForgetPending,
    JobState,
    Observed,
    Owner,
    Problem,
    RayServiceState,
    ReplicaRow,
    Replicas,
    Settings,
    Status,
    Tally,
    Trial,
    Unknown,
)
from controller.spec import spec_of
from controller.status import document_of, status_of, timestamp

SETTINGS = Settings(training_image="train:1", serving_image="serve:1", entry_point_prefixes=("acme",))
GOOD_RETURN, BAD_RETURN = 500.0, 100.0
STEADY, NOISY = 1.0, 150.0
EXAMPLE = (schema.CRD_PATH.parent / "examples" / "policymodel.yaml").read_text()


def document(**changes: Any) -> dict[str, Any]:
    """The example with some fields changed: `document(training__seed=3)`; `None` removes a field."""
    found = yaml.safe_load(EXAMPLE)
    for path, value in changes.items():
        *parents, last = path.split("__")
        node = found["spec"]
        for parent in parents:
            node = node.setdefault(parent, {})
        if value is None:
            node.pop(last, None)
        else:
            node[last] = value
    return schema.defaulted(found)


# celpy raises the recursion limit when it compiles a rule: once, here, and not in the middle of a test that watches the limit.
document()


def digest(run: str, time: int = 0) -> str:
    """The digest of what a run was published with, for the first or a later time."""
    return f"sha256:{run}{time:054}"


class Conflict(Exception):
    """What the API server would refuse."""


@dataclass
class Job:
    manifest: dict[str, Any]
    phase: str = "Running"
    has_pod: bool = True
    deleting: bool = False
    digest: str = ""
    unplayable: bool = False

    @property
    def labels(self) -> dict[str, str]:
        return dict(self.manifest["metadata"]["labels"])

    @property
    def prunes(self) -> tuple[str, ...]:
        return observation.prunes(self.manifest["metadata"])

    @property
    def flags(self) -> dict[str, str]:
        spec = self.manifest["spec"]
        pod = spec["submitterPodTemplate" if self.manifest["kind"] == names.RAY_JOB else "template"]
        words = pod["spec"]["containers"][0]["args"]
        return {word: words[index + 1] for index, word in enumerate(words[:-1]) if word.startswith("--")}


@dataclass
class World:
    """One PolicyModel and all that it may come to own."""

    document: dict[str, Any] = field(default_factory=document)
    generation: int = 1
    now: datetime = datetime(2026, 1, 1, tzinfo=UTC)
    status: dict[str, Any] = field(default_factory=dict)
    jobs: dict[str, Job] = field(default_factory=dict)
    claim: dict[str, Any] | None = None
    ingress: dict[str, Any] | None = None
    ray_service: dict[str, Any] | None = None
    active_cluster: str | None = None
    pending_cluster: str | None = None
    active_hash: str | None = None
    active_config: dict[str, Any] | None = None
    pending_config: dict[str, Any] | None = None
    pending_since: datetime | None = None
    # Images that no node can pull: a cluster that is made from one never comes up.
    unpullable: set[str] = field(default_factory=set)
    free: tuple[Capacity, ...] | Unknown | None = None
    forgotten: int = 0
    # KubeRay takes a restored config for another one, as it would if it defaulted a field of it.
    is_stubborn: bool = False
    rows: list[str | None] = field(default_factory=list)
    # For each replica the candidate that it was told to try, and has loaded.
    trying: list[dict[str, Any] | None] = field(default_factory=list)
    # Bundles that no replica loads, and policies that fail half of what they are asked.
    corrupt: set[str] = field(default_factory=set)
    faulty: set[str] = field(default_factory=set)
    # Replicas that know of no candidates.
    is_of_an_older_day: bool = False
    published: set[str] = field(default_factory=set)
    lost: set[str] = field(default_factory=set)
    # How often a bundle was removed by a prune Job.
    prunings: int = 0
    times: dict[str, int] = field(default_factory=dict)
    created: list[str] = field(default_factory=list)
    superseded: int = 0
    served: list[str] = field(default_factory=list)
    tried: set[str] = field(default_factory=set)
    approved: set[str] = field(default_factory=set)
    unreachable: bool = False
    seeds: dict[str, int] = field(default_factory=dict)
    origins: dict[str, str] = field(default_factory=dict)
    unplayable: set[str] = field(default_factory=set)
    annotations: dict[str, str] = field(default_factory=dict)
    requests: int = 0
    watch: Callable[[Observed], None] = lambda seen: None

    def edit(self, **changes: Any) -> None:
        """`kubectl apply` of the example with these changes."""
        after = document(**changes)
        if after["spec"] != self.document["spec"]:
            self.document, self.generation = after, self.generation + 1

    def ask(self, verb: str, **more: Any) -> None:
        """`kubectl annotate` with a new request."""
        self.requests += 1
        asked = {"id": f"request-{self.requests}", "user": "alice", "time": "2026-01-01T00:00:00Z", **more}
        self.annotations[names.request_annotation(verb)] = json.dumps(asked)

    @property
    def owner(self) -> Owner:
        return Owner("default", "cartpole", "uid-1", self.generation)

    @property
    def run(self) -> str:
        """The run that is asked for now."""
        return run_of(self.observe())

    def returns(self, run: str) -> float:
        """What a run's policy is worth: odd seeds train badly."""
        return BAD_RETURN if self.seeds.get(run, 0) % 2 else GOOD_RETURN

    def scatter(self, run: str) -> float:
        """The standard deviation of its returns."""
        return NOISY if self.seeds.get(run, 0) % 8 == 4 else STEADY

    def run_of_digest(self, wanted: str) -> str:
        return next(run for run in self.origins if wanted in self.digests(run))

    def has_approval(self, run: str, seen: Observed) -> bool:
        """Whether somebody has approved a policy, whatever the gate says of it."""
        asked = seen.request(names.APPROVE)
        revisions = [revision for revision in seen.status.revisions if revision.run == run]
        return any(revision.approval or (asked and asked.revision == revision.number) for revision in revisions)

    def may_be_served(self, run: str, seen: Observed) -> bool:
        """Whether the gate may let a policy through, by what it is worth in truth, or somebody has approved it."""
        if self.has_approval(run, seen):
            return True
        rules, last = seen.spec.gate, seen.status.serving
        told = resources.served_policy(seen.owner, seen.ray_service.serve_config) if seen.ray_service else None
        serving = last.digest if last else told["digest"] if told else None
        if self.returns(run) < rules.min_return:
            return False
        if rules.against_serving is None or serving in {None, *self.digests(run), *self.unplayable}:
            return True
        return self.returns(run) >= self.returns(self.run_of_digest(serving)) - (rules.against_serving.max_regression or 0)

    def digests(self, run: str) -> list[str]:
        """What a run was published with, the newest last."""
        return [digest(run, time) for time in range(self.times.get(run, 0) + 1)]

    def lose(self, run: str) -> None:
        """The bundle of a run is gone from the storage; what replicas hold, they hold."""
        self.lost.add(self.digests(run)[-1])
        self.unplayable.add(self.digests(run)[-1])

    # What the controller does to the world.

    def observe(self) -> Observed:
        ray_service = None
        if self.ray_service:
            ray_service = RayServiceState(
                serve_config=self.ray_service["spec"].get("serveConfigV2", ""),
                hash=self.ray_service["metadata"].get("annotations", {}).get(names.ANNOTATION_HASH),
                foreign=not observation.is_owned(self.ray_service, self.owner),
                switching=bool(self.active_cluster and self.pending_cluster),
                pods_hash=self.active_hash,
                problem=Problem("ImagePullFailed", "the image cannot be pulled") if self._is_stuck() else None,
                pending_since=timestamp(self.pending_since) if self.active_cluster and self.pending_since else None,
                active_config=copy.deepcopy(self.active_config),
            )
        rows = tuple(self._row(index, held) for index, held in enumerate(self.rows))
        claim, ingress = copy.deepcopy(self.claim), copy.deepcopy(self.ingress)
        return Observed(
            now=self.now,
            owner=self.owner,
            spec=spec_of(self.document),
            status=status_of(copy.deepcopy(self.status)),
            created="2026-01-01T00:00:00Z",
            jobs=tuple(self._job_state(name, job) for name, job in self.jobs.items()),
            claim=observation.claim_state(claim, self.owner, []) if claim else None,
            ray_service=ray_service,
            ingress=observation.ingress_state(ingress, self.owner) if ingress else None,
            replicas=Unknown("timeout") if self.unreachable and self.rows else Replicas(len(rows), rows) if rows else None,
            free=self.free,
            requests=observation.requests({"annotations": self.annotations}),
        )

    def apply(self, action: Action) -> None:
        manifest = copy.deepcopy(dict(action.manifest)) if isinstance(action, Apply | Create) else {}
        if isinstance(action, ForgetPending):
            self.forgotten += 1
            self.pending_cluster = self.pending_config = self.pending_since = None
        elif isinstance(action, Create):
            if action.name in self.jobs:
                raise Conflict(f"{action.name} exists")
            self.jobs[action.name] = Job(manifest)
            self.created.append(action.name)
            job = self.jobs[action.name]
            if job.labels[names.LABEL_ROLE] == names.ROLE_TRAIN:
                self.seeds[job.labels[names.LABEL_RUN]] = int(job.flags["--seed"])
                self.origins[job.labels[names.LABEL_RUN]] = spec_of(self.document).origin
        elif isinstance(action, Delete):
            if action.name in self.jobs and action.kind == self.jobs[action.name].manifest["kind"]:
                self._supersede(self.jobs[action.name])
            elif action.kind == "Ingress":
                self.ingress = None
        elif action.kind == "PersistentVolumeClaim":
            self.claim = manifest
        elif action.kind == "Ingress":
            self.ingress = manifest
        elif action.field_manager == names.SERVE_FIELD_MANAGER:
            self._serve(manifest)
        else:
            self._apply_ray_service(manifest)

    def write(self, status: Status) -> None:
        self.status = document_of(status)

    def reconcile(self, stop_after: int | None = None, seen: Observed | None = None) -> Any:
        """One reconcile; the process dies after `stop_after` actions, if given."""
        seen = seen or self.observe()
        for run in self.published:
            is_of_this_spec = self.origins[run] == seen.spec.origin
            if self.has_approval(run, seen) or (is_of_this_spec and self.may_be_served(run, seen)):
                self.approved.update(self.digests(run))
        self.watch(seen)
        plan = reconcile.plan(seen, SETTINGS)
        for index, action in enumerate(plan.actions):
            if stop_after is not None and index >= stop_after:
                return plan
            try:
                self.apply(action)
            except Conflict:
                return plan
        if stop_after is None:
            self.write(plan.status)
        return plan

    # What the world does by itself.

    def finish(self, name: str) -> None:
        """A Job comes to its end: it publishes, or says again what was published, and evaluates."""
        job = self.jobs[name]
        if job.phase == "Running" and not job.deleting:
            job.phase = "Succeeded"
            if job.prunes:
                self._remove(job.prunes)
            else:
                self._publish(job, job.labels[names.LABEL_RUN])

    def fail(self, name: str) -> None:
        """A Job fails; one that prunes has removed one of its bundles by then."""
        if self.jobs[name].phase == "Running":
            self.jobs[name].phase = "Failed"
            self._remove(self.jobs[name].prunes[:1])

    def collect(self) -> None:
        """The garbage collector: what is being deleted goes."""
        self.jobs = {name: job for name, job in self.jobs.items() if not job.deleting}

    def kuberay(self) -> None:
        """KubeRay gets on: a pending cluster becomes the active one, and the replicas are as many as the configuration asks for."""
        if self.ray_service is None:
            self.active_cluster = self.pending_cluster = self.active_hash = None
            self.active_config = self.pending_config = self.pending_since = None
            self.rows, self.trying = [], []
            return
        self._prepare_cluster()
        if self.pending_cluster and not self._is_stuck():
            self.active_cluster, self.active_config = self.pending_cluster, self.pending_config
            self.pending_cluster = self.pending_config = self.pending_since = None
            self.active_hash = hash_of(self.active_config)
        applications = resources.parsed_serve_config(self.ray_service["spec"].get("serveConfigV2", "")).get("applications", [])
        if not applications:
            self.rows, self.trying = [], []
            return
        number = applications[0]["deployments"][0]["num_replicas"]
        policy = resources.served_policy(self.owner, self.ray_service["spec"]["serveConfigV2"])
        # A new replica loads before it answers; one that has a policy keeps it until it has loaded the next.
        loaded = policy["digest"] if policy and policy["digest"] not in self.lost | self.corrupt else None
        self.rows = [*self.rows[:number], *[loaded] * (number - len(self.rows))]
        self.trying = [*self.trying[:number], *[None] * (number - len(self.trying))]

    def load(self) -> None:
        """One more replica takes what its configuration names."""
        text = self.ray_service["spec"].get("serveConfigV2", "") if self.ray_service else ""
        policy, candidate = resources.served_policy(self.owner, text), resources.tried_policy(self.owner, text)
        for index, held in enumerate(self.rows):
            taken = policy["digest"] if policy and policy["digest"] not in self.lost | self.corrupt else held
            tried = candidate if candidate and candidate["digest"] not in self.lost | self.corrupt else None
            if (taken, tried) != (held, self.trying[index]):
                self.rows[index], self.trying[index] = taken, tried
                return

    def get_on(self) -> Any:
        """Everything gets on by one step, without faults, and is reconciled."""
        self.now += timedelta(seconds=5)
        for name in list(self.jobs):
            self.finish(name)
        self.collect()
        self.kuberay()
        self.load()
        return self.reconcile()

    def settle(self, rounds: int = 60) -> list[Any]:
        """Everything gets on, without faults, until nothing changes: the plans of the last two reconciles."""
        self.unreachable = False
        last: list[Any] = []
        for _ in range(rounds):
            before = (json.dumps(self.status, sort_keys=True), len(self.created))
            last = [*last[-1:], self.get_on()]
            is_held = self.document["spec"]["paused"] or self.condition("Degraded")["status"] == "True"
            if "candidate" in self.status and not is_held:
                continue  # a step takes its time
            if len(last) == 2 and not last[-1].actions and before == (json.dumps(self.status, sort_keys=True), len(self.created)):
                return last
        raise AssertionError(f"still busy after {rounds} rounds: {last[-1].actions} {self.status}")

    def until(self, is_there: Callable[[], bool], rounds: int = 60) -> None:
        """Everything gets on, without faults, until something is so."""
        for _ in range(rounds):
            if is_there():
                return
            self.get_on()
        raise AssertionError(f"not so after {rounds} rounds: {self.status}")

    def until_step(self, number: int) -> None:
        """The same, until a candidate is at this step of its rollout."""
        self.until(lambda: self.status.get("candidate", {}).get("step") == number)

    def condition(self, type_: str) -> dict[str, Any]:
        return next(condition for condition in self.status["conditions"] if condition["type"] == type_)

    def _job_state(self, name: str, job: Job) -> JobState:
        run, phase = job.labels.get(names.LABEL_RUN, ""), job.phase
        result = None
        if phase == "Succeeded" and job.has_pod and not job.prunes:
            asked = json.loads(job.flags["--evaluation"])
            figures = {**asked, "mean": self.returns(run), "std": self.scatter(run)}
            if "against" in asked:
                figures["against"] = self._against(job, asked["against"], run)
            result = {"digest": job.digest, "uri": f"file:///storage/{run}", "run": run, "envSteps": 1000, "evaluation": figures}
        problem = Problem("TrainingDiverged", "the loss is NaN") if phase == "Failed" else None
        labels = job.labels
        return JobState(
            name,
            labels[names.LABEL_ROLE],
            run,
            phase,
            evaluation=labels.get(names.LABEL_EVALUATION),
            deleting=job.deleting,
            hash=job.manifest["metadata"]["annotations"][names.ANNOTATION_HASH],
            replaces=job.manifest["metadata"]["annotations"].get(names.ANNOTATION_REPLACES),
            result=result,
            problem=problem,
            prunes=job.prunes,
            kind=job.manifest["kind"],
        )

    def _publish(self, job: Job, run: str) -> None:
        """What lies there is said again; what is lost is made again, and comes out otherwise where the seed is below 2."""
        job.unplayable = json.loads(job.flags["--evaluation"]).get("against") in self.lost
        if job.labels[names.LABEL_ROLE] == names.ROLE_EVALUATE:
            job.digest = job.flags["--digest"]
            return
        if self.digests(run)[-1] in self.lost and self.seeds.get(run, 0) < 2:
            self.times[run] = self.times.get(run, 0) + 1
        self.lost.discard(self.digests(run)[-1])
        self.published.add(run)
        job.digest = self.digests(run)[-1]

    def _remove(self, digests: tuple[str, ...]) -> None:
        """Bundles go, with their evaluations and the checkpoints of their runs."""
        self.prunings += len(set(digests) - self.lost)
        self.lost |= set(digests)
        self.unplayable |= set(digests)

    def _against(self, job: Job, opponent: str, run: str) -> dict[str, Any]:
        """What the other policy did in the same episodes."""
        if job.unplayable:
            return {"digest": opponent, "problem": "Missing: there is no manifest.json"}
        other = self.run_of_digest(opponent)
        mean, std = self.returns(other), self.scatter(other)
        figures = {"differenceMean": self.returns(run) - mean, "differenceStd": math.hypot(std, self.scatter(run))}
        return {"digest": opponent, "mean": mean, "std": std, **figures}

    def _row(self, index: int, held: str | None) -> ReplicaRow:
        text = self.ray_service["spec"].get("serveConfigV2", "") if self.ray_service else ""
        policy, candidate = resources.served_policy(self.owner, text), resources.tried_policy(self.owner, text)
        error = self._refusal(policy["digest"]) if policy and policy["digest"] != held else None
        tried = self.trying[index]
        refused = policy["digest"] if policy and error else None
        row = ReplicaRow(f"replica-{index}", held, refused, error, can_try=not self.is_of_an_older_day)
        if tried:
            errors = 500 if tried["digest"] in self.faulty else 0
            asked = Tally(requests=1000, errors=errors) if tried["weight"] or tried["mode"] == "Shadow" else Tally()
            compared = asked.requests if tried["mode"] == "Shadow" else 0
            trial = Trial(Tally(requests=9000), asked, compared, compared)
            return replace(row, candidate=CandidateRow(tried["digest"], tried["mode"], tried["weight"], True), trial=trial)
        problem = self._refusal(candidate["digest"]) if candidate else None
        if candidate and problem:
            found = CandidateRow(candidate["digest"], candidate["mode"], candidate["weight"], False, problem=problem)
            return replace(row, candidate=found)
        return row

    def _refusal(self, digest: str) -> Problem | None:
        if digest in self.corrupt:
            return Problem("DigestMismatch", "policy.onnx is not what its digest names")
        return Problem("Missing", "there is no manifest.json") if digest in self.lost else None

    def _supersede(self, job: Job) -> None:
        if job.prunes:
            job.deleting = True
            return
        is_of_another_spec = job.labels[names.LABEL_RUN] != self.run
        is_recorded = any(revision["run"] == job.labels[names.LABEL_RUN] for revision in self.status.get("revisions", []))
        # A failed Job of the same run goes only where the user has mended what its pods are made from.
        if (is_of_another_spec or job.phase == "Failed") and not is_recorded and not job.deleting:
            self.superseded += 1
        job.deleting = True

    def _serve(self, manifest: dict[str, Any]) -> None:
        if self.ray_service is None:
            raise Conflict("no such RayService: a patch cannot make one")
        self.ray_service["spec"]["serveConfigV2"] = manifest["spec"]["serveConfigV2"]
        policy = resources.served_policy(self.owner, manifest["spec"]["serveConfigV2"])
        self.served.append(policy["digest"] if policy else "")
        candidate = resources.tried_policy(self.owner, manifest["spec"]["serveConfigV2"])
        self.tried |= {candidate["digest"]} if candidate else set()

    def _apply_ray_service(self, manifest: dict[str, Any]) -> None:
        live = self.ray_service
        config = live["spec"].get("serveConfigV2") if live else None
        self.ray_service = manifest
        if config is not None:
            self.ray_service["spec"]["serveConfigV2"] = config
        self._prepare_cluster()

    def _prepare_cluster(self) -> None:
        """KubeRay compares what is asked for with the cluster that it prepares, or else with the one that serves."""
        wanted = self.ray_service["spec"]["rayClusterConfig"]
        known = self.pending_config if self.pending_cluster else self.active_config
        is_other = known != wanted or (self.is_stubborn and self.pending_cluster is None and self.forgotten > 0)
        if known is None or is_other:
            self.pending_cluster, self.pending_since = f"cluster-{self.generation}-{self.forgotten}", self.now
            self.pending_config = copy.deepcopy(wanted)

    def _is_stuck(self) -> bool:
        if self.pending_config is None:
            return False
        return self.pending_config["headGroupSpec"]["template"]["spec"]["containers"][0]["image"] in self.unpullable


def hash_of(config: dict[str, Any]) -> str:
    """The hash that the pods of a cluster bear."""
    return str(config["headGroupSpec"]["template"]["metadata"]["annotations"][names.ANNOTATION_HASH])


def run_of(seen: Observed) -> str:
    """The run that an observed PolicyModel asks for."""
    return replace(seen.spec, trigger=retraining.trigger(seen)).run


__all__ = ["BAD_RETURN", "GOOD_RETURN", "SETTINGS", "World", "digest", "document", "replace", "run_of"]
