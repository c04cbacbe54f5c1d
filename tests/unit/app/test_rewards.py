"""Returns of episodes: taken over HTTP, attributed, merged over replicas; and the log of decisions that may be switched on."""

from __future__ import annotations

import asyncio
import json
import statistics
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from fakes.policies import always, published

from app.serving import decision_log, rewards
from app.serving.asgi import PolicyApp
from app.serving.decision_log import parsed_log_terms
from app.serving.replica import PolicyHolder
from app.serving.rewards import Report, Rewards, merged_returns
from app.storage import Storage

OLD, NEW = "sha256:" + "a" * 64, "sha256:" + "b" * 64
SEEN = [0.1, 0.2, 0.3, 0.4]


def with_holder(storage: Storage, play: Callable[[PolicyHolder, httpx.AsyncClient, Any], Awaitable[None]]) -> None:
    async def played() -> None:
        holder = PolicyHolder("r1")

        async def status() -> dict[str, Any]:
            return holder.row()

        async def told(serving: str, candidate: str | None = None, **more: Any) -> None:
            tried = {"candidate": {**named(candidate), "mode": "Canary", "weight": 100}} if candidate else {}
            holder.want({"serving": named(serving), **tried, **more})
            await holder.first_attempt()

        def named(digest: str) -> dict[str, Any]:
            return {"uri": storage.bundle_uri(digest), "digest": digest, "revision": 1}

        transport = httpx.ASGITransport(PolicyApp(holder, "cartpole", status), root_path="/route")
        async with httpx.AsyncClient(transport=transport, base_url="http://policy/route") as client:
            try:
                await play(holder, client, told)
            finally:
                holder.close()

    asyncio.run(played())


def reported(*reports: tuple[str, int, float, bool, str]) -> Rewards:
    taken = Rewards()
    for session, step, total, is_done, digest in reports:
        taken.add(Report(session, step, total, is_done), digest)
    return taken


def returns(*replicas: Rewards) -> dict[str, dict[str, float]]:
    return merged_returns([json.loads(json.dumps(each.told())) for each in replicas])


def test_a_report_may_come_again_and_in_any_order_and_the_last_step_counts() -> None:
    reports = [("s", 1, 1.0, False, OLD), ("s", 5, 5.0, True, OLD), ("s", 3, 3.0, False, OLD), ("s", 5, 5.0, True, OLD)]
    for each in (reports, reports[::-1]):
        assert returns(reported(*each)) == {OLD: {"episodes": 1, "mean": 5.0, "std": 0.0}}
    assert returns(reported(("s", 5, 5.0, False, OLD), ("s", 5, 5.0, True, OLD)))[OLD]["episodes"] == 1


def test_only_finished_episodes_count() -> None:
    assert returns(reported(("s", 1, 1.0, False, OLD))) == {}


def test_returns_of_replicas_are_merged_and_of_a_session_of_several_the_last_step_counts() -> None:
    one = reported(("a", 2, 2.0, True, OLD), ("b", 4, 4.0, False, NEW), ("c", 9, 9.0, True, NEW))
    other = reported(("b", 6, 6.0, True, NEW), ("c", 8, 8.0, True, OLD), ("d", 1, 1.0, True, OLD))
    expected = {
        OLD: {"episodes": 2, "mean": 1.5, "std": statistics.stdev([2.0, 1.0])},
        NEW: {"episodes": 2, "mean": 7.5, "std": statistics.stdev([6.0, 9.0])},
    }
    assert returns(one, other) == returns(other, one) == {digest: pytest.approx(each) for digest, each in expected.items()}


def test_memory_is_bounded_and_the_oldest_episodes_still_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rewards, "SESSIONS", 50)
    totals = np.random.default_rng(0).normal(100, 15, 500).tolist()
    taken = reported(*((f"s{i}", 10, total, True, OLD) for i, total in enumerate(totals)))
    assert len(taken.told()["sessions"]) == 50
    figures = returns(taken)[OLD]
    assert figures == pytest.approx({"episodes": 500, "mean": statistics.fmean(totals), "std": statistics.stdev(totals)})


