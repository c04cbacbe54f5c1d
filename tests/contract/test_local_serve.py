"""`python -m app.serve` as it runs: Ray Serve, HAProxy, and the door in the replica, over HTTP."""

from __future__ import annotations

import asyncio
import json
import re
import resource
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
import yaml
from fakes.policies import BOX, always, linear_model, published

from app.bundle import published_bundle
from app.client import PolicyClient
from app.storage import file_uri, open_storage

ROOT = Path(__file__).parents[2]
BODY = {"observation": [0.1, 0.2, 0.3, 0.4]}
FROM_THE_DOOR = re.compile(r"[0-9a-f]{16}-[0-9a-f]+")


@dataclass
class Server:
    """A server of its own.

    Attributes:
        config: the file that it follows.
        policy: what `user_config.serving` may name.
        other: another policy of the same spaces.
        first: its answer before it had a policy; one that has been given a policy keeps it.
    """

    port: int
    config: Path
    policy: dict[str, object]
    other: dict[str, object]
    first: requests.Response | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/cartpole-ppo"

    def follow(self, **user_config: object) -> None:
        deployment = {"name": "ServePPOModel", "num_replicas": 1, "user_config": {"route": "/cartpole-ppo", **user_config}}
        application = {"name": "cartpole", "import_path": "app.serve:build", "route_prefix": "/cartpole-ppo", "deployments": [deployment]}
        logging = {"encoding": "JSON", "enable_access_log": False}
        text = yaml.safe_dump({"proxy_location": "EveryNode", "logging_config": logging, "applications": [application]})
        aside = self.config.with_suffix(".new")
        aside.write_text(text)
        aside.replace(self.config)

    def wait(self, status: int, at_the_door: bool = False) -> requests.Response:
        """HAProxy hands a request to Serve's own proxy, not to the door, as long as it has not seen the replica's port healthy."""
        deadline = time.monotonic() + 60
        while True:
            answer = requests.post(self.url, json=BODY, timeout=10)
            if answer.status_code == status and (not at_the_door or FROM_THE_DOOR.fullmatch(answer.headers["x-request-id"])):
                return answer
            assert time.monotonic() < deadline, (answer.status_code, answer.headers, answer.text)
            time.sleep(0.2)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    directory = tmp_path_factory.mktemp("serve")
    storage = open_storage(file_uri(directory / "storage"))
    weights = np.random.default_rng(0).normal(size=(4, 2)).astype(np.float32)
    seen = np.array([BODY["observation"]], np.float32)
    inputs = seen @ weights
    golden = {"observations": seen.tolist(), "actions": inputs.argmax(axis=1).tolist(), "actionDistInputs": inputs.tolist()}
    actions = {"type": "Discrete", "n": 2, "start": 0}
    facts = {"environment": {"id": "Test-v0", "config": {}}, "observationSpace": BOX, "actionSpace": actions, "golden": golden}
    digest = published_bundle(storage, facts, linear_model(weights))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    other = published(storage, always(0))
    named = [{"uri": storage.bundle_uri(each), "digest": each, "revision": number} for number, each in enumerate((digest, other), 1)]
    made = Server(port, directory / "serve.yaml", *named)
    made.follow()
    command = [sys.executable, "-m", "app.serve", "--config", str(made.config), "--port", str(port)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=ROOT)
    try:
        assert "serving" in json.loads(process.stdout.readline())
        made.first = made.wait(503)
        yield made
    finally:
        process.stdin.close()
        assert process.wait(60) == 0
        process.stdout.close()


def test_without_a_policy_our_503_passes_haproxy_as_it_is(server: Server) -> None:
    assert server.first is not None
    assert server.first.headers["content-type"] == "application/problem+json"
    assert server.first.headers["retry-after"] == "5"


def test_the_policys_post_is_answered_at_the_door_and_the_rest_by_serve(server: Server) -> None:
    server.follow(serving=server.policy)
    at_the_door = server.wait(200, at_the_door=True)
    by_serve = requests.get(server.url, json=BODY, timeout=10)
    assert by_serve.json() == at_the_door.json()
    assert not FROM_THE_DOOR.fullmatch(by_serve.headers["x-request-id"])
    row = requests.get(f"{server.url}/v1/status", timeout=10).json()["replicas"][0]
    assert row["requests"] >= 2
    assert requests.get(f"{server.url}/v2/models/cartpole/ready", timeout=10).json() == {"name": "cartpole", "ready": True}


