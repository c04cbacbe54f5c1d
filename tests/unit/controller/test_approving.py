"""What the gate asks for and what follows from its verdict, one world at a time."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from fakes.world import SETTINGS, World, document

from controller import history, names, reconcile
from controller.model import Create, Plan
from controller.spec import spec_of
from controller.status import document_of, status_of

AGAINST = {"gate__againstServing": {"maxRegression": 10}, "gate__minReturn": 50}
# The seeds of `World`: odd ones train badly, the returns of 4 scatter.
GOOD, BAD, EQUAL, NOISY = 0, 1, 2, 4


def ready(**changes: Any) -> World:
    world = World(document(**changes))
    world.settle()
    assert world.condition("Ready")["status"] == "True"
    return world


def edited(world: World, **changes: Any) -> World:
    world.edit(**changes)
    world.settle()
    return world


def condition(world: World, type_: str) -> tuple[str, str]:
    found = world.condition(type_)
    return found["status"], found["reason"]


def trainings(world: World) -> list[str]:
    return [name for name in world.created if "-train-" in name]


def evaluations(world: World) -> list[str]:
    return [name for name in world.created if "-evaluate-" in name]


def last_revision(world: World) -> dict[str, Any]:
    return dict(world.status["revisions"][-1])


def told(world: World) -> list[str]:
    """What the diary says, from here on until the world is at rest."""
    said: list[str] = []
    for _ in range(20):
        plan = world.get_on()
        assert isinstance(plan, Plan)
        said += [f"{event.type} {event.reason}" for event in plan.events]
    return said


def flags_of(action: Create) -> str:
    return " ".join(action.manifest["spec"]["template"]["spec"]["containers"][0]["args"])


# Against the serving policy.


def test_the_first_policy_has_nothing_to_be_compared_with():
    world = ready(**AGAINST, training__seed=BAD)
    assert "against" not in last_revision(world)["evaluation"]
    assert evaluations(world) == []


def test_a_worse_policy_fails_against_the_serving_one_and_touches_nothing_that_serves():
    world = edited(ready(**AGAINST), **AGAINST, training__seed=BAD)
    assert condition(world, "Approved") == ("False", "GateFailed")
    assert condition(world, "Available") == ("True", "PolicyAnswers")
    assert (last_revision(world)["verdict"], world.status["serving"]["revision"]) == ("Fail", 1)
    against = last_revision(world)["evaluation"]["against"]
    assert (against["differenceMean"], against["margin"], against["mean"]) == (-400.0, 10, 500.0)
    assert "kubectl policymodel approve cartpole --revision 2" in world.condition("Approved")["message"]


def test_the_training_job_compares_right_after_publishing():
    world = ready(**AGAINST)
    world.edit(**AGAINST, training__seed=EQUAL)
    world.settle()
    assert condition(world, "Ready") == ("True", "Serving")
    assert evaluations(world) == []


def test_an_equal_policy_passes_and_keeps_its_verdict_when_it_serves_itself():
    world = edited(ready(**AGAINST), **AGAINST, training__seed=EQUAL)
    first, *_ = world.status["revisions"]
    assert (last_revision(world)["verdict"], world.status["serving"]["revision"]) == ("Pass", 2)
    assert last_revision(world)["evaluation"]["against"]["digest"] == first["digest"]
    assert world.settle()[-1].actions == ()


def test_a_changed_margin_is_judged_anew_without_an_evaluation():
    world = edited(ready(**AGAINST), **AGAINST, training__seed=BAD)
    edited(world, **{**AGAINST, "gate__againstServing": {"maxRegression": 450}}, training__seed=BAD)
    assert condition(world, "Approved") == ("True", "GatePassed")
    assert (evaluations(world), len(trainings(world))) == ([], 2)


def test_a_comparison_that_is_asked_for_later_is_made_in_a_job_of_its_own_and_trains_nothing():
    world = edited(ready(), gate__minReturn=475, training__seed=BAD)
    edited(world, **AGAINST, training__seed=BAD)
    assert last_revision(world)["verdict"] == "Fail"
    assert (len(evaluations(world)), len(trainings(world))) == (1, 2)


def test_another_incumbent_compares_anew_in_a_job_of_its_own_and_trains_nothing():
    world = edited(ready(**AGAINST), **AGAINST, training__seed=EQUAL)
    edited(world, **AGAINST, training__seed=GOOD)
    assert world.status["serving"]["revision"] == 1
    assert (len(evaluations(world)), len(trainings(world))) == (1, 2)
    compared = world.status["revisions"][0]["evaluation"]["against"]["digest"]
    assert compared == world.status["revisions"][1]["digest"]


def test_a_better_policy_that_is_reverted_to_a_worse_one_is_held():
    asked = {"gate__againstServing": {"maxRegression": 10}, "gate__minReturn": 50}
    world = edited(ready(**asked, training__seed=BAD), **asked, training__seed=GOOD)
    edited(world, **asked, training__seed=BAD)
    assert condition(world, "Approved") == ("False", "GateFailed")
    assert world.status["serving"]["revision"] == 2


def test_an_incumbent_that_cannot_be_played_blocks_nothing_and_is_told():
    world = ready(**AGAINST)
    world.lose(world.run)
    edited(world, **AGAINST, training__seed=EQUAL)
    assert condition(world, "Ready") == ("True", "Serving")
    assert world.status["serving"]["revision"] == 2
    assert "Missing" in last_revision(world)["evaluation"]["against"]["problem"]
    assert "could not be played, so they are not compared" in world.condition("Approved")["message"]


def test_each_comparison_has_seeds_of_its_own_and_the_gate_without_one_keeps_those_that_it_names():
    spec = spec_of(document(**AGAINST))
    seeds = {look[0].seed for look in (spec.looks("a"), spec.looks("a", "x"), spec.looks("b", "x"), spec.looks("a", "y"))}
    assert (spec.looks("a")[0].seed, len(seeds)) == (1000, 4)
    assert {look.seed for look in spec.looks("a", "x")} == {spec.looks("a", "x")[0].seed}, "a further look goes on where the last one ended"


# Looks.


def test_while_the_gate_cannot_tell_it_looks_again_at_twice_as_many_episodes():
    world = ready(gate__maxEpisodes=400, training__seed=NOISY)
    assert (last_revision(world)["verdict"], last_revision(world)["evaluation"]["episodes"]) == ("Pass", 200)
    assert (len(evaluations(world)), len(trainings(world))) == (1, 1)
    assert all("-train-" in name for name in world.jobs), "the Job of the evaluation goes"


def test_at_the_limit_an_inconclusive_policy_is_held_and_told_what_to_do():
    world = World(document(gate__minReturn=495, gate__maxEpisodes=400, training__seed=NOISY))
    world.settle()
    assert condition(world, "Approved") == ("False", "GateInconclusive")
    assert (last_revision(world)["verdict"], last_revision(world)["evaluation"]["episodes"]) == ("Inconclusive", 400)
    assert "spec.gate.maxEpisodes" in world.condition("Approved")["message"]
    assert len(evaluations(world)) == 2


def test_a_raised_limit_goes_on_from_the_last_look():
    world = World(document(gate__minReturn=480, gate__maxEpisodes=200, training__seed=NOISY))
    world.settle()
    edited(world, gate__minReturn=480, gate__maxEpisodes=400, training__seed=NOISY)
    assert (last_revision(world)["verdict"], len(trainings(world))) == ("Pass", 1)


def test_figures_of_a_further_look_that_was_not_asked_for_are_not_taken():
    """An image of its user's may say any; what was evaluated well stays, and the looks do not begin again."""
    world = World(document(gate__minReturn=495, gate__maxEpisodes=200, training__seed=NOISY))
    while not evaluations(world):
        world.get_on()
    (name,) = evaluations(world)
    world.finish(name)
    seen = world.observe()
    (job,) = [job for job in seen.jobs if job.name == name]
    lying = replace(job, result={**job.result, "evaluation": {**job.result["evaluation"], "seed": 5}})
    planned = reconcile.plan(replace(seen, jobs=(*[other for other in seen.jobs if other.name != name], lying)), SETTINGS)
    assert planned.status.condition("Approved").reason == "NoResult"
    assert planned.status.revisions[-1].evaluation.episodes == 100
    assert planned.actions == ()


