"""A trainer without RLlib: all that it learns is to count iterations, on from what it begins with."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from app import train
from app.bundle import published_bundle
from app.spaces import Array, described_space
from app.storage import Storage
from app.training.trainer import IterationResult, TrainingTask
from app.training.warm import write_weights

STEPS = 100
LEARNT, LEARNT_BEFORE = "learnt", 1000


class FakeTrainer:
    """Stands in for `app.training.trainer.Trainer`."""

    is_of_another_version = False

    def __init__(self, task: TrainingTask, *, joins_cluster: bool = False) -> None:
        self._iterations = self._learnt = 0

    def iterate(self) -> IterationResult:
        self._iterations += 1
        self._learnt += 1
        return IterationResult(STEPS * self._iterations, 1, 10.0, 100.0, True, {})

    def save(self, directory: Path) -> None:
        directory.mkdir()
        (directory / "state.json").write_text(json.dumps([self._iterations, self._learnt]))

    def restore(self, directory: Path) -> None:
        self._iterations = self._learnt = 0
        if self.is_of_another_version:
            raise ModuleNotFoundError("another version")
        self._iterations, self._learnt = json.loads((directory / "state.json").read_text())

    def weights(self) -> Mapping[str, Array]:
        return {LEARNT: np.array(self._learnt)}

    def begin_with(self, weights: Mapping[str, Array]) -> None:
        self._learnt = int(weights[LEARNT])

    def close(self) -> None:
        pass


def published_before(storage: Storage, run: str) -> str:
    """Publishes a run of CartPole that another one can begin with; gives its digest."""
    flags = ["--storage", storage.uri, "--run", run, "--environment", '{"id": "CartPole-v1"}', "--stop", '{"iterations": 1}']
    task = train.parsed_run(flags).task
    spaces = {"observationSpace": task.encoding.observation_space, "actionSpace": task.encoding.action_space}
    described = {name: described_space(space) for name, space in spaces.items()}
    write_weights(storage, run, {LEARNT: np.array(LEARNT_BEFORE)})
    return published_bundle(storage, {**described, "config": train._config(task), "run": run}, b"")
