"""A change of the pods: when it is not tried, and how one that does not come up is undone."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from fakes.world import SETTINGS, World, document, hash_of

from controller import capacity, names, reconcile, resources
from controller.model import Apply, Capacity, ForgetPending, Observed, Owner, Plan, Unknown

GI = 1024.0**3
OWNER = Owner("default", "cartpole", "uid-1")
FULL = (Capacity("node-1", {"cpu": 0.1, "memory": GI, "pods": 90}), Capacity("node-2", {"cpu": 4.0, "memory": GI, "pods": 90}))


def plan(seen: Observed) -> Plan:
    return reconcile.plan(seen, SETTINGS)


def ready(**changes: Any) -> World:
    world = World(document(**changes))
    world.settle()
    assert world.condition("Ready")["status"] == "True"
    return world


def stuck(**changes: Any) -> World:
    """A world whose user asks for pods that no node can start; the second cluster is there."""
    world = ready(**changes)
    world.unpullable.add("bad:1")
    world.edit(serving__image="bad:1", **changes)
    world.get_on()
    assert world.pending_cluster
    return world


def overdue(**changes: Any) -> World:
    world = stuck(**changes)
    world.now += timedelta(seconds=601)
    return world


def on(free: Any, **changes: Any) -> Observed:
    world = ready()
    world.free = free
    world.edit(serving__image="mine:2", **changes)
    return world.observe()


# Before.


def test_without_room_nothing_is_applied_and_what_serves_goes_on():
    planned = plan(on(FULL))
    ready_, available = planned.status.condition("Ready"), planned.status.condition("Available")
    assert (planned.actions, ready_.status, ready_.reason) == ((), "False", "NoCapacity")
    assert "asks for 0.3 cpu, 2.0Gi memory" in ready_.message
    assert "node-1: 0.1 cpu, 1.0Gi memory, 90 pods; node-2: 4 cpu, 1.0Gi memory, 90 pods" in ready_.message
    assert (available.status, planned.status.condition("Degraded").reason) == ("True", "NoCapacity")


@pytest.mark.parametrize(
    "free",
    [None, Unknown("nodes is forbidden"), (*FULL, Capacity("node-3", {"cpu": 0.3, "memory": 2 * GI, "pods": 1}))],
    ids=["nobody asked", "nobody may ask", "room on one node"],
)
def test_where_there_is_room_or_nobody_knows_the_change_is_tried(free):
    assert [type(action) for action in plan(on(free)).actions] == [Apply]


def test_a_new_policy_waits_as_long_as_the_change_of_the_pods_does():
    planned = plan(on(FULL, training__seed=2))
    assert not any(action.kind == "RayService" for action in planned.actions)


def test_room_that_comes_is_taken():
    world = ready()
    world.free = FULL
    world.edit(serving__image="mine:2")
    world.get_on()
    assert world.condition("Ready")["reason"] == "NoCapacity"
    world.free = None
    world.settle()
    assert world.condition("Ready")["status"] == "True"


def test_what_replaces_a_second_cluster_that_is_stuck_asks_for_no_room_of_its_own():
    world = stuck()
    world.free = FULL
    world.edit(serving__image="mine:2")
    assert [type(action) for action in plan(world.observe()).actions] == [Apply]


def test_a_first_cluster_asks_for_no_second_room():
    seen = replace(World().observe(), free=())
    assert any(action.kind == "RayService" for action in plan(seen).actions)


def node(name: str = "n", **more: Any) -> dict[str, Any]:
    status = {"allocatable": {"cpu": "2", "memory": "4Gi", "pods": "110"}, "conditions": [{"type": "Ready", "status": "True"}]}
    return {"metadata": {"name": name, "labels": {"disk": "ssd"}}, "spec": more, "status": status}


def pod(cpu: str, memory: str, **more: Any) -> dict[str, Any]:
    container = {"resources": {"requests": {"cpu": cpu, "memory": memory}}}
    labels = more.pop("labels", {})
    status = {"phase": more.pop("phase", "Running")}
    spec = {"nodeName": "n", "containers": [container], **more}
    return {"metadata": {"namespace": "default", "labels": labels}, "spec": spec, "status": status}


def free_on(nodes: list[Any], pods: list[Any]) -> list[Capacity]:
    return list(capacity.capacities(nodes, pods, OWNER))


def test_what_is_free_is_what_no_pod_has_asked_for():
    (found,) = free_on([node()], [pod("500m", "1Gi"), pod("1", "1Gi", phase="Succeeded"), pod("1", "1Gi", nodeName="other")])
    assert (found.free["cpu"], found.free["memory"], found.free["pods"]) == (1.5, 3 * GI, 109.0)


def test_the_largest_init_container_counts_where_it_asks_for_more_and_a_sidecar_beside_the_others():
    init = {"resources": {"requests": {"cpu": "1500m"}}}
    sidecar = {"restartPolicy": "Always", "resources": {"requests": {"cpu": "100m", "memory": "1Gi"}}}
    (found,) = free_on([node()], [pod("500m", "1Gi", initContainers=[init, sidecar], overhead={"cpu": "10m"})])
    assert (round(found.free["cpu"], 6), found.free["memory"]) == (0.49, 2 * GI)


def test_nodes_that_take_no_pods_do_not_count():
    away = node("away")
    away["status"]["conditions"] = [{"type": "Ready", "status": "Unknown"}]
    assert free_on([node("closed", unschedulable=True), away], []) == []
    (found,) = free_on([node(taints=[{"key": "a", "effect": "NoSchedule"}])], [])
    assert found.is_tainted


def test_a_node_with_a_pod_of_the_policy_model_is_its_home():
    (found,) = free_on([node()], [pod("1", "1Gi", labels={"policymodel.dev/name": "cartpole"})])
    assert found.is_home
    (other,) = free_on([node()], [pod("1", "1Gi", labels={"policymodel.dev/name": "other"})])
    assert not other.is_home


ROOM = {"cpu": 8.0, "memory": 9 * GI, "pods": 9.0}
NONE = {"cpu": 0.0, "memory": 0.0, "pods": 9.0}
PLACES: dict[str, tuple[tuple[Capacity, ...], dict[str, Any], bool]] = {
    "a claim of one node brings it there": ((Capacity("home", NONE, is_home=True), Capacity("b", ROOM)), {}, False),
    "a tainted node is none": ((Capacity("a", ROOM, is_tainted=True),), {}, False),
    "a taint may be tolerated": (
        (Capacity("a", ROOM, is_tainted=True),),
        {"serving__template": {"tolerations": [{"key": "gpu", "operator": "Exists"}]}},
        True,
    ),
    "a selector passes nodes over": ((Capacity("a", ROOM),), {"serving__template": {"nodeSelector": {"disk": "ssd"}}}, False),
    "a selector finds its node": ((Capacity("a", ROOM, {"disk": "ssd"}),), {"serving__template": {"nodeSelector": {"disk": "ssd"}}}, True),
    "limits alone are requests": ((Capacity("a", ROOM),), {"serving__resources": {"limits": {"memory": "10Gi"}}}, False),
    "a device is counted": ((Capacity("a", ROOM),), {"serving__resources": {"limits": {"nvidia.com/gpu": 1}}}, False),
    "a node that is full of pods is full": ((Capacity("a", {**ROOM, "pods": 0.0}),), {}, False),
    "there is no node": ((), {}, False),
}


@pytest.mark.parametrize(("free", "changes", "has_room"), PLACES.values(), ids=PLACES)
def test_a_pod_finds_room_where_the_scheduler_would_let_it(free, changes, has_room):
    assert (capacity.shortage(on(free, **changes)) is None) is has_room


@pytest.mark.parametrize(
    ("text", "number"),
    [("300m", 0.3), ("2", 2.0), (1, 1.0), ("2Gi", 2 * GI), ("1.5G", 1.5e9), ("128974848", 128974848.0), ("1e3", 1000.0), ("5u", 5e-6)],
)
def test_quantities_are_read_as_kubernetes_writes_them(text, number):
    assert capacity.quantity(text) == pytest.approx(number)


@pytest.mark.parametrize("text", ["", "Gi", "1x", "1 Gi"])
def test_what_is_no_quantity_is_refused(text):
    with pytest.raises(ValueError, match="no quantity"):
        capacity.quantity(text)


# After.


def test_before_the_deadline_a_second_cluster_that_does_not_come_up_is_explained_and_left_alone():
    planned = plan(stuck().observe())
    assert (planned.actions, planned.status.condition("Degraded").reason) == ((), "ImagePullFailed")
    assert planned.status.undone_switch is None


def test_at_the_deadline_it_is_noted_then_restored_then_forgotten():
    world = overdue()
    before = world.active_config
    noted = world.reconcile()
    assert noted.actions == ()
    assert noted.status.undone_switch.hash == resources.serving_hash(world.observe().spec)
    (restoring,) = world.reconcile().actions
    assert restoring.manifest["spec"]["rayClusterConfig"] == before
    assert restoring.manifest["metadata"]["annotations"]["policymodel.dev/hash"] == hash_of(before)
    assert "serveConfigV2" not in restoring.manifest["spec"]
    assert world.pending_config == before, "KubeRay makes a third cluster"
    assert [type(action) for action in world.reconcile().actions] == [ForgetPending]
    world.settle()
    assert (world.pending_cluster, world.forgotten, world.active_config) == (None, 1, before)


def test_what_was_undone_says_why_and_is_not_tried_again():
    world = overdue()
    world.settle()
    degraded, ready_ = world.condition("Degraded"), world.condition("Ready")
    assert (degraded["reason"], ready_["status"], ready_["reason"]) == ("SwitchUndone", "False", "SwitchUndone")
    assert "within 600 s" in degraded["message"]
    assert "the image cannot be pulled" in degraded["message"]
    assert world.condition("Available")["status"] == "True"
    world.now += timedelta(days=1)
    assert world.settle()[-1].actions == ()


def test_policies_are_rolled_out_to_the_pods_as_they_are():
    world = overdue()
    world.settle()
    world.edit(serving__image="bad:1", training__seed=2)
    world.settle()
    assert world.served[-1] == world.status["revisions"][-1]["digest"]
    assert world.condition("Ready")["reason"] == "SwitchUndone"


def test_an_abort_waits_for_a_second_cluster_and_is_seen_to_when_that_is_given_up():
    canary = {"rollout__strategy": "Canary", "rollout__steps": [{"weight": 10, "seconds": 3000}]}
    world = ready(**canary)
    world.edit(training__seed=2, **canary)
    while world.status.get("candidate", {}).get("step") != 1:
        world.get_on()
    world.unpullable.add("bad:1")
    world.edit(training__seed=2, serving__image="bad:1", **canary)
    world.get_on()
    world.ask(names.ABORT, revision=2)
    world.get_on()
    assert names.ABORT not in world.status.get("lastHandledRequests", {})
    world.now += timedelta(seconds=601)
    world.settle()
    assert world.status["lastHandledRequests"][names.ABORT] == "request-1"
    assert world.status["revisions"][1]["rollout"]["outcome"] == "Aborted"
    assert "candidate" not in world.status


def test_another_change_is_tried_and_forgets_the_one_that_failed():
    world = overdue()
    world.settle()
    world.edit(serving__image="mine:2")
    world.settle()
    assert world.condition("Ready")["status"] == "True"
    assert "undoneSwitch" not in world.status


def test_turning_the_spec_back_after_it_was_undone_needs_nothing():
    world = overdue()
    world.settle()
    world.edit()
    assert plan(world.observe()).actions == ()
    world.settle()
    assert (world.condition("Ready")["status"], "undoneSwitch" in world.status) == ("True", False)


def test_turning_the_spec_back_while_the_second_cluster_is_there_gives_it_up_at_once():
    world = stuck()
    before, active = world.active_config, world.active_cluster
    world.edit()
    kinds = [type(action) for _ in range(4) for action in world.reconcile().actions]
    assert kinds == [Apply, ForgetPending]
    world.settle()
    assert world.condition("Ready")["status"] == "True"
    assert (world.active_cluster, world.active_config, world.pending_cluster) == (active, before, None)
    assert "undoneSwitch" not in world.status


def test_a_rollout_that_holds_leaves_it_and_says_that_it_is_overdue():
    planned = plan(overdue(rollout={"onFail": "Hold"}).observe())
    assert (planned.actions, planned.status.undone_switch) == ((), None)
    assert planned.status.condition("Degraded").reason == "ProgressDeadlineExceeded"


def test_an_adopted_ray_service_is_its_owners_to_undo():
    seen = overdue().observe()
    adopted = replace(seen, spec=replace(seen.spec, serving=replace(seen.spec.serving, ray_service="shared")))
    planned = plan(adopted)
    assert not any(isinstance(action, ForgetPending) for action in planned.actions)
    assert planned.status.undone_switch is None


def test_a_kuberay_that_does_not_forget_is_told_so_a_few_times_and_then_let_do():
    world = overdue()
    world.is_stubborn = True
    for _ in range(30):
        world.reconcile()
        world._prepare_cluster()
    assert world.forgotten == 5
    assert plan(world.observe()).actions == ()


def test_a_pause_undoes_nothing():
    world = overdue()
    seen = replace(world.observe(), spec=replace(world.observe().spec, paused=True))
    assert (plan(seen).actions, plan(seen).status.undone_switch) == ((), None)


@pytest.mark.parametrize("actions", [0, 1])
def test_whoever_is_stopped_in_between_goes_on_there(actions):
    world = overdue()
    before = world.active_config
    for _ in range(4):
        world.reconcile(stop_after=actions)
        world.reconcile()
    world.settle()
    assert (world.active_config, world.pending_cluster) == (before, None)
    assert world.status["undoneSwitch"]["reason"] == "ProgressDeadlineExceeded"
