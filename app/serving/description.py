"""What a policy says of itself: its spaces as JSON Schema, its OpenAPI document, and a page for people. Pure: it asks nobody."""

import html
import json
from typing import Any

import numpy as np

from app.reader import dtype_limits
from app.serving import inference_protocol, rewards
from app.serving.acting import LARGEST_SEED, OBSERVATIONS, Serving
from app.serving.problem import TITLES
from app.spaces import Array, Box, Dict, Discrete, MultiBinary, MultiDiscrete, Space, Tuple

PATHS = ("/v1/status", "/v1/spec", "/v1/rewards", "/openapi.json", "/docs", "/healthz")
# A list of different schemas for its elements is for short vectors; an image has bounds of one kind.
MOST_ELEMENTS_NAMED = 64

Schema = dict[str, Any]


def schema_of(space: Space, *, is_strict: bool) -> Schema:
    """The JSON Schema (2020-12) of what a client may send for a space, or gets.

    Args:
        is_strict: whether the bounds of a Box hold; else they are told as `x-low` and `x-high`, and any number of its type is taken.
    """
    match space:
        case Discrete(n, start):
            return {"type": "integer", "minimum": start, "maximum": start + n - 1}
        case MultiDiscrete(nvec, start):
            return _nested(space.shape, [_integer(low, low + n - 1) for low, n in zip(start.flat, nvec.flat, strict=True)])
        case MultiBinary(shape):
            return _nested(shape, [_integer(0, 1)])
        case Box(shape, dtype, low, high):
            return _nested(shape, _elements(dtype, low, high, is_strict=is_strict))
        case Tuple(spaces):
            items = [schema_of(one, is_strict=is_strict) for one in spaces]
            return {"type": "array", "prefixItems": items, "minItems": len(items), "maxItems": len(items), "items": False}
        case Dict(spaces):
            members = {key: schema_of(one, is_strict=is_strict) for key, one in spaces.items()}
            return {"type": "object", "properties": members, "required": list(members), "additionalProperties": False}


def _integer(low: Any, high: Any) -> Schema:
    return {"type": "integer", "minimum": int(low), "maximum": int(high)}


def _elements(dtype: np.dtype[Any], low: Array, high: Array, *, is_strict: bool) -> list[Schema]:
    """One schema for each element, or one for all where they are alike."""
    least, most = dtype_limits(dtype)
    is_whole = not np.issubdtype(dtype, np.floating)
    number = int if is_whole else float
    pairs = list(dict.fromkeys(zip(low.flat, high.flat, strict=True)))
    if len(pairs) > 1:
        pairs = list(zip(low.flat, high.flat, strict=True))
    found = []
    for bounds in pairs:
        within = (max(bounds[0], least), min(bounds[1], most)) if is_strict else (least, most)
        element: Schema = {"type": "integer" if is_whole else "number", "minimum": number(within[0]), "maximum": number(within[1])}
        if not is_strict:
            named = {"x-low": bounds[0], "x-high": bounds[1]}
            element |= {name: number(bound) for name, bound in named.items() if np.isfinite(bound)}
        found.append(element)
    return found


def _nested(shape: tuple[int, ...], elements: list[Schema]) -> Schema:
    """Lists, as deep as the shape, of elements that are given in row-major order, or of one for all."""
    if not shape:
        return elements[0]
    length, rest = shape[0], shape[1:]
    size = {"type": "array", "minItems": length, "maxItems": length}
    if len(elements) == 1:
        return {**size, "items": _nested(rest, elements)}
    share = len(elements) // length
    if len(elements) > MOST_ELEMENTS_NAMED:
        # Too many to name one by one: the widest bounds are true of all.
        widest = {
            **elements[0],
            "minimum": min(one["minimum"] for one in elements),
            "maximum": max(one["maximum"] for one in elements),
        }
        return _nested(shape, [{key: value for key, value in widest.items() if not key.startswith("x-")}])
    parts = [_nested(rest, elements[i * share : (i + 1) * share]) for i in range(length)]
    return {**size, "prefixItems": parts, "items": False}


