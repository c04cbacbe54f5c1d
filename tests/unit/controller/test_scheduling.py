"""When a schedule trains again, and when not, by a clock that the test sets."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from fakes.world import SETTINGS, World, document

from controller import names, reconcile, scheduling
from controller.model import Create
from controller.spec import Schedule, Trigger, spec_of

NIGHTLY = {"cron": "0 3 * * *"}
BEGIN = datetime(2026, 1, 1, 12, 0, 0, tzinfo=UTC)


def at(text: str) -> datetime:
    return datetime.fromisoformat(text).replace(tzinfo=UTC)


def ready(schedule: dict[str, Any] | None = None, **changes: Any) -> World:
    world = World(document(training__schedule=schedule or NIGHTLY, **changes), now=BEGIN)
    world.settle()
    assert world.condition("Ready")["status"] == "True"
    return world


def trainings(world: World) -> list[str]:
    return [name for name in world.created if "-train-" in name]


def told(world: World, moment: datetime) -> list[str]:
    """The schedule's events of one reconcile at a moment."""
    world.now = moment
    return [f"{event.type} {event.reason}" for event in world.reconcile().events if event.reason.startswith("Schedule")]


def test_a_schedule_that_is_new_trains_nothing_before_its_first_time():
    world = ready()
    assert len(trainings(world)) == 1
    assert world.status["schedule"] == {"cron": "0 3 * * *", "timeZone": "Etc/UTC", "nextTime": "2026-01-02T03:00:00Z"}


def test_a_time_that_has_come_trains_the_same_spec_again_from_another_seed():
    world = ready()
    assert told(world, at("2026-01-02T02:59:59")) == []
    assert told(world, at("2026-01-02T03:00:00")) == ["Normal ScheduleFired"]
    world.settle()
    first, second = world.status["revisions"]
    assert (first["seed"], second["seed"], "trigger" in first) == (0, 1, False)
    assert second["trigger"] == {"kind": "Schedule", "origin": first["run"], "id": "2026-01-02T03:00:00Z", "number": 1, "retrains": 0}
    assert (world.status["schedule"]["lastTime"], world.status["schedule"]["nextTime"]) == ("2026-01-02T03:00:00Z", "2026-01-03T03:00:00Z")
    # Odd seeds train badly: the policy before goes on serving.
    assert world.status["serving"]["revision"] == 1


def test_each_time_is_one_training():
    world = ready()
    for day in (2, 3, 4):
        told(world, at(f"2026-01-0{day}T03:00:05"))
        world.settle()
    assert len(trainings(world)) == 4
    assert [revision["seed"] for revision in world.status["revisions"]] == [0, 1, 2, 3]


def test_a_time_that_comes_while_a_training_runs_is_skipped_and_said():
    world = World(document(training__schedule={"cron": "* * * * *"}), now=BEGIN)
    world.reconcile()
    plan_at = BEGIN + timedelta(minutes=1)
    assert told(world, plan_at) == ["Normal ScheduleSkipped"]
    assert len(trainings(world)) == 1
    assert told(world, plan_at + timedelta(seconds=1)) == []
    assert "lastTime" not in world.status["schedule"]


def test_a_time_that_comes_while_a_policy_is_rolled_out_is_skipped():
    canary = {"strategy": "Canary", "steps": [{"weight": 10, "seconds": 600}]}
    world = ready(rollout=canary)
    world.edit(training__schedule=NIGHTLY, training__seed=2, rollout=canary)
    for _ in range(20):
        world.get_on()
    assert "candidate" in world.status
    assert told(world, at("2026-01-02T03:00:00")) == ["Normal ScheduleSkipped"]
    assert world.status["candidate"]["revision"] == 2


def test_a_failed_training_does_not_hinder_the_next_time():
    world = ready()
    told(world, at("2026-01-02T03:00:00"))
    world.fail(trainings(world)[-1])
    world.reconcile()
    assert told(world, at("2026-01-03T03:00:00")) == ["Normal ScheduleFired"]
    world.settle()
    assert world.status["revisions"][-1]["trigger"]["id"] == "2026-01-03T03:00:00Z"
    assert [revision["seed"] for revision in world.status["revisions"]] == [0, 2]


def test_of_the_times_that_an_operator_slept_through_the_last_one_is_caught_up_on():
    world = ready()
    assert told(world, at("2026-01-05T03:09:59")) == ["Normal ScheduleFired"]
    world.settle()
    assert world.status["revisions"][-1]["trigger"]["id"] == "2026-01-05T03:00:00Z"
    assert len(trainings(world)) == 2


def test_a_time_is_missed_after_the_deadline():
    world = ready({**NIGHTLY, "startingDeadlineSeconds": 60})
    assert told(world, at("2026-01-05T03:01:01")) == ["Warning ScheduleMissed"]
    assert world.status["schedule"]["nextTime"] == "2026-01-06T03:00:00Z"
    world.settle()
    assert len(trainings(world)) == 1


