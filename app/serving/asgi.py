"""The HTTP face of a policy: a raw ASGI app. Routes, reads, sends, counts; it holds no policy.

No framework stands in the way of a request, and every answer carries Content-Length: in HAProxy mode a reload cuts one without it short.
"""

import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Protocol

import orjson

from app.serving import description, inference_protocol
from app.serving.acting import Serving, Witness
from app.serving.body import BodyReader, Receive, Scope, Send, decoded
from app.serving.meter import Meter
from app.serving.overload import LARGE_BYTES, Line, Turnstile
from app.serving.problem import Headers, Problem, no_policy
from app.serving.rewards import Report, parsed_report
from app.serving.rollout import Rollout, pin_of

BODY_BYTES = 1024 * 1024
REWARDS = "/v1/rewards"  # the only path beside those of policies that is posted to

JSON = (b"content-type", b"application/json")
PROBLEM_JSON = (b"content-type", b"application/problem+json")
HTML = (b"content-type", b"text/html; charset=utf-8")

Answer = tuple[int, bytes, Headers]
# Answers a body by a policy, under the eyes of a witness where there is one.
Answering = Callable[[Serving | None, bytes, Witness | None], Answer]
# Tells a problem in the form of its path, in the name of a policy.
Telling = Callable[[Problem, Serving | None], Answer]

log = logging.getLogger("ray.serve")


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
    rollout: Rollout | None
    manners: Manners
    meter: Meter

    def rewarded(self, report: Report, pin: str) -> str | None:
        """Takes a report of a return; gives the digest of the policy that it is attributed to, None where it is of none that is held."""