# Another training.


def test_without_being_asked_a_failed_gate_trains_nothing():
    world = edited(ready(), training__seed=BAD)
    assert len(trainings(world)) == 2
    assert condition(world, "Degraded") == ("True", "GateFailed")


def test_a_failed_gate_trains_again_from_another_seed_where_it_is_asked_to():
    world = edited(ready(), training__seed=BAD, gate__onFail="Retrain")
    assert condition(world, "Ready") == ("True", "Serving")
    assert [revision.get("verdict") for revision in world.status["revisions"]] == ["Pass", "Fail", "Pass"]
    trigger = {"kind": "Gate", "origin": world.status["revisions"][1]["run"], "number": 1, "retrains": 1}
    assert world.status["training"]["trigger"] == {**trigger, "id": trigger["origin"]}
    assert (last_revision(world)["seed"], last_revision(world)["trigger"]) == (BAD + 1, world.status["training"]["trigger"])


def test_it_trains_again_a_bounded_number_of_times_and_what_serves_goes_on():
    world = edited(ready(), gate__minReturn=900, gate__onFail="Retrain", gate__maxRetrains=3, training__seed=BAD)
    assert len(trainings(world)) == 1 + 1 + 3
    assert condition(world, "Approved") == ("False", "GateFailed")
    assert condition(world, "Available") == ("True", "PolicyAnswers")
    assert world.status["serving"]["revision"] == 1
    edited(world, gate__minReturn=900, gate__onFail="Retrain", gate__maxRetrains=4, training__seed=BAD)
    assert len(trainings(world)) == 1 + 1 + 4


