"""Starlette and ONNX Runtime: what is left when FastAPI's validation is taken away."""

import os

import numpy as np
import onnxruntime
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

options = onnxruntime.SessionOptions()
options.intra_op_num_threads = 1
session = onnxruntime.InferenceSession(os.environ["BENCH_MODEL"], options, providers=["CPUExecutionProvider"])


async def act(request: Request) -> JSONResponse:
    """One action."""
    observations = np.array([(await request.json())["observation"]], np.float32)
    return JSONResponse({"action": int(session.run(["action"], {"observation": observations})[0][0])})


app = Starlette(routes=[Route("/", act, methods=["POST"])])
