"""Pruning removes what it is handed, and that alone, however often it is asked and wherever it was stopped."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest

from app import prune
from app.errors import InputError, RetryableError
from app.report import Report
from app.storage import Storage, write_aside

FIRST, SECOND = "sha256:" + "ab" * 32, "sha256:" + "cd" * 32


def put(path: Path, content: Any) -> None:
    write_aside(path, json.dumps(content).encode())


@pytest.fixture
def filled(storage: Storage) -> Storage:
    """Two policies, each with a run, a checkpoint and an evaluation, and one evaluation of the second against the first."""
    for run, digest in (("r1", FIRST), ("r2", SECOND)):
        bundle = storage.bundles() / digest.removeprefix("sha256:")
        put(bundle / "policy.onnx", {})
        put(bundle / "manifest.json", {})
        put(storage.run(run) / "result.json", {"run": run, "digest": digest})
        put(storage.run(run) / "checkpoints" / "00000010" / "run.json", {})
        put(storage.run(run) / "checkpoints" / "00000010" / "algorithm" / "state", {})
        put(storage.evaluation(f"of-{run}"), {"digest": digest})
    put(storage.evaluation("both"), {"digest": SECOND, "against": {"digest": FIRST}})
    put(storage.run("r3") / "checkpoints" / "00000010" / "run.json", {})
    return storage


def pruned(storage: Storage, *digests: str) -> dict[str, Any]:
    return prune.run(["--storage", storage.uri, "--delete", *digests], Report(io.StringIO(), None))


def files(storage: Storage) -> set[str]:
    return {path.relative_to(storage.path).as_posix() for path in storage.path.rglob("*") if path.is_file()}


def test_a_policy_goes_with_its_evaluations_and_its_run_and_nothing_else_does(filled):
    before = files(filled)
    assert pruned(filled, FIRST) == {"pruned": 1, "evaluations": 1, "runs": 1}
    of_first = {path for path in before if FIRST.removeprefix("sha256:") in path or path.startswith("runs/r1/")}
    assert before - files(filled) == {*of_first, "evaluations/of-r1.json"}


def test_what_is_gone_is_passed_over(filled):
    pruned(filled, FIRST)
    before = files(filled)
    assert pruned(filled, FIRST, FIRST) == {"pruned": 1, "evaluations": 0, "runs": 0}
    assert files(filled) == before


def test_a_storage_that_holds_nothing_is_no_failure(storage):
    assert pruned(storage, FIRST) == {"pruned": 1, "evaluations": 0, "runs": 0}


def test_what_was_stopped_half_way_is_found_again(filled, monkeypatch):
    removed: list[str] = []

    def stopping(place: Path, seal: str) -> None:
        removed.append(seal)
        if len(removed) == 2:
            raise OSError(5, "Input/output error", str(place))
        whole(place, seal)

    whole = prune._remove_whole
    monkeypatch.setattr(prune, "_remove_whole", stopping)
    with pytest.raises(RetryableError, match="Input/output error"):
        pruned(filled, FIRST)
    monkeypatch.undo()
    assert pruned(filled, FIRST)["runs"] == 1
    assert not any("r1" in path for path in files(filled))


def test_what_cannot_be_removed_is_a_failure_that_a_later_try_may_not_meet(filled, monkeypatch):
    monkeypatch.setattr("app.storage.shutil.rmtree", lambda place, ignore_errors: None)
    with pytest.raises(RetryableError, match="not everything could be removed"):
        pruned(filled, FIRST)


@pytest.mark.parametrize("digest", ["", "..", "sha256:..", "sha256:" + "g" * 64, "ab" * 32, FIRST + "/", "sha256:" + "ab" * 32 + "\n"])
def test_what_is_no_digest_is_refused_before_anything_is_removed(filled, digest):
    before = files(filled)
    with pytest.raises(InputError, match="--delete"):
        pruned(filled, FIRST, digest)
    assert files(filled) == before


def test_nothing_handed_is_refused(filled):
    with pytest.raises(InputError):
        pruned(filled)


def test_the_program_says_its_result_as_the_last_line(said, filled):
    done = said("app.prune", "--storage", filled.uri, "--delete", FIRST, SECOND)
    assert (done.code, done.last) == (0, {"result": {"pruned": 2, "evaluations": 3, "runs": 2}})
    assert said("app.prune", "--storage", filled.uri, "--delete", "x").code == 2
