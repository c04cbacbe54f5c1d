"""The Open Inference Protocol v2 over a policy, for those who speak it already. Pure: content in, content out.

A policy is a model whose inputs are the leaves of its observation space, `observation` or `observation/0`, `observation/1`, ..., and
for a recurrent one, where an episode goes on, `state/<name>`; its outputs are the actions, named alike, and `state_out/<name>`.
`parameters` may hold `explore` and `seed`. Tensors travel as JSON; the binary extension is not spoken.

Source: https://github.com/kserve/open-inference-protocol/blob/main/specification/protocol/inference_rest.md
"""

import re
from math import prod
from typing import Any

import numpy as np
import orjson

from app.policy import tensor_names
from app.reader import ObservationReader, PartRefused
from app.serving.acting import OBSERVATIONS, Question, Serving, Witness, explore_of, seed_of
from app.serving.meter import Meter
from app.serving.problem import TITLES, Headers, Problem, no_policy
from app.spaces import Array, LeafSpace, Space, leaves

ROOT = re.compile(r"/v2/?")
HEALTH = re.compile(r"/v2/health/(live|ready)")
MODEL = re.compile(r"/v2/models/(?P<name>[^/]+)(/versions/(?P<version>[^/]+))?(?P<ready>/ready)?")
INFER = re.compile(r"/v2/models/(?P<name>[^/]+)(/versions/(?P<version>[^/]+))?/infer")

