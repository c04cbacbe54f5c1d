"""The load: a closed loop over kept connections in one process. Each connection asks, waits for the answer and asks again.

No HTTP library: one request is the same bytes again and again, and of an answer only its status and length are read, so that the
generator takes a small part of the cores that it shares with what it measures (`Cell.busy` says how much).
"""

import asyncio
import time
from dataclasses import dataclass, field
from typing import cast

import uvloop

RECONNECT_S = 0.02


@dataclass(frozen=True)
class Request:
    """What is sent, and where."""

    port: int
    path: str
    body: bytes

    def on_the_wire(self) -> bytes:
        """The bytes of one request."""
        head = f"POST {self.path} HTTP/1.1\r\nHost: 127.0.0.1:{self.port}\r\nContent-Type: application/json\r\n"
        return f"{head}Content-Length: {len(self.body)}\r\n\r\n".encode() + self.body


@dataclass
class Cell:
    """What one load saw.

    Attributes:
        seconds: that were counted.
        busy: share of one core that the generator itself used, from 0 to 1.
        latencies_s: of the answers with status 200.
        failures: answers of another status, and connections that ended before their answer or got none at all.
    """

    seconds: float
    busy: float = 0.0
    latencies_s: list[float] = field(default_factory=list)
    failures: int = 0

    @property
    def requests_per_s(self) -> float:
        """Answers with status 200 a second."""
        return len(self.latencies_s) / self.seconds


class _Connection(asyncio.Protocol):
    """Asks again as soon as it is answered, until `stop`."""

    def __init__(self, request: bytes, cell: Cell) -> None:
        self._request = request
        self._cell = cell
        self._transport: asyncio.Transport | None = None
        self._received = b""
        self._asked_at = 0.0
        self._is_over = False
        self.ended = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by its classes
        self._ask(self._transport)

    def data_received(self, data: bytes) -> None:
        self._received += data
        if self._transport is None or not is_whole(self._received):
            return
        if self._is_over:
            self.abort()
            return
        if self._received[9:12] == b"200":
            self._cell.latencies_s.append(time.perf_counter() - self._asked_at)
        else:
            self._cell.failures += 1
        self._ask(self._transport)

    def connection_lost(self, error: Exception | None) -> None:
        if not self._is_over:
            self._cell.failures += 1
        if not self.ended.done():
            self.ended.set_result(None)

    def stop(self) -> None:
        """Asks no more; the answer that is under way ends the connection and is not counted."""
        self._is_over = True

    def abort(self) -> None:
        """Ends the connection at once."""
        if self._transport is not None:
            self._transport.abort()

    def _ask(self, transport: asyncio.Transport) -> None:
        self._received = b""
        self._asked_at = time.perf_counter()
        transport.write(self._request)


def is_whole(received: bytes) -> bool:
    """Whether these bytes are one whole answer, by its Content-Length or its last chunk."""
    end = received.find(b"\r\n\r\n")
    if end < 0:
        return False
    head = received[:end].lower()
    _, found, rest = head.partition(b"\r\ncontent-length:")
    if found:
        return len(received) >= end + 4 + int(rest.split(b"\r\n", 1)[0])
    return b"\r\ntransfer-encoding: chunked" in head and received.endswith(b"0\r\n\r\n")


def measured_load(request: Request, connections: int, seconds: float, warmup_s: float = 0.3, drain_s: float = 5.0) -> Cell:
    """Asks over so many connections for so long, after a warm-up that is not counted.

    Args:
        drain_s: how long the answers that are then under way are waited for, uncounted.
    """
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(_measured_load(request, connections, seconds, warmup_s, drain_s))


async def _measured_load(request: Request, connections: int, seconds: float, warmup_s: float, drain_s: float) -> Cell:
    cell, message = Cell(seconds), request.on_the_wire()
    open_ones: set[_Connection] = set()
    is_over = False

    async def kept() -> None:
        """One connection, anew where it is lost."""
        while not is_over:
            try:
                _, connection = await asyncio.get_running_loop().create_connection(
                    lambda: _Connection(message, cell), "127.0.0.1", request.port
                )
            except OSError:
                cell.failures += 1
            else:
                open_ones.add(connection)
                await connection.ended
                open_ones.discard(connection)
            await asyncio.sleep(RECONNECT_S)

    tasks = [asyncio.create_task(kept()) for _ in range(connections)]
    await asyncio.sleep(warmup_s)
    cell.latencies_s.clear()
    cell.failures = 0
    began, used = time.perf_counter(), time.process_time()
    await asyncio.sleep(seconds)
    cell.seconds = time.perf_counter() - began
    cell.busy = (time.process_time() - used) / cell.seconds
    if not cell.latencies_s:
        cell.failures = max(cell.failures, connections)  # asked, and never answered
    is_over = True
    for connection in open_ones:
        connection.stop()
    # A server that still works on what it was asked would disturb the next measurement.
    _, waiting = await asyncio.wait(tasks, timeout=drain_s)
    for connection in open_ones:
        connection.abort()
    for task in waiting:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return cell
