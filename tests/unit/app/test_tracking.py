"""What a run tells to others: event files that TensorBoard reads, and an MLflow server that may be away."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from fakes.mlflow_server import MLflowServer, Run, mlflow_server
from obstore.store import MemoryStore
from tensorboardX.proto.event_pb2 import Event

from app import objects
from app.errors import InputError, RetryableError
from app.storage import Place, children, file_uri, open_storage, read_bytes
from app.training import tracking
from app.training.stop import Point
from app.training.tracking import Tracking, parsed_tracking, tracked

ROOT = Path(__file__).parents[3]
RETURN = "env_runners/episode_return_mean"
TAGS = {"namespace": "default", "name": "cartpole"}
PARAMETERS = {"lr": [[0, 0.001], [100, 0.0]], "gamma": 0.98, "grad_clip": None, "seed": 3}
DIGEST = "sha256:" + "ab" * 32


@pytest.fixture(params=["a directory", "a bucket"])
def place(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    """A run's place in a storage of each kind; the bucket is one in memory, behind the same client."""
    store = MemoryStore()
    monkeypatch.setattr(objects, "_store", lambda bucket: store)
    uri = file_uri(tmp_path / "storage") if request.param == "a directory" else "s3://policies/all/default/cartpole"
    return open_storage(uri).run("r1")


def told(tracks: tracking.Tracks, iterations: range) -> None:
    """Tells of iterations of 100 steps, with a result such as RLlib's."""
    for iteration in iterations:
        result = {"config": {"lr": 1.0}, "pid": 7, "env_runners": {"episode_return_mean": 10.0 * iteration, "nothing": float("nan")}}
        tracks.told(result, Point(iteration, 100 * iteration, 1, 1.0, 1.0))


def events(place: Place) -> list[Any]:
    """Every event of a run's files, in the order in which TensorBoard reads them.

    A record is its length (8 bytes), a checksum of that (4), the event, and its checksum (4).
    Source: https://www.tensorflow.org/tutorials/load_data/tfrecord#tfrecords_format_details.
    """
    found = []
    for name in children(place / "tensorboard"):
        content, at = read_bytes(place / "tensorboard" / name) or b"", 0
        while at < len(content):
            (size,) = struct.unpack_from("<Q", content, at)
            found.append(Event.FromString(content[at + 12 : at + 12 + size]))
            at += 16 + size
    return found


def scalars(place: Place, name: str) -> list[tuple[int, float]]:
    """The steps and values of a figure, as TensorBoard shows it: what an attempt that was killed told beyond its checkpoint is gone."""
    shown: list[tuple[int, float]] = []
    for event in events(place):
        if event.HasField("session_log"):
            shown = [(step, value) for step, value in shown if step < event.step]
        shown += [(event.step, value.simple_value) for value in event.summary.value if value.tag == f"ray/tune/{name}"]
    return shown


def expected(iterations: range) -> list[tuple[int, float]]:
    return [(100 * iteration, 10.0 * iteration) for iteration in iterations]


def test_event_files_have_rllibs_figures_by_its_names_at_environment_steps(place: Place) -> None:
    with tracked(Tracking(tensor_board=True), place, "r1", PARAMETERS) as tracks:
        told(tracks, range(1, 4))
        tracks.keep()
        told(tracks, range(4, 6))
        tracks.ended_well(DIGEST)
    assert scalars(place, RETURN) == expected(range(1, 6))
    tags = {value.tag for event in events(place) for value in event.summary.value}
    assert not any("config" in tag or "pid" in tag or "nothing" in tag for tag in tags)
    (started,) = {
        value.metadata.plugin_data.content
        for event in events(place)
        for value in event.summary.value
        if value.tag == "_hparams_/session_start_info"
    }
    assert all(name.encode() in started for name in PARAMETERS)


def test_what_a_checkpoint_is_written_of_is_in_the_storage_before_it(place: Place) -> None:
    with tracked(Tracking(tensor_board=True), place, "r1", {}) as tracks:
        told(tracks, range(1, 3))
        tracks.keep()
        assert scalars(place, RETURN) == expected(range(1, 3))


def test_settings_are_told_also_where_the_last_iteration_was_a_checkpoint(place: Place) -> None:
    with tracked(Tracking(tensor_board=True), place, "r1", PARAMETERS) as tracks:
        told(tracks, range(1, 3))
        tracks.keep()
    tags = [value.tag for event in events(place) for value in event.summary.value]
    assert tags.count("_hparams_/session_start_info") == 1


def test_an_attempt_that_goes_on_from_a_checkpoint_takes_the_place_of_what_was_told_beyond_it(place: Place) -> None:
    for iterations in (range(1, 6), range(4, 8)):
        with tracked(Tracking(tensor_board=True), place, "r1", {}) as tracks:
            told(tracks, iterations)
        time.sleep(1.1)  # files are named by the second
    assert scalars(place, RETURN) == expected(range(1, 8))