def test_a_return_is_that_of_the_policy_that_is_told_by_pin_or_digest_or_decision(storage: Storage) -> None:
    old, new = published(storage, always(1)), published(storage, always(0))

    async def play(holder: PolicyHolder, client: httpx.AsyncClient, told: Any) -> None:
        await told(old, new)
        decision_id = (await client.post("", json={"observation": SEEN})).json()["decision_id"]

        async def report(session: str, pin: str = "", **more: Any) -> tuple[bool, str | None]:
            headers = {"x-policy-pin": pin} if pin else {}
            answer = await client.post(
                "/v1/rewards", json={"session": session, "step": 1, "return": 1, "done": True, **more}, headers=headers
            )
            assert answer.status_code == 200
            return answer.json()["counted"], answer.json()["digest"]

        assert await report("a", pin=old, digest=new) == (True, old)
        assert await report("b", digest=new) == (True, new)
        assert await report("c", decision_id=decision_id) == (True, new)
        assert await report("d") == (False, None)
        assert await report("e", pin=OLD) == (False, None)
        assert await report("f", decision_id="nothing-of-ours") == (False, None)
        assert {digest: each["episodes"] for digest, each in returns(holder.rewards).items()} == {old: 1, new: 2}

    with_holder(storage, play)


def test_returns_are_those_since_the_trial_began(storage: Storage) -> None:
    old, new = published(storage, always(1)), published(storage, always(0))

    async def play(holder: PolicyHolder, client: httpx.AsyncClient, told: Any) -> None:
        await told(old)
        await client.post("/v1/rewards", json={"session": "a", "step": 1, "return": 1, "done": True, "digest": old})
        assert returns(holder.rewards)[old]["episodes"] == 1
        await told(old, new)
        assert returns(holder.rewards) == {}
        await client.post("/v1/rewards", json={"session": "b", "step": 1, "return": 1, "done": True, "digest": new})
        await told(new)
        assert returns(holder.rewards)[new]["episodes"] == 1

    with_holder(storage, play)


@pytest.mark.parametrize(
    ("change", "pointer"),
    [
        ({"session": ""}, "/session"),
        ({"session": "x" * 257}, "/session"),
        ({"session": 1}, "/session"),
        ({"step": -1}, "/step"),
        ({"step": 1.5}, "/step"),
        ({"step": True}, "/step"),
        ({"step": None}, "/step"),
        ({"return": "1"}, "/return"),
        ({"return": 1e300}, "/return"),
        ({"done": 1}, "/done"),
        ({"digest": 1}, "/digest"),
        ({"reward": 1}, ""),
    ],
)
def test_a_bad_report_is_refused_by_its_place(storage: Storage, change: dict[str, Any], pointer: str) -> None:
    async def play(holder: PolicyHolder, client: httpx.AsyncClient, told: Any) -> None:
        answer = await client.post("/v1/rewards", json={"session": "a", "step": 1, "return": 1, **change})
        assert (answer.status_code, answer.json()["pointer"]) == (422, pointer)

    with_holder(storage, play)


def test_returns_that_are_no_numbers_and_other_methods_are_refused(storage: Storage) -> None:
    async def play(holder: PolicyHolder, client: httpx.AsyncClient, told: Any) -> None:
        for number in ("NaN", "Infinity", "1e400"):
            answer = await client.post("/v1/rewards", content=f'{{"session": "a", "step": 1, "return": {number}}}')
            assert (answer.status_code, answer.json()["pointer"]) == (422, "/return")
        assert (await client.post("/v1/rewards", content="{")).status_code == 400
        assert (await client.post("/v1/rewards", content='{"session": "\\ud800", "step": 1, "return": 1}')).status_code == 422
        got = await client.get("/v1/rewards")
        assert (got.status_code, got.headers["allow"]) == (405, "POST")

    with_holder(storage, play)


def lines_in(directory: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for path in sorted(directory.glob("*.jsonl")) for line in path.read_text().splitlines()]


async def written(holder: PolicyHolder, lines: int) -> dict[str, Any]:
    for _ in range(300):
        await asyncio.sleep(0.01)
        figures = holder.row()["decisionLog"]
        if figures["written"] + figures["dropped"] >= lines:
            return figures
    raise AssertionError(figures)


