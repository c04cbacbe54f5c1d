"""A trainer without RLlib: all that it learns is how many iterations it has done."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from app.spaces import Array
from app.training.trainer import IterationResult, TrainingTask

STEPS = 100


class FakeTrainer:
    """Stands in for `app.training.trainer.Trainer`."""

    def __init__(self, task: TrainingTask, *, joins_cluster: bool = False) -> None:
        self._iterations = 0

    def iterate(self) -> IterationResult:
        self._iterations += 1
        return IterationResult(STEPS * self._iterations, 1, 10.0, 100.0, True, {})

    def save(self, directory: Path) -> None:
        directory.mkdir()
        (directory / "iterations").write_text(str(self._iterations))

    def restore(self, directory: Path) -> None:
        self._iterations = int((directory / "iterations").read_text())

    def weights(self) -> Mapping[str, Array]:
        return {"iterations": np.array(self._iterations)}

    def close(self) -> None:
        pass
