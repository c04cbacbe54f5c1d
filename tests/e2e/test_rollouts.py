"""Policies take each other's place under load: sessions keep their policy, shares are as asked for, bad ones go back, nothing fails."""

from __future__ import annotations

import io
import json
import math
import random
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

import numpy as np
import pytest
import requests
from fakes.policies import fragile_model, linear_model, nan_model, published, slow_model

from app.storage import file_uri, open_storage
from controller import schema
from controller.model import spec_of
from e2e.conftest import example
from e2e.kube import CONTEXT, INGRESS_URL, Namespace, wait

REQUESTS = 10
STEPS = [{"weight": 20, "seconds": 12}, {"weight": 60, "seconds": 12}]
CANARY = {"strategy": "Canary", "steps": STEPS}


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
    url, host, stop = f"{INGRESS_URL}/cartpole-ppo", {"Host": f"{namespace.name}.localhost"}, threading.Event()
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

    def play() -> None:
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

    threads = [threading.Thread(target=play) for _ in range(connections)]
    for thread in threads:
        thread.start()
    try:
        yield played
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def at_rest() -> list[float]:
    return [0.02, 0.01, -0.03, 0.04]


def failures(played: list[Episode]) -> list[str]:
    return [failure for episode in played for failure in episode.failures]


def changed(namespace: Namespace, seed: int, rollout: dict[str, Any] | None = None, **spec: Any) -> dict[str, Any]:
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


def share(played: list[Episode], digest: str, since: float, until: float) -> tuple[int, int]:
    """Of the sessions that began in a time, how many the policy answered, and how many there were."""
    begun = [episode for episode in played if since < episode.began < until and episode.digests]
    return sum(episode.digests[0] == digest for episode in begun), len(begun)


def is_as_asked(answered: int, begun: int, weight: int) -> bool:
    """Within three standard errors of the weight."""
    expected = weight / 100
    return abs(answered / begun - expected) <= 3 * math.sqrt(expected * (1 - expected) / begun)


def test_a_canary_answers_its_share_of_the_sessions_and_each_session_keeps_its_policy(cartpole: Namespace) -> None:
    with sessions(cartpole, 8, at_rest) as played:
        changed(cartpole, 1, CANARY)
        times = [held(cartpole, 1), held(cartpole, 2)]
        promoted = over(cartpole, "Promoted")
        ended = time.time()
        cartpole.wait_condition("cartpole", "Ready", "True", timeout_s=60)
        time.sleep(2)
    assert failures(played) == []
    assert all(len(set(episode.digests)) == 1 for episode in played), "a session saw two policies"
    shares = [share(played, promoted["digest"], times[0], times[1] - 2), share(played, promoted["digest"], times[1], ended - 5)]
    print(json.dumps({"sessions": len(played), "shares": shares}))
    for (answered, begun), step in zip(shares, STEPS, strict=True):
        assert is_as_asked(answered, begun, step["weight"])
    assert {episode.digests[0] for episode in played[-4:]} == {promoted["digest"]}


def test_an_abort_brings_the_old_policy_back_at_once(cartpole: Namespace) -> None:
    before = status(cartpole)["serving"]["digest"]
    with sessions(cartpole, 8, at_rest) as played:
        changed(cartpole, 1, {"strategy": "Canary", "steps": [{"weight": 50, "seconds": 600}]})
        held(cartpole, 1)
        assert cartpole.condition("cartpole", "Available")["status"] == "True"
        request(cartpole, "abort")
        asked = time.time()
        over(cartpole, "Aborted")
        seconds = wait_for_replicas(cartpole, before) - asked
        time.sleep(1)
    print(json.dumps({"secondsToRollBack": round(seconds, 2)}))
    assert failures(played) == []
    assert seconds < 10
    assert cartpole.condition("cartpole", "Degraded")["reason"] == "Aborted"


