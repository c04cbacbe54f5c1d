"""The whole operator (kopf, queue, cluster) against a fake API server: what it makes, and that faults change nothing of the end."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import kopf
import pytest
from fakes.kube import Kube
from fakes.world import document

from controller import handlers, names, reconcile, resources
from controller.cluster import Cluster
from controller.loop import KeyedQueue
from controller.model import CandidateRow, Owner, ReplicaRow, Replicas, Settings, Unknown
from controller.spec import Json, Spec, spec_of

DEADLINE_S = 45.0
FASTER = 20
SETTINGS = Settings("train:1", "serve:1")
RUN = spec_of(document()).run
JOB = names.training_job("cartpole", RUN)


class Harbour(Cluster):
    """The cluster of the fake: replicas are not reached over HTTP, but serve what the RayService tells them."""

    def __init__(self, kube: Kube) -> None:
        super().__init__()
        self.kube = kube

    def _replicas(self, owner: Owner, spec: Spec, ray_service: Json) -> Replicas | Unknown | None:
        policy = resources.served_policy(owner, ray_service["spec"].get("serveConfigV2", ""))
        tried = resources.tried_policy(owner, ray_service["spec"].get("serveConfigV2", ""))
        candidate = CandidateRow(tried["digest"], tried["mode"], tried["weight"], True) if tried else None
        digest = policy["digest"] if policy else None
        rows = tuple(ReplicaRow(str(index), digest, candidate=candidate) for index in range(spec.serving.replicas))
        return Replicas(len(rows), rows)


class Running:
    """An operator in a thread of its own."""

    def __init__(self, kube: Kube, namespaces: Sequence[str] = ()) -> None:
        self._namespaces = namespaces
        self._stop, self._ready, self._failure = threading.Event(), threading.Event(), []
        self._thread = threading.Thread(target=self._run, args=(kube,))
        self._thread.start()
        assert self._ready.wait(DEADLINE_S)
        assert not self._failure, self._failure

    def _run(self, kube: Kube) -> None:
        try:
            registry = kopf.OperatorRegistry()
            handlers.register(registry, Harbour(kube), SETTINGS, self._namespaces)
            operator = kopf.operator(
                registry=registry,
                standalone=True,
                clusterwide=not self._namespaces,
                namespaces=self._namespaces,
                stop_flag=self._stop,
                ready_flag=self._ready,
            )
            asyncio.run(operator)
        except BaseException as failure:  # noqa: BLE001 - it is told by the thread that waits
            self._failure.append(failure)
            self._ready.set()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(DEADLINE_S)
        assert not self._thread.is_alive(), "the operator does not stop"
        assert not self._failure, self._failure


@pytest.fixture
def operator(kube: Kube) -> Iterator[Callable[..., Running]]:
    """Starts operators; each is stopped after the test."""
    running: list[Running] = []

    def start(namespaces: Sequence[str] = ()) -> Running:
        running.append(Running(kube, namespaces))
        return running[-1]

    yield start
    for one in running:
        one.stop()


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looks again sooner than the planner asks for."""
    add = KeyedQueue.add
    monkeypatch.setattr(KeyedQueue, "add", lambda queue, key, after_s=0.2: add(queue, key, after_s / FASTER))


def until(is_true: Callable[[], Any], what: Callable[[], Any] = lambda: "") -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not is_true():
        assert time.monotonic() < deadline, f"waited in vain: {what()}"
        time.sleep(0.02)


def create(kube: Kube, **changes: Any) -> None:
    kube.put("policymodels", document(**changes))


def edit(kube: Kube, **changes: Any) -> None:
    after = document(**changes)["spec"]
    kube.change("policymodels", "cartpole", lambda found: found.update(spec=after))


def finish(kube: Kube, name: str, plural: str = "jobs") -> None:
    """The pod of a Job, or the submitter of a RayJob, ends with a result, as `app.train` says it."""
    job = kube.one(plural, name)
    assert job
    template = job["spec"]["template" if plural == "jobs" else "submitterPodTemplate"]
    flags = template["spec"]["containers"][0]["args"]
    evaluation = json.loads(flags[flags.index("--evaluation") + 1])
    run = job["metadata"]["labels"][names.LABEL_RUN]
    figures = {**evaluation, "mean": 500.0, "std": 0.0}
    result = {"run": run, "digest": f"sha256:{run:0<64}", "uri": f"file:///storage/{run}", "evaluation": figures}
    ended = {"terminated": {"exitCode": 0, "reason": "Completed", "message": json.dumps({"result": result})}}
    labels = {**template["metadata"]["labels"], "batch.kubernetes.io/job-name": name}
    pod = {"metadata": {"name": f"{name}-x", "labels": labels, "ownerReferences": [{"uid": job["metadata"]["uid"]}]}}
    kube.put("pods", {**pod, "status": {"phase": "Succeeded", "containerStatuses": [{"name": "train", "image": "i", "state": ended}]}})
    ended_well = {"succeeded": 1, "conditions": [{"type": "Complete", "status": "True"}]}
    if plural == "rayjobs":
        ended_well = {"jobDeploymentStatus": "Complete", "jobStatus": "SUCCEEDED"}
    kube.change(plural, name, lambda found: found.update(status=ended_well))


