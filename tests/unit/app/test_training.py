"""Small real trainings: what they say, publish and refuse."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.envs.classic_control.cartpole import CartPoleVectorEnv

from app import train
from app.bundle import digest_of, published_bundle
from app.encoding import Encoding
from app.environments import Environment, parsed_environment, spaces_of
from app.errors import InputError
from app.policy import loaded_policy
from app.spaces import Discrete, described_space
from app.storage import Storage
from app.training import trainer
from app.training.environment_check import check_config, check_environment
from app.training.settings import SETTINGS, parsed_settings
from app.training.trainer import TrainingTask
from app.training.warm import WarmStart, warm_weights


def test_a_training_says_its_progress_and_its_result(cartpole: Any) -> None:
    assert cartpole.said.code == 0, cartpole.said.stderr
    iterations = [line["progress"]["iteration"] for line in cartpole.said.lines[:-1]]
    assert {line["progress"]["attempt"] for line in cartpole.said.lines[:-1]} == {1}
    result = cartpole.said.last["result"]
    assert iterations == [1, 2]
    assert result["evaluation"].keys() == {"id", "episodes", "seed", "mean", "std", "returns"}
    assert result["uri"] == cartpole.storage.bundle_uri(result["digest"])


def test_a_published_bundle_is_named_by_its_manifest_and_can_be_loaded(cartpole: Any) -> None:
    digest = cartpole.said.last["result"]["digest"]
    directory = cartpole.storage.bundles() / digest.removeprefix("sha256:")
    assert digest_of((directory / "manifest.json").read_bytes()) == digest
    assert len(loaded_policy(directory, digest).manifest["golden"]["observations"]) == 64


def test_a_published_run_says_its_result_again_without_training(cartpole: Any, trained: Callable[..., Any]) -> None:
    again = trained(cartpole.storage, {"id": "CartPole-v1"})
    assert again.lines == [cartpole.said.last]


def test_a_bundle_that_was_cut_short_is_made_again(storage: Storage, trained: Callable[..., Any]) -> None:
    first = trained(storage, {"id": "CartPole-v1"}).last["result"]
    model = storage.bundles() / first["digest"].removeprefix("sha256:") / "policy.onnx"
    model.write_bytes(model.read_bytes()[:100])
    again = trained(storage, {"id": "CartPole-v1"}).last["result"]
    directory = storage.bundles() / again["digest"].removeprefix("sha256:")
    assert loaded_policy(directory, again["digest"]).digest == again["digest"]


def test_an_evaluation_with_a_new_id_is_played_without_training(cartpole: Any, trained: Callable[..., Any]) -> None:
    again = trained(cartpole.storage, {"id": "CartPole-v1"}, "--evaluation", '{"id": "e2", "episodes": 2, "seed": 5}')
    assert [list(line) for line in again.lines] == [["result"]]
    assert again.last["result"]["evaluation"]["episodes"] == 2


def test_an_evaluation_is_repeatable_and_its_record_has_every_episode(cartpole: Any, storage: Storage, said: Callable[..., Any]) -> None:
    digest = cartpole.said.last["result"]["digest"]
    request = json.dumps({"id": "e3", "episodes": 3, "seed": 5})
    # Where no record is: what is recorded would not be played again.
    shutil.copytree(cartpole.storage.bundles(), storage.bundles())
    played = said("app.evaluate", "--storage", storage.uri, "--digest", digest, "--evaluation", request)
    first = json.loads(cartpole.storage.evaluation("e1").read_bytes())
    third = json.loads(storage.evaluation("e3").read_bytes())
    assert played.last["result"]["evaluation"]["mean"] == first["mean"]
    assert first["rows"] == third["rows"]
    assert [row["seed"] for row in first["rows"]] == [5, 6, 7]


def test_the_last_line_is_the_termination_message(cartpole: Any, tmp_path: Any, said: Callable[..., Any]) -> None:
    log = tmp_path / "termination"
    digest = cartpole.said.last["result"]["digest"]
    flags = ("--storage", cartpole.storage.uri, "--digest", digest, "--evaluation", '{"id": "e1", "episodes": 3, "seed": 5}')
    played = said("app.evaluate", *flags, environment={"TERMINATION_LOG": str(log)})
    returns = played.last["result"]["evaluation"].pop("returns")
    assert len(returns) == 3
    assert json.loads(log.read_text()) == played.last


def test_awkward_spaces_are_trained_and_served_as_the_environment_has_them(storage: Storage, trained: Callable[..., Any]) -> None:
    done = trained(storage, {"entryPoint": "worlds:ShiftedDiscrete"})
    assert done.code == 0, done.stderr
    digest = done.last["result"]["digest"]
    policy = loaded_policy(storage.bundles() / digest.removeprefix("sha256:"), digest)
    (actions,) = policy.act((np.random.default_rng(0).integers(0, 10, (50, 2, 3)).astype(np.int16),))
    assert set(actions.tolist()) <= {3, 4}


def test_an_id_that_a_module_registers_is_trained_in_by_its_vector_version(
    storage: Storage, trained: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    named = {"id": "registering:Walk-v0"}
    done = trained(storage, named, "--entry-point-prefix", "registering")
    assert done.code == 0, done.stderr
    manifest = json.loads((storage.bundles() / done.last["result"]["digest"].removeprefix("sha256:") / "manifest.json").read_bytes())
    assert manifest["environment"] == {**named, "config": {}}
    monkeypatch.syspath_prepend(Path(__file__).parent)
    environment = parsed_environment(named, ["registering"])
    check_config(environment)
    check_environment(environment)
    assert environment.has_vector_entry_point()
    assert type(environment.made_vector(3).unwrapped).__name__ == "Walks"


def test_continuous_actions_stay_within_their_bounds(storage: Storage, trained: Callable[..., Any]) -> None:
    done = trained(storage, {"id": "Pendulum-v1"})
    assert done.code == 0, done.stderr
    digest = done.last["result"]["digest"]
    policy = loaded_policy(storage.bundles() / digest.removeprefix("sha256:"), digest)
    (actions,) = policy.act((np.random.default_rng(0).normal(0, 50, (200, 3)).astype(np.float32),))
    assert actions.shape == (200, 1)
    assert np.abs(actions).max() <= 2


def test_settings_that_change_on_the_way_are_trained_with(storage: Storage, trained: Callable[..., Any]) -> None:
    config = {"lr": 0.01, "lrEnd": 0.001, "entropyCoeff": 0.01, "entropyCoeffEnd": 0, "scheduleSteps": 500}
    sizes = {"trainBatchSize": 256, "minibatchSize": 128, "numEpochs": 2, "numEnvs": 4}
    done = trained(storage, {"id": "Pendulum-v1"}, "--config", json.dumps({**config, **sizes}))
    assert done.code == 0, done.stderr
    assert done.last["result"]["stoppedBy"] == "iterations"


def test_a_diverged_training_ends_for_good(storage: Storage, trained: Callable[..., Any]) -> None:
    done = trained(storage, {"entryPoint": "worlds:Explosive"})
    assert (done.code, done.last["error"]["reason"]) == (2, "TrainingDiverged"), done.stderr


def begun_with(training: Any, trained: Callable[..., Any], environment: dict[str, Any], *more: str, run: str = "warm") -> Any:
    """A training of another run that begins with what a finished one has learnt."""
    start = json.dumps({"run": "r1", "digest": training.said.last["result"]["digest"]})
    return trained(training.storage, environment, "--run", run, "--warm-start", start, *more)


def test_a_warm_start_begins_with_the_weights_of_the_other_run(cartpole: Any, trained: Callable[..., Any]) -> None:
    tiny = '{"trainBatchSize": 256, "minibatchSize": 128, "numEpochs": 1, "numEnvs": 4, "lr": 1e-12}'
    done = begun_with(cartpole, trained, {"id": "CartPole-v1"}, "--config", tiny, "--stop", '{"iterations": 1}')
    assert done.code == 0, done.stderr
    digests = [said.last["result"]["digest"] for said in (cartpole.said, done)]
    first, second = (loaded_policy(cartpole.storage.bundles() / digest.removeprefix("sha256:"), digest) for digest in digests)
    seen = np.random.default_rng(0).normal(size=(50, 4)).astype(np.float32)
    # So small a learning rate leaves them as they were.
    assert np.allclose(first.decide((seen,)).action_dist_inputs, second.decide((seen,)).action_dist_inputs, atol=1e-5)
    assert second.manifest["parent"] == first.digest


@pytest.mark.parametrize(
    ("environment", "config", "named"),
    [
        ({"id": "Acrobot-v1"}, {}, "the observation space"),
        ({"id": "CartPole-v1"}, {"fcnetHiddens": [8]}, "fcnet_hiddens is [8] here and [64, 64]"),
        ({"id": "CartPole-v1"}, {"observationFilter": "MeanStd"}, "observation_filter is MeanStd here and None"),
        ({"id": "CartPole-v1"}, {"rewardScale": 0.1}, "reward_scale is 0.1 here and 1.0"),
    ],
)
def test_a_warm_start_that_does_not_fit_is_refused_before_ray_starts(
    cartpole: Any, trained: Callable[..., Any], environment: dict[str, Any], config: dict[str, Any], named: str
) -> None:
    done = begun_with(cartpole, trained, environment, "--config", json.dumps(config), run="refused")
    assert (done.code, done.last["error"]["reason"]) == (2, "WarmStartImpossible"), done.stderr
    assert named in done.last["error"]["message"]


@pytest.mark.parametrize(
    ("before", "now"),
    [({"freeLogStd": True}, {}), ({}, {"freeLogStd": True})],
)
def test_a_deviation_that_is_learnt_by_itself_in_one_of_the_two_does_not_fit(
    storage: Storage, before: dict[str, Any], now: dict[str, Any]
) -> None:
    def task(config: dict[str, Any]) -> TrainingTask:
        environment = parsed_environment({"id": "Pendulum-v1"})
        return TrainingTask(environment, Encoding(*spaces_of(environment.made())), parsed_settings(config), 0, 0)

    spaces = {"observationSpace": task(before).encoding.observation_space, "actionSpace": task(before).encoding.action_space}
    described = {name: described_space(space) for name, space in spaces.items()}
    start = WarmStart("r1", published_bundle(storage, {**described, "config": train._config(task(before))}, b""))
    with pytest.raises(InputError) as refusal:
        warm_weights(storage, start, [task(now)])
    assert refusal.value.reason == "WarmStartImpossible"
    assert f"free_log_std is {bool(now)} here and {bool(before)} in that revision" in refusal.value.message


@pytest.mark.parametrize(
    ("flags", "reason", "named"),
    [
        (["--environment", '{"id": "CartPol-v1"}'], "InvalidEnvironment", "CartPole-v1"),
        (["--environment", '{"id": "os:CartPole-v1"}'], "EntryPointNotAllowed", "spec.environment.id"),
        (["--environment", '{"id": "worlds:a:CartPole-v1"}'], "InvalidEnvironment", "spec.environment.id"),
        (["--environment", '{"id": "worlds:Maze-v0"}'], "InvalidEnvironment", "spec.environment.id: worlds registers no Maze-v0"),
        (["--environment", '{"id": "worlds.mazes:Maze-v0"}'], "InvalidEnvironment", "worlds.mazes cannot be imported"),
        (
            ["--environment", '{"id": "CartPole-v1", "config": {"sutton_bart_reward": true}}'],
            "InvalidEnvironment",
            "spec.environment.config.sutton_bart_reward is no argument of CartPole-v1 (did you mean sutton_barto_reward?)",
        ),
        (
            ["--environment", '{"entryPoint": "worlds:Corridor", "config": {"length": 0}}'],
            "InvalidEnvironment",
            "spec.environment.config: worlds:Corridor cannot be made with this config: ValueError; the log of the Job has more",
        ),
        (["--environment", '{"entryPoint": "worlds:Corridor"}'], "InvalidEnvironment", "spec.environment.config.length is missing"),
        (
            ["--environment", '{"entryPoint": "worlds:Corridor", "config": {"length": 3, "starts_outside": true}}'],
            "EnvironmentCheckFailed",
            "gymnasium.utils.env_checker says of worlds:Corridor: ",
        ),
        (
            ["--environment", '{"entryPoint": "worlds:Corridor", "config": {"length": 3, "secret": "xyzzy"}}'],
            "EnvironmentCheckFailed",
            "says of worlds:Corridor: KeyError in reset() or step(); the log of the Job has more",
        ),
        (
            ["--environment", '{"entryPoint": "worlds:Words"}'],
            "UnsupportedSpace",
            "spec.environment: the observation space at /say/0 is Text",
        ),
        (["--environment", '{"entryPoint": "os:path"}'], "EntryPointNotAllowed", "worlds"),
        (["--config", '{"lrr": 1}'], "InvalidConfig", "spec.training.config.lrr"),
        (["--stop", "{}"], "InvalidConfig", "spec.training.stop"),
        (["--seed", "many"], "InvalidArguments", "--seed"),
        (["--storage", "ftp://x/y"], "InvalidStorage", "file:///"),
    ],
)
def test_wrong_input_is_refused_before_ray_starts(
    storage: Storage, flags: list[str], reason: str, named: str, trained: Callable[..., Any]
) -> None:
    done = trained(storage, {"id": "CartPole-v1"}, *flags)
    assert done.code == 2
    assert [list(line) for line in done.lines] == [["error"]]
    assert done.last["error"]["reason"] == reason
    assert named in done.last["error"]["message"]


def test_what_an_environment_raises_is_in_the_log_and_not_in_the_message(storage: Storage, trained: Callable[..., Any]) -> None:
    done = trained(storage, {"entryPoint": "worlds:Corridor", "config": {"length": 3, "secret": "xyzzy"}})
    assert "xyzzy" not in json.dumps(done.lines)
    assert "xyzzy" in done.stderr


def test_an_environment_that_ignores_its_seed_is_trained_in_all_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    check_environment(Environment("", "unit.app.worlds:Unseeded", {}))
    assert "env_checker says of unit.app.worlds:Unseeded" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("config", "complaint"),
    [
        ({"values": 4}, "step() gives 4 values, and not observation, reward, terminated, truncated and info"),
        ({"values": 6}, "to return a four or five element tuple, actual number of elements returned: 6"),
        ({"size": 3}, "the observation of step() has the shape (3,), and its space (2,)"),
    ],
)
def test_an_environment_that_ignores_its_seed_is_checked_to_the_end(config: dict[str, Any], complaint: str) -> None:
    with pytest.raises(InputError) as refusal:
        check_environment(Environment("", "unit.app.worlds:Forgetful", config))
    assert refusal.value.reason == "EnvironmentCheckFailed"
    assert complaint in refusal.value.message


def test_what_an_environment_lacks_is_said_when_it_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(_: Environment) -> object:
        raise gymnasium.error.DependencyNotInstalled("Box2D is not installed, run `pip install gymnasium[box2d]`")

    monkeypatch.setattr("app.training.environment_check._creator", absent)
    check_config(Environment("CartPole-v1", "", {}))


@pytest.mark.parametrize("environment_id", ["CartPole-v1", "Acrobot-v1", "Pendulum-v1", "MountainCarContinuous-v0", "FrozenLake-v1"])
def test_gymnasiums_own_environments_pass_their_check(environment_id: str) -> None:
    environment = Environment(environment_id, "", {})
    check_config(environment)
    check_environment(environment)


def test_an_environment_that_is_not_repeatable_is_trained_in_and_the_log_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parent)
    check_environment(Environment("", "worlds:Corridor", {"length": 3, "wanders": True}))
    assert "env_checker says of worlds:Corridor" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("answers", "complaint"),
    [
        ({"rewards": np.zeros(3)}, "rewards of step() have the shape (3,), not (2,)"),
        ({"observations": np.full((2, 4), np.nan, np.float32)}, "what step() gives is not in its observation_space"),
    ],
)
def test_a_vector_entry_point_that_answers_wrongly_is_refused(
    monkeypatch: pytest.MonkeyPatch, answers: dict[str, Any], complaint: str
) -> None:
    step = CartPoleVectorEnv.step

    def stepped(self: Any, action: Any) -> Any:
        observations, rewards, *more = step(self, action)
        return answers.get("observations", observations), answers.get("rewards", rewards), *more

    monkeypatch.setattr(CartPoleVectorEnv, "step", stepped)
    with pytest.raises(InputError) as refusal:
        check_environment(Environment("CartPole-v1", "", {}))
    assert (refusal.value.reason, refusal.value.exit_code) == ("EnvironmentCheckFailed", 2)
    assert complaint in refusal.value.message


def test_a_learner_with_a_gpu_has_a_ray_also_without_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """RLlib asks Ray which device a Learner has, and one that was not started would be started by that question."""

    class Started(Exception):
        pass

    def start(directory: Path, workers: int | None) -> None:
        shutil.rmtree(directory)
        raise Started(workers)

    monkeypatch.setattr(trainer, "_sees_gpu", lambda: True)
    monkeypatch.setattr(trainer, "_import_rllib", lambda: None)
    monkeypatch.setattr(trainer, "start_ray", start)
    encoding = Encoding(Discrete(5, 0), Discrete(2, 0))
    task = trainer.TrainingTask(Environment("CartPole-v1", "", {}), encoding, parsed_settings({}), workers=0, seed=0)
    with pytest.raises(Started, match="0"):
        trainer.Trainer(task)


OTHERS = {"lr": 0.01, "gamma": 0.5, "lambda": 0.5, "clipParam": 0.3, "vfClipParam": 5, "vfLossCoeff": 1, "entropyCoeff": 0.01}
OTHERS |= {"useKlLoss": True, "klCoeff": 0.1, "klTarget": 0.02, "gradClip": 1, "trainBatchSize": 2048, "minibatchSize": 128}
OTHERS |= {"numEpochs": 3, "numEnvs": 8, "fcnetHiddens": [8], "fcnetActivation": "relu", "vfShareLayers": True, "freeLogStd": True}
OTHERS |= {"rewardScale": 0.1, "observationFilter": "MeanStd", "useLstm": True, "lrEnd": 0, "entropyCoeffEnd": 0.1}
# What means something beside another alone.
BESIDE = {"lstmCellSize": (8, {"useLstm": True}), "maxSeqLen": (5, {"useLstm": True}), "scheduleSteps": (1000, {"lrEnd": 0})}


def test_every_setting_is_part_of_what_a_policy_says_it_was_made_with() -> None:
    environment = parsed_environment({"id": "CartPole-v1"})
    encoding = Encoding(*spaces_of(environment.made()))

    def config(**settings: Any) -> dict[str, Any]:
        return train._config(TrainingTask(environment, encoding, parsed_settings(settings), 0, 0))

    assert OTHERS.keys() | BESIDE.keys() == SETTINGS.keys()
    for name, value in OTHERS.items():
        assert config(**{name: value}) != config(), name
    for name, (value, beside) in BESIDE.items():
        assert config(**beside, **{name: value}) != config(**beside), name
