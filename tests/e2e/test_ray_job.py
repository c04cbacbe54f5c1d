"""A training on a Ray cluster: it ends, goes on where a pod is killed, and leaves nothing behind."""

from __future__ import annotations

from typing import Any

import pytest

from e2e.conftest import example
from e2e.kube import Namespace, kubectl, wait
from e2e.trainings import S3, SECRET, training, wait_for_progress

HEAD, WORKER = "policymodel.dev/role=learner", "policymodel.dev/role=env-runner"


@pytest.fixture(scope="module", autouse=True)
def cluster_of_two_with_a_bucket(cluster: None) -> None:
    if len(kubectl("get", "nodes", "-o", "name").split()) < 2:
        pytest.skip("the cluster has one node only")
    if not kubectl("get", "service", "-n", "s3", "s3", "-o", "name", "--ignore-not-found"):
        pytest.skip("the cluster has no S3 at s3.s3:7070")


def on_a_cluster(namespace: Namespace, env_steps: int, **training: Any) -> dict[str, Any]:
    document = example(namespace)
    document["spec"]["storage"] = {"s3": S3}
    document["spec"]["gate"] = {"minReturn": 1, "episodes": 10}
    document["spec"]["training"] = {
        "engine": "RayJob",
        "workers": 2,
        "checkpointEvery": 5,
        "stop": {"envSteps": env_steps},
        "resources": {"requests": {"cpu": "100m", "memory": "1Gi"}},
        **training,
    }
    return document


def begun(namespace: Namespace, document: dict[str, Any]) -> None:
    namespace.apply(SECRET)
    namespace.apply(document)


def kill(namespace: Namespace, selector: str) -> str:
    """Kills one of the pods, at once; the name that it had."""
    pod = str(namespace.list("pod", selector)[0]["metadata"]["name"])
    namespace.kubectl("delete", "pod", pod, "--grace-period=0", "--force")
    return pod


def of_the_training(namespace: Namespace) -> set[str]:
    """What there is of its cluster."""
    pods = [*namespace.list("pod", HEAD), *namespace.list("pod", WORKER)]
    clusters = namespace.list("raycluster", "ray.io/originated-from-crd=RayJob")
    return {found["metadata"]["name"] for found in (*pods, *clusters)}


@pytest.mark.full
def test_a_training_goes_on_after_its_head_and_a_worker_were_killed_and_leaves_nothing_behind(namespace: Namespace) -> None:
    begun(namespace, on_a_cluster(namespace, env_steps=500_000))
    before = wait_for_progress(namespace, "iteration", 20)
    assert len({pod["spec"]["nodeName"] for pod in namespace.list("pod", WORKER)}) == 2
    killed = kill(namespace, HEAD)
    wait(lambda: training(namespace).get("attempt") == 2, 120, "a second attempt")
    # It went on from a checkpoint, and did not begin anew: the iteration is there at once, and the steps go on from there.
    assert wait_for_progress(namespace, "iteration", 1) >= before - 5
    assert killed not in of_the_training(namespace)
    lost = kill(namespace, WORKER)
    wait_for_progress(namespace, "iteration", training(namespace)["iteration"] + 20)
    wait(lambda: len(namespace.list("pod", WORKER)) == 2 and lost not in of_the_training(namespace), 60, "another worker")
    namespace.wait_condition("cartpole", "Ready", "True", timeout_s=900)
    status = namespace.get("policymodel", "cartpole")["status"]
    assert [revision["number"] for revision in status["revisions"]] == [1]
    assert status["training"]["attempt"] == 2
    wait(lambda: not of_the_training(namespace), 60, "the cluster to go", lambda: str(of_the_training(namespace)))
    namespace.kubectl("delete", "policymodel", "cartpole", "--wait=true", "--timeout=120s")
    left = "all,rayjob,raycluster,job,pvc,ingress"
    wait(lambda: "No resources" in namespace.kubectl("get", left, check=False), 120, "nothing", lambda: namespace.kubectl("get", left))


@pytest.mark.full
def test_an_edit_ends_the_ray_job_of_before_and_wrong_input_is_tried_once(namespace: Namespace) -> None:
    begun(namespace, on_a_cluster(namespace, env_steps=50_000_000))
    wait_for_progress(namespace, "iteration", 1)
    before = {job["metadata"]["name"] for job in namespace.list("rayjob")}
    wrong = on_a_cluster(namespace, env_steps=1000)
    wrong["spec"]["environment"] = {"id": "CartPole-v7"}
    namespace.apply(wrong)
    namespace.wait_condition("cartpole", "Trained", "False", "InvalidEnvironment", timeout_s=180)
    after = {job["metadata"]["name"] for job in namespace.list("rayjob")}
    assert len(after) == 1
    assert not before & after
    assert training(namespace)["attempt"] == 1
    wait(lambda: not of_the_training(namespace), 60, "the clusters to go", lambda: str(of_the_training(namespace)))
