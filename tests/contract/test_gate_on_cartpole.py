"""CartPole is trained for real, and the gate judges what came out: a worse policy against the serving one, and an equal one.

`app` plays and `controller` judges, as they do in a cluster; each comparison has seeds of its own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fakes.world import document

from app.evaluate import EvaluationRequest, evaluated
from app.storage import Storage, file_uri, open_storage
from controller import gate, history
from controller.model import Evaluation
from controller.spec import Spec, spec_of

pytestmark = pytest.mark.full

ROOT = Path(__file__).parents[2]
COMPARISONS = 20
LEAST_EQUAL_PASSES = 17
STOP = {"solved": {"episodeReturnMean": 475, "envSteps": 200_000}, "stopped early": {"iterations": 2}}
TRAINED = {"serving": ("solved", 0), "equal": ("solved", 1), "worse": ("stopped early", 2)}


def digest_of(storage: Storage, name: str) -> str:
    """Trains a policy and gives the digest of its bundle."""
    stop, seed = TRAINED[name]
    flags = {"--storage": storage.uri, "--run": name, "--environment": '{"id": "CartPole-v1"}', "--seed": str(seed)}
    settings = {"--config": '{"lr": 0.001, "gamma": 0.98}', "--stop": json.dumps(STOP[stop])}
    command = [sys.executable, "-m", "app.train", *(word for flag in {**flags, **settings}.items() for word in flag)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})
    return str(json.loads(done.stdout.splitlines()[-1])["result"]["digest"])


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Storage:
    return open_storage(file_uri(tmp_path_factory.mktemp("gate")))


@pytest.fixture(scope="module")
def digests(storage: Storage) -> dict[str, str]:
    return {name: digest_of(storage, name) for name in TRAINED}


def decided(storage: Storage, spec: Spec, digest: str, incumbent: str, run: str) -> Iterator[tuple[gate.Verdict, Evaluation]]:
    """The verdict of each look until one decides."""
    for look in spec.looks(run, incumbent):
        request = EvaluationRequest(look.id, look.episodes, look.seed, look.against)
        played: dict[str, Any] = {"evaluation": evaluated(storage, digest, request, [])}
        evaluation = gate.judged(history.evaluation_of(played), spec.gate)
        verdict = gate.verdict(evaluation, spec.gate)
        yield verdict, evaluation
        if verdict.outcome != "Inconclusive":
            return


def outcomes(storage: Storage, digests: dict[str, str], name: str) -> list[str]:
    """The verdict on a policy in each of many comparisons with the one that serves."""
    spec = spec_of(document(gate__minReturn=0, gate__againstServing={"maxRegression": 10}))
    found = []
    for number in range(COMPARISONS):
        # Both policies are compared on the same sets of seeds, so the serving one plays each but once.
        *_, (verdict, evaluation) = decided(storage, spec, digests[name], digests["serving"], f"run-{number}")
        print(f"{name} {number}: {verdict.outcome} after {evaluation.episodes} episodes: {verdict.message}")
        found.append(verdict.outcome)
    return found


def test_a_policy_that_was_made_worse_on_purpose_fails_each_time(storage, digests):
    assert outcomes(storage, digests, "worse") == ["Fail"] * COMPARISONS


def test_an_equal_policy_passes_nearly_each_time(storage, digests):
    assert outcomes(storage, digests, "equal").count("Pass") >= LEAST_EQUAL_PASSES
