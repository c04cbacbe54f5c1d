"""Every rung of every ladder of the planner, each named by what it is for."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import cache
from typing import Any

import pytest
import yaml
from fakes.world import SETTINGS, World, digest, document

from controller import names, reconcile, resources
from controller import serving as serving_step
from controller.model import (
    Action,
    Apply,
    ChildState,
    Create,
    Delete,
    FoundBy,
    Images,
    JobState,
    Observed,
    Plan,
    Problem,
    RayServiceState,
    ReplicaRow,
    Replicas,
    Rival,
    SearchStatus,
    Settings,
    Status,
    TrialStatus,
    Unknown,
)
from controller.rollout import Rollout
from controller.spec import spec_of

BROKEN = Problem("Broken", "it is broken")
ON_A_LOST_NODE = Problem("NodeLost", "the node worker-1 does not answer")


def plan(seen: Observed, settings: Settings = SETTINGS) -> Plan:
    return reconcile.plan(seen, settings)


def said(action: Action) -> str:
    """An action in a few words; a rollout is told from the making of a RayService."""
    if isinstance(action, Apply) and action.field_manager == names.SERVE_FIELD_MANAGER:
        return "rollout"
    kind = action.kind
    if kind == "Job":
        kind = action.name.removeprefix("cartpole-").partition("-")[0]
    return f"{type(action).__name__} {kind}"


def does(planned: Plan) -> list[str]:
    return [said(action) for action in planned.actions]


def condition(planned: Plan, type_: str) -> tuple[str, str]:
    found = planned.status.condition(type_)
    assert found is not None
    return found.status, found.reason


def fresh(**changes: Any) -> Observed:
    """A PolicyModel that was made a moment ago."""
    return World(document(**changes)).observe()


def ready(**changes: Any) -> World:
    """A world that came to rest with a policy that serves."""
    world = World(document(**changes))
    world.settle()
    assert world.condition("Ready")["status"] == "True"
    return world


def edited(**changes: Any) -> World:
    """A world at rest, whose spec was edited a moment ago."""
    world = ready()
    world.edit(**changes)
    return world


def adopting(config: str = "", **changes: Any) -> Observed:
    """A PolicyModel that adopts the RayService `shared`, seen for the first time."""
    seen = fresh(serving__rayService="shared", **changes)
    return replace(seen, ray_service=RayServiceState(serve_config=config, foreign=True))


def training_job(seen: Observed, **more: Any) -> JobState:
    run = more.pop("run", seen.spec.run)
    return JobState(names.training_job("cartpole", run), names.ROLE_TRAIN, run, more.pop("phase", "Running"), **more)


def evaluation_job(seen: Observed, **more: Any) -> JobState:
    evaluation = more.pop("evaluation", seen.spec.looks(seen.spec.run)[0].id)
    name = names.evaluation_job("cartpole", evaluation)
    return JobState(name, names.ROLE_EVALUATE, seen.spec.run, more.pop("phase", "Running"), evaluation, **more)


def with_job(**more: Any) -> Observed:
    seen = fresh()
    return replace(seen, jobs=(training_job(seen, **more),))


@dataclass(frozen=True)
class Rung:
    seen: Callable[[], Observed]
    type: str
    wanted: tuple[str, str]
    does: list[str] | None = None


# What a PolicyModel needs at first, beside what the rung is about.
MAKES = ["Apply PersistentVolumeClaim", "Create train", "Apply RayService", "rollout", "Apply Ingress"]
WITHOUT_TRAINING = ["Apply PersistentVolumeClaim", "Apply RayService", "rollout", "Apply Ingress"]

ACCEPTANCE = {
    "a spec that can be followed is accepted": Rung(fresh, "Accepted", ("True", "Accepted"), MAKES),
    "an entry point within an allowed package is accepted": Rung(
        lambda: fresh(environment={"entryPoint": "acme.envs:Maze"}), "Accepted", ("True", "Accepted"), MAKES
    ),
    "an entry point that is an allowed package is accepted": Rung(
        lambda: fresh(environment={"entryPoint": "acme:Maze"}), "Accepted", ("True", "Accepted"), MAKES
    ),
    "an entry point whose package only begins alike is refused": Rung(
        lambda: fresh(environment={"entryPoint": "acmeevil:Maze"}), "Accepted", ("False", "EntryPointNotAllowed"), WITHOUT_TRAINING
    ),
    "an id that a module of an allowed package registers is accepted": Rung(
        lambda: fresh(environment={"id": "acme.envs:Maze-v0"}), "Accepted", ("True", "Accepted"), MAKES
    ),
    "an id that a module elsewhere registers is refused": Rung(
        lambda: fresh(environment={"id": "os:Maze-v0"}), "Accepted", ("False", "EntryPointNotAllowed"), WITHOUT_TRAINING
    ),
    "an entry point elsewhere is refused and nothing is trained": Rung(
        lambda: fresh(environment={"entryPoint": "os:system"}), "Accepted", ("False", "EntryPointNotAllowed"), WITHOUT_TRAINING
    ),
    "an older rival for the RayService is let go first": Rung(
        lambda: replace(adopting(), rivals=(Rival("zebra", "2025-12-31T00:00:00Z"),)), "Accepted", ("False", "RayServiceInUse")
    ),
    "a younger rival is not minded": Rung(
        lambda: replace(adopting(), rivals=(Rival("ant", "2026-01-02T00:00:00Z"),)), "Accepted", ("True", "Accepted")
    ),
    "of two of the same second the first by name wins": Rung(
        lambda: replace(adopting(), rivals=(Rival("ant", "2026-01-01T00:00:00Z"),)), "Accepted", ("False", "RayServiceInUse")
    ),
    "of two of the same second the last by name loses": Rung(
        lambda: replace(adopting(), rivals=(Rival("zebra", "2026-01-01T00:00:00Z"),)), "Accepted", ("True", "Accepted")
    ),
}

CLAIMED = resources.claim(World().owner, spec_of(document()))


def with_claim(**more: Any) -> Observed:
    return replace(fresh(), claim=ChildState(more.pop("manifest", CLAIMED), **more))


STORAGE = {
    "a claim that is missing is made": Rung(fresh, "Trained", ("False", "Starting"), MAKES),
    "a claim as it should be is left alone": Rung(with_claim, "Trained", ("False", "Starting"), MAKES[1:]),
    "a claim with the deletion policy of before gets the new one": Rung(
        lambda: with_claim(manifest={"metadata": {"name": "cartpole-policies", "namespace": "default"}}),
        "Trained",
        ("False", "Starting"),
        MAKES,
    ),
    "a claim of somebody else's is not taken": Rung(
        lambda: with_claim(foreign=True), "Trained", ("False", "NameInUse"), WITHOUT_TRAINING[1:]
    ),
    "a claim that cannot be bound stops the training and says why": Rung(
        lambda: with_claim(problem=BROKEN), "Trained", ("False", "Broken"), WITHOUT_TRAINING[1:]
    ),
    "a claim on its way out is waited for": Rung(
        lambda: with_claim(deleting=True), "Trained", ("False", "ClaimDeleting"), WITHOUT_TRAINING[1:]
    ),
    "an existing claim that is missing is asked for": Rung(
        lambda: fresh(storage__pvc={"existingClaim": "mine"}), "Trained", ("False", "ClaimMissing"), WITHOUT_TRAINING[1:]
    ),
    "an existing claim is used and never written": Rung(
        lambda: replace(fresh(storage__pvc={"existingClaim": "mine"}), claim=ChildState({"metadata": {"name": "mine"}}, foreign=True)),
        "Trained",
        ("False", "Starting"),
        MAKES[1:],
    ),
}

TRAINING = {
    "a run that was never started is started": Rung(fresh, "Trained", ("False", "Starting"), MAKES),
    "a run that trains is left alone": Rung(with_job, "Trained", ("False", "Training"), WITHOUT_TRAINING),
    "a run whose pod does not start says why": Rung(lambda: with_job(problem=BROKEN), "Trained", ("False", "Broken"), WITHOUT_TRAINING),
    "a Job on its way out is waited for": Rung(lambda: with_job(deleting=True), "Trained", ("False", "Stopping"), WITHOUT_TRAINING),
    "a run that failed is not tried again by itself": Rung(
        lambda: with_job(phase="Failed", problem=BROKEN), "Trained", ("False", "Broken"), WITHOUT_TRAINING
    ),
    "a run that failed without a word says so": Rung(
        lambda: with_job(phase="Failed"), "Trained", ("False", "TrainingFailed"), WITHOUT_TRAINING
    ),
    "a run that failed is tried again once its pods are made otherwise": Rung(
        lambda: with_job(phase="Failed", problem=BROKEN, hash="before"),
        "Trained",
        ("False", "Stopping"),
        ["Apply PersistentVolumeClaim", "Delete train", *WITHOUT_TRAINING[1:]],
    ),
    "a run whose pod does not start is tried again once its pods are made otherwise": Rung(
        lambda: with_job(problem=BROKEN, hash="before"),
        "Trained",
        ("False", "Stopping"),
        ["Apply PersistentVolumeClaim", "Delete train", *WITHOUT_TRAINING[1:]],
    ),
    "a run that gets on is not stopped for a change of its pods": Rung(
        lambda: with_job(hash="before"), "Trained", ("False", "Training"), WITHOUT_TRAINING
    ),
    "a run that failed as the spec has it now is not tried again": Rung(
        lambda: with_job(phase="Failed", problem=BROKEN, hash=resources.job_hash(spec_of(document()))),
        "Trained",
        ("False", "Broken"),
        WITHOUT_TRAINING,
    ),
    "a lost result is asked for again": Rung(
        lambda: with_job(phase="Succeeded"),
        "Trained",
        ("False", "ResultLost"),
        ["Apply PersistentVolumeClaim", "Delete train", *WITHOUT_TRAINING[1:]],
    ),
    "an edit in the middle of training stops the old Job first": Rung(
        lambda: with_job(run="before"), "Trained", ("False", "Superseding"), [*WITHOUT_TRAINING, "Delete train"]
    ),
    "an old Job that is being stopped still holds the new one back": Rung(
        lambda: with_job(run="before", deleting=True), "Trained", ("False", "Superseding"), WITHOUT_TRAINING
    ),
    "a Job that a lost node keeps from going says so": Rung(
        lambda: with_job(deleting=True, problem=ON_A_LOST_NODE), "Trained", ("False", "NodeLost"), WITHOUT_TRAINING
    ),
    "an old Job that a lost node keeps from going says so": Rung(
        lambda: with_job(run="before", deleting=True, problem=ON_A_LOST_NODE), "Trained", ("False", "NodeLost"), WITHOUT_TRAINING
    ),
    "an old Job that has failed does not": Rung(
        lambda: with_job(run="before", phase="Failed"), "Trained", ("False", "Starting"), [*MAKES, "Delete train"]
    ),
    "a run of the history is not trained again": Rung(lambda: ready().observe(), "Trained", ("True", "Published"), []),
}

APPROVAL = {
    "nothing is approved before it is trained": Rung(fresh, "Approved", ("False", "NotTrained")),
    "a policy that is good enough is approved": Rung(lambda: ready().observe(), "Approved", ("True", "GatePassed"), []),
    "a higher threshold alone needs no new evaluation": Rung(
        lambda: edited(gate__minReturn=499).observe(), "Approved", ("True", "GatePassed"), []
    ),
    "a threshold out of reach fails without a new evaluation": Rung(
        lambda: edited(gate__minReturn=600).observe(), "Approved", ("False", "GateFailed"), []
    ),
    "changed episodes evaluate anew without training": Rung(
        lambda: edited(gate__episodes=50).observe(), "Approved", ("False", "Evaluating"), ["Create evaluate"]
    ),
    "a changed seed of the gate evaluates anew without training": Rung(
        lambda: edited(gate__seed=7).observe(), "Approved", ("False", "Evaluating"), ["Create evaluate"]
    ),
}


def evaluating(**more: Any) -> Observed:
    seen = edited(gate__episodes=50).observe()
    return replace(seen, jobs=(*seen.jobs, evaluation_job(seen, **more)))


EVALUATION = {
    "an evaluation that runs is left alone": Rung(evaluating, "Approved", ("False", "Evaluating"), []),
    "an evaluation on its way out is waited for": Rung(lambda: evaluating(deleting=True), "Approved", ("False", "Stopping"), []),
    "an evaluation that failed says why and is not tried again": Rung(
        lambda: evaluating(phase="Failed", problem=BROKEN), "Approved", ("False", "Broken"), []
    ),
    "an evaluation that failed without a word says so": Rung(
        lambda: evaluating(phase="Failed"), "Approved", ("False", "EvaluationFailed"), []
    ),
    "an evaluation that failed is tried again once its pods are made otherwise": Rung(
        lambda: evaluating(phase="Failed", problem=BROKEN, hash="before"), "Approved", ("False", "Stopping"), ["Delete evaluate"]
    ),
    "an evaluation that tells of another one is not asked for again and again": Rung(
        lambda: evaluating(
            phase="Succeeded",
            result={"digest": digest(RUN), "evaluation": {"id": "another", "episodes": 50, "seed": 1000, "mean": 500.0, "std": 0.0}},
        ),
        "Approved",
        ("False", "NoResult"),
        [],
    ),
    "a lost evaluation is asked for again": Rung(
        lambda: evaluating(phase="Succeeded"), "Approved", ("False", "ResultLost"), ["Delete evaluate"]
    ),
    "an evaluation that nobody asks for any more goes": Rung(
        lambda: evaluating(evaluation="before"), "Approved", ("False", "Evaluating"), ["Create evaluate", "Delete evaluate"]
    ),
}


def serving(**more: Any) -> Observed:
    """A world at rest, in which something of the RayService is otherwise."""
    seen = ready().observe()
    assert seen.ray_service
    return replace(seen, ray_service=replace(seen.ray_service, **more))


def answering(*rows: ReplicaRow, running: int | None = None, wanted: int = 1) -> Observed:
    seen = ready(serving__replicas=wanted).observe()
    return replace(seen, replicas=Replicas(len(rows) if running is None else running, rows))


RUN = spec_of(document()).run
MANNERS = resources.manners(spec_of(document()))
GOOD, OLD = ReplicaRow("good", digest(RUN)), ReplicaRow("old", "sha256:" + "e" * 64)
REFUSING = ReplicaRow("bad", OLD.digest, digest(RUN), Problem("DigestMismatch", "the bundle was changed"))

SERVING = {
    "what every replica serves is ready": Rung(lambda: ready().observe(), "Ready", ("True", "Serving"), []),
    "a RayService that is missing is made with its policy at once": Rung(
        lambda: replace(ready().observe(), ray_service=None, replicas=None),
        "Ready",
        ("False", "CreatingRayService"),
        ["Apply RayService", "rollout"],
    ),
    "a RayService of somebody else's is not taken": Rung(lambda: serving(foreign=True), "Ready", ("False", "NameInUse"), []),
    "a RayService on its way out is waited for": Rung(lambda: serving(deleting=True), "Ready", ("False", "RayServiceDeleting"), []),
    "a changed serving image makes KubeRay switch": Rung(
        lambda: edited(serving__image="mine:1").observe(), "Ready", ("False", "SwitchingCluster"), ["Apply RayService"]
    ),
    "a hash that was lost is written again": Rung(lambda: serving(hash=None), "Ready", ("False", "SwitchingCluster"), ["Apply RayService"]),
    "a changed policy waits while a second cluster is pending": Rung(
        lambda: serving(switching=True, serve_config=""), "Ready", ("False", "SwitchingCluster"), []
    ),
    "a configuration that somebody changed is written again": Rung(
        lambda: serving(serve_config="applications: []"), "Ready", ("False", "RollingOut"), ["rollout"]
    ),
    "a configuration that reads the same is not written again": Rung(
        lambda: serving(serve_config=yaml.safe_dump(yaml.safe_load(ready().observe().ray_service.serve_config), sort_keys=True, indent=4)),
        "Ready",
        ("True", "Serving"),
        [],
    ),
    "changed replicas are a rollout and no switch": Rung(
        lambda: edited(serving__replicas=3).observe(), "Ready", ("False", "RollingOut"), ["rollout"]
    ),
    "a policy that no replica has yet is being rolled out": Rung(lambda: answering(OLD), "Ready", ("False", "RollingOut"), []),
    "one replica of two is not enough": Rung(lambda: answering(GOOD, OLD, wanted=2), "Ready", ("False", "RollingOut"), []),
    "one replica that Serve knows and nobody heard is not enough": Rung(
        lambda: answering(GOOD, running=2), "Ready", ("False", "RollingOut"), []
    ),
    "fewer replicas than asked for are not enough": Rung(lambda: answering(GOOD, wanted=2), "Ready", ("False", "RollingOut"), []),
    "more replicas than asked for are not it": Rung(lambda: answering(GOOD, GOOD), "Ready", ("False", "RollingOut"), []),
    "a replica that refuses the policy says why": Rung(lambda: answering(REFUSING), "Ready", ("False", "LoadFailed"), []),
    "a replica that refused another policy is not minded": Rung(
        lambda: answering(replace(GOOD, error_digest=OLD.digest, error=BROKEN)), "Ready", ("True", "Serving"), []
    ),
    "a replica that still answers by other manners is waited for": Rung(
        lambda: answering(GOOD, replace(GOOD, manners={**MANNERS, "maxBodyBytes": 1}), wanted=2), "Ready", ("False", "RollingOut"), []
    ),
    "a replica that has taken over the manners is ready": Rung(
        lambda: answering(replace(GOOD, manners=MANNERS)), "Ready", ("True", "Serving"), []
    ),
    "a manner that an older image does not tell is taken as agreed": Rung(
        lambda: answering(replace(GOOD, manners={"route": MANNERS["route"]})), "Ready", ("True", "Serving"), []
    ),
    "a manner that only a newer image tells is not minded": Rung(
        lambda: answering(replace(GOOD, manners={**MANNERS, "newer": 1})), "Ready", ("True", "Serving"), []
    ),
    "silence is no answer": Rung(lambda: replace(ready().observe(), replicas=None), "Ready", ("False", "NoReplica"), []),
    "what could not be found out is unknown": Rung(
        lambda: replace(ready().observe(), replicas=Unknown("timeout")), "Ready", ("Unknown", "StatusUnknown"), []
    ),
    "a problem of the pods is told while nobody answers": Rung(
        lambda: replace(serving(problem=BROKEN), replicas=None), "Ready", ("False", "Broken"), []
    ),
    "a problem of a pod beside replicas that all serve is not minded": Rung(
        lambda: serving(problem=BROKEN), "Ready", ("True", "Serving"), []
    ),
}


def with_challenge(seen: Observed) -> Observed:
    """What cert-manager's HTTP-01 solver does to an Ingress that it may edit in place."""
    assert seen.ingress
    live = copy.deepcopy(dict(seen.ingress.manifest))
    live["spec"]["rules"][0]["http"]["paths"].insert(0, {"path": "/.well-known/acme-challenge/x", "pathType": "ImplementationSpecific"})
    live["metadata"]["ownerReferences"].append({"uid": "another"})
    return replace(seen, ingress=replace(seen.ingress, manifest=live))


