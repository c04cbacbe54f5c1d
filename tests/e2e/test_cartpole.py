"""The main job on a real cluster: the README's PolicyModel, its queries, its edits, its mishaps."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys

import pytest
import requests

from e2e.conftest import ROOT, example
from e2e.kube import INGRESS_URL, OBSERVATION, Namespace, kubectl, post, steady_load, wait


def served_digest(namespace: Namespace) -> str:
    return str(namespace.get("policymodel", "cartpole")["status"]["serving"]["digest"])


def test_a_query_through_the_ingress_is_answered_by_the_digest_in_the_status(cartpole: Namespace) -> None:
    host = f"{cartpole.name}.localhost"
    as_json = post(host)
    as_form = post(host, json=None, data=json.dumps(OBSERVATION))
    as_the_tutorial_does = requests.get(f"{INGRESS_URL}/cartpole-ppo", json=OBSERVATION, headers={"Host": host}, timeout=10)
    for answer in (as_json, as_form, as_the_tutorial_does):
        assert answer.status_code == 200
        assert answer.json()["action"] in (0, 1)
        assert answer.headers["x-policy-digest"] == served_digest(cartpole)


def test_twenty_episodes_through_the_ingress_average_475(cartpole: Namespace) -> None:
    url = ["--url", f"{INGRESS_URL}/cartpole-ppo", "--host", f"{cartpole.name}.localhost"]
    command = [sys.executable, "-m", "app.client", *url, "--episodes", "20", "--quiet"]
    said = subprocess.run(command, capture_output=True, text=True, timeout=300, cwd=ROOT, check=True).stdout
    last = said.strip().splitlines()[-1]
    assert last.startswith("mean return over 20 episodes: ")
    assert float(last.rsplit(" ", 1)[1]) >= 475


def test_a_new_seed_is_trained_and_rolled_out_without_a_failed_request(cartpole: Namespace) -> None:
    before = served_digest(cartpole)
    edited = example(cartpole)
    edited["spec"]["training"]["seed"] = 1
    with steady_load(f"{cartpole.name}.localhost", connections=8) as load:
        cartpole.apply(edited)
        cartpole.wait_condition("cartpole", "Ready", "True", timeout_s=400)
        answered = len(load.digests)
        wait(lambda: len(load.digests) > answered + 200, 60, "200 more answers")
    after = served_digest(cartpole)
    assert load.failures == []
    assert before != after
    changes = [digest for digest, _ in itertools.groupby(load.digests)]
    assert set(changes) == {before, after}
    # Answers of several connections may overtake each other at the switch, and nowhere else.
    assert load.digests[-100:] == [after] * 100
    first_new, last_old = load.digests.index(after), len(load.digests) - 1 - load.digests[::-1].index(before)
    assert last_old - first_new < 16
    line = kubectl("get", "pm", "cartpole", "-n", cartpole.name, "--no-headers").split()
    assert line[:2] == ["cartpole", "Ready"]
    assert "True" in line


@pytest.mark.parametrize(
    ("edit", "type_", "reason", "words"),
    [
        pytest.param({"environment": {"id": "CartPole-v9"}}, "Trained", "InvalidEnvironment", "spec.environment.id", id="environment"),
        pytest.param({"gate": {"minReturn": 501}}, "Approved", "GateFailed", "spec.gate.minReturn is 501", id="gate"),
        pytest.param(
            {"training": {"image": "localhost/no-such-image:1"}}, "Trained", "ImagePullFailed", "spec.training.image", id="training image"
        ),
    ],
)
def test_a_bad_edit_says_what_is_wrong_and_what_served_still_serves(
    cartpole: Namespace, edit: dict[str, dict[str, object]], type_: str, reason: str, words: str
) -> None:
    before = served_digest(cartpole)
    edited = example(cartpole)
    for section, fields in edit.items():
        edited["spec"][section] |= fields
    cartpole.apply(edited)
    found = cartpole.wait_condition("cartpole", type_, "False", reason, timeout_s=180)
    assert words in found["message"]
    assert cartpole.condition("cartpole", "Available")["status"] == "True"
    assert cartpole.condition("cartpole", "Ready")["status"] == "False"
    assert post(f"{cartpole.name}.localhost").headers["x-policy-digest"] == before


def test_a_claim_that_cannot_be_bound_is_named(namespace: Namespace) -> None:
    document = example(namespace)
    document["spec"]["storage"]["pvc"]["storageClassName"] = "no-such-class"
    namespace.apply(document)
    found = namespace.wait_condition("cartpole", "Trained", "False", "StorageNotBound", timeout_s=120)
    assert "no-such-class" in found["message"]


def test_an_unknown_training_setting_is_refused_by_apply_itself(namespace: Namespace) -> None:
    document = example(namespace)
    document["spec"]["training"]["config"]["learningRate"] = 0.1
    said = namespace.kubectl("apply", "-f", "-", stdin=json.dumps(document), check=False)
    assert 'unknown field "spec.training.config.learningRate"' in said
    assert namespace.list("policymodel") == []


def test_deletion_leaves_nothing(namespace: Namespace) -> None:
    namespace.apply(example(namespace))
    for kind in ("job", "rayservice", "pvc", "ingress"):
        wait(lambda kind=kind: namespace.list(kind), 60, f"a {kind}")
    namespace.kubectl("delete", "pm", "cartpole", "--timeout=120s")
    for kind in ("job", "rayservice", "raycluster", "pod", "pvc", "ingress", "service"):
        wait(lambda kind=kind: not namespace.list(kind), 180, f"no {kind}")


def test_retained_storage_outlives_its_policymodel(namespace: Namespace) -> None:
    document = example(namespace)
    document["spec"]["storage"]["deletionPolicy"] = "Retain"
    namespace.apply(document)
    wait(lambda: namespace.get("pvc", "cartpole-policies"), 60, "the claim")
    namespace.kubectl("delete", "pm", "cartpole", "--timeout=120s")
    wait(lambda: not namespace.list("job"), 180, "no job")
    assert "deletionTimestamp" not in namespace.get("pvc", "cartpole-policies")["metadata"]
