"""The door of a replica: a middleware of the HTTP server that each replica runs in HAProxy mode, in front of Serve's own path.

A policy's POST is answered here, by the app that the replica in this process has put behind the door; all else is handed on to Serve.
Serve's path (two tasks, a request context, its metrics) takes longer than the policy does. What it gives is given here or by the app:
back-pressure, request id, a time limit, metrics.

Ray Serve calls `middlewares` by `RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH`, in its proxies too, where nobody stands behind the door.
"""

import itertools
import secrets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

from starlette.middleware import Middleware

from app.serving.body import Message, Receive, Scope, Send

IMPORT_PATH = "app.door:middlewares"
Answer = Callable[[Scope, Receive, Send], Awaitable[None]]

LONGEST_REQUEST_ID = 128
# Tells Serve not to watch for a client that hangs up, by which it would read the whole body, however large, before it calls the app.
UNWATCHED = (b"x-request-disconnect-disabled", b"?1")
# What a client would tell Serve by headers of its own: the bounds of time are the app's.
NOT_HANDED_ON = (UNWATCHED[0], b"x-request-timeout-seconds")


@dataclass
class Doorway:
    """Who answers behind the door of this process, and for which path; nobody as long as the path is empty."""

    path: str = ""
    answer: Answer | None = None


# A process hosts one replica at most; the HTTP server that Serve starts in it shares nothing else with the replica.
doorway = Doorway()


@dataclass(frozen=True)
class Door:
    """The middleware.

    Attributes:
        app: what stands behind it: Serve's own path.
    """

    app: Answer
    _ids: "itertools.count[int]" = field(default_factory=itertools.count)
    _process: str = field(default_factory=lambda: secrets.token_hex(8))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One ASGI connection."""
        answer = doorway.answer
        if answer is None or scope["type"] != "http" or scope["path"] != doorway.path or scope["method"] != "POST":
            await self.app(_as_serve_is_to_take_it(scope), receive, send)
            return
        request_id = self._request_id(scope)

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"].append((b"x-request-id", request_id))
            await send(message)

        await answer(scope, receive, send_with_id)

    def _request_id(self, scope: Scope) -> bytes:
        """The id that the request came with, or a new one, which is the first in its headers then."""
        for name, value in scope["headers"]:
            if name == b"x-request-id":
                if 0 < len(value) <= LONGEST_REQUEST_ID:
                    return bytes(value)
                break
        made = f"{self._process}-{next(self._ids):x}".encode()
        scope["headers"] = [(b"x-request-id", made), *scope["headers"]]
        return made


def _as_serve_is_to_take_it(scope: Scope) -> Scope:
    """A connection that is handed on: the app reads its body, in bounded time and size, whatever the client says of it.

    Serve reads headers as UTF-8, and raises where one is not.
    """
    if scope["type"] not in ("http", "websocket"):
        return scope
    headers = [header for header in scope["headers"] if header[0] not in NOT_HANDED_ON and _is_utf8(header[1])]
    return {**scope, "headers": [*headers, UNWATCHED] if scope["type"] == "http" else headers}


def _is_utf8(value: bytes) -> bool:
    try:
        value.decode()
    except UnicodeDecodeError:
        return False
    return True


def middlewares() -> list[Any]:
    """What Ray Serve puts around its HTTP servers."""
    return [Middleware(Door)]