class PolicyApp:
    """Answers for one replica.

    Args:
        desk: what it holds and counts.
        name: of the application: the model's name in the Open Inference Protocol.
        status: gives the content of GET /v1/status.
    """

    def __init__(self, desk: Desk, name: str, status: Callable[[], Awaitable[dict[str, Any]]]) -> None:
        self._desk = desk
        self._name = name
        self._status = status
        self._turnstile = Turnstile()
        self._line = Line(self._turnstile)
        self._bodies = BodyReader(BODY_BYTES, self._turnstile, self._line)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One ASGI connection."""
        if scope["type"] == "lifespan":
            await _answer_lifespan(receive, send)
        elif scope["type"] == "websocket":
            # Refused before it is accepted, which is 403 to the client.
            await receive()
            await send({"type": "websocket.close"})
        else:
            path = _path_below_route(scope)
            if path in ("", "/") and scope["method"] in ("POST", "GET"):
                await self.act(scope, receive, send)
            elif inference_protocol.is_inference(path) and scope["method"] == "POST":
                await self._answer(
                    scope,
                    receive,
                    send,
                    lambda serving, body, witness: self._inferred(path, serving, body, witness),
                    inference_protocol.error,
                    is_free=not inference_protocol.names_version(path),
                )
            elif path == REWARDS and scope["method"] == "POST":
                await self._take_reward(scope, receive, send)
            else:
                await self._tell(path, scope, send)

    async def act(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one request for actions, whatever its path: the door calls this past all routing."""
        await self._answer(scope, receive, send, self._acted, _problem)

    async def _answer(
        self,
        scope: Scope,
        receive: Receive,
        send: Send,
        answer: Answering,
        error: Telling,
        *,
        is_free: bool = True,
    ) -> None:
        """Reads a body, answers it, or tells the problem in its form, and counts that.

        Args:
            is_free: whether any policy may answer that a rollout chooses; else it is the one that serves.
        """
        desk, began = self._desk, time.perf_counter()
        try:
            self._turnstile.enter()
            self._bodies.limit_bytes = desk.manners.body_bytes
            body = await self._bodies.body(scope, receive)
            began = time.perf_counter()
            if len(body) < LARGE_BYTES:
                status, content, headers = self._decided(scope, body, answer, error, is_free)
            else:
                decided = self._line.served(len(body), lambda: self._decided(scope, body, answer, error, is_free))
                status, content, headers = await decided
        except Problem as problem:
            if problem.status == 500:
                log.error("the policy failed", exc_info=problem.__cause__)
            status, content, headers = error(problem, desk.serving)
        seconds = time.perf_counter() - began
        desk.meter.requests[status] += 1
        desk.meter.seconds.add(seconds)
        await _send(send, status, content, headers)
        if desk.manners.writes_access_log:
            log.info("access", extra=_access(scope, status, headers) | {"seconds": round(seconds, 6), "bytes": len(content)})

    def _decided(self, scope: Scope, body: bytes, answer: Answering, error: Telling, is_free: bool) -> Answer:
        """The answer of the policy that serves, or of the one that a rollout chooses."""
        rollout = self._desk.rollout
        if rollout is None or not is_free:
            return answer(self._desk.serving, body, None)
        return self._rolled_out(rollout, scope, body, answer, error)

    def _rolled_out(self, rollout: Rollout, scope: Scope, body: bytes, answer: Answering, error: Telling) -> Answer:
        """The answer of the policy that a rollout chooses, its refusals too, or of the serving one where that fails.

        Raises:
            Problem: see `Serving.answer`.
        """
        chosen = rollout.chosen(scope["headers"])
        serving = chosen[0]
        if serving is not rollout.serving:
            began, was_set_aside = time.thread_time(), rollout.has_set_aside
            try:
                return answer(serving, body, rollout.witness(chosen, serving))
            except Problem as problem:
                if problem.status != 500:
                    return error(problem, serving)
                rollout.tell_failure(serving, problem)
                if rollout.has_set_aside and not was_set_aside:
                    self._turnstile.leave_out(time.thread_time() - began)
        return answer(rollout.serving, body, rollout.witness(chosen, rollout.serving))

    def _acted(self, serving: Serving | None, body: bytes, witness: Witness | None) -> Answer:
        if serving is None:
            raise no_policy()
        strict = self._desk.manners.rejects_out_of_bounds
        answer = serving.answer(decoded(body), self._desk.meter, rejects_out_of_bounds=strict, witness=witness)
        return 200, answer, [JSON, *serving.headers]

    def _inferred(self, path: str, serving: Serving | None, body: bytes, witness: Witness | None) -> Answer:
        if serving is None:
            raise no_policy()
        model = inference_protocol.Model(self._name, serving)
        model.check(path)
        strict = self._desk.manners.rejects_out_of_bounds
        answer = model.inferred(decoded(body), self._desk.meter, rejects_out_of_bounds=strict, witness=witness)
        return 200, answer, [JSON, *serving.headers]

    async def _take_reward(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one report of a return."""
        try:
            self._bodies.limit_bytes = self._desk.manners.body_bytes
            report = parsed_report(decoded(await self._bodies.body(scope, receive)))
        except Problem as problem:
            status, body, headers = _problem(problem, self._desk.serving)
        else:
            digest = self._desk.rewarded(report, pin_of(scope["headers"]).decode("latin-1"))
            content = orjson.dumps({"counted": digest is not None, "digest": digest})
            status, body, headers = 200, content, [JSON, *_policy_headers(self._desk.serving)]
        await _send(send, status, body, headers)

    async def _tell(self, path: str, scope: Scope, send: Send) -> None:
        """Answers what asks for no action."""
        serving = self._desk.serving
        try:
            status, body, headers = await self._told(path, scope, serving)
        except Problem as problem:
            status, body, headers = inference_protocol.error(problem, serving) if path.startswith("/v2") else _problem(problem, serving)
        await _send(send, status, body, headers, has_body=scope["method"] != "HEAD")

    async def _told(self, path: str, scope: Scope, serving: Serving | None) -> Answer:
        """What the app says of itself and of its policy.

        Raises:
            Problem: 404, 405; 503, there is no policy to tell of.
        """
        if path in ("", "/"):
            raise _not_allowed("POST", "GET")
        if inference_protocol.is_inference(path):
            raise _not_allowed("POST")
        if path not in description.PATHS and not inference_protocol.is_path(path):
            raise Problem(404, f"the policy answers at its route; beside it there are {', '.join(description.PATHS)} and /v2")
        if path == REWARDS:
            raise _not_allowed("POST")
        if scope["method"] not in ("GET", "HEAD"):
            raise _not_allowed("GET", "HEAD")
        named = _policy_headers(serving)
        if path == "/healthz":
            return 200, b'{"status":"ok"}', [JSON, *named]
        if path == "/v1/status":
            return 200, orjson.dumps(await self._status()), [JSON, *named]
        if inference_protocol.is_path(path):
            model = None if serving is None else inference_protocol.Model(self._name, serving)
            return 200, inference_protocol.told(path, model), [JSON, *named]
        if serving is None:
            raise no_policy()
        manners = self._desk.manners
        described = description.Description(self._name, manners.route, serving, is_strict=manners.rejects_out_of_bounds)
        if path == "/docs":
            return 200, described.page(), [HTML, *named]
        content = described.spec() if path == "/v1/spec" else described.openapi()
        return 200, orjson.dumps(content), [JSON, *named]


def _policy_headers(serving: Serving | None) -> Headers:
    return [] if serving is None else serving.headers


def _problem(problem: Problem, serving: Serving | None) -> Answer:
    return problem.status, problem.body(), [PROBLEM_JSON, *_policy_headers(serving), *problem.headers]


def _access(scope: Scope, status: int, headers: Headers) -> dict[str, Any]:
    """What the access log says of a request and of the headers of its answer."""
    request_id = next((value for name, value in scope["headers"] if name == b"x-request-id"), b"")
    digest = dict(headers).get(b"x-policy-digest", b"")
    return {"method": scope["method"], "status": status, "request_id": request_id.decode(errors="replace"), "digest": digest.decode()}


def _not_allowed(*allowed: str) -> Problem:
    listed = ", ".join(allowed)
    return Problem(405, f"allowed are {listed}", headers=[(b"allow", listed.encode())])


def _path_below_route(scope: Scope) -> str:
    path: str = scope["path"]
    return path.removeprefix(scope.get("root_path", "").rstrip("/"))


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
