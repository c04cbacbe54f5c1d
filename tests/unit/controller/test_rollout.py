"""Canary, shadow, rollback, pins and requests, in the world of the planner's tests."""

from __future__ import annotations

import json
from datetime import datetime, timedelta
from typing import Any

import pytest
from fakes.world import World, digest

from controller import analysis, names, resources
from controller.model import Capacity
from controller.spec import spec_of

CANARY = {"rollout__strategy": "Canary", "rollout__steps": [{"weight": 10, "seconds": 30}, {"weight": 50, "seconds": 30}]}
SHADOW = {"rollout__strategy": "Shadow", "rollout__steps": [{"seconds": 30}]}


def served(**changes: Any) -> World:
    """A world in which revision 1 serves on two replicas."""
    world = World()
    world.edit(serving__replicas=2, **changes)
    world.settle()
    assert world.condition("Ready")["status"] == "True"
    return world


def retrained(world: World, seed: int = 2, **changes: Any) -> World:
    """The same, asked for another policy, until the replicas are told of its first step."""
    world.edit(serving__replicas=2, training__seed=seed, **changes)
    world.until_step(1)
    return world


def told(world: World) -> tuple[str | None, int | None]:
    """The digest that is told to serve, and the weight of the candidate beside it."""
    assert world.ray_service
    text = world.ray_service["spec"]["serveConfigV2"]
    policy, candidate = resources.served_policy(world.owner, text), resources.tried_policy(world.owner, text)
    return policy["digest"] if policy else None, candidate["weight"] if candidate else None


def request(world: World, verb: str, **members: Any) -> None:
    world.annotations[names.request_annotation(verb)] = json.dumps({"id": verb, "user": "ada", "time": "2026-01-01T00:00:00Z", **members})


def revision(world: World, number: int) -> dict[str, Any]:
    return next(found for found in world.status["revisions"] if found["number"] == number)


def new_digest(world: World) -> str:
    return digest(spec_of(world.document).run)


def test_a_canary_goes_through_its_steps_and_takes_over() -> None:
    world = served(**CANARY)
    first = told(world)[0]
    world.edit(serving__replicas=2, training__seed=2, **CANARY)
    seen = []
    for _ in range(40):
        if (state := told(world)) not in seen:
            seen.append(state)
        world.get_on()
    second = new_digest(world)
    assert seen == [(first, None), (first, 0), (first, 10), (first, 50), (second, None)]
    assert world.condition("Ready")["status"] == "True"
    assert "candidate" not in world.status
    assert revision(world, 2)["rollout"]["outcome"] == "Promoted"


def test_replicas_are_told_whose_pins_hold_no_more_until_it_is_tried_again() -> None:
    world = retrained(served(**CANARY), **CANARY)
    second = new_digest(world)

    def config() -> str:
        assert world.ray_service
        return str(world.ray_service["spec"]["serveConfigV2"])

    assert "revoked" not in config()
    request(world, "abort")
    world.settle()
    assert f"revoked: {second}" in config()
    request(world, "promote", id="again")
    world.settle()
    assert told(world) == (second, None)
    assert "revoked" not in config()


def test_a_policy_is_loaded_by_every_replica_before_one_of_them_answers_by_it() -> None:
    world = served()
    first = told(world)[0]
    world.edit(serving__replicas=2, training__seed=2)
    while told(world) != (first, 0):
        world.get_on()
    while told(world) == (first, 0):
        assert world.rows == [first] * 2
        world.load()
        held = [bool(trying) for trying in world.trying]
        world.reconcile()
    assert held == [True, True]
    assert told(world) == (new_digest(world), None)


def test_replicas_of_an_older_image_take_a_policy_over_at_once_and_try_none() -> None:
    world = served()
    world.is_of_an_older_day = True
    world.edit(serving__replicas=2, training__seed=2)
    world.settle()
    assert told(world) == (new_digest(world), None)
    assert not world.tried
    world.edit(serving__replicas=2, training__seed=4, **CANARY)
    world.settle()
    assert world.condition("Ready")["reason"] == "ImageTooOld"
    assert "spec.serving.image" in world.condition("Ready")["message"]
    assert not world.tried


