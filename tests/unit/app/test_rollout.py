"""Canary and shadow in one replica, over HTTP and without Ray: who answers, what is counted, and what a bad candidate may do to whom."""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import numpy as np
import pytest
from fakes.policies import BOX, always, fragile_model, impossible_model, linear_model, nan_model, published, slow_model

from app.bundle import published_bundle
from app.serving import overload, shadow
from app.serving.asgi import PolicyApp
from app.serving.meter import Publisher
from app.serving.replica import PolicyHolder
from app.serving.tally import HASH_SPACE, MOST_SESSIONS, Distinct
from app.serving.trial import trial_samples
from app.storage import Storage

CALM = [0.5, 0.0, 0.0, 0.0]
MISSING = "sha256:" + "0" * 64


class Replica:
    """A replica that is told what to hold, and asked."""

    def __init__(self, storage: Storage, client: httpx.AsyncClient, holder: PolicyHolder) -> None:
        self._storage = storage
        self._client = client
        self.holder = holder

    async def told(self, serving: str, candidate: str | None = None, mode: str = "Canary", weight: float = 50, **more: Any) -> None:
        """Gives it a `user_config` and waits until all of it was tried."""
        named = {
            digest: {"uri": self._storage.bundle_uri(digest), "digest": digest, "revision": 1} for digest in (serving, candidate) if digest
        }
        budget = {"timeBudgetMilliseconds": more.pop("budget_ms")} if "budget_ms" in more else {}
        tried = {} if candidate is None else {"candidate": {**named[candidate], "mode": mode, "weight": weight, **budget}}
        self.holder.want({"serving": named[serving], **tried, **more})
        await self.holder.first_attempt()

    async def asked(self, observation: list[float] = CALM, session: str = "", pin: str = "", path: str = "", **body: Any) -> httpx.Response:
        await asyncio.sleep(0)  # as between two requests of a real server
        if not {"observations", "inputs"} & set(body):
            body["observation"] = observation
        headers = {**({"x-session-id": session} if session else {}), **({"x-policy-pin": pin} if pin else {})}
        return await self._client.post(f"/route{path}", content=json.dumps(body), headers=headers)

    async def digest(self, **asked: Any) -> str:
        answer = await self.asked(**asked)
        assert answer.status_code == 200, answer.text
        return answer.headers["x-policy-digest"]

    @property
    def trial(self) -> dict[str, Any]:
        return self.holder.row()["trial"]

    async def shadowed(self) -> dict[str, Any]:
        """The trial's figures once the shadow has nothing left to do."""
        for _ in range(2000):
            await asyncio.sleep(0.01)
            if not self.holder.trial.shadow._is_under_way:
                return self.trial
        raise AssertionError("the shadow does not come to rest")


def with_replica(storage: Storage, play: Callable[[Replica], Awaitable[Any]]) -> Any:
    async def played() -> Any:
        holder = PolicyHolder("r1")

        async def status() -> dict[str, Any]:
            return holder.row()

        transport = httpx.ASGITransport(PolicyApp(holder, "cartpole", status), root_path="/route")
        async with httpx.AsyncClient(transport=transport, base_url="http://policy") as client:
            try:
                return await play(Replica(storage, client, holder))
            finally:
                holder.close()

    return asyncio.run(played())


@pytest.fixture
def old(storage: Storage) -> str:
    """Takes action 1."""
    return published(storage, always(1))


@pytest.fixture
def new(storage: Storage) -> str:
    """Takes action 0."""
    return published(storage, always(0))


@pytest.mark.parametrize("weight", [10, 37.5, 90])
def test_the_share_of_sessions_is_the_weight(storage: Storage, old: str, new: str, weight: float) -> None:
    async def play(replica: Replica) -> None:
        await replica.told(old, new, weight=weight)
        trial = replica.holder.trial
        count = 4000
        taken = sum(trial.takes(trial.hash_of(f"session-{i}".encode())) for i in range(count))
        by_chance = sum(trial.takes(None) for _ in range(count))
        allowed = 3 * math.sqrt(count * weight / 100 * (1 - weight / 100))
        assert abs(taken - count * weight / 100) <= allowed
        assert abs(by_chance - count * weight / 100) <= allowed * 4 / 3  # this one is drawn anew each time

    with_replica(storage, play)