def test_a_pause_skips_and_catches_up_on_nothing():
    world = ready()
    world.edit(training__schedule=NIGHTLY, paused=True)
    assert told(world, at("2026-01-02T03:00:00")) == ["Normal ScheduleSkipped"]
    world.edit(training__schedule=NIGHTLY)
    assert told(world, at("2026-01-02T03:01:00")) == []
    assert len(trainings(world)) == 1


def test_a_time_that_was_before_an_edit_of_the_schedule_does_not_count():
    world = ready()
    world.edit(training__schedule={"cron": "0 11 * * *"})
    assert told(world, at("2026-01-01T12:05:00")) == []
    assert world.status["schedule"]["nextTime"] == "2026-01-02T11:00:00Z"


def test_without_a_schedule_there_is_none_in_the_status():
    world = ready()
    world.edit()
    world.settle()
    assert "schedule" not in world.status
    assert told(world, at("2026-01-02T03:00:00")) == []


def test_an_operator_that_dies_between_the_job_and_the_status_goes_on_with_the_job():
    world = ready()
    world.now = at("2026-01-02T03:00:00")
    world.reconcile(stop_after=1)
    assert (len(trainings(world)), "lastTime" in world.status["schedule"]) == (2, False)
    assert told(world, at("2026-01-02T03:00:20")) == ["Normal ScheduleFired"]
    world.settle()
    assert (len(trainings(world)), world.status["revisions"][-1]["trigger"]["id"]) == (2, "2026-01-02T03:00:00Z")


def test_a_request_goes_before_the_schedule():
    world = ready()
    world.ask(names.RETRAIN)
    assert told(world, at("2026-01-02T03:00:00")) == ["Normal ScheduleSkipped"]
    assert world.status["training"]["trigger"]["kind"] == "Request"


def test_the_next_look_is_just_after_the_next_time():
    world = ready()
    world.now = at("2026-01-02T02:59:50")
    assert 10 < world.reconcile().requeue_after_s < 11


@pytest.mark.parametrize(
    ("cron", "zone", "now", "expected"),
    [
        ("0 3 * * *", "Europe/Berlin", "2026-01-01T12:00:00", "2026-01-02T02:00:00Z"),
        ("0 3 * * *", "Europe/Berlin", "2026-07-01T12:00:00", "2026-07-02T01:00:00Z"),
        # The clock goes from 2 to 3: what would be in between comes right after.
        ("30 2 * * *", "Europe/Berlin", "2026-03-28T12:00:00", "2026-03-29T01:00:00Z"),
        # The clock goes from 3 back to 2: 2:30 is twice, and trained once.
        ("30 2 * * *", "Europe/Berlin", "2026-10-25T00:31:00", "2026-10-26T01:30:00Z"),
        ("30 2 * * *", "Europe/Berlin", "2026-10-25T01:10:00", "2026-10-26T01:30:00Z"),
        ("0 0 * * mon", "Etc/UTC", "2026-01-01T12:00:00", "2026-01-05T00:00:00Z"),
    ],
)
def test_times_are_those_of_the_time_zone(cron, zone, now, expected):
    seen = World(document(training__schedule={"cron": cron, "timeZone": zone}), now=at(now)).observe()
    told = scheduling.status(seen)
    assert told
    assert told.next_time == expected


@pytest.mark.parametrize(
    ("schedule", "field"),
    [
        (Schedule("0 25 * * *", "Etc/UTC", 60), "cron"),
        (Schedule("0 0 30 2 *", "Etc/UTC", 60), "cron"),
        (Schedule("0 0 * * *", "Europe/Atlantis", 60), "timeZone"),
        (Schedule("0 0 * * *", "Europe", 60), "timeZone"),
    ],
)
def test_a_schedule_that_names_no_time_is_refused_by_its_field(schedule, field):
    found = scheduling.problem(schedule)
    assert found
    assert found.reason == "InvalidSchedule"
    assert found.message.startswith(f"spec.training.schedule.{field}: ")


def test_a_schedule_that_cannot_be_followed_is_told_and_what_serves_serves_on():
    world = ready()
    world.edit(training__schedule={"cron": "61 * * * *"})
    world.settle()
    accepted = world.condition("Accepted")
    assert (accepted["status"], accepted["reason"]) == ("False", "InvalidSchedule")
    assert world.condition("Available")["status"] == "True"
    assert "schedule" not in world.status


def test_a_schedule_leaves_the_names_of_runs_as_they_were():
    assert spec_of(document(training__schedule=NIGHTLY)).run == spec_of(document()).run


def test_a_scheduled_job_has_the_seed_of_its_number():
    world = ready(training__seed=2)
    world.now = at("2026-01-02T03:00:00")
    (job,) = [action for action in reconcile.plan(world.observe(), SETTINGS).actions if isinstance(action, Create)]
    words = job.manifest["spec"]["template"]["spec"]["containers"][0]["args"]
    assert words[words.index("--seed") + 1] == "3"
    spec = world.observe().spec
    assert (
        job.manifest["metadata"]["labels"][names.LABEL_RUN]
        == replace(spec, trigger=Trigger("Schedule", spec.origin, "2026-01-02T03:00:00Z", 1)).run
    )