def test_a_step_lasts_from_the_moment_that_every_replica_is_at_it() -> None:
    world = retrained(served(**CANARY), **CANARY)
    assert "heldSince" not in world.status["candidate"]
    world.now += timedelta(seconds=300)  # nothing gets on meanwhile
    world.reconcile()
    assert told(world)[1] == 10
    while "heldSince" not in world.status["candidate"]:
        world.get_on()
    began = world.now
    while told(world)[1] == 10:
        world.get_on()
    assert timedelta(seconds=30) <= world.now - began <= timedelta(seconds=36)


def test_a_shadow_answers_nothing_before_it_takes_over() -> None:
    world = retrained(served(**SHADOW), **SHADOW)
    assert told(world)[1] == 0
    assert world.status["candidate"]["mode"] == "Shadow"
    world.settle()
    assert told(world) == (new_digest(world), None)


def test_while_a_canary_is_under_way_the_policy_that_serves_is_available_and_ready_is_not_claimed() -> None:
    world = retrained(served(**CANARY), **CANARY)
    world.get_on()
    assert world.condition("Available")["status"] == "True"
    assert (world.condition("Ready")["status"], world.condition("Ready")["reason"]) == ("False", "RollingOut")
    assert "answers 10 % of the sessions (step 1 of 2)" in world.condition("Ready")["message"]
    assert world.condition("Degraded")["status"] == "False"


def test_a_candidate_that_fails_is_rolled_back_and_not_tried_again_before_the_rules_change() -> None:
    world = served(**CANARY)
    first = told(world)[0]
    world.edit(serving__replicas=2, training__seed=2, **CANARY)
    world.faulty.add(new_digest(world))
    world.settle()
    assert told(world) == (first, None)
    assert revision(world, 2)["rollout"]["outcome"] == "RolledBack"
    degraded = world.condition("Degraded")
    assert (degraded["status"], degraded["reason"]) == ("True", "RolledBack")
    assert "it failed 500 of 1000 requests" in degraded["message"]
    assert world.condition("Available")["status"] == "True"
    world.faulty.clear()
    world.settle()
    assert told(world) == (first, None)
    world.edit(serving__replicas=2, training__seed=2, **{**CANARY, "rollout__analysis": {"maxErrorRatio": 0.6}})
    world.settle()
    assert told(world) == (new_digest(world), None)
    assert world.condition("Degraded")["status"] == "False"


def test_a_candidate_that_fails_is_held_at_its_step_where_the_spec_says_so() -> None:
    changes = {**CANARY, "rollout__onFail": "Hold"}
    world = served(**changes)
    world.edit(serving__replicas=2, training__seed=2, **changes)
    world.faulty.add(new_digest(world))
    for _ in range(40):
        world.get_on()
    assert told(world)[1] == 10
    assert world.condition("Degraded")["reason"] == "TooManyErrors"
    assert "kubectl policymodel promote cartpole" in world.condition("Degraded")["message"]
    request(world, "abort")
    world.settle()
    assert told(world)[1] is None
    assert revision(world, 2)["rollout"]["outcome"] == "Aborted"


def test_a_candidate_that_was_held_is_not_let_go_because_its_figures_get_better() -> None:
    changes = {**CANARY, "rollout__onFail": "Hold"}
    world = served(**changes)
    world.edit(serving__replicas=2, training__seed=2, **changes)
    world.faulty.add(new_digest(world))
    world.until(lambda: world.condition("Degraded")["reason"] == "TooManyErrors")
    world.faulty.clear()
    for _ in range(40):
        world.get_on()
    assert told(world)[1] == 10
    assert "it failed 500 of 1000 requests" in world.condition("Degraded")["message"]
    # Other rules judge it anew.
    world.edit(serving__replicas=2, training__seed=2, **changes, rollout__analysis={"maxErrorRatio": 0.02})
    world.settle()
    assert told(world) == (new_digest(world), None)