EXPOSURE = {
    "an Ingress that is missing is made": Rung(
        lambda: replace(ready().observe(), ingress=None), "Ready", ("False", "ExposingRoute"), ["Apply Ingress"]
    ),
    "an Ingress for another host is changed": Rung(
        lambda: edited(serving__ingress={"host": "b.example"}).observe(), "Ready", ("False", "ExposingRoute"), ["Apply Ingress"]
    ),
    "an Ingress to which somebody added a path is left alone": Rung(
        lambda: with_challenge(ready().observe()), "Ready", ("True", "Serving"), []
    ),
    "an Ingress that is not asked for any more goes": Rung(
        lambda: edited(serving__ingress=None).observe(), "Ready", ("True", "Serving"), ["Delete Ingress"]
    ),
    "an Ingress of somebody else's is neither changed": Rung(
        lambda: replace(ready().observe(), ingress=ChildState({"metadata": {}}, foreign=True)), "Ready", ("False", "NameInUse"), []
    ),
    "nor deleted": Rung(
        lambda: replace(edited(serving__ingress=None).observe(), ingress=ChildState({"metadata": {}}, foreign=True)),
        "Ready",
        ("True", "Serving"),
        [],
    ),
    "an Ingress on its way out is not deleted twice": Rung(
        lambda: replace(edited(serving__ingress=None).observe(), ingress=ChildState({"metadata": {}}, deleting=True)),
        "Ready",
        ("True", "Serving"),
        [],
    ),
}


