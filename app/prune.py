"""Removes policies that nobody needs any more: `python -m app.prune`. It decides nothing: it removes what it is handed, and that alone.

Of each digest: its bundle, the records of its evaluations, and the runs that published it, with their checkpoints, weights and event files.
Idempotent: what is gone already is passed over, and what was stopped half-way is found again by the next try, because a run's result,
which tells its digest, goes last.
"""

import errno
import sys
from collections.abc import Callable, Sequence
from functools import partial
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
        evaluations, runs = _evaluations(storage, digests), _runs(storage, digests)
        removals: list[Callable[[], None]] = [partial(_remove_whole, bundle, MANIFEST_FILE) for bundle in _bundles(storage, digests)]
        removals += [partial(remove_file, storage.evaluations(), name) for name in evaluations]
        removals += [partial(_remove_run, run) for run in runs]
        _do_all(removals)
    return {"pruned": len(digests), "evaluations": len(evaluations), "runs": len(runs)}


def _do_all(removals: Sequence[Callable[[], None]]) -> None:
    """Does each: what cannot be removed keeps nothing else from it.

    Raises:
        OSError: the first that failed, at the end; at once where the storage itself does (EIO, as of a bucket).
    """
    failures: list[OSError] = []
    for removal in removals:
        try:
            removal()
        except OSError as error:
            if error.errno == errno.EIO:
                raise
            failures.append(error)
    if failures:
        raise failures[0]


def _bundles(storage: Storage, digests: Sequence[str]) -> list[Place]:
    return [storage.bundles() / digest.removeprefix("sha256:") for digest in digests]


def _evaluations(storage: Storage, digests: Sequence[str]) -> list[str]:
    """The records of having played these policies; where one of them was the opponent, the record is another policy's."""
    directory = storage.evaluations()
    return [name for name in children(directory) if name.endswith(".json") and _digest(directory / name) in digests]


def _runs(storage: Storage, digests: Sequence[str]) -> list[Place]:
    """The runs whose result is one of these policies."""
    runs = storage.path / "runs"
    return [runs / name for name in children(runs) if _digest(runs / name / RESULT_FILE) in digests]


def _remove_run(run: Place) -> None:
    for checkpoint in children(run / CHECKPOINTS):
        _remove_whole(run / CHECKPOINTS / checkpoint, STATE_FILE)
    _remove_whole(run / TENSORBOARD)
    remove_trials(run)
    _remove_whole(run / TRIALS)
    for name in children(run):
        if name not in (CHECKPOINTS, TENSORBOARD, TRIALS, RESULT_FILE):
            # Whoever mounts the claim may have left a directory of theirs.
            _remove_whole(run / name)
            remove_file(run, name)
    _remove_whole(run, RESULT_FILE)


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
