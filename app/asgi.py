"""The HTTP face of a policy: a raw ASGI app. Routes, reads JSON, answers; it holds no policy.

No framework stands in the way of a request, and every answer carries Content-Length: in HAProxy mode a reload cuts one without it short.
Errors are problem details (RFC 9457) that name the bad part by JSON pointer (RFC 6901) and never echo what was sent.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import orjson

from app.policy import Policy
from app.spaces import ObservationReader, ObservationRefused, actions_as_json

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Headers = list[tuple[bytes, bytes]]

BODY_BYTES = 1024 * 1024
# A body that comes slowly holds one of the replica's places; a hundred of them would be an outage.
BODY_S = 10.0
OBSERVATIONS = 4096
RETRY_AFTER_S = 5

TITLES = {
    400: "Body is not JSON",
    404: "No such path",
    405: "Method not allowed",
    408: "Body too slow",
    413: "Body too large",
    422: "Observation refused",
    503: "No policy yet",
}


@dataclass(frozen=True)
class Problem(Exception):
    """An answer that is not 200: status, the detail for the client, the pointer to the bad part, further headers."""

    status: int
    detail: str
    pointer: str | None = None
    headers: Headers = field(default_factory=list)


@dataclass(frozen=True)
class Serving:
    """A policy that answers, with what its answers need; made once for each policy."""

    policy: Policy
    revision: int | None
    reader: ObservationReader
    headers: Headers

    @classmethod
    def of(cls, policy: Policy, revision: int | None) -> "Serving":
        """The serving of a policy under a revision."""
        headers = [(b"x-policy-digest", policy.digest.encode())]
        if revision is not None:
            headers.append((b"x-policy-revision", str(revision).encode()))
        return cls(policy, revision, ObservationReader(policy.observation_space), headers)


class Desk(Protocol):
    """What the app reads and counts in the replica that it runs in."""

    serving: Serving | None
    rejects_out_of_bounds: bool
    requests: int
    out_of_bounds: int


class PolicyApp:
    """Answers for one replica.

    Args:
        desk: what it holds and counts.
        status: gives the content of GET /v1/status.
    """

    def __init__(self, desk: Desk, status: Callable[[], Awaitable[dict[str, Any]]]) -> None:
        self._desk = desk
        self._status = status

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One ASGI connection."""
        if scope["type"] == "lifespan":
            await _answer_lifespan(receive, send)
        elif scope["type"] == "websocket":
            # Refused before it is accepted, which is 403 to the client.
            await receive()
            await send({"type": "websocket.close"})
        elif scope["type"] == "http":
            try:
                status, body, headers = await self._answered(scope, receive)
            except Problem as problem:
                status, body, headers = _problem_answer(problem, self._desk.serving)
            headers.append((b"content-length", str(len(body)).encode()))
            await send({"type": "http.response.start", "status": status, "headers": headers})
            await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body})

    async def _answered(self, scope: Scope, receive: Receive) -> tuple[int, bytes, Headers]:
        path = _path_below_route(scope)
        if path in ("", "/"):
            _check_method(scope, ("POST", "GET"))
            return self._acted(await _body_in_time(scope, receive))
        if path == "/v1/status":
            _check_method(scope, ("GET", "HEAD"))
            return 200, orjson.dumps(await self._status()), [(b"content-type", b"application/json")]
        if path == "/healthz":
            _check_method(scope, ("GET", "HEAD"))
            return 200, b'{"status":"ok"}', [(b"content-type", b"application/json")]
        raise Problem(404, "the policy answers at its route; beside it there are healthz and v1/status")

    def _acted(self, body: bytes) -> tuple[int, bytes, Headers]:
        desk = self._desk
        desk.requests += 1
        serving = desk.serving
        if serving is None:
            raise Problem(503, "no policy has been approved yet", headers=[(b"retry-after", str(RETRY_AFTER_S).encode())])
        sent, is_batch = _sent_observations(decoded(body))
        pointer = "/observations" if is_batch else "/observation"
        try:
            observations = serving.reader.batch(sent, pointer, numbered=is_batch)
        except ObservationRefused as refused:
            raise Problem(422, refused.detail, refused.pointer) from refused
        outside = serving.reader.out_of_bounds(observations)
        if outside:
            desk.out_of_bounds += outside
            if desk.rejects_out_of_bounds:
                raise Problem(422, "lies outside the bounds of the observation space", pointer)
        actions = actions_as_json(serving.policy.action_space, serving.policy.act(observations))
        answer = {"actions": actions} if is_batch else {"action": actions[0]}
        return 200, orjson.dumps(answer), [(b"content-type", b"application/json"), *serving.headers]


