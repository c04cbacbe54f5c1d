"""Programs for test_sampling.py: they run in a process of their own, where RLlib's warnings are no errors."""

import contextlib
import io
import itertools
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import gymnasium
import numpy as np
import ray
import torch
from ray.rllib.algorithms.ppo.torch.ppo_torch_learner import PPOTorchLearner
from ray.rllib.core import DEFAULT_MODULE_ID
from ray.rllib.core.columns import Columns
from ray.rllib.core.learner.training_data import TrainingData
from ray.rllib.env import env_runner_group
from ray.rllib.env.single_agent_episode import SingleAgentEpisode
from ray.rllib.evaluation.postprocessing import Postprocessing

from app.encoding import Encoding
from app.environments import Environment, spaces_of
from app.errors import InputError, RetryableError
from app.training.filter import begin_with, known_moments
from app.training.learning import EpisodeLearner, FragmentLearner, _minibatches
from app.training.sampling import ArrayEnvRunner, Fragment, counted_episodes
from app.training.settings import parsed_settings
from app.training.trainer import RUNNERS_S, Trainer, TrainingTask, _algorithm_config, _classes


class Steps(gymnasium.Env[Any, Any]):
    """Observes how many steps are done; the second episode of three is cut after 4 steps, the others end after 3 and 5."""

    observation_space = gymnasium.spaces.Box(0, 100, (2,), np.float32)
    action_space = gymnasium.spaces.Box(-3, 5, (2,), np.float32)
    _episode = -1

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self._episode, self._done = self._episode + 1, 0
        return self._seen(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(np.asarray(action, np.float32)), action
        return self._stepped()

    def _stepped(self) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self._done += 1
        is_over = self._done == (3, 4, 5)[self._episode % 3]
        is_cut = self._episode % 3 == 1
        return self._seen(), float(self._done), is_over and not is_cut, is_over and is_cut, {}

    def _seen(self) -> Any:
        return np.array([self._done, self._episode], np.float32)


class Broken(Steps):
    """Observes what is no number, or raises, in its third step."""

    def __init__(self, number: str = "1", secret: str = "", chooses: bool = False) -> None:
        self._number, self._secret = float(number), secret
        if chooses:
            self.action_space = gymnasium.spaces.MultiDiscrete([2, 2])

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        observation, *more = self._stepped()
        if self._done == 3:
            if self._secret:
                raise KeyError(self._secret)
            observation[1] = self._number
        return observation, *more


STEPS = Environment("", "sampled:Steps", {})


def task(workers: int = 0, environment: Environment = STEPS, **config: Any) -> TrainingTask:
    """A small training of `Steps`, or of another environment."""
    sizes = {"trainBatchSize": 60, "minibatchSize": 32, "numEpochs": 2, "numEnvs": 3}
    encoding = Encoding(*spaces_of(environment.made()))
    return TrainingTask(environment, encoding, parsed_settings(sizes | config), workers, 7)


def runner(**config: Any) -> Any:
    """Our env runner."""
    return ArrayEnvRunner(config=_algorithm_config(task(**config)), worker_index=0)


def learners(**config: Any) -> tuple[Any, Any]:
    """Our Learner and RLlib's, with equal weights."""
    made = _algorithm_config(task(**config))
    ours = made.build_learner(env=Steps())
    theirs = made.copy(copy_frozen=False).training(learner_class=PPOTorchLearner).build_learner(env=Steps())
    assert isinstance(ours, FragmentLearner)
    assert not isinstance(theirs, FragmentLearner)
    theirs.module.set_state(ours.module.get_state())
    return ours, theirs


def episodes(fragment: Fragment) -> tuple[list[SingleAgentEpisode], list[tuple[int, int]]]:
    """The fragment as RLlib's episodes, and which row each of their steps is, environment by environment."""
    found, rows = [], []
    for column in range(fragment.rewards.shape[1]):
        steps = [time for time in range(len(fragment.rewards)) if fragment.is_step[time, column]]
        is_last = (fragment.terminated | fragment.truncated)[:, column]
        ends = [index for index, time in enumerate(steps) if is_last[time] or index == len(steps) - 1]
        for first, last in zip([0, *(end + 1 for end in ends)], ends, strict=False):
            times = steps[first : last + 1]
            found.append(
                SingleAgentEpisode(
                    observations=[*fragment.observations[times, column], fragment.observations[times[-1] + 1, column]],
                    actions=list(fragment.actions[times, column]),
                    rewards=list(fragment.rewards[times, column]),
                    terminated=bool(fragment.terminated[times[-1], column]),
                    truncated=bool(fragment.truncated[times[-1], column]),
                    extra_model_outputs={
                        Columns.ACTION_DIST_INPUTS: list(fragment.action_dist_inputs[times, column]),
                        Columns.ACTION_LOGP: list(fragment.action_logp[times, column]),
                    },
                    len_lookback_buffer=0,
                ).to_numpy()
            )
            rows += [(time, column) for time in times]
    return found, rows


def fragments_hold_what_the_environments_did() -> None:
    """Rows, resets, and the figures of episodes, over the border of two fragments."""
    one = runner()
    first, second = one.sample()[0], one.sample()[0]
    figures = one.get_metrics()
    assert np.array_equal(first.observations[-1], second.observations[0])
    done, is_step, rewards, is_last = (
        np.concatenate([part(first), part(second)])
        for part in (lambda f: f.observations[1:, :, 0], lambda f: f.is_step, lambda f: f.rewards, lambda f: f.terminated | f.truncated)
    )
    assert 60 <= first.is_step.sum() < 63
    assert np.array_equal(~is_step[1:], (is_last & is_step)[:-1])
    assert is_step[0].all()
    assert np.array_equal(rewards[is_step], done[is_step])
    assert not rewards[~is_step].any()
    assert not done[~is_step].any()
    count, total, squares = counted_episodes({name: stats.peek() for name, stats in figures.items() if name.startswith("policymodel")})
    returns = [done[time, column] * (done[time, column] + 1) / 2 for time, column in np.argwhere(is_last & is_step)]
    assert (count, total, squares) == (len(returns), sum(returns), sum(np.square(returns)))
    assert int(figures["num_env_steps_sampled"].peek()) == is_step.sum()


def advantages_are_those_of_rllib() -> None:
    """The train batch against what RLlib's connectors make of the same steps."""
    ours, theirs = learners()
    one = runner()
    one.sample()
    fragment = one.sample()[0]
    assert fragment.terminated.any()
    assert fragment.truncated.any()
    found, rows = episodes(fragment)
    batch = theirs._learner_connector(rl_module=theirs.module, batch={}, episodes=found, shared_data={})[DEFAULT_MODULE_ID]
    mask = batch[Columns.LOSS_MASK].numpy()
    index = {tuple(row): number for number, row in enumerate(np.argwhere(fragment.is_step))}
    order = [index[row] for row in rows]
    made = ours.train_batch([fragment])
    for name in (Columns.OBS, Columns.ACTIONS, Columns.ACTION_LOGP, Columns.ACTION_DIST_INPUTS, Postprocessing.VALUE_TARGETS):
        np.testing.assert_allclose(made[name].numpy()[order], batch[name].numpy()[mask], rtol=1e-4, atol=1e-4, err_msg=name)
    # RLlib counts the rows that it has put in for the last values, too, when it normalises; so they are equal but for scale and shift.
    expected, got = batch[Postprocessing.ADVANTAGES].numpy()[mask], made[Postprocessing.ADVANTAGES].numpy()[order]
    np.testing.assert_allclose(got, (expected - expected.mean()) / expected.std(), rtol=1e-3, atol=1e-3)


def a_scale_of_rewards_meets_the_learner_alone() -> None:
    """Value targets are those of scaled rewards, of fragments and of episodes alike; the episodes stay as they are."""
    ours, theirs = learners(rewardScale=0.01)
    by_episode = _algorithm_config(task(rewardScale=0.01)).copy(copy_frozen=False).training(learner_class=EpisodeLearner)
    scaling = by_episode.build_learner(env=Steps())
    scaling.module.set_state(ours.module.get_state())
    one = runner(rewardScale=0.01)
    fragment = one.sample()[0]
    assert fragment.rewards.max() == 5  # as the environment gave it
    found, rows = episodes(fragment)
    scaled, _ = episodes(replace(fragment, rewards=fragment.rewards * 0.01))
    returns = [episode.get_return() for episode in found]
    expected, got = (
        learner._learner_connector(rl_module=learner.module, batch={}, episodes=given, shared_data={})[DEFAULT_MODULE_ID]
        for learner, given in ((theirs, scaled), (scaling, found))
    )
    np.testing.assert_allclose(got[Postprocessing.VALUE_TARGETS], expected[Postprocessing.VALUE_TARGETS], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(got[Postprocessing.ADVANTAGES], expected[Postprocessing.ADVANTAGES], rtol=1e-3, atol=1e-4)
    assert [episode.get_return() for episode in found] == returns
    index = {tuple(row): number for number, row in enumerate(np.argwhere(fragment.is_step))}
    targets = ours.train_batch([fragment])[Postprocessing.VALUE_TARGETS].numpy()[[index[row] for row in rows]]
    mask = expected[Columns.LOSS_MASK].numpy()
    np.testing.assert_allclose(targets, expected[Postprocessing.VALUE_TARGETS].numpy()[mask], rtol=1e-4, atol=1e-6)


def a_step_is_that_of_rllib() -> None:
    """Loss and weights after a minibatch, then a schedule and the KL coefficient after an update."""
    config = {"useKlLoss": True, "klCoeff": 0.3, "entropyCoeff": 0.02, "entropyCoeffEnd": 0.0, "gradClip": 0.1, "scheduleSteps": 1000}
    ours, theirs = learners(**config, lr=0.01, lrEnd=0.0)
    fragment = runner().sample()[0]
    for _ in range(5):
        batch = ours.train_batch([fragment])
        loss = ours._step(batch, ours.config)
        _, losses, _ = theirs._update({DEFAULT_MODULE_ID: dict(batch)})
        np.testing.assert_allclose(loss.item(), losses[DEFAULT_MODULE_ID].item(), rtol=1e-4)
    weights, expected = (one.module.get_state()[DEFAULT_MODULE_ID] for one in (ours, theirs))
    for name, value in weights.items():
        np.testing.assert_allclose(value, expected[name], rtol=1e-3, atol=1e-5, err_msg=name)
    kl_coeff = float(ours.curr_kl_coeffs_per_module[DEFAULT_MODULE_ID])
    data = TrainingData(episodes=[fragment])
    ours.update(training_data=data, timesteps={"num_env_steps_sampled_lifetime": 500}, num_epochs=2, minibatch_size=32)
    np.testing.assert_allclose(ours._get_optimizer_lr(ours.get_optimizer(DEFAULT_MODULE_ID)), 0.005, rtol=1e-5)
    np.testing.assert_allclose(float(ours.entropy_coeff_schedulers_per_module[DEFAULT_MODULE_ID].get_current_value()), 0.01, rtol=1e-5)
    assert float(ours.curr_kl_coeffs_per_module[DEFAULT_MODULE_ID]) != kl_coeff


def no_step_is_made_by_a_gradient_that_is_no_number() -> None:
    """The weights stay as they are."""
    ours, _ = learners()
    batch = ours.train_batch(runner().sample())
    batch[Postprocessing.ADVANTAGES][3] = float("inf")
    before = ours.module.get_state()[DEFAULT_MODULE_ID]
    assert not np.isfinite(ours._step(batch, ours.config).item())
    after = ours.module.get_state()[DEFAULT_MODULE_ID]
    assert all(np.array_equal(before[name], after[name]) for name in before)


def every_step_is_learnt_from_in_every_epoch() -> None:
    """Sizes that divide and such that do not."""
    for steps, epochs, size in ((8, 3, 4), (10, 3, 4), (5, 2, 5), (7, 1, 5)):
        times = np.bincount(_minibatches(steps, epochs, size).numpy().reshape(-1), minlength=steps)
        assert set(times) <= {epochs, epochs + 1}, (steps, epochs, size, times)


def a_filter_has_seen_every_observation_once() -> None:
    """What it knows, what the module sees, and that both travel in the state."""
    plain, one = runner(), runner(observationFilter="MeanStd")
    one.module.set_state(plain.module.get_state())
    raw = [plain.sample()[0].observations]
    # Actions change nothing here, so both have seen the same.
    seen = one.sample()[0].observations
    values = raw[0].reshape(-1, 2)
    moments = known_moments(one._env_to_module)
    assert moments is not None
    assert moments.count == len(values)
    np.testing.assert_allclose(moments.mean, values.mean(axis=0), rtol=1e-6)
    np.testing.assert_allclose(seen[-1], (raw[0][-1] - values.mean(axis=0)) / values.std(axis=0, ddof=1), rtol=1e-3, atol=1e-4)
    other = runner(observationFilter="MeanStd")
    other.set_state(one.get_state())
    known = known_moments(other._env_to_module)
    assert known is not None
    assert known.count == moments.count
    begin_with(other._env_to_module, moments)
    other.sample()
    assert known_moments(other._env_to_module).count > moments.count


def environments_are_divided_among_the_workers() -> None:
    """Each has one at least."""
    for workers, many, each in ((0, 5, 5), (2, 5, 2), (8, 4, 1)):
        assert _algorithm_config(task(workers=workers, numEnvs=many)).num_envs_per_env_runner == each


def runners_in_other_processes_sample_so_too() -> None:
    """Two workers, a filter, and a step taken over from a checkpoint."""
    trainer = Trainer(task(workers=2, observationFilter="MeanStd", numEnvs=4))
    results = [trainer.iterate() for _ in range(2)]
    assert all(one.is_finite and one.episodes for one in results)
    assert 120 <= results[1].env_steps < 140
    with TemporaryDirectory() as directory:
        trainer.save(Path(directory))
        trainer.restore(Path(directory))
    assert trainer.iterate().env_steps > results[1].env_steps
    trainer.close()


def a_runner_that_is_killed_is_made_anew_and_nothing_is_told_of_the_time_without_it() -> None:
    """Its iteration has steps and figures as any other."""
    lone = Trainer(task(workers=1))
    before = lone.iterate()
    (pid,) = lone._algorithm.env_runner_group.foreach_env_runner(lambda _: os.getpid(), local_env_runner=False)
    os.kill(pid, signal.SIGKILL)
    after = lone.iterate()
    assert after.is_finite
    assert before.env_steps < after.env_steps <= 2 * before.env_steps
    lone.close()


def a_training_without_workers_starts_no_ray() -> None:
    """Nor does it to save, to restore or to begin with another's weights; and a Ray that is wanted is met afterwards."""
    trainer = Trainer(task())
    first = trainer.iterate()
    with TemporaryDirectory() as directory:
        trainer.save(Path(directory))
        trainer.restore(Path(directory))
    trainer.begin_with(trainer.weights())
    assert trainer.iterate().env_steps > first.env_steps
    trainer.recording(8)
    assert not ray.is_initialized()
    trainer.close()
    assert env_runner_group.ray is ray


def an_observation_that_is_no_number_is_named_whatever_samples() -> None:
    """Of actions that a network cannot draw for it, and such as it can."""
    for number, chooses, config in itertools.product(
        ("nan", "inf"), (False, True), ({}, {"observationFilter": "MeanStd"}, {"useLstm": True})
    ):
        environment = Environment("", "sampled:Broken", {"number": number, "chooses": chooses})
        made = task(environment=environment, **config)
        kind, _ = _classes(made)
        one = kind(config=_algorithm_config(made), worker_index=0)
        told = raised(one.sample)
        assert isinstance(told, InputError), (number, chooses, config, told)
        assert (told.reason, "at /1;" in told.message) == ("ObservationNotFinite", True), told.message


def raised(does: Callable[[], Any]) -> Exception:
    """What it raises."""
    try:
        does()
    except Exception as error:  # noqa: BLE001 - it is what is asked for
        return error
    raise AssertionError("nothing was raised")


def what_an_environment_raises_in_another_process_is_told() -> None:
    """By its type, at once, with the rest in the log; and an observation that is no number ends the run for good."""

    def told(config: dict[str, Any], **more: Any) -> Any:
        trainer = Trainer(task(workers=1, environment=Environment("", "sampled:Broken", config), **more))
        began = time.monotonic()
        error = raised(trainer.iterate)
        assert time.monotonic() - began < RUNNERS_S / 10
        trainer.close()
        return error

    with contextlib.redirect_stderr(io.StringIO()) as log:
        error, refusal = told({"secret": "xyzzy"}, useLstm=True), told({"number": "nan"})
    assert isinstance(error, RetryableError), error
    assert (error.reason, error.message) == ("Internal", "KeyError in an env runner; the log of the Job has more")
    assert "KeyError: 'xyzzy'" in log.getvalue()
    assert isinstance(refusal, InputError), refusal
    assert refusal.reason == "ObservationNotFinite"


def main(names: list[str]) -> None:
    """Runs some of these programs; says what went wrong in each, as JSON by name."""
    wrong = {}
    for name in names:
        torch.manual_seed(0)
        try:
            globals()[name]()
        except Exception:  # noqa: BLE001 - whatever it was is told
            wrong[name] = traceback.format_exc()
    print(json.dumps(wrong))


if __name__ == "__main__":
    main(sys.argv[1:])
