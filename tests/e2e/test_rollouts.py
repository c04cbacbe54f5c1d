"""Policies take each other's place under load: sessions keep their policy, shares are as asked for, bad ones go back, nothing fails."""

from __future__ import annotations

import json
import math
import random
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from fakes.policies import fragile_model, linear_model, nan_model, slow_model

from e2e.kube import Namespace, wait
from e2e.rollouts import Episode, at_rest, changed, failures, held, offer, over, request, sessions, status, wait_for_replicas

STEPS = [{"weight": 20, "seconds": 12}, {"weight": 60, "seconds": 12}]
CANARY = {"strategy": "Canary", "steps": STEPS}


def share(played: list[Episode], digest: str, since: float, until: float) -> tuple[int, int]:
    """Of the sessions that began in a time, how many the policy answered, and how many there were."""
    begun = [episode for episode in played if since < episode.began < until and episode.digests]
    return sum(episode.digests[0] == digest for episode in begun), len(begun)


def is_as_asked(answered: int, begun: int, weight: int) -> bool:
    """Within three standard errors of the weight."""
    expected = weight / 100
    return abs(answered / begun - expected) <= 3 * math.sqrt(expected * (1 - expected) / begun)


def test_a_canary_answers_its_share_of_the_sessions_and_each_session_keeps_its_policy(cartpole: Namespace) -> None:
    with sessions(cartpole, 8, at_rest) as played:
        changed(cartpole, 1, CANARY)
        times = [held(cartpole, 1), held(cartpole, 2)]
        promoted = over(cartpole, "Promoted")
        ended = time.time()
        cartpole.wait_condition("cartpole", "Ready", "True", timeout_s=60)
        time.sleep(2)
    assert failures(played) == []
    assert all(len(set(episode.digests)) == 1 for episode in played), "a session saw two policies"
    shares = [share(played, promoted["digest"], times[0], times[1] - 2), share(played, promoted["digest"], times[1], ended - 5)]
    print(json.dumps({"sessions": len(played), "shares": shares}))
    for (answered, begun), step in zip(shares, STEPS, strict=True):
        assert is_as_asked(answered, begun, step["weight"])
    assert {episode.digests[0] for episode in played[-4:]} == {promoted["digest"]}


def test_an_abort_brings_the_old_policy_back_at_once(cartpole: Namespace) -> None:
    before = status(cartpole)["serving"]["digest"]
    with sessions(cartpole, 8, at_rest) as played:
        changed(cartpole, 1, {"strategy": "Canary", "steps": [{"weight": 50, "seconds": 602}]})
        held(cartpole, 1)
        assert cartpole.condition("cartpole", "Available")["status"] == "True"
        request(cartpole, "abort")
        asked = time.time()
        over(cartpole, "Aborted")
        seconds = wait_for_replicas(cartpole, before) - asked
        time.sleep(1)
    print(json.dumps({"secondsToRollBack": round(seconds, 2)}))
    assert failures(played) == []
    assert seconds < 10
    assert cartpole.condition("cartpole", "Degraded")["reason"] == "Aborted"


@pytest.mark.full
def test_ten_rollouts_in_a_row_and_an_abort_under_load(cartpole: Namespace) -> None:
    strategies = [
        *[{"strategy": "Direct"}] * 3,
        *[{"strategy": "Canary", "steps": [{"weight": 10, "seconds": 10}, {"weight": 50, "seconds": 10}]}] * 3,
        *[{"strategy": "Shadow", "steps": [{"seconds": 10}]}] * 3,
    ]
    digests = {0: status(cartpole)["serving"]["digest"]}
    took: list[tuple[str, float]] = []
    with sessions(cartpole, 16, at_rest) as played:
        for number, rollout in enumerate(strategies, start=1):
            seed = number % 2
            began = time.time()
            changed(cartpole, seed, rollout)
            if seed not in digests:
                cartpole.wait_condition("cartpole", "Ready", "True", timeout_s=300)
                digests[seed] = status(cartpole)["serving"]["digest"]
            else:
                took.append((rollout["strategy"], round(wait_for_replicas(cartpole, digests[seed]) - began, 2)))
            cartpole.wait_condition("cartpole", "Ready", "True", timeout_s=120)
        changed(cartpole, 0, {"strategy": "Canary", "steps": [{"weight": 50, "seconds": 603}]})
        held(cartpole, 1)
        asked = time.time()
        request(cartpole, "abort")
        began = time.time()
        aborted = wait_for_replicas(cartpole, digests[1])
        took.append(("abort", round(aborted - began, 2)))
        time.sleep(1)
    print(json.dumps({"sessions": len(played), "requests": sum(len(episode.digests) for episode in played), "seconds": took}))
    assert failures(played) == []
    # An abort takes its sessions from a candidate.
    whole = [episode for episode in played if not asked - 5 < episode.began < aborted]
    assert all(len(set(episode.digests)) == 1 for episode in whole), "a session saw two policies"
    assert max(seconds for way, seconds in took if way in ("Direct", "abort")) <= 3, "from the edit to every replica"


