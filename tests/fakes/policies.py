"""Small policies made by hand, and a replica that serves one: enough for the HTTP face, without training and without Ray."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from app.bundle import Bundle, published_bundle
from app.policy import Policy
from app.serving.acting import Serving
from app.serving.asgi import Manners
from app.serving.meter import Meter
from app.serving.rewards import Report, Rewards
from app.storage import Storage

BOX = {"type": "Box", "shape": [4], "dtype": "float32", "low": [-4.8, None, -0.5, None], "high": [4.8, None, 0.5, None]}
NESTED = {
    "type": "Dict",
    "spaces": {
        "position": {"type": "Box", "shape": [2], "dtype": "float32", "low": -1.0, "high": 1.0},
        "held": {"type": "Discrete", "n": 3, "start": 1},
    },
}


def model(inputs: list[Any], outputs: list[Any], nodes: list[Any], constants: dict[str, np.ndarray]) -> bytes:
    graph = helper.make_graph(nodes, "policy", inputs, outputs, [numpy_helper.from_array(value, name) for name, value in constants.items()])
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    onnx.checker.check_model(made)
    return bytes(made.SerializeToString())


def tensor(name: str, kind: int, *shape: int) -> Any:
    return helper.make_tensor_value_info(name, kind, ["batch", *shape])


def linear_model(weights: np.ndarray) -> bytes:
    """Action = argmax(observation @ weights); weights has shape (4, 2)."""
    nodes = [
        helper.make_node("MatMul", ["observation", "weights"], ["action_dist_inputs"]),
        helper.make_node("ArgMax", ["action_dist_inputs"], ["action"], axis=1, keepdims=0),
    ]
    outputs = [tensor("action", TensorProto.INT64), tensor("action_dist_inputs", TensorProto.FLOAT, 2)]
    return model([tensor("observation", TensorProto.FLOAT, 4)], outputs, nodes, {"weights": weights.astype(np.float32)})


def plain() -> Serving:
    """Two actions, the second one three times as likely."""
    nodes = [
        helper.make_node("MatMul", ["observation", "weights"], ["product"]),
        helper.make_node("Add", ["product", "bias"], ["action_dist_inputs"]),
        helper.make_node("ArgMax", ["action_dist_inputs"], ["action"], axis=1, keepdims=0),
    ]
    constants = {"weights": np.zeros((4, 2), np.float32), "bias": np.array([0.0, np.log(3)], np.float32)}
    outputs = [tensor("action", TensorProto.INT64), tensor("action_dist_inputs", TensorProto.FLOAT, 2)]
    return serving(
        BOX, {"type": "Discrete", "n": 2, "start": 0}, model([tensor("observation", TensorProto.FLOAT, 4)], outputs, nodes, constants)
    )


def doubles() -> Serving:
    """Action 0, for observations of float64."""
    return _cast({**BOX, "dtype": "float64"}, TensorProto.DOUBLE)


def switches() -> Serving:
    """Action 0, for four switches."""
    space = {"type": "Box", "shape": [4], "dtype": "bool", "low": 0, "high": 1}
    return _cast(space, TensorProto.BOOL, golden={"observations": [[1, 0, 0, 1]]})


def _cast(observation: Any, kind: int, **manifest: Any) -> Serving:
    """Action 0, for four numbers of another type."""
    nodes = [
        helper.make_node("Cast", ["observation"], ["numbers"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["numbers", "weights"], ["action_dist_inputs"]),
        helper.make_node("ArgMax", ["action_dist_inputs"], ["action"], axis=1, keepdims=0),
    ]
    outputs = [tensor("action", TensorProto.INT64), tensor("action_dist_inputs", TensorProto.FLOAT, 2)]
    made = model([tensor("observation", kind, 4)], outputs, nodes, {"weights": np.zeros((4, 2), np.float32)})
    return serving(observation, {"type": "Discrete", "n": 2, "start": 0}, made, **manifest)


def nested() -> Serving:
    """One of two buttons, by the sum of what is observed."""
    nodes = [
        helper.make_node("Cast", ["observation/0"], ["held"], to=TensorProto.FLOAT),
        helper.make_node("Unsqueeze", ["held", "one"], ["column"]),
        helper.make_node("Concat", ["column", "observation/1"], ["all"], axis=1),
        helper.make_node("MatMul", ["all", "weights"], ["action_dist_inputs"]),
        helper.make_node("ArgMax", ["action_dist_inputs"], ["chosen"], axis=1, keepdims=0),
        helper.make_node("Add", ["chosen", "five"], ["action"]),
    ]
    constants = {"weights": np.ones((3, 2), np.float32), "one": np.array([1], np.int64), "five": np.array(5, np.int64)}
    inputs = [tensor("observation/0", TensorProto.INT64), tensor("observation/1", TensorProto.FLOAT, 2)]
    outputs = [tensor("action", TensorProto.INT64), tensor("action_dist_inputs", TensorProto.FLOAT, 2)]
    return serving(NESTED, {"type": "Discrete", "n": 2, "start": 5}, model(inputs, outputs, nodes, constants))


def recurrent() -> Serving:
    """Counts the steps of an episode in its state, and acts by it: 0 first, then 1."""
    nodes = [
        helper.make_node("Add", ["state/count", "one"], ["state_out/count"]),
        helper.make_node("Sub", ["state_out/count", "half"], ["doubt"]),
        helper.make_node("Concat", ["half_column", "state/count"], ["action_dist_inputs"], axis=1),
        helper.make_node("ArgMax", ["action_dist_inputs"], ["action"], axis=1, keepdims=0),
        helper.make_node("Mul", ["state/count", "zero"], ["nothing"]),
        helper.make_node("Add", ["nothing", "half"], ["half_column"]),
    ]
    order = [0, 1, 4, 5, 2, 3]
    constants = {name: np.array([[value]], np.float32) for name, value in {"one": 1, "half": 0.5, "zero": 0}.items()}
    inputs = [tensor("observation", TensorProto.FLOAT, 4), tensor("state/count", TensorProto.FLOAT, 1)]
    outputs = [
        tensor("action", TensorProto.INT64),
        tensor("action_dist_inputs", TensorProto.FLOAT, 2),
        tensor("state_out/count", TensorProto.FLOAT, 1),
    ]
    made = model(inputs, outputs, [nodes[i] for i in order], constants)
    return serving(BOX, {"type": "Discrete", "n": 2, "start": 0}, made, state={"count": [1]})


def fragile_model() -> bytes:
    """Action 0; raises where the first number of the observation is 2 or more: it looks beyond a table of two."""
    nodes = [
        helper.make_node("Gather", ["observation", "first"], ["number"], axis=1),
        helper.make_node("Cast", ["number"], ["index"], to=TensorProto.INT64),
        helper.make_node("Gather", ["table", "index"], ["action_dist_inputs"], axis=0),
        helper.make_node("ArgMax", ["action_dist_inputs"], ["action"], axis=1, keepdims=0),
    ]
    return _acting(nodes, {"first": np.array(0, np.int64), "table": np.array([[1, 0], [1, 0]], np.float32)})


def nan_model(more: float = 2) -> bytes:
    """Action 0, more likely by `more`; no number where the first number of the observation is negative: it takes its root."""
    nodes = [
        helper.make_node("Gather", ["observation", "first"], ["number"], axis=1),
        helper.make_node("Sqrt", ["number"], ["root"]),
        helper.make_node("Add", ["root", "two"], ["more"]),
        helper.make_node("Concat", ["more", "root"], ["action_dist_inputs"], axis=1),
        helper.make_node("ArgMax", ["action_dist_inputs"], ["action"], axis=1, keepdims=0),
    ]
    return _acting(nodes, {"first": np.array([0], np.int64), "two": np.array([[more]], np.float32)})


def impossible_model() -> bytes:
    """Action 0; action 2 of two where the first number of the observation is 2 or more."""
    nodes = [
        helper.make_node("Gather", ["observation", "first"], ["number"], axis=1),
        helper.make_node("Cast", ["number"], ["action"], to=TensorProto.INT64),
        helper.make_node("MatMul", ["observation", "nothing"], ["zeros"]),
        helper.make_node("Add", ["zeros", "bias"], ["action_dist_inputs"]),
    ]
    constants = {
        "first": np.array(0, np.int64),
        "nothing": np.zeros((4, 2), np.float32),
        "bias": np.array([1, 0], np.float32),
    }
    return _acting(nodes, constants)


def slow_model(rows: int = 30_000) -> bytes:
    """Action 0; multiplies large matrices, for so many rows as the first number of the observation says, times `rows`."""
    width = 256
    nodes = [
        helper.make_node("Gather", ["observation", "first"], ["number"], axis=1),
        helper.make_node("ReduceMax", ["number"], ["most"], keepdims=0),
        helper.make_node("Mul", ["most", "rows"], ["many"]),
        helper.make_node("Abs", ["many"], ["positive"]),
        helper.make_node("Cast", ["positive"], ["count"], to=TensorProto.INT64),
        helper.make_node("Unsqueeze", ["count", "zero_axis"], ["count_1"]),
        helper.make_node("Concat", ["count_1", "width"], ["shape"], axis=0),
        helper.make_node("Expand", ["one", "shape"], ["large"]),
        helper.make_node("MatMul", ["large", "weights"], ["product"]),
        helper.make_node("ReduceSum", ["product"], ["sum"], keepdims=0),
        helper.make_node("Mul", ["sum", "zero"], ["nothing"]),
        helper.make_node("MatMul", ["observation", "nothings"], ["zeros"]),
        helper.make_node("Add", ["zeros", "bias"], ["logits"]),
        helper.make_node("Add", ["logits", "nothing"], ["action_dist_inputs"]),
        helper.make_node("ArgMax", ["action_dist_inputs"], ["action"], axis=1, keepdims=0),
    ]
    constants = {
        "first": np.array(0, np.int64),
        "rows": np.array(rows, np.float32),
        "zero_axis": np.array([0], np.int64),
        "width": np.array([width], np.int64),
        "one": np.ones((1, 1), np.float32),
        "weights": np.ones((width, width), np.float32),
        "zero": np.array(0, np.float32),
        "nothings": np.zeros((4, 2), np.float32),
        "bias": np.array([1, 0], np.float32),
    }
    return _acting(nodes, constants)


def _acting(nodes: list[Any], constants: dict[str, np.ndarray]) -> bytes:
    outputs = [tensor("action", TensorProto.INT64), tensor("action_dist_inputs", TensorProto.FLOAT, 2)]
    return model([tensor("observation", TensorProto.FLOAT, 4)], outputs, nodes, constants)


def published(storage: Storage, onnx_model: bytes, **facts: Any) -> str:
    """The digest of a bundle with this model, which is recorded for two observations that begin with 0 and 1, where no facts say another
    record."""
    spaces = {"observationSpace": BOX, "actionSpace": {"type": "Discrete", "n": 2, "start": 0}}
    known = {"environment": {"id": "Test-v0", "config": {}}, **spaces, **({} if "golden" in facts else {"golden": recorded(onnx_model)})}
    return published_bundle(storage, {**known, **facts}, onnx_model)


def recorded(onnx_model: bytes) -> dict[str, Any]:
    """What a model of four numbers answers to two observations, as a manifest records it."""
    seen = np.array([[0, 0.2, 0.3, 0.4], [1, -0.2, 0.1, 0.0]], np.float32)
    actions, inputs = onnxruntime.InferenceSession(onnx_model).run(["action", "action_dist_inputs"], {"observation": seen})
    return {"observations": seen.tolist(), "actions": actions.tolist(), "actionDistInputs": np.nan_to_num(inputs).tolist()}


def always(action: int) -> bytes:
    """A model that takes one of two actions, whatever it observes."""
    nodes = [
        helper.make_node("MatMul", ["observation", "nothing"], ["zeros"]),
        helper.make_node("Add", ["zeros", "bias"], ["action_dist_inputs"]),
        helper.make_node("ArgMax", ["action_dist_inputs"], ["action"], axis=1, keepdims=0),
    ]
    return _acting(nodes, {"nothing": np.zeros((4, 2), np.float32), "bias": np.eye(2, dtype=np.float32)[action]})


def serving(observation: Any, action: Any, onnx_model: bytes, **manifest: Any) -> Serving:
    example = {"position": [0.5, 0.0], "held": 1} if observation is NESTED else [0.1, 0.2, 0.3, 0.4]
    described = {"observationSpace": observation, "actionSpace": action, "environment": {"id": "Test-v0", "config": {}}, **manifest}
    return Serving(Policy(Bundle("sha256:test", {"golden": {"observations": [example]}, **described}, onnx_model)), 3)


class Desk:
    """A replica that serves one policy."""

    def __init__(self, serving: Serving | None, **manners: Any) -> None:
        self.serving = serving
        self.rollout = None
        self.manners = Manners("/route", **manners)
        self.meter = Meter()
        self.rewards = Rewards()

    def rewarded(self, report: Report, pin: str) -> str | None:
        digest = report.policy_of(pin, [] if self.serving is None else [self.serving.policy.digest])
        if digest is not None:
            self.rewards.add(report, digest)
        return digest
