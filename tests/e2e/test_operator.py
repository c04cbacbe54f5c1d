"""What happens to PolicyModels when the operator itself is upgraded or killed."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from e2e.conftest import example
from e2e.kube import OPERATOR_NAMESPACE, Namespace, kubectl, post, wait

OPERATOR = ("-n", OPERATOR_NAMESPACE)


def restart_finished() -> None:
    kubectl(*OPERATOR, "rollout", "status", "deployment/policymodel-operator", "--timeout=180s")


def kill_the_operator() -> None:
    kubectl(*OPERATOR, "delete", "pod", "-l", "app.kubernetes.io/name=policymodel-operator", "--grace-period=0", "--force")
    restart_finished()


def test_an_upgrade_of_the_operator_changes_no_ray_service(cartpole: Namespace) -> None:
    before = cartpole.get("rayservice", "cartpole")
    arguments = "/spec/template/spec/containers/0/args"
    live: dict[str, Any] = json.loads(kubectl(*OPERATOR, "get", "deployment", "policymodel-operator", "-o", "json"))
    old = live["spec"]["template"]["spec"]["containers"][0]["args"]
    new = [
        word.replace("policymodel-serve:dev", "policymodel-serve:next").replace("policymodel-train:dev", "policymodel-train:next")
        for word in old
    ]
    assert new != old
    try:
        patch = json.dumps([{"op": "replace", "path": arguments, "value": new}])
        kubectl(*OPERATOR, "patch", "deployment", "policymodel-operator", "--type=json", "-p", patch)
        restart_finished()
        # An edit makes the new operator look and write: what it writes is the configuration of Serve, and nothing else.
        edited = example(cartpole)
        edited["spec"]["serving"]["outOfBounds"] = "Reject"
        cartpole.apply(edited)
        cartpole.wait_condition("cartpole", "Ready", "True", timeout_s=120)
        after = cartpole.get("rayservice", "cartpole")
        assert after["spec"]["rayClusterConfig"] == before["spec"]["rayClusterConfig"]
        assert len(cartpole.list("raycluster")) == 1
    finally:
        patch = json.dumps([{"op": "replace", "path": arguments, "value": old}])
        kubectl(*OPERATOR, "patch", "deployment", "policymodel-operator", "--type=json", "-p", patch)
        restart_finished()


def job_exists(namespace: Namespace) -> bool:
    return bool(namespace.list("job"))


def is_training(namespace: Namespace) -> bool:
    return "iteration" in ((namespace.get("policymodel", "cartpole") or {}).get("status", {}).get("training", {}))


def is_published(namespace: Namespace) -> bool:
    return any(job.get("status", {}).get("succeeded") for job in namespace.list("job"))


def is_rolling_out(namespace: Namespace) -> bool:
    return "sha256:" in (namespace.get("rayservice", "cartpole") or {}).get("spec", {}).get("serveConfigV2", "")


def is_ready(namespace: Namespace) -> bool:
    return namespace.condition("cartpole", "Ready")["status"] == "True"


@pytest.mark.full
@pytest.mark.parametrize(
    "moment",
    [
        pytest.param(None, id="before the Job"),
        pytest.param(is_training, id="during training"),
        pytest.param(is_published, id="between publishing and rollout"),
        pytest.param(is_rolling_out, id="during rollout"),
        pytest.param(is_ready, id="idle"),
    ],
)
def test_a_killed_operator_makes_no_difference(namespace: Namespace, moment: Callable[[Namespace], bool] | None) -> None:
    created: set[str] = set()
    namespace.apply(example(namespace))
    if moment is not None:
        wait(lambda: moment(namespace), 400, "the moment", lambda: namespace.kubectl("describe", "pm", "cartpole"), every_s=0.1)
    kill_the_operator()
    wait(lambda: created.update(job["metadata"]["uid"] for job in namespace.list("job")) or is_ready(namespace), 600, "Ready")
    assert len(created) == 1
    status = namespace.get("policymodel", "cartpole")["status"]
    assert [revision["number"] for revision in status["revisions"]] == [1]
    assert post(f"{namespace.name}.localhost").headers["x-policy-digest"] == status["serving"]["digest"]