RUNGS = ACCEPTANCE | STORAGE | TRAINING | APPROVAL | EVALUATION | SERVING | EXPOSURE
# Each is looked at by several tests, and made once.
LADDERS = {name: replace(rung, seen=cache(rung.seen)) for name, rung in RUNGS.items()}


@pytest.mark.parametrize("rung", LADDERS.values(), ids=LADDERS)
def test_a_rung(rung):
    planned = plan(rung.seen())
    assert condition(planned, rung.type) == rung.wanted
    if rung.does is not None:
        assert does(planned) == rung.does


@pytest.mark.parametrize("rung", LADDERS.values(), ids=LADDERS)
def test_every_message_is_a_sentence_for_its_user(rung):
    for found in plan(rung.seen()).status.conditions:
        assert found.message
        assert not found.message.endswith((".", ":", " "))
        assert "None" not in found.message


@pytest.mark.parametrize("rung", LADDERS.values(), ids=LADDERS)
def test_the_planner_is_a_function_and_changes_nothing_that_it_is_given(rung):
    seen = rung.seen()
    before = copy.deepcopy(seen)
    assert plan(seen) == plan(copy.deepcopy(seen))
    assert seen == before


@pytest.mark.parametrize("rung", LADDERS.values(), ids=LADDERS)
def test_a_pause_changes_nothing_and_says_so(rung):
    seen = rung.seen()
    planned = plan(replace(seen, spec=replace(seen.spec, paused=True)))
    assert planned.actions == ()
    assert condition(planned, "Progressing") == ("False", "Paused")
    assert planned.status.phase == "Paused"
    claims = ("is asked for", "is asked again", "is told to", "is written", "gets new pods", "made anew with", "is made again")
    assert not [found.message for found in planned.status.conditions if any(claim in found.message for claim in claims)]


