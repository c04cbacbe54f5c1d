"""A serves, B is on its way, and the spec changes again: the table of docs/rollouts.md, row by row."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from fakes.world import World, digest

from controller import names, resources
from controller.spec import spec_of

PAGE = (Path(__file__).parent.parent.parent.parent / "docs/rollouts.md").read_text()
CANARY = {"rollout__strategy": "Canary", "rollout__steps": [{"weight": 10, "seconds": 30}, {"weight": 50, "seconds": 30}]}
A, B, B_BAD, C = 0, 2, 3, 4


def edit(world: World, seed: int, **changes: Any) -> str:
    """`kubectl apply` of the spec with this seed; gives the digest that its policy will have."""
    world.edit(serving__replicas=2, training__seed=seed, **{**CANARY, **changes})
    return digest(spec_of(world.document).run)


def told(world: World) -> tuple[str | None, str | None]:
    """The digests that are told to serve, and to be tried."""
    text = world.ray_service["spec"]["serveConfigV2"] if world.ray_service else ""
    policies = resources.served_policy(world.owner, text), resources.tried_policy(world.owner, text)
    serving, candidate = (policy["digest"] if policy else None for policy in policies)
    return serving, candidate


def training(world: World) -> None:
    edit(world, B)
    world.reconcile()
    world.reconcile()
    assert world.condition("Trained")["status"] == "False"


def at_its_gate(world: World) -> None:
    edit(world, B)
    world.get_on()
    world.get_on()
    edit(world, B, gate__seed=7)
    world.reconcile()
    assert world.condition("Approved")["reason"] == "Evaluating"


def held_by_its_gate(world: World) -> None:
    edit(world, B_BAD)
    world.settle()
    assert world.condition("Approved")["reason"] == "GateFailed"


def being_loaded(world: World) -> None:
    found = edit(world, B)
    world.until(lambda: told(world)[1] == found)
    assert world.status["candidate"]["step"] == 0


def at_a_step(world: World) -> None:
    edit(world, B)
    world.until_step(2)


def taking_over(world: World) -> None:
    found = edit(world, B)
    world.until(lambda: told(world) == (found, None))
    assert world.status["candidate"]["weight"] == 100


def rolled_back(world: World) -> None:
    world.faulty.add(edit(world, B))
    world.settle()
    assert world.condition("Degraded")["reason"] == "RolledBack"


def serving(world: World) -> None:
    edit(world, B)
    world.settle()
    assert world.condition("Ready")["status"] == "True"


ROWS = {
    "is trained": training,
    "is at its gate": at_its_gate,
    "is held by its gate": held_by_its_gate,
    "is being loaded": being_loaded,
    "is at a step": at_a_step,
    "takes over": taking_over,
    "was rolled back, or aborted": rolled_back,
    "serves": serving,
}
SERVES_ON = {"takes over", "serves"}


@pytest.fixture
def world() -> World:
    found = World()
    edit(found, A)
    found.settle()
    return found


def test_the_page_has_these_rows() -> None:
    assert re.findall(r"^\| B (.*?) \|", PAGE, re.M) == list(ROWS)


@pytest.mark.parametrize("row", ROWS)
def test_an_edit_drops_what_does_not_serve_and_ends_with_the_new_policy(world: World, row: str) -> None:
    first, second = told(world)[0], digest(spec_of(world.document).run)
    assert first == second
    ROWS[row](world)
    second = told(world)[0] if row in SERVES_ON else first
    third = edit(world, C)
    seen = []

    def is_over() -> bool:
        seen.append(told(world))
        return seen[-1][0] == third and world.condition("Ready")["status"] == "True"

    world.until(is_over)
    assert {serving for serving, _ in seen} == {second, third}
    # What was on its way is not tried any more, and the new one goes through its steps against what serves.
    assert {candidate for _, candidate in seen[2:]} <= {None, third}


@pytest.mark.parametrize("row", ROWS)
def test_a_revert_ends_with_the_first_policy_and_trains_nothing(world: World, row: str) -> None:
    first = told(world)[0]
    ROWS[row](world)
    second = told(world)[0]
    trained = [name for name in world.created if "-train-" in name]
    edit(world, A)
    world.get_on()
    if row in SERVES_ON:
        world.until(lambda: told(world) == (second, first))  # it goes through its steps as any other
    world.settle()
    assert told(world) == (first, None)
    assert world.condition("Ready")["status"] == "True"
    assert world.condition("Degraded")["status"] == "False"
    assert [name for name in world.created if "-train-" in name] == trained
    assert all(job.deleting or job.labels[names.LABEL_RUN] == world.run for job in world.jobs.values())
