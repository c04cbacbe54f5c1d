"""Bundles that are not to serve: a replica refuses each with its own reason, and whoever asks meanwhile notices nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes.policies import BOX, always, linear_model, model, tensor
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


def golden(actions: list[int]) -> dict[str, Any]:
    observations = [[0, 0.2, 0.3, 0.4], [1, -0.2, 0.1, 0.0]]
    return {"observations": observations, "actions": actions, "actionDistInputs": [[0.0, 1.0]] * 2}


@pytest.mark.full
@pytest.mark.parametrize(
    ("seed", "policy", "facts", "reason"),
    [
        (21, linear_model(WITHOUT_A_NUMBER), {}, "NotFinite"),
        (22, always(0), {"golden": golden([1, 1])}, "GoldenMismatch"),
        (23, of_three_numbers(), {"observationSpace": {**BOX, "shape": [3], "low": -1, "high": 1}}, "SpacesDiffer"),
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


@pytest.mark.full
@pytest.mark.parametrize(
    ("seed", "harm", "reason"),
    [
        (24, lambda path: ("sh", "-c", f"printf x | dd of={path}/policy.onnx bs=1 seek=40 conv=notrunc"), "DigestMismatch"),
        (25, lambda path: ("rm", "-r", path), "Missing"),
    ],
    ids=["a byte has rotted", "it is gone"],
)
def test_a_bundle_that_was_harmed_after_its_evaluation_is_refused(
    cartpole: Namespace, tmp_path: Path, seed: int, harm: Callable[[str], tuple[str, ...]], reason: str
) -> None:
    before = status(cartpole)["serving"]
    with sessions(cartpole, 16, at_rest) as played:
        cartpole.kubectl("patch", "pm", "cartpole", "--type=merge", "-p", json.dumps({"spec": {"servedRevision": before["revision"]}}))
        digest = offer(cartpole, tmp_path, seed, always(seed % 2), DIRECT, is_evaluated=True)
        cartpole.wait_condition("cartpole", "Approved", "True", timeout_s=120)
        in_storage(cartpole, *harm(f"bundles/{digest.removeprefix('sha256:')}"))
        cartpole.kubectl("patch", "pm", "cartpole", "--type=merge", "-p", '{"spec": {"servedRevision": null}}')
        ended = over(cartpole, "RolledBack", digest)
        wait_for_replicas(cartpole, before["digest"])
    is_told(ended, reason, len(played))
    assert failures(played) == []


def is_told(revision: dict[str, Any], reason: str, sessions: int) -> None:
    rollout = revision["rollout"]
    print(json.dumps({"reason": rollout["reason"], "why": rollout["message"], "sessions": sessions}))
    assert rollout["reason"] == "LoadFailed"
    assert f": {reason}: " in rollout["message"]
