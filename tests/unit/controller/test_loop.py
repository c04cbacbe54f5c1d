"""The queue (one at a time per key) and one reconcile over a fake backend."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

import pytest
from fakes.world import SETTINGS, World

from controller import loop, names, status
from controller.loop import ActionRefused, KeyedQueue, NotObserved, reconcile_once
from controller.model import Action, Event, Observed, Owner, Status

DEADLINE_S = 10.0
A, B = ("default", "a"), ("default", "b")


async def until(is_true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not is_true():
        assert time.monotonic() < deadline, "waited in vain"
        await asyncio.sleep(0.002)


def with_queue(work: Callable[[loop.Key], float | None], play: Callable[[KeyedQueue], Coroutine[Any, Any, None]]) -> None:
    """Runs a queue while something is played with it."""

    async def both() -> None:
        queue = KeyedQueue(work)
        running = asyncio.create_task(queue.run())
        try:
            await asyncio.wait_for(play(queue), DEADLINE_S)
        finally:
            running.cancel()
            await asyncio.wait_for(asyncio.gather(running, return_exceptions=True), DEADLINE_S)

    asyncio.run(both())


@dataclass
class Work:
    """Notes what is worked on, and holds it until it is let go."""

    gate: threading.Event = field(default_factory=threading.Event)
    began: list[loop.Key] = field(default_factory=list)
    ended: list[loop.Key] = field(default_factory=list)
    most_at_once: int = 0
    again_after_s: float | None = None

    def __call__(self, key: loop.Key) -> float | None:
        self.began.append(key)
        self.most_at_once = max(self.most_at_once, len(self.began) - len(self.ended))
        assert self.gate.wait(DEADLINE_S)
        self.ended.append(key)
        return self.again_after_s


def test_a_key_that_is_due_is_worked_on_once_however_often_it_was_added():
    work = Work()
    work.gate.set()

    async def play(queue: KeyedQueue) -> None:
        for _ in range(5):
            queue.add(A, 0.05)
        await until(lambda: bool(work.ended))
        await asyncio.sleep(0.1)
        assert work.began == [A]

    with_queue(work, play)


def test_a_key_is_never_worked_on_twice_at_a_time_and_not_forgotten_meanwhile():
    work = Work()

    async def play(queue: KeyedQueue) -> None:
        queue.add(A, 0)
        await until(lambda: work.began == [A])
        queue.add(A, 0)
        queue.add(B, 0)
        await until(lambda: work.began == [A, B])
        assert work.ended == []
        work.gate.set()
        await until(lambda: sorted(work.ended) == [A, A, B])

    with_queue(work, play)


def test_only_so_many_keys_are_worked_on_at_a_time():
    work = Work()
    keys = [("default", str(index)) for index in range(loop.AT_ONCE + 3)]

    async def play(queue: KeyedQueue) -> None:
        for key in keys:
            queue.add(key, 0)
        await until(lambda: len(work.began) == loop.AT_ONCE)
        await asyncio.sleep(0.05)
        assert len(work.began) == loop.AT_ONCE
        work.gate.set()
        await until(lambda: len(work.ended) == len(keys))

    with_queue(work, play)
    assert work.most_at_once == loop.AT_ONCE


@pytest.mark.parametrize("times", [(60.0, 0.0), (0.0, 60.0)], ids=["the later one first", "the earlier one first"])
def test_of_two_times_the_earlier_one_wins(times):
    work = Work()
    work.gate.set()

    async def play(queue: KeyedQueue) -> None:
        for after_s in times:
            queue.add(A, after_s)
        await until(lambda: work.ended == [A])

    with_queue(work, play)


def test_a_key_comes_again_after_the_time_that_its_work_asked_for():
    work = Work(again_after_s=0.01)
    work.gate.set()

    async def play(queue: KeyedQueue) -> None:
        queue.add(A, 0)
        await until(lambda: len(work.ended) >= 3)

    with_queue(work, play)


def test_a_key_whose_work_asks_for_nothing_rests():
    work = Work(again_after_s=None)
    work.gate.set()

    async def play(queue: KeyedQueue) -> None:
        queue.add(A, 0)
        await until(lambda: work.ended == [A])
        await asyncio.sleep(0.05)
        assert work.began == [A]
        assert queue._due == {}

    with_queue(work, play)


def test_work_that_fails_is_tried_again_later_and_later_and_a_success_forgets_it(monkeypatch, caplog):
    asked: list[float] = []
    fails = iter([True, True, True, True, False, True])
    add = KeyedQueue.add

    def noted(queue: KeyedQueue, key: loop.Key, after_s: float = loop.SETTLE_S) -> None:
        asked.append(after_s)
        add(queue, key, 0.0)

    def work(key: loop.Key) -> float | None:
        fails_now = next(fails, None)
        if fails_now is None:
            return None
        if fails_now:
            raise ActionRefused("no")
        return 7.0

    async def play(queue: KeyedQueue) -> None:
        queue.add(A, 0)
        await until(lambda: len(asked) == 7)

    monkeypatch.setattr(KeyedQueue, "add", noted)
    monkeypatch.setattr(loop, "LAST_RETRY_S", 5.0)
    with caplog.at_level(logging.ERROR):
        with_queue(work, play)
    assert asked == [0, 1.0, 2.0, 4.0, 5.0, 7.0, 1.0]
    assert "default/a: trying again in 1 s" in caplog.text


def test_a_failure_of_one_key_does_not_hold_another():
    def work(key: loop.Key) -> float | None:
        if key == A:
            raise RuntimeError("no")
        done.append(key)
        return None

    done: list[loop.Key] = []

    async def play(queue: KeyedQueue) -> None:
        queue.add(A, 0)
        queue.add(B, 0)
        await until(lambda: done == [B])

    with_queue(work, play)


def test_a_cancelled_queue_finishes_what_runs_and_begins_nothing_new():
    work = Work()

    async def play() -> None:
        queue = KeyedQueue(work)
        running = asyncio.create_task(queue.run())
        queue.add(A, 0)
        await until(lambda: work.began == [A])
        queue.add(B, 30.0)
        running.cancel()
        await asyncio.sleep(0.02)
        assert not running.done()
        work.gate.set()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(running, DEADLINE_S)
        assert (work.began, work.ended) == ([A], [A])

    asyncio.run(play())


@pytest.mark.parametrize("turns", range(5))
def test_a_queue_that_is_cancelled_in_the_moment_of_a_wake_ends_all_the_same(turns):
    async def play() -> None:
        queue = KeyedQueue(lambda key: None)
        queue.add(A, 60.0)
        running = asyncio.create_task(queue.run())
        await asyncio.sleep(0.01)
        queue.add(B, 60.0)
        for _ in range(turns):
            await asyncio.sleep(0)
        running.cancel()
        await asyncio.wait([running], timeout=DEADLINE_S)
        assert running.cancelled()

    asyncio.run(play())


def test_a_key_that_has_failed_for_weeks_is_worked_on_all_the_same(monkeypatch):
    monkeypatch.setattr(loop, "LAST_RETRY_S", 0.001)
    tries = 0

    def work(key: loop.Key) -> float | None:
        nonlocal tries
        tries += 1
        raise RuntimeError

    async def play(queue: KeyedQueue) -> None:
        queue._failures[A] = 2000
        queue.add(A, 0)
        await until(lambda: tries >= 3)

    with_queue(work, play)


def test_a_refusal_that_has_to_be_looked_after_is_looked_at_in_time(monkeypatch):
    monkeypatch.setattr(loop, "FIRST_RETRY_S", 1000.0)
    monkeypatch.setattr(loop, "LAST_RETRY_S", 1000.0)
    tries = 0

    def work(key: loop.Key) -> float | None:
        nonlocal tries
        tries += 1
        refusal = ActionRefused("an Ingress is")
        refusal.looks_in_s = 0.001
        raise refusal

    async def play(queue: KeyedQueue) -> None:
        queue.add(A, 0)
        await until(lambda: tries >= 3)

    with_queue(work, play)


@dataclass
class Backend:
    """The fake world as a backend, with orders for faults."""

    world: World
    refused: str | None = None
    is_blind: bool = False
    applied: list[Action] = field(default_factory=list)
    published: list[tuple[Status, tuple[Event, ...]]] = field(default_factory=list)

    def observe(self, key: loop.Key) -> Observed | None:
        seen = self.world.observe() if self.world else None
        if seen and self.is_blind:
            raise NotObserved(seen.owner, seen.status, seen.now, "jobs is forbidden")
        return seen

    def apply(self, owner: Owner, action: Action) -> None:
        if action.kind == self.refused:
            raise ActionRefused(f"Apply {action.kind} {action.name}: quota exceeded")
        self.applied.append(action)
        self.world.apply(action)

    def publish(self, owner: Owner, told: Status, events: Any) -> None:
        self.published.append((told, tuple(events)))
        self.world.write(told)


KEY = ("default", "cartpole")


def test_one_reconcile_acts_and_then_says_what_was_seen():
    backend = Backend(World())
    after_s = reconcile_once(backend, KEY, SETTINGS)
    assert [action.kind for action in backend.applied] == ["PersistentVolumeClaim", "Job", "RayService", "RayService", "Ingress"]
    ((told, events),) = backend.published
    assert told.phase == "Training"
    assert events
    assert after_s == 3.0


def test_a_policy_model_that_is_gone_is_looked_at_no_more():
    assert reconcile_once(Backend(None), KEY, SETTINGS) is None


def test_a_policy_model_that_is_being_deleted_is_left_alone(monkeypatch):
    from dataclasses import replace

    backend = Backend(World())
    seen = replace(backend.world.observe(), deleting=True)
    monkeypatch.setattr(backend, "observe", lambda key: seen)
    assert reconcile_once(backend, KEY, SETTINGS) is None
    assert (backend.applied, backend.published) == ([], [])


def test_an_unchanged_world_is_not_written_to():
    world = World()
    world.settle()
    backend = Backend(world)
    assert reconcile_once(backend, KEY, SETTINGS) == 30.0
    assert (backend.applied, backend.published) == ([], [])


def test_a_refused_action_is_published_and_raised_and_what_follows_is_done_all_the_same():
    backend = Backend(World(), refused="Job")
    with pytest.raises(ActionRefused, match="quota exceeded"):
        reconcile_once(backend, KEY, SETTINGS)
    assert [action.kind for action in backend.applied] == ["PersistentVolumeClaim", "RayService", "RayService", "Ingress"]
    ((told, events),) = backend.published
    degraded = told.condition(status.DEGRADED)
    assert (degraded.status, degraded.reason) == ("True", "ActionRefused")
    assert "quota exceeded" in degraded.message
    assert ("Warning", "ActionRefused") in [(event.type, event.reason) for event in events]


def test_a_refusal_that_goes_on_is_told_once():
    backend = Backend(World(), refused="Job")
    for _ in range(3):
        with pytest.raises(ActionRefused):
            reconcile_once(backend, KEY, SETTINGS)
    assert len(backend.published) == 1


def test_a_refusal_that_is_over_heals():
    backend = Backend(World(), refused="Job")
    with pytest.raises(ActionRefused):
        reconcile_once(backend, KEY, SETTINGS)
    backend.refused = None
    reconcile_once(backend, KEY, SETTINGS)
    assert backend.published[-1][0].condition(status.DEGRADED).status == "False"


def canary() -> World:
    """A world whose second policy answers 10 % of the sessions."""
    way = {"rollout__strategy": "Canary", "rollout__steps": [{"weight": 10, "seconds": 30}, {"weight": 50, "seconds": 30}]}
    world = World()
    world.edit(**way)
    world.settle()
    world.edit(training__seed=2, **way)
    world.until_step(1)
    return world


def test_a_promotion_that_the_replicas_could_not_be_told_waits_and_is_not_lost():
    world = canary()
    asked = {"id": "now", "user": "ada", "time": "2026-01-01T00:00:00Z"}
    world.annotations[names.request_annotation("promote")] = json.dumps(asked)
    backend = Backend(world, refused="RayService")
    with pytest.raises(ActionRefused):
        reconcile_once(backend, KEY, SETTINGS)
    ((told, _),) = backend.published
    assert (told.candidate.weight, told.revisions[-1].rollout, told.last_handled_requests) == (10, None, {})
    backend.refused = None
    reconcile_once(backend, KEY, SETTINGS)
    told = backend.published[-1][0]
    assert (told.revisions[-1].rollout.outcome, told.last_handled_requests) == ("Promoted", {"promote": "now"})


def test_a_candidate_is_watched_as_before_while_something_else_is_refused():
    world = canary()
    world.ingress = None
    with pytest.raises(ActionRefused) as refused:
        reconcile_once(Backend(world, refused="Ingress"), KEY, SETTINGS)
    assert refused.value.looks_in_s == 1.0


def test_what_the_plan_fails_over_leaves_no_ready_that_nobody_knows_of(monkeypatch):
    world = World()
    world.settle()
    backend = Backend(world)
    monkeypatch.setattr(loop.reconcile, "plan", lambda observed, settings: 1 / 0)
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            reconcile_once(backend, KEY, SETTINGS)
    ((told, _),) = backend.published
    assert (told.condition("Ready").status, told.condition("Ready").reason) == ("Unknown", "OperatorFailed")
    assert told.condition("Trained").status == "True"


def test_what_cannot_be_looked_at_is_not_claimed_to_be_as_it_was():
    world = World()
    world.settle()
    backend = Backend(world, is_blind=True)
    for _ in range(2):
        with pytest.raises(NotObserved, match="forbidden"):
            reconcile_once(backend, KEY, SETTINGS)
    ((told, events),) = backend.published
    ready, available = told.condition(status.READY), told.condition(status.AVAILABLE)
    assert (ready.status, available.status, told.phase, events) == ("Unknown", "Unknown", "Unknown", ())
    assert "jobs is forbidden" in ready.message
    assert told.condition(status.TRAINED).status == "True"
    assert told.serving
    assert told.revisions
    backend.is_blind = False
    reconcile_once(backend, KEY, SETTINGS)
    assert backend.published[-1][0].condition(status.READY).status == "True"
    assert backend.published[-1][1] == ()


def test_a_policy_model_that_was_never_looked_at_is_unknown():
    backend = Backend(World(), is_blind=True)
    with pytest.raises(NotObserved):
        reconcile_once(backend, KEY, SETTINGS)
    assert backend.published[-1][0].phase == "Unknown"
