"""Env runners that say why they fail: RLlib's own, and one that keeps what it samples in arrays, all environments at once. Imports RLlib.

RLlib's own (`SingleAgentEnvRunner`) makes an object of each episode and sends each step through two pipelines of connectors, environment
by environment. Here a step is one forward pass and one call of the vector environment. Which trainings sample so:
`TrainingTask.samples_in_arrays`.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from gymnasium.vector import AutoresetMode
from ray.rllib.core.columns import Columns
from ray.rllib.env.single_agent_env_runner import SingleAgentEnvRunner
from ray.rllib.utils.metrics import EPISODE_LEN_MEAN, EPISODE_RETURN_MEAN, SAMPLE_TIMER, WEIGHTS_SEQ_NO
from ray.rllib.utils.spaces.space_utils import unsquash_action

from app.encoding import Encoding
from app.environments import FIELD
from app.errors import InputError
from app.spaces import Array
from app.training.failing import leave_word
from app.training.filter import filtered

EPISODES, RETURN_SUM, RETURN_SQUARE_SUM = "policymodel_episodes", "policymodel_return_sum", "policymodel_return_square_sum"


@dataclass(frozen=True, eq=False)
class Fragment:
    """What some environments did in some time steps, one after another.

    An environment that has ended is reset by its next step, whose action and reward are nothing: `is_step` is False there. So the
    observation after a step is always the next row's, the last one of an episode too.

    Attributes:
        observations: as the module sees them, float32 of shape (time + 1, environments, *observation).
        actions: as the distribution gave them, of shape (time, environments, *action).
        action_dist_inputs: float32 of shape (time, environments, inputs).
        action_logp: float32 of shape (time, environments).
        rewards: float64 of shape (time, environments).
        terminated: bool of shape (time, environments).
        truncated: likewise.
        is_step: likewise.
    """

    observations: Array
    actions: Array
    action_dist_inputs: Array
    action_logp: Array
    rewards: Array
    terminated: Array
    truncated: Array
    is_step: Array


class _Episodes:
    """The episodes under way, one an environment, and those that have ended since they were last asked for."""

    def __init__(self, environments: int) -> None:
        self._is_over = np.zeros(environments, bool)
        self._returns = np.zeros(environments)
        self._lengths = np.zeros(environments, np.int64)
        self._ended: list[tuple[int, float]] = []

    def took(self, rewards: Array, is_last: Array) -> Array:
        """Counts a time step of all environments; gives for which of them it was a step and no reset, bool of shape (environments,)."""
        is_step = ~self._is_over
        self._lengths += is_step
        self._returns += np.where(is_step, rewards, 0.0)
        self._is_over = is_last & is_step
        if self._is_over.any():
            self._ended += zip(self._lengths[self._is_over].tolist(), self._returns[self._is_over].tolist(), strict=True)
            self._lengths[self._is_over] = 0
            self._returns[self._is_over] = 0
        return is_step

    def ended(self) -> list[tuple[int, float]]:
        """Length and return of each that has ended."""
        ended, self._ended = self._ended, []
        return ended


class EpisodeEnvRunner(SingleAgentEnvRunner):  # type: ignore[misc] # mypy does not follow RLlib
    """RLlib's own, which says why it fails."""

    # What the next actions are drawn for.
    _seen: Array = np.zeros(0)

    def sample(self, **asked: Any) -> list[Any]:
        """What RLlib's own samples.

        Raises:
            InputError: ObservationNotFinite.
        """
        try:
            return self._checked(**asked)
        except Exception as error:
            if self.worker_index:
                leave_word(error)
            raise

    def _checked(self, **asked: Any) -> list[Any]:
        try:
            samples = self._sampled(**asked)
        except Exception:
            # Actions are drawn from what a network makes of them.
            self._check([self._seen])
            raise
        self._check(self._seen_in(samples))
        return samples

    def _check(self, observations: Iterable[Array]) -> None:
        context = self.config.env_config
        for some in observations:
            check_finite(context["environment"].name, context["encoding"], some)

    def _sampled(self, **asked: Any) -> list[Any]:
        sampled: list[Any] = super().sample(**asked)
        return sampled

    def _try_env_reset(self, **asked: Any) -> Any:
        result = super()._try_env_reset(**asked)
        self._seen = result[0]
        return result

    def _try_env_step(self, actions: Any) -> Any:
        result = super()._try_env_step(actions)
        self._seen = result[0]
        return result

    def _seen_in(self, samples: Sequence[Any]) -> Iterable[Array]:
        """All observations of what was sampled."""
        return [episode.get_observations() for episode in samples]