class Description:
    """Describes one policy under one route.

    Args:
        name: of the application.
        route: path that the policy answers at.
        serving: the policy.
        is_strict: whether observations outside their bounds are refused.
    """

    def __init__(self, name: str, route: str, serving: Serving, *, is_strict: bool = False) -> None:
        self._name = name
        self._route = route
        self._serving = serving
        policy = serving.policy
        self._observation = schema_of(policy.observation_space, is_strict=is_strict) | _units(policy.manifest, "observation")
        self._action = schema_of(policy.action_space, is_strict=True) | _units(policy.manifest, "action")
        self._state = schema_of(policy.state_space, is_strict=False) if policy.is_recurrent else None

    def spec(self) -> dict[str, Any]:
        """What GET <route>/v1/spec says."""
        manifest = self._serving.policy.manifest
        state = {} if self._state is None else {"state": self._state}
        return {
            "name": self._name,
            "digest": self._serving.policy.digest,
            "revision": self._serving.revision,
            "environment": manifest.get("environment"),
            "observation": self._observation,
            "action": self._action,
            **state,
            "example": self._example(),
        }

    def _example(self) -> dict[str, Any]:
        """A body that is answered: the policy was recorded with it."""
        return {"observation": self._serving.policy.manifest["golden"]["observations"][0]}

    def openapi(self) -> dict[str, Any]:
        """The OpenAPI document of this policy."""
        act = {
            "summary": "The action for an observation, or the actions for many",
            "parameters": _EPISODE_HEADERS,
            "requestBody": {
                "required": True,
                "content": {"application/json": {"schema": {"oneOf": [self._body(), self._batch()]}, "example": self._example()}},
            },
            "responses": {"200": self._answer(), **_problems(400, 405, 408, 413, 422, 500, 503)},
        }
        paths: dict[str, Any] = {self._route or "/": {"post": act}}
        told = {
            "/v1/status": ("One row for each replica", "application/json", _problems(405)),
            "/v1/spec": ("The spaces of the policy as JSON Schema", "application/json", _problems(405, 503)),
            "/openapi.json": ("This document", "application/json", _problems(405, 503)),
            "/docs": ("This document for people", "text/html", _problems(405, 503)),
            "/healthz": ("Whether the replica answers", "application/json", _problems(405)),
        }
        for path, (summary, media_type, problems) in told.items():
            content = {media_type: {"schema": {"type": "string" if media_type == "text/html" else "object"}}}
            responses = {"200": {"description": summary, "content": content}, **problems}
            paths[self._route + path] = {"get": {"summary": summary, "responses": responses}}
        paths[f"{self._route}/v1/rewards"] = {"post": _REWARDS}
        paths |= inference_protocol.openapi_paths(self._route, self._name, _ANSWER_HEADERS)
        return {
            "openapi": "3.1.0",
            "info": {
                "title": f"Policy {self._name}",
                "version": str(self._serving.revision or self._serving.policy.digest),
                "description": "Answers observations by actions. The Open Inference Protocol is spoken below /v2.",
            },
            "paths": paths,
            "components": {"schemas": {"Problem": _PROBLEM}},
        }

    def _body(self) -> Schema:
        members: dict[str, Schema] = {"observation": self._observation, **_EXPLORING}
        if self._state is not None:
            members["state"] = self._state
        mask = _mask(self._serving.policy.action_space)
        if mask is not None:
            members["action_mask"] = mask
        return {"type": "object", "properties": members, "required": ["observation"], "additionalProperties": False}

    def _batch(self) -> Schema:
        members: dict[str, Schema] = {"observations": _several(self._observation), **_EXPLORING}
        # Lists beside the observations are as long as they: JSON Schema cannot say so.
        each = {"description": "One for each observation."}
        if self._state is not None:
            members["states"] = _several({"anyOf": [self._state, {"type": "null"}]}) | each
        mask = _mask(self._serving.policy.action_space)
        if mask is not None:
            members["action_masks"] = _several(mask) | each
        return {"type": "object", "properties": members, "required": ["observations"], "additionalProperties": False}

    def _answer(self) -> dict[str, Any]:
        one: dict[str, Schema] = {"action": self._action}
        many: dict[str, Schema] = {"actions": {"type": "array", "items": self._action}}
        if self._state is not None:
            one["state"] = self._state
            many["states"] = {"type": "array", "items": self._state}
        shapes = [
            {"type": "object", "properties": {**members, "decision_id": _DECISION_ID}, "required": list(members)} for members in (one, many)
        ]
        return {
            "description": "The greedy action, or one drawn where explore is true",
            "headers": _ANSWER_HEADERS,
            "content": {"application/json": {"schema": {"oneOf": shapes}}},
        }

    def page(self) -> bytes:
        """A page that shows the policy and tries it; it loads nothing from elsewhere."""
        spec = self.spec()
        facts = {
            "policy": self._name,
            "revision": spec["revision"],
            "digest": spec["digest"],
            "environment": json.dumps(spec["environment"]),
        }
        rows = "".join(f"<tr><th>{html.escape(key)}</th><td>{html.escape(str(value))}</td></tr>" for key, value in facts.items())
        schemas = "".join(
            f"<h2>{title}</h2><pre>{html.escape(json.dumps(spec[title.lower()], indent=1))}</pre>" for title in ("Observation", "Action")
        )
        links = "".join(f'<li><a href="{html.escape(self._route + path)}">{html.escape(self._route + path)}</a></li>' for path in PATHS)
        example = html.escape(json.dumps(self._example()))
        filled = {"@TITLE@": html.escape(self._name), "@ROWS@": rows, "@ROUTE@": html.escape(self._route), "@EXAMPLE@": example}
        page = _PAGE
        for place, text in {**filled, "@SCHEMAS@": schemas, "@LINKS@": links}.items():
            page = page.replace(place, text)
        return page.encode()


