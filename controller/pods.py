"""What pods show: how they ended, and why one does not run. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from controller.model import Problem
from controller.spec import Json
from controller.words import is_error, parsed

# For some seconds after its creation no pod is scheduled yet, and that is no problem.
SCHEDULING_GRACE_S = 15
# What a kubelet may take to say that a pod is gone whose own grace period is over.
NODE_GRACE_S = 60


def _ended(pod: Json, container: str) -> Json:
    """How a container of a pod ended, or {}. Others beside it (a mesh puts its own into every pod) say nothing of ours."""
    found: Json = next((status for status in pod.get("status", {}).get("containerStatuses", []) if status["name"] == container), {})
    ended: Json = found.get("state", {}).get("terminated") or {}
    return ended


def has_ended_well(pod: Json, container: str) -> bool:
    return _ended(pod, container).get("exitCode") == 0


def last_word(pod: Json, container: str) -> dict[str, Any]:
    lines = str(_ended(pod, container).get("message", "")).strip().splitlines()
    return parsed(lines[-1]) if lines else {}


def setback(pods: Sequence[Json], container: str, counted: int, told: int) -> str | None:
    """How the attempt before has ended, as far as its pod is still there.

    Args:
        counted: which attempt it is now, as Kubernetes counts: without the pods that were drained, evicted or deleted.
        told: which one it is as the training says.
    """
    failed = [pod for pod in pods if pod.get("status", {}).get("phase") == "Failed"]
    if told > max(counted, len(failed) + 1):
        return "a pod was drained, evicted or deleted, which costs none of spec.training.backoffLimit"
    if not failed:
        return None
    ended, word = _ended(failed[-1], container), last_word(failed[-1], container)
    if is_error(word):
        why = f"ended with {word['error']['reason']}: {word['error']['message']}"
    elif ended.get("reason") == "OOMKilled":
        why = "ran out of memory (spec.training.resources.limits.memory)"
    else:
        why = f"was ended by exit code {ended['exitCode']}" if "exitCode" in ended else "ended without a word"
    return f"the pod {failed[-1]['metadata']['name']} {why}"


def job_problem(failed: Json, words: Sequence[Json], pods: Sequence[Json]) -> Problem:
    errors = [word["error"] for word in reversed(words) if is_error(word)]
    # That the head has gone is what a submitter sees when the training is ended: the cause is told elsewhere, where it is.
    error = next((error for error in errors if error["reason"] != "HeadLost"), None)
    if error is None and errors and failed.get("reason") != "DeadlineExceeded":
        error = errors[0]
    if error:
        return Problem(error["reason"], error["message"])
    for pod in reversed(pods):
        for container in pod.get("status", {}).get("containerStatuses", []):
            ended = container.get("state", {}).get("terminated", {})
            if ended.get("reason") == "OOMKilled":
                message = (
                    "the container ran out of memory; allow more (spec.training.resources.limits.memory), or train with fewer environments"
                )
                return Problem("OutOfMemory", message)
    return Problem(failed.get("reason") or "TrainingFailed", failed.get("message") or "the Job failed without a word")


def first_problem(pods: Sequence[Json], now: datetime, field: str) -> Problem | None:
    return next((problem for pod in pods for problem in [_pod_problem(pod, now, field)] if problem), None)


def _pod_problem(pod: Json, now: datetime, field: str) -> Problem | None:
    """Why a pod does not start, or is not replaced, in words for the user of a PolicyModel."""
    lost = _lost_node(pod, now)
    if lost:
        return lost
    name, status = pod["metadata"]["name"], pod.get("status", {})
    for container in status.get("containerStatuses", []):
        waiting = container.get("state", {}).get("waiting", {})
        reason, message = waiting.get("reason", ""), waiting.get("message", "")
        if reason in ("ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull"):
            advice = f"check {field}.image and spec.imagePullSecrets"
            why = f"the image {container['image']} cannot be pulled for the pod {name} ({message or reason})"
            return Problem("ImagePullFailed", f"{why}; {advice}")
        if reason in ("CreateContainerConfigError", "CreateContainerError", "RunContainerError"):
            return Problem("PodNotStarted", f"the pod {name} cannot start: {message or reason}; check {field}.template")
        if reason == "CrashLoopBackOff":
            last = container.get("lastState", {}).get("terminated", {})
            said = f"{last.get('reason', '')} (exit code {last.get('exitCode', '?')})"
            return Problem("PodCrashes", f"the pod {name} crashes again and again: {said}; read kubectl logs --previous {name}")
    for condition in status.get("conditions", []):
        if condition["type"] == "PodScheduled" and condition["status"] == "False" and _age_s(condition, now) > SCHEDULING_GRACE_S:
            return Problem(
                "Unschedulable",
                f"no node takes the pod {name}: {condition.get('message', '')}; check {field}.resources and {field}.template",
            )
    return None


def _lost_node(pod: Json, now: datetime) -> Problem | None:
    """That a pod should be long gone and its kubelet does not say so: none takes its place until then. `deletionTimestamp` is when its
    grace period ends (https://kubernetes.io/docs/concepts/architecture/nodes/#non-graceful-node-shutdown)."""
    name, node = pod["metadata"]["name"], pod.get("spec", {}).get("nodeName")
    due, has_ended = pod["metadata"].get("deletionTimestamp"), pod.get("status", {}).get("phase") in ("Succeeded", "Failed")
    if not due or not node or has_ended or (now - datetime.fromisoformat(due)).total_seconds() <= NODE_GRACE_S:
        return None
    taint = f"kubectl taint node {node} node.kubernetes.io/out-of-service=nodeshutdown:NoExecute"
    return Problem(
        "NodeLost",
        f"the node {node} does not answer: the pod {name} on it should have been gone at {due}. If the node is down, delete it (kubectl "
        f"delete node {node}) or say so ({taint}): then another pod takes its place, and a training goes on from its last checkpoint",
    )


def _age_s(condition: Json, now: datetime) -> float:
    since = condition.get("lastTransitionTime")
    return (now - datetime.fromisoformat(since)).total_seconds() if since else 0.0


def first_line(text: str) -> str:
    return next((line for line in text.splitlines() if line.strip()), "")[:500]
