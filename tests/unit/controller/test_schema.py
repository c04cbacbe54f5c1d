"""Reading a PolicyModel from a file: YAML as Kubernetes reads it, refusals in words, and never a value in them."""

from __future__ import annotations

import copy

import pytest
import yaml
from fakes.world import EXAMPLE, document

from controller import schema
from controller.schema import InvalidPolicyModel

SECRET = "hunter2"

SCALARS = {
    "1e-3": 0.001,
    "1E3": 1000,
    "1.5e+3": 1500,
    "1.": 1,
    ".5": 0.5,
    "+.5e1": 5,
    "-7": -7,
    "12e03": 12000,
    "0x1F": 31,
    "0o10": 8,
    "010": 8,
    "09": 9,
    "0b11": 3,
    "1_000": 1000,
    "1:30": "1:30",
    "2026-01-01": "2026-01-01",
    "2026-01-01T00:00:00Z": "2026-01-01T00:00:00Z",
    "yes": True,
    "off": False,
    "'1'": "1",
    '"1e-3"': "1e-3",
    "1e": "1e",
    "e3": "e3",
    "+": "+",
    ".": ".",
    "1.2.3": "1.2.3",
    "~": None,
    "": None,
}


@pytest.mark.parametrize(
    ("text", "value"), [pytest.param(text, value, id=text or "empty") for text, value in SCALARS.items() if text != "-"]
)
def test_a_scalar_is_what_kubernetes_takes_it_for(text, value):
    found = schema.loaded(f"a: {text}")["a"]
    assert found == value
    assert isinstance(found, bool) == isinstance(value, bool)


@pytest.mark.parametrize("text", [".nan", ".inf", "-.Inf", "1e999"])
def test_a_number_that_json_cannot_hold_is_refused(text):
    with pytest.raises(InvalidPolicyModel, match="line 1, column 4: numbers have to be finite"):
        schema.loaded(f"a: {text}")


def test_keys_are_text_as_in_json():
    assert schema.loaded("{2: a, true: b, c: d}") == {"2": "a", "true": "b", "c": "d"}


def test_a_key_that_stands_twice_is_refused_by_name():
    with pytest.raises(InvalidPolicyModel, match="line 2, column 3: the key 'a' stands twice"):
        schema.loaded("b:\n  a: 1\n  a: 2")


def test_anchors_and_merges_work_and_a_merged_key_may_be_overridden():
    text = "one: &one {a: 1, b: 2}\ntwo: {<<: *one, b: 3}"
    assert schema.loaded(text) == {"one": {"a": 1, "b": 2}, "two": {"a": 1, "b": 3}}


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "it holds 0 documents"),
        ("---\n---\n", "it holds 0 documents"),
        ("a: 1\n---\nb: 2", "it holds 2 documents"),
        ("- a", "it holds 1 documents"),
        ("just text", "it holds 1 documents"),
    ],
    ids=["nothing", "empty documents", "two", "a list", "text"],
)
def test_a_file_holds_exactly_one_policy_model(text, why):
    with pytest.raises(InvalidPolicyModel, match=why):
        schema.loaded(text)


@pytest.mark.parametrize(
    "text",
    [f"password: {SECRET}: x", f"a: [{SECRET}", f"a: !!python/object {SECRET}", f"a: '{SECRET}", f"a: *{SECRET}x\n", f"\t{SECRET}: 1"],
    ids=["colon", "bracket", "tag", "quote", "alias", "tab"],
)
def test_a_refusal_of_yaml_gives_the_place_and_not_the_line(text):
    with pytest.raises(InvalidPolicyModel, match="not YAML: line 1, column") as refused:
        schema.loaded(text)
    if "alias" not in str(refused.value):
        assert SECRET not in str(refused.value)


def refusal(**changes: object) -> str:
    with pytest.raises(InvalidPolicyModel) as refused:
        document(**changes)
    return str(refused.value)


