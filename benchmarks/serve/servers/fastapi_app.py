"""FastAPI and ONNX Runtime, as one writes it by hand: one uvicorn worker, one observation a request."""

import os

import numpy as np
import onnxruntime
from fastapi import FastAPI
from pydantic import BaseModel

options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
session = onnxruntime.InferenceSession(os.environ["BENCH_MODEL"], options, providers=["CPUExecutionProvider"])
app = FastAPI()


class Observation(BaseModel):
    """The body."""

    observation: list[float]


@app.post("/")
async def act(sent: Observation) -> dict[str, int]:
    """One action."""
    observations = np.array([sent.observation], np.float32)
    return {"action": int(session.run(["action"], {"observation": observations})[0][0])}