def test_decisions_and_returns_are_logged_once_it_is_switched_on(storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decision_log, "FLUSH_S", 0.01)
    old, directory = published(storage, always(1)), tmp_path / "default/cartpole"
    monkeypatch.setenv("POLICYMODEL_DECISIONS", str(tmp_path))

    async def play(holder: PolicyHolder, client: httpx.AsyncClient, told: Any) -> None:
        await told(old, decisionLog={"directory": "default/cartpole"})
        sent = {"observation": SEEN, "explore": True, "seed": 3}
        answer = (await client.post("", json=sent, headers={"x-session-id": "s"})).json()
        await client.post("/v1/rewards", json={"session": "s", "step": 1, "return": 2, "decision_id": answer["decision_id"]})
        await written(holder, 2)
        decision, reward = lines_in(directory)
        assert decision["decision_id"] == answer["decision_id"] == reward["decision_id"]
        assert (decision["session"], decision["digest"], decision["explore"], decision["seed"]) == ("s", old, True, 3)
        assert decision["observations"] == [[pytest.approx(SEEN)]]
        assert (decision["actions"], decision["action_dist_inputs"]) == ([[answer["action"]]], [[0.0, 1.0]])
        assert (reward["kind"], reward["return"], reward["done"], reward["digest"]) == ("reward", 2.0, False, old)
        await told(old)
        assert "decision_id" not in (await client.post("", json=sent)).json()
        assert (holder.rollout, holder.row()["decisionLog"]) == (None, None)

    with_holder(storage, play)


def test_the_log_is_rotated_and_the_oldest_files_of_all_replicas_go(
    storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decision_log, "FLUSH_S", 0.01)
    old, directory = published(storage, always(1)), tmp_path / "default/cartpole"
    monkeypatch.setenv("POLICYMODEL_DECISIONS", str(tmp_path))
    directory.mkdir(parents=True)
    gone = directory / "another-000000.jsonl"
    gone.write_text("{}\n" * 200)

    async def play(holder: PolicyHolder, client: httpx.AsyncClient, told: Any) -> None:
        await told(old, decisionLog={"directory": "default/cartpole", "fileBytes": 1000, "totalBytes": 5000})
        for _ in range(100):
            await asyncio.sleep(0)
            await client.post("", json={"observation": SEEN})
        figures = await written(holder, 100)
        assert (figures["written"], figures["dropped"], figures["error"]) == (100, 0, None)
        sizes = [path.stat().st_size for path in directory.glob("*.jsonl")]
        assert sum(sizes) <= 5000 + 1500
        assert max(sizes) <= 1000 + 500
        assert not gone.exists()
        assert lines_in(directory)[-1]["decision_id"].endswith("-63")

    with_holder(storage, play)


def test_a_log_that_cannot_be_written_or_is_behind_fails_nobody_and_is_told(
    storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decision_log, "FLUSH_S", 0.01)
    old, file = published(storage, always(1)), tmp_path / "file"
    file.write_text("")
    monkeypatch.setenv("POLICYMODEL_DECISIONS", str(file))

    async def play(holder: PolicyHolder, client: httpx.AsyncClient, told: Any) -> None:
        await told(old, decisionLog={"directory": "below"})
        assert (await client.post("", json={"observation": SEEN})).status_code == 200
        figures = await written(holder, 1)
        assert (figures["dropped"], "Not a directory" in figures["error"]) == (1, True)
        monkeypatch.setattr(decision_log, "WAITING", 0)
        assert (await client.post("", json={"observation": SEEN})).status_code == 200
        assert holder.row()["decisionLog"]["dropped"] == 2

    with_holder(storage, play)


@pytest.mark.parametrize(
    "log",
    [
        None,
        {},
        "x",
        {"directory": "/x"},
        {"directory": "a/../../x"},
        {"directory": "x", "fileBytes": 0},
        {"directory": "x", "totalBytes": "1"},
    ],
)
def test_a_log_that_makes_no_sense_is_none(log: Any) -> None:
    assert parsed_log_terms(log) is None
