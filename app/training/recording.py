"""What RLlib answers greedily, recorded where the environment meets it: the truth that an exported policy is held to.

The answers go all the way through RLlib's own pieces (filter, module, distribution, unsquashing) and ours around them.
"""

import copy
from dataclasses import dataclass
from typing import Any

import gymnasium
import numpy as np

from app.encoding import Encoding
from app.environments import Environment
from app.policy import Decision
from app.spaces import Array, Arrays, batched

REGISTERED_NAME = "policymodel-recorded-environment"
# A policy that acts greedily alone would see little of its environment.
RANDOM_SHARE = 0.25


@dataclass(frozen=True, eq=False)
class Recording:
    """Observations and answers, one step after another, episode after episode.

    Attributes:
        observations: as the environment gave them, one array for each leaf.
        answers: to them; the state is the one after each.
        states: the one before each, one array for each name in sorted order; empty when not recurrent.
        is_first: bool of shape (steps,), whether an episode begins there.
        filter: what the observation filter knew then.
    """

    observations: Arrays
    answers: Decision
    states: Arrays
    is_first: Array
    filter: "ObservationFilter | None"

    def rows(self, chosen: Array) -> "Recording":
        """Some of the steps, by index."""
        return Recording(
            _rows(self.observations, chosen),
            Decision(_rows(self.answers.actions, chosen), self.answers.action_dist_inputs[chosen], _rows(self.answers.state, chosen)),
            _rows(self.states, chosen),
            self.is_first[chosen],
            self.filter,
        )


@dataclass(frozen=True, eq=False)
class ObservationFilter:
    """RLlib's MeanStdFilter at rest: (seen - mean) / (std + 1e-6), clipped to 10.

    Source: rllib/utils/filter.py (Ray 2.60).

    Attributes:
        mean: float64 of the shape that RLlib sees.
        std: float64 likewise.
    """

    mean: Array
    std: Array


class _Recorder(gymnasium.Wrapper):  # type: ignore[misc] # mypy does not follow gymnasium
    """Notes each observation and the action that comes for it, and takes a random one instead now and then."""

    def __init__(self, one: Any, seed: int) -> None:
        super().__init__(one)
        self.steps: list[tuple[Any, Any, bool]] = []
        self._random = np.random.default_rng(seed)
        one.action_space.seed(seed)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        observation, info = self.env.reset(seed=seed, options=options)
        self._last, self._is_first = copy.deepcopy(observation), True
        return observation, info

    def step(self, action: Any) -> Any:
        self.steps.append((self._last, copy.deepcopy(action), self._is_first))
        is_random = self._random.random() < RANDOM_SHARE
        result = self.env.step(self.env.action_space.sample() if is_random else action)
        self._last, self._is_first = copy.deepcopy(result[0]), False
        return result


def made_recorded(context: dict[str, Any]) -> Any:
    """Makes the environment that RLlib records in."""
    environment: Environment = context["environment"]
    encoding: Encoding = context["encoding"]
    return encoding.adapted(_Recorder(environment.made(), context["seed"]))


def recorded(algorithm: Any, config: Any, environment: Environment, encoding: Encoding, seed: int, count: int) -> Recording:
    """Plays `count` steps greedily in an env runner of its own, which is given the algorithm's weights and filter.

    Args:
        algorithm: RLlib's, as it is now.
        config: an `AlgorithmConfig` like that it was built from.
        environment: that it was trained in.
        encoding: of that environment.
        seed: of the random steps.
        count: steps to record.
    """
    from ray.rllib.env.single_agent_env_runner import SingleAgentEnvRunner
    from ray.tune.registry import register_env

    register_env(REGISTERED_NAME, made_recorded)
    context = {"environment": environment, "encoding": encoding, "seed": seed}
    config = config.environment(REGISTERED_NAME, env_config=context).env_runners(
        num_env_runners=0, num_envs_per_env_runner=1, gym_env_vectorize_mode=gymnasium.VectorizeMode.SYNC
    )
    runner = SingleAgentEnvRunner(config=config)
    try:
        runner.set_state(algorithm.env_runner.get_state())
        runner._module_to_env.prepend(_without_likelihood())
        found_filter = _frozen_filter(runner)
        episodes = runner.sample(num_timesteps=count, explore=False)
        steps = runner.env.unwrapped.envs[0].get_wrapper_attr("steps")
    finally:
        runner.stop()
    observations, actions, is_first = zip(*steps, strict=True)
    acted = [episode for episode in episodes if len(episode)]
    inputs = np.concatenate([episode.get_extra_model_outputs("action_dist_inputs") for episode in acted])
    first, states_out = np.array(is_first), _states(acted)
    answers = Decision(batched(encoding.action_space, actions), inputs, states_out)
    return Recording(batched(encoding.observation_space, observations), answers, _before(states_out, first), first, found_filter)


def _without_likelihood() -> Any:
    """A piece that spares the likelihood of greedy actions, which RLlib 2.60 cannot sum over a Tuple of leaves of several sizes."""
    from ray.rllib.connectors.connector_v2 import ConnectorV2
    from ray.rllib.core.columns import Columns

    class WithoutLikelihood(ConnectorV2):  # type: ignore[misc] # mypy does not follow RLlib
        def __call__(self, *, batch: dict[str, Any], **more: Any) -> dict[str, Any]:
            inputs = batch[Columns.ACTION_DIST_INPUTS]
            return {**batch, Columns.ACTION_LOGP: inputs.new_zeros(inputs.shape[:-1])}

    return WithoutLikelihood()


def _frozen_filter(runner: Any) -> ObservationFilter | None:
    """The runner's observation filter, which learns no more; None where it has none."""
    from ray.rllib.connectors.env_to_module import MeanStdFilter

    for connector in runner._env_to_module.connectors:
        if isinstance(connector, MeanStdFilter):
            connector._update_stats = False
            (known,) = connector._filters.values()
            return ObservationFilter(np.array(known.running_stats.mean, np.float64), np.array(known.running_stats.std, np.float64))
    return None


def _states(episodes: list[Any]) -> Arrays:
    """The states after each step, by sorted name, each of shape (steps, size)."""
    if "state_out" not in episodes[0].extra_model_outputs:
        return ()
    states = [episode.get_extra_model_outputs("state_out") for episode in episodes]
    actors = [state.get("actor", state) for state in states]
    return tuple(np.concatenate([np.asarray(actor[name])[:, 0] for actor in actors]) for name in sorted(actors[0]))


def _before(states_out: Arrays, is_first: Array) -> Arrays:
    """The states before each step: zeros where an episode begins, else those after the step before."""
    return tuple(np.where(is_first[:, None], np.float32(0), np.roll(state, 1, axis=0)) for state in states_out)


def _rows(arrays: Arrays, chosen: Array) -> Arrays:
    return tuple(array[chosen] for array in arrays)
