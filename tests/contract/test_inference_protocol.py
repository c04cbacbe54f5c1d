"""A public client of the Open Inference Protocol speaks with the server, over HTTP; its answers have the forms that the protocol names."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import jsonschema
import numpy as np
import pytest
import requests
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


def an_object(**members: Any) -> dict[str, Any]:
    """Members in brackets may be left out."""
    required = [name for name, form in members.items() if not isinstance(form, tuple)]
    forms = {name: form[0] if isinstance(form, tuple) else form for name, form in members.items()}
    return {"type": "object", "properties": forms, "required": required, "additionalProperties": False}


def a_list(of: dict[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": of}


# The payloads that the protocol names, without what it leaves to servers; `data` may be nested.
# https://github.com/kserve/open-inference-protocol/blob/main/specification/protocol/inference_rest.md
STRING, BOOL, INTEGER, PARAMETERS = {"type": "string"}, {"type": "boolean"}, {"type": "integer"}, {"type": "object"}
METADATA_TENSOR = an_object(name=STRING, datatype=STRING, shape=a_list(INTEGER))
DATA = a_list({"type": ["number", "string", "boolean", "array"]})
OUTPUT = an_object(name=STRING, shape=a_list(INTEGER), datatype=STRING, parameters=(PARAMETERS,), data=DATA)
LIVE_SERVER = an_object(live=BOOL)
METADATA_SERVER = an_object(name=STRING, version=STRING, extensions=a_list(STRING))
READY_MODEL = an_object(name=STRING, ready=BOOL)
METADATA_MODEL = an_object(
    name=STRING, versions=(a_list(STRING),), platform=STRING, inputs=a_list(METADATA_TENSOR), outputs=a_list(METADATA_TENSOR)
)
INFERENCE = an_object(model_name=STRING, model_version=(STRING,), id=(STRING,), parameters=(PARAMETERS,), outputs=a_list(OUTPUT))
ERROR = an_object(error=STRING)


@pytest.mark.parametrize("made", [plain, nested, recurrent])
def test_every_answer_has_the_form_that_the_protocol_names(made: Any) -> None:
    inputs = {
        "observation": {"name": "observation", "datatype": "FP32", "shape": [1, 4], "data": [0, 0, 0, 0]},
        "observation/0": {"name": "observation/0", "datatype": "INT64", "shape": [1], "data": [2]},
        "observation/1": {"name": "observation/1", "datatype": "FP32", "shape": [1, 2], "data": [[0, 0]]},
    }
    with served(Desk(made())) as url:

        def told(path: str, status: int, form: dict[str, Any]) -> Any:
            answer = requests.get(f"http://{url}/v2{path}", timeout=10)
            assert answer.status_code == status
            jsonschema.validate(answer.json(), form)
            return answer.json()

        told("", 200, METADATA_SERVER)
        told("/health/live", 200, LIVE_SERVER)
        for model in ("/models/cartpole", "/models/cartpole/versions/3"):
            metadata = told(model, 200, METADATA_MODEL)
            assert told(f"{model}/ready", 200, READY_MODEL) == {"name": metadata["name"], "ready": True}
        told("/models/other", 404, ERROR)
        told("/models/other/ready", 404, ERROR)
        sent = [inputs[each["name"]] for each in metadata["inputs"] if each["name"] in inputs]
        for status, body, form in ((200, {"id": "42", "inputs": sent}, INFERENCE), (400, {"inputs": []}, ERROR)):
            answer = requests.post(f"http://{url}/v2/models/cartpole/infer", json=body, timeout=10)
            assert answer.status_code == status
            jsonschema.validate(answer.json(), form)
            assert answer.json().get("id") == body.get("id")
