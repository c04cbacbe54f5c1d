"""What a rollout costs those who are answered meanwhile, on this machine: the second part of `make bench-serve`.

Servers with and without a candidate are up together and are measured in turn, in another order each round, so that what else the machine
does meets them alike. What counts are the ratios to the server without one. Servers and generator share all cores. Both policies are
networks of two layers of 64.
"""

import argparse
import contextlib
import json
import random
import statistics
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from app.bundle import published_bundle
from app.spaces import Array
from app.storage import Storage, file_uri, open_storage
from benchmarks.serve.load import Request, measured_load
from benchmarks.serve.processes import machine, running, wait_for_answer
from benchmarks.serve.report import Row, ratio
from benchmarks.serve.targets import OBSERVATION, ROUTE, World, ours, own_body

START_S = 180.0
HIDDEN = 64
ALONE = "alone"


def main(argv: Sequence[str]) -> int:
    """Entry point; gives the exit code."""
    parser = argparse.ArgumentParser(
        prog="benchmarks.serve.rollout", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=20, metavar="N")
    parser.add_argument("--seconds", type=float, default=1.0, metavar="S", help="of one measurement")
    parser.add_argument("--connections", type=int, default=8, metavar="N")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/rollout.json"), metavar="FILE")
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="pm-", dir="/tmp", ignore_cleanup_errors=True) as folder, contextlib.ExitStack() as stack:
        directory = Path(folder)
        requests = {name: _started(stack, directory, name, rollout) for name, rollout in _rollouts(directory).items()}
        for request in requests.values():
            # The first answers are by way of Serve's own proxy, until HAProxy has seen the replica's port healthy.
            measured_load(request, arguments.connections, arguments.seconds)
        rows = {name: Row(name, arguments.connections, 1) for name in requests}
        for number in range(arguments.rounds):
            for name in random.Random(number).sample(list(requests), len(requests)):
                cell = measured_load(requests[name], arguments.connections, arguments.seconds)
                if cell.failures:
                    raise RuntimeError(f"{cell.failures} requests to {name} failed")
                rows[name].add(cell)
    for name, row in rows.items():
        rate, rates = statistics.median(row.requests_per_s), ratio(row, rows[ALONE])
        tails = [(own, alone) for own, alone in zip(row.p99_ms, rows[ALONE].p99_ms, strict=True) if own and alone]
        tail, slower = statistics.median(own for own, _ in tails), statistics.median(own / alone for own, alone in tails)
        print(f"{name:>12}: {rate:6.0f}/s, p99 {tail:5.2f} ms; {rates:.2f} and {slower:.2f} of that without")
    arguments.out.write_text(json.dumps({"rows": [row.as_json() for row in rows.values()], "machine": machine()}, indent=1) + "\n")
    print(f"written: {arguments.out}")
    return 0


def _rollouts(directory: Path) -> dict[str, dict[str, Any]]:
    """What each server is told beside the policy that serves."""
    storage = _storage(directory)
    digest = published_network(storage, "candidate")
    candidate = {"uri": storage.bundle_uri(digest), "digest": digest, "revision": 2}
    return {
        ALONE: {},
        "canary-10": {"candidate": {**candidate, "mode": "Canary", "weight": 10}},
        "canary-50": {"candidate": {**candidate, "mode": "Canary", "weight": 50}},
        "shadow": {"candidate": {**candidate, "mode": "Shadow"}},
        "log": {"decisionLog": {"directory": str(directory / "decisions")}},
    }


def _started(stack: contextlib.ExitStack, directory: Path, name: str, rollout: dict[str, Any]) -> Request:
    """Starts a server, waits for it, and gives what it is asked."""
    storage = _storage(directory)
    digest = published_network(storage, "serving")
    launch = ours(World(directory, storage.bundle_uri(digest), digest, directory), name, 1, **rollout)
    log = directory / f"{name}.log"
    process = stack.enter_context(running(launch, log))
    request = Request(launch.port, ROUTE, own_body(1))
    wait_for_answer(launch, process, launch.port, ROUTE, request.body, log, START_S)
    return request


def _storage(directory: Path) -> Storage:
    return open_storage(file_uri(directory / "storage"))


def published_network(storage: Storage, name: str) -> str:
    """The digest of a bundle whose environment has this name: the same network under any."""
    generator = np.random.default_rng(0)
    sizes = [(4, HIDDEN), (HIDDEN, HIDDEN), (HIDDEN, 2)]
    weights: dict[str, Array] = {f"w{i}": generator.normal(size=size).astype(np.float32) / size[0] for i, size in enumerate(sizes)}
    nodes = [
        helper.make_node("MatMul", ["observation", "w0"], ["a0"]),
        helper.make_node("Tanh", ["a0"], ["h0"]),
        helper.make_node("MatMul", ["h0", "w1"], ["a1"]),
        helper.make_node("Tanh", ["a1"], ["h1"]),
        helper.make_node("MatMul", ["h1", "w2"], ["action_dist_inputs"]),
        helper.make_node("ArgMax", ["action_dist_inputs"], ["action"], axis=1, keepdims=0),
    ]
    outputs = [
        helper.make_tensor_value_info("action", TensorProto.INT64, ["batch"]),
        helper.make_tensor_value_info("action_dist_inputs", TensorProto.FLOAT, ["batch", 2]),
    ]
    inputs = [helper.make_tensor_value_info("observation", TensorProto.FLOAT, ["batch", 4])]
    graph = helper.make_graph(nodes, "policy", inputs, outputs, [numpy_helper.from_array(value, key) for key, value in weights.items()])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    onnx.checker.check_model(model)
    facts: dict[str, Any] = {
        "environment": {"id": name, "config": {}},
        "observationSpace": {"type": "Box", "shape": [4], "dtype": "float32", "low": None, "high": None},
        "actionSpace": {"type": "Discrete", "n": 2, "start": 0},
    }
    seen = np.array([OBSERVATION], np.float32)
    hidden = np.tanh(np.tanh(seen @ weights["w0"]) @ weights["w1"]) @ weights["w2"]
    golden = {"observations": seen.tolist(), "actions": hidden.argmax(axis=1).tolist(), "actionDistInputs": hidden.tolist()}
    return published_bundle(storage, {**facts, "golden": golden}, model.SerializeToString())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