def test_an_attempt_that_fails_leaves_what_it_told(place: Place) -> None:
    with suppress(RetryableError), tracked(Tracking(tensor_board=True), place, "r1", {}) as tracks:
        told(tracks, range(1, 3))
        raise RetryableError("Else", "something else")
    assert scalars(place, RETURN) == expected(range(1, 3))


def test_a_storage_that_fails_is_told_as_what_it_is(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(RetryableError) as failed, tracked(Tracking(tensor_board=True), tmp_path / "file" / "r1", "r1", {}) as tracks:
        told(tracks, range(1, 2))
    assert failed.value.reason == "StorageUnavailable"


def test_nothing_is_written_where_nothing_is_asked_for(place: Place) -> None:
    with tracked(Tracking(), place, "r1", PARAMETERS) as tracks:
        told(tracks, range(1, 3))
        tracks.keep()
    assert children(place) == []


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ([], "spec.training.tracking must"),
        ({"wandb": True}, "allowed are tensorBoard and mlflow"),
        ({"tensorBoard": "yes"}, "tracking.tensorBoard must"),
        ({"mlflow": True}, "tracking.mlflow must"),
        ({"mlflow": {"experiment": "e"}}, "mlflow.trackingUri must"),
        ({"mlflow": {"trackingUri": "file:///mlruns", "experiment": "e"}}, "mlflow.trackingUri must"),
        ({"mlflow": {"trackingUri": "http://me:secret@mlflow", "experiment": "e"}}, "mlflow.trackingUri must"),
        ({"mlflow": {"trackingUri": "http://mlflow", "experiment": ""}}, "mlflow.experiment must"),
        ({"mlflow": {"trackingUri": "http://mlflow", "experiment": "e", "tags": {"a": "'"}}}, "mlflow.tags must"),
        ({"mlflow": {"trackingUri": "http://mlflow", "experiment": "e"}}, "tracking.mlflow: MLflow is not installed .* extra `mlflow`"),
    ],
)
def test_wrong_tracking_is_refused_by_its_field(wrong: Any, named: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=named) as refused:
        parsed_tracking(wrong)
    assert refused.value.reason == "InvalidConfig"
    assert "secret" not in refused.value.message


def needs_mlflow() -> None:
    if tracking.find_spec("mlflow") is None:
        pytest.skip("mlflow-skinny is not installed: the extra `mlflow` has it")


@pytest.fixture
def server() -> Iterator[MLflowServer]:
    needs_mlflow()
    with mlflow_server() as running:
        yield running


