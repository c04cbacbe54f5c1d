"""spec_of: from a defaulted document to a Spec."""

from __future__ import annotations

import copy

import pytest
from fakes.world import document

from controller.model import Condition, Status
from controller.spec import IngressSpec, StorageSpec, spec_of


def test_the_example_is_read_with_the_schemas_defaults():
    spec = spec_of(document())
    assert spec.environment == {"id": "CartPole-v1", "config": {}}
    assert (spec.training.algorithm, spec.training.workers, spec.training.seed, spec.training.image) == ("PPO", 0, 0, None)
    assert (spec.training.checkpoint_every, spec.training.backoff_limit, spec.training.template) == (10, 2, {})
    assert spec.training.stop == {"episodeReturnMean": 475, "envSteps": 200000, "timeSeconds": 3600}
    assert spec.training.resources == {"requests": {"cpu": "200m", "memory": "1Gi"}}
    assert (spec.gate.episodes, spec.gate.seed, spec.gate.min_return) == (100, 1000, 475)
    assert spec.storage == StorageSpec("1Gi", ("ReadWriteOnce",), None, None, "Delete", 5)
    assert (spec.serving.route, spec.serving.replicas, spec.serving.out_of_bounds) == ("/cartpole-ppo", 1, "Answer")
    assert (spec.serving.image, spec.serving.ray_service, spec.serving.resources, spec.serving.template) == (None, None, {}, {})
    assert spec.serving.ingress == IngressSpec("cartpole.localhost", None, None, {})
    assert (spec.image_pull_secrets, spec.paused) == ((), False)


TABLE = {
    "entry point": ({"environment": {"entryPoint": "acme.a:B"}}, lambda spec: spec.environment["entryPoint"], "acme.a:B"),
    "training image": ({"training__image": "mine:1"}, lambda spec: spec.training.image, "mine:1"),
    "training template": ({"training__template": {"labels": {"a": "b"}}}, lambda spec: spec.training.template, {"labels": {"a": "b"}}),
    "pull secrets": ({"imagePullSecrets": [{"name": "a"}, {"name": "b"}]}, lambda spec: spec.image_pull_secrets, ("a", "b")),
    "pause": ({"paused": True}, lambda spec: spec.paused, True),
    "existing claim": (
        {"storage__pvc": {"existingClaim": "mine"}},
        lambda spec: (spec.storage.existing_claim, spec.storage.size),
        ("mine", None),
    ),
    "access modes": (
        {"storage__pvc": {"size": "2Gi", "accessModes": ["ReadWriteMany"]}},
        lambda spec: spec.storage.access_modes,
        ("ReadWriteMany",),
    ),
    "storage class": ({"storage__pvc": {"size": "2Gi", "storageClassName": "fast"}}, lambda spec: spec.storage.storage_class_name, "fast"),
    "deletion policy": ({"storage__deletionPolicy": "Retain"}, lambda spec: spec.storage.deletion_policy, "Retain"),
    "revisions kept": ({"storage__keepRevisions": 1}, lambda spec: spec.storage.keep_revisions, 1),
    "no Ingress": ({"serving__ingress": None}, lambda spec: spec.serving.ingress, None),
    "full Ingress": (
        {"serving__ingress": {"host": "a.example", "className": "c", "tlsSecretName": "t", "annotations": {"k": "v"}}},
        lambda spec: spec.serving.ingress,
        IngressSpec("a.example", "c", "t", {"k": "v"}),
    ),
    "adopted RayService": ({"serving__rayService": "shared"}, lambda spec: spec.serving.ray_service, "shared"),
    "one replica": ({}, lambda spec: list(spec.serving.replica_range), [1]),
    "three replicas": ({"serving__replicas": 3}, lambda spec: list(spec.serving.replica_range), [3]),
    "autoscaling": (
        {"serving__replicas": None, "serving__autoscaling": {"min": 2, "max": 4, "targetRequestsPerSecond": 10}},
        lambda spec: list(spec.serving.replica_range),
        [2, 3, 4],
    ),
    "strict bounds": ({"serving__outOfBounds": "Reject"}, lambda spec: spec.serving.out_of_bounds, "Reject"),
    "threshold": ({"gate__minReturn": -1.5}, lambda spec: spec.gate.min_return, -1.5),
}


@pytest.mark.parametrize(("changes", "read", "wanted"), TABLE.values(), ids=TABLE)
def test_a_field_of_the_document_is_a_field_of_the_spec(changes, read, wanted):
    assert read(spec_of(document(**changes))) == wanted


def test_reading_does_not_change_the_document():
    before = document()
    after = copy.deepcopy(before)
    spec_of(after)
    assert after == before


def test_a_document_that_never_went_through_the_schema_is_refused():
    with pytest.raises(KeyError):
        spec_of({"spec": {"environment": {}, "training": {}, "gate": {}, "storage": {"pvc": {}}, "serving": {}}})


def test_a_status_finds_its_condition_or_none():
    ready = Condition("Ready", "True", "Serving", "")
    assert Status(conditions=(ready,)).condition("Ready") is ready
    assert Status(conditions=(ready,)).condition("Degraded") is None