@pytest.mark.parametrize("changes", [{}, CANARY, SHADOW], ids=["direct", "canary", "shadow"])
def test_a_bundle_that_replicas_refuse_is_rolled_back(changes: dict[str, Any]) -> None:
    world = served(**changes)
    first = told(world)[0]
    world.edit(serving__replicas=2, training__seed=2, **changes)
    world.corrupt.add(new_digest(world))
    world.settle()
    assert told(world) == (first, None)
    assert world.rows == [first] * 2
    assert "DigestMismatch: policy.onnx is not what its digest names" in world.condition("Degraded")["message"]
    assert revision(world, 2)["rollout"]["reason"] == "LoadFailed"
    # Reverting heals.
    world.edit(serving__replicas=2, **changes)
    world.settle()
    assert world.condition("Ready")["status"] == "True"
    assert world.condition("Degraded")["status"] == "False"


def test_the_first_policy_has_nothing_to_go_back_to() -> None:
    world = World()
    world.corrupt.add(new_digest(world))
    for _ in range(20):
        world.get_on()
    assert world.condition("Ready")["reason"] == "LoadFailed"
    assert told(world)[0] == new_digest(world)
    world.corrupt.clear()
    world.settle()
    assert world.condition("Ready")["status"] == "True"


@pytest.mark.parametrize("changes", [{}, CANARY], ids=["direct", "canary"])
def test_replicas_that_do_not_get_on_are_waited_for_until_the_deadline(changes: dict[str, Any]) -> None:
    changes = {**changes, "rollout__progressDeadlineSeconds": 60}
    world = served(**changes)
    first = told(world)[0]
    world.edit(serving__replicas=2, training__seed=2, **changes)
    while "candidate" not in world.status:
        world.get_on()
    for _ in range(14):
        world.now += timedelta(seconds=5)
        world.reconcile()
    assert told(world) == (first, None)
    assert revision(world, 2)["rollout"]["reason"] == "ProgressDeadlineExceeded"


def test_replicas_that_cannot_be_asked_are_no_reason_to_go_on_or_back() -> None:
    world = retrained(served(**CANARY), **CANARY)
    while "heldSince" not in world.status["candidate"]:
        world.get_on()
    world.unreachable = True
    for _ in range(200):
        world.now += timedelta(seconds=5)
        world.reconcile()
    assert told(world)[1] == 10
    assert world.condition("Ready")["status"] == "Unknown"
    world.settle()
    assert told(world) == (new_digest(world), None)


def test_a_promotion_skips_the_steps_that_are_left_and_an_abort_brings_the_old_policy_back() -> None:
    world = retrained(served(**CANARY), **CANARY)
    request(world, "promote")
    plan = world.get_on()
    assert told(world) == (new_digest(world), None)
    assert "ada has promoted it past the steps that were left" in " ".join(event.message for event in plan.events)
    world.settle()
    assert world.condition("Ready")["status"] == "True"
    assert world.status["lastHandledRequests"]["promote"] == "promote"


def test_a_revision_that_was_rolled_back_can_be_promoted() -> None:
    world = served(**CANARY)
    world.edit(serving__replicas=2, training__seed=2, **CANARY)
    world.faulty.add(new_digest(world))
    world.settle()
    request(world, "promote", revision=2)
    world.settle()
    assert told(world) == (new_digest(world), None)
    assert world.condition("Degraded")["status"] == "False"


def test_a_request_without_a_rollout_is_refused_in_words() -> None:
    world = served()
    request(world, "abort")
    plan = world.get_on()
    assert [event.message for event in plan.events if event.reason == "RequestRefused"] == ["there is no rollout to promote or to abort"]
    world.settle()
    assert world.condition("Ready")["status"] == "True"


def test_an_edit_in_the_middle_drops_the_candidate_and_a_revert_heals() -> None:
    world = served(**CANARY)
    first = told(world)[0]
    retrained(world, **CANARY)
    world.edit(serving__replicas=2, training__seed=4, **CANARY)
    world.reconcile()
    assert told(world) == (first, None)
    assert "candidate" not in world.status
    world.edit(serving__replicas=2, **CANARY)
    world.settle()
    assert told(world) == (first, None)
    assert world.condition("Ready")["status"] == "True"


def test_a_status_that_was_lost_goes_on_at_the_step_that_the_replicas_are_at() -> None:
    world = retrained(served(**CANARY), **CANARY)
    while told(world)[1] != 50:
        world.get_on()
    world.status["candidate"] = None
    world.status = {key: value for key, value in world.status.items() if value}
    world.reconcile()
    assert told(world)[1] == 50
    assert (world.status["candidate"]["stage"], world.status["candidate"]["step"]) == (2, 2)