def _units(manifest: dict[str, Any], role: str) -> Schema:
    """What a schema says of units: `x-units`, by JSON pointer (see `app.units`), where the environment tells any."""
    units = manifest.get("units", {}).get(role)
    return {"x-units": units} if units else {}


def _several(one: Schema) -> Schema:
    return {"type": "array", "items": one, "minItems": 1, "maxItems": OBSERVATIONS}


def _mask(space: Space) -> Schema | None:
    """The schema of `action_mask`, where there can be one."""
    allowed = _integer(0, 1)
    match space:
        case Discrete(n):
            return {**_nested((n,), [allowed]), "contains": {"const": 1}}
        case MultiDiscrete(nvec) if nvec.ndim == 1:
            lists = [{**_nested((int(n),), [allowed]), "contains": {"const": 1}} for n in nvec]
            return {"type": "array", "prefixItems": lists, "minItems": len(lists), "maxItems": len(lists), "items": False}
    return None


def _problems(*statuses: int) -> dict[str, Any]:
    content = {"application/problem+json": {"schema": {"$ref": "#/components/schemas/Problem"}}}
    return {str(status): {"description": TITLES[status], "content": content} for status in statuses}


_ANSWER_HEADERS = {
    name: {"description": text, "schema": {"type": "string"}}
    for name, text in {"x-policy-digest": "The policy that answered.", "x-policy-revision": "Its number."}.items()
}
_DECISION_ID: Schema = {
    "type": "string",
    "description": "Names the decision while a candidate is tried or decisions are logged: 12 digits of the digest, the replica, a number.",
}
_EPISODE_HEADERS = [
    {"name": name, "in": "header", "required": False, "description": text, "schema": {"type": "string"}}
    for name, text in {
        "x-session-id": "Names the episode: a canary answers all of an episode, or nothing of it.",
        "x-policy-pin": "The digest that the episode was answered by: that policy goes on with it as long as it is held.",
    }.items()
]
_EXPLORING: dict[str, Schema] = {
    "explore": {"type": "boolean", "default": False, "description": "Draw from the distribution of actions."},
    "seed": {"type": "integer", "minimum": 0, "maximum": LARGEST_SEED, "description": "Makes that draw repeatable."},
}
_PROBLEM: Schema = {
    "type": "object",
    "description": "Problem details, RFC 9457.",
    "required": ["type", "title", "status", "detail"],
    "properties": {
        "type": {"type": "string"},
        "title": {"type": "string"},
        "status": {"type": "integer"},
        "detail": {"type": "string"},
        "pointer": {"type": "string", "description": "JSON pointer to the bad part of the body."},
    },
}
_REWARDS = {
    "summary": "Takes the return of an episode; it may be sent again, to any replica",
    "parameters": _EPISODE_HEADERS[1:],
    "requestBody": {"required": True, "content": {"application/json": {"schema": rewards.SCHEMA}}},
    "responses": {
        "200": {
            "description": "Whether it counts: it does where it is of a policy that is held",
            "content": {
                "application/json": {
                    "schema": {
                        "type": "object",
                        "properties": {"counted": {"type": "boolean"}, "digest": {"type": ["string", "null"]}},
                        "required": ["counted", "digest"],
                    }
                }
            },
        },
        **_problems(400, 405, 408, 413, 422, 503),
    },
}
_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>@TITLE@</title>
<style>body{font:16px/1.5 sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}pre,textarea{background:#f4f4f4;padding:.5rem;
font:14px/1.4 monospace;overflow:auto;max-height:20rem;width:100%;box-sizing:border-box}th{text-align:left;padding-right:1rem}</style>
</head><body><h1>@TITLE@</h1><table>@ROWS@</table>
<h2>Try it</h2><pre>curl -d '@EXAMPLE@' http://HOST@ROUTE@</pre>
<textarea id="sent" rows="4">@EXAMPLE@</textarea><p><button id="send">Send</button></p><pre id="received"></pre>
@SCHEMAS@<h2>More</h2><ul>@LINKS@</ul>
<script>document.getElementById("send").onclick=async()=>{const answer=await fetch("@ROUTE@",{method:"POST",
body:document.getElementById("sent").value});document.getElementById("received").textContent=answer.status+" "+await answer.text()}</script>
</body></html>
"""