def status(kube: Kube) -> dict[str, Any]:
    return (kube.one("policymodels", "cartpole") or {}).get("status", {})


def is_ready(kube: Kube) -> bool:
    found = kube.one("policymodels", "cartpole") or {}
    told = found.get("status", {})
    return told.get("phase") == "Ready" and told["observedGeneration"] == found["metadata"]["generation"]


def served_digest(kube: Kube) -> str | None:
    found = kube.one("rayservices", "cartpole")
    policy = resources.served_policy(Owner("default", "cartpole", ""), found["spec"].get("serveConfigV2", "")) if found else None
    return policy["digest"] if policy else None


def come_to_rest(kube: Kube) -> None:
    """Everything is made, the Job ends, and what it published is served."""
    until(lambda: kube.one("jobs", JOB), lambda: status(kube))
    finish(kube, JOB)
    until(lambda: is_ready(kube), lambda: status(kube))
    # Events follow the status.
    until(lambda: {"Accepted", "Published", "GatePassed", "Serving"} <= {event["reason"] for event in kube.all("events")})


def check_the_end(kube: Kube) -> None:
    """What every road has to lead to."""
    assert served_digest(kube) == f"sha256:{RUN:0<64}"
    assert kube.created("jobs") == [JOB]
    assert [found["metadata"]["name"] for found in kube.all("persistentvolumeclaims")] == ["cartpole-policies"]
    assert [found["metadata"]["name"] for found in kube.all("ingresses")] == ["cartpole"]
    assert [found["metadata"]["name"] for found in kube.all("rayservices")] == ["cartpole"]


def test_a_policy_model_gets_its_children_and_becomes_ready(kube, operator):
    operator()
    create(kube)
    come_to_rest(kube)
    check_the_end(kube)
    assert status(kube)["serving"]["revision"] == 1


def test_rights_in_its_namespaces_are_enough_for_an_operator_of_these(kube, operator):
    kube.is_namespaced = True
    operator(["default"])
    create(kube)
    come_to_rest(kube)
    check_the_end(kube)


def test_a_policy_model_that_was_there_before_the_operator_is_brought_to_life(kube, operator):
    create(kube)
    operator()
    come_to_rest(kube)
    check_the_end(kube)


def test_an_unchanged_world_is_not_written_to(kube, operator):
    operator()
    create(kube)
    come_to_rest(kube)
    before = list(kube.writes)
    # A change that means nothing: it brings a look, and after a while another.
    kube.change("policymodels", "cartpole", lambda found: found["metadata"].update(annotations={"note": "x"}))
    time.sleep(2 * reconcile.WATCHING_S / FASTER)
    assert kube.writes == before


def test_an_api_that_answers_500_for_a_while_changes_nothing_of_the_end(kube, operator):
    operator()
    kube.fail(5)
    create(kube)
    until(lambda: kube.failed == 5)
    until(lambda: kube.one("jobs", JOB), lambda: status(kube))
    kube.fail(5)
    finish(kube, JOB)
    until(lambda: is_ready(kube), lambda: status(kube))
    assert kube.failed == 10
    check_the_end(kube)


def test_without_the_right_to_look_nothing_is_claimed_and_with_it_all_is_as_before(kube, operator):
    operator()
    create(kube)
    come_to_rest(kube)

    def found(type_: str) -> tuple[str, str]:
        condition = next(condition for condition in status(kube)["conditions"] if condition["type"] == type_)
        return condition["status"], condition["reason"]

    kube.forbidden = {"persistentvolumeclaims"}
    until(lambda: found("Ready") == ("Unknown", "NotObserved"), lambda: status(kube))
    assert found("Available") == ("Unknown", "NotObserved")
    assert found("Trained") == ("True", "Published")
    assert status(kube)["phase"] == "Unknown"
    assert "persistentvolumeclaims" in next(c["message"] for c in status(kube)["conditions"] if c["type"] == "Ready")
    kube.forbidden = set()
    until(lambda: is_ready(kube), lambda: status(kube))
    check_the_end(kube)


