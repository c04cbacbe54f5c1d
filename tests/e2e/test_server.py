"""The replicas under load: whatever is changed around them, no request fails."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import requests

from app.client import PolicyClient
from e2e.conftest import example
from e2e.kube import INGRESS_URL, OBSERVATION, Load, Namespace, head_pod, lone_head_pod, steady_load, wait

ANOTHER_NAME_OF_THE_IMAGE = "docker.io/library/policymodel-serve:dev"


def edit(namespace: Namespace, **serving: object) -> None:
    """Changes fields of spec.serving, and waits until every replica answers so."""
    document = example(namespace)
    document["spec"]["serving"] |= serving
    namespace.apply(document)
    namespace.wait_condition("cartpole", "Ready", "True", timeout_s=300)


def kill_a_replica(namespace: Namespace) -> None:
    """SIGKILL to one replica's process; procps is not in the image."""
    program = (
        "import os, signal, pathlib\n"
        "found = [p for p in pathlib.Path('/proc').glob('[0-9]*') if (p / 'cmdline').read_bytes().startswith(b'ray::ServeReplica')]\n"
        "os.kill(int(found[0].name), signal.SIGKILL)"
    )
    namespace.kubectl("exec", lone_head_pod(namespace), "-c", "ray-head", "--", "python", "-c", program)


def answered_meanwhile(namespace: Namespace, change: Callable[[], None], connections: int = 16) -> Load:
    """What came back while something was changed, and for a while after it."""
    with steady_load(f"{namespace.name}.localhost", connections) as load:
        wait(lambda: len(load.digests) > 100, 60, "answers before the change")
        change()
        answered = len(load.digests)
        wait(lambda: len(load.digests) > answered + 500, 60, "answers after the change")
    return load


def test_configurations_and_replicas_change_without_a_failed_request(cartpole: Namespace) -> None:
    def change() -> None:
        for bounds in ("Reject", "Answer"):
            edit(cartpole, outOfBounds=bounds)
        for replicas in (2, 1):
            edit(cartpole, replicas=replicas)

    load = answered_meanwhile(cartpole, change)
    assert load.failures == []
    assert len(set(load.digests)) == 1


def test_the_policy_describes_itself_through_the_ingress(cartpole: Namespace) -> None:
    host = {"Host": f"{cartpole.name}.localhost"}
    url = f"{INGRESS_URL}/cartpole-ppo"
    spec = requests.get(f"{url}/v1/spec", headers=host, timeout=10).json()
    assert spec["digest"] == cartpole.get("policymodel", "cartpole")["status"]["serving"]["digest"]
    assert requests.post(url, json=spec["example"], headers=host, timeout=10).status_code == 200
    for path in ("/openapi.json", "/docs", "/healthz", "/v2/health/ready", "/v2/models/cartpole/ready"):
        assert requests.get(f"{url}{path}", headers=host, timeout=10).status_code == 200, path


def test_our_503_passes_haproxy_and_the_ingress_as_it_is(namespace: Namespace) -> None:
    document = example(namespace)
    document["spec"]["environment"]["id"] = "CartPole-v9"  # no policy will come
    namespace.apply(document)

    def unready() -> tuple[requests.Response] | None:
        try:
            answer = requests.post(
                f"{INGRESS_URL}/cartpole-ppo", json=OBSERVATION, headers={"Host": f"{namespace.name}.localhost"}, timeout=10
            )
        except requests.RequestException:
            return None
        return (answer,) if answer.headers.get("content-type") == "application/problem+json" else None

    (answer,) = wait(unready, 240, "an answer of the replica's own")
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")


def test_the_replicas_metrics_are_on_the_pods_endpoint(cartpole: Namespace) -> None:
    host = {"Host": f"{cartpole.name}.localhost"}
    assert requests.post(f"{INGRESS_URL}/cartpole-ppo", json=OBSERVATION, headers=host, timeout=10).status_code == 200
    program = "import urllib.request; print(urllib.request.urlopen('http://127.0.0.1:8080/metrics').read().decode())"

    def shown() -> bool:
        text = cartpole.kubectl("exec", head_pod(cartpole), "-c", "ray-head", "--", "python", "-c", program)
        wanted = ("ray_policymodel_requests_total{", 'code="200"', "ray_policymodel_request_seconds_bucket{", "ray_policymodel_loaded{")
        return all(part in text for part in wanted)

    wait(shown, 60, "the metrics of the replicas")


@pytest.mark.full
def test_ten_configurations_and_replicas_one_three_one_under_load(cartpole: Namespace) -> None:
    def change() -> None:
        for number in range(10):
            edit(cartpole, outOfBounds=("Reject", "Answer")[number % 2])
            time.sleep(4)
        for replicas in (3, 1):
            edit(cartpole, replicas=replicas)
            time.sleep(20)

    load = answered_meanwhile(cartpole, change)
    print(json.dumps({"answers": len(load.digests), "failures": load.failures}))
    assert load.failures == []