DATATYPES = {
    **{f"{kind}{bits}": f"{kind.upper()}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64)},
    **{"float16": "FP16", "float32": "FP32", "float64": "FP64", "bool": "BOOL"},
}


def is_inference(path: str) -> bool:
    """Whether a path below the route is that of an inference."""
    return INFER.fullmatch(path) is not None


def names_version(path: str) -> bool:
    """Whether the path of an inference names a version."""
    named = INFER.fullmatch(path)
    return named is not None and named["version"] is not None


def is_path(path: str) -> bool:
    """Whether a path below the route is one that tells of the server or of a model."""
    return any(pattern.fullmatch(path) for pattern in (ROOT, HEALTH, MODEL))


def told(path: str, model: "Model | None") -> bytes:
    """What the server tells of itself or of its model; None: there is none yet.

    Raises:
        Problem: 404, there is no such model; 503, there is none yet.
    """
    if ROOT.fullmatch(path):
        return orjson.dumps({"name": "policymodel", "version": "2", "extensions": []})
    if path == "/v2/health/live":
        return b'{"live":true}'
    if model is None:
        raise no_policy()
    if path == "/v2/health/ready":
        return b'{"ready":true}'
    model.check(path)
    return orjson.dumps({"name": model.name, "ready": True} if path.endswith("/ready") else model.metadata())


def error(problem: Problem, serving: Serving | None) -> tuple[int, bytes, Headers]:
    """A problem in the protocol's form; what it calls 400 is 422 elsewhere."""
    where = f"{problem.pointer}: " if problem.pointer else ""
    headers = [(b"content-type", b"application/json"), *([] if serving is None else serving.headers), *problem.headers]
    return 400 if problem.status == 422 else problem.status, orjson.dumps({"error": where + problem.detail}), headers


class Model:
    """One policy as a model of the protocol.

    Attributes:
        name: of the model.
    """

    def __init__(self, name: str, serving: Serving) -> None:
        policy = serving.policy
        self.name = name
        self._version = str(serving.revision) if serving.revision is not None else policy.digest
        self._serving = serving
        self._observed = _tensors("observation", policy.observation_space)
        states = policy.state_space.spaces
        self._states = {f"state/{key}": leaf.space for key, leaf in zip(states, leaves(policy.state_space), strict=True)}
        next_states = {f"state_out/{key}": leaf.space for key, leaf in zip(states, leaves(policy.state_space), strict=True)}
        self._outputs = {**_tensors("action", policy.action_space), **next_states}

    def check(self, path: str) -> None:
        """Whether a path names this model.

        Raises:
            Problem: 404.
        """
        named = INFER.fullmatch(path) or MODEL.fullmatch(path)
        if named is None or named["name"] != self.name or named["version"] not in (None, self._version):
            raise Problem(404, f"the model here is {self.name}, version {self._version}")

    def metadata(self) -> dict[str, Any]:
        """What the protocol tells of a model."""
        return {
            "name": self.name,
            "versions": [self._version],
            "platform": "onnx_onnxv1",
            "inputs": [_tensor_metadata(name, space) for name, space in {**self._observed, **self._states}.items()],
            "outputs": [_tensor_metadata(name, space) for name, space in self._outputs.items()],
        }

    def inferred(self, content: Any, meter: Meter, *, rejects_out_of_bounds: bool, witness: Witness | None = None) -> bytes:
        """The answer to a decoded request for inference.

        Raises:
            Problem: naming the bad part.
        """
        question = self._question(content)
        decision = self._serving.decided(question, meter, rejects_out_of_bounds=rejects_out_of_bounds, pointer="/inputs", witness=witness)
        found = dict(zip(self._outputs, (*decision.actions, *decision.state), strict=True))
        answer: dict[str, Any] = {"model_name": self.name, "model_version": self._version}
        if isinstance(content.get("id"), str):
            answer["id"] = _encodable(content["id"])
        if witness is not None:
            answer["parameters"] = {"decision_id": witness.decision_id}
        answer["outputs"] = [
            {
                "name": name,
                "shape": list(found[name].shape),
                "datatype": _datatype(self._outputs[name]),
                "data": found[name].ravel().tolist(),
            }
            for name in _asked_outputs(content.get("outputs"), list(found))
        ]
        return orjson.dumps(answer)

    def _question(self, content: Any) -> Question:
        if not isinstance(content, dict) or not isinstance(content.get("inputs"), list):
            raise Problem(422, "must be an object with a list of inputs", "")
        tensors: dict[str, Array] = {}
        known = {**self._observed, **self._states}
        for index, sent in enumerate(content["inputs"]):
            pointer = f"/inputs/{index}"
            name = sent.get("name") if isinstance(sent, dict) else None
            if not isinstance(name, str) or name not in known or name in tensors:
                raise Problem(422, f"must be one of {', '.join(known)}, each once", f"{pointer}/name")
            tensors[name] = _tensor(sent, known[name], pointer)
        missing = [name for name in self._observed if name not in tensors]
        if missing:
            raise Problem(422, f"{missing[0]} is missing", "/inputs")
        if len({len(tensor) for tensor in tensors.values()}) > 1:
            raise Problem(422, "must have the same first dimension, which is the batch", "/inputs")
        states = [tensors[name] for name in self._states if name in tensors]
        if states and len(states) < len(self._states):
            raise Problem(422, f"{', '.join(self._states)} go together", "/inputs")
        explore, seed = _parameters(content.get("parameters"))
        observations = tuple(tensors[name] for name in self._observed)
        return Question(observations, explore=explore, seed=seed, state=tuple(states) or None)


def openapi_paths(below: str, name: str, answer_headers: dict[str, Any]) -> dict[str, Any]:
    """The protocol's paths as OpenAPI has them.

    Args:
        below: the route that they lie below.
        name: of the model.
        answer_headers: of what a policy answers.
    """
    texts, shape = {"type": "array", "items": {"type": "string"}}, {"type": "array", "items": {"type": "integer"}}
    data = {"type": "array", "items": {}}
    metadata = {"name": {"type": "string"}, "datatype": {"type": "string"}, "shape": shape}
    described = _members(metadata)
    sent = _members({**metadata, "data": data})
    model = {
        "name": {"type": "string"},
        "versions": texts,
        "platform": {"type": "string"},
        "inputs": {"type": "array", "items": described},
        "outputs": {"type": "array", "items": described},
    }
    asked = _members({"inputs": {"type": "array", "items": sent}})
    asked["properties"] |= {
        "id": {"type": "string"},
        "parameters": {"type": "object"},
        "outputs": {"type": "array", "items": {"type": "object"}},
    }
    given = _members({"model_name": {"type": "string"}, "model_version": {"type": "string"}, "outputs": {"type": "array", "items": sent}})
    # Its `decision_id` is there while a candidate is tried or decisions are logged.
    given["properties"]["parameters"] = {"type": "object", "properties": {"decision_id": {"type": "string"}}}
    ready, named = {"ready": {"type": "boolean"}}, f"/v2/models/{name}"
    told = {
        "/v2": ("Server metadata", _members({"name": {"type": "string"}, "version": {"type": "string"}, "extensions": texts}), (405,)),
        "/v2/health/live": ("Whether the server lives", _members({"live": {"type": "boolean"}}), (405,)),
        "/v2/health/ready": ("Whether the model is ready", _members(ready), (405, 503)),
        named: ("Model metadata", _members(model), (405, 503)),
        f"{named}/ready": ("Whether the model is ready", _members({"name": {"type": "string"}, **ready}), (405, 503)),
    }
    paths: dict[str, Any] = {
        below + path: {"get": {"summary": summary, "responses": {"200": _content(summary, schema), **_errors(*problems)}}}
        for path, (summary, schema, problems) in told.items()
    }
    infer = {
        "summary": "Inference",
        "requestBody": {"required": True, "content": {"application/json": {"schema": asked}}},
        "responses": {"200": {**_content("The actions", given), "headers": answer_headers}, **_errors(400, 405, 408, 413, 500, 503)},
    }
    return {**paths, f"{below}{named}/infer": {"post": infer}}


def _members(properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties)}


