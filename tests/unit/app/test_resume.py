"""A run that is killed goes on from its last checkpoint."""

import errno
import io
import json
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fakes.trainer import LEARNT, LEARNT_BEFORE, FakeTrainer, published_before
from unit.app.attempts import Attempt

from app import train
from app.errors import InputError
from app.report import Report
from app.storage import Storage
from app.training.checkpoints import Attempts, RunState, known_attempts, restored_state, write_attempts, write_checkpoint
from app.training.leaving import Leaving
from app.training.stop import next_point
from app.training.tracking import Tracks

ITERATIONS, CHECKPOINT_EVERY, BATCH = 40, 5, 256


def curve(iterations: int) -> list[Any]:
    points: list[Any] = []
    for iteration in range(1, iterations + 1):
        points.append(next_point(points, 100 * iteration, 1, 10.0))
    return points


def written(directory: Path, iterations: int, content: str | None = None) -> Path:
    """A checkpoint whose algorithm is a file with some content."""

    def save(algorithm: Path) -> None:
        (algorithm / "learner").mkdir(parents=True)
        (algorithm / "learner" / "weights.pkl").write_text(content or str(iterations))

    write_checkpoint(directory, RunState(curve(iterations), iterations / 10), save)
    return directory / f"{iterations:08d}"


def read(directory: Path, unreadable: str = "") -> tuple[RunState | None, list[str]]:
    """What is restored, and what the algorithm was given for it."""
    given: list[str] = []

    def restore(algorithm: Path) -> None:
        content = (algorithm / "learner" / "weights.pkl").read_text()
        if content == unreadable:
            raise ModuleNotFoundError("another version")
        given.append(content)

    return restored_state(directory, restore), given


