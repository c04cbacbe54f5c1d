"""The verbs against a real API server: what they tell, what they ask for, and who is on record for it."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

from e2e.conftest import example
from e2e.kube import CONTEXT, INGRESS_URL, OBSERVATION, Namespace, wait
from e2e.rollouts import changed, held, over, status


def policymodel(namespace: Namespace, *arguments: str, code: int = 0) -> str:
    """Runs a verb; what it printed."""
    verb, *rest = arguments
    command = [sys.executable, "-m", "controller.cli", verb, "cartpole", "-n", namespace.name, "--context", CONTEXT, *rest]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=300)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout


def told(namespace: Namespace, *arguments: str) -> Any:
    return json.loads(policymodel(namespace, *arguments, "-o", "json"))


def test_the_verbs_tell_how_it_is_and_ask_the_policy(cartpole: Namespace) -> None:
    tree = policymodel(cartpole, "status")
    assert "revision" in tree
    assert status(cartpole)["serving"]["digest"][:19] in tree
    assert told(cartpole, "status")["ready"] is True
    where = ["--url", f"{INGRESS_URL}/cartpole-ppo", "--host", f"{cartpole.name}.localhost"]
    assert told(cartpole, "act", json.dumps(OBSERVATION["observation"]), *where)["action"] in (0, 1)
    assert "500" in policymodel(cartpole, "play", *where, "--fps", "1000")
    assert policymodel(cartpole, "logs", "--serve", "--tail", "5")


def test_logs_follow_a_training_and_who_asked_for_it_is_on_record(namespace: Namespace) -> None:
    document = example(namespace)
    document["spec"]["training"]["stop"] = {"envSteps": 20_000}
    document["spec"]["gate"] = {"minReturn": 1, "episodes": 10}
    namespace.apply(document)
    namespace.wait_condition("cartpole", "Ready", "True", timeout_s=300)
    policymodel(namespace, "retrain")
    wait(lambda: status(namespace).get("training", {}).get("trigger"), 60, "the training to be asked for")
    assert '"progress"' in policymodel(namespace, "logs", "-f")
    wait(lambda: len(status(namespace)["revisions"]) == 2, 120, "its revision", lambda: namespace.kubectl("describe", "pm", "cartpole"))
    newest = status(namespace)["revisions"][-1]
    # Whom the API server knows the caller as.
    user = json.loads(namespace.kubectl("auth", "whoami", "-o", "json"))["status"]["userInfo"]["username"]
    assert newest["trigger"]["user"] == user
    assert told(namespace, "history", "--revision", "2")["digest"] == newest["digest"]


def test_a_candidate_is_promoted_undone_and_unpinned_by_verbs(cartpole: Namespace) -> None:
    before = status(cartpole)["serving"]
    changed(cartpole, 1, {"strategy": "Canary", "steps": [{"weight": 50, "seconds": 601}]})
    held(cartpole, 1)
    policymodel(cartpole, "promote", "--wait", "--timeout", "60s")
    promoted = over(cartpole, "Promoted")
    assert status(cartpole)["serving"]["digest"] == promoted["digest"]
    policymodel(cartpole, "undo", "--wait", "--timeout", "60s")
    assert status(cartpole)["serving"]["digest"] == before["digest"]
    policymodel(cartpole, "unpin")
    held(cartpole, 1)
    policymodel(cartpole, "pause")
    assert "paused" in policymodel(cartpole, "status").lower()
    policymodel(cartpole, "resume")
    policymodel(cartpole, "abort")
    over(cartpole, "Aborted", promoted["digest"])
    assert status(cartpole)["serving"]["digest"] == before["digest"]
    policymodel(cartpole, "pin", "999", code=3)