def test_without_the_right_to_see_ray_jobs_those_who_have_none_are_followed_all_the_same(kube, operator):
    kube.forbidden = {"rayjobs"}
    operator()
    create(kube)
    come_to_rest(kube)
    assert is_ready(kube)


def test_where_no_event_may_be_written_the_rest_is_done_all_the_same(kube, operator, caplog):
    kube.forbidden = {"create events"}
    operator()
    create(kube)
    until(lambda: kube.one("jobs", JOB), lambda: status(kube))
    finish(kube, JOB)
    until(lambda: is_ready(kube), lambda: status(kube))
    lost = [record.getMessage() for record in caplog.records if record.name == "controller.cluster"]
    assert any("default/cartpole: no event 'Published: " in line for line in lost), lost
    assert not [record for record in caplog.records if record.exc_info and record.name == "controller.loop"]


def test_what_happened_while_no_watch_told_it_is_seen_all_the_same(kube, operator):
    operator()
    create(kube)
    until(lambda: kube.one("jobs", JOB) and kube.one("ingresses", "cartpole"), lambda: status(kube))
    kube.drop_watches(gap=True)
    finish(kube, JOB)
    kube.remove("ingresses", "default", "cartpole")
    kube.resume_watches()
    until(lambda: is_ready(kube) and kube.one("ingresses", "cartpole"), lambda: status(kube))
    check_the_end(kube)


def test_a_policy_model_made_in_a_gap_of_the_watches_is_found(kube, operator):
    operator()
    kube.drop_watches(gap=True)
    create(kube)
    kube.resume_watches()
    come_to_rest(kube)
    check_the_end(kube)


def test_a_restart_in_the_middle_makes_no_second_job(kube, operator):
    first = operator()
    create(kube)
    until(lambda: kube.one("jobs", JOB))
    first.stop()
    finish(kube, JOB)
    operator()
    until(lambda: is_ready(kube), lambda: status(kube))
    check_the_end(kube)


def test_a_restart_at_rest_writes_nothing(kube, operator):
    first = operator()
    create(kube)
    come_to_rest(kube)
    first.stop()
    before = list(kube.writes)
    operator()
    time.sleep(1.0)
    assert kube.writes == before


def test_a_job_of_somebody_else_under_our_name_is_told_and_not_taken(kube, operator):
    kube.put("jobs", {"metadata": {"name": JOB}, "spec": {}})
    operator()
    create(kube)
    until(lambda: any(found["reason"] == "ActionRefused" for found in status(kube).get("conditions", [])), lambda: status(kube))
    degraded = next(found for found in status(kube)["conditions"] if found["type"] == "Degraded")
    assert f'Create Job {JOB}: jobs "{JOB}" already exists' in degraded["message"]
    kube.remove("jobs", "default", JOB)
    come_to_rest(kube)


def test_another_seed_replaces_the_job_and_then_what_is_served(kube, operator):
    operator()
    create(kube)
    come_to_rest(kube)
    edit(kube, training__seed=2)
    second = spec_of(document(training__seed=2)).run
    until(lambda: kube.one("jobs", names.training_job("cartpole", second)), lambda: status(kube))
    assert served_digest(kube) == f"sha256:{RUN:0<64}"
    finish(kube, names.training_job("cartpole", second))
    until(lambda: is_ready(kube) and kube.one("jobs", JOB) is None, lambda: status(kube))
    assert served_digest(kube) == f"sha256:{second:0<64}"
    assert status(kube)["serving"]["revision"] == 2


def test_a_ray_job_is_watched_to_its_end_and_goes_when_another_is_asked_for(kube, operator):
    many_nodes = {"training__engine": "RayJob", "storage__pvc": {"size": "1Gi", "accessModes": ["ReadWriteMany"]}}
    operator()
    create(kube, **many_nodes)
    until(lambda: kube.one("rayjobs", JOB), lambda: status(kube))
    edit(kube, **many_nodes, training__seed=2)
    second = names.training_ray_job("cartpole", spec_of(document(training__seed=2)).run)
    until(lambda: kube.one("rayjobs", second) and kube.one("rayjobs", JOB) is None, lambda: status(kube))
    finish(kube, second, "rayjobs")
    until(lambda: is_ready(kube), lambda: status(kube))
    assert kube.created("jobs") == []


