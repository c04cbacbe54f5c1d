"""A cluster with the operator on it, and one PolicyModel that serves, shared by the tests that edit it and put it back."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from e2e.kube import OPERATOR_NAMESPACE, Namespace, kubectl, why_no_cluster

HERE = Path(__file__).parent
ROOT = HERE.parent.parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.e2e)


@pytest.fixture(scope="session", autouse=True)
def cluster() -> None:
    reason = why_no_cluster()
    if reason:
        pytest.skip(reason)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Any:
    report = yield
    if report.when in ("setup", "call") and report.failed:
        report.sections.append(("cluster", _dump()))
    return report


def _dump() -> str:
    """What a person would look at first."""
    parts = [
        kubectl("get", "pm,job,rayservice,raycluster,pod,pvc,ingress", "-A", "-o", "wide", check=False),
        kubectl("describe", "pm", "-A", check=False),
        kubectl("logs", "-n", OPERATOR_NAMESPACE, "deployment/policymodel-operator", "--tail=60", check=False),
    ]
    path = "{range .items[*]}{.metadata.namespace} {.metadata.name}{'\\n'}{end}"
    failed = kubectl("get", "pod", "-A", "--field-selector=status.phase=Failed", "-o", f"jsonpath={path}", check=False)
    parts += [kubectl("logs", "-n", *line.split(), "--tail=20", check=False) for line in failed.splitlines() if len(line.split()) == 2]
    return "\n".join(parts)


def new_namespace() -> Namespace:
    namespace = Namespace(f"e2e-{uuid.uuid4().hex[:6]}")
    kubectl("create", "namespace", namespace.name)
    return namespace


@pytest.fixture
def namespace() -> Iterator[Namespace]:
    """A namespace of the test's own."""
    made = new_namespace()
    yield made
    kubectl("delete", "namespace", made.name, "--wait=false")


def example(namespace: Namespace) -> dict[str, Any]:
    """The README's PolicyModel, under a host of the namespace's own."""
    document = yaml.safe_load((ROOT / "k8s/examples/policymodel.yaml").read_text())
    document["spec"]["serving"]["ingress"]["host"] = f"{namespace.name}.localhost"
    return dict(document)


@pytest.fixture(scope="session")
def serving_namespace(cluster: None) -> Iterator[Namespace]:
    made = new_namespace()
    made.apply(example(made))
    made.wait_condition("cartpole", "Ready", "True", timeout_s=600)
    yield made
    kubectl("delete", "namespace", made.name, "--wait=false")


@pytest.fixture
def cartpole(serving_namespace: Namespace) -> Iterator[Namespace]:
    """The README's PolicyModel, ready. Whatever a test does to its spec is taken back: the revision is there, so nothing is trained."""
    yield serving_namespace
    serving_namespace.replace(example(serving_namespace))
    serving_namespace.wait_condition("cartpole", "Ready", "True", timeout_s=120)