@pytest.mark.full
def test_more_requests_get_more_replicas(cartpole: Namespace) -> None:
    """8 connections ask some 300 times a second, where one replica is to answer 20; Serve waits half a minute before it believes that."""
    document = example(cartpole)
    del document["spec"]["serving"]["replicas"]
    document["spec"]["serving"]["autoscaling"] = {"min": 1, "max": 3, "targetRequestsPerSecond": 20}
    cartpole.replace(document)
    with steady_load(f"{cartpole.name}.localhost", 8) as load:
        wait(lambda: cartpole.get("policymodel", "cartpole")["status"]["serving"]["replicas"] == 3, 240, "three replicas")
    assert load.failures == []


@pytest.mark.full
def test_a_killed_replica_of_two_loses_what_waits_there_and_our_client_nothing(cartpole: Namespace) -> None:
    edit(cartpole, replicas=2)
    connections, kills = 16, 3
    acted, is_over = [0], threading.Event()

    def act() -> None:
        with PolicyClient(f"{INGRESS_URL}/cartpole-ppo", host=f"{cartpole.name}.localhost") as client:
            while not is_over.wait(0.01):
                client.act(OBSERVATION["observation"])
                acted[0] += 1

    def change() -> None:
        with ThreadPoolExecutor() as threads:
            acting = [threads.submit(act) for _ in range(4)]
            try:
                for _ in range(kills):
                    kill_a_replica(cartpole)
                    time.sleep(5)
                    cartpole.wait_condition("cartpole", "Ready", "True", timeout_s=120)
            finally:
                is_over.set()
        for each in acting:
            each.result()

    load = answered_meanwhile(cartpole, change, connections)
    print(json.dumps({"answers": len(load.digests), "failures": load.failures, "answers to our client": acted[0]}))
    # What waits in the sockets of a killed process is lost; HAProxy asks another replica for the rest.
    assert len(load.failures) <= kills * connections
    assert acted[0] > 500


@pytest.mark.full
def test_the_image_changes_and_a_second_cluster_takes_over_under_load(cartpole: Namespace) -> None:
    before = lone_head_pod(cartpole)

    def change() -> None:
        edit(cartpole, image=ANOTHER_NAME_OF_THE_IMAGE)
        time.sleep(90)  # the first cluster goes 60 s after the switch

    load = answered_meanwhile(cartpole, change)
    print(json.dumps({"answers": len(load.digests), "failures": load.failures}))
    assert lone_head_pod(cartpole) != before
    # KubeRay 1.6.2 switches its Service as soon as it sees the application run, and looks at the new head's HAProxy before that: where
    # that was not ready, the Service has no endpoint until it looks again, 2 s later, and Traefik knows no route meanwhile.
    assert {failure.partition(" ")[2] for failure in load.failures} <= {"404: 404 page not found\n"}
    assert len({failure.partition(" ")[0] for failure in load.failures}) <= 4


@pytest.mark.full
def test_decisions_and_returns_are_kept_in_the_claim_that_is_named(cartpole: Namespace) -> None:
    claim = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}
    cartpole.apply({"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "decisions"}, "spec": claim})
    edit(cartpole, decisionLog={"claimName": "decisions", "maxMegabytes": 10})
    head = lone_head_pod(cartpole)
    url, headers = f"{INGRESS_URL}/cartpole-ppo", {"Host": f"{cartpole.name}.localhost", "x-session-id": "e2e"}
    answer = requests.post(url, json=OBSERVATION, headers=headers, timeout=10).json()
    report = {"session": "e2e", "step": 1, "return": 3.0, "done": True, "decision_id": answer["decision_id"]}
    assert requests.post(f"{url}/v1/rewards", json=report, headers=headers, timeout=10).status_code == 200
    program = f"import pathlib; print(*(p.read_text() for p in pathlib.Path('/decisions/{cartpole.name}/cartpole').glob('*.jsonl')))"

    def lines() -> list[dict[str, object]] | None:
        text = cartpole.kubectl("exec", head, "-c", "ray-head", "--", "python", "-c", program)
        found = [json.loads(line) for line in text.splitlines() if line.strip()]
        return found if len(found) >= 2 else None

    decision, reward = wait(lines, 30, "the decision and its return")
    assert (decision["kind"], decision["session"], reward["kind"], reward["return"]) == ("decision", "e2e", "reward", 3.0)
    assert decision["decision_id"] == reward["decision_id"] == answer["decision_id"]
