"""Which revisions are let go, when, and what is left of them."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from fakes.world import SETTINGS, World, digest, document

from controller import names, observation, reconcile, words
from controller.model import Create, Delete, Observed, Plan, Problem, Unknown

# All of them train well.
SEEDS = [0, 2, 6, 8, 10, 12]


def trained(*seeds: int, **changes: Any) -> World:
    """A world at rest that has trained and served these seeds, one after the other."""
    world = World(document(training__seed=seeds[0], **changes))
    world.settle()
    for seed in seeds[1:]:
        world.edit(training__seed=seed, **changes)
        world.settle()
    return world


def plan(seen: Observed) -> Plan:
    return reconcile.plan(seen, SETTINGS)


def kept(world: World) -> list[int]:
    return [revision["number"] for revision in world.status["revisions"] if "retention" not in revision]


def prunes(planned: Plan) -> list[str]:
    """The digests that a plan asks to remove."""
    jobs = [action.manifest["metadata"] for action in planned.actions if isinstance(action, Create) and "-prune-" in action.name]
    return [found for metadata in jobs for found in observation.prunes(metadata)]


def due(**changes: Any) -> Observed:
    """Two revisions of which the second serves, seen when only one is to be kept."""
    world = trained(0, 2)
    world.edit(training__seed=2, storage__keepRevisions=1, **changes)
    return world.observe()


def pruning(world: World) -> str:
    """The name of the prune Job, which is asked for now."""
    world.reconcile()
    return next(name for name in world.jobs if "-prune-" in name)


def test_the_newest_are_kept_and_the_others_go_with_their_bundles():
    world = trained(*SEEDS, storage__keepRevisions=2)
    assert kept(world) == [5, 6]
    assert [revision["number"] for revision in world.status["revisions"]] == [1, 2, 3, 4, 5, 6]
    assert {revision["digest"] for revision in world.status["revisions"] if "retention" in revision} == world.lost
    assert [revision.get("retention") for revision in world.status["revisions"]] == ["Pruned"] * 4 + [None] * 2
    assert [name for name in world.jobs if "-prune-" in name] == []


def test_as_many_as_are_allowed_are_kept():
    assert kept(trained(*SEEDS[:5])) == [1, 2, 3, 4, 5]


def test_trainings_that_the_gate_refuses_push_out_nothing_that_can_be_gone_back_to():
    assert kept(trained(0, 2, 6, 1, 3, 5, storage__keepRevisions=2)) == [2, 3, 5, 6]


def test_nothing_is_pruned_while_the_claim_is_not_there():
    seen = due()
    assert prunes(plan(seen))
    assert seen.claim
    assert prunes(plan(replace(seen, claim=replace(seen.claim, deleting=True)))) == []


def test_a_pinned_revision_stays_and_what_was_served_before_goes():
    world = trained(0, 2)
    world.edit(training__seed=2, servedRevision=1)
    world.settle()
    world.edit(training__seed=6, servedRevision=1, storage__keepRevisions=1)
    world.settle()
    assert kept(world) == [1, 3]
    assert world.served[-1] == world.status["revisions"][0]["digest"]


def test_what_a_training_begins_with_stays_as_long_as_the_spec_names_it():
    world = trained(0, 2)
    world.edit(training__seed=6, training__warmStart=1, storage__keepRevisions=1)
    world.settle()
    assert kept(world) == [1, 3]
    world.edit(training__seed=6, storage__keepRevisions=1)
    world.settle()
    assert kept(world) == [4]


@pytest.mark.parametrize("retention", ["Pruning", "Pruned"])
def test_nothing_is_trained_from_what_was_pruned(retention):
    world = trained(0, 2)
    world.edit(training__seed=6, training__warmStart=1)
    seen = world.observe()
    first, second = seen.status.revisions
    gone = replace(seen.status, revisions=(replace(first, retention=retention), second))
    planned = plan(replace(seen, jobs=(), status=gone))
    message = planned.status.condition("Trained").message
    assert planned.status.condition("Degraded").reason == "RevisionPruned"
    assert ("revision 1 was pruned" in message, message.endswith("there are: 2")) == (True, True)
    assert not [action for action in planned.actions if isinstance(action, Create) and "-train-" in action.name]


def test_what_serves_is_begun_with_and_not_a_record_of_the_same_digest_that_was_pruned():
    world = trained(0, 2)
    world.edit(training__seed=6, training__warmStart="Serving")
    seen = world.observe()
    second = seen.status.revisions[-1]
    record = replace(second, number=3, run="another", retention="Pruned")
    planned = plan(replace(seen, jobs=(), status=replace(seen.status, revisions=(*seen.status.revisions, record))))
    (job,) = [action.manifest for action in planned.actions if isinstance(action, Create)]
    words = job["spec"]["template"]["spec"]["containers"][0]["args"]
    assert json.loads(words[words.index("--warm-start") + 1]) == {"run": second.run, "digest": second.digest}


def test_what_lies_in_a_bucket_goes_as_what_lies_in_a_claim_does():
    world = trained(*SEEDS[:3], storage__pvc=None, storage__s3={"bucket": "policies", "prefix": "all"}, storage__keepRevisions=1)
    assert (kept(world), world.claim) == ([3], None)
    assert {revision["digest"] for revision in world.status["revisions"] if "retention" in revision} == world.lost


def test_the_policy_of_the_spec_stays_though_a_newer_one_serves():
    world = trained(0, 2)
    world.edit(training__seed=0, servedRevision=2, storage__keepRevisions=1)
    assert prunes(plan(world.observe())) == []


def test_what_replicas_still_hold_stays():
    seen = due()
    rows = tuple(replace(row, digest=seen.status.revisions[0].digest) for row in seen.replicas.rows)
    assert prunes(plan(seen)) == [seen.status.revisions[0].digest]
    assert prunes(plan(replace(seen, replicas=replace(seen.replicas, rows=rows)))) == []


def test_what_is_under_way_is_waited_for():
    seen = due()
    assert prunes(plan(replace(seen, replicas=Unknown("timeout")))) == []
    (job,) = seen.jobs
    assert prunes(plan(replace(seen, jobs=(replace(job, deleting=True),)))) == []
    assert prunes(plan(replace(seen, spec=replace(seen.spec, paused=True)))) == []
    assert prunes(plan(due(serving__replicas=2))) == []


def test_a_failed_training_keeps_nothing_from_being_pruned():
    world = trained(0, 2)
    world.edit(training__seed=6, storage__keepRevisions=1)
    world.reconcile()
    world.collect()
    world.reconcile()
    world.fail(world.created[-1])
    assert prunes(plan(world.observe())) == [world.status["revisions"][0]["digest"]]


def test_a_bundle_that_a_kept_revision_shares_stays():
    seen = due()
    first, second = seen.status.revisions
    twin = replace(first, digest=second.digest)
    assert prunes(plan(replace(seen, status=replace(seen.status, revisions=(twin, second))))) == []


def test_a_revision_is_a_policy_until_there_is_a_job_for_its_creation_may_be_refused():
    planned = plan(due())
    assert prunes(planned)
    assert [revision.retention for revision in planned.status.revisions] == [None, None]


def test_a_revision_is_no_policy_any_more_from_the_moment_that_there_is_a_job():
    world = trained(0, 2)
    world.edit(training__seed=2, storage__keepRevisions=1)
    world.reconcile(stop_after=1)
    assert [revision.retention for revision in plan(world.observe()).status.revisions] == ["Pruning", None]


def test_a_revision_is_recorded_as_gone_before_its_job_goes():
    world = trained(0, 2)
    world.edit(training__seed=2, storage__keepRevisions=1)
    name = pruning(world)
    world.finish(name)
    first = world.reconcile()
    assert [revision.retention for revision in first.status.revisions] == ["Pruned", None]
    assert first.actions == ()
    assert [event.message for event in first.events] == [
        "revision 1: bundle, evaluations and checkpoints are removed (spec.storage.keepRevisions: 1)"
    ]
    assert [action.name for action in world.reconcile().actions if isinstance(action, Delete)] == [name]


def test_a_job_that_failed_says_so_and_is_tried_again_when_it_is_deleted():
    world = trained(0, 2)
    world.edit(training__seed=2, storage__keepRevisions=1)
    name = pruning(world)
    world.fail(name)
    world.settle()
    assert (world.condition("Degraded")["status"], world.condition("Ready")["status"]) == ("True", "True")
    assert f"Retry: delete the Job {name}" in world.condition("Degraded")["message"]
    assert world.status["revisions"][0]["retention"] == "Pruning"
    del world.jobs[name]
    world.settle()
    assert world.status["revisions"][0]["retention"] == "Pruned"
    assert world.condition("Degraded")["status"] == "False"


def test_one_job_removes_so_many_and_the_next_one_the_rest():
    seen = due()
    first, second = seen.status.revisions
    more = tuple(replace(first, number=100 + n, run=f"run-{n}", digest=f"sha256:{n}") for n in range(1, 31))
    planned = plan(replace(seen, status=replace(seen.status, revisions=(*more, second))))
    assert set(prunes(planned)) == {f"sha256:{n}" for n in range(1, 21)}


def test_a_pin_of_a_pruned_revision_is_refused_in_words_and_what_serves_goes_on():
    world = trained(0, 2, storage__keepRevisions=1)
    before = world.served[-1]
    world.edit(training__seed=2, storage__keepRevisions=1, servedRevision=1)
    world.settle()
    ready = world.condition("Ready")
    assert (ready["status"], ready["reason"]) == ("False", "RevisionPruned")
    assert ready["message"] == "spec.servedRevision: revision 1 was pruned (spec.storage.keepRevisions); there are: 2"
    assert (world.served[-1], world.condition("Available")["status"]) == (before, "True")


def test_an_approval_of_a_pruned_revision_is_refused():
    world = trained(0, 2, storage__keepRevisions=1)
    world.ask(names.APPROVE, revision=1)
    (event,) = world.reconcile().events
    assert (event.reason, "was pruned" in event.message) == ("RequestRefused", True)
    assert "approval" not in world.status["revisions"][0]


def test_a_spec_that_is_turned_back_is_trained_again_under_a_new_number():
    world = trained(0, 2, storage__keepRevisions=1)
    world.edit(training__seed=0, storage__keepRevisions=1)
    world.settle()
    assert world.condition("Ready")["status"] == "True"
    assert [(revision["number"], revision.get("retention")) for revision in world.status["revisions"]] == [
        (1, "Pruned"),
        (2, "Pruned"),
        (3, None),
    ]


def test_a_policy_that_comes_out_the_same_again_is_not_taken_for_the_one_that_went():
    world = trained(2, 6, storage__keepRevisions=1)
    world.edit(training__seed=2, storage__keepRevisions=1)
    world.settle()
    first, _, third = world.status["revisions"]
    assert first["digest"] == third["digest"] == world.served[-1] == digest(world.run)
    assert third["digest"] not in world.lost


def test_a_training_waits_for_the_job_and_takes_the_place_of_one_that_failed():
    world = trained(0, 2)
    world.edit(training__seed=2, storage__keepRevisions=1)
    name = pruning(world)
    world.edit(training__seed=0, storage__keepRevisions=1)
    trained_before = [job for job in world.created if "-train-" in job]
    for _ in range(3):
        world.collect()
        assert world.reconcile().status.condition("Trained").reason == "Pruning"
    world.fail(name)
    world.settle()
    assert len([job for job in world.created if "-train-" in job]) == len(trained_before) + 1
    assert world.condition("Ready")["status"] == "True"
    assert kept(world) == [3]


def test_a_job_that_does_not_start_is_a_problem_and_no_training_waits_for_it():
    seen = due()
    name = names.prune_job("cartpole", [seen.status.revisions[0].digest])
    job = replace(seen.jobs[0], name=name, role=names.ROLE_PRUNE, run="", phase="Running", prunes=(seen.status.revisions[0].digest,))
    stuck = replace(job, problem=Problem("Unschedulable", "no node takes it"), result=None)
    planned = plan(replace(seen, jobs=(*seen.jobs, stuck)))
    assert (planned.status.condition("Degraded").reason, planned.actions) == ("Unschedulable", ())
    untrained = replace(seen, jobs=(stuck,), status=replace(seen.status, revisions=seen.status.revisions[:1]))
    assert [action.name for action in plan(untrained).actions if isinstance(action, Delete)] == [name]


def test_a_retraining_records_who_asked_and_what_it_was_made_from():
    world = trained(0)
    world.ask(names.RETRAIN)
    world.settle()
    assert world.status["revisions"][-1]["trigger"]["user"] == "alice"
    result = {"digest": "sha256:ab", "uri": "file:///b", "configHash": "sha256:cd", "seed": 7}
    seen = world.observe()
    job = replace(seen.jobs[0], name="cartpole-train-before", run="before", phase="Succeeded", result=result)
    revision = plan(replace(seen, jobs=(*seen.jobs, job))).status.revisions[-1]
    assert (revision.config_hash, revision.seed, revision.parent) == ("sha256:cd", 7, seen.status.serving.revision)


@pytest.mark.parametrize("result", [{"pruned": 1, "evaluations": 0, "runs": 0}], ids=str)
def test_the_result_of_a_prune_job_is_one(result):
    assert words.is_result({"result": result}, names.ROLE_PRUNE)
    assert not words.is_result({"result": {"digest": "sha256:ab"}}, names.ROLE_PRUNE)
