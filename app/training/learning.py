"""RLlib Learners: one that learns from fragments, and RLlib's own, which learns from episodes, with scaled rewards. Imports RLlib.

The first has RLlib's PPO loss (`compute_loss_for_module`, unchanged), optimiser and schedules, without its way from episodes to
minibatches: connectors, MultiAgentBatch and the figures of each minibatch take longer than the gradients of a small network do.
"""

import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from ray.rllib.algorithms.ppo.torch.ppo_torch_learner import PPOTorchLearner
from ray.rllib.connectors.connector_v2 import ConnectorV2
from ray.rllib.connectors.learner import GeneralAdvantageEstimation
from ray.rllib.core import DEFAULT_MODULE_ID, Columns
from ray.rllib.core.learner.training_data import TrainingData
from ray.rllib.evaluation.postprocessing import Postprocessing
from ray.rllib.utils.metrics import (
    ALL_MODULES,
    NUM_ENV_STEPS_TRAINED,
    NUM_ENV_STEPS_TRAINED_LIFETIME,
    NUM_MODULE_STEPS_TRAINED,
    NUM_MODULE_STEPS_TRAINED_LIFETIME,
)

from app.spaces import Array
from app.training.sampling import Fragment

# Below it advantages are all alike, and are not blown up. Source: GeneralAdvantageEstimation (Ray 2.60).
LEAST_STD = 1e-4
# Where `learner_config_dict` holds what rewards are taken times.
REWARD_SCALE = "reward_scale"


class FragmentLearner(PPOTorchLearner):  # type: ignore[misc] # mypy does not follow RLlib
    """PPO on the fragments of `ArrayEnvRunner`; for a module without state."""

    def configure_optimizers_for_module(self, module_id: str, config: Any = None) -> None:
        """RLlib's Adam, all parameters in one pass."""
        params = self.get_parameters(self._module[module_id])
        optimizer = torch.optim.Adam(params, fused=True)
        self.register_optimizer(module_id=module_id, optimizer=optimizer, params=params, lr_or_lr_schedule=config.lr)

    def update(
        self, *, training_data: TrainingData, timesteps: dict[str, Any], num_epochs: int, minibatch_size: int, **_: Any
    ) -> dict[str, Any]:
        """Learns from fragments, in `num_epochs` passes over all their steps in an order of chance."""
        self.before_gradient_based_update(timesteps=timesteps)
        self._weights_seq_no += 1
        batch = self.train_batch(training_data.episodes)
        steps = len(batch[Columns.ACTION_LOGP])
        minibatches = _minibatches(steps, num_epochs, minibatch_size)
        config = self.config.get_config_for_module(DEFAULT_MODULE_ID)
        self.module[DEFAULT_MODULE_ID].train()
        with self._unlogged():
            for rows in minibatches[:-1]:
                self._step({name: column[rows] for name, column in batch.items()}, config)
        # RLlib keeps the last minibatch's figures only, too.
        loss = self._step({name: column[minibatches[-1]] for name, column in batch.items()}, config)
        self.metrics.log_value((DEFAULT_MODULE_ID, self.TOTAL_LOSS_KEY), loss, window=1)
        self._log_steps(steps, minibatches.numel())
        self.after_gradient_based_update(timesteps=timesteps)
        reduced: dict[str, Any] = self.metrics.reduce()
        return reduced

    def train_batch(self, fragments: Sequence[Fragment]) -> dict[str, torch.Tensor]:
        """The columns that the loss needs, a row for each step of all fragments."""
        estimated = [self._estimated(fragment) for fragment in fragments]
        advantages = np.concatenate([advantage[one.is_step] for one, (advantage, _) in zip(fragments, estimated, strict=True)])
        targets = [target[one.is_step] for one, (_, target) in zip(fragments, estimated, strict=True)]
        columns = {
            Columns.OBS: [one.observations[:-1][one.is_step] for one in fragments],
            Columns.ACTIONS: [one.actions[one.is_step] for one in fragments],
            Columns.ACTION_DIST_INPUTS: [one.action_dist_inputs[one.is_step] for one in fragments],
            Columns.ACTION_LOGP: [one.action_logp[one.is_step] for one in fragments],
            Postprocessing.ADVANTAGES: [((advantages - advantages.mean()) / max(LEAST_STD, advantages.std())).astype(np.float32)],
            Postprocessing.VALUE_TARGETS: [target.astype(np.float32) for target in targets],
        }
        return {name: torch.from_numpy(np.concatenate(parts)).to(self._device) for name, parts in columns.items()}

    def _estimated(self, fragment: Fragment) -> tuple[Array, Array]:
        """Advantages and value targets."""
        seen = fragment.observations
        flat = torch.from_numpy(seen.reshape(-1, *seen.shape[2:])).to(self._device)
        with torch.no_grad():
            values = self.module[DEFAULT_MODULE_ID].compute_values({Columns.OBS: flat}).cpu().numpy().reshape(seen.shape[:2])
        rewards = fragment.rewards * self.config.learner_config_dict[REWARD_SCALE]
        return estimated_advantages(replace(fragment, rewards=rewards), values, self.config.gamma, self.config.lambda_)

    def _step(self, minibatch: dict[str, torch.Tensor], config: Any) -> torch.Tensor:
        """One step of the optimiser, none where the gradient is no number; gives the loss before it."""
        # What goes round it (`forward_train`) sets the mode of each layer, every time.
        outputs = self.module[DEFAULT_MODULE_ID]._forward_train(minibatch)
        loss: torch.Tensor = self.compute_loss_for_module(module_id=DEFAULT_MODULE_ID, config=config, batch=minibatch, fwd_out=outputs)
        optimizer = self.get_optimizer(DEFAULT_MODULE_ID)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        norm = torch.nn.utils.clip_grad_norm_(self._params.values(), config.grad_clip or math.inf)
        if math.isfinite(norm):
            optimizer.step()
        return loss.detach()

    @contextlib.contextmanager
    def _unlogged(self) -> Iterator[None]:
        metrics: Any = self.metrics
        self.metrics: Any = _Nowhere()
        try:
            yield
        finally:
            self.metrics = metrics

    def _log_steps(self, steps: int, trained_steps: int) -> None:
        for module in (DEFAULT_MODULE_ID, ALL_MODULES):
            self.metrics.log_value((module, NUM_MODULE_STEPS_TRAINED), trained_steps, reduce="sum")
            self.metrics.log_value((module, NUM_MODULE_STEPS_TRAINED_LIFETIME), trained_steps, reduce="lifetime_sum")
        self.metrics.log_value((ALL_MODULES, NUM_ENV_STEPS_TRAINED), steps, reduce="sum")
        self.metrics.log_value((ALL_MODULES, NUM_ENV_STEPS_TRAINED_LIFETIME), steps, reduce="lifetime_sum")


