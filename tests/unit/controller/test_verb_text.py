"""What `status` says of a PolicyModel in each of its states, word by word; and the words for a terminal.

The states are those of the planner's world. Where the text is meant to change, `UPDATE_GOLDEN=1 pytest` of this file writes it anew.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from datetime import datetime, timedelta
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from fakes.world import World

from controller.verbs import play as verb_play
from controller.verbs import text as verb_text
from controller.verbs import view as verb_view
from controller.verbs.view import Invocation, View, view_of

GOLDEN = Path(__file__).parent / "golden_status"
CANARY = {"rollout__strategy": "Canary", "rollout__steps": [{"weight": 10, "seconds": 30}, {"weight": 50, "seconds": 30}]}
SHADOW = {"rollout__strategy": "Shadow", "rollout__steps": [{"seconds": 30}]}


def seen(world: World, invocation: Invocation | None = None) -> View:
    metadata = {"name": "cartpole", "namespace": "default", "generation": world.generation, "annotations": world.annotations}
    return view_of({"metadata": metadata, "spec": world.document["spec"], "status": world.status}, invocation or Invocation())


def served(**changes: Any) -> World:
    world = World()
    world.edit(serving__replicas=2, **changes)
    world.settle()
    return world


def at_step_1(**changes: Any) -> World:
    world = served()
    world.edit(serving__replicas=2, training__seed=2, **changes)
    while world.status.get("candidate", {}).get("step") != 1 or "heldSince" not in world.status["candidate"]:
        world.get_on()
    return world


def training() -> World:
    world = served()
    world.edit(serving__replicas=2, training__seed=2)
    world.reconcile()
    world.reconcile()
    progress = {"iteration": 12, "envSteps": 51200, "episodeReturnMean": 143.2, "progressPercent": 42, "progress": "42% 75s"}
    world.status["training"] |= {**progress, "attempt": 2, "episodeReturnStd": 20.25, "stepsPerSecond": 1800.4}
    return world


DRAWN = [{"lr": 0.0012, "fcnetHiddens": [64, 64]}, {"lr": 0.0003, "fcnetHiddens": [128, 128]}]


def searching() -> World:
    world = training()
    trials = [
        {"trial": 1, "state": "Finished", "config": DRAWN[0], "envSteps": 51200, "episodeReturnMean": 143.2},
        {"trial": 2, "state": "Stopped", "config": DRAWN[1], "envSteps": 7168, "episodeReturnMean": 22.8},
        {"trial": 3, "state": "Training", "config": DRAWN[1], "envSteps": 1024},
        {"trial": 4, "state": "Pending", "config": DRAWN[0], "envSteps": 0},
    ]
    world.status["training"]["search"] = {"best": 1, "trials": trials}
    return world


def failed() -> World:
    world = World()
    world.get_on()
    world.fail(next(iter(world.jobs)))
    world.reconcile()
    return world


def held_by_the_gate() -> World:
    world = served()
    world.edit(serving__replicas=2, training__seed=3)
    world.settle()
    world.now += timedelta(hours=2, minutes=5)
    return world


def held_at_its_step() -> World:
    world = at_step_1(**CANARY, rollout__onFail="Hold")
    world.faulty.add(world.status["candidate"]["digest"])
    world.get_on()
    world.get_on()
    return world


def rolled_back() -> World:
    world = at_step_1(**CANARY)
    world.faulty.add(world.status["candidate"]["digest"])
    world.settle()
    return world


def paused() -> World:
    world = at_step_1(**CANARY)
    world.edit(serving__replicas=2, training__seed=2, **CANARY, paused=True)
    world.ask("promote", revision=2)
    world.reconcile()
    return world


def pinned() -> World:
    world = served()
    world.edit(serving__replicas=2, training__seed=2, servedRevision=1)
    world.settle()
    return world


def pinned_to_nothing() -> World:
    world = served()
    world.edit(serving__replicas=2, servedRevision=7)
    world.reconcile()
    return world


def pinned_to_what_was_pruned() -> World:
    world = World()
    for seed in (0, 2, 6):
        world.edit(serving__replicas=2, training__seed=seed, storage__keepRevisions=1)
        world.settle()
    world.edit(serving__replicas=2, training__seed=6, storage__keepRevisions=1, servedRevision=1)
    world.reconcile()
    return world


def refused() -> World:
    world = served()
    world.edit(serving__replicas=2, environment__id=None, environment__entryPoint="other:Pong")
    world.reconcile()
    return world


def unreachable() -> World:
    world = served()
    world.unreachable = True
    world.reconcile()
    return world


def silent() -> World:
    world = served()
    world.rows = [None, None]
    world.reconcile()
    return world


def not_seen_yet() -> World:
    world = served()
    world.edit(serving__replicas=2, training__seed=2)
    return world


STATES: dict[str, Callable[[], World]] = {
    "new": World,
    "ready": served,
    "training": training,
    "searching": searching,
    "failed": failed,
    "held-by-the-gate": held_by_the_gate,
    "canary": lambda: at_step_1(**CANARY),
    "shadow": lambda: at_step_1(**SHADOW),
    "held-at-its-step": held_at_its_step,
    "rolled-back": rolled_back,
    "paused": paused,
    "pinned": pinned,
    "pinned-to-nothing": pinned_to_nothing,
    "pinned-to-what-was-pruned": pinned_to_what_was_pruned,
    "refused": refused,
    "unreachable": unreachable,
    "silent": silent,
    "not-seen-yet": not_seen_yet,
}


@cache
def state_of(name: str) -> tuple[View, datetime]:
    world = STATES[name]()
    return seen(world), world.now


@pytest.mark.parametrize("state", STATES)
def test_each_state_is_told_in_its_words(state: str) -> None:
    path, text = GOLDEN / f"{state}.txt", verb_text.status_text(*state_of(state), 110)
    if os.environ.get("UPDATE_GOLDEN"):
        path.write_text(text)
    assert text == path.read_text()


@pytest.mark.parametrize("width", [1, 60, 80, 200])
@pytest.mark.parametrize("state", STATES)
def test_lines_are_as_wide_as_the_terminal_but_for_commands_which_stay_whole(state: str, width: int) -> None:
    first, *lines = verb_text.status_text(*state_of(state), width).splitlines()
    long = [line for line in lines if len(line) > max(verb_text.LEAST_WIDTH, width)]
    assert first.startswith("default/cartpole")
    assert all(line.lstrip("│ ").startswith(("$ ", "http://", "sha256:")) or " " not in line[16:] for line in long), long


@pytest.mark.parametrize("state", STATES)
def test_something_comes_next_in_every_state(state: str) -> None:
    assert verb_view.advice(*state_of(state)).text


def test_every_golden_file_is_compared() -> None:
    assert {path.stem for path in GOLDEN.iterdir()} == set(STATES)


def test_a_schedule_tells_its_next_time() -> None:
    world = served(training__schedule={"cron": "0 3 * * *"})
    text = verb_text.status_text(seen(world), world.now, 110)
    assert "├─ schedule  · trains again at 2026-01-01T03:00:00Z, in 2 h" in text
    world.now += timedelta(hours=3)
    world.reconcile()
    text = verb_text.status_text(seen(world), world.now, 110)
    assert "trains again at 2026-01-02T03:00:00Z" in text
    assert "asked for by the schedule: training 2 of this spec" in text


def test_the_history_tells_which_trial_of_a_search_a_revision_is() -> None:
    world = served()
    assert "SEARCH" not in verb_text.history_text(seen(world))
    world.edit(serving__replicas=2, training__seed=2)
    world.settle()
    world.status["revisions"][-1]["search"] = {"trial": 2, "trials": 4, "seed": 7, "config": DRAWN[1]}
    head, first, second = verb_text.history_text(seen(world)).splitlines()
    at = head.index("SEARCH")
    assert first[at:].startswith("-")
    assert second[at:].startswith("trial 2 of 4: lr 0.0003, fcnetHiddens [128, 128]")
    view = seen(world)
    text = verb_text.revision_text(view, view.status.revisions[-1])
    assert "search         trial 2 of 4: lr 0.0003, fcnetHiddens [128, 128] (seed 7)\n" in text


def test_commands_that_are_shown_lead_to_the_same_place() -> None:
    world = held_by_the_gate()
    advice = verb_view.advice(seen(world, Invocation("policymodel", " -n rl --context prod")), world.now)
    commands = [command for command, _ in advice.commands]
    assert commands[0] == "policymodel approve cartpole -n rl --context prod --revision 2"
    assert commands[-1] == "kubectl edit policymodel cartpole -n rl --context prod"


def test_a_status_of_an_older_operator_and_a_spec_of_an_older_schema_are_told_all_the_same() -> None:
    world = served()
    document = {"metadata": {"name": "cartpole", "namespace": "default"}, "spec": {}, "status": world.status}
    text = verb_text.status_text(view_of(document, Invocation()), world.now, 110)
    assert "revision 1" in text


def test_a_write_that_the_api_server_refused_is_told() -> None:
    world = served()
    world.condition("Degraded").update(status="True", reason="ActionRefused", message="exceeded quota: pods")
    assert "trouble   ✗ ActionRefused (for 20 s): exceeded quota: pods" in verb_text.status_text(seen(world), world.now, 110)


def test_colours_change_no_word() -> None:
    text = verb_text.status_text(*state_of("ready"), 110)
    plain = verb_text.coloured(text)
    for code in ("\033[32m", "\033[1m", "\033[0m", "\033[33m", "\033[31m"):
        plain = plain.replace(code, "")
    assert plain == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(-1, "0 s"), (119, "119 s"), (120, "2 min"), (7199, "119 min"), (7500, "2 h 5 min"), (400000, "4 d")]
)
def test_times_are_told_as_people_tell_them(seconds: float, text: str) -> None:
    assert verb_view.span(seconds) == text


@pytest.mark.parametrize(("share", "text"), [(-1, "[----]"), (0.5, "[##--]"), (2, "[####]")])
def test_a_bar_is_never_more_than_full(share: float, text: str) -> None:
    assert verb_text.bar(share, 4) == text


def test_a_cart_is_drawn_where_it_is_and_its_pole_as_it_leans() -> None:
    upright, right, left = verb_play.cart(0, 0), verb_play.cart(2.4, 0.3), verb_play.cart(-99, -9)
    assert [line.index("|") for line in upright[:5]] == [24] * 5
    assert upright[5].index("[===]") == 22
    assert right[0].index("/") > right[4].index("/") > right[5].index("[")
    assert left[0].index("\\") == 0
    assert all(len(line) <= verb_play.TRACK for line in [*upright, *right, *left])


def test_any_other_observation_is_drawn_number_by_number() -> None:
    screen = verb_play.Screen(io.StringIO(), is_cartpole=False)
    step = {"step": 3, "observation": {"a": [1.0, -2.0], "b": True}, "action": [0.5], "reward": 1.0, "return": 3.0, "done": False}
    head, *rows = screen.frame(step, 2)
    assert head == "episode 2   step 3   action [0.5]   reward 1   return 3"
    assert [row.split()[1] for row in rows] == ["1.000", "-2.000", "1.000"]


def test_each_frame_is_drawn_over_the_one_before_and_the_last_of_an_episode_stays() -> None:
    out = io.StringIO()
    screen = verb_play.Screen(out, is_cartpole=True)
    step = {"step": 1, "observation": [0, 0, 0, 0], "action": 1, "reward": 1.0, "return": 1.0}
    for is_done in (False, True, False):
        screen.show({**step, "done": is_done}, 1)
    assert out.getvalue().count("\033[8A\033[J") == 1
