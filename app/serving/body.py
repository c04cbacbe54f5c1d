"""Reads the bodies of requests: of bounded size, within bounded time, whatever their Content-Type says."""

import asyncio
import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

import orjson

from app.serving.overload import LARGE_BYTES, Line, Turnstile
from app.serving.problem import Problem, overloaded

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

# A body that comes slowly holds one of the replica's places; a thousand of them would be an outage.
BODY_S = 10.0
SWEEP_S = 1.0
# What all bodies that are still on their way may hold together, or one of the largest that is allowed; as many as one likes could be begun.
UNFINISHED_BYTES = 64 * 1024 * 1024


class BodyReader:
    """Reads bodies; those who take longer than `BODY_S` are cut off.

    One that comes in several parts is refused where more of them are on their way, or end in one turn, than can be served.

    One sweep for all in place of a timeout for each: a timeout costs as much as the inference of a small policy.
    """

    def __init__(self, limit_bytes: int, turnstile: Turnstile, line: Line) -> None:
        self.limit_bytes = limit_bytes
        self._turnstile = turnstile
        self._line = line
        self._reading: dict[asyncio.Task[Any], float] = {}
        self._unfinished_bytes = 0
        self._cut_off: set[asyncio.Task[Any]] = set()
        self._is_sweeping = False

    async def body(self, scope: Scope, receive: Receive) -> bytes:
        """The request's body.

        Raises:
            Problem: 408, the connection is then given up; 413, before more than the limit is read; 499, the client is gone; 503, too many
                bodies are on their way.
        """
        for name, value in scope["headers"]:
            if name == b"content-length":
                if not value.isdigit() or len(value) > 15 or int(value) > self.limit_bytes:
                    raise self._too_large()
                if self._line.is_full and int(value) >= LARGE_BYTES:
                    raise overloaded()
        task = asyncio.current_task()
        assert task is not None
        loop = asyncio.get_running_loop()
        self._reading[task] = loop.time()
        if not self._is_sweeping:
            self._is_sweeping = True
            loop.call_later(SWEEP_S, self._sweep, loop)
        try:
            return await self._received(receive)
        except asyncio.CancelledError:
            if task not in self._cut_off:
                raise
            task.uncancel()
            raise Problem(408, f"the body has to arrive within {BODY_S:g} s", headers=[(b"connection", b"close")]) from None
        finally:
            del self._reading[task]
            self._cut_off.discard(task)

    async def _received(self, receive: Receive) -> bytes:
        message = await _part(receive)
        body: bytes = message.get("body", b"")
        if message.get("more_body"):
            body = await self._joined(body, receive)
        if len(body) > self.limit_bytes:
            raise self._too_large()
        return body

    async def _joined(self, first: bytes, receive: Receive) -> bytes:
        """A body that comes in several parts."""
        if self._unfinished_bytes > UNFINISHED_BYTES:
            raise overloaded()
        parts, size, is_unfinished = [first], len(first), True
        self._unfinished_bytes += size
        try:
            while is_unfinished and size <= self.limit_bytes:
                message = await _part(receive)
                part, is_unfinished = message.get("body", b""), message.get("more_body", False)
                parts.append(part)
                size += len(part)
                self._unfinished_bytes += len(part)
                if is_unfinished and self._unfinished_bytes > max(UNFINISHED_BYTES, self.limit_bytes):
                    raise overloaded()
        finally:
            self._unfinished_bytes -= size
        # It was begun in another turn, and so may have been many that end in this one.
        self._turnstile.enter()
        return b"".join(parts)

    def _sweep(self, loop: asyncio.AbstractEventLoop) -> None:
        overdue = loop.time() - BODY_S
        for task, since in self._reading.items():
            if since < overdue and task not in self._cut_off:
                self._cut_off.add(task)
                task.cancel()
        self._is_sweeping = bool(self._reading)
        if self._is_sweeping:
            loop.call_later(SWEEP_S, self._sweep, loop)

    def _too_large(self) -> Problem:
        # What is still on its way is not read, so the connection cannot be used again.
        advice = f"a body may have {self.limit_bytes} bytes; send the observations in several requests"
        return Problem(413, advice, headers=[(b"connection", b"close")])


async def _part(receive: Receive) -> Message:
    message = await receive()
    if message["type"] == "http.disconnect":
        raise Problem(499, "the client hung up before its body was whole")
    return message


def decoded(body: bytes) -> Any:
    """The JSON value of a body.

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
