"""Conditions in time, the phase, events, and the form of the status in the API."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import jsonschema
import pytest

from controller import schema, status
from controller.model import (
    CandidateStatus,
    Condition,
    Evaluation,
    Event,
    FoundBy,
    Images,
    Problem,
    Progress,
    Revision,
    RolloutEnd,
    ScheduleStatus,
    SearchStatus,
    ServingStatus,
    Status,
    TrainingStatus,
    TrialStatus,
    UndoneSwitch,
)
from controller.spec import Trigger

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
LONG_AGO = "2025-01-01T00:00:00Z"

FULL = Status(
    observed_generation=3,
    phase="Training",
    url="http://cartpole.localhost/cartpole-ppo",
    images=Images("train:1", "serve:1"),
    conditions=(
        Condition("Ready", "False", "Training", "at work", LONG_AGO, 3),
        Condition("Available", "True", "PolicyAnswers", "", LONG_AGO, 3),
    ),
    training=TrainingStatus("cartpole-train-1", "1", 2, LONG_AGO, Progress(3, 3072, 61.2, 12.5, 40.0, 5.5, 2000.0)),
    serving=ServingStatus("sha256:ab", 1, 480.0, 2, 3, "file:///b"),
    undone_switch=UndoneSwitch("ab", "ProgressDeadlineExceeded", "the image cannot be pulled", 1),
    candidate=CandidateStatus(2, "sha256:cd", "Canary", 10, 1, 1, 2, "2026-01-01T00:00:00Z", "2026-01-01T00:00:05Z"),
    revisions=(
        Revision(
            1, "sha256:ab", "file:///a", "r1", LONG_AGO, "train:1", 0, 1000, None, "Pass", Evaluation("e", 480.0, 1.5, 100, 1000, 479.7)
        ),
        Revision(
            3,
            "sha256:ef",
            "file:///c",
            "r3",
            parent=1,
            trigger=Trigger("Request", "r1", "a", 1, user="alice"),
            config_hash="sha256:01",
            retention="Pruned",
        ),
        Revision(2, "sha256:cd", "file:///b", "r2", rollout=RolloutEnd("RolledBack", "t", "TooSlow", "an inference takes it 20 ms")),
    ),
)
ROUND_TRIPS = {
    "nothing": Status(),
    "everything": FULL,
    "a training that has said nothing": replace(FULL, training=TrainingStatus("j", "r", 1, None, None)),
    "a training without a return": replace(FULL, training=TrainingStatus("j", "r", 1, None, Progress(1, 32, None, 0.5, None))),
    "a policy that is not ours": replace(FULL, serving=ServingStatus("sha256:zz", None, None, 0, 1)),
    "no candidate": replace(FULL, candidate=None),
    "a candidate that is held": replace(
        FULL, candidate=replace(FULL.candidate, failure=Problem("TooManyErrors", "it failed"), failed_trial="ab")
    ),
    "a search": replace(
        FULL,
        training=TrainingStatus(
            "j",
            "r",
            1,
            None,
            None,
            search=SearchStatus(
                2,
                (
                    TrialStatus(1, "Stopped", {"lr": 0.1, "fcnetHiddens": [64, 64]}, 1024, 20.5),
                    TrialStatus(2, "Finished", {"lr": 0.2}, 2048, 475.0),
                    TrialStatus(3, "Pending"),
                ),
            ),
        ),
        revisions=(replace(FULL.revisions[0], found_by=FoundBy(2, 3, 7, {"lr": 0.2})),),
    ),
    "a search that is told nothing of": replace(FULL, training=TrainingStatus("j", "r", 1, None, None, search=SearchStatus(None, ()))),
    "a schedule": replace(FULL, schedule=ScheduleStatus("0 3 * * *", "Etc/UTC", "2026-01-02T03:00:00Z", "2026-01-01T03:00:00Z")),
    "a schedule that has not come yet": replace(FULL, schedule=ScheduleStatus("0 3 * * *", "Etc/UTC", "2026-01-02T03:00:00Z")),
}

# Their keys are no fields of ours.
FREE_OBJECTS = {"config", "lastHandledRequests"}


@pytest.mark.parametrize("told", ROUND_TRIPS.values(), ids=ROUND_TRIPS)
def test_what_is_written_is_read_again(told):
    assert status.status_of(status.document_of(told)) == told


@pytest.mark.parametrize("told", ROUND_TRIPS.values(), ids=ROUND_TRIPS)
def test_what_was_read_is_written_the_same(told):
    document = status.document_of(told)
    assert status.document_of(status.status_of(document)) == document


@pytest.mark.parametrize("told", ROUND_TRIPS.values(), ids=ROUND_TRIPS)
def test_the_schema_takes_every_status(told):
    allowed = schema._strict(schema.schema()["properties"]["status"])
    jsonschema.validate(status.document_of(told), allowed)


def test_a_figure_of_the_time_left_survives_as_people_read_it():
    before = replace(FULL, training=TrainingStatus("j", "r", 1, None, Progress(1, 32, None, 33.4, 12.6)))
    document = status.document_of(before)
    assert document["training"]["progress"] == "33% 13s"
    assert status.status_of(document).training.progress.eta_s == 13.0
    assert status.document_of(status.status_of(document)) == document


def test_what_is_not_known_is_left_out():
    assert status.document_of(Status(observed_generation=1, phase="Pending")) == {
        "observedGeneration": 1,
        "phase": "Pending",
        "conditions": [],
        "revisions": [],
    }


def test_the_status_of_an_older_operator_is_read():
    condition = {"type": "Ready", "status": "True", "reason": "Serving", "message": "", "lastTransitionTime": LONG_AGO}
    found = status.status_of({"conditions": [condition], "serving": {"digest": "sha256:ab"}, "training": {"job": "j", "run": "r"}})
    assert found.conditions[0].observed_generation == 0
    assert found.serving == ServingStatus("sha256:ab", None, None, 0, 0)
    assert found.training == TrainingStatus("j", "r", 1, None, None)


@pytest.mark.parametrize("told", ROUND_TRIPS.values(), ids=ROUND_TRIPS)
def test_the_status_of_a_newer_operator_is_read(told):
    def newer(value):
        if isinstance(value, dict):
            return {key: item if key in FREE_OBJECTS else newer(item) for key, item in value.items()} | {"ofTomorrow": "x"}
        return [newer(item) for item in value] if isinstance(value, list) else value

    assert status.status_of(newer(status.document_of(told))) == told


def test_a_candidate_whose_revision_is_gone_is_none():
    assert status.status_of({"candidate": {"revision": 9, "digest": "sha256:zz"}}).candidate is None


def conditions(**given: str) -> tuple[Condition, ...]:
    """`Ready="True"` or `Progressing="True Training"`."""
    words = {"Accepted": "True", "Ready": "False", "Progressing": "False Idle", "Degraded": "False"} | given
    found = []
    for type_, said in words.items():
        value, _, reason = said.partition(" ")
        found.append(Condition(type_, value, reason or "Because", f"{type_} is {said}", LONG_AGO, 1))
    return tuple(found)


PHASES = {
    "Pending": {},
    "Ready": {"Ready": "True"},
    "Training": {"Progressing": "True Training"},
    "Evaluating": {"Progressing": "True Evaluating"},
    "RollingOut": {"Progressing": "True RollingOut"},
    "Degraded": {"Degraded": "True"},
    "Refused": {"Accepted": "False", "Degraded": "True"},
    "Paused": {"Progressing": "False Paused", "Ready": "True", "Degraded": "True", "Accepted": "False"},
}


@pytest.mark.parametrize(("word", "given"), PHASES.items(), ids=PHASES)
def test_the_phase_is_one_word_for_the_conditions(word, given):
    assert status.phase(conditions(**given)) == word


def test_what_answers_well_is_ready_though_something_is_wrong_beside_it():
    assert status.phase(conditions(Ready="True", Degraded="True")) == "Ready"


def test_what_gets_on_in_spite_of_a_problem_is_degraded():
    assert status.phase(conditions(Progressing="True Training", Degraded="True")) == "Degraded"


def test_a_condition_keeps_its_time_while_its_status_stays():
    before = Status(conditions=conditions(Ready="False"))
    kept, changed, new = status.dated(
        [
            Condition("Ready", "False", "Another", "reason"),
            Condition("Degraded", "True", "Bad", ""),
            Condition("Trained", "True", "New", ""),
        ],
        before,
        NOW,
        7,
    )
    assert kept.last_transition_time == LONG_AGO
    assert changed.last_transition_time == new.last_transition_time == "2026-01-02T03:04:05Z"
    assert {condition.observed_generation for condition in (kept, changed, new)} == {7}


def told(before: dict[str, str] | None, after: dict[str, str]) -> list[tuple[str, str]]:
    first = Status() if before is None else Status(conditions=conditions(**before))
    return [(event.type, event.reason) for event in status.events(first, Status(conditions=conditions(**after)))]


EVENTS = {
    "nothing is new": ({}, {}, []),
    "the spec is accepted at first": (None, {"Accepted": "True Accepted"}, [("Normal", "Accepted")]),
    "a refusal warns": ({}, {"Accepted": "False RayServiceInUse"}, [("Warning", "RayServiceInUse")]),
    "a problem warns": ({}, {"Degraded": "True GateFailed"}, [("Warning", "GateFailed")]),
    "another problem warns again": ({"Degraded": "True GateFailed"}, {"Degraded": "True OutOfMemory"}, [("Warning", "OutOfMemory")]),
    "the same problem does not": ({"Degraded": "True GateFailed"}, {"Degraded": "True GateFailed"}, []),
    "a problem that is gone is no event of its own": ({"Degraded": "True GateFailed"}, {"Degraded": "False AsExpected"}, []),
    "ready": ({"Ready": "False X"}, {"Ready": "True Serving"}, [("Normal", "Serving")]),
    "ready is not told by its reason": ({"Ready": "True Serving"}, {"Ready": "True Other"}, []),
    "not ready any more is told where it belongs": ({"Ready": "True Serving"}, {"Ready": "False RollingOut"}, []),
    "a rollout is told": ({"Progressing": "True Evaluating"}, {"Progressing": "True RollingOut"}, [("Normal", "RollingOut")]),
    "training is told by Trained": ({"Progressing": "False Idle"}, {"Progressing": "True Training"}, []),
    "what waits for another is told by that one": ({}, {"Approved": "False NotTrained"}, []),
    "an end of availability is a warning": (
        {"Available": "True PolicyAnswers"},
        {"Available": "False NoPolicy"},
        [("Warning", "NoPolicy")],
    ),
    "idle is no news": ({"Progressing": "True Training"}, {"Progressing": "False Idle"}, []),
}


@pytest.mark.parametrize(("before", "after", "wanted"), EVENTS.values(), ids=EVENTS)
def test_events_tell_what_is_new(before, after, wanted):
    assert told(before, after) == wanted


def test_two_conditions_that_say_the_same_are_told_once_and_as_a_warning():
    said = [Condition("Approved", "False", "GateFailed", "too little"), Condition("Degraded", "True", "GateFailed", "too little")]
    assert status.events(Status(), Status(conditions=tuple(said))) == (Event("Warning", "GateFailed", "too little"),)


def test_what_was_told_is_not_told_again_after_a_restart():
    assert status.events(status.status_of(status.document_of(FULL)), FULL) == ()


def test_a_refused_action_makes_the_status_degraded_and_leaves_the_rest():
    planned = Status(observed_generation=2, phase="Ready", conditions=conditions(Ready="False", Progressing="True Training"))
    failed = status.with_failure(planned, Status(), "ActionRefused", "Create Job x: quota", NOW)
    assert failed.condition("Degraded") == Condition("Degraded", "True", "ActionRefused", "Create Job x: quota", "2026-01-02T03:04:05Z", 2)
    assert failed.condition("Progressing") == planned.condition("Progressing")
    assert failed.phase == "Degraded"
    assert sorted(condition.type for condition in failed.conditions) == sorted(condition.type for condition in planned.conditions)


def test_an_action_that_is_refused_again_leaves_the_time_of_the_first_refusal():
    planned = Status(conditions=conditions())
    before = Status(conditions=conditions(Degraded="True ActionRefused"))
    failed = status.with_failure(planned, before, "ActionRefused", "quota", NOW)
    assert failed.condition("Degraded").last_transition_time == LONG_AGO


@pytest.mark.parametrize(
    ("percent", "eta_s", "text"), [(0.0, None, "0%"), (45.4, 12.2, "45% 12s"), (100.0, 0.0, "100% 0s")], ids=["no time", "both", "done"]
)
def test_progress_reads_as_people_say_it(percent, eta_s, text):
    assert status.progress_text(Progress(1, 1, None, percent, eta_s)) == text