SLOWLY = {"strategy": "Canary", "steps": [{"weight": 50, "seconds": 30}, {"weight": 90, "seconds": 30}]}


def rarely(common: list[float], rare: list[float], ratio: float) -> Callable[[], list[float]]:
    draw = random.Random(0)
    return lambda: rare if draw.random() < ratio else common


@pytest.mark.full
@pytest.mark.parametrize(
    ("seed", "model", "observe", "reason"),
    [
        (11, fragile_model(), rarely(at_rest(), [2.2, 0.0, 0.0, 0.0], 0.02), "TooManyErrors"),
        (12, nan_model(), rarely([0.5, 0.0, 0.0, 0.0], [-0.5, 0.0, 0.0, 0.0], 0.1), "TooManyErrors"),
        (13, slow_model(5000), rarely(at_rest(), [1.0, 0.0, 0.0, 0.0], 1.0), "TooSlow"),
        (14, slow_model(30_000), rarely([0.0, 0.0, 0.0, 0.0], [2.0, 0.0, 0.0, 0.0], 0.05), "SetAside"),
    ],
    ids=["raises on 2 %", "gives no number", "is slow", "takes too long"],
)
def test_a_candidate_that_behaves_badly_is_rolled_back_and_nothing_fails(
    cartpole: Namespace, tmp_path: Path, seed: int, model: bytes, observe: Callable[[], list[float]], reason: str
) -> None:
    before = status(cartpole)["serving"]["digest"]
    with sessions(cartpole, 16, observe) as played:
        # A budget that the slow inference is over on a fast machine, too.
        digest = offer(
            cartpole, tmp_path, seed, model, {**SLOWLY, "analysis": {"timeBudgetMilliseconds": 30}} if reason == "SetAside" else SLOWLY
        )
        wait(lambda: status(cartpole).get("candidate", {}).get("digest") == digest, 240, "the candidate", every_s=0.1)
        began = time.time()
        ended = over(cartpole, "RolledBack", digest)
        seconds = time.time() - began
        wait_for_replicas(cartpole, before)
    assert (ended["digest"], ended["rollout"]["reason"]) == (digest, reason), ended
    print(json.dumps({"reason": reason, "seconds": round(seconds, 1), "why": ended["rollout"]["message"], "sessions": len(played)}))
    assert failures(played) == []


@pytest.mark.full
def test_a_candidate_that_earns_less_is_rolled_back(cartpole: Namespace, tmp_path: Path) -> None:
    before = status(cartpole)["serving"]["digest"]
    draw = random.Random(0)
    rollout = {"strategy": "Canary", "steps": [{"weight": 50, "seconds": 15}], "analysis": {"maxReturnRegression": 20}}
    with sessions(cartpole, 16, at_rest, lambda answered_by: draw.gauss(450 if answered_by == before else 400, 30)) as played:
        digest = offer(cartpole, tmp_path, 15, linear_model(np.eye(4, 2)), rollout)
        held(cartpole, 1)
        began = time.time()
        ended = over(cartpole, "RolledBack", digest)
        seconds = time.time() - began
    print(json.dumps({"seconds": round(seconds, 1), "why": ended["rollout"]["message"], "sessions": len(played)}))
    assert ended["rollout"]["reason"] == "EarnsLess"
    assert failures(played) == []