def test_a_gate_that_asks_for_less_takes_any_of_the_policies_that_it_had_trained():
    asked = {"gate__onFail": "Retrain", "gate__maxRetrains": 1}
    world = World(document(gate__minReturn=600, **asked))
    world.settle()
    assert [revision["verdict"] for revision in world.status["revisions"]] == ["Fail", "Fail"]
    edited(world, gate__minReturn=475, gate__episodes=50, **asked)
    assert (condition(world, "Ready")[0], world.status["serving"]["revision"]) == ("True", 1)
    assert len(trainings(world)) == 2


def test_a_request_whose_policy_is_refused_is_not_forgotten_for_an_older_one():
    world = ready()
    world.ask(names.RETRAIN)
    world.settle()
    edited(world, gate__episodes=50)
    assert condition(world, "Approved") == ("False", "GateFailed")
    assert last_revision(world)["verdict"] == "Fail"


def test_each_training_of_a_spec_has_a_seed_of_its_own():
    world = World(document(gate__minReturn=900, gate__onFail="Retrain", gate__maxRetrains=1))
    world.settle()
    world.ask(names.APPROVE, revision=1)
    world.settle()
    world.ask(names.RETRAIN)
    world.settle()
    assert [revision["seed"] for revision in world.status["revisions"]] == [0, 1, 2, 3]


def test_what_the_gate_cannot_tell_trains_again_too():
    world = World(document(gate__minReturn=495, training__seed=NOISY, gate__onFail="Retrain", gate__maxRetrains=2))
    world.settle()
    assert [revision["verdict"] for revision in world.status["revisions"]] == ["Inconclusive", "Fail", "Pass"]


def test_a_spec_that_is_taken_back_and_asked_for_again_trains_nothing_anew():
    world = edited(ready(), training__seed=BAD, gate__onFail="Retrain")
    edited(world)
    assert (world.status["serving"]["revision"], world.status.get("training")) == (1, None)
    edited(world, training__seed=BAD, gate__onFail="Retrain")
    assert (world.status["serving"]["revision"], len(trainings(world))) == (3, 3)


def test_a_request_trains_once_more_from_another_seed_and_is_acknowledged():
    world = ready()
    world.ask(names.RETRAIN)
    said = told(world)
    assert world.status["lastHandledRequests"] == {"retrain": "request-1"}
    assert (len(trainings(world)), last_revision(world)["seed"]) == (2, 1)
    assert said[0] == "Normal RetrainRequested"
    # From seed 0 to seed 1, which trains badly.
    assert condition(world, "Approved") == ("False", "GateFailed")
    assert (condition(world, "Available")[0], world.status["serving"]["revision"]) == ("True", 1)


def test_a_request_begins_a_new_count_of_what_the_gate_may_ask_for():
    asked = {"gate__minReturn": 900, "gate__onFail": "Retrain", "gate__maxRetrains": 1}
    world = edited(ready(), **asked)
    assert len(trainings(world)) == 2
    world.ask(names.RETRAIN)
    world.settle()
    assert len(trainings(world)) == 4
    assert [revision["seed"] for revision in world.status["revisions"]] == [0, 1, 2, 3]


