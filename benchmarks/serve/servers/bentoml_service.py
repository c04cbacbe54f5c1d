"""BentoML and ONNX Runtime: one worker, one observation a request."""

import os

import bentoml
import numpy as np
import onnxruntime


@bentoml.service(workers=1)
class Policy:
    """The service."""

    def __init__(self) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(os.environ["BENCH_MODEL"], options, providers=["CPUExecutionProvider"])

    @bentoml.api(route="/act")
    async def act(self, observation: list[float]) -> dict[str, int]:
        """One action."""
        observations = np.array([observation], np.float32)
        return {"action": int(self.session.run(["action"], {"observation": observations})[0][0])}
