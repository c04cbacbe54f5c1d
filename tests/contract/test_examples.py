"""The examples are good PolicyModels, and their settings train policies that their gates let through."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from app import train
from controller import gate, history, resources, schema
from controller.model import Images, Owner, Settings
from controller.spec import Spec, spec_of

ROOT = Path(__file__).parents[2]
EXAMPLES = {path.stem: path for path in sorted((ROOT / "k8s" / "examples").glob("*.yaml"))}
# The README's is trained by tests of its own.
TRAINED = sorted(set(EXAMPLES) - {"policymodel"})
LONGEST_S = 880


def spec(name: str) -> Spec:
    return spec_of(schema.load(EXAMPLES[name].read_text()))


def arguments(name: str, storage: Path) -> list[str]:
    """Those of its training Job, with a directory of this machine as the storage."""
    settings = Settings("train:1", "serve:1", storage_root=storage.as_uri())
    job = resources.training_job(Owner("default", name, "uid-1"), spec(name), settings, Images("train:1", "serve:1"))
    return list(job["spec"]["template"]["spec"]["containers"][0]["args"])


def needs_its_package(name: str) -> None:
    if name == "lunarlander":
        pytest.importorskip("Box2D", reason="box2d is not installed: it has no wheel for this machine")


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_can_be_trained(name: str, tmp_path: Path) -> None:
    needs_its_package(name)
    run = train.parsed_run(arguments(name, tmp_path)[2:])
    assert (run.id, run.task.environment.id) == (spec(name).run, spec(name).environment["id"])


def result_of(command: list[str]) -> dict[str, Any]:
    variables = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, *command], check=False, env=variables, capture_output=True, text=True, timeout=LONGEST_S)
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-3000:]
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])["result"]
    return found


@pytest.mark.full
@pytest.mark.parametrize("name", TRAINED)
def test_an_example_trains_a_policy_that_its_gate_lets_through(name: str, tmp_path: Path) -> None:
    needs_its_package(name)
    rules = spec(name).gate
    evaluation = gate.judged(history.evaluation_of(result_of(arguments(name, tmp_path))), rules)
    assert gate.verdict(evaluation, rules, is_compared=False).outcome == "Pass", evaluation