def test_a_pause_from_the_start_is_told_once_and_nothing_else_with_it() -> None:
    told = [(event.reason, event.message) for event in plan(fresh(paused=True)).events]
    assert told == [("Accepted", "the spec can be followed"), ("Paused", reconcile.PAUSED)]


@pytest.mark.parametrize("rung", LADDERS.values(), ids=LADDERS)
def test_what_is_being_deleted_is_left_alone(rung):
    seen = rung.seen()
    assert plan(replace(seen, deleting=True)) == Plan(seen.status)


@pytest.mark.parametrize("rung", LADDERS.values(), ids=LADDERS)
def test_another_look_at_the_same_tells_nothing_new(rung):
    seen = rung.seen()
    first = plan(seen)
    again = plan(replace(seen, status=first.status, now=seen.now + timedelta(hours=1)))
    assert again.events == ()
    assert again.status.conditions == first.status.conditions


def test_replicas_that_cannot_be_asked_now_and_then_are_no_rollout_and_fill_no_diary():
    seen = ready().observe()
    for _ in range(3):
        for replicas in (Unknown("timeout"), seen.replicas):
            planned = plan(replace(seen, replicas=replicas))
            assert planned.events == ()
            assert planned.status.candidate is None
            assert condition(planned, "Progressing") == ("False", "Idle")
            assert planned.status.phase == ("Ready" if replicas is seen.replicas else "Unknown")
            seen = replace(seen, status=planned.status)


def test_a_rollout_that_could_not_be_watched_for_a_moment_is_told_when_it_is_done():
    world = edited(training__seed=2)
    while "candidate" not in world.status:
        world.get_on()
    during = plan(replace(world.observe(), replicas=Unknown("timeout"))).status
    assert during.candidate is not None
    assert (during.phase, during.condition("Progressing").reason) == ("RollingOut", "RollingOut")
    world.write(during)
    while world.status["candidate"]["weight"] < 100:
        world.get_on()
    world.kuberay()
    for _ in range(3):
        world.load()
    assert "Serving" in [event.reason for event in plan(world.observe()).events]


def test_before_anything_is_known_everything_is_made_in_an_order_that_may_stop_anywhere():
    planned = plan(fresh())
    assert does(planned) == MAKES
    assert planned.status.phase == "Training"
    assert (planned.events[0].type, planned.events[0].reason) == ("Normal", "Accepted")


def test_a_failed_gate_leaves_available_true():
    world = edited(training__seed=1)
    world.settle()
    assert world.condition("Approved")["reason"] == "GateFailed"
    assert world.condition("Available")["status"] == "True"
    assert world.condition("Ready")["status"] == "False"
    assert world.status["serving"]["revision"] == 1
    assert world.served[-1] == digest(RUN)
    assert world.status["phase"] == "Degraded"


def test_a_bad_edit_that_is_taken_back_heals_without_training():
    world = edited(training__seed=1)
    world.settle()
    trained = len(world.created)
    world.edit(training__seed=0)
    world.settle()
    assert world.condition("Ready")["status"] == "True"
    assert world.condition("Degraded")["status"] == "False"
    assert len(world.created) == trained


def test_a_failed_training_leaves_what_serves():
    world = edited(training__seed=2)
    world.reconcile()
    job = names.training_job("cartpole", spec_of(world.document).run)
    world.fail(job)
    planned = world.reconcile()
    assert condition(planned, "Trained") == ("False", "TrainingDiverged")
    assert condition(planned, "Available") == ("True", "PolicyAnswers")
    assert condition(planned, "Degraded") == ("True", "TrainingDiverged")
    assert f"delete the Job {job}" in planned.status.condition("Trained").message


@pytest.mark.parametrize(
    "mended",
    [
        {"training__resources": {"limits": {"memory": "8Gi"}}},
        {"training__template": {"nodeSelector": {"disk": "ssd"}}},
        {"training__backoffLimit": 5},
        {"imagePullSecrets": [{"name": "registry"}]},
    ],
    ids=["resources", "template", "backoffLimit", "imagePullSecrets"],
)
def test_a_failed_training_heals_when_its_user_follows_the_advice(mended):
    world = World()
    world.reconcile()
    world.fail(names.training_job("cartpole", RUN))
    world.reconcile()
    world.edit(**mended)
    world.settle()
    assert world.condition("Ready")["status"] == "True"


def test_a_refused_spec_leaves_what_serves():
    planned = plan(edited(environment={"entryPoint": "os:system"}).observe())
    assert condition(planned, "Available") == ("True", "PolicyAnswers")
    assert does(planned) == ["Delete train"]
    assert planned.status.phase == "Refused"


def test_an_upgrade_of_the_operator_changes_nothing_that_runs():
    world = ready()
    planned = plan(world.observe(), replace(SETTINGS, training_image="train:2", serving_image="serve:2"))
    assert planned.actions == ()
    assert planned.status.images == Images("train:1", "serve:1")


def test_a_field_of_the_users_after_an_upgrade_still_keeps_the_images_of_before():
    settings = replace(SETTINGS, training_image="train:2", serving_image="serve:2")
    planned = plan(edited(serving__template={"labels": {"a": "b"}}).observe(), settings)
    (applied,) = planned.actions
    head = applied.manifest["spec"]["rayClusterConfig"]["headGroupSpec"]["template"]["spec"]["containers"][0]
    assert head["image"] == "serve:1"


def test_the_first_look_records_the_default_images():
    assert plan(fresh()).status.images == Images("train:1", "serve:1")


def test_a_status_that_was_lost_builds_no_second_cluster():
    world = ready()
    planned = plan(replace(world.observe(), status=Status()), replace(SETTINGS, serving_image="serve:2"))
    assert "Apply RayService" not in does(planned)
    assert "rollout" not in does(planned)


OTHERS = "applications: [{name: other, import_path: a:b, route_prefix: /other}]"


