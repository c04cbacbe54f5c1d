"""Asking the replicas, over HTTP, a server of three lines."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from controller.model import ReplicaRow, Replicas, Unknown
from controller.replicas import replicas_at

REPORT = b'{"runningReplicas": 1, "replicas": [{"replica": "a", "serving": {"digest": "sha256:ab", "revision": 1}, "error": null}]}'


@pytest.fixture
def answering() -> Iterator[Callable[[int, bytes], str]]:
    """Starts a server that gives one answer to everything; gives its URL."""
    servers: list[ThreadingHTTPServer] = []

    def start(code: int, body: bytes) -> str:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(code)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}/cartpole-ppo/v1/status"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def asked(url: str, has_endpoint: bool, timeout_s: float = 5.0) -> Replicas | Unknown | None:
    return replicas_at(url, has_endpoint, (timeout_s, timeout_s))


def test_what_the_replicas_say_is_told(answering):
    assert asked(answering(200, REPORT), True) == Replicas(1, (ReplicaRow("a", "sha256:ab", can_try=False),))


BAD = {
    "an error page": (500, b"oops"),
    "overloaded": (503, b"{}"),
    "not JSON": (200, b"<html>"),
    "JSON of another kind": (200, b"[]"),
    "a report without a count": (200, b'{"runningReplicas": null, "replicas": []}'),
    "a count that is none": (200, b'{"runningReplicas": Infinity, "replicas": []}'),
    "a digest that is no text": (200, b'{"runningReplicas": 1, "replicas": [{"replica": "a", "serving": {"digest": ["b"]}}]}'),
    "brackets without end": (200, b"[" * 100_000),
    "a report without end": (200, b" " * (2 * 1024 * 1024) + REPORT),
    "rows of another kind": (200, b'{"runningReplicas": 1, "replicas": [{"replica": "a", "serving": "x"}]}'),
}


@pytest.mark.parametrize(("code", "body"), BAD.values(), ids=BAD)
def test_what_is_no_answer_could_not_be_found_out_where_somebody_ought_to_answer(answering, code, body):
    url = answering(code, body)
    found = asked(url, True)
    assert isinstance(found, Unknown)
    assert found.why.startswith(f"{url}: ")
    assert asked(url, False) is None


def test_a_report_without_a_count_is_told_in_words(answering):
    url = answering(*BAD["a report without a count"])
    assert asked(url, True) == Unknown(f"{url}: Serve did not tell the asked replica in time how many replicas run")


@pytest.mark.parametrize("has_endpoint", [True, False])
def test_a_route_that_is_not_there_means_that_nothing_serves_there(answering, has_endpoint):
    assert asked(answering(404, b""), has_endpoint) is None


def test_nobody_at_the_door_is_unknown_or_nothing(unused_port):
    url = f"http://127.0.0.1:{unused_port}/v1/status"
    assert asked(url, True) == Unknown(f"{url}: ConnectionError")
    assert asked(url, False) is None


@pytest.fixture
def unused_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_a_redirection_is_not_followed(answering):
    elsewhere = answering(200, REPORT)

    class Redirection(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(302)
            self.send_header("Location", elsewhere)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Redirection) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        assert isinstance(asked(f"http://127.0.0.1:{server.server_port}/", True), Unknown)
        server.shutdown()


def test_one_who_answers_a_byte_now_and_then_is_not_waited_for_for_ever(monkeypatch):
    monkeypatch.setattr("controller.replicas.REPORT_S", 0.2)

    class Drip(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.end_headers()
            with contextlib.suppress(OSError):
                for _ in range(1000):
                    self.wfile.write(b" ")
                    time.sleep(0.02)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Drip) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        began = time.monotonic()
        assert isinstance(asked(f"http://127.0.0.1:{server.server_port}/", True), Unknown)
        assert time.monotonic() - began < 5
        server.shutdown()


def test_one_who_never_answers_is_not_waited_for_for_ever():
    import socket

    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        assert asked(f"http://127.0.0.1:{silent.getsockname()[1]}/", True, timeout_s=0.1).why.endswith(": ReadTimeout")
