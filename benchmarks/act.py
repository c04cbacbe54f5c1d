"""One action of a small policy: ONNX Runtime, as the server runs it, against torch, as the trainer does. Prints ratios.

Interleaved rounds in one run, because absolute times are the machine's: `make bench`.
"""

from __future__ import annotations

import io
import statistics
import time
from collections.abc import Callable

import numpy as np
import onnxruntime
import torch

ROUNDS, CALLS = 7, 2000


def seconds(act: Callable[[], object]) -> float:
    """Seconds of one call, over many."""
    start = time.perf_counter()
    for _ in range(CALLS):
        act()
    return (time.perf_counter() - start) / CALLS


def main() -> None:
    torch.set_num_threads(1)
    network = torch.nn.Sequential(torch.nn.Linear(4, 64), torch.nn.Tanh(), torch.nn.Linear(64, 64), torch.nn.Tanh(), torch.nn.Linear(64, 2))
    observation = np.zeros((1, 4), np.float32)
    program = torch.onnx.export(network, (torch.from_numpy(observation),), input_names=["observations"], dynamo=True, verbose=False)
    graph = io.BytesIO()
    program.save(graph)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(graph.getvalue(), options, providers=["CPUExecutionProvider"])

    def by_torch() -> object:
        with torch.inference_mode():
            return network(torch.from_numpy(observation)).argmax().item()

    def by_onnx() -> object:
        return session.run(None, {"observations": observation})[0].argmax()

    rounds = [(seconds(by_torch), seconds(by_onnx)) for _ in range(ROUNDS)]
    ratios = [torch_s / onnx_s for torch_s, onnx_s in rounds]
    for name, column in (("torch", 0), ("ONNX Runtime", 1)):
        times = [times[column] * 1e6 for times in rounds]
        print(f"{name:>12}: min {min(times):6.1f} us, median {statistics.median(times):6.1f} us")
    print(f"{'ratio':>12}: min {min(ratios):6.1f}, median {statistics.median(ratios):6.1f} (torch / ONNX Runtime)")


if __name__ == "__main__":
    main()