def test_a_greater_weight_takes_the_sessions_of_a_smaller_one_and_more(storage: Storage, old: str, new: str) -> None:
    async def play(replica: Replica) -> None:
        taken: set[int] = set()
        for weight in (0, 1, 10, 50, 99, 100):
            await replica.told(old, new, weight=weight)
            now = {i for i in range(300) if await replica.digest(session=f"s{i}") == new}
            assert taken <= now
            taken = now
            assert weight not in (0, 100) or len(now) == 3 * weight

    with_replica(storage, play)


def test_another_candidate_takes_other_sessions(storage: Storage, old: str, new: str) -> None:
    async def play(replica: Replica) -> None:
        taken = []
        for candidate in (new, published(storage, linear_model(np.ones((4, 2))))):
            await replica.told(old, candidate, weight=50)
            trial = replica.holder.trial
            taken.append({i for i in range(1000) if trial.takes(trial.hash_of(str(i).encode()))})
        assert 150 < len(taken[0] & taken[1]) < 350

    with_replica(storage, play)


def test_a_session_keeps_its_policy_and_both_are_counted(storage: Storage, old: str, new: str) -> None:
    async def play(replica: Replica) -> None:
        await replica.told(old, new, weight=50)
        seen: dict[str, set[str]] = {}
        for _ in range(3):
            for i in range(20):
                seen.setdefault(f"s{i}", set()).add(await replica.digest(session=f"s{i}"))
        assert {len(digests) for digests in seen.values()} == {1}
        by_policy = Counter(digest for digests in seen.values() for digest in digests)
        for name, digest, action in (("serving", old, "1"), ("candidate", new, "0")):
            figures = replica.trial[name]
            requests = 3 * by_policy[digest]
            assert (figures["digest"], figures["requests"], figures["errors"], figures["sessions"]) == (
                digest,
                requests,
                0,
                by_policy[digest],
            )
            assert (figures["inferences"], figures["actions"]) == (requests, {action: requests})
            assert 0 < figures["inferenceSeconds"] < 1

    with_replica(storage, play)


def test_the_time_of_a_batch_is_not_compared_with_that_of_one_observation(storage: Storage, old: str, new: str) -> None:
    async def play(replica: Replica) -> None:
        await replica.told(old, new, weight=100)
        await replica.asked(observations=[CALM] * 64)
        await replica.asked()
        figures = replica.trial["candidate"]
        assert (figures["requests"], figures["inferences"]) == (2, 1)

    with_replica(storage, play)


def test_the_row_tells_the_candidate_and_without_one_nothing_stands_in_the_way(storage: Storage, old: str, new: str) -> None:
    async def play(replica: Replica) -> None:
        await replica.told(old)
        assert replica.holder.rollout is None
        row = replica.holder.row()
        assert (row["candidate"], row["trial"], row["serving"]["digest"]) == (None, None, old)
        assert "decision_id" not in (await replica.asked()).json()
        await replica.told(old, new, weight=10)
        expected = {"digest": new, "revision": 1, "mode": "Canary", "weight": 10, "loaded": True, "error": None, "setAside": False}
        assert replica.holder.row()["candidate"] == expected
        await replica.told(old)
        assert (replica.holder.rollout, replica.trial) == (None, None)

    with_replica(storage, play)


def test_counters_stay_through_weight_and_mode_and_begin_anew_with_another_candidate(storage: Storage, old: str, new: str) -> None:
    async def play(replica: Replica) -> None:
        await replica.told(old, new, weight=100)
        await replica.asked()
        await replica.told(old, new, weight=40)
        await replica.told(old, new, mode="Shadow")
        await replica.told(old, new, weight=0)
        assert (replica.trial["candidate"]["requests"], replica.trial["serving"]["requests"]) == (1, 0)
        await replica.told(old, published(storage, linear_model(np.ones((4, 2)))), weight=100)
        assert replica.trial["candidate"]["requests"] == 0

    with_replica(storage, play)