def test_a_pause_stops_a_canary_where_it_is() -> None:
    world = retrained(served(**CANARY), **CANARY)
    world.edit(serving__replicas=2, training__seed=2, paused=True, **CANARY)
    for _ in range(40):
        world.get_on()
    assert told(world)[1] == 10
    assert world.condition("Progressing")["reason"] == "Paused"
    world.edit(serving__replicas=2, training__seed=2, **CANARY)
    world.settle()
    assert told(world) == (new_digest(world), None)


def test_a_pinned_revision_is_served_at_once_and_what_is_trained_waits() -> None:
    world = served()
    first = told(world)[0]
    world.edit(serving__replicas=2, training__seed=2)
    world.settle()
    second = told(world)[0]
    world.edit(serving__replicas=2, training__seed=2, servedRevision=1)
    world.settle()
    assert told(world) == (first, None)
    assert world.condition("Ready")["status"] == "True"
    world.edit(serving__replicas=2, training__seed=4, servedRevision=1)
    world.settle()
    assert told(world) == (first, None)
    assert len(world.status["revisions"]) == 3
    world.edit(serving__replicas=2, training__seed=2)
    world.settle()
    assert told(world) == (second, None)


def pinned(world: World, number: int) -> None:
    world.edit(serving__replicas=2, training__seed=2, servedRevision=number)


def two_served() -> tuple[World, str, str]:
    """A world in which revision 2 has taken the place of revision 1, and the digests of both."""
    world = served()
    first = told(world)[0]
    world.edit(serving__replicas=2, training__seed=2)
    world.settle()
    second = told(world)[0]
    assert first
    assert second
    return world, first, second


def test_a_pinned_revision_that_replicas_refuse_is_tried_once_and_again_when_somebody_promotes_it() -> None:
    world, first, second = two_served()
    world.corrupt.add(first)
    pinned(world, 1)
    world.settle()
    assert told(world) == (second, None)
    assert world.condition("Degraded")["reason"] == "RolledBack"
    assert "DigestMismatch" in world.condition("Degraded")["message"]
    world.corrupt.clear()
    request(world, "promote")
    world.settle()
    assert told(world) == (first, None)
    assert world.condition("Ready")["status"] == "True"


def test_an_abort_of_a_pin_stays_and_a_pin_of_what_was_aborted_by_its_steps_is_tried() -> None:
    world, _, second = two_served()
    pinned(world, 1)
    world.until(lambda: "candidate" in world.status)
    request(world, "abort")
    world.settle()
    assert told(world) == (second, None)
    assert world.condition("Degraded")["reason"] == "Aborted"
    world = retrained(served(**CANARY), **CANARY)
    request(world, "abort")
    world.settle()
    assert revision(world, 2)["rollout"]["outcome"] == "Aborted"
    world.edit(serving__replicas=2, training__seed=2, servedRevision=2, **CANARY)
    world.settle()
    assert told(world) == (new_digest(world), None)


def test_a_pinned_bundle_that_is_gone_is_told_so_while_it_is_waited_for_and_at_the_end() -> None:
    world, first, second = two_served()
    world.lost.add(first)
    pinned(world, 1)
    world.until(lambda: "there is no manifest.json" in world.condition("Ready")["message"])
    world.settle(rounds=200)
    assert told(world) == (second, None)
    assert revision(world, 1)["rollout"]["reason"] == "ProgressDeadlineExceeded"
    assert "looked for it: there is no manifest.json" in world.condition("Degraded")["message"]


@pytest.mark.parametrize(("pin", "reason"), [(7, "NoSuchRevision"), (2, "RevisionNotApproved")])
def test_a_pin_to_what_may_not_be_served_changes_nothing(pin: int, reason: str) -> None:
    world = served()
    first = told(world)[0]
    world.edit(serving__replicas=2, training__seed=1, servedRevision=pin)
    world.settle()
    assert told(world) == (first, None)
    assert world.condition("Ready")["reason"] == reason
    assert world.condition("Ready")["message"].startswith("spec.servedRevision: ")
    assert world.condition("Available")["status"] == "True"


