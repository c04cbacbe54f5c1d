"""A training whose pod is killed, whose node is drained, or whose bucket is away ends as one run, and what it loses is bounded."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import pytest
import requests

from e2e.conftest import example
from e2e.kube import CONTEXT, INGRESS_URL, Namespace, kubectl, wait
from e2e.trainings import S3, SECRET, iterations_in, training, wait_for_progress

TRAIN = "policymodel.dev/role=train"
CHECKPOINT_EVERY = 5
AWAY_S = 60
AWAY = """
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

class Away(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.send_response(503)
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_HEAD = do_PUT = do_POST = do_DELETE = do_GET

ThreadingHTTPServer(("", 7070), Away).serve_forever()
"""
OF_S3 = Namespace("s3")


@pytest.fixture
def bucket(namespace: Namespace) -> dict[str, Any]:
    """The cluster's S3, with its keys in the namespace."""
    if not kubectl("get", "service", "-n", "s3", "s3", "-o", "name", "--ignore-not-found"):
        pytest.skip("the cluster has no S3 at s3.s3:7070")
    namespace.apply(SECRET)
    return S3


@pytest.fixture
def bucket_behind_traefik(namespace: Namespace, bucket: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The same under another name, by way of an Ingress that can lead to a pod which answers 503 to everything."""
    host = f"bucket.{namespace.name}"
    service = {"type": "ExternalName", "externalName": "traefik.traefik.svc.cluster.local"}
    namespace.apply({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "bucket"}, "spec": service})
    container = {"name": "away", "image": "policymodel-train:dev", "imagePullPolicy": "IfNotPresent", "command": ["python", "-c", AWAY]}
    metadata = {"name": host, "labels": {"app": host}}
    service = {"selector": {"app": host}, "ports": [{"port": 7070}]}
    OF_S3.apply({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": {"containers": [container]}})
    OF_S3.apply({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "away"}, "spec": service})
    OF_S3.apply(way_to_the_bucket(host, "s3"))
    OF_S3.kubectl("wait", "--for=condition=Ready", f"pod/{host}", "--timeout=60s")
    yield {**bucket, "endpoint": f"http://{host}"}
    OF_S3.kubectl("delete", f"ingress/{host}", "service/away", f"pod/{host}", "--grace-period=0")


def way_to_the_bucket(host: str, service: str) -> dict[str, Any]:
    path = {"path": "/", "pathType": "Prefix", "backend": {"service": {"name": service, "port": {"number": 7070}}}}
    spec = {"ingressClassName": "traefik", "rules": [{"host": host, "http": {"paths": [path]}}]}
    return {"apiVersion": "networking.k8s.io/v1", "kind": "Ingress", "metadata": {"name": host}, "spec": spec}


def answers(host: str) -> int:
    return requests.get(INGRESS_URL, headers={"Host": host}, timeout=10).status_code


def long_training(namespace: Namespace, env_steps: int, storage: dict[str, Any] | None = None, **training: Any) -> dict[str, Any]:
    document = example(namespace)
    document["spec"]["storage"] = storage or document["spec"]["storage"]
    document["spec"]["gate"] = {"minReturn": 1, "episodes": 10}
    document["spec"]["training"] = {"checkpointEvery": CHECKPOINT_EVERY, "stop": {"envSteps": env_steps}, **training}
    return document


def pods_of_the_training(namespace: Namespace) -> list[dict[str, Any]]:
    return sorted(namespace.list("pod", TRAIN), key=lambda pod: str(pod["metadata"]["creationTimestamp"]))


def running_pod(namespace: Namespace) -> dict[str, Any]:
    """The pod that trains: one of them, and never two."""

    def one() -> dict[str, Any] | None:
        running = [pod for pod in pods_of_the_training(namespace) if pod["status"]["phase"] == "Running"]
        assert len(running) <= 1
        return running[0] if running else None

    return wait(one, 120, "a running pod", lambda: namespace.kubectl("describe", "pod"))


def kill_its_process(pod: dict[str, Any]) -> None:
    """SIGKILL: a deletion of the pod, even a forced one, asks the process to end first. kind's nodes are containers of their names."""
    container = pod["status"]["containerStatuses"][0]["containerID"].removeprefix("containerd://")
    find = ["crictl", "inspect", "-o", "go-template", "--template", "{{.info.pid}}", container]
    node = ["docker", "exec", pod["spec"]["nodeName"]]
    pid = subprocess.run([*node, *find], check=True, capture_output=True, text=True).stdout.strip()
    subprocess.run([*node, "kill", "-KILL", pid], check=True)


def is_one_run(namespace: Namespace) -> None:
    """It ended, with one Job and one revision."""
    namespace.wait_condition("cartpole", "Ready", "True", timeout_s=400)
    assert len(namespace.list("job", TRAIN)) == 1
    assert [revision["number"] for revision in namespace.get("policymodel", "cartpole")["status"]["revisions"]] == [1]


@pytest.mark.full
def test_a_training_that_is_killed_three_times_loses_what_came_after_its_checkpoints(namespace: Namespace) -> None:
    namespace.apply(long_training(namespace, env_steps=400_000, backoffLimit=3))
    for percent in (30, 60, 95):
        wait_for_progress(namespace, "progressPercent", percent)
        kill_its_process(running_pod(namespace))
    is_one_run(namespace)
    assert training(namespace)["attempt"] == 4
    told = [iterations_in(namespace.kubectl("logs", pod["metadata"]["name"])) for pod in pods_of_the_training(namespace)]
    assert len(told) == 4
    assert told[0][0] == 1
    # One more where a checkpoint was being written.
    assert all(0 <= before[-1] - (after[0] - 1) <= CHECKPOINT_EVERY + 1 for before, after in pairwise(told))


@pytest.mark.full
def test_a_training_whose_node_is_drained_goes_on_elsewhere_and_loses_nothing(namespace: Namespace, bucket: dict[str, Any]) -> None:
    if len(kubectl("get", "nodes", "-o", "name").split()) < 2:
        pytest.skip("the cluster has one node only")
    namespace.apply(long_training(namespace, env_steps=300_000, storage={"s3": bucket}, backoffLimit=0))
    wait_for_progress(namespace, "progressPercent", 30)
    drained = running_pod(namespace)
    name, node = drained["metadata"]["name"], drained["spec"]["nodeName"]
    follow = ["kubectl", "--context", CONTEXT, "-n", namespace.name, "logs", "-f", name]
    try:
        with ThreadPoolExecutor() as beside:
            log = beside.submit(subprocess.run, follow, check=False, capture_output=True, text=True)
            kubectl("drain", node, f"--pod-selector={TRAIN}", "--ignore-daemonsets", "--delete-emptydir-data", "--timeout=60s")
            before = iterations_in(log.result().stdout)
        is_one_run(namespace)
    finally:
        kubectl("uncordon", node)
    (pod,) = pods_of_the_training(namespace)
    assert pod["spec"]["nodeName"] != node
    assert iterations_in(namespace.kubectl("logs", pod["metadata"]["name"]))[0] == before[-1] + 1


@pytest.mark.full
def test_a_training_waits_for_a_bucket_that_answers_503(namespace: Namespace, bucket_behind_traefik: dict[str, Any]) -> None:
    host = bucket_behind_traefik["endpoint"].removeprefix("http://")
    namespace.apply(long_training(namespace, env_steps=200_000, storage={"s3": bucket_behind_traefik}, checkpointEvery=1))
    before = wait_for_progress(namespace, "iteration", 20)
    OF_S3.replace(way_to_the_bucket(host, "away"))
    wait(lambda: answers(host) == 503, 10, "503 from the bucket")
    with pytest.raises(AssertionError, match="not in"):
        wait(lambda: training(namespace)["iteration"] > before + 20, AWAY_S, "progress without a bucket")
    assert answers(host) == 503
    OF_S3.replace(way_to_the_bucket(host, "s3"))
    is_one_run(namespace)
    (pod,) = pods_of_the_training(namespace)
    told = iterations_in(namespace.kubectl("logs", pod["metadata"]["name"]))
    assert told == list(range(1, len(told) + 1))
    assert training(namespace)["attempt"] == 1