def test_the_newest_checkpoint_is_the_one_to_go_on_from(tmp_path: Path) -> None:
    for iterations in (5, 10, 15):
        written(tmp_path, iterations)
    assert read(tmp_path) == (RunState(curve(15), 1.5), ["15"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["00000010", "00000015"]


def test_a_machine_at_fault_costs_no_checkpoint(tmp_path: Path) -> None:
    written(tmp_path, 5)

    def fail(algorithm: Path) -> None:
        raise OSError(errno.ESTALE, "stale file handle")

    with pytest.raises(OSError, match="stale"):
        restored_state(tmp_path, fail)
    assert read(tmp_path)[1] == ["5"]


def cut_short(checkpoint: Path) -> None:
    (checkpoint / "algorithm/learner/weights.pkl").write_text("")


def with_a_file_less(checkpoint: Path) -> None:
    (checkpoint / "algorithm/learner/weights.pkl").unlink()


def without_its_state(checkpoint: Path) -> None:
    (checkpoint / "run.json").unlink()


def with_half_of_its_state(checkpoint: Path) -> None:
    text = (checkpoint / "run.json").read_text()
    (checkpoint / "run.json").write_text(text[: len(text) // 2])


def with_the_state_of_another_version(checkpoint: Path) -> None:
    content = json.loads((checkpoint / "run.json").read_text())
    (checkpoint / "run.json").write_text(json.dumps({**content, "curve": [{"other": 1}]}))


@pytest.mark.parametrize(
    "torn", [cut_short, with_a_file_less, without_its_state, with_half_of_its_state, with_the_state_of_another_version]
)
def test_a_torn_checkpoint_is_never_read_and_the_older_one_is_the_way_on(tmp_path: Path, torn: Callable[[Path], None]) -> None:
    written(tmp_path, 5)
    torn(written(tmp_path, 10))
    assert read(tmp_path) == (RunState(curve(5), 0.5), ["5"])


def test_a_checkpoint_that_the_algorithm_cannot_take_is_passed_over(tmp_path: Path) -> None:
    written(tmp_path, 5)
    written(tmp_path, 10)
    assert read(tmp_path, unreadable="10") == (RunState(curve(5), 0.5), ["5"])


def test_a_run_that_comes_by_a_torn_checkpoint_again_writes_it_anew(tmp_path: Path) -> None:
    written(tmp_path, 5)
    cut_short(written(tmp_path, 10))
    read(tmp_path)
    written(tmp_path, 10, "again")
    assert read(tmp_path) == (RunState(curve(10), 1.0), ["again"])


def test_what_was_not_renamed_is_no_checkpoint(tmp_path: Path) -> None:
    written(tmp_path, 5).rename(tmp_path / ".00000005.partial")
    assert read(tmp_path) == (None, [])


def test_a_checkpoint_that_cannot_be_written_leaves_the_older_ones(tmp_path: Path) -> None:
    written(tmp_path, 5)

    def fail(algorithm: Path) -> None:
        algorithm.mkdir()
        raise OSError("no space left on device")

    with pytest.raises(OSError, match="no space"):
        write_checkpoint(tmp_path, RunState(curve(10), 1.0), fail)
    assert [path.name for path in tmp_path.iterdir()] == ["00000005"]


def test_attempts_are_counted_and_their_time_is_known_to_the_next(tmp_path: Path) -> None:
    assert known_attempts(tmp_path) == Attempts(0, 0.0)
    write_attempts(tmp_path, Attempts(3, 12.5))
    assert known_attempts(tmp_path) == Attempts(3, 12.5)
    (tmp_path / "attempts.json").write_text("{")
    assert known_attempts(tmp_path) == Attempts(0, 0.0)


class Killed(BaseException):
    """The process goes at once."""


def killed(*_: Any, **__: Any) -> Any:
    raise Killed


@dataclass(frozen=True)
class Done:
    """What an attempt did.

    Attributes:
        parent: what the manifest of its bundle names, if it published one.
    """

    iterations: list[int]
    result: dict[str, Any] | None
    parent: str | None


@pytest.fixture
def attempt(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Done]:
    """An attempt of a run of seven iterations with a checkpoint of each fifth, in this process. What it publishes is named by how often
    something was published."""
    parents: list[str | None] = []

    def publish(asked: train.Run, _: Any, state: RunState) -> str:
        parents.append(train._facts(asked, state)["parent"])
        return f"sha256:{len(parents):064x}"

    def attempted(*more: str, publishes: Callable[..., str] = publish) -> Done:
        said, result = io.StringIO(), None
        monkeypatch.setattr(train, "_published", publishes)
        flags = [
            "--storage",
            storage.uri,
            "--run",
            "r1",
            "--environment",
            '{"id": "CartPole-v1"}',
            "--checkpoint-every",
            "5",
            "--stop",
            '{"iterations": 7}',
        ]
        with suppress(Killed):
            result = train.run([*flags, *more], Report(said, None))
        iterations = [json.loads(line)["progress"]["iteration"] for line in said.getvalue().splitlines()]
        return Done(iterations, result, parents[-1] if parents else None)

    monkeypatch.setattr(train, "check_environment", lambda _: None)
    monkeypatch.setattr(train, "Trainer", FakeTrainer)
    monkeypatch.setattr(Leaving, "listen", lambda _: None)
    # What was published is no bundle here.
    monkeypatch.setattr(train, "read_bundle", lambda *_: None)
    return attempted


ALL = list(range(1, 8))


def test_a_run_that_is_killed_while_it_publishes_trains_nothing_again(attempt: Callable[..., Done]) -> None:
    assert attempt(publishes=killed).iterations == ALL
    again = attempt()
    assert again.result is not None
    assert (again.iterations, again.result["iteration"], again.result["attempts"]) == ([], 7, 2)


def test_a_run_that_is_killed_once_it_has_published_publishes_nothing_again(
    attempt: Callable[..., Done], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        # An MLflow server that is away is waited for here.
        patched.setattr(Tracks, "close", killed)
        assert attempt() == Done(ALL, None, None)
    again = attempt()
    assert again.result is not None
    assert (again.result["digest"], again.result["attempts"]) == (f"sha256:{1:064x}", 1)


def beginning(run: str, digest: str) -> tuple[str, str]:
    return "--warm-start", json.dumps({"run": run, "digest": digest})


def learnt(storage: Storage) -> int:
    return int(np.load(storage.run("r1") / "weights.npz")[LEARNT])


def test_a_run_goes_on_from_its_checkpoint_whatever_it_is_told_to_begin_with_and_names_what_it_began_with(
    attempt: Callable[..., Done], storage: Storage
) -> None:
    first, other = (published_before(storage, run) for run in ("first", "other"))
    attempt(*beginning("first", first), publishes=killed)
    again = attempt(*beginning("other", other))
    assert (again.iterations, again.parent, learnt(storage)) == ([], first, LEARNT_BEFORE + 7)


@pytest.mark.parametrize("begins", [(), beginning("first", "sha256:" + "0" * 64)], ids=["nothing", "a bundle that is lost"])
def test_a_run_that_has_a_checkpoint_needs_nothing_to_begin_with(
    attempt: Callable[..., Done], storage: Storage, begins: tuple[str, ...]
) -> None:
    first = published_before(storage, "first")
    attempt(*beginning("first", first), publishes=killed)
    again = attempt(*begins)
    assert (again.iterations, again.parent) == ([], first)


def test_a_warm_run_whose_checkpoints_cannot_be_taken_begins_with_the_same_weights_again(
    attempt: Callable[..., Done], storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = published_before(storage, "first")
    attempt(*beginning("first", first), publishes=killed)
    monkeypatch.setattr(FakeTrainer, "is_of_another_version", True)
    again = attempt(*beginning("first", first))
    assert (again.iterations, again.parent, learnt(storage)) == (ALL, first, LEARNT_BEFORE + 7)


def test_a_run_that_can_neither_go_on_nor_begin_as_it_is_asked_to_is_refused(attempt: Callable[..., Done]) -> None:
    with pytest.raises(InputError) as refused:
        attempt(*beginning("first", "sha256:" + "0" * 64))
    assert refused.value.reason == "WarmStartImpossible"


SETTINGS = {"trainBatchSize": BATCH, "minibatchSize": 128, "numEpochs": 2, "numEnvs": 4}


def read_to(attempt: Attempt, iteration: int) -> None:
    """Reads what it says up to an iteration."""
    while attempt.hears() and attempt.lines[-1]["progress"]["iteration"] < iteration:
        pass


@pytest.mark.full
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_run_that_is_killed_three_times_ends_as_one(storage: Storage, number: int) -> None:
    stop = ("--stop", json.dumps({"iterations": ITERATIONS}))
    done = 0
    for count, at in enumerate((0.30, 0.60, 0.95), start=1):
        attempt = Attempt(storage, SETTINGS, *stop)
        read_to(attempt, round(at * ITERATIONS))
        began = time.monotonic()
        code = attempt.ended(number)
        assert (code, time.monotonic() - began < 30) == (-9 if number == signal.SIGKILL else 128 + 15, True)
        lost = done - (attempt.points[0]["iteration"] - 1)
        # Ended with a word nothing is lost; killed, at most what came after the last checkpoint, and a checkpoint that was being written.
        assert 0 <= lost <= (0 if number == signal.SIGTERM else CHECKPOINT_EVERY)
        assert [point["iteration"] for point in attempt.points] == list(range(done - lost + 1, done - lost + 1 + len(attempt.points)))
        done = attempt.points[-1]["iteration"]
        assert {point["attempt"] for point in attempt.points} == {count}
    last = Attempt(storage, SETTINGS, *stop)
    assert last.ended() == 0
    result = last.lines[-1]["result"]
    assert (result["iteration"], result["attempts"]) == (ITERATIONS, 4)
    (bundle,) = storage.bundles().iterdir()
    found = json.loads((bundle / "manifest.json").read_bytes())["curve"]
    assert [point[0] for point in found] == list(range(1, ITERATIONS + 1))
    steps = [point[1] for point in found]
    # Vector environments step together, and the first step of an episode is a reset.
    assert all(BATCH <= after - before <= 2 * BATCH for before, after in zip([0, *steps], steps, strict=False))


@pytest.mark.full
def test_the_time_of_all_attempts_counts(storage: Storage) -> None:
    stop = ("--stop", '{"timeSeconds": 8}')
    attempt = Attempt(storage, SETTINGS, *stop)
    read_to(attempt, 20)
    assert attempt.ended(signal.SIGTERM) == 128 + 15
    spent_s = known_attempts(storage.run("r1")).time_s
    last = Attempt(storage, SETTINGS, *stop)
    began = 0.0
    read_to(last, 1)
    began = time.monotonic()
    assert last.ended() == 0
    assert 0 < spent_s < 8
    assert last.points[-1]["progressPercent"] == 100
    assert last.points[0]["progressPercent"] >= 100 * spent_s / 8
    assert time.monotonic() - began < 8 - spent_s + 15
