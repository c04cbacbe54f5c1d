"""A change of the pods that cannot work: the first cluster goes on serving, why is told, and the second one is undone."""

from __future__ import annotations

import json
from typing import Any

import pytest

from e2e.kube import Namespace, steady_load, wait


def clusters(namespace: Namespace) -> list[str]:
    return [cluster["metadata"]["name"] for cluster in namespace.list("raycluster") if "deletionTimestamp" not in cluster["metadata"]]


def lone_cluster(namespace: Namespace) -> list[str]:
    """The cluster that serves; KubeRay leaves one that an earlier test has replaced for a minute."""
    return wait(lambda: found if len(found := clusters(namespace)) == 1 else None, 150, "a lone cluster")


def change(namespace: Namespace, **serving: Any) -> None:
    body = {"spec": {"serving": serving, "rollout": {"progressDeadlineSeconds": 30}}}
    namespace.kubectl("patch", "pm", "cartpole", "--type=merge", "-p", json.dumps(body))


def undone(namespace: Namespace, first: list[str]) -> str:
    """Waits until the second cluster is given up and gone; what was said of it."""
    told = namespace.wait_condition("cartpole", "Ready", "False", "SwitchUndone", timeout_s=120)
    ray_service = namespace.get("rayservice", "cartpole")
    assert ray_service
    assert "rayClusterName" not in ray_service["status"].get("pendingServiceStatus", {})
    assert namespace.condition("cartpole", "Available")["status"] == "True"
    wait(lambda: clusters(namespace) == first, 150, "the second cluster to go")
    return str(told["message"])


def test_a_second_cluster_whose_image_cannot_be_pulled_is_undone_and_policies_go_on(cartpole: Namespace) -> None:
    first = lone_cluster(cartpole)
    with steady_load(f"{cartpole.name}.localhost", 4) as load:
        change(cartpole, image="nowhere.invalid/serve:1")
        told = undone(cartpole, first)
        change(cartpole, image=None)
        cartpole.wait_condition("cartpole", "Ready", "True", timeout_s=60)
    assert "the image nowhere.invalid/serve:1 cannot be pulled for the pod" in told
    assert load.failures == []
    assert clusters(cartpole) == first


def test_a_second_cluster_that_no_node_has_room_for_is_not_begun(cartpole: Namespace) -> None:
    first = lone_cluster(cartpole)
    change(cartpole, resources={"requests": {"cpu": "640", "memory": "2Gi"}})
    told = cartpole.wait_condition("cartpole", "Ready", "False", "NoCapacity", timeout_s=30)
    assert "asks for 640 cpu" in told["message"]
    assert clusters(cartpole) == first
    change(cartpole, resources=None)
    cartpole.wait_condition("cartpole", "Ready", "True", timeout_s=30)


@pytest.mark.full
def test_a_second_cluster_that_a_quota_holds_back_is_undone(cartpole: Namespace) -> None:
    first = lone_cluster(cartpole)
    cartpole.kubectl("create", "quota", "little", "--hard=requests.cpu=350m")
    try:
        with steady_load(f"{cartpole.name}.localhost", 4) as load:
            change(cartpole, resources={"requests": {"cpu": "110m", "memory": "1Gi"}})
            told = undone(cartpole, first)
    finally:
        cartpole.kubectl("delete", "quota", "little")
    assert "exceeded quota: little" in told
    assert load.failures == []


@pytest.mark.full
def test_a_second_cluster_that_no_node_takes_is_undone(cartpole: Namespace) -> None:
    """The pods tolerate some taint, so the look at the nodes beforehand leaves it to the scheduler."""
    first = lone_cluster(cartpole)
    cartpole.kubectl("taint", "nodes", "--all", "e2e=held:NoSchedule")
    try:
        with steady_load(f"{cartpole.name}.localhost", 4) as load:
            change(cartpole, template={"tolerations": [{"key": "another", "operator": "Exists"}]})
            told = undone(cartpole, first)
    finally:
        cartpole.kubectl("taint", "nodes", "--all", "e2e-")
    assert "no node takes the pod" in told
    assert load.failures == []