class EpisodeLearner(PPOTorchLearner):  # type: ignore[misc] # likewise
    """RLlib's own, on episodes, with the rewards that it estimates advantages from taken times a number."""

    def build(self) -> None:
        """Adds the factor to the pipeline: the episodes themselves are left as they are, the runner tells their returns."""
        super().build()
        self._learner_connector.insert_before(GeneralAdvantageEstimation, _ScaledRewards(self.config.learner_config_dict[REWARD_SCALE]))


class _ScaledRewards(ConnectorV2):  # type: ignore[misc] # likewise
    def __init__(self, scale: float) -> None:
        super().__init__()
        self._scale = scale

    def __call__(self, *, batch: dict[str, Any], **_: Any) -> dict[str, Any]:
        for columns in batch.values():
            columns[Columns.REWARDS] = columns[Columns.REWARDS] * self._scale
        return batch


class _Nowhere:
    """Where figures go that nobody reads."""

    def log_value(self, *_: Any, **__: Any) -> None:
        """Forgets a figure."""

    def log_dict(self, *_: Any, **__: Any) -> None:
        """Forgets some figures."""


def estimated_advantages(fragment: Fragment, values: Array, gamma: float, lambda_: float) -> tuple[Array, Array]:
    """Generalised advantage estimates and value targets, not normalised; what stands in rows that are no steps means nothing.

    Args:
        fragment: of `time` steps of some environments.
        values: the critic's, of shape (time + 1, environments).
        gamma: discount of a step.
        lambda_: of the estimate.

    Returns:
        Two arrays, float64 of shape (time, environments).

    Source: https://arxiv.org/abs/1506.02438.
    """
    goes_on = ~(fragment.terminated | fragment.truncated)
    advantages = np.zeros_like(fragment.rewards)
    # The value after an episode that was cut counts, that after one that ended does not.
    errors = fragment.rewards + gamma * np.where(fragment.terminated, 0, values[1:]) - values[:-1]
    later = np.zeros(fragment.rewards.shape[1])
    for time in reversed(range(len(advantages))):
        later = errors[time] + gamma * lambda_ * goes_on[time] * later
        advantages[time] = later
    return advantages, advantages + values[:-1]


def _minibatches(steps: int, epochs: int, size: int) -> torch.Tensor:
    """Indices of shape (minibatches, size): every step at least `epochs` times, as often as any other but once."""
    count = math.ceil(epochs * steps / size)
    order = torch.cat([torch.randperm(steps) for _ in range(math.ceil(count * size / steps))])
    return order[: count * size].view(count, size)
