"""The HTTP face of a policy: a raw ASGI app. Routes, answers, counts; it holds no policy.

No framework stands in the way of a request, and every answer carries Content-Length: in HAProxy mode a reload cuts one without it short.
"""

import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Protocol

import orjson

from app.body import BodyReader, Receive, Scope, decoded
from app.door import Send
from app.meter import Meter
from app.overload import Turnstile
from app.policy import Policy
from app.problem import Headers, Problem, unavailable
from app.spaces import Discrete, ObservationReader, ObservationRefused

BODY_BYTES = 1024 * 1024
OBSERVATIONS = 4096
NO_POLICY_RETRY_S = 5
OVERLOAD_RETRY_S = 1

JSON = (b"content-type", b"application/json")
PROBLEM_JSON = (b"content-type", b"application/problem+json")

log = logging.getLogger("ray.serve")


@dataclass(frozen=True)
class Serving:
    """A policy that answers, with what its answers need; made once for each policy."""

    policy: Policy
    revision: int | None
    reader: ObservationReader
    headers: Headers
    is_discrete: bool

    @classmethod
    def of(cls, policy: Policy, revision: int | None) -> "Serving":
        """The serving of a policy under a revision."""
        headers = [(b"x-policy-digest", policy.digest.encode())]
        if revision is not None:
            headers.append((b"x-policy-revision", str(revision).encode()))
        return cls(policy, revision, ObservationReader(policy.observation_space), headers, isinstance(policy.action_space, Discrete))


@dataclass(frozen=True)
class Manners:
    """How requests are answered, whichever policy does; from `user_config`.

    Attributes:
        route: path that the policy answers at, such as `/cartpole-ppo`; empty where it is not told, and the door stays closed.
        rejects_out_of_bounds: whether an observation outside the bounds of its space is refused, not only counted.
        body_bytes: how large a body may be.
        writes_access_log: a line of JSON for each request.
    """

    route: str = ""
    rejects_out_of_bounds: bool = False
    body_bytes: int = BODY_BYTES
    writes_access_log: bool = False


class Desk(Protocol):
    """What the app reads and counts in the replica that it runs in."""

    serving: Serving | None
    manners: Manners
    meter: Meter


class PolicyApp:
    """Answers for one replica.

    Args:
        desk: what it holds and counts.
        status: gives the content of GET /v1/status.
    """

    def __init__(self, desk: Desk, status: Callable[[], Awaitable[dict[str, Any]]]) -> None:
        self._desk = desk
        self._status = status
        self._bodies = BodyReader(BODY_BYTES)
        self._turnstile = Turnstile()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One ASGI connection."""
        if scope["type"] == "lifespan":
            await _answer_lifespan(receive, send)
        elif scope["type"] == "websocket":
            # Refused before it is accepted, which is 403 to the client.
            await receive()
            await send({"type": "websocket.close"})
        elif _path_below_route(scope) in ("", "/") and scope["method"] in ("POST", "GET"):
            await self.act(scope, receive, send)
        else:
            try:
                status, body, headers = await self._described(scope)
            except Problem as problem:
                status, body, headers = problem.status, problem.body(), [PROBLEM_JSON, *problem.headers]
            await _send(send, status, body, headers, has_body=scope["method"] != "HEAD")

    async def act(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request for actions, whatever its path: the door calls this past all routing."""
        desk, began = self._desk, time.perf_counter()
        serving = desk.serving
        try:
            if not self._turnstile.admits():
                raise unavailable("more requests come than can be answered", OVERLOAD_RETRY_S)
            self._bodies.limit_bytes = desk.manners.body_bytes
            sent = await self._bodies.body(scope, receive)
            began, serving = time.perf_counter(), desk.serving
            if serving is None:
                raise unavailable("no policy has been approved yet", NO_POLICY_RETRY_S)
            status, body, headers = 200, self._acted(serving, sent), [JSON, *serving.headers]
        except Problem as problem:
            policy_headers = serving.headers if serving is not None else []
            status, body, headers = problem.status, problem.body(), [PROBLEM_JSON, *policy_headers, *problem.headers]
        seconds = time.perf_counter() - began
        desk.meter.requests[status] += 1
        desk.meter.seconds.add(seconds)
        await _send(send, status, body, headers)
        if desk.manners.writes_access_log:
            log.info("access", extra={"method": scope["method"], "status": status, "seconds": round(seconds, 6), "bytes": len(body)})

    def _acted(self, serving: Serving, body: bytes) -> bytes:
        """The JSON that answers a body.

        Raises:
            Problem: naming the bad part.
        """
        desk = self._desk
        sent, is_batch = _sent_observations(decoded(body))
        pointer = "/observations" if is_batch else "/observation"
        try:
            observations = serving.reader.batch(sent, pointer, numbered=is_batch)
        except ObservationRefused as refused:
            raise Problem(422, refused.detail, refused.pointer) from refused
        outside = serving.reader.out_of_bounds(observations)
        if outside:
            desk.meter.out_of_bounds += outside
            if desk.manners.rejects_out_of_bounds:
                raise Problem(422, "lies outside the bounds of the observation space", pointer)
        began = time.perf_counter()
        try:
            actions = serving.policy.act(observations)
        except Exception as error:
            # Its text may hold the observation, so the log has it, and the client does not.
            log.exception("the policy %s failed", serving.policy.digest)
            raise Problem(500, "the policy could not act on this observation") from error
        desk.meter.acted(actions, serving.is_discrete, time.perf_counter() - began)
        listed = actions.tolist()
        return orjson.dumps({"actions": listed} if is_batch else {"action": listed[0]})

    async def _described(self, scope: Scope) -> tuple[int, bytes, Headers]:
        """What the app says of itself.

        Raises:
            Problem: 404, 405.
        """
        path = _path_below_route(scope)
        if path in ("", "/"):
            raise _not_allowed("POST", "GET")
        if path not in ("/v1/status", "/healthz"):
            raise Problem(404, "the policy answers at its route; beside it there are healthz and v1/status")
        if scope["method"] not in ("GET", "HEAD"):
            raise _not_allowed("GET", "HEAD")
        if path == "/healthz":
            return 200, b'{"status":"ok"}', [JSON]
        return 200, orjson.dumps(await self._status()), [JSON]


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


def _not_allowed(*allowed: str) -> Problem:
    listed = ", ".join(allowed)
    return Problem(405, f"allowed are {listed}", headers=[(b"allow", listed.encode())])


async def _send(send: Send, status: int, body: bytes, headers: Headers, *, has_body: bool = True) -> None:
    headers.append((b"content-length", str(len(body)).encode()))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body if has_body else b""})


async def _answer_lifespan(receive: Receive, send: Send) -> None:
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return