def test_a_change_of_the_pods_lets_a_change_of_policy_wait() -> None:
    world = retrained(served(**CANARY), **CANARY)
    world.edit(serving__replicas=2, serving__image="mine:2", training__seed=2, **CANARY)
    world.reconcile()
    before = told(world)
    for _ in range(20):
        world.now += timedelta(seconds=5)
        world.reconcile()
    assert told(world) == before
    world.settle()
    assert told(world) == (new_digest(world), None)


def without_room(world: World) -> World:
    """The same world, whose user asks in the middle of a canary for pods that no node has room for."""
    world.free = (Capacity("node-1", {"cpu": 0.1, "memory": 1.0, "pods": 90}),)
    world.edit(serving__replicas=2, serving__image="mine:2", training__seed=2, **CANARY)
    return world


def test_a_candidate_that_fails_is_rolled_back_although_changed_pods_wait_for_room() -> None:
    world = served(**CANARY)
    first = told(world)[0]
    retrained(world, **CANARY)
    without_room(world)
    assert world.reconcile().requeue_after_s == 1, "another problem makes nobody look at it less often"
    world.faulty.add(new_digest(world))
    world.settle()
    assert told(world) == (first, None)
    assert revision(world, 2)["rollout"]["reason"] == "TooManyErrors"


def test_a_rollout_goes_on_while_changed_pods_wait_for_room_and_the_pods_change_when_there_is_some() -> None:
    world = without_room(retrained(served(**CANARY), **CANARY))
    world.until(lambda: told(world) == (new_digest(world), None))
    world.settle()
    assert (world.condition("Ready")["reason"], world.condition("Degraded")["reason"]) == ("NoCapacity", "NoCapacity")
    world.free = None
    world.settle()
    assert world.condition("Ready")["status"] == "True"
    assert told(world) == (new_digest(world), None)


def test_a_step_begins_anew_in_the_replicas_of_a_second_cluster() -> None:
    world = retrained(served(**CANARY), **CANARY)
    world.until(lambda: "heldSince" in world.status["candidate"])
    world.edit(serving__replicas=2, serving__image="mine:2", training__seed=2, **CANARY)
    seen = set()
    for _ in range(50):
        world.now += timedelta(seconds=1)
        world.reconcile()
        candidate = world.status["candidate"]
        assert "heldSince" not in candidate
        assert (world.now - datetime.fromisoformat(candidate["since"])).total_seconds() <= 10
        seen.add(candidate["since"])
    assert len(seen) <= 6, "each is a write"


def test_an_abort_while_the_pods_change_waits_and_is_not_lost() -> None:
    world = retrained(served(**CANARY), **CANARY)
    first = told(world)[0]
    world.edit(serving__replicas=2, serving__image="mine:2", training__seed=2, **CANARY)
    world.reconcile()
    request(world, "abort")
    plan = world.reconcile()
    assert not [event for event in plan.events if event.reason == "RequestRefused"]
    assert "abort" not in world.status.get("lastHandledRequests", {})
    world.settle()
    assert told(world) == (first, None)
    assert revision(world, 2)["rollout"]["outcome"] == "Aborted"


def test_returns_are_looked_at_once_a_step_however_long_its_requests_are_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = []
    monkeypatch.setattr(analysis, "returns", lambda *_: looks.append(1))
    changes = {**CANARY, "rollout__analysis": {"minRequests": 2500}}
    world = retrained(served(**changes), **changes)
    for _ in range(20):
        world.get_on()
    assert (told(world)[1], looks) == (10, [])
    world.edit(serving__replicas=2, training__seed=2, **CANARY)
    world.settle()
    assert len(looks) == 2


@pytest.mark.parametrize(("way", "weight"), [(CANARY, 10), (SHADOW, 0)], ids=["canary", "shadow"])
def test_a_candidate_without_the_requests_that_it_needs_waits_and_then_goes_back(way: dict[str, Any], weight: int) -> None:
    changes = {**way, "rollout__progressDeadlineSeconds": 60, "rollout__analysis": {"minRequests": 2500}}
    world = retrained(served(**changes), **changes)
    for _ in range(8):
        world.get_on()
    assert told(world)[1] == weight
    world.settle()
    assert revision(world, 2)["rollout"]["reason"] == "TooFewRequests"
