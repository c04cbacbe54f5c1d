"""A tiny bundle made by hand, a storage, and trainings that are run once for all tests."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes.policies import linear_model

from app.bundle import published_bundle
from app.storage import Storage, file_uri, open_storage

HERE = Path(__file__).parent
REPOSITORY = HERE.parents[2]


@pytest.fixture
def storage(tmp_path: Path) -> Storage:
    return open_storage(file_uri(tmp_path / "storage"))


@pytest.fixture
def made_bundle(storage: Storage) -> Callable[..., str]:
    """Publishes a linear CartPole bundle and gives its digest; `golden_shift` makes its golden record untrue."""

    def made(seed: int = 0, golden_shift: float = 0.0) -> str:
        random = np.random.default_rng(seed)
        weights = random.normal(size=(4, 2)).astype(np.float32)
        observations = random.uniform(-1, 1, size=(8, 4)).astype(np.float32)
        inputs = observations @ weights
        golden = {
            "observations": observations.tolist(),
            "actions": inputs.argmax(axis=1).tolist(),
            "actionDistInputs": (inputs + golden_shift).tolist(),
        }
        facts = {
            "environment": {"id": "CartPole-v1", "config": {}},
            "observationSpace": {
                "type": "Box",
                "shape": [4],
                "dtype": "float32",
                "low": [-4.8, None, -0.5, None],
                "high": [4.8, None, 0.5, None],
            },
            "actionSpace": {"type": "Discrete", "n": 2, "start": 0},
            "golden": golden,
        }
        return published_bundle(storage, facts, linear_model(weights))

    return made


@dataclass(frozen=True)
class Said:
    """What a program said: its exit code and its JSON lines."""

    code: int
    lines: list[dict[str, Any]]
    stderr: str

    @property
    def last(self) -> dict[str, Any]:
        return self.lines[-1]


def _said(module: str, *arguments: str, environment: dict[str, str] | None = None, timeout_s: int = 120) -> Said:
    """Runs `python -m MODULE`; every line of its stdout has to be JSON."""
    path = os.pathsep.join(filter(None, [str(REPOSITORY), str(HERE), os.environ.get("PYTHONPATH")]))
    variables = {**os.environ, "PYTHONPATH": path, **(environment or {})}
    command = [sys.executable, "-m", module, *arguments]
    done = subprocess.run(command, check=False, env=variables, capture_output=True, text=True, timeout=timeout_s, stdin=subprocess.DEVNULL)
    return Said(done.returncode, [json.loads(line) for line in done.stdout.splitlines()], done.stderr)


def _trained(storage: Storage, environment: dict[str, Any], *more: str) -> Said:
    """A training of two small iterations, with an evaluation of three episodes."""
    return _said(
        "app.train",
        *("--storage", storage.uri, "--run", "r1", "--environment", json.dumps(environment), "--entry-point-prefix", "worlds"),
        *("--config", json.dumps({"trainBatchSize": 256, "minibatchSize": 128, "numEpochs": 2, "numEnvs": 4})),
        *("--stop", '{"iterations": 2}', "--checkpoint-every", "1", "--evaluation", '{"id": "e1", "episodes": 3, "seed": 5}', *more),
    )


@dataclass(frozen=True)
class Training:
    """A finished training and where it left its things."""

    storage: Storage
    said: Said


@pytest.fixture(scope="session")
def cartpole(tmp_path_factory: pytest.TempPathFactory) -> Training:
    storage = open_storage(file_uri(tmp_path_factory.mktemp("cartpole")))
    return Training(storage, _trained(storage, {"id": "CartPole-v1"}))


@pytest.fixture(scope="session")
def said() -> Callable[..., Said]:
    return _said


@pytest.fixture(scope="session")
def trained() -> Callable[..., Said]:
    return _trained