def test_an_answer_of_a_trial_names_its_decision(storage: Storage, old: str, new: str) -> None:
    async def play(replica: Replica) -> None:
        await replica.told(old, new, weight=100)
        ids = [(await replica.asked()).json()["decision_id"] for _ in range(3)]
        assert len(set(ids)) == 3
        assert all(name.startswith(new[7:19] + "-r1-") for name in ids)
        inputs = [{"name": "observation", "datatype": "FP32", "shape": [1, 4], "data": CALM}]
        protocol = await replica.asked(path="/v2/models/cartpole/infer", inputs=inputs)
        assert protocol.json()["parameters"]["decision_id"].startswith(new[7:19])
        versioned = await replica.asked(path="/v2/models/cartpole/versions/1/infer", inputs=inputs)
        assert versioned.headers["x-policy-digest"] == old, "who names a version has chosen"

    with_replica(storage, play)


def test_a_promoted_candidate_is_taken_in_hand_and_the_old_policy_answers_its_pins_for_a_while(
    storage: Storage, old: str, new: str
) -> None:
    async def play(replica: Replica) -> None:
        await replica.told(old, new, weight=50)
        policy = replica.holder.trial.candidate.policy
        await replica.told(new, drainSeconds=0.3)
        assert replica.holder.serving.policy is policy
        assert replica.holder.row()["leaving"] == [old]
        assert [await replica.digest(pin=old), await replica.digest(pin=new), await replica.digest()] == [old, new, new]
        await asyncio.sleep(0.4)
        assert await replica.digest(pin=old) == new
        assert replica.holder.rollout is None

    with_replica(storage, play)


def test_a_refusal_names_the_policy_that_refused(storage: Storage, old: str, new: str) -> None:
    async def play(replica: Replica) -> None:
        await replica.told(old, new, weight=100)
        for path in ("", "/v2/models/cartpole/infer"):
            for pin in ("", old):
                refused = await replica.asked([1.0], path=path, pin=pin)
                assert refused.status_code in (400, 422)
                assert refused.headers["x-policy-digest"] == (pin or new)
        await replica.told(new)
        assert (await replica.asked([1.0], pin=old)).headers["x-policy-digest"] == old

    with_replica(storage, play)


def test_several_policies_may_be_leaving(storage: Storage, old: str, new: str) -> None:
    async def play(replica: Replica) -> None:
        third = published(storage, linear_model(np.ones((4, 2))))
        for serving in (old, new, third):
            await replica.told(serving)
        assert [await replica.digest(pin=pin) for pin in (old, new, third)] == [old, new, third]
        await replica.told(old)
        assert replica.holder.row()["leaving"] == sorted([new, third])

    with_replica(storage, play)


def test_a_policy_that_is_taken_back_while_it_takes_over_answers_nobody(storage: Storage, old: str, new: str) -> None:
    async def play(replica: Replica) -> None:
        await replica.told(old, new)
        await replica.told(new)
        assert [await replica.digest(pin=old), await replica.digest(pin=new)] == [old, new]
        await replica.told(old, revoked=new)
        assert [await replica.digest(pin=old), await replica.digest(pin=new)] == [old, old]
        assert replica.holder.row()["leaving"] == []
        await replica.told(old, new)
        assert await replica.digest(pin=new) == new, "until it is tried again"

    with_replica(storage, play)


def test_a_rollback_overrides_the_pins_to_the_candidate_at_once(storage: Storage, old: str, new: str) -> None:
    async def play(replica: Replica) -> None:
        await replica.told(old, new, weight=50)
        assert await replica.digest(pin=new) == new
        await replica.told(old)
        assert await replica.digest(pin=new) == old

    with_replica(storage, play)


FAILING = {
    "Raised": (fragile_model, [3.0, 0.0, 0.0, 0.0]),
    "NotFinite": (nan_model, [-1.0, 0.0, 0.0, 0.0]),
    "Impossible": (impossible_model, [2.0, 0.0, 0.0, 0.0]),
    "Slow": (slow_model, [4.0, 0.0, 0.0, 0.0]),
}


