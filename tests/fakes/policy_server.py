"""An HTTP server that answers as it is told, one reply a request, and remembers what it was asked."""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

DIGEST = "sha256:" + "a" * 64


@dataclass(frozen=True)
class Reply:
    """One answer of the server.

    Attributes:
        status: HTTP status.
        content: the body: JSON, or bytes as they are.
        headers: beside Content-Length.
        cut: whether the connection ends in the middle of the body.
        wait_s: before anything is answered.
    """

    status: int = 200
    content: Any = field(default_factory=lambda: {"action": 1})
    headers: dict[str, str] = field(default_factory=lambda: {"x-policy-digest": DIGEST, "x-policy-revision": "3"})
    cut: bool = False
    wait_s: float = 0.0


@dataclass(frozen=True)
class Asked:
    """One request that came."""

    method: str
    path: str
    headers: dict[str, str]
    body: Any


class FakePolicyServer:
    """Answers with `replies` in turn, and with the last one from then on."""

    def __init__(self, replies: list[Reply]) -> None:
        self._replies = replies
        self.asked: list[Asked] = []
        self.connections = 0
        self.ended = threading.Event()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def setup(self) -> None:
                super().setup()
                outer.connections += 1

            def do_GET(self) -> None:
                outer.answer(self)

            def do_POST(self) -> None:
                outer.answer(self)

            def log_message(self, format: str, *arguments: Any) -> None:
                """Says nothing."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}/route"

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        sent = handler.rfile.read(int(handler.headers.get("content-length", 0)))
        headers = {name.lower(): value for name, value in handler.headers.items()}
        self.asked.append(Asked(handler.command, handler.path, headers, json.loads(sent) if sent else None))
        reply = self._replies[min(len(self.asked), len(self._replies)) - 1]
        self.ended.wait(reply.wait_s)
        body = reply.content if isinstance(reply.content, bytes) else json.dumps(reply.content).encode()
        handler.send_response(reply.status)
        for name, value in {**reply.headers, "content-length": str(len(body))}.items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(body[: len(body) // 2] if reply.cut else body)
        handler.close_connection = reply.cut


@contextlib.contextmanager
def policy_server(*replies: Reply) -> Iterator[FakePolicyServer]:
    """The server for the length of the block, on a port of its own."""
    fake = FakePolicyServer(list(replies) or [Reply()])
    thread = threading.Thread(target=fake.server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield fake
    finally:
        fake.ended.set()
        fake.server.shutdown()
        fake.server.server_close()
        thread.join()