def _content(summary: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"description": summary, "content": {"application/json": {"schema": schema}}}


def _errors(*statuses: int) -> dict[str, Any]:
    schema = _members({"error": {"type": "string"}})
    return {str(status): _content(TITLES[status], schema) for status in statuses}


def _tensors(name: str, space: Space) -> dict[str, LeafSpace]:
    return {named: leaf.space for named, leaf in zip(tensor_names(name, space), leaves(space), strict=True)}


def _datatype(space: LeafSpace) -> str:
    return DATATYPES[str(space.dtype)]


def _tensor_metadata(name: str, space: LeafSpace) -> dict[str, Any]:
    return {"name": name, "datatype": _datatype(space), "shape": [-1, *space.shape]}


def _encodable(text: str) -> str:
    """A text of a request, with `?` for what JSON lets through and UTF-8 does not (lone surrogates)."""
    return text.encode(errors="replace").decode()


def _tensor(sent: dict[str, Any], space: LeafSpace, pointer: str) -> Array:
    """A tensor of a request: its data are a flat list in row-major order, or nested lists."""
    shape, data, datatype = sent.get("shape"), sent.get("data"), _datatype(space)
    if sent.get("datatype") != datatype:
        raise Problem(422, f"must be {datatype}", f"{pointer}/datatype")
    batch = shape[0] if isinstance(shape, list) and shape else None
    are_lengths = isinstance(shape, list) and all(type(length) is int for length in shape)
    if not isinstance(shape, list) or batch is None or not are_lengths or not 1 <= batch <= OBSERVATIONS or shape[1:] != list(space.shape):
        raise Problem(422, f"must be {[f'1 to {OBSERVATIONS}', *space.shape]}", f"{pointer}/shape")
    if not isinstance(data, list):
        raise Problem(422, "must be a list: tensors travel as JSON here, not in the binary form", f"{pointer}/data")
    if space.shape and len(data) == prod(shape) and not any(isinstance(item, list) for item in data):
        flat = np.empty(len(data), dtype=object)
        flat[:] = data
        data = flat.reshape(shape).tolist()
    if len(data) != batch:
        raise Problem(422, f"must hold {prod(shape)} numbers, or {batch} nested lists", f"{pointer}/data")
    if datatype == "BOOL":
        data = _without_bools(data, len(space.shape) + 1)
    try:
        return ObservationReader(space).batch(data, f"{pointer}/data")[0]
    except PartRefused as refused:
        raise Problem(422, refused.detail, refused.pointer) from refused


def _without_bools(data: Any, depth: int) -> Any:
    """Nested lists, so deep as the tensor, with 0 and 1 for false and true; what is deeper is left to be refused."""
    if depth and isinstance(data, list):
        return [_without_bools(item, depth - 1) for item in data]
    return int(data) if isinstance(data, bool) else data


def _asked_outputs(sent: Any, known: list[str]) -> list[str]:
    if sent is None:
        return known
    if not isinstance(sent, list):
        raise Problem(422, "must be a list", "/outputs")
    for index, output in enumerate(sent):
        if not isinstance(output, dict) or not isinstance(output.get("name"), str) or output["name"] not in known:
            raise Problem(422, f"must be one of {', '.join(known)}", f"/outputs/{index}/name")
    return [output["name"] for output in sent] or known


def _parameters(sent: Any) -> tuple[bool, int | None]:
    """`explore` and `seed`; others are the client's business, as the protocol has it."""
    if sent is None:
        return False, None
    if not isinstance(sent, dict):
        raise Problem(422, "must be an object", "/parameters")
    return explore_of(sent, "/parameters"), seed_of(sent, "/parameters")