@pytest.mark.parametrize("reason", FAILING)
def test_what_a_candidate_fails_the_serving_policy_answers_and_it_is_counted(storage: Storage, old: str, reason: str) -> None:
    made, bad = FAILING[reason]

    async def play(replica: Replica) -> None:
        candidate = published(storage, made())
        await replica.told(old, candidate, weight=100)
        assert replica.holder.row()["candidate"]["error"] is None
        assert await replica.digest(observation=[0.0, 0.0, 0.0, 0.0]) == candidate
        answer = await replica.asked(bad)
        assert (answer.status_code, answer.json()["action"], answer.headers["x-policy-digest"]) == (200, 1, old)
        assert answer.json()["decision_id"].startswith(old[7:19])
        figures = replica.trial["candidate"]
        assert (figures["requests"], figures["errors"], figures["failures"]) == (2, 1, {reason: 1})
        assert (replica.trial["serving"]["requests"], replica.trial["serving"]["errors"]) == (1, 0)
        row = replica.holder.row()["candidate"]
        assert row["setAside"] == (reason == "Slow")
        after = await replica.digest(pin=candidate, observation=[0.0, 0.0, 0.0, 0.0])
        assert after == (old if reason == "Slow" else candidate)
        assert reason != "Slow" or row["error"]["reason"] == "SetAsideTooSlow"
        await replica.told(old, candidate, weight=90, budget_ms=60_000)
        assert replica.holder.row()["candidate"]["setAside"] == (reason == "Slow"), "until the candidate changes"
        assert replica.holder.meter.requests == {200: 3}

    with_replica(storage, play)


def test_what_neither_policy_has_an_answer_to_is_no_fault_of_the_candidate(storage: Storage) -> None:
    async def play(replica: Replica) -> None:
        serving, candidate = published(storage, nan_model()), published(storage, nan_model(3))
        beyond = [-1.0, 0.0, 0.0, 0.0]
        await replica.told(serving, candidate, weight=100)
        assert await replica.digest() == candidate
        assert await replica.digest(observation=beyond) == serving
        assert (replica.trial["candidate"]["requests"], replica.trial["candidate"]["failures"]) == (2, {})
        await replica.told(serving, candidate, mode="Shadow")
        await replica.asked(beyond)
        assert (await replica.shadowed())["candidate"]["failures"] == {}

    with_replica(storage, play)


