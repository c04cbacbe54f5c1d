"""Pruning removes what it is handed, and that alone, however often it is asked and wherever it was stopped."""

from __future__ import annotations

import errno
import io
import json
from pathlib import Path
from typing import Any

import pytest
from obstore.store import MemoryStore

from app import objects, prune
from app.errors import InputError, RetryableError
from app.objects import ObjectPlace
from app.report import Report
from app.storage import Place, Storage, file_uri, open_storage, write_aside

FIRST, SECOND = "sha256:" + "ab" * 32, "sha256:" + "cd" * 32


def put(place: Place, content: Any) -> None:
    write_aside(place, json.dumps(content).encode())


@pytest.fixture(params=["a directory", "a bucket"])
def storage(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Storage:
    """An empty storage of each kind; the bucket is one in memory, behind the same client."""
    store = MemoryStore()
    monkeypatch.setattr(objects, "_store", lambda bucket: store)
    return open_storage(file_uri(tmp_path / "storage") if request.param == "a directory" else "s3://policies/all/default/cartpole")


@pytest.fixture
def filled(storage: Storage) -> Storage:
    """Two policies, each with a run, its checkpoints and an evaluation, and one evaluation of the second against the first."""
    for run, digest in (("r1", FIRST), ("r2", SECOND)):
        bundle = storage.bundles() / digest.removeprefix("sha256:")
        put(bundle / "policy.onnx", {})
        put(bundle / "manifest.json", {})
        put(storage.run(run) / "result.json", {"run": run, "digest": digest})
        put(storage.run(run) / "attempts.json", {})
        put(storage.run(run) / "weights.npz", {})
        put(storage.run(run) / "tensorboard" / "events.out.tfevents.1.host", {})
        put(storage.run(run) / "tensorboard" / "01" / "events.out.tfevents.1.host", {})
        put(storage.run(run) / "checkpoints" / "00000010" / "run.json", {})
        put(storage.run(run) / "checkpoints" / "00000010" / "algorithm" / "state", {})
        put(storage.run(run) / "search.json", {})
        put(storage.run(run) / "trials" / "03" / "trial.json", {})
        put(storage.run(run) / "trials" / "03" / "checkpoints" / "00000010" / "run.json", {})
        put(storage.run(run) / "trials" / "03" / "checkpoints" / "00000010" / "algorithm" / "state", {})
        put(storage.evaluation(f"of-{run}"), {"digest": digest})
    put(storage.evaluation("both"), {"digest": SECOND, "against": {"digest": FIRST}})
    put(storage.run("r3") / "checkpoints" / "00000010" / "run.json", {})
    return storage


def pruned(storage: Storage, *digests: str) -> dict[str, Any]:
    return prune.run(["--storage", storage.uri, "--delete", *digests], Report(io.StringIO(), None))


def files(storage: Storage) -> set[str]:
    if isinstance(storage.path, ObjectPlace):
        return set(storage.path.below())
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
    with monkeypatch.context() as broken:
        broken.setattr(prune, "_remove_whole", stopping)
        with pytest.raises(RetryableError, match="Input/output error"):
            pruned(filled, FIRST)
    assert pruned(filled, FIRST)["runs"] == 1
    assert not any("r1" in path for path in files(filled))


def test_a_run_tells_its_digest_until_its_weights_are_gone(filled, monkeypatch):
    def failing(directory: Place, name: str) -> None:
        if name == "weights.npz":
            raise OSError(5, "Input/output error", name)

    with monkeypatch.context() as broken:
        broken.setattr(prune, "remove_file", failing)
        with pytest.raises(RetryableError, match="Input/output error"):
            pruned(filled, FIRST)
    assert "runs/r1/result.json" in files(filled)
    assert pruned(filled, FIRST)["runs"] == 1
    assert not any("r1" in path for path in files(filled))


def test_what_cannot_be_removed_is_a_failure_that_a_later_try_may_not_meet(filled, monkeypatch):
    monkeypatch.setattr("app.storage.shutil.rmtree", lambda place, ignore_errors: None)
    monkeypatch.setattr(ObjectPlace, "remove", lambda place, keys: None)
    with pytest.raises(RetryableError, match="not everything could be removed"):
        pruned(filled, FIRST)


def test_what_others_left_in_a_run_goes_with_it(filled):
    put(filled.run("r1") / ".ipynb_checkpoints" / "notes.json", {})
    pruned(filled, FIRST)
    assert not any("r1" in path for path in files(filled))


def test_what_cannot_be_removed_keeps_nothing_else_from_it(filled, monkeypatch):
    remove = prune._remove_run

    def fail_over_the_first(run: Any) -> None:
        if str(run).endswith("r1"):
            raise PermissionError(errno.EACCES, "not yours", str(run))
        remove(run)

    monkeypatch.setattr(prune, "_remove_run", fail_over_the_first)
    with pytest.raises(RetryableError, match="not yours"):
        pruned(filled, FIRST, SECOND)
    left = files(filled)
    assert any("r1" in path for path in left)
    assert not any(path.startswith(("bundles/", "runs/r2", "evaluations/")) for path in left)


@pytest.mark.parametrize("digest", ["", "..", "sha256:..", "sha256:" + "g" * 64, "ab" * 32, FIRST + "/", "sha256:" + "ab" * 32 + "\n"])
def test_what_is_no_digest_is_refused_before_anything_is_removed(filled, digest):
    before = files(filled)
    with pytest.raises(InputError, match="--delete"):
        pruned(filled, FIRST, digest)
    assert files(filled) == before


def test_nothing_handed_is_refused(filled):
    with pytest.raises(InputError):
        pruned(filled)


@pytest.mark.parametrize("storage", ["a directory"], indirect=True)
def test_the_program_says_its_result_as_the_last_line(said, filled):
    done = said("app.prune", "--storage", filled.uri, "--delete", FIRST, SECOND)
    assert (done.code, done.last) == (0, {"result": {"pruned": 2, "evaluations": 3, "runs": 2}})
    assert said("app.prune", "--storage", filled.uri, "--delete", "x").code == 2
