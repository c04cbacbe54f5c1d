"""What may stand in a body beside the observation, and what the policy tells of itself; over HTTP, without Ray."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import jsonschema
import numpy as np
import pytest
from fakes.policies import BOX, NESTED, Desk, model, nested, plain, recurrent, serving, tensor
from onnx import TensorProto, helper

from app.serving import description
from app.serving.acting import Serving
from app.serving.asgi import PolicyApp
from app.spaces import parsed_space


def answers(desk: Desk, *requests: Callable[[httpx.AsyncClient], Awaitable[httpx.Response]]) -> list[httpx.Response]:
    async def status() -> dict[str, Any]:
        return {}

    async def all_answers() -> list[httpx.Response]:
        transport = httpx.ASGITransport(PolicyApp(desk, "cartpole", status), root_path="/route")
        async with httpx.AsyncClient(transport=transport, base_url="http://policy") as client:
            return [await request(client) for request in requests]

    return asyncio.run(all_answers())


def posted(served: Serving | None, *bodies: Any, path: str = "", **manners: Any) -> list[httpx.Response]:
    return answers(
        Desk(served, **manners), *(lambda client, body=body: client.post(f"/route{path}", content=json.dumps(body)) for body in bodies)
    )


def got(served: Serving | None, path: str) -> httpx.Response:
    return answers(Desk(served), lambda client: client.get(f"/route{path}"))[0]


SEEN = [0.1, 0.2, 0.3, 0.4]


def test_exploring_draws_from_the_distribution_and_a_seed_repeats_the_draw() -> None:
    (drawn,) = posted(plain(), {"observations": [SEEN] * 4000, "explore": True, "seed": 1})
    share = np.mean(drawn.json()["actions"])
    assert abs(share - 0.75) < 0.03
    once, again = posted(plain(), *[{"observation": SEEN, "explore": True, "seed": 7}] * 2)
    assert once.json() == again.json()
    (greedy,) = posted(plain(), {"observation": SEEN, "explore": False})
    assert greedy.json() == {"action": 1}


def test_a_masked_action_is_never_chosen() -> None:
    one, many = posted(
        plain(),
        {"observation": SEEN, "action_mask": [1, 0]},
        {"observations": [SEEN] * 100, "action_masks": [[1, 0]] * 100, "explore": True},
    )
    assert one.json() == {"action": 0}
    assert set(many.json()["actions"]) == {0}


def test_a_recurrent_policy_goes_on_from_the_state_that_it_gave() -> None:
    (first,) = posted(recurrent(), {"observation": SEEN})
    assert first.json() == {"action": 0, "state": {"count": [1.0]}}
    (second,) = posted(recurrent(), {"observation": SEEN, "state": first.json()["state"]})
    assert second.json() == {"action": 1, "state": {"count": [2.0]}}
    (both,) = posted(recurrent(), {"observations": [SEEN, SEEN], "states": [None, {"count": [1.0]}]})
    assert both.json() == {"actions": [0, 1], "states": [{"count": [1.0]}, {"count": [2.0]}]}


def test_a_line_of_the_access_log_names_the_request_and_the_policy(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "ray.serve")

    def ask(client: httpx.AsyncClient) -> Awaitable[httpx.Response]:
        return client.post("/route", json={"observation": SEEN}, headers={"x-request-id": "mine"})

    answers(Desk(plain()), ask)
    (answer,) = answers(Desk(plain(), writes_access_log=True), ask)
    (line,) = caplog.records
    told = {name: getattr(line, name) for name in ("method", "status", "request_id", "digest", "bytes")}
    assert told == {"method": "POST", "status": 200, "request_id": "mine", "digest": "sha256:test", "bytes": len(answer.content)}
    assert line.seconds > 0


def test_a_nested_observation_is_read_by_its_names() -> None:
    fine, missing, wrong = posted(
        nested(),
        {"observation": {"position": [0.1, 0.2], "held": 2}},
        {"observation": {"held": 2}},
        {"observations": [{"position": [0.1, 0.2], "held": 2}, {"position": [0.1, 0.2], "held": 4}]},
    )
    assert fine.json() == {"action": 5}
    assert (missing.status_code, missing.json()["pointer"]) == (422, "/observation/position")
    assert (wrong.status_code, wrong.json()["pointer"]) == (422, "/observations/1/held")


@pytest.mark.parametrize(
    ("more", "pointer"),
    [
        ({"explore": "yes"}, "/explore"),
        ({"explore": 1}, "/explore"),
        ({"seed": -1}, "/seed"),
        ({"seed": 1.5}, "/seed"),
        ({"seed": True}, "/seed"),
        ({"seed": 2**63}, "/seed"),
        ({"action_mask": [1]}, "/action_mask"),
        ({"action_mask": [1, 2]}, "/action_mask/1"),
        ({"action_mask": [0, 0]}, "/action_mask"),
        ({"action_masks": [[1, 1]]}, ""),
        ({"state": {}}, "/state"),
        ({"other": 1}, ""),
    ],
)
def test_what_stands_beside_the_observation_is_refused_by_its_place(more: dict[str, Any], pointer: str) -> None:
    (response,) = posted(plain(), {"observation": SEEN, **more})
    assert (response.status_code, response.json()["pointer"]) == (422, pointer)


def test_lists_beside_the_observations_are_as_long_as_they() -> None:
    short, no_state = posted(
        recurrent(), {"observations": [SEEN, SEEN], "states": [None]}, {"observations": [SEEN, SEEN], "states": [None, {"count": "x"}]}
    )
    assert (short.status_code, short.json()["pointer"]) == (422, "/states")
    assert (no_state.status_code, no_state.json()["pointer"]) == (422, "/states/1/count")


def test_a_policy_that_fails_is_told_without_what_was_sent() -> None:
    broken = plain()
    broken.policy._session = None
    (response,) = posted(broken, {"observation": SEEN})
    assert response.status_code == 500
    assert response.json()["detail"] == "the policy could not act on this observation"


def test_an_observation_without_a_finite_action_is_refused_and_not_answered_with_null() -> None:
    nodes = [
        helper.make_node("Gather", ["observation", "first"], ["number"], axis=1),
        helper.make_node("Sqrt", ["number"], ["action"]),
        helper.make_node("Concat", ["action", "action"], ["action_dist_inputs"], axis=1),
    ]
    outputs = [tensor("action", TensorProto.FLOAT, 1), tensor("action_dist_inputs", TensorProto.FLOAT, 2)]
    root = model([tensor("observation", TensorProto.FLOAT, 4)], outputs, nodes, {"first": np.array([0], np.int64)})
    served = serving(BOX, {"type": "Box", "shape": [1], "dtype": "float32", "low": -9.0, "high": 9.0}, root)
    good, bad = posted(served, {"observation": [4, 0, 0, 0]}, {"observation": [-1, 0, 0, 0]})
    assert good.json() == {"action": [2.0]}
    assert (bad.status_code, bad.json()["pointer"]) == (422, "/observation")


@pytest.mark.parametrize("served", [plain(), nested(), recurrent()], ids=["plain", "nested", "recurrent"])
def test_the_spec_is_json_schema_and_its_example_is_answered(served: Serving) -> None:
    spec = got(served, "/v1/spec").json()
    for part in ("observation", "action"):
        jsonschema.Draft202012Validator.check_schema(spec[part])
    jsonschema.validate(spec["example"]["observation"], spec["observation"], jsonschema.Draft202012Validator)
    (answer,) = posted(served, spec["example"])
    assert answer.status_code == 200
    jsonschema.validate(answer.json()["action"], spec["action"], jsonschema.Draft202012Validator)


SPACES = {
    "an image": {"type": "Box", "shape": [3, 2, 2], "dtype": "uint8", "low": 0, "high": 255},
    "many bounds": {"type": "Box", "shape": [100], "dtype": "float32", "low": [-float(i) for i in range(100)], "high": 1.0},
    "a matrix with bounds": {"type": "Box", "shape": [2, 2], "dtype": "float64", "low": [[0.0, 1.0], [2.0, None]], "high": 9.0},
    "several choices": {"type": "MultiDiscrete", "nvec": [3, 2], "start": [0, 5]},
    "a grid of choices": {"type": "MultiDiscrete", "nvec": [[3, 2], [4, 5]], "start": [[0, 0], [1, 1]]},
    "switches": {"type": "MultiBinary", "shape": [3]},
    "a pair": {"type": "Tuple", "spaces": [{"type": "Discrete", "n": 2, "start": 0}, BOX]},
    "nested": NESTED,
}
VALUES: dict[str, tuple[Any, Any]] = {
    "an image": ([[[0, 255], [1, 2]]] * 3, [[[0, 256], [1, 2]]] * 3),
    "many bounds": ([0.5] * 100, [0.5] * 99),
    "a matrix with bounds": ([[1, 2], [3, 4]], [[1, 2], [3, "x"]]),
    "several choices": ([2, 6], [2, 4]),
    "a grid of choices": ([[2, 1], [4, 5]], [[3, 1], [4, 5]]),
    "switches": ([0, 1, 1], [0, 1, 2]),
    "a pair": ([1, SEEN], [1, SEEN, 1]),
    "nested": ({"position": [0, 0], "held": 3}, {"position": [0, 0], "held": 0}),
}


@pytest.mark.parametrize("name", SPACES)
def test_the_schema_of_a_space_takes_what_the_server_takes(name: str) -> None:
    schema = description.schema_of(parsed_space(SPACES[name]), is_strict=False)
    validator = jsonschema.Draft202012Validator(schema)
    good, bad = VALUES[name]
    validator.validate(good)
    assert not validator.is_valid(bad)


def test_a_strict_schema_has_the_bounds_and_a_lenient_one_tells_them() -> None:
    strict, lenient = (description.schema_of(parsed_space(BOX), is_strict=strict) for strict in (True, False))
    assert strict["prefixItems"][2] == {"type": "number", "minimum": -0.5, "maximum": 0.5}
    assert (lenient["prefixItems"][2]["x-low"], lenient["prefixItems"][2]["minimum"] < -1e38) == (-0.5, True)


def test_the_openapi_document_is_of_the_route_and_the_page_shows_the_policy() -> None:
    document = got(plain(), "/openapi.json").json()
    assert document["openapi"] == "3.1.0"
    assert {"/route", *(f"/route{path}" for path in description.PATHS)} <= set(document["paths"])
    page = got(plain(), "/docs")
    assert page.headers["content-type"].startswith("text/html")
    assert "sha256:test" in page.text
    assert "http" not in page.text.replace("http://HOST", ""), "nothing is loaded from elsewhere"


@pytest.mark.parametrize(
    ("served", "body"),
    [
        (plain(), {"observations": [SEEN, SEEN], "action_masks": [[1, 0], [1, 1]]}),
        (recurrent(), {"observations": [SEEN, SEEN], "states": [None, {"count": [1.0]}]}),
    ],
    ids=["masks", "states"],
)
def test_the_openapi_document_takes_the_lists_beside_the_observations_that_the_server_takes(served: Serving, body: dict[str, Any]) -> None:
    schema = got(served, "/openapi.json").json()["paths"]["/route"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    jsonschema.validate(body, schema)
    assert posted(served, body)[0].status_code == 200


def test_the_openapi_document_says_where_a_crowd_is_told_to_come_again() -> None:
    paths = got(plain(), "/openapi.json").json()["paths"]
    assert {path for path, each in paths.items() if "503" not in next(iter(each.values()))["responses"]} == {
        "/route/v1/status",
        "/route/healthz",
        "/route/v2",
        "/route/v2/health/live",
    }


@pytest.mark.parametrize("path", [*description.PATHS, "", "/v2", "/v2/health/live", "/v2/health/ready", "/v2/models/cartpole", "/nothing"])
def test_every_answer_names_the_policy(path: str) -> None:
    reward = {"session": "a", "step": 1, "return": 1, "done": True}
    for answer in (got(plain(), path), *posted(plain(), reward, path=path), *posted(plain(), [], path=path)):
        assert (answer.headers["x-policy-digest"], answer.headers["x-policy-revision"]) == ("sha256:test", "3")


def test_without_a_policy_there_is_nothing_to_describe_but_the_server_lives() -> None:
    for path in ("/v1/spec", "/openapi.json", "/docs", "/v2/health/ready", "/v2/models/cartpole", "/v2/models/cartpole/ready"):
        assert got(None, path).status_code == 503, path
    for path in ("/healthz", "/v1/status", "/v2", "/v2/", "/v2/health/live"):
        assert got(None, path).status_code == 200, path
    (response,) = posted(None, {"inputs": []}, path="/v2/models/cartpole/infer")
    assert (response.status_code, "retry-after" in response.headers) == (503, True)


def tensor_of(name: str, datatype: str, shape: list[int], data: list[Any]) -> dict[str, Any]:
    return {"name": name, "datatype": datatype, "shape": shape, "data": data}


def inferred(served: Serving, *bodies: Any) -> list[httpx.Response]:
    return posted(served, *bodies, path="/v2/models/cartpole/infer")


def test_the_protocol_tells_its_tensors_and_answers_flat_and_nested_data() -> None:
    assert got(plain(), "/v2/models/cartpole").json() == {
        "name": "cartpole",
        "versions": ["3"],
        "platform": "onnx_onnxv1",
        "inputs": [{"name": "observation", "datatype": "FP32", "shape": [-1, 4]}],
        "outputs": [{"name": "action", "datatype": "INT64", "shape": [-1]}],
    }
    flat, in_lists = inferred(
        plain(),
        {"id": "42", "inputs": [tensor_of("observation", "FP32", [2, 4], [*SEEN, *SEEN])]},
        {"inputs": [tensor_of("observation", "FP32", [2, 4], [SEEN, SEEN])], "outputs": [{"name": "action"}]},
    )
    outputs = [{"name": "action", "shape": [2], "datatype": "INT64", "data": [1, 1]}]
    assert flat.json() == {"model_name": "cartpole", "model_version": "3", "id": "42", "outputs": outputs}
    assert in_lists.json()["outputs"] == outputs
    assert flat.headers["x-policy-digest"] == "sha256:test"


def test_the_protocol_carries_leaves_and_state() -> None:
    leaves = [tensor_of("observation/0", "INT64", [1], [2]), tensor_of("observation/1", "FP32", [1, 2], [0.1, 0.2])]
    (response,) = inferred(nested(), {"inputs": leaves})
    assert response.json()["outputs"][0]["data"] == [5]
    observation = tensor_of("observation", "FP32", [1, 4], SEEN)
    first, second = inferred(
        recurrent(), {"inputs": [observation]}, {"inputs": [observation, tensor_of("state/count", "FP32", [1, 1], [1.0])]}
    )
    assert [[output["data"] for output in answer.json()["outputs"]] for answer in (first, second)] == [[[0], [1.0]], [[1], [2.0]]]


GOOD = tensor_of("observation", "FP32", [1, 4], SEEN)
BAD_INFERENCES = {
    "no object": [],
    "no inputs": {},
    "inputs that are no list": {"inputs": {}},
    "an input that is no object": {"inputs": [1]},
    "nothing": {"inputs": []},
    "another name": {"inputs": [{**GOOD, "name": "x"}]},
    "a name that is none": {"inputs": [{**GOOD, "name": []}]},
    "the same twice": {"inputs": [GOOD, GOOD]},
    "another type": {"inputs": [{**GOOD, "datatype": "FP64"}]},
    "another shape": {"inputs": [{**GOOD, "shape": [1, 3]}]},
    "no batch": {"inputs": [{**GOOD, "shape": [0, 4]}]},
    "a huge batch": {"inputs": [{**GOOD, "shape": [2**40, 4]}]},
    "a shape that is not of whole numbers": {"inputs": [{**GOOD, "shape": [1, 4.0]}]},
    "a shape that is none": {"inputs": [{**GOOD, "shape": "x"}]},
    "too few numbers": {"inputs": [{**GOOD, "data": [1, 2, 3]}]},
    "text": {"inputs": [{**GOOD, "data": [1, 2, 3, "x"]}]},
    "data that are none": {"inputs": [{**GOOD, "data": {}}]},
    "another output": {"inputs": [GOOD], "outputs": [{"name": "x"}]},
    "outputs that are none": {"inputs": [GOOD], "outputs": 1},
    "parameters that are none": {"inputs": [GOOD], "parameters": []},
    "exploring by a number": {"inputs": [GOOD], "parameters": {"explore": 1}},
    "a seed that is none": {"inputs": [GOOD], "parameters": {"explore": True, "seed": "x"}},
}


@pytest.mark.parametrize("body", BAD_INFERENCES.values(), ids=BAD_INFERENCES)
def test_a_bad_inference_is_refused_in_the_protocols_form(body: Any) -> None:
    (response,) = inferred(plain(), body)
    assert response.status_code == 400
    assert set(response.json()) == {"error"}


def test_an_id_that_utf_8_does_not_have_is_echoed_as_far_as_it_has() -> None:
    (response,) = inferred(plain(), {"id": "a\ud800", "inputs": [GOOD]})
    assert (response.status_code, response.json()["id"]) == (200, "a?")


def test_a_body_too_large_for_the_protocol_is_told_in_its_form() -> None:
    (response,) = posted(plain(), {"inputs": [GOOD] * 100}, path="/v2/models/cartpole/infer", body_bytes=100)
    assert response.status_code == 413
    assert set(response.json()) == {"error"}


def test_another_model_or_version_is_not_there() -> None:
    for path in ("/v2/models/other", "/v2/models/cartpole/versions/9", "/v2/models/other/ready"):
        assert got(plain(), path).status_code == 404
    assert got(plain(), "/v2/models/cartpole/versions/3/ready").status_code == 200
    (response,) = posted(plain(), {"inputs": [GOOD]}, path="/v2/models/other/infer")
    assert response.status_code == 404


def test_paths_have_their_methods() -> None:
    desk = Desk(plain())
    found = answers(
        desk,
        lambda client: client.post("/route/v1/spec"),
        lambda client: client.get("/route/v2/models/cartpole/infer"),
        lambda client: client.head("/route/v1/spec"),
        lambda client: client.head("/route"),
    )
    assert [answer.status_code for answer in found] == [405, 405, 200, 405]
    assert found[2].content == b""