def test_head_and_body_of_an_answer_come_in_one_packet(server: Server) -> None:
    """Two would cost HAProxy a quarter more time for a request; uvloop 0.23 sends two (pyproject.toml)."""
    server.follow(serving=server.policy)
    server.wait(200, at_the_door=True)
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
        for _ in range(100):
            connection.sendall(raw_request(BODY))
            head, _, body = connection.recv(4096).partition(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 200 ")
            assert body, "the head came alone"
            assert "action" in json.loads(body)


def test_a_policy_is_replaced_without_a_failed_request(server: Server) -> None:
    server.follow(serving=server.policy)
    server.wait(200)
    for revision in (2, 3, 2, 1):
        server.follow(serving={**server.policy, "revision": revision})
        deadline = time.monotonic() + 30
        while True:
            answer = requests.post(server.url, json=BODY, timeout=10)
            assert answer.status_code == 200
            if answer.headers["x-policy-revision"] == str(revision):
                break
            assert time.monotonic() < deadline


def test_a_candidate_is_tried_and_promoted_and_every_episode_keeps_its_policy(server: Server) -> None:
    def row(is_so: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        deadline = time.monotonic() + 30
        while True:
            status = requests.get(f"{server.url}/v1/status", timeout=10).json()
            if is_so(status["replicas"][0]):
                return status
            assert time.monotonic() < deadline, status
            time.sleep(0.2)

    old, new = (str(each["digest"]) for each in (server.policy, server.other))
    server.follow(serving=server.policy)
    server.wait(200)
    seen: dict[str, set[str]] = {}
    with PolicyClient(server.url) as client:
        episodes = [client.episode(f"e{i}") for i in range(20)]

        def step() -> None:
            for i, episode in enumerate(episodes):
                seen.setdefault(f"e{i}", set()).add(episode.act(BODY["observation"]).digest)

        server.follow(serving=server.policy, candidate={**server.other, "mode": "Shadow"})
        row(lambda each: each["candidate"] is not None and each["candidate"]["loaded"])
        assert {client.act(BODY["observation"]).digest for _ in range(20)} == {old}
        compared = row(lambda each: each["trial"]["shadow"]["compared"] >= 20)["replicas"][0]
        assert compared["trial"]["candidate"]["actions"] == {"0": 20}
        for weight in (50, 90):
            server.follow(serving=server.policy, candidate={**server.other, "mode": "Canary", "weight": weight})
            row(lambda each, weight=weight: each["candidate"]["weight"] == weight)
            step()
        server.follow(serving=server.other)
        row(lambda each: each["serving"]["digest"] == new and each["candidate"] is None)
        step()
        assert all(episode.report_return(10.0) for episode in episodes)
    assert {len(digests) for digests in seen.values()} == {1}
    assert set.union(*seen.values()) == {old, new}
    returns = row(lambda each: True)["returns"]
    assert {digest: each["mean"] for digest, each in returns.items()} == {old: 10.0, new: 10.0}
    assert sum(each["episodes"] for each in returns.values()) == 20
    server.follow(serving=server.policy)
    row(lambda each: each["serving"]["digest"] == old)


def test_the_limit_of_a_body_is_a_setting(server: Server) -> None:
    server.follow(serving=server.policy, maxBodyBytes=2000)
    deadline = time.monotonic() + 30
    while requests.post(server.url, data=b" " * 3000, timeout=10).status_code != 413:
        assert time.monotonic() < deadline
    server.follow(serving=server.policy)
    while requests.post(server.url, data=b" " * 3000, timeout=10).status_code != 400:
        assert time.monotonic() < deadline


@pytest.mark.parametrize(
    "sent",
    [
        b"POST /cartpole-ppo HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{",
        b"POST /cartpole-ppo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1\r\n{\r\n",
    ],
    ids=["content-length", "chunked"],
)
def test_a_slow_sender_is_cut_off(server: Server, sent: bytes) -> None:
    server.follow(serving=server.policy)
    server.wait(200)
    began = time.monotonic()
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
        connection.sendall(sent)
        answer = connection.recv(4096)
        assert answer.startswith(b"HTTP/1.1 408 ")
        assert 5 < time.monotonic() - began < 20


def test_slow_senders_of_what_serve_is_handed_hold_up_nobody(server: Server) -> None:
    server.follow(serving=server.policy)
    server.wait(200)
    half = b"POST /cartpole-ppo/v2/models/cartpole/infer HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{"
    with ExitStack() as held:
        connections = [held.enter_context(socket.create_connection(("127.0.0.1", server.port), timeout=30)) for _ in range(150)]
        for each in connections:
            each.sendall(half)
        time.sleep(1)
        assert requests.get(f"{server.url}/v1/status", timeout=3).status_code == 200
        assert {each.recv(4096)[:13] for each in connections} == {b"HTTP/1.1 408 "}


@pytest.mark.parametrize(
    "sent",
    [
        b"nonsense\r\n\r\n",
        b"POST /cartpole-ppo HTTP/9.9\r\n\r\n",
        b"POST /cartpole-ppo HTTP/1.1\r\nHost: x\r\nContent-Length: x\r\n\r\n",
        b"POST /cartpole-ppo HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nContent-Length: 3\r\n\r\n{}",
        b"POST /cartpole-ppo HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n{}",
        b"POST /cartpole-ppo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        b"POST /cartpole-ppo HTTP/1.1\r\nHost: x\r\n" + b"X-A: " + b"a" * 100_000 + b"\r\n\r\n",
        b"POST " + b"/a" * 20_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n",
        b"POST /cartpole-ppo HTTP/1.1\r\nHost: x\r\nX-Request-Id: a\r\n b\r\nContent-Length: 2\r\n\r\n{}",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    ],
)
def test_what_is_no_http_harms_nobody(server: Server, sent: bytes) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
        answer = b""
        with suppress(OSError):  # it may be closed before all is sent
            connection.sendall(sent)
            connection.shutdown(socket.SHUT_WR)
            answer = connection.recv(4096)
        assert not answer.startswith(b"HTTP/1.1 5"), answer
    assert requests.get(f"{server.url}/healthz", timeout=10).status_code == 200


@pytest.mark.parametrize(
    "header",
    [
        b"X-Request-Id: \xff",
        b"X-Session-Id: \xff",
        b"X-Request-Timeout-Seconds: \xff",
        b"X-Request-Timeout-Seconds: 0.000001",
        b"X-Request-Timeout-Seconds: inf",
        b"X-Request-Disconnect-Disabled: \xff",
        b"serve-multiplexed-model-id: \xff",
    ],
)
@pytest.mark.parametrize("path", [b"", b"/healthz", b"/v1/status"])
def test_no_header_makes_serve_fail(server: Server, path: bytes, header: bytes) -> None:
    server.follow(serving=server.policy)
    server.wait(200)
    body = json.dumps(BODY).encode()
    head = b"GET /cartpole-ppo%b HTTP/1.1\r\nHost: x\r\nConnection: close\r\n%b\r\nContent-Length: %d\r\n\r\n" % (path, header, len(body))
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as connection:
        connection.sendall(head + body)
        assert connection.recv(4096).startswith(b"HTTP/1.1 200 ")


def test_the_access_log_has_a_line_for_a_request_within_seconds(server: Server) -> None:
    server.follow(serving=server.policy, accessLog=True)
    server.wait(200)
    deadline = time.monotonic() + 30
    while True:
        answer = requests.post(server.url, json=BODY, headers={"x-request-id": "a-line-of-the-log"}, timeout=10)
        lines = [json.loads(line) for line in replicas_log() if "a-line-of-the-log" in line]
        if lines:
            break
        assert time.monotonic() < deadline
        time.sleep(0.5)
    assert {name: lines[0][name] for name in ("message", "method", "status", "digest", "bytes")} == {
        "message": "access",
        "method": "POST",
        "status": 200,
        "digest": server.policy["digest"],
        "bytes": len(answer.content),
    }


def replicas_log() -> Iterator[str]:
    """The lines of the replicas' logs of every server on this machine."""
    for base in {tempfile.gettempdir(), "/tmp"}:
        for path in Path(base).glob("pm-*/session_latest/logs/serve/replica_*.log"):
            yield from path.read_text().splitlines()


def replicas_memory_mib() -> float:
    """What the replica of this machine's server holds; there is one, for the tests of other servers are not run meanwhile."""
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            if process.joinpath("cmdline").read_bytes().startswith(b"ray::ServeReplica:cartpole"):
                pages = int(process.joinpath("statm").read_text().split()[1])
                return pages * resource.getpagesize() / 2**20
    raise AssertionError("no replica is found")


def check_the_end_of_a_crowd(server: Server, memory: list[float]) -> None:
    """While it asked the memory was flat, and ten seconds later all is as before."""
    assert memory[-1] - memory[len(memory) // 2] < 20, "memory is flat"
    time.sleep(10)
    began = time.monotonic()
    for _ in range(100):
        assert requests.post(server.url, json=BODY, timeout=10).status_code == 200
    assert time.monotonic() - began < 5


@pytest.mark.full
def test_a_crowd_with_large_requests_is_answered_or_told_to_come_again_and_memory_is_flat(server: Server) -> None:
    server.follow(serving=server.policy)
    server.wait(200)
    # Some 10 ms of work each: 80 at once are three times a turn's quarter of a second.
    request = raw_request({"observations": [BODY["observation"]] * 4096})
    seen: Counter[int] = Counter()
    memory: list[float] = []

    async def ask_on(until: float) -> None:
        while time.monotonic() < until:
            async with connection(server.port) as (reader, writer):
                status, head = await exchanged(reader, writer, request)
            seen[status] += 1
            assert status == 200 or b"retry-after: 1" in head.lower()

    async def crowd() -> None:
        until = time.monotonic() + 60
        asking = [asyncio.create_task(ask_on(until)) for _ in range(80)]
        while time.monotonic() < until:
            await asyncio.sleep(5)
            memory.append(replicas_memory_mib())
        await asyncio.gather(*asking)

    asyncio.run(crowd())
    print(json.dumps({"answers": seen, "memoryMib": [round(mib, 1) for mib in memory]}))
    assert set(seen) <= {200, 503}
    check_the_end_of_a_crowd(server, memory)


@pytest.mark.full
def test_five_times_what_can_be_served_over_new_connections_is_answered_soon_or_told_to_come_again(server: Server) -> None:
    server.follow(serving=server.policy)
    server.wait(200)
    time.sleep(5)  # HAProxy takes the new configuration over, and closes connections that wait
    request = raw_request({"observations": [BODY["observation"]] * 4096})
    seen: dict[int, list[float]] = {200: [], 503: []}
    memory: list[float] = []

    async def ask() -> None:
        began = time.monotonic()
        async with connection(server.port) as (reader, writer):
            status, head = await exchanged(reader, writer, request)
        assert status == 200 or b"retry-after: 1" in head.lower()
        seen[status].append(time.monotonic() - began)

    async def ask_on(until: float) -> None:
        while time.monotonic() < until:
            await ask()

    async def offered(factor: float, seconds: float) -> int:
        """Asks so much more often than four clients one after another are answered, whether answers come or not; gives how often."""
        until = time.monotonic() + 3
        await asyncio.gather(*(ask_on(until) for _ in range(4)))
        rate, began = factor * len(seen[200]) / 3, time.monotonic()
        for times in seen.values():
            times.clear()
        asking: list[asyncio.Task[None]] = []
        while (passed := time.monotonic() - began) < seconds:
            asking.extend(asyncio.create_task(ask()) for _ in range(int(passed * rate) - len(asking)))
            if passed > 3 * (len(memory) + 1):
                memory.append(replicas_memory_mib())
            await asyncio.sleep(0.005)
        await asyncio.gather(*asking)
        return len(asking)

    asked = asyncio.run(offered(5, 15))
    p50_s = {status: statistics.median(times) for status, times in seen.items()}
    print(json.dumps({"answers": {k: len(v) for k, v in seen.items()}, "p50S": p50_s, "memoryMib": [round(mib, 1) for mib in memory]}))
    assert sum(map(len, seen.values())) == asked
    assert len(seen[503]) > len(seen[200]) > 0
    assert p50_s[200] < 2
    check_the_end_of_a_crowd(server, memory)


@pytest.mark.full
def test_connections_by_the_thousand_are_kept_alive_and_cost_no_memory_by_the_request(server: Server) -> None:
    server.follow(serving=server.policy)
    server.wait(200)
    time.sleep(5)  # HAProxy takes the new configuration over, and closes connections that wait
    request = raw_request(BODY)
    seen: Counter[int] = Counter()

    async def ask_on(requests_left: int) -> None:
        async with connection(server.port) as (reader, writer):
            for _ in range(requests_left):
                status, _ = await exchanged(reader, writer, request)
                seen[status] += 1

    async def many(connections: int, requests_each: int) -> None:
        await asyncio.gather(*(ask_on(requests_each) for _ in range(connections)))

    asyncio.run(many(1500, 2))
    before = replicas_memory_mib()
    asyncio.run(many(1500, 15))
    grown = replicas_memory_mib() - before
    print(json.dumps({"answers": seen, "grownMib": round(grown, 1)}))
    assert set(seen) <= {200, 503}
    assert grown < 40


def raw_request(content: object) -> bytes:
    body = json.dumps(content).encode()
    return b"POST /cartpole-ppo HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)


@asynccontextmanager
async def connection(port: int) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        yield reader, writer
    finally:
        writer.close()
        with suppress(ConnectionError):
            await writer.wait_closed()


async def exchanged(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes) -> tuple[int, bytes]:
    """The status and the head of the answer to a request."""
    writer.write(request)
    head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 60)
    length = re.search(rb"(?i)content-length: (\d+)", head)
    assert length
    await reader.readexactly(int(length[1]))
    return int(head.split(b" ", 2)[1]), head
