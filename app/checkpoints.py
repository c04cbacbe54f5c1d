"""Checkpoints of one run: written aside and renamed, the newest two kept, a torn one passed over. Knows nothing of RLlib.

Algorithms are saved as pickles, which can run code when they are read. So a checkpoint is read only by the Job of its own run, and only
when every file is as it was written.
"""

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from app.stop import Point
from app.storage import directory_aside, read_json, write_aside

ALGORITHM = "algorithm"
STATE_FILE = "run.json"
ATTEMPTS_FILE = "attempts.json"
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


@dataclass(frozen=True)
class Attempts:
    """How often a run was begun, and how long it has trained, work that was lost with an attempt included.

    Attributes:
        count: attempts, from 1.
        time_s: seconds trained, over all of them.
    """

    count: int
    time_s: float


def known_attempts(run: Path) -> Attempts:
    """The attempts that a run's directory tells of; none where it tells of none."""
    match read_json(run / ATTEMPTS_FILE):
        case {"attempts": int(count), "timeSeconds": int() | float() as time_s}:
            return Attempts(count, time_s)
    return Attempts(0, 0.0)


def write_attempts(run: Path, attempts: Attempts) -> None:
    """Notes the attempts, so that the next one knows of them however this one ends."""
    content = {"attempts": attempts.count, "timeSeconds": round(attempts.time_s, 3)}
    write_aside(run / ATTEMPTS_FILE, json.dumps(content).encode())


def write_checkpoint(directory: Path, state: RunState, save: Callable[[Path], None]) -> None:
    """Writes a checkpoint and removes all but the newest two.

    Args:
        directory: of the run's checkpoints.
        state: what the run knows of itself.
        save: writes the algorithm's state into the directory that it is given.
    """
    with directory_aside(directory / f"{state.curve[-1].iteration:08d}") as aside:
        save(aside / ALGORITHM)
        curve = [asdict(point) for point in state.curve]
        content = {"curve": curve, "timeSeconds": state.time_s, "files": _digests(aside / ALGORITHM)}
        write_aside(aside / STATE_FILE, json.dumps(content).encode())
    for old in _renamed_checkpoints(directory)[KEPT:]:
        shutil.rmtree(old, ignore_errors=True)


def restored_state(directory: Path, restore: Callable[[Path], None]) -> RunState | None:
    """Goes on from the newest checkpoint that can be read. Those that cannot are removed: the run comes by their iterations again.

    Args:
        directory: of the run's checkpoints.
        restore: reads the algorithm's state from the directory that it is given; where it raises, the algorithm is as it was.

    Returns:
        The run's state then, None where there is no such checkpoint.
    """
    for checkpoint in _renamed_checkpoints(directory):
        state = _state(checkpoint)
        if state is not None:
            try:
                restore(checkpoint / ALGORITHM)
            except Exception:  # noqa: BLE001 - whatever the pickle of another version raises, the older checkpoint is the way on
                state = None
        if state is not None:
            return state
        shutil.rmtree(checkpoint, ignore_errors=True)
    return None


def _state(checkpoint: Path) -> RunState | None:
    """What a checkpoint says of its run, None where it is torn."""
    content = read_json(checkpoint / STATE_FILE)
    if content is None or content.get("files") != _digests(checkpoint / ALGORITHM):
        return None
    try:
        return RunState([Point(**point) for point in content["curve"]], float(content["timeSeconds"]))
    except (KeyError, TypeError):
        return None


def _digests(directory: Path) -> dict[str, Any]:
    """The sha256 of each file below a directory, by its path there."""
    files = sorted(path for path in directory.rglob("*") if path.is_file())
    return {path.relative_to(directory).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def _renamed_checkpoints(directory: Path) -> list[Path]:
    """The checkpoints that were renamed into place, newest first."""
    if not directory.is_dir():
        return []
    return sorted((path for path in directory.iterdir() if path.name.isdigit()), reverse=True)