def wait_for_replicas(namespace: Namespace, digest: str) -> float:
    """Waits until every replica serves a policy, and tries none; when that was seen, by the replicas themselves."""
    url, host = f"{INGRESS_URL}/cartpole-ppo/v1/status", {"Host": f"{namespace.name}.localhost"}

    def is_so() -> float | None:
        rows = requests.get(url, headers=host, timeout=10).json()["replicas"]
        return time.time() if all(row["serving"]["digest"] == digest and row["candidate"] is None for row in rows) else None

    return wait(is_so, 60, f"every replica to serve {digest}", every_s=0.05)


@pytest.mark.full
def test_ten_rollouts_in_a_row_and_an_abort_under_load(cartpole: Namespace) -> None:
    strategies = [
        *[{"strategy": "Direct"}] * 3,
        *[{"strategy": "Canary", "steps": [{"weight": 10, "seconds": 10}, {"weight": 50, "seconds": 10}]}] * 3,
        *[{"strategy": "Shadow", "steps": [{"seconds": 10}]}] * 3,
    ]
    digests = {0: status(cartpole)["serving"]["digest"]}
    took: list[tuple[str, float]] = []
    with sessions(cartpole, 16, at_rest) as played:
        for number, rollout in enumerate(strategies, start=1):
            seed = number % 2
            began = time.time()
            changed(cartpole, seed, rollout)
            if seed not in digests:
                cartpole.wait_condition("cartpole", "Ready", "True", timeout_s=300)
                digests[seed] = status(cartpole)["serving"]["digest"]
            else:
                took.append((rollout["strategy"], round(wait_for_replicas(cartpole, digests[seed]) - began, 2)))
            cartpole.wait_condition("cartpole", "Ready", "True", timeout_s=120)
        changed(cartpole, 0, {"strategy": "Canary", "steps": [{"weight": 50, "seconds": 600}]})
        held(cartpole, 1)
        request(cartpole, "abort")
        began = time.time()
        took.append(("abort", round(wait_for_replicas(cartpole, digests[1]) - began, 2)))
        time.sleep(1)
    print(json.dumps({"sessions": len(played), "requests": sum(len(episode.digests) for episode in played), "seconds": took}))
    assert failures(played) == []
    assert all(len(set(episode.digests)) == 1 for episode in played), "a session saw two policies"


# Candidates that the product has no mode for: bundles put into the storage as a run would have published them.


def put(namespace: Namespace, directory: Path) -> None:
    """Copies a storage into that of the PolicyModel."""
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        tar.add(directory, ".")
    name = f"writer-{uuid.uuid4().hex[:6]}"
    mounts = [{"name": "policies", "mountPath": "/storage"}]
    container = {"name": "writer", "image": "policymodel-train:dev", "command": ["sleep", "300"], "volumeMounts": mounts}
    security = {"runAsUser": 1000, "runAsGroup": 1000, "fsGroup": 1000}
    volumes = [{"name": "policies", "persistentVolumeClaim": {"claimName": "cartpole-policies"}}]
    spec = {"restartPolicy": "Never", "securityContext": security, "containers": [container], "volumes": volumes}
    namespace.apply({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec})
    namespace.kubectl("wait", f"pod/{name}", "--for=condition=Ready", "--timeout=120s")
    command = ["kubectl", "--context", CONTEXT, "-n", namespace.name, "exec", "-i", name, "--"]
    target = f"/storage/{namespace.name}/cartpole"
    subprocess.run(
        [*command, "tar", "-x", "--no-same-permissions", "-m", "-C", target, "-f", "-"], input=archive.getvalue(), check=True, timeout=60
    )
    namespace.kubectl("delete", "pod", name, "--grace-period=0", "--force", "--wait=false")