def program(server_url: str, *steps: str, place: Path, pause_s: float = 0.1) -> subprocess.CompletedProcess[str]:
    """Runs steps with `tracks` at hand, in a process whose MLflow is its own."""
    lines = [
        "import sys, time; from app.training import tracking; from app.errors import RetryableError; from app.training.stop import Point",
        "from unit.app.test_tracking import told",
        f"tracking.PAUSE_S = {pause_s}",
        f"asked = tracking.Tracking(mlflow=tracking.MLflow({server_url!r}, 'default/cartpole', {TAGS!r}))",
        "from pathlib import Path",
        f"with tracking.tracked(asked, Path({str(place)!r}), 'r1', {PARAMETERS!r}) as tracks:",
        *(f"    {step}" for step in steps),
    ]
    path = os.pathsep.join(filter(None, [str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH")]))
    variables = {**os.environ, "PYTHONPATH": path}
    command = [sys.executable, "-c", "\n".join(lines)]
    return subprocess.run(command, check=False, env=variables, capture_output=True, text=True, timeout=120)


PUBLISHED = f"tracks.ended_well({DIGEST!r})"
IN_NO_TIME = "began = time.monotonic(); told(tracks, range(1, 4)); assert time.monotonic() - began < 1"


def only_run(server: MLflowServer) -> Run:
    (run,) = server.runs.values()
    return run


def test_an_mlflow_run_has_the_figures_the_settings_and_at_the_end_the_digest(server: MLflowServer, tmp_path: Path) -> None:
    done = program(server.url, "told(tracks, range(1, 4))", PUBLISHED, place=tmp_path)
    assert done.returncode == 0, done.stderr
    run = only_run(server)
    assert (run.name, run.status, server.experiments) == ("r1", "FINISHED", {"default/cartpole": run.experiment})
    assert run.tags == {
        "policymodel.namespace": "default",
        "policymodel.name": "cartpole",
        "policymodel.run": "r1",
        "policymodel.digest": DIGEST,
    }
    assert run.params == {"lr": "[[0, 0.001], [100, 0.0]]", "gamma": "0.98", "grad_clip": "null", "seed": "3"}
    assert run.metrics[RETURN] == expected(range(1, 4))
    assert set(run.metrics) == {RETURN, "training_iteration", "timesteps_total"}


def test_a_token_goes_to_the_server_and_to_no_log(server: MLflowServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "s3cret")
    server.broken_for = 1
    done = program(server.url, "told(tracks, range(1, 2))", "while tracks._server._outbox._untold: time.sleep(0.05)", place=tmp_path)
    assert done.returncode == 0, done.stderr
    assert server.authorizations == {"Bearer s3cret"}
    assert "s3cret" not in done.stderr


def test_a_later_attempt_goes_on_with_the_mlflow_run_of_the_first(server: MLflowServer, tmp_path: Path) -> None:
    failed = program(server.url, "told(tracks, range(1, 3))", "raise RetryableError('Else', 'else')", place=tmp_path)
    assert failed.returncode == 1
    assert only_run(server).status == "FAILED"
    only_run(server).params["gamma"] = "0.9"  # of another version of ours
    assert program(server.url, "told(tracks, range(3, 5))", PUBLISHED, place=tmp_path).returncode == 0
    assert only_run(server).status == "FINISHED"
    assert only_run(server).metrics[RETURN] == expected(range(1, 5))


def test_a_server_that_breaks_down_is_told_everything_once_it_answers_again(server: MLflowServer, tmp_path: Path) -> None:
    server.broken_for = 5
    all_is_told = "while tracks._server._outbox._untold: time.sleep(0.05)"
    done = program(server.url, "told(tracks, range(1, 4))", all_is_told, PUBLISHED, place=tmp_path)
    assert done.returncode == 0, done.stderr
    assert only_run(server).metrics[RETURN] == expected(range(1, 4))
    assert (done.stderr.count("cannot be told, and is tried again"), done.stderr.count("is told again")) == (1, 1)


def test_a_server_that_stays_broken_hinders_nothing(server: MLflowServer, tmp_path: Path) -> None:
    server.broken_for = 1_000_000
    done = program(server.url, IN_NO_TIME, PUBLISHED, place=tmp_path, pause_s=30)
    assert done.returncode == 0, done.stderr
    assert f"{server.url} cannot be told" in done.stderr
    assert "was not told 4 messages" in done.stderr


def test_a_server_that_does_not_answer_holds_the_end_up_for_a_time_that_is_known(server: MLflowServer, tmp_path: Path) -> None:
    server.hangs = True
    began = time.monotonic()
    done = program(server.url, "tracking.END_S = 0.5", IN_NO_TIME, PUBLISHED, place=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "was not told 4 messages" in done.stderr
    assert time.monotonic() - began < 2 * tracking.END_S


def test_a_server_that_comes_back_while_it_is_waited_for_is_told(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(tracking, "CLOSING_PAUSE_S", 0.05)
    outbox, back, heard = tracking._Outbox("a server"), time.monotonic() + 0.3, []

    def end() -> None:
        if time.monotonic() < back:
            raise ConnectionError("away")
        heard.append("the end")

    outbox.put(end)
    outbox.close(10)
    assert heard == ["the end"]
    assert "was not told" not in capsys.readouterr().err


def test_what_a_server_is_not_told_in_time_is_given_up_from_its_beginning(monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.setattr(tracking, "MOST_WAITING", 3)
    heard: list[int] = []
    outbox, is_there = tracking._Outbox("a server"), threading.Event()
    outbox.put(lambda: heard.append(int(is_there.wait(10))))
    while outbox._waiting:
        time.sleep(0.01)
    for number in range(2, 8):
        outbox.put(lambda number=number: heard.append(number))  # type: ignore[misc]
    is_there.set()
    outbox.close(10)
    assert heard == [1, 5, 6, 7]
    assert "a server was not told 3 messages" in capsys.readouterr().err


def test_a_run_that_is_tracked_learns_the_same_and_its_next_attempt_goes_on(
    trained: Callable[..., Any], cartpole: Any, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    storage, asked, server = open_storage(file_uri(tmp_path / "storage")), {"tensorBoard": True}, None
    if tracking.find_spec("mlflow") is not None:
        server = request.getfixturevalue("server")
        asked["mlflow"] = {"trackingUri": server.url, "experiment": "default/cartpole", "tags": TAGS}
    flags = ("--tracking", json.dumps(asked))
    first = trained(storage, {"id": "CartPole-v1"}, *flags)
    assert first.last["result"]["digest"] == cartpole.said.last["result"]["digest"]
    (storage.run("r1") / "result.json").unlink()
    second = trained(storage, {"id": "CartPole-v1"}, *flags, "--stop", '{"iterations": 4}')
    steps = [line["progress"]["envSteps"] for said in (first, second) for line in said.lines if "progress" in line]
    assert len(steps) == 4
    assert [step for step, _ in scalars(storage.run("r1"), "learners/default_policy/total_loss")] == steps
    if server:
        assert [step for step, _ in only_run(server).metrics["learners/default_policy/total_loss"]] == steps
        assert only_run(server).tags["policymodel.digest"] == second.last["result"]["digest"]