def test_adoption_writes_serve_config_and_nothing_else_of_the_ray_service():
    planned = plan(adopting(OTHERS))
    written = [action for action in planned.actions if action.kind == "RayService"]
    assert [said(action) for action in written] == ["rollout"]
    assert written[0].name == "shared"
    assert list(written[0].manifest["spec"]) == ["serveConfigV2"]
    applications = yaml.safe_load(written[0].manifest["spec"]["serveConfigV2"])["applications"]
    assert [application["name"] for application in applications] == ["other", "cartpole"]


NAMESAKES = {
    "without deployments": "applications: [{name: cartpole, import_path: a:b, route_prefix: /theirs}]",
    "with another deployment": "applications: [{name: cartpole, import_path: a:b, deployments: [{name: Theirs}]}]",
}


@pytest.mark.parametrize("config", NAMESAKES.values(), ids=NAMESAKES)
def test_adoption_does_not_overwrite_an_application_of_somebody_else_that_has_our_name(config):
    planned = plan(adopting(config))
    assert "rollout" not in does(planned)
    assert condition(planned, "Degraded") == ("True", "NameInUse")


def test_an_adopted_ray_service_on_its_way_out_is_not_promised_to_come_back():
    seen = adopting(OTHERS)
    step = serving_step.served(
        replace(seen, ray_service=replace(seen.ray_service, deleting=True)), Images("train:1", "serve:1"), Rollout(None)
    )
    assert step.actions == ()
    assert step.finding.message == "the RayService shared is being deleted; create it again when it is gone"


def test_adoption_of_what_is_written_already_writes_nothing():
    seen = adopting(OTHERS)
    text = resources.serve_config(seen.owner, seen.spec, None, OTHERS)
    assert "rollout" not in does(plan(adopting(text)))


def test_an_adopted_ray_service_that_is_missing_is_asked_for_and_not_made():
    planned = plan(replace(adopting(), ray_service=None))
    assert [action for action in planned.actions if action.kind == "RayService"] == []
    assert condition(planned, "Degraded") == ("True", "RayServiceMissing")


def test_a_rival_is_kept_from_the_configuration_too():
    planned = plan(replace(adopting(OTHERS), rivals=(Rival("first", "2025-01-01T00:00:00Z"),)))
    assert "rollout" not in does(planned)


def test_an_adopted_ray_service_with_no_hash_is_not_switched():
    planned = plan(adopting(OTHERS))
    assert "Apply RayService" not in does(planned)


def test_a_ray_service_that_was_lost_comes_back_with_the_policy_that_served():
    world = edited(training__seed=2)
    planned = plan(replace(world.observe(), ray_service=None, replicas=None))
    (switch,) = [action for action in planned.actions if said(action) == "rollout"]
    assert resources.served_policy(world.owner, switch.manifest["spec"]["serveConfigV2"])["digest"] == digest(RUN)


def test_an_old_job_that_has_published_is_recorded_before_it_goes():
    seen = fresh()
    result = {"digest": "sha256:ab", "uri": "file:///b"}
    job = training_job(seen, run="before", phase="Succeeded", result=result)
    planned = plan(replace(seen, jobs=(job,)))
    assert [revision.run for revision in planned.status.revisions] == ["before"]
    assert "Delete train" not in does(planned)
    assert "Delete train" in does(plan(replace(seen, jobs=(job,), status=planned.status)))


def test_the_current_runs_job_stays_for_its_log():
    assert plan(ready().observe()).actions == ()


def test_the_records_of_pruned_revisions_are_kept_to_a_number_and_what_is_in_the_storage_stays_on_record():
    seen = ready().observe()
    first = seen.status.revisions[0]
    gone = tuple(replace(first, number=n, run=f"run-{n}", digest=f"sha256:{n}", retention="Pruned") for n in range(2, 70))
    kept = plan(replace(seen, status=replace(seen.status, revisions=(first, *gone)))).status.revisions
    assert [revision.number for revision in kept] == [1, *range(20, 70)]


def test_revisions_count_on_after_the_history_was_cut():
    seen = ready().observe()
    history = tuple(replace(seen.status.revisions[0], number=number, run=f"run-{number}") for number in (7, 9))
    found = plan(replace(seen, status=replace(seen.status, revisions=history))).status.revisions
    assert [revision.number for revision in found] == [7, 9, 10]


def test_a_revision_records_what_it_was_made_from():
    seen = fresh()
    figures = {"id": seen.spec.looks(seen.spec.run)[0].id, "mean": 500, "std": 0, "episodes": 100, "seed": 1000}
    result = {"digest": "sha256:ab", "uri": "file:///b", "envSteps": 99, "trainedAt": "2026-01-01T00:00:00Z", "evaluation": figures}
    (revision,) = plan(replace(seen, jobs=(training_job(seen, phase="Succeeded", result=result, image="train:1"),))).status.revisions
    assert (revision.number, revision.digest, revision.uri, revision.run) == (1, "sha256:ab", "file:///b", seen.spec.run)
    assert (revision.trained_at, revision.image, revision.seed, revision.env_steps) == ("2026-01-01T00:00:00Z", "train:1", 0, 99)
    assert (revision.verdict, revision.evaluation.mean, revision.evaluation.lower, revision.parent) == ("Pass", 500.0, 500.0, None)


def test_a_later_revision_names_the_one_that_served_before_it():
    world = edited(training__seed=2)
    world.settle()
    assert [revision.get("parent") for revision in world.status["revisions"]] == [None, 1]


@pytest.mark.parametrize(
    ("replicas", "wanted"),
    [
        (None, ("False", "NoPolicy")),
        (Replicas(1, (ReplicaRow("a", None),)), ("False", "NoPolicy")),
        (Replicas(1, (OLD,)), ("False", "UnknownPolicy")),
        (Replicas(2, (OLD, GOOD)), ("True", "PolicyAnswers")),
        (Replicas(1, (GOOD,)), ("True", "PolicyAnswers")),
        (Unknown("timeout"), ("Unknown", "StatusUnknown")),
    ],
    ids=["nobody answers", "nobody has a policy", "not ours", "one of two", "all", "not found out"],
)
def test_available_means_that_a_policy_of_ours_answers(replicas, wanted):
    assert condition(plan(replace(ready().observe(), replicas=replicas)), "Available") == wanted


def test_while_replicas_differ_the_policy_that_was_serving_is_told():
    world = edited(training__seed=2)
    world.settle()
    seen, new = world.observe(), spec_of(world.document).run
    before = replace(seen.status, serving=replace(seen.status.serving, digest=digest(RUN), revision=1))
    mixed = (ReplicaRow("a", digest(new)), ReplicaRow("b", digest(RUN)))
    told = plan(replace(seen, status=before, replicas=Replicas(2, mixed))).status.serving
    assert (told.revision, told.replicas_ready, told.replicas) == (1, 1, 2)


def test_what_could_not_be_asked_leaves_what_was_last_seen_to_serve():
    seen = ready().observe()
    assert plan(replace(seen, replicas=Unknown("timeout"))).status.serving == seen.status.serving


