"""A training whose pod is killed, whose node is drained, or whose bucket is away ends as one run, and what it loses is bounded."""

from __future__ import annotations

import subprocess
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from typing import Any

import pytest

from e2e.conftest import example
from e2e.kube import CONTEXT, Namespace, kubectl, wait
from e2e.trainings import S3, SECRET, iterations_in, training, wait_for_progress

TRAIN = "policymodel.dev/role=train"
CHECKPOINT_EVERY = 5
AWAY_S = 60
AWAY = "/tmp/away"  # where this file is, the way to the bucket answers 503 to everything
WAY = f"""
import http.client, os
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

class Way(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        status, headers, content = 503, {{}}, b""
        if not os.path.exists("{AWAY}"):
            bucket = http.client.HTTPConnection("s3.s3", 7070, timeout=30)
            bucket.request(self.command, self.path, body, dict(self.headers))
            answer = bucket.getresponse()
            status, headers, content = answer.status, dict(answer.headers), answer.read()
            bucket.close()
        size = headers.get("Content-Length", "0") if self.command == "HEAD" else str(len(content))
        self.send_response(status)
        for name, value in headers.items():
            if name.lower() not in ("content-length", "transfer-encoding", "connection", "date", "server"):
                self.send_header(name, value)
        self.send_header("Content-Length", size)
        self.end_headers()
        self.wfile.write(content)

    do_HEAD = do_PUT = do_POST = do_DELETE = do_GET

    def log_request(self, code="-", size="-"):
        print(code, self.command, self.path, flush=True)

ThreadingHTTPServer(("", 7070), Way).serve_forever()
"""


@pytest.fixture
def bucket(namespace: Namespace) -> dict[str, Any]:
    """The cluster's S3, with its keys in the namespace."""
    if not kubectl("get", "service", "-n", "s3", "s3", "-o", "name", "--ignore-not-found"):
        pytest.skip("the cluster has no S3 at s3.s3:7070")
    namespace.apply(SECRET)
    return S3


@pytest.fixture
def bucket_with_a_way(namespace: Namespace, bucket: dict[str, Any]) -> dict[str, Any]:
    """The same by way of a pod that can answer 503 to everything. An Ingress that is turned elsewhere would say 404 for a moment."""
    container = {"name": "way", "image": "policymodel-train:dev", "imagePullPolicy": "IfNotPresent", "command": ["python", "-c", WAY]}
    service = {"selector": {"app": "way"}, "ports": [{"port": 80, "targetPort": 7070}]}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "way", "labels": {"app": "way"}}, "spec": {"containers": [container]}}
    namespace.apply(pod)
    namespace.apply({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "way"}, "spec": service})
    namespace.kubectl("wait", "--for=condition=Ready", "pod/way", "--timeout=60s")
    return {**bucket, "endpoint": f"http://way.{namespace.name}"}


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
    namespace.wait_condition("cartpole", "Ready", "True", timeout_s=900)
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
    assert training(namespace)["attempt"] == 2
    assert iterations_in(namespace.kubectl("logs", pod["metadata"]["name"]))[0] == before[-1] + 1


@pytest.mark.full
def test_a_training_waits_for_a_bucket_that_answers_503(namespace: Namespace, bucket_with_a_way: dict[str, Any]) -> None:
    namespace.apply(long_training(namespace, env_steps=100_000, storage={"s3": bucket_with_a_way}, checkpointEvery=1))
    before = wait_for_progress(namespace, "iteration", 20)
    namespace.kubectl("exec", "way", "--", "touch", AWAY)
    with pytest.raises(AssertionError, match="not in"):
        wait(lambda: training(namespace)["iteration"] > before + 20, AWAY_S, "progress without a bucket")
    assert "\n503 " in namespace.kubectl("logs", "way")
    namespace.kubectl("exec", "way", "--", "rm", AWAY)
    is_one_run(namespace)
    (pod,) = pods_of_the_training(namespace)
    told = iterations_in(namespace.kubectl("logs", pod["metadata"]["name"]))
    assert told == list(range(1, len(told) + 1))
    assert training(namespace)["attempt"] == 1
