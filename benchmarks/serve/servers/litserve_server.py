"""LitServe and ONNX Runtime: one worker, one observation a request. `python litserve_server.py PORT`."""

import os
import sys
from typing import Any

import litserve
import numpy as np
import onnxruntime


class PolicyAPI(litserve.LitAPI):  # type: ignore[misc]
    """The four steps of LitServe."""

    def setup(self, device: str) -> None:
        """Loads the model in the worker."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(os.environ["BENCH_MODEL"], options, providers=["CPUExecutionProvider"])

    def decode_request(self, request: dict[str, Any]) -> Any:
        """The observation."""
        return np.array([request["observation"]], np.float32)

    def predict(self, observations: Any) -> int:
        """The action."""
        return int(self.session.run(["action"], {"observation": observations})[0][0])

    def encode_response(self, action: int) -> dict[str, int]:
        """The answer."""
        return {"action": action}


if __name__ == "__main__":
    server = litserve.LitServer(PolicyAPI(), accelerator="cpu", workers_per_device=1)
    server.run(host="127.0.0.1", port=int(sys.argv[1]), generate_client_file=False, log_level="warning")