def test_a_job_whose_pod_is_refused_says_so_until_it_is_made(kube, operator):
    operator()
    create(kube)
    until(lambda: kube.one("jobs", JOB), lambda: status(kube))
    job = kube.one("jobs", JOB)
    assert job
    involved = {"uid": job["metadata"]["uid"]}
    metadata = {"name": "refused", "namespace": "default"}
    kube.put("events", {"metadata": metadata, "reason": "FailedCreate", "message": "exceeded quota: q", "involvedObject": involved})

    def degraded() -> str:
        found = next((c for c in status(kube).get("conditions", []) if c["type"] == "Degraded"), {})
        return f"{found.get('reason')}: {found.get('message')}"

    until(lambda: degraded().startswith(f"PodsNotCreated: the Job {JOB} cannot create its pods: exceeded quota: q"), degraded)
    finish(kube, JOB)
    until(lambda: is_ready(kube) and degraded().startswith("AsExpected"), degraded)


def test_a_training_whose_environment_prints_each_step_is_heard_all_the_same(kube, operator):
    operator()
    create(kube)
    until(lambda: kube.one("jobs", JOB), lambda: status(kube))
    template = kube.one("jobs", JOB)["spec"]["template"]
    labels = {**template["metadata"]["labels"], "batch.kubernetes.io/job-name": JOB}
    kube.put("pods", {"metadata": {"name": f"{JOB}-x", "labels": labels}, "status": {"phase": "Running"}})

    def says(iteration: int, steps: int) -> None:
        progress = {"iteration": iteration, "envSteps": 1024, "progressPercent": 12.5, "etaSeconds": 40, "attempt": 1}
        kube.logs[f"{JOB}-x"] = json.dumps({"progress": progress}) + "\n" + "a step ± 1\n" * steps

    def told() -> str:
        return next((c["message"] for c in status(kube).get("conditions", []) if c["type"] == "Trained"), "")

    for iteration, steps in ((3, 0), (4, 100), (5, 4000)):
        says(iteration, steps)
        until(lambda iteration=iteration: f"is training: iteration {iteration}," in told(), told)
    says(6, 6000)
    until(lambda: "is training, and was last heard of at iteration 5," in told(), told)
    assert status(kube)["training"]["iteration"] == 5
    says(7, 1)
    until(lambda: "is training: iteration 7," in told(), told)
    del kube.logs[f"{JOB}-x"]
    until(lambda: "is training, and was last heard of at iteration 7," in told(), told)
    kube.remove("pods", "default", f"{JOB}-x")
    until(lambda: "is starting" in told(), told)
    assert "iteration" not in status(kube)["training"]


def ask(kube: Kube, verb: str, **more: Any) -> None:
    """`kubectl annotate`, with what the API server notes of it."""
    annotation = names.request_annotation(verb)
    asked = json.dumps({"id": "r1", "user": "alice", "time": "2026-01-01T12:00:00Z", **more})
    fields = {"f:metadata": {"f:annotations": {f"f:{annotation}": {}}}}
    managed = {"manager": "kubectl-annotate", "operation": "Update", "time": "2026-01-01T12:00:00Z", "fieldsV1": fields}
    kube.change(
        "policymodels", "cartpole", lambda found: found["metadata"].update(annotations={annotation: asked}, managedFields=[managed])
    )


def test_a_policy_that_fails_the_gate_is_served_by_somebodys_word(kube, operator):
    operator()
    create(kube, gate__minReturn=900)
    until(lambda: kube.one("jobs", JOB), lambda: status(kube))
    finish(kube, JOB)
    until(lambda: any(found["reason"] == "GateFailed" for found in status(kube).get("conditions", [])), lambda: status(kube))
    assert served_digest(kube) is None
    ask(kube, names.APPROVE, revision=1)
    until(lambda: is_ready(kube), lambda: status(kube))
    approval = {"user": "alice", "fieldManager": "kubectl-annotate", "time": "2026-01-01T12:00:00Z"}
    assert status(kube)["revisions"][0]["approval"] == approval
    check_the_end(kube)


def test_a_request_trains_again_once(kube, operator):
    operator()
    create(kube)
    come_to_rest(kube)
    ask(kube, names.RETRAIN)
    until(lambda: status(kube).get("lastHandledRequests") == {"retrain": "r1"}, lambda: status(kube))
    until(lambda: len(kube.created("jobs")) == 2)
    again = kube.created("jobs")[-1]
    finish(kube, again)
    until(lambda: is_ready(kube) and kube.one("jobs", JOB) is None, lambda: status(kube))
    assert status(kube)["serving"]["revision"] == 2
    assert kube.created("jobs") == [JOB, again]


