"""How much room the nodes have, and whether a pod finds some. Pure: it reads objects of the API that others have fetched.

It errs on the side of room: of what a scheduler looks at, it knows requests, node selectors, taints and where a claim is. What it lets
through may still not be scheduled; what it holds back would not be.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from controller import names, resources
from controller.model import Capacity, Observed, Owner, Problem, Unknown
from controller.spec import Json

_SUFFIXES = {"n": 1e-9, "u": 1e-6, "m": 1e-3, "": 1.0, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12, "P": 1e15, "E": 1e18}
_SUFFIXES |= {f"{letter}i": 1024.0**power for power, letter in enumerate("KMGTPE", start=1)}
_QUANTITY = re.compile(r"([+-]?[0-9.]+(?:[eE][+-]?[0-9]+)?)(n|u|m|k|M|G|T|P|E|Ki|Mi|Gi|Ti|Pi|Ei)?")


def quantity(text: Any) -> float:
    """The number that a quantity of Kubernetes tells: `300m` is 0.3, `2Gi` is 2147483648.

    Raises:
        ValueError: it is none.
    """
    found = _QUANTITY.fullmatch(str(text))
    if found is None:
        raise ValueError(f"{text!r} is no quantity")
    return float(found[1]) * _SUFFIXES[found[2] or ""]


def capacities(nodes: Sequence[Json], pods: Sequence[Json], owner: Owner) -> tuple[Capacity, ...]:
    """What is free on each node that takes pods.

    Args:
        pods: of all namespaces.
        owner: whose pods make a node a home.
    """
    placed: dict[str, list[Json]] = {}
    for pod in pods:
        is_over = pod.get("status", {}).get("phase") in ("Succeeded", "Failed")
        if not is_over and "nodeName" in pod["spec"]:
            placed.setdefault(pod["spec"]["nodeName"], []).append(pod)
    return tuple(_capacity(node, placed.get(node["metadata"]["name"], []), owner) for node in nodes if _takes_pods(node))


def shortage(observed: Observed) -> Problem | None:
    """Why no node has room for one more head pod of the spec's, with the figures; None where one has, or where nobody could say."""
    free, spec = observed.free, observed.spec
    # A pod with a priority may have others put off its node.
    if free is None or isinstance(free, Unknown) or "priorityClassName" in spec.serving.template:
        return None
    asked = requests(spec.serving.resources or resources.DEFAULT_HEAD_RESOURCES)
    selector, tolerations = spec.serving.template.get("nodeSelector", {}), spec.serving.template.get("tolerations", [])
    fitting = [node for node in free if selector.items() <= node.labels.items() and (tolerations or not node.is_tainted)]
    homes = [node for node in fitting if node.is_home]
    # A claim that can be mounted on one node only brings all pods there.
    is_bound = bool(spec.storage.access_modes) and "ReadWriteMany" not in spec.storage.access_modes
    candidates = homes if is_bound and homes else fitting
    if any(all(node.free.get(name, 0.0) >= amount for name, amount in asked.items()) for node in candidates):
        return None
    wanted = ", ".join(f"{_told(name, amount)} {name}" for name, amount in asked.items() if name != "pods")
    seen = "; ".join(f"{node.name}: {_figures(node, asked)}" for node in candidates[:5]) or "no node takes it"
    message = (
        f"no node has room for a second cluster, whose head pod asks for {wanted} (free: {seen}). Nothing is changed, and the first "
        "cluster goes on serving; it is tried when there is room. Ask for less (spec.serving.resources), or add a node (where an "
        "autoscaler does: --nodes-may-be-added, Helm: nodesMayBeAdded)"
    )
    return Problem("NoCapacity", message)


def requests(asked: Json) -> dict[str, float]:
    """What a container takes of a node: its requests, or its limits where there are none; and one pod."""
    merged = {**asked.get("limits", {}), **asked.get("requests", {})}
    return {**{name: quantity(amount) for name, amount in merged.items()}, "pods": 1.0}


def _capacity(node: Json, pods: Sequence[Json], owner: Owner) -> Capacity:
    free = {name: quantity(amount) for name, amount in node.get("status", {}).get("allocatable", {}).items()}
    for pod in pods:
        for name, amount in _pod_requests(pod).items():
            free[name] = free.get(name, 0.0) - amount
    labels = [pod["metadata"].get("labels", {}) for pod in pods if pod["metadata"].get("namespace") == owner.namespace]
    return Capacity(
        name=node["metadata"]["name"],
        free=free,
        labels=node["metadata"].get("labels", {}),
        is_home=any(label.get(names.LABEL_NAME) == owner.name for label in labels),
        is_tainted=any(taint.get("effect") in ("NoSchedule", "NoExecute") for taint in node["spec"].get("taints", [])),
    )


def _takes_pods(node: Json) -> bool:
    is_ready = any(
        condition["type"] == "Ready" and condition["status"] == "True" for condition in node.get("status", {}).get("conditions", [])
    )
    return is_ready and not node["spec"].get("unschedulable", False)


def _pod_requests(pod: Json) -> dict[str, float]:
    """What the scheduler counts for a pod: its containers and sidecars together, or its largest init container, and its overhead
    (https://kubernetes.io/docs/concepts/workloads/pods/init-containers/#resource-sharing-within-containers)."""
    starting = pod["spec"].get("initContainers", [])
    sidecars = [container for container in starting if container.get("restartPolicy") == "Always"]
    running = _sum(container.get("resources", {}).get("requests", {}) for container in [*pod["spec"]["containers"], *sidecars])
    largest = [_sum([container.get("resources", {}).get("requests", {})]) for container in starting]
    needed = {name: max(found.get(name, 0.0) for found in (running, *largest)) for found in (running, *largest) for name in found}
    overhead = _sum([pod["spec"].get("overhead", {})])
    return {name: needed.get(name, 0.0) + overhead.get(name, 0.0) for name in {*needed, *overhead}} | {"pods": 1.0}


def _sum(amounts: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    total: dict[str, float] = {}
    for asked in amounts:
        for name, amount in asked.items():
            total[name] = total.get(name, 0.0) + quantity(amount)
    return total


def _figures(node: Capacity, asked: Mapping[str, float]) -> str:
    return ", ".join(f"{_told(name, max(0.0, node.free.get(name, 0.0)))} {name}" for name in asked)


def _told(name: str, amount: float) -> str:
    """An amount for people."""
    if name in ("memory", "ephemeral-storage"):
        return f"{amount / 1024**3:.1f}Gi"
    return f"{amount:.2f}".rstrip("0").rstrip(".")