def test_nobody_is_refused_for_the_time_that_a_candidate_took_which_is_set_aside(
    storage: Storage, old: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(overload, "LONGEST_TURN_S", 0.05)

    async def play(replica: Replica) -> None:
        await replica.told(old, published(storage, slow_model()), weight=100)
        slow = [4.0, 0.0, 0.0, 0.0]
        answers = await asyncio.gather(replica.asked(slow), *(replica.asked() for _ in range(16)))
        assert replica.holder.row()["candidate"]["setAside"] is True
        assert {answer.status_code for answer in answers} == {200}

    with_replica(storage, play)


def test_a_candidate_that_raises_after_its_time_is_set_aside(storage: Storage, old: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def late(*_: Any, **__: Any) -> Any:
        began = time.thread_time()
        while time.thread_time() - began < 0.03:
            pass
        raise RuntimeError("too late as well")

    async def play(replica: Replica) -> None:
        candidate = published(storage, always(0))
        await replica.told(old, candidate, weight=100, budget_ms=20)
        assert await replica.digest() == candidate
        monkeypatch.setattr(replica.holder.trial.candidate.policy, "decide", late)
        assert await replica.digest() == old
        assert replica.holder.row()["candidate"]["error"]["reason"] == "SetAsideTooSlow"
        assert replica.trial["candidate"]["failures"] == {"Raised": 1}

    with_replica(storage, play)


def test_a_candidate_that_is_always_slow_is_set_aside_before_it_answers_anybody(storage: Storage, old: str) -> None:
    async def play(replica: Replica) -> None:
        await replica.told(old, published(storage, always(0)), weight=100, budget_ms=0.0001)
        row = replica.holder.row()["candidate"]
        assert (row["loaded"], row["setAside"], row["error"]["reason"]) == (True, True, "SetAsideTooSlow")
        assert await replica.digest() == old
        assert replica.trial["candidate"]["requests"] == 0

    with_replica(storage, play)


def spoiled(storage: Storage, file: str) -> str:
    digest = published(storage, always(0))
    path = storage.bundles() / digest.removeprefix("sha256:") / file
    path.write_bytes(path.read_bytes()[:-1])
    return digest


UNTRUE = {"observations": [[0.0, 0.2, 0.3, 0.4]], "actions": [1], "actionDistInputs": [[0.0, 1.0]]}


def published_text(storage: Storage) -> str:
    spaces = {"observationSpace": BOX, "actionSpace": {"type": "Discrete", "n": 2, "start": 0}}
    return published_bundle(storage, {**spaces, "golden": UNTRUE}, b"no model")


OTHER_BOX = {**BOX, "low": -9.0}
REFUSED: dict[str, tuple[Callable[[Storage], str], str]] = {
    "missing": (lambda storage: MISSING, "Missing"),
    "a corrupt model": (lambda storage: spoiled(storage, "policy.onnx"), "DigestMismatch"),
    "a corrupt manifest": (lambda storage: spoiled(storage, "manifest.json"), "DigestMismatch"),
    "no model": (published_text, "InvalidModel"),
    "a weight that is no number": (lambda storage: published(storage, linear_model(np.full((4, 2), np.nan))), "NotFinite"),
    "other answers than recorded": (lambda storage: published(storage, always(0), golden=UNTRUE), "GoldenMismatch"),
    "other observations": (lambda storage: published(storage, always(0), observationSpace=OTHER_BOX), "SpaceMismatch"),
    "other actions": (
        lambda storage: published(storage, always(0), actionSpace={"type": "Discrete", "n": 2, "start": 0, "is": "other"}),
        "SpaceMismatch",
    ),
}


@pytest.mark.parametrize(("made", "reason"), REFUSED.values(), ids=REFUSED)
@pytest.mark.parametrize("mode", ["Canary", "Shadow"])
def test_a_candidate_that_is_refused_is_told_and_touches_nobody(
    storage: Storage, old: str, made: Callable[[Storage], str], reason: str, mode: str
) -> None:
    async def play(replica: Replica) -> None:
        candidate = made(storage)
        await replica.told(old, candidate, mode=mode, weight=99)
        for _ in range(100):
            if replica.holder.is_candidate_settled:
                break
            await asyncio.sleep(0.01)
        row = replica.holder.row()
        assert (row["candidate"]["loaded"], row["candidate"]["error"]["reason"]) == (False, reason)
        assert (row["trial"], row["error"]) == (None, None)
        assert {await replica.digest(), await replica.digest(pin=candidate)} == {old}
        await replica.told(old)
        assert replica.holder.row()["candidate"] is None

    with_replica(storage, play)


def test_a_candidate_of_other_spaces_is_tried_once_the_serving_policy_has_them_too(storage: Storage, old: str) -> None:
    async def play(replica: Replica) -> None:
        wide, candidate = (published(storage, always(action), observationSpace=OTHER_BOX) for action in (0, 1))
        await replica.told(old, candidate)
        assert replica.holder.row()["candidate"]["error"]["reason"] == "SpaceMismatch"
        await replica.told(wide, candidate)
        for _ in range(100):
            if replica.holder.trial is not None:
                break
            await asyncio.sleep(0.01)
        assert replica.holder.row()["candidate"]["error"] is None

    with_replica(storage, play)


def test_a_batch_has_the_time_that_it_takes_the_serving_policy(storage: Storage) -> None:
    async def play(replica: Replica) -> None:
        serving, candidate = published(storage, slow_model(60_000)), published(storage, slow_model(60_001))
        await replica.told(serving, candidate, weight=0, budget_ms=20)
        heavy = {"observations": [[1.0, 0.0, 0.0, 0.0]] * 8}
        await replica.asked(**heavy)
        await replica.told(serving, candidate, weight=100, budget_ms=20)
        assert await replica.digest(**heavy) == candidate
        assert replica.holder.row()["candidate"]["setAside"] is False

    with_replica(storage, play)


def test_a_shadow_answers_nobody_and_what_it_would_have_done_is_counted(storage: Storage, old: str) -> None:
    async def play(replica: Replica) -> None:
        # Takes action 1 where the second number of the observation is positive, as the serving policy always does.
        candidate = published(storage, linear_model(np.array([[0, 0], [-1, 1], [0, 0], [0, 0]])))
        await replica.told(old, candidate, mode="Shadow", weight=99)
        asked = [[0.0, 1.0, 0.0, 0.0]] * 6 + [[0.0, -1.0, 0.0, 0.0]] * 4
        assert {await replica.digest(observation=one, session="s", pin=candidate) for one in asked} == {old}
        await replica.asked(observations=asked)
        await replica.asked(observation=asked[0], explore=True, seed=1)
        await replica.asked(observation=asked[0], action_mask=[1, 0])
        trial = await replica.shadowed()
        assert trial["shadow"] == {"compared": 22, "agreed": 14, "dropped": 0}
        assert (trial["candidate"]["requests"], trial["candidate"]["errors"]) == (13, 0)
        assert sum(trial["candidate"]["actions"].values()) == 22
        assert 0 < trial["candidate"]["inferences"] <= 13

    with_replica(storage, play)


def test_a_shadow_that_is_behind_drops_and_says_so(storage: Storage, old: str, new: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def play(replica: Replica) -> None:
        await replica.told(old, new, mode="Shadow")
        monkeypatch.setattr(shadow, "WAITING", 5)
        monkeypatch.setattr(shadow, "PAUSE_S", 0.3)
        for _ in range(12):
            await replica.asked()
        assert (await replica.shadowed())["shadow"] == {"compared": 5, "agreed": 0, "dropped": 7}
        monkeypatch.setattr(shadow, "WAITING_BYTES", 100)
        await replica.asked(observations=[CALM] * 50)
        assert (await replica.shadowed())["shadow"]["dropped"] == 57

    with_replica(storage, play)


@pytest.mark.parametrize("reason", FAILING)
def test_what_a_shadow_fails_is_counted_and_nobody_sees_it(storage: Storage, old: str, reason: str) -> None:
    made, bad = FAILING[reason]

    async def play(replica: Replica) -> None:
        await replica.told(old, published(storage, made()), mode="Shadow")
        for observation in ([0.0] * 4, bad, [0.0] * 4):
            assert await replica.digest(observation=observation) == old
            if reason == "Slow":
                await replica.shadowed()  # a slow one is known by an inference of its own
        trial = await replica.shadowed()
        assert trial["candidate"]["failures"] == {reason: 1}
        assert trial["shadow"]["compared"] == 2
        assert replica.holder.row()["candidate"]["setAside"] == (reason == "Slow")

    with_replica(storage, play)


def test_the_metrics_of_a_trial_are_by_digest_and_the_weight_of_a_candidate_that_is_gone_is_0(storage: Storage, old: str, new: str) -> None:
    published_values: dict[tuple[str, str], float] = {}

    class Gauge:
        def __init__(self, name: str, description: str, tag_keys: tuple[str, ...]) -> None:
            self._name = name

        def set(self, value: float, tags: dict[str, str]) -> None:
            published_values[self._name, " ".join(tags.values())] = value

    async def play(replica: Replica) -> None:
        publisher = Publisher(Gauge)
        await replica.told(old, new, weight=100)
        for i in range(3):
            await replica.asked(session=f"{i}")
        publisher.publish(replica.holder.meter, old, trial_samples(replica.holder.trial))
        assert published_values["policymodel_candidate_weight", new] == 100
        assert published_values["policymodel_trial_requests_total", new] == published_values["policymodel_trial_sessions", new] == 3
        assert published_values["policymodel_trial_requests_total", old] == 0
        assert published_values["policymodel_shadow_observations_total", f"{new} dropped"] == 0
        publisher.publish(replica.holder.meter, new)
        assert published_values["policymodel_candidate_weight", new] == 0
        assert (published_values["policymodel_loaded", old], published_values["policymodel_loaded", new]) == (0, 1)

    with_replica(storage, play)


def test_distinct_values_are_counted_exactly_and_then_nearly_in_bounded_memory() -> None:
    random, distinct = np.random.default_rng(0), Distinct()
    values = random.integers(0, HASH_SPACE, 60_000, dtype=np.uint64).tolist()
    for value in (*values[:1000], *values[:1000]):
        distinct.add(value)
    assert distinct.count == 1000
    for value in values:
        distinct.add(value)
    assert abs(distinct.count - 60_000) < 60_000 * 0.08
    assert len(distinct._kept) <= MOST_SESSIONS


def test_a_candidate_before_there_is_a_policy_waits_for_one(storage: Storage, old: str, new: str) -> None:
    async def play(replica: Replica) -> None:
        replica.holder.want({"candidate": {"uri": storage.bundle_uri(new), "digest": new, "mode": "Canary", "weight": 100}})
        assert (await replica.asked()).status_code == 503
        await replica.told(old, new, weight=100)
        for _ in range(100):
            if replica.holder.trial is not None:
                break
            await asyncio.sleep(0.01)
        assert await replica.digest() == new

    with_replica(storage, play)