def test_what_is_deleted_is_gone_and_nothing_is_made_again(kube, operator):
    operator()
    create(kube)
    come_to_rest(kube)
    kube.remove("policymodels", "default", "cartpole")
    time.sleep(1.0)
    assert [kube.all(plural) for plural in ("jobs", "rayservices", "ingresses", "persistentvolumeclaims")] == [[], [], [], []]


def test_an_adopted_ray_service_gets_its_configuration_and_nothing_else(kube, operator):
    spec = {"rayClusterConfig": {"rayVersion": "2.60.0"}}
    kube.put("rayservices", {"metadata": {"name": "shared"}, "spec": spec})
    operator()
    create(kube, serving__rayService="shared")
    until(lambda: "serveConfigV2" in kube.one("rayservices", "shared")["spec"], lambda: status(kube))
    found = kube.one("rayservices", "shared")
    assert found["spec"]["rayClusterConfig"] == spec["rayClusterConfig"]
    assert "ownerReferences" not in found["metadata"]
    assert len(kube.all("rayservices")) == 1


def test_a_second_cluster_that_does_not_come_up_is_undone_as_kuberay_takes_it(kube, operator):
    create(kube, rollout={"progressDeadlineSeconds": 30})
    operator()
    come_to_rest(kube)
    before = kube.one("rayservices", "cartpole")
    assert before
    config, hash_ = before["spec"]["rayClusterConfig"], before["metadata"]["annotations"][names.ANNOTATION_HASH]
    for name, spec in (("first", config), ("second", {})):
        kube.put("rayclusters", {"metadata": {"name": name, "namespace": "default"}, "spec": spec})
    kube.change("rayclusters", "second", lambda found: found["metadata"].update(creationTimestamp="2020-01-01T00:00:00Z"))
    pod = {"metadata": {"name": "head", "labels": {"ray.io/cluster": "first"}, "annotations": {names.ANNOTATION_HASH: hash_}}}
    kube.put("pods", {**pod, "spec": {"containers": []}, "status": {"phase": "Running"}})
    edit(kube, serving__image="bad:1", rollout={"progressDeadlineSeconds": 30})
    until(lambda: (kube.one("rayservices", "cartpole") or {})["metadata"]["annotations"][names.ANNOTATION_HASH] != hash_)
    switching = {"activeServiceStatus": {"rayClusterName": "first"}, "pendingServiceStatus": {"rayClusterName": "second"}}
    kube.change("rayservices", "cartpole", lambda found: found.update(status=switching))

    def is_undone() -> bool:
        found = kube.one("rayservices", "cartpole") or {}
        return found["spec"]["rayClusterConfig"] == config and "pendingServiceStatus" not in found["status"]

    until(is_undone, lambda: status(kube))
    until(lambda: status(kube).get("undoneSwitch", {}).get("forgotten") == 1, lambda: status(kube))
    (degraded,) = [condition for condition in status(kube)["conditions"] if condition["type"] == "Degraded"]
    assert degraded["reason"] == "SwitchUndone"


def test_without_room_on_any_node_the_pods_are_left_as_they_are(kube, operator):
    create(kube)
    operator()
    come_to_rest(kube)
    before = kube.one("rayservices", "cartpole")
    assert before
    hash_ = before["metadata"]["annotations"][names.ANNOTATION_HASH]
    conditions = [{"type": "Ready", "status": "True"}]
    has = {"allocatable": {"cpu": "100m", "memory": "1Gi", "pods": "110"}, "conditions": conditions}
    kube.put("nodes", {"metadata": {"name": "n", "namespace": ""}, "spec": {}, "status": has})
    pod = {"metadata": {"name": "head", "labels": {"ray.io/cluster": "first"}, "annotations": {names.ANNOTATION_HASH: hash_}}}
    kube.put("pods", {**pod, "spec": {"containers": []}, "status": {"phase": "Running"}})
    kube.change("rayservices", "cartpole", lambda found: found.update(status={"activeServiceStatus": {"rayClusterName": "first"}}))
    edit(kube, serving__image="mine:2")
    until(lambda: status(kube)["phase"] == "Degraded", lambda: status(kube))
    assert "free: n: 0.1 cpu, 1.0Gi memory, 110 pods" in json.dumps(status(kube))
    assert kube.one("rayservices", "cartpole")["spec"] == before["spec"]
    kube.forbidden.add("nodes")
    until(lambda: kube.one("rayservices", "cartpole")["spec"] != before["spec"], lambda: status(kube))