def test_a_candidate_is_told_while_it_is_rolled_out_only():
    world = edited(training__seed=2)
    seen_candidates = []
    for _ in range(12):
        world.now += timedelta(seconds=5)
        for name in list(world.jobs):
            world.finish(name)
        world.collect()
        world.kuberay()
        world.reconcile()
        seen_candidates.append(world.status.get("candidate", {}).get("revision"))
        world.load()
    assert 2 in seen_candidates
    assert seen_candidates[-1] is None


@pytest.mark.parametrize(
    ("seen", "seconds"),
    [
        (lambda: ready().observe(), reconcile.WATCHING_S),
        (with_job, reconcile.WORKING_S),
        (lambda: edited(serving__replicas=2).observe(), reconcile.ROLLING_OUT_S),
        (lambda: edited(gate__minReturn=600).observe(), reconcile.TROUBLED_S),
        (lambda: replace(ready().observe(), replicas=Unknown("x")), reconcile.WORKING_S),
        (lambda: answering(REFUSING), reconcile.TROUBLED_S),
        (lambda: replace(serving(problem=BROKEN), replicas=None), reconcile.TROUBLED_S),
        (lambda: answering(OLD), reconcile.ROLLING_OUT_S),
    ],
    ids=["at rest", "training", "told to roll out", "a problem", "unknown", "refused", "a pod that does not start", "loading"],
)
def test_the_next_look_is_as_soon_as_something_may_change(seen, seconds):
    assert plan(seen()).requeue_after_s == seconds


def test_on_one_machine_there_are_neither_claims_nor_ingresses():
    settings = replace(SETTINGS, in_cluster=False, base_url="http://127.0.0.1:8000")
    planned = plan(fresh(), settings)
    assert does(planned) == ["Create train", "Apply RayService", "rollout"]
    assert planned.status.url == "http://127.0.0.1:8000/cartpole-ppo"


def test_progress_of_the_running_training_is_told():
    progress = reconcile.statuses.Progress(3, 3072, 61.2, 12.5, 40.0)
    planned = plan(with_job(progress=progress, attempt=2, start_time="2026-01-01T00:00:00Z"))
    assert planned.status.training.progress == progress
    assert planned.status.training.attempt == 2
    assert "iteration 3, 3072 environment steps, mean return 61.2 (12% 40s)" in planned.status.condition("Trained").message


UNSCHEDULABLE = Problem("Unschedulable", "no node takes the pod p: 2 nodes are available")


@pytest.mark.parametrize(
    ("modes", "is_told"), [(["ReadWriteOnce"], True), (["ReadWriteOncePod"], True), (["ReadWriteMany"], False), (None, False)]
)
def test_where_no_node_takes_a_pod_it_is_told_that_the_claim_keeps_it_on_one(modes, is_told):
    storage = spec_of(document(storage={"pvc": {"existingClaim": "shared"}} if modes else {"s3": {"bucket": "policies"}})).storage
    claim = ChildState({"metadata": {"name": "shared"}, "spec": {"accessModes": modes}}) if modes else None
    for seen in (with_job(problem=UNSCHEDULABLE), evaluating(problem=UNSCHEDULABLE)):
        found = plan(replace(seen, spec=replace(seen.spec, storage=storage), claim=claim)).status.condition("Degraded")
        assert found.reason == "Unschedulable"
        assert found.message.startswith(UNSCHEDULABLE.message)
        assert ("the claim shared keeps its pods on one node; with S3 or a claim that is ReadWriteMany" in found.message) is is_told


def test_an_attempt_that_failed_is_told_once_with_its_cause():
    setback = "the pod p was ended by exit code 137"
    assert plan(with_job(setback=setback)).status.condition("Trained").message.endswith(f"is starting again: {setback}")
    first = plan(with_job())
    again = replace(with_job(attempt=2, setback=setback), status=first.status)
    planned = plan(again)
    (event,) = (event for event in planned.events if event.reason == "AttemptFailed")
    assert (event.type, event.message) == ("Warning", f"{setback}; attempt 2 goes on from the last checkpoint, if there is one")
    assert "AttemptFailed" not in [event.reason for event in plan(replace(again, status=planned.status)).events]
    gone = plan(replace(with_job(attempt=2), status=first.status))
    assert [event.message.partition(";")[0] for event in gone.events if event.reason == "AttemptFailed"] == ["a pod is gone"]


def test_an_attempt_that_only_its_training_counts_is_told_once_although_it_is_not_heard_for_a_while():
    seen = with_job(start_time="2026-01-01T00:00:00Z")
    events, attempts = [], []
    for attempt in (1, 2, 1, 2):
        planned = plan(replace(seen, jobs=(replace(seen.jobs[0], attempt=attempt, setback="a pod was drained"),)))
        events += [event.message.partition(";")[0] for event in planned.events if event.reason == "AttemptFailed"]
        attempts.append(planned.status.training.attempt)
        seen = replace(seen, status=planned.status)
    assert (attempts, events) == ([1, 2, 2, 2], ["a pod was drained"])
    another = plan(replace(seen, jobs=(replace(seen.jobs[0], start_time="2026-01-01T01:00:00Z"),)))
    assert another.status.training.attempt == 1


@pytest.mark.parametrize(
    ("now", "is_kept"),
    [
        ({"is_unheard": True}, True),
        ({}, False),
        ({"is_unheard": True, "attempt": 2}, False),
        ({"is_unheard": True, "start_time": "2026-01-01T01:00:00Z"}, False),
        ({"is_unheard": True, "phase": "Failed"}, False),
    ],
    ids=["not heard", "no pod runs", "another attempt", "another Job", "over"],
)
def test_what_was_last_heard_of_a_training_stands_while_its_pod_is_not_heard(now, is_kept):
    progress = reconcile.statuses.Progress(3, 3072, 61.2, 12.5, 40.0)
    before = with_job(progress=progress, start_time="2026-01-01T00:00:00Z")
    seen = replace(before, status=plan(before).status, jobs=(replace(before.jobs[0], progress=None, **now),))
    planned = plan(seen).status
    assert planned.training.progress == (progress if is_kept else None)
    assert ("and was last heard of at iteration 3" in planned.condition("Trained").message) is is_kept


def test_how_the_trials_of_a_search_stood_is_told_after_its_pod_has_gone():
    before, after = (
        SearchStatus(best, (TrialStatus(1, state, {"lr": 0.1}, 1024, 20.5),)) for best, state in ((1, "Training"), (1, "Finished"))
    )
    running = with_job(search=before)
    told = plan(running).status
    assert told.training.search == before
    silent = replace(running, status=told, jobs=tuple(replace(job, search=None) for job in running.jobs))
    assert plan(silent).status.training.search == before
    result = {
        "digest": "sha256:ab",
        "uri": "file:///b",
        "search": {"trial": 1, "seed": 7, "config": {"lr": 0.1}, "trials": [["Finished", 1024, 20.5]]},
    }
    ended = replace(silent, jobs=tuple(replace(job, phase="Succeeded", result=result) for job in silent.jobs))
    planned = plan(ended).status
    assert planned.training.search == after
    assert planned.revisions[-1].found_by == FoundBy(1, 1, 7, {"lr": 0.1})
    failed = replace(silent, jobs=tuple(replace(job, phase="Failed", problem=Problem("OutOfMemory", "m")) for job in silent.jobs))
    assert [trial.state for trial in plan(failed).status.training.search.trials] == ["Pending"]


