"""`python -m app.train`, heard line by line, that can be ended in the middle."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from app.storage import Storage

REPOSITORY = Path(__file__).parents[3]


class Attempt:
    """An attempt of the run r1 of CartPole, in a session of its own."""

    def __init__(self, storage: Storage, config: dict[str, Any], *more: str) -> None:
        flags = ["--storage", storage.uri, "--run", "r1", "--environment", '{"id": "CartPole-v1"}', "--config", json.dumps(config)]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "app.train", *flags, "--checkpoint-every", "5", *more],
            env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            start_new_session=True,
        )
        self.lines: list[dict[str, Any]] = []

    def hears(self) -> bool:
        """Takes in its next line; whether there was one."""
        line = self._process.stdout.readline()  # type: ignore[union-attr]
        if line.endswith("\n"):
            self.lines.append(json.loads(line))
        return line.endswith("\n")

    def ended(self, number: int | None = None) -> int:
        """Sends its session a signal, if any; gives the exit code, with all that it said until then heard."""
        if number is not None:
            os.killpg(self._process.pid, number)
        with self._process:
            while self.hears():
                pass
        return self._process.wait(60)

    @property
    def points(self) -> list[dict[str, Any]]:
        """What it has told of iterations."""
        return [line["progress"] for line in self.lines if "progress" in line]
