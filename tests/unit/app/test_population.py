"""Searches are trained for real: what they publish, what is left of the losers, and how they go on after an end in the middle."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest
from fakes.mlflow_server import mlflow_server
from fakes.trainer import LEARNT, LEARNT_BEFORE, FakeTrainer, published_before
from unit.app.attempts import Attempt

from app import train
from app.errors import InputError
from app.storage import Storage, file_uri, open_storage
from app.training import population
from app.training.checkpoints import Attempts, RunState, known_attempts, restored_state, write_checkpoint
from app.training.population import Step, TrialTracking, Watch, Work
from app.training.search import drawn_trials, parsed_search
from app.training.stop import Point, Stop
from app.training.tracking import Tracking

SIZES = {"trainBatchSize": 256, "minibatchSize": 128, "numEpochs": 2, "numEnvs": 4}
SEARCH = {"trials": 3, "config": {"lr": {"min": 0.0001, "max": 0.01, "scale": "Log"}, "fcnetHiddens": {"values": [[16], [32, 32]]}}}
FLAGS = ("--search", json.dumps(SEARCH), "--stop", '{"iterations": 12}', "--checkpoint-every", "5")


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory, trained: Callable[..., Any]) -> tuple[Storage, Any]:
    """A finished search, and where it left its things."""
    storage = open_storage(file_uri(tmp_path_factory.mktemp("searched")))
    return storage, trained(storage, {"id": "CartPole-v1"}, *FLAGS)


def standings(line: dict[str, Any]) -> dict[int, dict[str, Any]]:
    return {trial["trial"]: trial for trial in line["progress"]["search"]["trials"]}


def test_a_search_says_how_all_trials_stand_and_which_is_best(searched: tuple[Storage, Any]) -> None:
    _, said = searched
    assert said.code == 0, said.stderr
    first, last = said.lines[0], said.lines[-2]
    assert [trial["state"] for trial in standings(first).values()] == ["Training", "Pending", "Pending"]
    assert {trial["state"] for trial in standings(last).values()} <= {"Finished", "Stopped"}
    assert last["progress"]["progressPercent"] == 100
    result = said.last["result"]
    means = {number: trial["episodeReturnMean"] for number, trial in standings(last).items()}
    assert means[result["search"]["trial"]] == max(means.values())
    assert result["episodeReturnMean"] == pytest.approx(max(means.values()), abs=0.01)
    assert result["search"]["config"] == standings(last)[result["search"]["trial"]]["config"]
    assert result["search"]["trials"] == [
        [trial["state"], trial["envSteps"], trial["episodeReturnMean"]] for trial in standings(last).values()
    ]


def test_the_best_trial_is_published_as_a_training_with_its_settings_and_seed_is(
    searched: tuple[Storage, Any], storage: Storage, trained: Callable[..., Any]
) -> None:
    result = searched[1].last["result"]
    config = json.dumps({**SIZES, **result["search"]["config"]})
    stop = json.dumps({"iterations": result["iteration"]})
    alone = trained(storage, {"id": "CartPole-v1"}, "--config", config, "--seed", str(result["search"]["seed"]), "--stop", stop)
    assert {name: alone.last["result"][name] for name in ("digest", "configHash", "envSteps")} == {
        name: result[name] for name in ("digest", "configHash", "envSteps")
    }
    assert result["seed"] == 0


def test_of_the_losers_nothing_is_left(searched: tuple[Storage, Any]) -> None:
    storage, said = searched
    kept = [path.name for path in (storage.run("r1") / "trials").iterdir()]
    assert kept == [f"{said.last['result']['search']['trial']:02d}"]


def test_a_published_search_says_its_result_again(searched: tuple[Storage, Any], trained: Callable[..., Any]) -> None:
    storage, said = searched
    assert trained(storage, {"id": "CartPole-v1"}, *FLAGS).lines == [said.last]


def test_a_bundle_that_was_lost_is_made_again_without_a_search(storage: Storage, trained: Callable[..., Any]) -> None:
    search = json.dumps({**SEARCH, "trials": 2})
    first = trained(storage, {"id": "CartPole-v1"}, "--search", search)
    assert first.code == 0, first.stderr
    model = storage.bundles() / first.last["result"]["digest"].removeprefix("sha256:") / "policy.onnx"
    model.unlink()
    again = trained(storage, {"id": "CartPole-v1"}, "--search", search)
    assert [list(line) for line in again.lines] == [["result"]]
    assert again.last["result"]["digest"] == first.last["result"]["digest"]
    assert again.last["result"]["search"] == first.last["result"]["search"]


def test_a_search_of_which_every_trial_diverges_ends_for_good(storage: Storage, trained: Callable[..., Any]) -> None:
    done = trained(storage, {"entryPoint": "worlds:Explosive"}, "--search", json.dumps({**SEARCH, "trials": 2}))
    assert (done.code, done.last["error"]["reason"]) == (2, "TrainingDiverged"), done.stderr


def test_a_search_whose_processes_break_may_be_tried_again(storage: Storage, trained: Callable[..., Any]) -> None:
    done = trained(storage, {"entryPoint": "worlds:Fragile"}, "--search", json.dumps({**SEARCH, "trials": 2}))
    assert (done.code, done.last["error"]["reason"]) == (1, "TrialsFailed"), done.stderr


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--search", '{"config": {"lr": {"min": 0.1, "max": 2}}}'], "spec.training.search.config.lr.max"),
        (
            ["--config", "{}", "--search", '{"config": {"trainBatchSize": {"values": [64]}}}'],
            "spec.training.search.config: trial 1 has drawn",
        ),
        (["--search", json.dumps(SEARCH), "--workers", "1"], "spec.training.search needs workers 0 and engine Job"),
        (["--search", json.dumps(SEARCH), "--engine", "RayJob"], "spec.training.search needs workers 0 and engine Job"),
    ],
)
def test_a_wrong_search_is_refused_before_anything_starts(
    storage: Storage, flags: list[str], named: str, trained: Callable[..., Any]
) -> None:
    done = trained(storage, {"id": "CartPole-v1"}, *flags)
    assert (done.code, done.last["error"]["reason"]) == (2, "InvalidConfig")
    assert named in done.last["error"]["message"]


def test_a_storage_that_fails_in_a_trial_fails_the_attempt_and_no_other_trial_is_published(
    storage: Storage, trained: Callable[..., Any]
) -> None:
    in_the_way = storage.run("r1") / "trials" / "02" / "checkpoints"
    in_the_way.parent.mkdir(parents=True)
    in_the_way.touch()
    said = trained(storage, {"id": "CartPole-v1"}, *FLAGS)
    assert (said.code, said.last["error"]["reason"]) == (1, "StorageUnavailable")
    assert not (storage.run("r1") / "result.json").exists()
    in_the_way.unlink()
    assert trained(storage, {"id": "CartPole-v1"}, *FLAGS).last["result"]["attempts"] == 2


def test_every_trial_begins_with_the_weights_of_a_warm_start(cartpole: Any, trained: Callable[..., Any]) -> None:
    start = json.dumps({"run": "r1", "digest": cartpole.said.last["result"]["digest"]})
    search = json.dumps({"trials": 2, "config": {"lr": {"values": [1e-12]}}})
    flags = ("--run", "searched", "--warm-start", start, "--search", search, "--stop", '{"iterations": 1}')
    done = trained(cartpole.storage, {"id": "CartPole-v1"}, *flags)
    assert done.code == 0, done.stderr
    weights = [np.load(cartpole.storage.run(run) / "weights.npz") for run in ("r1", "searched")]
    for name in weights[0]:
        np.testing.assert_allclose(weights[0][name], weights[1][name], atol=1e-5)


def test_a_warm_start_with_networks_that_are_searched_for_is_refused_first(cartpole: Any, trained: Callable[..., Any]) -> None:
    start = json.dumps({"run": "r1", "digest": cartpole.said.last["result"]["digest"]})
    done = trained(cartpole.storage, {"id": "CartPole-v1"}, "--run", "other", "--warm-start", start, *FLAGS)
    assert [list(line) for line in done.lines] == [["error"]]
    assert done.last["error"]["reason"] == "WarmStartImpossible"
    assert "fcnet_hiddens is [" in done.last["error"]["message"]


def faked(storage: Storage, monkeypatch: pytest.MonkeyPatch, *flags: str) -> Work:
    """A search whose trainers are no real ones."""
    monkeypatch.setattr(population, "Trainer", FakeTrainer)
    asked = train.parsed_run(
        [
            *("--storage", storage.uri, "--run", "r1", "--environment", '{"id": "CartPole-v1"}', "--stop", '{"iterations": 7}'),
            *("--search", '{"trials": 2, "config": {"lr": {"values": [0.001]}}}', *flags),
        ]
    )
    assert asked.search
    nowhere = TrialTracking(Tracking(), "r1", ({}, {}))
    tasks = tuple(asked.of_trial(trial).task for trial in asked.trials)
    return Work(storage, storage.run("r1"), tasks, asked.search, asked.trials, asked.stop, 10, nowhere, asked.warm_start)


def test_a_trial_whose_checkpoints_cannot_be_taken_begins_with_the_same_weights_again(
    storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = published_before(storage, "before")
    work = faked(storage, monkeypatch, "--warm-start", json.dumps({"run": "before", "digest": digest}))

    def learnt() -> int:
        member = population._Member(work, work.trials[1])
        member.step()
        member.write()
        member.close(has_ended=False)
        return int(member._trainer.weights()[LEARNT])

    assert (learnt(), learnt()) == (LEARNT_BEFORE + 1, LEARNT_BEFORE + 2)
    kept = restored_state(storage.run("r1") / "trials" / "02" / "checkpoints", lambda _: None)
    assert kept
    assert kept.parent == digest
    monkeypatch.setattr(FakeTrainer, "is_of_another_version", True)
    assert learnt() == LEARNT_BEFORE + 1


@pytest.mark.parametrize(("reason", "ends"), [("TrainingDiverged", "the trial"), ("ObservationNotFinite", "the search")])
def test_what_is_wrong_with_the_environment_is_wrong_for_every_trial(
    storage: Storage, monkeypatch: pytest.MonkeyPatch, reason: str, ends: str
) -> None:
    def fail(_: FakeTrainer) -> None:
        raise InputError(reason, "why")

    monkeypatch.setattr(FakeTrainer, "iterate", fail)
    work = faked(storage, monkeypatch)
    member = population._Member(work, work.trials[0])
    if ends == "the trial":
        assert member.step() == Step(reason=reason)
    else:
        with pytest.raises(InputError, match="why"):
            member.step()


def test_each_trial_is_told_by_itself(storage: Storage, trained: Callable[..., Any]) -> None:
    asked: dict[str, Any] = {"tensorBoard": True}
    with mlflow_server() as server:
        if find_spec("mlflow") is not None:
            asked["mlflow"] = {"trackingUri": server.url, "experiment": "default/cartpole", "tags": {}}
        search = {"trials": 2, "config": {"lr": {"values": [0.001]}}}
        flags = ("--search", json.dumps(search), "--tracking", json.dumps(asked), "--stop", '{"iterations": 2}')
        said = trained(storage, {"id": "CartPole-v1"}, *flags)
    assert said.code == 0, said.stderr
    events = storage.run("r1") / "tensorboard"
    assert {path.parent.name for path in events.rglob("events*")} == {"01", "02"}
    if "mlflow" in asked:
        assert {run.name: run.status for run in server.runs.values()} == {"r1-01": "FINISHED", "r1-02": "FINISHED"}
        assert all(run.params["lr"] == "0.001" for run in server.runs.values())


def watch(storage: Storage, stop: Stop, time_s: float = 0.0, **more: Any) -> tuple[Watch, list[Any]]:
    """A search that nobody trains, and what it tells."""
    search = parsed_search({**SEARCH, **more}, SIZES)
    assert search is not None
    told: list[Any] = []
    nowhere = TrialTracking(Tracking(), "r1", ())
    work = Work(storage, storage.run("r1"), (), search, drawn_trials(search, SIZES, 0), stop, 10, nowhere)
    return Watch(work, time_s, lambda all_, _: told.append({number: one.state for number, one in all_.items()})), told


def step(iteration: int, mean: float, **more: Any) -> Step:
    return Step(Point(iteration, 256 * iteration, 20, 20 * mean, mean), float(iteration), **more)


def test_one_trial_that_fails_leaves_the_others(storage: Storage) -> None:
    found, told = watch(storage, Stop(iterations=2))
    assert found.begun() == 1
    assert not found.goes_on(1, Step(reason="TrainingDiverged"))
    found.left(1)
    found.broke(found.begun())
    assert found.goes_on(found.begun(), step(1, 9.0))
    assert told[-1] == {1: "Failed", 2: "Failed", 3: "Training"}
    # What diverged does so again; what broke is tried again.
    assert watch(storage, Stop(iterations=2))[0].waiting == [2, 3]


def test_a_trial_that_lagged_when_its_process_was_killed_is_not_gone_on_with(storage: Storage) -> None:
    def kept(number: int, mean: float) -> None:
        curve = [Point(iteration, 256 * iteration, 20, 20 * mean, mean) for iteration in range(1, 6)]
        place = storage.run("r1") / "trials" / f"{number:02d}" / "checkpoints"
        write_checkpoint(place, RunState(curve, 5.0), lambda directory: directory.mkdir())

    for number, mean in ((1, 90.0), (2, 80.0), (3, 10.0)):
        kept(number, mean)
    found, _ = watch(storage, Stop(iterations=12))
    assert found.standings[3].state == "Stopped"
    assert 3 not in found.waiting
    assert watch(storage, Stop(iterations=12))[0].standings[3].state == "Stopped"


def test_each_trial_has_its_share_of_the_time_that_is_left(storage: Storage) -> None:
    found, _ = watch(storage, Stop(time_s=30.0), time_s=28.5)
    found.begun()
    assert found.goes_on(1, step(1, 9.0))
    found._began -= 0.6
    assert not found.goes_on(1, step(2, 9.0))
    assert (found.standings[1].state, found.standings[1].stopped_by) == ("Finished", "timeSeconds")
    assert not found.is_late
    found._began -= 1.0
    assert found.is_late


def test_trials_that_run_at_once_share_the_time(storage: Storage) -> None:
    found, _ = watch(storage, Stop(time_s=30.0), time_s=28.5, parallel=3)
    for number in (1, 2, 3):
        assert found.begun() == number
    found._began -= 1.0
    assert found.goes_on(3, step(1, 9.0))


def read_to(attempt: Attempt, trial: int, env_steps: int) -> None:
    """Reads what it says until a trial has done so many steps."""
    while attempt.hears() and ("progress" not in attempt.lines[-1] or standings(attempt.lines[-1])[trial]["envSteps"] < env_steps):
        pass


@pytest.mark.parametrize("number", [signal.SIGTERM, pytest.param(signal.SIGKILL, marks=pytest.mark.full)])
def test_a_search_that_is_ended_in_a_trial_goes_on_there(storage: Storage, searched: tuple[Storage, Any], number: int) -> None:
    result = searched[1].last["result"]
    resumed = next(index for index, (_, steps, _) in enumerate(result["search"]["trials"], start=1) if index > 1 and steps > 7 * 256)
    first = Attempt(storage, SIZES, *FLAGS)
    read_to(first, resumed, 7 * 256)
    assert first.ended(number) == (-9 if number == signal.SIGKILL else 128 + 15)
    done = standings([line for line in first.lines if "progress" in line][-1])
    second = Attempt(storage, SIZES, *FLAGS)
    assert second.ended() == 0
    after = standings(second.lines[0])
    assert after[1] == done[1]
    lost = done[resumed]["envSteps"] - after[resumed]["envSteps"]
    # With a word nothing is lost: the first thing that is said is the next iteration. Killed, it goes on from iteration 5.
    assert lost < 0 if number == signal.SIGTERM else 0 <= lost < 3 * 256
    assert second.lines[-1]["result"]["attempts"] == 2
    assert [line["progress"]["attempt"] for line in (first.lines[0], second.lines[0])] == [1, 2]
    assert known_attempts(storage.run("r1")) == Attempts(2, known_attempts(storage.run("r1")).time_s)
    ends = [trial["envSteps"] for trial in standings(second.lines[-2]).values()]
    assert ends[: resumed - 1] == [steps for _, steps, _ in result["search"]["trials"]][: resumed - 1]


def test_two_trials_at_once_end_as_one_search(storage: Storage, trained: Callable[..., Any]) -> None:
    done = trained(storage, {"id": "CartPole-v1"}, "--search", json.dumps({**SEARCH, "parallel": 2}))
    assert done.code == 0, done.stderr
    assert any([trial["state"] for trial in standings(line).values()][:2] == ["Training"] * 2 for line in done.lines if "progress" in line)
    assert len(done.last["result"]["search"]["trials"]) == 3