def test_another_run_is_told_nothing_of_the_trials_of_the_one_before():
    running = with_job(search=SearchStatus(1, ()))
    told = plan(running).status
    other = replace(running, status=replace(told, training=replace(told.training, run="other")))
    assert plan(replace(other, jobs=tuple(replace(job, search=None) for job in other.jobs))).status.training.search is None


def argument_of_the_training(seen: Observed, flag: str) -> str | None:
    (job,) = (action.manifest for action in plan(seen).actions if said(action) == "Create train")
    arguments = job["spec"]["template"]["spec"]["containers"][0]["args"]
    return arguments[arguments.index(flag) + 1] if flag in arguments else None


def test_a_cold_start_is_told_nothing_to_begin_with():
    assert argument_of_the_training(edited(training__seed=1).observe(), "--warm-start") is None


@pytest.mark.parametrize("warm_start", ["Serving", 1, "1"])
def test_a_warm_start_begins_with_the_revision_that_is_named(warm_start):
    seen = edited(training__warmStart=warm_start).observe()
    (first,) = seen.status.revisions
    assert json.loads(argument_of_the_training(seen, "--warm-start")) == {"run": first.run, "digest": first.digest}


def test_a_warm_start_from_what_serves_is_a_cold_one_while_nothing_does():
    assert argument_of_the_training(fresh(training__warmStart="Serving"), "--warm-start") is None


def test_a_run_whose_bundle_is_lost_does_not_begin_with_itself():
    seen = ready(training__warmStart="Serving").observe()
    lost = seen.status.serving.digest
    missing = Problem("Missing", "there is no manifest.json")
    seen = replace(seen, jobs=(), replicas=Replicas(1, (ReplicaRow("lost", None, lost, missing),)))
    assert seen.status.revisions[0].digest == lost
    assert argument_of_the_training(seen, "--warm-start") is None


def test_a_warm_start_from_a_revision_that_is_not_known_is_a_problem_and_trains_nothing():
    planned = plan(edited(training__warmStart=7).observe())
    assert "Create train" not in does(planned)
    assert planned.status.condition("Trained").reason == "RevisionUnknown"
    assert "there are: 1" in planned.status.condition("Trained").message
    assert planned.status.condition("Available").status == "True"


def test_a_bucket_needs_no_claim():
    planned = plan(fresh(storage__pvc=None, storage__s3={"bucket": "policies", "prefix": "all"}))
    assert does(planned) == ["Create train", "Apply RayService", "rollout", "Apply Ingress"]


def affinity_of_the_training(seen: Observed) -> Any:
    (job,) = (action.manifest for action in plan(seen).actions if said(action) == "Create train")
    return job["spec"]["template"]["spec"].get("affinity")


@pytest.mark.parametrize(
    ("modes", "wanted"),
    [
        (["ReadWriteOnce"], "requiredDuringSchedulingIgnoredDuringExecution"),
        (["ReadWriteMany"], None),
        (None, "preferredDuringSchedulingIgnoredDuringExecution"),
    ],
    ids=["one node", "any node", "not known"],
)
def test_pods_are_placed_as_the_access_modes_of_an_existing_claim_ask_for(modes: Any, wanted: Any) -> None:
    claim = {"metadata": {"name": "mine"}, "spec": {"accessModes": modes} if modes else {}}
    seen = replace(fresh(storage__pvc={"existingClaim": "mine"}), claim=ChildState(claim, foreign=True))
    assert list((affinity_of_the_training(seen) or {}).get("podAffinity", {None: None})) == [wanted]


def test_a_claim_that_was_kept_places_pods_by_the_access_modes_that_it_has() -> None:
    kept = {**CLAIMED, "spec": {**CLAIMED["spec"], "accessModes": ["ReadWriteMany"]}}
    assert affinity_of_the_training(with_claim(manifest=kept)) is None


MISSING = ReplicaRow("lost", None, digest(RUN), Problem("Missing", "there is no manifest.json"))


def losing(*jobs: JobState, rows: tuple[ReplicaRow, ...] = (MISSING,)) -> Observed:
    """A policy that was published and approved, and whose bundle a replica misses."""
    seen = ready().observe()
    return replace(seen, jobs=jobs, replicas=Replicas(len(rows), rows))


def replacing(**more: Any) -> JobState:
    return training_job(fresh(), replaces=digest(RUN), **more)


def republished(found: str) -> dict[str, Any]:
    evaluation = {"id": spec_of(document()).looks(RUN)[0].id, "mean": 500, "std": 0, "episodes": 100, "seed": 1000}
    return {"digest": found, "uri": "file:///again", "evaluation": evaluation}


def adopted_and_losing(*claims: str) -> Observed:
    """An adopted RayService whose pods mount these claims, and that misses the bundle of a policy that was approved."""
    seen = losing()
    spec = replace(seen.spec, serving=replace(seen.spec.serving, ray_service="shared", ingress=None))
    live = replace(seen.ray_service, serve_config=resources.serve_config(seen.owner, spec, POLICY), foreign=True, claims=claims)
    return replace(seen, spec=spec, ray_service=live, ingress=None)


POLICY = {"uri": f"file:///storage/{RUN}", "digest": digest(RUN), "revision": 1}

LOST = {
    "a bundle that an adopted RayService misses is made again": Rung(
        lambda: adopted_and_losing("other", "cartpole-policies"), "Trained", ("False", "Starting"), ["Create train"]
    ),
    "a bundle is not made again for pods that cannot see it": Rung(
        lambda: adopted_and_losing("other"), "Trained", ("True", "Published"), []
    ),
    "a bundle that a replica misses is made again": Rung(losing, "Trained", ("False", "Starting"), ["Create train"]),
    "a bundle that only one of the replicas misses is made again": Rung(
        lambda: losing(rows=(GOOD, MISSING)), "Trained", ("False", "Starting"), ["Create train"]
    ),
    "the Job that had made it makes way": Rung(
        lambda: losing(training_job(fresh(), phase="Succeeded", result=republished(digest(RUN)))),
        "Trained",
        ("False", "BundleLost"),
        ["Delete train"],
    ),
    "while it is made again it is waited for": Rung(lambda: losing(replacing()), "Trained", ("False", "Training"), []),
    "a Job that could not make it again is not tried again by itself": Rung(
        lambda: losing(replacing(phase="Failed", problem=BROKEN)), "Trained", ("False", "Broken"), []
    ),
    "what was made again, and is missed all the same, is not asked for again": Rung(
        lambda: losing(replacing(phase="Succeeded", result=republished(digest(RUN)))), "Trained", ("True", "Published"), []
    ),
    "a bundle that is refused otherwise is not made again": Rung(lambda: losing(rows=(REFUSING,)), "Trained", ("True", "Published"), []),
    "a bundle of another policy that is missed is not made again": Rung(
        lambda: losing(rows=(replace(MISSING, error_digest=OLD.digest),)), "Trained", ("True", "Published"), []
    ),
}


@pytest.mark.parametrize("rung", LOST.values(), ids=LOST)
def test_a_lost_bundle_is_made_again_and_once(rung: Rung) -> None:
    planned = plan(rung.seen())
    assert (condition(planned, rung.type), does(planned)) == (rung.wanted, rung.does)


