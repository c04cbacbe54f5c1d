"""MLServer (Open Inference Protocol) and ONNX Runtime: in the server's own process, one observation a request."""

import os

import numpy as np
import onnxruntime
from mlserver import MLModel
from mlserver.codecs import NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse


class Policy(MLModel):  # type: ignore[misc]
    """The model."""

    async def load(self) -> bool:
        """Loads the model."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(os.environ["BENCH_MODEL"], options, providers=["CPUExecutionProvider"])
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """One action."""
        observations = NumpyCodec.decode_input(payload.inputs[0]).astype(np.float32)
        (actions,) = self.session.run(["action"], {"observation": observations})
        return InferenceResponse(model_name=self.name, outputs=[NumpyCodec.encode_output("action", actions)])