def decoded(body: bytes) -> Any:
    """The JSON value of a body, whatever its Content-Type says.

    NaN, Infinity, 1e400 and lone surrogates are no JSON for orjson; they are let through here, so that what reads the
    observation can refuse them by the place where they stand.

    Raises:
        Problem: 400.
    """
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:
        pass
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        found = "is not JSON" if body else "is empty"
        raise Problem(400, f'the body {found}; send an object such as {{"observation": [...]}}') from error


def _sent_observations(content: Any) -> tuple[list[Any], bool]:
    """The observations of a body, and whether they came as a batch."""
    if not isinstance(content, dict):
        raise Problem(422, "the body must be a JSON object", "")
    match content:
        case {"observation": sent} if len(content) == 1:
            return [sent], False
        case {"observations": list(sent)} if len(content) == 1 and 1 <= len(sent) <= OBSERVATIONS:
            return sent, True
        case {"observations": _} if len(content) == 1:
            raise Problem(422, f"must be a list of 1 to {OBSERVATIONS} observations", "/observations")
    raise Problem(422, "the body must hold either observation or observations, and nothing else", "")


def _path_below_route(scope: Scope) -> str:
    path: str = scope["path"]
    return path.removeprefix(scope.get("root_path", "").rstrip("/"))


def _check_method(scope: Scope, allowed: tuple[str, ...]) -> None:
    if scope["method"] not in allowed:
        listed = ", ".join(allowed)
        raise Problem(405, f"allowed are {listed}", headers=[(b"allow", listed.encode())])


async def _body_in_time(scope: Scope, receive: Receive) -> bytes:
    """The request's body.

    Raises:
        Problem: 408, the connection is then given up; 413.
    """
    try:
        async with asyncio.timeout(BODY_S):
            return await _body(scope, receive)
    except TimeoutError as error:
        raise Problem(408, f"the body has to arrive within {BODY_S:g} s", headers=[(b"connection", b"close")]) from error


async def _body(scope: Scope, receive: Receive) -> bytes:
    """The request's body.

    Raises:
        Problem: 413, before more than the limit is read.
    """
    too_large = Problem(413, f"a body may have {BODY_BYTES} bytes; send the observations in several requests")
    for name, value in scope["headers"]:
        if name == b"content-length" and (not value.isdigit() or len(value) > 15 or int(value) > BODY_BYTES):
            raise too_large
    message = await receive()
    body: bytes = message.get("body", b"")
    while message.get("more_body") and len(body) <= BODY_BYTES:
        message = await receive()
        body += message.get("body", b"")
    if len(body) > BODY_BYTES:
        raise too_large
    return body


def _problem_answer(problem: Problem, serving: Serving | None) -> tuple[int, bytes, Headers]:
    content: dict[str, Any] = {"type": "about:blank", "title": TITLES[problem.status], "status": problem.status, "detail": problem.detail}
    if problem.pointer is not None:
        content["pointer"] = problem.pointer
    policy_headers = serving.headers if serving is not None else []
    return problem.status, orjson.dumps(content), [(b"content-type", b"application/problem+json"), *policy_headers, *problem.headers]


async def _answer_lifespan(receive: Receive, send: Send) -> None:
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return
