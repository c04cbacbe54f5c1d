"""CartPole is trained cold and warm, for real: what a warm start saves.

The policy to begin with is one of another seed that was stopped at a mean return of 200, far from the 475 that both are to reach. A start
from a solved policy would only show that its weights arrive: it has nothing left to learn.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from app.storage import Storage, file_uri, open_storage

pytestmark = [pytest.mark.full, pytest.mark.timeout(3600)]

ROOT = Path(__file__).parents[2]
SEEDS = range(5)
OTHER_SEED = 100
SOLVED = {"episodeReturnMean": 475, "envSteps": 200_000}


def result_of(storage: Storage, run: str, seed: int, stop: dict[str, int], start: dict[str, Any] | None = None) -> dict[str, Any]:
    """What a training says at its end."""
    flags = {"--storage": storage.uri, "--run": run, "--environment": '{"id": "CartPole-v1"}', "--seed": str(seed)}
    settings = {"--config": '{"lr": 0.001, "gamma": 0.98}', "--stop": json.dumps(stop)}
    begins = {"--warm-start": json.dumps({"run": start["run"], "digest": start["digest"]})} if start else {}
    command = [sys.executable, "-m", "app.train", *(word for flag in {**flags, **settings, **begins}.items() for word in flag)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])["result"]
    return found


def test_a_warm_started_run_is_there_in_fewer_steps_than_a_cold_one_in_the_median_of_five(tmp_path: Path) -> None:
    storage = open_storage(file_uri(tmp_path / "storage"))
    begun = result_of(storage, "begun", OTHER_SEED, {"episodeReturnMean": 200, "envSteps": 200_000})
    assert begun["episodeReturnMean"] < 475
    cold = [result_of(storage, f"cold-{seed}", seed, SOLVED) for seed in SEEDS]
    warm = [result_of(storage, f"warm-{seed}", seed, SOLVED, begun) for seed in SEEDS]
    assert {result["stoppedBy"] for result in (*cold, *warm)} == {"episodeReturnMean"}
    steps = {name: [result["envSteps"] for result in results] for name, results in (("cold", cold), ("warm", warm))}
    print(steps)
    assert statistics.median(steps["warm"]) < statistics.median(steps["cold"]), steps
