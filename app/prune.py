"""Removes policies that nobody needs any more: `python -m app.prune`. It decides nothing: it removes what it is handed, and that alone.

Of each digest: its bundle, the records of its evaluations, and the runs that published it, with their checkpoints, weights and event files.
Idempotent: what is gone already is passed over, and what was stopped half-way is found again by the next try, because a run's result,
which tells its digest, goes last.
"""

import errno
import sys
from collections.abc import Sequence
from typing import Any

from app.bundle import DIGEST, MANIFEST_FILE
from app.errors import InputError
from app.report import ArgumentParser, Report, reported_run
from app.storage import Place, Storage, children, open_storage, read_json, remove, remove_file, storage_faults
from app.training.checkpoints import STATE_FILE
from app.training.standing import CHECKPOINTS, TRIALS, remove_trials
from app.training.tracking import TENSORBOARD

RESULT_FILE = "result.json"


def run(argv: Sequence[str], _report: Report) -> dict[str, Any]:
    """What `python -m app.prune` does.

    Returns:
        `{"pruned", "evaluations", "runs"}`: how many policies were asked for, and how many records and runs went with them now.

    Raises:
        InputError: a digest is none.
        RetryableError: the storage failed.
    """
    parser = ArgumentParser(prog="app.prune", description="Removes policies with their evaluations and their runs.")
    parser.add_argument("--storage", required=True, metavar="URI")
    parser.add_argument("--delete", required=True, nargs="+", metavar="DIGEST")
    arguments = parser.parse_args(argv)
    digests = list(dict.fromkeys(arguments.delete))
    for digest in digests:
        if not DIGEST.fullmatch(digest):
            raise InputError("InvalidArguments", "--delete must name digests: sha256: and 64 hexadecimal digits")
    storage = open_storage(arguments.storage)
    with storage_faults():
        for digest in digests:
            _remove_whole(storage.bundles() / digest.removeprefix("sha256:"), MANIFEST_FILE)
        return {"pruned": len(digests), "evaluations": _without_evaluations(storage, digests), "runs": _without_runs(storage, digests)}


def _without_evaluations(storage: Storage, digests: Sequence[str]) -> int:
    """Removes the records of having played these policies; where one of them was the opponent, the record is another policy's."""
    directory = storage.evaluations()
    found = [name for name in children(directory) if name.endswith(".json") and _digest(directory / name) in digests]
    for name in found:
        remove_file(directory, name)
    return len(found)


def _without_runs(storage: Storage, digests: Sequence[str]) -> int:
    """Removes the runs whose result is one of these policies."""
    runs = storage.path / "runs"
    found = [name for name in children(runs) if _digest(runs / name / RESULT_FILE) in digests]
    for name in found:
        checkpoints = runs / name / CHECKPOINTS
        for checkpoint in children(checkpoints):
            _remove_whole(checkpoints / checkpoint, STATE_FILE)
        _remove_whole(runs / name / TENSORBOARD)
        remove_trials(runs / name)
        _remove_whole(runs / name / TRIALS)
        for file in children(runs / name):
            if file not in (CHECKPOINTS, TENSORBOARD, TRIALS, RESULT_FILE):
                remove_file(runs / name, file)
        _remove_whole(runs / name, RESULT_FILE)
    return len(found)


def _digest(record: Place) -> str | None:
    """The digest that a record is about, None where there is none to read."""
    digest = (read_json(record) or {}).get("digest")
    return digest if isinstance(digest, str) else None


def _remove_whole(place: Place, seal: str | None = None) -> None:
    """Removes a directory.

    Raises:
        OSError: something of it is left.
    """
    remove(place, seal)
    if children(place):
        raise OSError(errno.EBUSY, "not everything could be removed", str(place))


def main() -> int:
    """Entry point; gives the exit code."""
    return reported_run(lambda report: run(sys.argv[1:], report))


if __name__ == "__main__":
    sys.exit(main())
