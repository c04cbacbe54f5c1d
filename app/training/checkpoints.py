"""Checkpoints of one run: their state written last, the newest two kept, a torn one passed over. Knows nothing of RLlib.

Algorithms are saved as pickles, which can run code when they are read. So a checkpoint is read only by the Job of its own run, and only
when every file is as it was written.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from app.storage import Place, children, directory_aside, local_copy, read_json, remove, write_aside
from app.training.stop import Point

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
        parent: the digest of the policy whose weights it began with; None where it began with chance.
    """

    curve: list[Point]
    time_s: float
    parent: str | None = None


@dataclass(frozen=True)
class Attempts:
    """How often a run was begun, and how long it has trained, work that was lost with an attempt included.

    Attributes:
        count: attempts, from 1.
        time_s: seconds trained, over all of them.
    """

    count: int
    time_s: float


def known_attempts(run: Place) -> Attempts:
    """The attempts that a run's directory tells of; none where it tells of none."""
    match read_json(run / ATTEMPTS_FILE):
        case {"attempts": int(count), "timeSeconds": int() | float() as time_s}:
            return Attempts(count, time_s)
    return Attempts(0, 0.0)


def write_attempts(run: Place, attempts: Attempts) -> None:
    """Notes the attempts, so that the next one knows of them however this one ends."""
    content = {"attempts": attempts.count, "timeSeconds": round(attempts.time_s, 3)}
    write_aside(run / ATTEMPTS_FILE, json.dumps(content).encode())


def write_checkpoint(directory: Place, state: RunState, save: Callable[[Path], None]) -> None:
    """Writes a checkpoint and removes all but the newest two.

    Args:
        directory: of the run's checkpoints.
        state: what the run knows of itself.
        save: writes the algorithm's state into the directory that it is given.
    """
    with directory_aside(directory / f"{state.curve[-1].iteration:08d}", STATE_FILE) as aside:
        save(aside / ALGORITHM)
        curve = [asdict(point) for point in state.curve]
        content = {"curve": curve, "timeSeconds": state.time_s, "parent": state.parent, "files": _digests(aside / ALGORITHM)}
        write_aside(aside / STATE_FILE, json.dumps(content).encode())
    for old in _checkpoints(directory)[KEPT:]:
        remove(old, STATE_FILE)


def restored_state(directory: Place, restore: Callable[[Path], None]) -> RunState | None:
    """Goes on from the newest checkpoint that can be read. Those that cannot are removed: the run comes by their iterations again.

    Args:
        directory: of the run's checkpoints.
        restore: reads the algorithm's state from the directory that it is given; where it raises, the algorithm is as it was.

    Returns:
        The run's state then, None where there is no such checkpoint.
    """
    for checkpoint in _checkpoints(directory):
        with local_copy(checkpoint) as local:
            state = _state(local)
            if state is not None:
                try:
                    restore(local / ALGORITHM)
                except FileNotFoundError:
                    state = None
                except (OSError, MemoryError):
                    # The machine's fault, not that of a checkpoint whose digests are right: a later try may not meet it.
                    raise
                except Exception:  # noqa: BLE001 - whatever the pickle of another version raises, the older checkpoint is the way on
                    state = None
        if state is not None:
            return state
        remove(checkpoint, STATE_FILE)
    return None


def has_checkpoint(directory: Place) -> bool:
    """Whether there is one, which may turn out to be torn."""
    return bool(_checkpoints(directory))


def _state(checkpoint: Path) -> RunState | None:
    """What a checkpoint says of its run, None where it is torn."""
    content = read_json(checkpoint / STATE_FILE)
    if content is None or content.get("files") != _digests(checkpoint / ALGORITHM):
        return None
    try:
        return RunState([Point(**point) for point in content["curve"]], float(content["timeSeconds"]), content.get("parent"))
    except (KeyError, TypeError):
        return None


def _digests(directory: Path) -> dict[str, Any]:
    """The sha256 of each file below a directory, by its path there."""
    files = sorted(path for path in directory.rglob("*") if path.is_file())
    return {path.relative_to(directory).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def _checkpoints(directory: Place) -> list[Place]:
    """The checkpoints, newest first; what was not renamed into place is none."""
    return [directory / name for name in reversed(children(directory)) if name.isdigit()]
