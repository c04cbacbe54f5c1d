"""The door in front of Serve, and how it keeps order when too many come."""

import asyncio
import itertools
import json
import time
from collections import Counter
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from starlette.middleware import Middleware

from app.autoscaling import RequestsPerSecond
from app.door import Door, doorway, middlewares
from app.serving import body, overload
from app.serving.asgi import Manners, PolicyApp
from app.serving.body import BodyReader
from app.serving.meter import Meter, Publisher, samples
from app.serving.problem import Problem

SCOPE = {"type": "http", "method": "POST", "path": "/cartpole-ppo", "headers": []}


@pytest.fixture(autouse=True)
def empty_doorway(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doorway, "path", "/cartpole-ppo")
    monkeypatch.setattr(doorway, "answer", None)


def who_answers(scope: dict[str, Any], *, is_staffed: bool = True) -> tuple[str, list[dict[str, Any]]]:
    """Who answers a request at the door, and what is sent."""
    asked: list[str] = []
    sent: list[dict[str, Any]] = []

    def answering(name: str) -> Any:
        async def answer(scope: Any, receive: Any, send: Any) -> None:
            asked.append(name)
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b""})

        return answer

    async def receive() -> Any:
        return {"type": "http.request", "body": b""}

    async def send(message: Any) -> None:
        sent.append(message)

    doorway.answer = answering("policy") if is_staffed else None
    asyncio.run(Door(answering("Serve"))(scope, receive, send))
    (name,) = asked
    return name, sent


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({}, "policy"),
        ({"path": "/cartpole-ppo/"}, "Serve"),
        ({"path": "/cartpole-ppo/v1/status"}, "Serve"),
        ({"path": "/-/healthz"}, "Serve"),
        ({"method": "GET"}, "Serve"),
        ({"type": "websocket"}, "Serve"),
    ],
)
def test_the_policys_post_is_answered_at_the_door_and_all_else_is_handed_on(change: dict[str, str], name: str) -> None:
    assert who_answers({**SCOPE, **change})[0] == name


def test_a_process_without_a_replica_hands_everything_on() -> None:
    assert who_answers(dict(SCOPE), is_staffed=False)[0] == "Serve"


def test_a_request_id_is_given_back_or_made() -> None:
    def given(headers: list[tuple[bytes, bytes]]) -> bytes:
        _, (start, _) = who_answers({**SCOPE, "headers": headers})
        return dict(start["headers"])[b"x-request-id"]

    assert given([(b"x-request-id", b"mine")]) == b"mine"
    assert len(given([])) >= 16
    assert given([(b"x-request-id", b"x" * 1000)]) != b"x" * 1000


def test_what_answers_at_the_door_reads_the_request_id_that_is_given_back() -> None:
    def read_and_given(headers: list[tuple[bytes, bytes]]) -> tuple[bytes, bytes]:
        scope = {**SCOPE, "headers": headers}
        _, (start, _) = who_answers(scope)
        return next(value for name, value in scope["headers"] if name == b"x-request-id"), dict(start["headers"])[b"x-request-id"]

    for sent in ([b"mine"], [], [b"x" * 1000], [b"x" * 1000, b"mine"]):
        read, given = read_and_given([(b"x-request-id", each) for each in sent])
        assert read == given