def test_the_job_that_makes_a_bundle_again_says_which() -> None:
    (job,) = plan(losing()).actions
    assert job.manifest["metadata"]["annotations"][names.ANNOTATION_REPLACES] == digest(RUN)


def test_a_bundle_that_was_made_again_otherwise_takes_the_place_of_the_lost_one() -> None:
    again = "sha256:" + "a" * 64
    planned = plan(losing(replacing(phase="Succeeded", result=republished(again))))
    assert [(revision.number, revision.digest) for revision in planned.status.revisions] == [(1, digest(RUN)), (2, again)]
    assert does(planned) == ["rollout"]
    assert again in planned.actions[0].manifest["spec"]["serveConfigV2"]
    settled = plan(replace(losing(replacing(phase="Succeeded", result=republished(again))), status=planned.status))
    assert settled.status.revisions == planned.status.revisions


def test_a_result_of_another_digest_that_replaces_nothing_is_no_news() -> None:
    again = training_job(fresh(), phase="Succeeded", result=republished("sha256:" + "a" * 64))
    assert len(plan(losing(again, rows=(GOOD,))).status.revisions) == 1


def test_an_evaluation_of_the_lost_bundle_makes_way_for_one_of_the_new() -> None:
    seen = losing(evaluation_job(fresh(), phase="Succeeded", result=republished(digest(RUN))))
    lost = seen.status.revisions[0]
    again = replace(lost, number=2, digest="sha256:" + "a" * 64, evaluation=None)
    planned = plan(replace(seen, status=replace(seen.status, revisions=(lost, again))))
    assert (condition(planned, "Approved"), does(planned)) == (("False", "Stopping"), ["Delete evaluate"])


@pytest.mark.parametrize("seed", [0, 2], ids=["comes out otherwise", "comes out the same"])
def test_a_policy_whose_bundle_was_lost_serves_again(seed: int) -> None:
    world = ready(training__seed=seed)
    run = spec_of(world.document).run
    world.lose(run)
    world.rows = [None]
    world.settle()
    assert world.condition("Ready")["status"] == "True"
    assert world.rows == [world.digests(run)[-1]]
    assert world.created == [names.training_job("cartpole", run)] * 2


def test_a_ray_service_that_was_lost_after_the_history_comes_back_with_the_policy_that_served() -> None:
    world = edited(training__seed=1)
    world.status, world.jobs = {}, {}
    world.reconcile()
    assert world.status["serving"]["uri"] == f"file:///storage/{RUN}"
    world.ray_service = None
    world.kuberay()
    world.settle()
    assert world.rows == [digest(RUN)]
    assert "" not in world.served[1:]


def test_where_a_policy_lies_that_is_in_no_history_is_remembered_as_long_as_it_answers() -> None:
    seen = ready().observe()
    known = replace(seen.status.serving, digest=OLD.digest, revision=None, uri="file:///old")
    told = plan(replace(seen, status=replace(seen.status, serving=known), replicas=Replicas(1, (OLD,)))).status.serving
    assert (told.digest, told.uri) == (OLD.digest, "file:///old")


def test_an_adopted_ray_service_that_does_not_mount_the_claim_is_told_so() -> None:
    ready_ = plan(adopted_and_losing("other")).status.condition("Ready")
    assert (ready_.status, ready_.reason) == ("False", "LoadFailed")
    assert ready_.message.endswith("The RayService shared mounts no claim cartpole-policies: it has to, at /storage")
    assert "mounts no claim" not in plan(adopted_and_losing("cartpole-policies")).status.condition("Degraded").message


ON_A_CLUSTER: dict[str, Any] = {
    "training__engine": "RayJob",
    "training__workers": 2,
    "storage__pvc": {"size": "1Gi", "accessModes": ["ReadWriteMany"]},
}


def with_ray_job(**more: Any) -> Observed:
    seen = fresh(**ON_A_CLUSTER)
    return replace(seen, jobs=(training_job(seen, kind="RayJob", **more),))


def test_a_training_on_a_ray_cluster_comes_to_rest_as_any_other():
    world = ready(**ON_A_CLUSTER)
    assert [job.manifest["kind"] for job in world.jobs.values()] == ["RayJob"]


def test_an_edit_takes_the_ray_job_of_before_away_and_not_a_job_under_its_name():
    seen = fresh(**ON_A_CLUSTER)
    seen = replace(seen, jobs=(training_job(seen, run="before", kind="RayJob"),))
    deleted = [action for action in plan(seen).actions if isinstance(action, Delete)]
    assert [(action.kind, action.name) for action in deleted] == [("RayJob", "cartpole-train-before")]


@pytest.mark.parametrize(
    ("more", "reason", "deleted"),
    [
        ({}, "Training", []),
        ({"problem": BROKEN}, "Broken", []),
        ({"phase": "Failed", "problem": BROKEN}, "Broken", []),
        ({"phase": "Failed", "problem": BROKEN, "hash": "of another day"}, "Stopping", ["RayJob"]),
        ({"phase": "Succeeded"}, "ResultLost", ["RayJob"]),
        ({"phase": "Succeeded", "deleting": True}, "Stopping", []),
    ],
    ids=["runs", "a pod does not start", "failed", "failed, and mended", "its submitter is gone", "on its way out"],
)
def test_what_becomes_of_a_ray_job(more, reason, deleted):
    planned = plan(with_ray_job(**more))
    assert condition(planned, "Trained") == ("False", reason)
    assert [action.kind for action in planned.actions if isinstance(action, Delete)] == deleted


def test_another_engine_leaves_a_training_alone_that_gets_on():
    for engine, kind in (("Job", "RayJob"), ("RayJob", "Job")):
        seen = fresh(**ON_A_CLUSTER | {"training__engine": engine})
        planned = plan(replace(seen, jobs=(training_job(seen, kind=kind, hash="of the other engine"),)))
        assert condition(planned, "Trained") == ("False", "Training")
        assert [action for action in planned.actions if isinstance(action, Create | Delete)] == []


def test_other_tracking_leaves_a_training_alone_that_gets_on():
    seen = fresh(training__tracking={"tensorBoard": True})
    planned = plan(replace(seen, jobs=(training_job(seen, hash="without tracking"),)))
    assert condition(planned, "Trained") == ("False", "Training")
    assert [action for action in planned.actions if isinstance(action, Create | Delete)] == []


def test_a_ray_cluster_is_refused_beside_an_existing_claim_for_one_node_and_on_one_machine_it_is_not_asked_for():
    seen = fresh(**ON_A_CLUSTER | {"storage__pvc": {"existingClaim": "mine"}})
    assert condition(plan(seen), "Accepted") == ("True", "Accepted")
    for modes, status in ((["ReadWriteOnce"], "False"), (["ReadWriteMany"], "True")):
        claim = ChildState({"metadata": {"name": "mine"}, "spec": {"accessModes": modes}})
        assert condition(plan(replace(seen, claim=claim)), "Accepted")[0] == status
        assert condition(plan(replace(seen, claim=claim), replace(SETTINGS, in_cluster=False)), "Accepted")[0] == "True"
