"""Bundles that are not to serve: a replica refuses each with its own reason, and whoever asks meanwhile notices nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes.policies import always, linear_model, model, tensor
from onnx import TensorProto, helper

from e2e.kube import Namespace
from e2e.rollouts import at_rest, failures, in_storage, offer, over, sessions, status, wait_for_replicas

DIRECT = {"strategy": "Direct"}
WITHOUT_A_NUMBER = np.array([[np.nan, 0]] + [[1, 0]] * 3)


def of_three_numbers() -> bytes:
    """Action 0, from an observation of three numbers."""
    nodes = [
        helper.make_node("MatMul", ["observation", "weights"], ["action_dist_inputs"]),
        helper.make_node("ArgMax", ["action_dist_inputs"], ["action"], axis=1, keepdims=0),
    ]
    outputs = [tensor("action", TensorProto.INT64), tensor("action_dist_inputs", TensorProto.FLOAT, 2)]
    return model([tensor("observation", TensorProto.FLOAT, 3)], outputs, nodes, {"weights": np.eye(3, 2, dtype=np.float32)})


OTHERWISE = {"observations": [[0, 0.2, 0.3, 0.4]] * 2, "actions": [1, 1], "actionDistInputs": [[0.0, 1.0]] * 2}
THREE_NUMBERS = {
    "observationSpace": {"type": "Box", "shape": [3], "dtype": "float32", "low": -1.0, "high": 1.0},
    "golden": {"observations": [[0.5, 0.1, 0.0]], "actions": [0], "actionDistInputs": [[0.5, 0.1]]},
}


@pytest.mark.full
@pytest.mark.parametrize(
    ("seed", "policy", "facts", "reason"),
    [
        (21, linear_model(WITHOUT_A_NUMBER), {}, "NotFinite"),
        (22, always(0), {"golden": OTHERWISE}, "GoldenMismatch"),
        (23, of_three_numbers(), THREE_NUMBERS, "SpaceMismatch"),
    ],
    ids=["a weight is no number", "golden observations differ", "another observation space"],
)
def test_a_bundle_that_is_not_what_it_says_is_refused(
    cartpole: Namespace, tmp_path: Path, seed: int, policy: bytes, facts: dict[str, Any], reason: str
) -> None:
    before = status(cartpole)["serving"]["digest"]
    with sessions(cartpole, 16, at_rest) as played:
        digest = offer(cartpole, tmp_path, seed, policy, DIRECT, is_evaluated=True, **facts)
        ended = over(cartpole, "RolledBack", digest)
        wait_for_replicas(cartpole, before)
    is_told(ended, reason, len(played))
    assert failures(played) == []


def held_back(namespace: Namespace, tmp_path: Path, seed: int, model: bytes) -> str:
    """Offers a bundle that passes its gate while another revision is pinned; its digest."""
    pin = {"spec": {"servedRevision": status(namespace)["serving"]["revision"]}}
    namespace.kubectl("patch", "pm", "cartpole", "--type=merge", "-p", json.dumps(pin))
    digest = offer(namespace, tmp_path, seed, model, DIRECT, is_evaluated=True)
    namespace.wait_condition("cartpole", "Approved", "True", timeout_s=120)
    return digest


def unpin(namespace: Namespace) -> None:
    namespace.kubectl("patch", "pm", "cartpole", "--type=merge", "-p", '{"spec": {"servedRevision": null}}')


@pytest.mark.full
def test_a_bundle_that_has_rotted_since_its_evaluation_is_refused(cartpole: Namespace, tmp_path: Path) -> None:
    before = status(cartpole)["serving"]["digest"]
    with sessions(cartpole, 16, at_rest) as played:
        digest = held_back(cartpole, tmp_path, 24, always(0))
        path = f"bundles/{digest.removeprefix('sha256:')}/policy.onnx"
        in_storage(cartpole, "sh", "-c", f"printf x | dd of={path} bs=1 seek=40 conv=notrunc")
        unpin(cartpole)
        ended = over(cartpole, "RolledBack", digest)
        wait_for_replicas(cartpole, before)
    is_told(ended, "DigestMismatch", len(played))
    assert failures(played) == []


@pytest.mark.full
def test_a_bundle_that_is_gone_is_never_served_and_its_run_publishes_another(cartpole: Namespace, tmp_path: Path) -> None:
    with sessions(cartpole, 16, at_rest) as played:
        digest = held_back(cartpole, tmp_path, 25, always(1))
        in_storage(cartpole, "rm", "-r", f"bundles/{digest.removeprefix('sha256:')}")
        unpin(cartpole)
        ready = cartpole.wait_condition("cartpole", "Ready", "True", timeout_s=300)
    anew = status(cartpole)["revisions"][-1]
    print(json.dumps({"why": ready["message"], "sessions": len(played)}))
    assert status(cartpole)["serving"]["digest"] == anew["digest"] != digest
    assert digest not in {seen for episode in played for seen in episode.digests}
    assert failures(played) == []


def is_told(revision: dict[str, Any], reason: str, sessions: int) -> None:
    rollout = revision["rollout"]
    print(json.dumps({"reason": rollout["reason"], "why": rollout["message"], "sessions": sessions}))
    assert rollout["reason"] == "LoadFailed"
    assert f": {reason}: " in rollout["message"]