BAD = {
    "an unknown setting": ({"training__config": {"xyz": 1}}, "spec.training.config.xyz: unknown field; allowed are clipParam"),
    "a setting spelt nearly right": ({"training__config": {"gama": 1}}, "spec.training.config.gama: unknown field (did you mean gamma?)"),
    "a field at the wrong place": ({"seed": 1}, "spec.seed: unknown field"),
    "a number that is text": ({"training__seed": SECRET}, "spec.training.seed: allowed is type integer"),
    "a fraction": ({"training__seed": 1.5}, "spec.training.seed: allowed is type integer"),
    "too small": ({"gate__episodes": 9}, "spec.gate.episodes: allowed is at least 10"),
    "nothing where something is asked for": ({"training__config": {"lr": 0}}, "spec.training.config.lr: allowed is above 0"),
    "too large": ({"serving__replicas": 51}, "spec.serving.replicas: allowed is at most 50"),
    "not one of": ({"serving__outOfBounds": SECRET}, "spec.serving.outOfBounds: allowed is one of Answer, Reject"),
    "a route without a slash": ({"serving__route": SECRET}, "spec.serving.route: allowed is text that matches ^/"),
    "too long": ({"serving__route": "/" + "a" * 200}, "spec.serving.route: allowed is at most 128 characters"),
    "nothing": ({"serving__image": ""}, "spec.serving.image: allowed is at least 1 characters"),
    "no layers": ({"training__config": {"fcnetHiddens": []}}, "spec.training.config.fcnetHiddens: allowed is at least 1 items"),
    "too many layers": ({"training__config": {"fcnetHiddens": [8] * 9}}, "allowed is at most 8 items"),
    "a layer that is none": ({"training__config": {"fcnetHiddens": [0]}}, "spec.training.config.fcnetHiddens.0: allowed is at least 1"),
    "a quantity that is none": ({"training__resources": {"limits": {"cpu": SECRET}}}, "limits.cpu: allowed is text that matches"),
    "a quantity that is true": ({"training__resources": {"limits": {"cpu": True}}}, "limits.cpu: allowed is an integer or text"),
    "a missing value": ({"gate__minReturn": None}, "spec.gate.minReturn: a value is required"),
    "both an id and an entry point": (
        {"environment": {"id": "a", "entryPoint": "b:C"}},
        "spec.environment: exactly one of id and entryPoint is allowed",
    ),
    "a minibatch larger than the batch": (
        {"training__config": {"trainBatchSize": 64, "minibatchSize": 128}},
        "spec.training.config.minibatchSize: at most trainBatchSize is allowed",
    ),
    "a minibatch larger than the default batch": (
        {"training__config": {"minibatchSize": 2048}},
        "spec.training.config.minibatchSize: at most trainBatchSize is allowed",
    ),
    "an image beside an adopted RayService": (
        {"serving__rayService": "a", "serving__image": "b"},
        "spec.serving.rayService: an adopted RayService keeps its own pods",
    ),
}


@pytest.mark.parametrize(("changes", "words"), BAD.values(), ids=BAD)
def test_a_bad_field_is_refused_by_its_name_and_by_what_is_allowed(changes, words):
    assert words in refusal(**changes)


@pytest.mark.parametrize("changes", [changes for changes, _ in BAD.values()], ids=BAD)
def test_a_refusal_never_repeats_a_value(changes):
    assert SECRET not in refusal(**changes)


def test_every_fault_is_told_at_once_each_with_its_own_hint():
    lines = refusal(training__config={"gama": 1, "zzz": 2, "lr": 5}, gate__minReturn=None, serving={}).splitlines()
    starts = [
        "spec.gate.minReturn: a value is required",
        "spec.serving.route: a value is required",
        "spec.training.config.gama: unknown field (did you mean gamma?)",
        "spec.training.config.lr: allowed is at most 1",
        "spec.training.config.zzz: unknown field; allowed",
    ]
    assert len(lines) == len(starts)
    assert all(line.startswith(start) for line, start in zip(sorted(lines), starts, strict=True)), lines


def test_two_missing_values_are_both_told():
    found = yaml.safe_load(EXAMPLE)
    del found["spec"]["gate"], found["spec"]["storage"]
    with pytest.raises(InvalidPolicyModel, match=r"spec\.gate: a value is required\nspec\.storage: a value is required"):
        schema.defaulted(found)


