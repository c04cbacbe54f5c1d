"""What the tests of rollouts do and wait for: sessions under load, offered bundles, requests, and what replicas say."""

from __future__ import annotations

import io
import json
import subprocess
import tarfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import requests
from fakes.policies import published

from app.storage import file_uri, open_storage
from controller import schema
from controller.spec import spec_of
from e2e.conftest import example
from e2e.kube import CONTEXT, INGRESS_URL, Namespace, clients, lone_head_pod, wait

REQUESTS = 10


@dataclass
class Episode:
    """One session: when it began, who answered it, and what failed."""

    began: float
    digests: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)


Report = Callable[[str], float]


@contextmanager
def sessions(
    namespace: Namespace, connections: int, observe: Callable[[], list[float]], report: Report | None = None
) -> Iterator[list[Episode]]:
    """Episodes through the Ingress, each of `REQUESTS` queries that pin the policy of the first answer, until the block ends.

    Args:
        observe: gives an observation.
        report: gives the return of an episode that a digest answered, to be reported.
    """
    url, host = f"{INGRESS_URL}/cartpole-ppo", {"Host": f"{namespace.name}.localhost"}
    played: list[Episode] = []

    def ask(http: requests.Session, episode: Episode, path: str, headers: dict[str, str], body: object) -> requests.Response | None:
        try:
            answer = http.post(url + path, json=body, headers={**host, **headers}, timeout=10)
        except requests.RequestException as error:
            episode.failures.append(f"{time.strftime('%X')} {type(error).__name__}: {error}")
            return None
        if answer.status_code != 200:
            episode.failures.append(f"{time.strftime('%X')} {answer.status_code}: {answer.text[:200]}")
            return None
        return answer

    def play(stop: threading.Event) -> None:
        with requests.Session() as http:
            http.trust_env = False
            while not stop.is_set():
                episode, session = Episode(time.time()), uuid.uuid4().hex
                played.append(episode)
                headers = {"x-session-id": session}
                for _ in range(REQUESTS):
                    answer = ask(http, episode, "", headers, {"observation": observe()})
                    if answer is not None:
                        episode.digests.append(answer.headers["x-policy-digest"])
                        headers["x-policy-pin"] = episode.digests[-1]
                    stop.wait(0.01)
                if report and episode.digests:
                    total = report(episode.digests[-1])
                    body = {"session": session, "step": REQUESTS, "return": total, "done": True}
                    ask(http, episode, "/v1/rewards", headers, body)

    with clients(connections, play):
        yield played


def at_rest() -> list[float]:
    return [0.02, 0.01, -0.03, 0.04]


def failures(played: list[Episode]) -> list[str]:
    return [failure for episode in played for failure in episode.failures]


def changed(namespace: Namespace, seed: int, rollout: dict[str, Any] | None = None, **spec: Any) -> dict[str, Any]:
    """Edits the PolicyModel that tests share. A rollout that one of them aborts is not tried again with the same `spec.rollout`: each that
    does so has one of its own."""
    document = example(namespace)
    document["spec"]["training"]["seed"] = seed
    document["spec"] |= {**({"rollout": rollout} if rollout else {}), **spec}
    namespace.apply(document)
    return document


def status(namespace: Namespace) -> dict[str, Any]:
    found = namespace.get("policymodel", "cartpole")
    assert found
    return dict(found["status"])


def request(namespace: Namespace, verb: str) -> None:
    content = json.dumps({"id": uuid.uuid4().hex, "user": "e2e", "time": "2026-01-01T00:00:00Z"})
    namespace.kubectl("annotate", "--overwrite", "pm", "cartpole", f"policymodel.dev/{verb}={content}")


def held(namespace: Namespace, step: int) -> float:
    """Waits until every replica is at a step; when that was seen."""

    def is_held() -> float | None:
        candidate = status(namespace).get("candidate", {})
        return time.time() if candidate.get("step") == step and "heldSince" in candidate else None

    return wait(is_held, 240, f"step {step} of the rollout", lambda: namespace.kubectl("describe", "pm", "cartpole"), every_s=0.2)


def over(namespace: Namespace, outcome: str, digest: str | None = None, timeout_s: float = 120) -> dict[str, Any]:
    """Waits until the rollout of a revision, or else of the newest that ended so, is over; that revision."""

    def is_over() -> dict[str, Any] | None:
        seen = status(namespace)
        ended = [revision for revision in seen["revisions"] if revision.get("rollout", {}).get("outcome") == outcome]
        ended = [revision for revision in ended if digest in (None, revision["digest"])]
        return ended[-1] if ended and "candidate" not in seen else None

    return wait(is_over, timeout_s, f"a revision that was {outcome}", lambda: namespace.kubectl("describe", "pm", "cartpole"), every_s=0.2)