def offer(namespace: Namespace, tmp_path: Path, seed: int, model: bytes, rollout: dict[str, Any], **facts: Any) -> str:
    """Rolls out a bundle with this model, as if the run of this seed had published it; its digest."""
    pod = next(pod for pod in namespace.list("pod", "ray.io/node-type=head") if "deletionTimestamp" not in pod["metadata"])
    serving = status(namespace)["serving"]["digest"].removeprefix("sha256:")
    path = f"/storage/{namespace.name}/cartpole/bundles/{serving}/manifest.json"
    text = namespace.kubectl("exec", pod["metadata"]["name"], "-c", "ray-head", "--", "cat", path)
    known = {name: json.loads(text)[name] for name in ("environment", "observationSpace", "actionSpace")}
    storage = open_storage(file_uri(tmp_path))
    digest = published(storage, model, **{**known, **facts})
    document = example(namespace)
    document["spec"]["training"]["seed"] = seed
    document["spec"]["gate"] = {"minReturn": 1, "episodes": 10}
    document["spec"]["rollout"] = rollout
    run = spec_of(schema.defaulted(document)).run
    uri = f"file:///storage/{namespace.name}/cartpole/bundles/{digest.removeprefix('sha256:')}"
    (storage.run(run)).mkdir(parents=True, exist_ok=True)
    result = {"run": run, "digest": digest, "uri": uri, "iteration": 1, "envSteps": 1, "episodeReturnMean": 9.0}
    (storage.run(run) / "result.json").write_text(json.dumps({**result, "trainedAt": "2026-01-01T00:00:00Z"}))
    put(namespace, tmp_path)
    namespace.apply(document)
    return digest


SLOWLY = {"strategy": "Canary", "steps": [{"weight": 50, "seconds": 30}, {"weight": 90, "seconds": 30}]}


def rarely(common: list[float], rare: list[float], ratio: float) -> Callable[[], list[float]]:
    draw = random.Random(0)
    return lambda: rare if draw.random() < ratio else common


@pytest.mark.full
@pytest.mark.parametrize(
    ("seed", "model", "observe", "reason"),
    [
        (11, fragile_model(), rarely(at_rest(), [2.2, 0.0, 0.0, 0.0], 0.02), "TooManyErrors"),
        (12, nan_model(), rarely([0.5, 0.0, 0.0, 0.0], [-0.5, 0.0, 0.0, 0.0], 0.1), "TooManyErrors"),
        (13, slow_model(5000), rarely(at_rest(), [1.0, 0.0, 0.0, 0.0], 1.0), "TooSlow"),
        (14, slow_model(30_000), rarely(at_rest(), [2.0, 0.0, 0.0, 0.0], 0.05), "SetAside"),
    ],
    ids=["raises on 2 %", "gives no number", "is slow", "takes too long"],
)
def test_a_candidate_that_behaves_badly_is_rolled_back_and_nothing_fails(
    cartpole: Namespace, tmp_path: Path, seed: int, model: bytes, observe: Callable[[], list[float]], reason: str
) -> None:
    before = status(cartpole)["serving"]["digest"]
    with sessions(cartpole, 16, observe) as played:
        digest = offer(cartpole, tmp_path, seed, model, SLOWLY)
        wait(lambda: status(cartpole).get("candidate", {}).get("digest") == digest, 240, "the candidate", every_s=0.1)
        began = time.time()
        ended = over(cartpole, "RolledBack", digest)
        seconds = time.time() - began
        wait_for_replicas(cartpole, before)
    assert (ended["digest"], ended["rollout"]["reason"]) == (digest, reason), ended
    print(json.dumps({"reason": reason, "seconds": round(seconds, 1), "why": ended["rollout"]["message"], "sessions": len(played)}))
    assert failures(played) == []


@pytest.mark.full
def test_a_candidate_that_earns_less_is_rolled_back(cartpole: Namespace, tmp_path: Path) -> None:
    before = status(cartpole)["serving"]["digest"]
    draw = random.Random(0)
    rollout = {"strategy": "Canary", "steps": [{"weight": 50, "seconds": 15}], "analysis": {"maxReturnRegression": 20}}
    with sessions(cartpole, 16, at_rest, lambda answered_by: draw.gauss(450 if answered_by == before else 400, 30)) as played:
        digest = offer(cartpole, tmp_path, 15, linear_model(np.eye(4, 2)), rollout)
        held(cartpole, 1)
        began = time.time()
        ended = over(cartpole, "RolledBack", digest)
        seconds = time.time() - began
    print(json.dumps({"seconds": round(seconds, 1), "why": ended["rollout"]["message"], "sessions": len(played)}))
    assert ended["rollout"]["reason"] == "EarnsLess"
    assert failures(played) == []
