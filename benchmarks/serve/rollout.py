"""What a rollout costs those who are answered meanwhile: one server, measured with and without a candidate in turn, on this machine.

    python -m benchmarks.serve.rollout

What counts are the ratios to the server without a candidate, each against the measurement before and after it; absolute figures are the
machine's. Server and generator share all cores. Both policies are networks of two layers of 64, which answer alike.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from app.bundle import published_bundle
from app.spaces import Array
from app.storage import Storage, file_uri, open_storage
from benchmarks.serve.load import Cell, Request, measured_load
from benchmarks.serve.processes import running, wait_for_answer
from benchmarks.serve.targets import OBSERVATION, ROUTE, World, ours, own_body

LIMIT_S = 60.0
# HAProxy reloads after a change and closes its connections one after another, which the generator would take for failures.
SETTLE_S = 2.0
HIDDEN = 64
ROLLOUTS: dict[str, dict[str, Any]] = {
    "canary 10 %": {"candidate": {"mode": "Canary", "weight": 10}},
    "canary 50 %": {"candidate": {"mode": "Canary", "weight": 50}},
    "shadow": {"candidate": {"mode": "Shadow"}},
    "decision log": {"decisionLog": {}},
}


def main(argv: Sequence[str]) -> int:
    """Entry point; gives the exit code."""
    parser = argparse.ArgumentParser(
        prog="benchmarks.serve.rollout", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5, metavar="N")
    parser.add_argument("--seconds", type=float, default=3.0, metavar="S", help="of one measurement")
    parser.add_argument("--connections", type=int, default=8, metavar="N")
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="pm-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        directory = Path(folder)
        storage = open_storage(file_uri(directory / "storage"))
        serving, candidate = (published_network(storage, name) for name in ("serving", "candidate"))
        world = World(directory, storage.bundle_uri(serving), serving, directory)
        launch = ours(world, "ours", 1)
        request = Request(launch.port, ROUTE, own_body(1))
        with running(launch, directory / "log") as process:
            wait_for_answer(launch, process, launch.port, ROUTE, request.body, directory / "log", 180)
            ratios: dict[str, list[tuple[float, float]]] = {name: [] for name in ROLLOUTS}
            for _ in range(arguments.rounds):
                for name, rollout in ROLLOUTS.items():
                    named = {"uri": storage.bundle_uri(candidate), "digest": candidate, "revision": 2}
                    given = {"candidate": {**named, **rollout["candidate"]}} if "candidate" in rollout else {}
                    given |= {"decisionLog": {"directory": str(directory / "decisions")}} if "decisionLog" in rollout else {}
                    cells = []
                    for config in ({}, given, {}):
                        follow(directory / "ours.yaml", launch.port, config)
                        cells.append(measured_load(request, arguments.connections, arguments.seconds))
                    ratios[name].append(ratio(cells[1], (cells[0], cells[2])))
                    print(name, *(f"{cell.requests_per_s:.0f}/s p99 {p99_s(cell) * 1e3:.2f} ms" for cell in cells), sep="   ", flush=True)
    for name, found in ratios.items():
        throughput, tail = (statistics.median(column) for column in zip(*found, strict=True))
        print(f"{name:>13}: throughput {throughput:.2f}, p99 {tail:.2f} of that without (medians of {len(found)})")
    return 0


def published_network(storage: Storage, name: str) -> str:
    """The digest of a bundle whose environment has this name: the same network under any."""
    random = np.random.default_rng(0)
    sizes = [(4, HIDDEN), (HIDDEN, HIDDEN), (HIDDEN, 2)]
    weights: dict[str, Array] = {f"w{i}": random.normal(size=size).astype(np.float32) / size[0] for i, size in enumerate(sizes)}
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


def follow(config: Path, port: int, given: dict[str, Any]) -> None:
    """Gives the server another `user_config` beside its serving policy, and waits until the replica says that it has it."""
    content = json.loads(config.read_text())
    user_config = content["applications"][0]["deployments"][0]["user_config"]
    kept = {name: value for name, value in user_config.items() if name not in ("candidate", "decisionLog")}
    content["applications"][0]["deployments"][0]["user_config"] = {**kept, **given}
    aside = config.with_suffix(".new")
    aside.write_text(json.dumps(content))
    aside.replace(config)
    deadline = time.monotonic() + LIMIT_S
    while time.monotonic() < deadline:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{ROUTE}/v1/status", timeout=10) as answer:
            row = json.load(answer)["replicas"][0]
        told, wanted = row["candidate"] or {}, given.get("candidate", {})
        is_taken = (told.get("mode"), told.get("weight", 0), told.get("loaded", False)) == (
            wanted.get("mode"),
            wanted.get("weight", 0),
            bool(wanted),
        )
        if is_taken and (row["decisionLog"] is not None) == ("decisionLog" in given):
            time.sleep(SETTLE_S)
            return
        time.sleep(0.1)
    raise TimeoutError(f"the replica did not take over {given}: {row}")


def p99_s(cell: Cell) -> float:
    """The time that 99 of 100 answers took at most, in seconds."""
    return float(np.percentile(cell.latencies_s, 99))


def ratio(cell: Cell, around: tuple[Cell, Cell]) -> tuple[float, float]:
    """Throughput and p99 of one measurement by those around it.

    Raises:
        RuntimeError: a request failed.
    """
    if cell.failures:
        raise RuntimeError(f"{cell.failures} requests failed")
    throughput = statistics.fmean(each.requests_per_s for each in around)
    return cell.requests_per_s / throughput, p99_s(cell) / statistics.fmean(p99_s(each) for each in around)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
