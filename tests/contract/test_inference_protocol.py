"""A public client of the Open Inference Protocol speaks with the server, over HTTP."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import tritonclient.http as triton
import uvicorn
from fakes.policies import Desk, nested, plain, recurrent
from tritonclient.utils import InferenceServerException

from app.serving.asgi import PolicyApp


@contextmanager
def served(desk: Desk) -> Iterator[str]:
    """The address of a server of its own, as the client wants it."""

    async def status() -> dict[str, Any]:
        return {}

    server = uvicorn.Server(uvicorn.Config(PolicyApp(desk, "cartpole", status), port=0, log_level="critical"))
    thread = threading.Thread(target=lambda: asyncio.run(server.serve()))
    thread.start()
    try:
        deadline = time.monotonic() + 10
        while not server.started:
            assert time.monotonic() < deadline, "the server does not start"
            time.sleep(0.01)
        yield f"127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


def tensor(name: str, values: np.ndarray, datatype: str) -> triton.InferInput:
    made = triton.InferInput(name, list(values.shape), datatype)
    made.set_data_from_numpy(values, binary_data=False)
    return made


def test_the_client_finds_the_model_and_infers() -> None:
    with served(Desk(plain())) as url, triton.InferenceServerClient(url) as client:
        assert client.is_server_live()
        assert client.is_server_ready()
        assert client.is_model_ready("cartpole")
        assert client.is_model_ready("cartpole", "3")
        assert client.get_server_metadata()["name"] == "policymodel"
        (described,) = client.get_model_metadata("cartpole")["inputs"]
        observations = np.zeros((5, 4), np.float32)
        found = client.infer("cartpole", [tensor(described["name"], observations, described["datatype"])], request_id="7")
        assert found.as_numpy("action").tolist() == [1] * 5
        assert found.get_response()["id"] == "7"


def test_the_client_sends_leaves_and_carries_a_state() -> None:
    with served(Desk(nested())) as url, triton.InferenceServerClient(url) as client:
        leaves = [tensor("observation/0", np.array([2]), "INT64"), tensor("observation/1", np.zeros((1, 2), np.float32), "FP32")]
        assert client.infer("cartpole", leaves).as_numpy("action").tolist() == [5]
    with served(Desk(recurrent())) as url, triton.InferenceServerClient(url) as client:
        observation = tensor("observation", np.zeros((1, 4), np.float32), "FP32")
        first = client.infer("cartpole", [observation])
        state = tensor("state/count", first.as_numpy("state_out/count"), "FP32")
        second = client.infer("cartpole", [observation, state])
        assert [found.as_numpy("action").tolist() for found in (first, second)] == [[0], [1]]


def test_the_client_is_told_what_is_wrong() -> None:
    with served(Desk(plain())) as url, triton.InferenceServerClient(url) as client:
        with pytest.raises(InferenceServerException, match="/inputs/0/datatype: must be FP32"):
            client.infer("cartpole", [tensor("observation", np.zeros((1, 4)), "FP64")])
        with pytest.raises(InferenceServerException, match="the model here is cartpole"):
            client.infer("other", [tensor("observation", np.zeros((1, 4), np.float32), "FP32")])
    with served(Desk(None)) as url, triton.InferenceServerClient(url) as client:
        assert client.is_server_live()
        assert not client.is_server_ready()