def handed_on(change: dict[str, Any], headers: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """The headers that Serve sees of a request that is handed on."""
    seen: list[tuple[bytes, bytes]] = []

    async def serve(scope: Any, receive: Any, send: Any) -> None:
        seen.extend(scope["headers"])

    asyncio.run(Door(serve)({**SCOPE, **change, "headers": headers}, None, None))
    return seen


def test_serve_reads_no_body_of_a_request_that_is_handed_on_whatever_the_client_says_of_it() -> None:
    mine, unwatched = (b"x-session-id", b"a"), (b"x-request-disconnect-disabled", b"?1")
    assert handed_on({"method": "GET"}, [mine]) == [mine, unwatched]
    assert handed_on({"path": "/cartpole-ppo/v2"}, [(unwatched[0], b"?0"), mine, (unwatched[0], b"?0")]) == [mine, unwatched]
    assert handed_on({"type": "websocket"}, [mine]) == [mine]


@pytest.mark.parametrize("change", [{"method": "GET"}, {"type": "websocket"}])
def test_headers_that_serve_cannot_read_and_a_clients_own_bound_of_time_are_not_handed_on(change: dict[str, Any]) -> None:
    readable = [(b"x-request-id", b"mine"), (b"x-policy-pin", "\u00fc".encode())]
    unreadable = [(b"x-request-id", b"\xff"), (b"x-session-id", b"a\xfc"), (b"serve_multiplexed_model_id", b"\x80")]
    own_bound = [(b"x-request-timeout-seconds", b"0.000001")]
    assert handed_on(change, [*unreadable, *readable, *own_bound]) == handed_on(change, readable)


def test_serve_gets_a_middleware() -> None:
    assert [type(each) for each in middlewares()] == [Middleware]


class Desk:
    """A replica without a policy: what it answers tells who was admitted."""

    def __init__(self) -> None:
        self.serving = None
        self.rollout = None
        self.manners = Manners()
        self.meter = Meter()


def test_whoever_waits_too_long_in_a_turn_of_the_loop_is_told_to_come_again(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(float(second) for second in range(1000))
    monkeypatch.setattr(overload, "LONGEST_TURN_S", 5.0)
    monkeypatch.setattr(overload, "time", SimpleNamespace(thread_time=lambda: next(clock)))
    desk, answers = Desk(), []

    async def receive() -> Any:
        return {"type": "http.request", "body": b"{}"}

    async def send(message: Any) -> None:
        if message["type"] == "http.response.start":
            answers.append((message["status"], dict(message["headers"])[b"retry-after"]))

    async def crowd() -> None:
        app = PolicyApp(desk, "cartpole", lambda: asyncio.sleep(0, {}))
        await asyncio.gather(*(app.act(dict(SCOPE), receive, send) for _ in range(8)))
        await app.act(dict(SCOPE), receive, send)

    asyncio.run(crowd())
    # One second of work is done at each look at the clock: five are served in the first turn, and the next turn serves again.
    assert answers == [(503, b"5")] * 5 + [(503, b"1")] * 3 + [(503, b"5")]


def test_a_line_does_not_count_the_work_that_is_left_out() -> None:
    turnstile = overload.Turnstile()
    line = overload.Line(turnstile)

    def work() -> None:
        began = time.thread_time()
        while time.thread_time() - began < 0.3:
            pass
        turnstile.leave_out(0.3)

    async def served() -> None:
        turnstile.enter()
        await line.served(20_000, work)
        turnstile.enter()

    asyncio.run(served())
    assert line._last_work_s < 0.1
    assert line._work_s_per_byte * 20_000 < overload.LONGEST_LINE_S / 8


def reader_of(limit: int) -> BodyReader:
    turnstile = overload.Turnstile()
    return BodyReader(limit, turnstile, overload.Line(turnstile))


def read(messages: list[Any], headers: list[tuple[bytes, bytes]], limit: int = 100) -> bytes:
    """The body that comes in these messages; None waits for ever."""

    async def reading() -> bytes:
        waiting = iter(messages)

        async def receive() -> Any:
            message = next(waiting)
            return message if message else await asyncio.sleep(60)

        return await reader_of(limit).body({"headers": headers}, receive)

    return asyncio.run(reading())


async def arriving_together(reader: BodyReader, first: bytes, last: bytes, count: int, *more: bytes) -> list[bytes | int]:
    """What becomes of bodies that are all begun before one of them ends; the status of those that are refused."""
    are_all_begun = asyncio.Event()

    async def arriving() -> bytes:
        messages = iter([part(first), *map(part, more), part(last, more=False)])

        async def receive() -> Any:
            message = next(messages)
            await (asyncio.sleep(0) if message["more_body"] else are_all_begun.wait())
            return message

        return await reader.body({"headers": []}, receive)

    reading = [asyncio.create_task(arriving()) for _ in range(count)]
    await asyncio.sleep(0.01)
    are_all_begun.set()
    found = await asyncio.gather(*reading, return_exceptions=True)
    assert all(isinstance(one, bytes | Problem) for one in found)
    return [one.status if isinstance(one, Problem) else one for one in found]


def test_large_bodies_that_arrive_together_are_served_as_far_as_a_turn_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(float(second) for second in range(1000))
    monkeypatch.setattr(overload, "LONGEST_TURN_S", 5.0)
    monkeypatch.setattr(overload, "time", SimpleNamespace(thread_time=lambda: next(clock)))
    reader = reader_of(100)
    assert asyncio.run(arriving_together(reader, b"{", b"}", 8)) == [b"{}"] * 5 + [503] * 3


def test_no_more_bodies_are_begun_than_may_be_held(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(body, "UNFINISHED_BYTES", 150)
    reader = reader_of(100)
    for _ in range(2):
        assert asyncio.run(arriving_together(reader, b"x" * 60, b"", 4)) == [b"x" * 60] * 3 + [503]


def test_bodies_that_grow_once_they_are_let_in_may_hold_no_more_either(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(body, "UNFINISHED_BYTES", 150)
    reader = reader_of(100)
    for _ in range(2):
        found = asyncio.run(arriving_together(reader, b"x", b"", 4, b"x" * 59))
        assert Counter(found) == {b"x" * 60: 2, 503: 2}
    assert reader._unfinished_bytes == 0


async def served_in_line(work_s: float, count: int, monkeypatch: pytest.MonkeyPatch) -> tuple[list[int], Counter[int]]:
    """What becomes of large requests of so much work that arrive in one turn, and how many turns went by before each that was served."""
    clock = [0.0]
    monkeypatch.setattr(overload, "time", SimpleNamespace(thread_time=lambda: clock[0]))
    line, turns, served_after = overload.Line(overload.Turnstile()), [0], Counter[int]()

    def work() -> None:
        served_after[turns[0]] += 1
        clock[0] += work_s

    async def served() -> int:
        try:
            await line.served(100_000, work)
        except Problem as problem:
            return problem.status
        return 200

    asking = [asyncio.create_task(served()) for _ in range(count)]
    while not all(task.done() for task in asking):
        turns[0] += 1
        await asyncio.sleep(0)
    return [task.result() for task in asking], served_after


def test_large_requests_stand_in_a_line_of_bounded_work_and_leave_turns_to_who_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    answers, served_after = asyncio.run(served_in_line(0.006, 100, monkeypatch))
    first = [200] * 42  # 0.25 s of requests that are thought to take 6 ms each
    assert answers == first + [503] * 58
    assert set(served_after.values()) == {1}
    turns = sorted(served_after)
    assert all(later - sooner >= overload.QUIET_TURNS for sooner, later in itertools.pairwise(turns))


def test_a_line_learns_how_much_work_a_byte_makes(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(overload, "time", SimpleNamespace(thread_time=lambda: clock[0]))

    def work() -> None:
        clock[0] += 0.15

    async def fullness() -> list[bool]:
        line = overload.Line(overload.Turnstile())
        for _ in range(50):
            await line.served(100_000, work)
        found, standing = [line.is_full], []
        for _ in range(2):
            standing.append(asyncio.create_task(line.served(100_000, work)))
            await asyncio.sleep(0)
            found.append(line.is_full)
        await asyncio.gather(*standing)
        return [*found, line.is_full]

    assert asyncio.run(fullness()) == [False, False, True, False]


def test_what_is_wrong_with_a_large_request_is_told_as_with_a_small_one() -> None:
    def work() -> None:
        raise Problem(422, "must be a number", "/observations/3/1")

    async def told() -> None:
        await overload.Line(overload.Turnstile()).served(100_000, work)

    with pytest.raises(Problem) as caught:
        asyncio.run(told())
    assert caught.value.pointer == "/observations/3/1"


def test_while_the_line_is_full_a_large_body_is_refused_unread_and_a_small_one_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(overload, "LONGEST_LINE_S", 0.0)
    with pytest.raises(Problem) as caught:
        read([], [(b"content-length", b"20000")], limit=100_000)
    assert (caught.value.status, caught.value.headers) == (503, [(b"retry-after", b"1")])
    assert read([part(b"{}", more=False)], [(b"content-length", b"2")]) == b"{}"


def part(content: bytes, more: bool = True) -> dict[str, Any]:
    return {"type": "http.request", "body": content, "more_body": more}


def test_a_body_in_parts_is_put_together() -> None:
    assert read([part(b"ab"), part(b"cd"), part(b"", more=False)], []) == b"abcd"


@pytest.mark.parametrize(
    ("messages", "headers", "status"),
    [
        ([part(b"x" * 60), part(b"x" * 60), part(b"x" * 60)], [], 413),
        ([], [(b"content-length", b"101")], 413),
        ([], [(b"content-length", b"9" * 30)], 413),
        ([], [(b"content-length", b"-1")], 413),
        ([part(b"x"), None], [], 408),
        ([None], [], 408),
        ([{"type": "http.disconnect"}], [], 499),
        ([part(b'{"observation": [1'), {"type": "http.disconnect"}], [], 499),
    ],
)
def test_a_body_too_large_or_too_slow_or_never_whole_is_given_up(
    messages: list[Any], headers: list[tuple[bytes, bytes]], status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(body, "BODY_S", 0.05)
    monkeypatch.setattr(body, "SWEEP_S", 0.02)
    with pytest.raises(Problem) as caught:
        read(messages, headers)
    assert caught.value.status == status
    assert ((b"connection", b"close") in caught.value.headers) == (status != 499)


def test_a_request_that_is_cancelled_by_others_stays_cancelled() -> None:
    async def cancelled() -> None:
        async def receive() -> Any:
            await asyncio.sleep(60)

        task = asyncio.create_task(reader_of(100).body({"headers": []}, receive))
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancelled())


@pytest.mark.parametrize(
    ("metrics", "replicas"),
    [
        ({"requests_per_second": {"a": 100.0, "b": 140.0}}, 3),
        ({"requests_per_second": {"a": 100.0}}, 1),
        ({"requests_per_second": {"a": 0.0, "b": 0.0}}, 1),
        ({}, 2),
        (None, 2),
    ],
)
def test_there_are_as_many_replicas_as_the_requests_need(metrics: Any, replicas: int) -> None:
    class Context:
        aggregated_metrics = metrics
        target_num_replicas = 2

    assert RequestsPerSecond(100)(Context())[0] == replicas


def figures(made: Callable[[Any], None]) -> dict[tuple[str, str], float]:
    meter = Meter()
    made(meter)
    return {(name, json.dumps(labels)): value for name, labels, value in samples(meter, "sha256:1")}


def test_the_meter_counts_as_prometheus_does() -> None:
    def work(meter: Any) -> None:
        meter.requests[200] += 2
        meter.requests[422] += 1
        for seconds in (0.00004, 0.002, 9.0):
            meter.seconds.add(seconds)
        meter.acted(np.array([1]), True, 0.00001)
        meter.acted(np.array([0, 1, 1]), True, 0.00001)
        meter.acted(np.zeros((2, 3)), False, 0.00001)

    found = figures(work)
    assert found["policymodel_requests_total", '{"code": "200"}'] == 2
    assert found["policymodel_request_seconds_bucket", '{"le": "5e-05"}'] == 1
    assert found["policymodel_request_seconds_bucket", '{"le": "0.0025"}'] == 2
    assert found["policymodel_request_seconds_bucket", '{"le": "+Inf"}'] == found["policymodel_request_seconds_count", "{}"] == 3
    assert found["policymodel_actions_total", '{"action": "1"}'] == 3
    assert found["policymodel_batch_observations_sum", "{}"] == 6
    assert found["policymodel_loaded", '{"digest": "sha256:1"}'] == 1


def test_a_digest_that_no_longer_answers_is_published_as_0() -> None:
    seen: dict[str, list[tuple[float, dict[str, str]]]] = {}

    class Gauge:
        def __init__(self, name: str, description: str, tag_keys: tuple[str, ...]) -> None:
            assert description
            self._name = name

        def set(self, value: float, tags: dict[str, str]) -> None:
            seen.setdefault(self._name, []).append((value, dict(tags)))

    publisher, meter = Publisher(Gauge), Meter()
    for digest in ("sha256:1", "sha256:1", "sha256:2"):
        publisher.publish(meter, digest)
    assert seen["policymodel_loaded"][-2:] == [(1, {"digest": "sha256:2"}), (0, {"digest": "sha256:1"})]