class ArrayEnvRunner(EpisodeEnvRunner):
    """Samples fragments. Weights, filters and their states are those of RLlib's own runner."""

    def _sampled(self, **_: Any) -> list[Fragment]:
        """The next fragment: `rollout_fragment_length` steps of each environment in the mean, resets not counted."""
        self.metrics.log_value(WEIGHTS_SEQ_NO, self._weights_seq_no, window=1)
        with self.metrics.log_time(SAMPLE_TIMER):
            if self._needs_initial_reset:
                self._reset()
            fragment = self._fragment(self.config.get_rollout_fragment_length(self.worker_index) * self.num_envs)
        ended = self._episodes.ended()
        self._increase_sampled_metrics(int(fragment.is_step.sum()), len(ended))
        if ended:
            lengths, returns = zip(*ended, strict=True)
            _count(self.metrics, returns)
            self.metrics.log_value(EPISODE_LEN_MEAN, float(np.mean(lengths)), window=1)
            self.metrics.log_value(EPISODE_RETURN_MEAN, float(np.mean(returns)), window=1)
        return [fragment]

    def _seen_in(self, samples: Sequence[Fragment]) -> Iterable[Array]:
        return [fragment.observations for fragment in samples]

    def make_env(self) -> None:
        """Makes the environments anew; the next fragment begins with their first step."""
        super().make_env()
        # RLlib, too, takes them for such as are reset by the step after their last one.
        mode = self.env.metadata.get("autoreset_mode", AutoresetMode.NEXT_STEP)
        assert mode == AutoresetMode.NEXT_STEP, f"{mode} is not supported"

    def _reset(self) -> None:
        observations, _ = self._try_env_reset(seed=self._seed)
        self._needs_initial_reset = False
        self._seen = filtered(self._env_to_module, observations)
        self._episodes = _Episodes(self.num_envs)

    def _fragment(self, least_steps: int) -> Fragment:
        """Samples until so many steps are done."""
        distribution = self.module.get_exploration_action_dist_cls()
        # What makes lists of the environments' infos, which nobody reads here, is passed by.
        environments, space = self.env.env, self.env.single_action_space
        # What goes round the forward pass (`forward_exploration`) sets the mode of each layer, every time.
        self.module.eval()
        seen, rows, steps = [self._seen], [], 0
        while steps < least_steps:
            inputs = self.module._forward_exploration({Columns.OBS: self._tensor(seen[-1])})[Columns.ACTION_DIST_INPUTS]
            actions = distribution.from_logits(inputs).sample().cpu().numpy()
            taken = unsquash_action(actions, space) if self.config.normalize_actions else actions
            observations, *figures = environments.step(taken)
            # Copies: an environment may use its arrays again, and have flags of another type.
            rewards = np.array(figures[0], np.float64)
            terminated, truncated = np.array(figures[1], bool), np.array(figures[2], bool)
            is_step = self._episodes.took(rewards, terminated | truncated)
            steps += int(is_step.sum())
            self._seen = filtered(self._env_to_module, observations)
            seen.append(self._seen)
            rows.append((actions, inputs.cpu().numpy(), rewards, terminated, truncated, is_step))
        actions, inputs, rewards, terminated, truncated, is_step = (np.stack(column) for column in zip(*rows, strict=True))
        with torch.no_grad():
            logp = distribution.from_logits(self._tensor(inputs)).logp(self._tensor(actions)).cpu().numpy()
        return Fragment(np.stack(seen), actions, inputs, logp, rewards, terminated, truncated, is_step)

    def _tensor(self, array: Array) -> torch.Tensor:
        return torch.from_numpy(array).to(self._device)


def check_finite(name: str, encoding: Encoding, observations: Array) -> None:
    """Looks whether an environment observes numbers only.

    Args:
        name: of the environment.
        observations: as the module sees them, of any shape that ends with that of one.

    Raises:
        InputError: ObservationNotFinite, naming the first number that is none.
    """
    is_finite = np.isfinite(observations)
    if not is_finite.all():
        at = encoding.pointer(int(np.argmin(is_finite.reshape(-1, *encoding.seen_space.shape).all(axis=0))))
        why = f"{name} gave an observation that is no finite number{f' at {at}' if at else ''}; mend it, and name its new image"
        raise InputError("ObservationNotFinite", f"{FIELD}: {why}")


def count_episode(*, episode: Any, prev_episode_chunks: list[Any], metrics_logger: Any, **_: Any) -> None:
    """Adds an episode that ended in RLlib's own runner to the sums of its iteration, as `on_episode_end`."""
    _count(metrics_logger, [sum(float(chunk.get_return()) for chunk in (*prev_episode_chunks, episode))])


def counted_episodes(runners: Mapping[str, Any]) -> tuple[int, float, float]:
    """How many episodes ended in an iteration, the sum of their returns and that of its squares, from what RLlib says of its runners."""
    # A sum of nothing is NaN in RLlib.
    episodes = int(np.nan_to_num(runners.get(EPISODES, 0)))
    return (episodes, float(runners[RETURN_SUM]), float(runners[RETURN_SQUARE_SUM])) if episodes else (0, 0.0, 0.0)


def _count(metrics: Any, returns: Sequence[float]) -> None:
    """RLlib's own figures tell no spread."""
    squares = sum(one**2 for one in returns)
    for name, value in ((EPISODES, len(returns)), (RETURN_SUM, sum(returns)), (RETURN_SQUARE_SUM, squares)):
        metrics.log_value(name, value, reduce="sum")