IDENTITIES = {
    "another version": ({"apiVersion": "policymodel.dev/v2"}, "apiVersion: policymodel.dev/v1alpha1 is allowed"),
    "another kind": ({"kind": "Pod"}, "kind: PolicyModel is allowed"),
    "no name": ({"metadata": {}}, "metadata.name: a name is required"),
    "no metadata": ({"metadata": None}, "metadata.name: a name is required"),
    "a name that is a number": ({"metadata": {"name": 5}}, "metadata.name: a name is required"),
    "a long name": ({"metadata": {"name": "a" * 41}}, "metadata.name: at most 40 characters are allowed"),
    "a name with a capital": ({"metadata": {"name": "Cart"}}, "metadata.name: allowed are lower-case letters"),
    "a name that begins with a digit": ({"metadata": {"name": "1cart"}}, "metadata.name: allowed are lower-case letters"),
    "no spec": ({"spec": None}, "the document.spec: a value is required"),
    "another field": ({"spce": {}}, "the document.spce: unknown field (did you mean spec?)"),
}


@pytest.mark.parametrize(("changes", "words"), IDENTITIES.values(), ids=IDENTITIES)
def test_a_document_that_is_no_policy_model_is_refused(changes, words):
    found = {key: value for key, value in (yaml.safe_load(EXAMPLE) | changes).items() if value is not None}
    with pytest.raises(InvalidPolicyModel) as refused:
        schema.defaulted(found)
    assert words in str(refused.value)


def test_a_field_that_stands_there_empty_is_one_that_is_not_there():
    found = yaml.safe_load(EXAMPLE)
    found["spec"]["training"].update(stop=None, config=None, image=None, seed=None)
    found["spec"]["paused"] = None
    whole = schema.defaulted(found)["spec"]
    assert whole["training"]["stop"] == {"timeSeconds": 3600}
    assert whole["training"]["config"]["lr"] == 0.001
    assert "image" not in whole["training"]
    assert (whole["training"]["seed"], whole["paused"]) == (0, False)


def test_an_argument_of_the_environment_may_be_null():
    assert document(environment={"id": "a", "config": {"render": None}})["spec"]["environment"]["config"] == {"render": None}


def test_the_document_that_is_read_is_not_changed():
    found = yaml.safe_load(EXAMPLE)
    before = copy.deepcopy(found)
    schema.defaulted(found)["spec"]["training"]["config"]["lr"] = 7
    assert found == before
    assert schema.load(EXAMPLE)["spec"]["training"]["config"]["lr"] == 0.001


def test_a_default_is_a_copy_of_its_own():
    first, second = document(), document()
    first["spec"]["training"]["config"]["fcnetHiddens"].append(1)
    assert second["spec"]["training"]["config"]["fcnetHiddens"] == [64, 64]


def test_what_has_its_defaults_stays_as_it_is():
    assert schema.defaulted(document()) == document()


IMMUTABLE = {
    "the claim's size": ({"storage__pvc": {"size": "2Gi"}}, "spec.storage.pvc: may not be changed"),
    "the claim": ({"storage__pvc": {"existingClaim": "mine"}}, "spec.storage.pvc: may not be changed"),
    "the RayService that is adopted": ({"serving__rayService": "shared"}, "spec.serving.rayService: may not be changed"),
}


@pytest.mark.parametrize(("changes", "words"), IMMUTABLE.values(), ids=IMMUTABLE)
def test_a_field_that_may_not_change_may_be_chosen_at_first_only(changes, words):
    changed = document(**changes)
    with pytest.raises(InvalidPolicyModel) as refused:
        schema.defaulted(changed, before=document())
    assert words in str(refused.value)
    schema.defaulted(changed, before=changed)


def test_another_field_may_change():
    schema.defaulted(document(training__seed=5), before=document())


@pytest.mark.parametrize("namespace", ["../../evil", "Default", ""])
def test_a_namespace_that_is_no_name_is_refused(namespace):
    with pytest.raises(InvalidPolicyModel, match=r"metadata\.namespace"):
        schema.load(EXAMPLE.replace("name: cartpole", f'name: cartpole\n  namespace: "{namespace}"'))


def test_a_line_end_is_no_part_of_a_pattern():
    with pytest.raises(InvalidPolicyModel, match=r"spec\.serving\.route"):
        schema.load(EXAMPLE.replace("route: /cartpole-ppo", 'route: "/cartpole-ppo\\n"'))
