"""The hashes that name what is made. A red pin here means: every policy there is would be trained again."""

from __future__ import annotations

from dataclasses import replace

import pytest
from fakes.world import document

from controller import names, resources
from controller.model import Owner
from controller.spec import Spec, Trigger, spec_of

EXAMPLE_RUN = "3691641952"
EXAMPLE_EVALUATION = "22f122a329"

NOT_OF_THE_RUN = {
    "the gate's threshold": {"gate__minReturn": 100},
    "the gate's episodes": {"gate__episodes": 20},
    "the gate's seed": {"gate__seed": 7},
    "replicas": {"serving__replicas": 3},
    "the route": {"serving__route": "/other"},
    "the serving image": {"serving__image": "mine:1"},
    "an Ingress that goes": {"serving__ingress": None},
    "the deletion policy": {"storage__deletionPolicy": "Retain"},
    "the storage class": {"storage__pvc": {"size": "1Gi", "storageClassName": "fast"}},
    "a bucket": {"storage__pvc": None, "storage__s3": {"bucket": "policies", "prefix": "all"}},
    "a cold start that says so": {"training__warmStart": "None"},
    "a pause": {"paused": True},
    "pull secrets": {"imagePullSecrets": [{"name": "registry"}]},
    "the backoff limit": {"training__backoffLimit": 7},
    "the distance of checkpoints": {"training__checkpointEvery": 5},
    "the training pod's resources": {"training__resources": {"requests": {"cpu": "2"}}},
    "the training pod's template": {"training__template": {"nodeSelector": {"gpu": "yes"}}},
    "tracking": {"training__tracking": {"tensorBoard": True, "mlflow": {"trackingUri": "http://mlflow.ml:5000"}}},
    "the engine": {"training__engine": "RayJob", "storage__pvc": {"size": "1Gi", "accessModes": ["ReadWriteMany"]}},
}
OF_THE_RUN = {
    "the environment": {"environment": {"id": "CartPole-v0"}},
    "the environment's arguments": {"environment": {"id": "CartPole-v1", "config": {"sutton_barto_reward": True}}},
    "the training image": {"training__image": "mine:1"},
    "a setting": {"training__config": {"lr": 0.002}},
    "a stop criterion": {"training__stop": {"iterations": 3}},
    "workers": {"training__workers": 1},
    "the seed": {"training__seed": 1},
    "a warm start": {"training__warmStart": "Serving"},
    "a search": {"training__search": {"config": {"lr": {"values": [0.1]}}}},
}


def spec(**changes: object) -> Spec:
    return spec_of(document(**changes))


def test_the_run_of_the_example_is_pinned():
    assert spec().run == EXAMPLE_RUN


def test_the_evaluation_of_the_example_is_pinned():
    assert spec().looks(EXAMPLE_RUN)[0].id == EXAMPLE_EVALUATION


@pytest.mark.parametrize("changes", NOT_OF_THE_RUN.values(), ids=NOT_OF_THE_RUN)
def test_a_field_that_does_not_train_leaves_the_run(changes):
    assert spec(**changes).run == EXAMPLE_RUN


@pytest.mark.parametrize("changes", OF_THE_RUN.values(), ids=OF_THE_RUN)
def test_a_field_that_trains_makes_another_run(changes):
    assert spec(**changes).run != EXAMPLE_RUN


@pytest.mark.parametrize(
    ("changes", "is_another"),
    [({"gate__episodes": 50}, True), ({"gate__seed": 5}, True), ({"gate__minReturn": 5}, False), ({"serving__replicas": 2}, False)],
    ids=["episodes", "seed", "threshold", "replicas"],
)
def test_an_evaluation_is_made_from_the_run_the_episodes_and_the_seed(changes, is_another):
    assert (spec(**changes).looks(EXAMPLE_RUN)[0].id != EXAMPLE_EVALUATION) is is_another
    assert spec().looks("another-run")[0].id != EXAMPLE_EVALUATION


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"a": 475}, {"a": 475.0}),
        ({"a": 1, "b": 2}, {"b": 2, "a": 1}),
        ({"a": (1, 2)}, {"a": [1, 2.0]}),
        ({"a": {"b": 1e3}}, {"a": {"b": 1000}}),
    ],
    ids=["number", "order of keys", "tuple and list", "nested"],
)
def test_what_is_the_same_in_json_has_the_same_hash(one, other):
    assert names.digest_of(one) == names.digest_of(other)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"a": 0.1}, {"a": 0.10000001}),
        ({"a": "1"}, {"a": 1}),
        ({"a": [1, 2]}, {"a": [2, 1]}),
        ({"a": {}}, {}),
        ({"a": True}, {"a": "True"}),
    ],
    ids=["digits", "text and number", "order of a list", "empty and absent", "boolean and text"],
)
def test_what_differs_in_json_has_another_hash(one, other):
    assert names.digest_of(one) != names.digest_of(other)


COMPARED = Spec.looks(spec(gate__againstServing={"maxRegression": 1}), EXAMPLE_RUN, "sha256:a")


def test_a_comparison_is_made_from_the_incumbent_too_and_not_from_the_margin():
    asked = spec(gate__againstServing={"maxRegression": 2, "confidence": 0.9})
    assert asked.looks(EXAMPLE_RUN, "sha256:a") == COMPARED
    assert asked.looks(EXAMPLE_RUN, "sha256:b")[0].id != COMPARED[0].id
    assert asked.looks(EXAMPLE_RUN)[0].id == EXAMPLE_EVALUATION
    assert len({look.id for look in COMPARED}) == 3


def test_a_run_that_was_triggered_is_named_by_its_trigger_and_leaves_the_first_its_name():
    first, other = Trigger("Request", EXAMPLE_RUN, "a", 1), Trigger("Request", EXAMPLE_RUN, "b", 1)
    runs = {replace(spec(), trigger=trigger).run for trigger in (None, first, other)}
    assert len(runs) == 3
    assert replace(spec(), trigger=first).origin == EXAMPLE_RUN
    assert replace(spec(), trigger=replace(first, number=7)).run in runs


def test_children_are_named_after_their_owner_and_what_they_are_made_from():
    assert names.training_job("cartpole", EXAMPLE_RUN) == f"cartpole-train-{EXAMPLE_RUN}"
    assert names.evaluation_job("cartpole", "abc") == "cartpole-evaluate-abc"
    assert names.claim("cartpole") == "cartpole-policies"
    assert names.serve_service("cartpole") == "cartpole-serve-svc"


def test_a_ray_job_has_the_name_of_the_job_where_kuberay_takes_it():
    assert names.training_ray_job("a" * 30, EXAMPLE_RUN) == names.training_job("a" * 30, EXAMPLE_RUN)
    longer = [names.training_ray_job("a" * 39 + last, run) for last in "bc" for run in (EXAMPLE_RUN, "0" * 10)]
    assert len(set(longer)) == 4
    assert {len(name) for name in longer} == {47}


def test_the_longest_name_that_the_schema_takes_fits_into_every_childs_name():
    owner, spec_ = Owner("default", "a" * 40, "uid"), spec()
    longest = [names.training_job(owner.name, spec_.run), names.evaluation_job(owner.name, spec_.looks(spec_.run)[0].id)]
    # A Job's name becomes a label's value of its pods: 63 characters.
    assert max(map(len, longest)) <= 63
    assert len(names.serve_service(resources.ray_service_name(owner, spec_))) <= 63