def wait_for_replicas(namespace: Namespace, digest: str) -> float:
    """Waits until every replica serves a policy, and tries none; when that was seen, by the replicas themselves."""
    url, host = f"{INGRESS_URL}/cartpole-ppo/v1/status", {"Host": f"{namespace.name}.localhost"}

    def is_so() -> float | None:
        rows = requests.get(url, headers=host, timeout=10).json()["replicas"]
        return time.time() if all(row["serving"]["digest"] == digest and row["candidate"] is None for row in rows) else None

    return wait(is_so, 60, f"every replica to serve {digest}", every_s=0.05)


# Candidates that the product has no mode for: bundles put into the storage as a run would have published them.


def put(namespace: Namespace, directory: Path) -> None:
    """Copies a storage into that of the PolicyModel."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        tar.add(directory, ".")
    in_storage(namespace, "tar", "-x", "--no-same-permissions", "-m", "-f", "-", stdin=archive.getvalue())


def in_storage(namespace: Namespace, *command: str, stdin: bytes = b"") -> None:
    """Runs a command in the storage of the PolicyModel, as somebody who may write there."""
    name = f"writer-{uuid.uuid4().hex[:6]}"
    mounts = [{"name": "policies", "mountPath": "/storage"}]
    container = {"name": "writer", "image": "policymodel-train:dev", "command": ["sleep", "300"], "volumeMounts": mounts}
    security = {"runAsUser": 1000, "runAsGroup": 1000, "fsGroup": 1000}
    volumes = [{"name": "policies", "persistentVolumeClaim": {"claimName": "cartpole-policies"}}]
    spec = {"restartPolicy": "Never", "securityContext": security, "containers": [container], "volumes": volumes}
    namespace.apply({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec})
    namespace.kubectl("wait", f"pod/{name}", "--for=condition=Ready", "--timeout=120s")
    target = f"/storage/{namespace.name}/cartpole"
    shell = ["kubectl", "--context", CONTEXT, "-n", namespace.name, "exec", "-i", name, "--", "env", "-C", target]
    subprocess.run([*shell, *command], input=stdin, check=True, timeout=60)
    namespace.kubectl("delete", "pod", name, "--grace-period=0", "--force", "--wait=false")


def offer(
    namespace: Namespace, tmp_path: Path, seed: int, model: bytes, rollout: dict[str, Any], *, is_evaluated: bool = False, **facts: Any
) -> str:
    """Rolls out a bundle with this model, as if the run of this seed had published it; its digest.

    Args:
        is_evaluated: as if the gate's episodes had been played, too: only a replica looks at the bundle.
        facts: of its manifest.
    """
    serving = status(namespace)["serving"]["digest"].removeprefix("sha256:")
    path = f"/storage/{namespace.name}/cartpole/bundles/{serving}/manifest.json"
    text = namespace.kubectl("exec", lone_head_pod(namespace), "-c", "ray-head", "--", "cat", path)
    known = {name: json.loads(text)[name] for name in ("environment", "observationSpace", "actionSpace")}
    storage = open_storage(file_uri(tmp_path))
    digest = published(storage, model, **{**known, **facts})
    document = example(namespace)
    document["spec"]["training"]["seed"] = seed
    document["spec"]["gate"] = {"minReturn": 1, "episodes": 10}
    document["spec"]["rollout"] = rollout
    spec = spec_of(schema.defaulted(document))
    run = spec.run
    uri = f"file:///storage/{namespace.name}/cartpole/bundles/{digest.removeprefix('sha256:')}"
    (storage.run(run)).mkdir(parents=True, exist_ok=True)
    result = {"run": run, "digest": digest, "uri": uri, "iteration": 1, "envSteps": 1, "episodeReturnMean": 9.0}
    (storage.run(run) / "result.json").write_text(json.dumps({**result, "trainedAt": "2026-01-01T00:00:00Z"}))
    if is_evaluated:
        look = spec.looks(run, None)[0]
        figures = {"episodes": look.episodes, "seed": look.seed, "mean": 9.0, "std": 1.0}
        record = {"id": look.id, "digest": digest, "environment": known["environment"], **figures, "rows": []}
        storage.evaluations().mkdir(parents=True, exist_ok=True)
        (storage.evaluation(look.id)).write_text(json.dumps(record))
    put(namespace, tmp_path)
    namespace.apply(document)
    return digest
