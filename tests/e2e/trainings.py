"""What the tests of trainings do and wait for: a bucket, progress, and what a pod has said of it."""

from __future__ import annotations

import json
from typing import Any

from e2e.kube import Namespace, wait

S3 = {"bucket": "policies", "endpoint": "http://s3.s3:7070", "region": "us-east-1", "secretName": "s3", "pathStyle": True}
SECRET = {
    "apiVersion": "v1",
    "kind": "Secret",
    "metadata": {"name": "s3"},
    "stringData": {"credentials": "[default]\naws_access_key_id = minioadmin\naws_secret_access_key = minioadmin\n"},
}


def training(namespace: Namespace) -> dict[str, Any]:
    return dict((namespace.get("policymodel", "cartpole") or {}).get("status", {}).get("training", {}))


def wait_for_progress(namespace: Namespace, name: str, least: float) -> float:
    """Waits until the training's progress has a figure that is so high; the one that it has come to."""

    def come() -> float | None:
        reached = float(training(namespace).get(name, 0))
        return reached if reached >= least else None

    return wait(come, 240, f"{name} {least}", lambda: namespace.kubectl("describe", "pm", "cartpole"))


def iterations_in(log: str) -> list[int]:
    """The iterations that a training's log tells of."""
    lines = [json.loads(line) for line in log.splitlines() if line.startswith("{")]
    return [line["progress"]["iteration"] for line in lines if "progress" in line]
