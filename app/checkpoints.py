"""Checkpoints of one run: written aside and renamed, the newest two kept, a torn one passed over. Knows nothing of RLlib."""

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from app.stop import Point
from app.storage import directory_aside, read_json

STATE_FILE = "run.json"
KEPT = 2


@dataclass(frozen=True)
class RunState:
    """What a run knows of itself besides the algorithm's own state.

    Attributes:
        curve: one point an iteration.
        time_s: seconds trained, over all attempts.
    """

    curve: list[Point]
    time_s: float


def write_checkpoint(directory: Path, state: RunState, save: Callable[[Path], None]) -> None:
    """Writes a checkpoint and removes all but the newest two.

    Args:
        directory: of the run's checkpoints.
        state: what the run knows of itself.
        save: writes the algorithm's state into the directory that it is given.
    """
    name = f"{state.curve[-1].iteration:08d}"
    with directory_aside(directory / name) as aside:
        save(aside / "algorithm")
        content = {"curve": [asdict(point) for point in state.curve], "timeSeconds": state.time_s}
        (aside / STATE_FILE).write_text(json.dumps(content))
    for old in _whole_checkpoints(directory)[KEPT:]:
        shutil.rmtree(old, ignore_errors=True)


def restored_state(directory: Path, restore: Callable[[Path], None]) -> RunState | None:
    """Goes on from the newest checkpoint that can be read.

    Args:
        directory: of the run's checkpoints.
        restore: reads the algorithm's state from the directory that it is given; may raise anything when it is torn.

    Returns:
        The run's state then, None where there is no checkpoint.
    """
    for checkpoint in _whole_checkpoints(directory):
        content = read_json(checkpoint / STATE_FILE)
        if content is None:
            continue
        try:
            restore(checkpoint / "algorithm")
        except Exception:  # noqa: BLE001 - whatever a torn pickle raises, the older checkpoint is the way on
            continue
        return RunState([Point(**point) for point in content["curve"]], content["timeSeconds"])
    return None


def _whole_checkpoints(directory: Path) -> list[Path]:
    """The checkpoints that were renamed into place, newest first."""
    if not directory.is_dir():
        return []
    return sorted((path for path in directory.iterdir() if path.name.isdigit()), reverse=True)
