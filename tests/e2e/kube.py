"""What a user does to a cluster: kubectl and HTTP through the Ingress. Every wait has a deadline and says what it saw last."""

from __future__ import annotations

import json
import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import requests

Found = TypeVar("Found")

CONTEXT = os.environ.get("CONTEXT", "kind-policymodel")
INGRESS_URL = os.environ.get("INGRESS_URL", "http://127.0.0.1:8080")
OPERATOR_NAMESPACE = "policymodel-system"
OBSERVATION = {"observation": [0.02, 0.01, -0.03, 0.04]}


def kubectl(*arguments: str, stdin: str | None = None, check: bool = True) -> str:
    """Runs kubectl; its output, and its complaint where it is not expected to succeed."""
    done = subprocess.run(
        ["kubectl", "--context", CONTEXT, *arguments], check=False, input=stdin, capture_output=True, text=True, timeout=600
    )
    if check and done.returncode:
        raise AssertionError(f"kubectl {' '.join(arguments)}: {done.stderr}")
    return done.stdout if check else done.stdout + done.stderr


def why_no_cluster() -> str | None:
    """Why the e2e tests cannot run here, or None."""
    try:
        kubectl("get", "--raw", "/readyz", "--request-timeout=5s")
    except FileNotFoundError:
        return "kubectl is not installed"
    except AssertionError as error:
        return f"no cluster answers as {CONTEXT} (`make cluster` makes one): {error}"
    try:
        kubectl("-n", OPERATOR_NAMESPACE, "get", "deployment", "policymodel-operator")
    except AssertionError:
        return "the operator is not installed: `make images deploy`"
    return None


@dataclass
class Namespace:
    """A namespace of one test."""

    name: str

    def kubectl(self, *arguments: str, stdin: str | None = None, check: bool = True) -> str:
        return kubectl("-n", self.name, *arguments, stdin=stdin, check=check)

    def apply(self, document: dict[str, Any]) -> None:
        self.kubectl("apply", "-f", "-", stdin=json.dumps(document))

    def replace(self, document: dict[str, Any]) -> None:
        """Makes an object what the document says: `apply` leaves what was patched into it."""
        self.kubectl("replace", "-f", "-", stdin=json.dumps(document))

    def get(self, kind: str, name: str) -> dict[str, Any] | None:
        found = self.kubectl("get", kind, name, "-o", "json", "--ignore-not-found")
        return json.loads(found) if found.strip() else None

    def list(self, kind: str, selector: str = "") -> list[dict[str, Any]]:
        return list(json.loads(self.kubectl("get", kind, "-l", selector, "-o", "json"))["items"])

    def condition(self, name: str, type_: str) -> dict[str, Any]:
        found = self.get("policymodel", name) or {}
        conditions = found.get("status", {}).get("conditions", [])
        return next((condition for condition in conditions if condition["type"] == type_), {"status": "", "reason": "", "message": ""})

    def wait_condition(self, name: str, type_: str, status: str, reason: str | None = None, timeout_s: float = 300) -> dict[str, Any]:
        """Waits until a condition, of the generation that the spec has now, is as it is asked for."""

        def is_so() -> dict[str, Any] | None:
            generation = (self.get("policymodel", name) or {})["metadata"]["generation"]
            found = self.condition(name, type_)
            is_current = found.get("observedGeneration") == generation
            return found if is_current and found["status"] == status and reason in (None, found["reason"]) else None

        return wait(is_so, timeout_s, f"{name}: {type_}={status} {reason or ''}", lambda: self.kubectl("describe", "pm", name))


def wait(
    is_so: Callable[[], Found | None], timeout_s: float, what: str, dump: Callable[[], str] = lambda: "", every_s: float = 0.5
) -> Found:
    """Waits for something to be found."""
    deadline = time.monotonic() + timeout_s
    while True:
        found = is_so()
        if found:
            return found
        if time.monotonic() > deadline:
            raise AssertionError(f"not in {timeout_s:.0f} s: {what}\n{dump()}")
        time.sleep(every_s)


def head_pod(namespace: Namespace) -> str:
    """The only one: while a first cluster is still there beside a second, there are two."""
    (pod,) = (pod for pod in namespace.list("pod", "ray.io/node-type=head") if "deletionTimestamp" not in pod["metadata"])
    return str(pod["metadata"]["name"])


def lone_head_pod(namespace: Namespace) -> str:
    """The one that is left, once KubeRay has removed the cluster that it has switched from: it does so 60 s afterwards."""

    def is_alone() -> str | None:
        pods = namespace.list("pod", "ray.io/node-type=head")
        return str(pods[0]["metadata"]["name"]) if len(pods) == 1 else None

    return wait(is_alone, 180, "one head pod", lambda: namespace.kubectl("get", "pods"))


def post(host: str, route: str = "/cartpole-ppo", **options: Any) -> requests.Response:
    """One query through the Ingress."""
    return requests.post(INGRESS_URL + route, headers={"Host": host}, timeout=10, **({"json": OBSERVATION} | options))


@dataclass
class Load:
    """What came back under load: the digests in the order of arrival, and every failure."""

    digests: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)


@contextmanager
def clients(number: int, ask: Callable[[threading.Event], None]) -> Iterator[None]:
    """Threads that ask, until the block ends and their event is set."""
    stop = threading.Event()
    threads = [threading.Thread(target=ask, args=(stop,)) for _ in range(number)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()


@contextmanager
def steady_load(host: str, connections: int, route: str = "/cartpole-ppo") -> Iterator[Load]:
    """Queries through the Ingress over some connections, until the block ends."""
    load = Load()

    def ask(stop: threading.Event) -> None:
        with requests.Session() as session:
            session.trust_env = False
            while not stop.is_set():
                try:
                    answer = session.post(INGRESS_URL + route, json=OBSERVATION, headers={"Host": host}, timeout=10)
                except requests.RequestException as error:
                    load.failures.append(f"{time.strftime('%X')} {type(error).__name__}: {error}")
                    continue
                if answer.status_code == 200 and "action" in answer.json():
                    load.digests.append(answer.headers["x-policy-digest"])
                else:
                    load.failures.append(f"{time.strftime('%X')} {answer.status_code}: {answer.text[:200]}")
                # Two cores run everything: the load is to be steady, not to starve what it watches.
                stop.wait(0.02)

    with clients(connections, ask):
        yield load