def test_a_request_is_acted_on_once_whatever_is_lost_on_the_way():
    world = ready()
    world.ask(names.RETRAIN)
    for _ in range(3):
        world.reconcile(stop_after=1)
    world.settle()
    assert len(trainings(world)) == 2
    assert world.settle()[-1].actions == ()


def test_a_run_that_failed_its_training_leaves_what_serves():
    world = ready()
    world.ask(names.RETRAIN)
    world.reconcile()
    world.fail(trainings(world)[-1])
    world.settle()
    assert condition(world, "Trained") == ("False", "TrainingDiverged")
    assert world.status["serving"]["revision"] == 1
    edited(world, training__seed=EQUAL)
    assert condition(world, "Ready")[0] == "True"


def test_a_pause_lets_requests_wait():
    world = ready()
    world.edit(paused=True)
    world.ask(names.RETRAIN)
    world.settle()
    assert (len(trainings(world)), world.status.get("lastHandledRequests")) == (1, None)
    edited(world)
    assert len(trainings(world)) == 2


def test_the_first_training_of_a_spec_bears_no_trace_of_triggers():
    seen = World().observe()
    (action,) = [action for action in reconcile.plan(seen, SETTINGS).actions if isinstance(action, Create)]
    assert action.name == f"cartpole-train-{seen.spec.origin}"
    assert "--seed 0" in flags_of(action)


# By somebody's word.


def test_an_approval_overrides_the_gate_and_is_recorded_and_shown():
    world = edited(ready(**AGAINST), **AGAINST, training__seed=BAD)
    world.ask(names.APPROVE, revision=2)
    said = told(world)
    assert condition(world, "Ready") == ("True", "Serving")
    assert condition(world, "Approved") == ("True", "GateOverridden")
    assert last_revision(world)["approval"] == {"user": "alice", "time": "2026-01-01T00:00:00Z"}
    assert (last_revision(world)["verdict"], world.status["serving"]["revision"]) == ("Fail", 2)
    assert "approved by alice at 2026-01-01T00:00:00Z, whatever the gate says (Fail: mean" in world.condition("Approved")["message"]
    assert said[:2] == ["Normal RevisionApproved", "Normal GateOverridden"]
    assert world.status["lastHandledRequests"] == {"approve": "request-1"}


def test_an_approved_policy_stays_approved_under_another_gate():
    world = edited(ready(**AGAINST), **AGAINST, training__seed=BAD)
    world.ask(names.APPROVE, revision=2)
    edited(world, gate__minReturn=900, gate__episodes=50, training__seed=BAD)
    assert condition(world, "Ready") == ("True", "Serving")
    assert evaluations(world) == []


def test_an_approval_stops_the_training_that_would_replace_the_policy():
    world = ready()
    world.edit(training__seed=BAD, gate__onFail="Retrain")
    while len(trainings(world)) < 3:
        world.get_on()
    world.ask(names.APPROVE, revision=2)
    world.settle()
    assert (world.status["serving"]["revision"], world.status.get("training")) == (2, None)


@pytest.mark.parametrize("number", [0, 9])
def test_an_approval_of_what_is_not_there_is_refused_once(number):
    world = ready()
    world.ask(names.APPROVE, revision=number)
    said = told(world)
    assert said == ["Warning RequestRefused"]
    assert world.status["lastHandledRequests"] == {"approve": "request-1"}


def test_an_annotation_that_cannot_be_read_is_refused_once():
    world = ready()
    world.annotations[names.request_annotation(names.APPROVE)] = "yes"
    assert told(world) == ["Warning RequestRefused"]


def test_what_the_gate_has_found_survives_the_api_server():
    world = edited(ready(**AGAINST), **AGAINST, training__seed=BAD)
    world.ask(names.APPROVE, revision=2)
    world.ask(names.RETRAIN)
    world.settle()
    status = status_of(world.status)
    assert all([status.revisions[1].approval, status.revisions[1].evaluation.against, status.training.trigger])
    assert document_of(status) == world.status


def test_a_status_that_was_lost_finds_the_gate_where_it_was():
    world = edited(ready(**AGAINST), **AGAINST, training__seed=BAD)
    world.status = {}
    world.settle()
    assert condition(world, "Approved") == ("False", "GateFailed")
    assert condition(world, "Ready")[0] == "False"
    assert history.opponent(world.observe(), None) == world.served[-1]
