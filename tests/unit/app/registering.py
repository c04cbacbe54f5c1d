"""A package of a user's, that registers an environment with a vector version."""

from typing import Any, ClassVar

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space

ENDS_AFTER = 5
OBSERVATION, ACTION = spaces.Box(0, ENDS_AFTER, (1,), np.float32), spaces.Discrete(2)


class Walk(gymnasium.Env[Any, Any]):
    """A few steps ahead, whatever is done."""

    observation_space, action_space = OBSERVATION, ACTION

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self._at = 0
        return np.array([0], np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self._at += 1
        return np.array([self._at], np.float32), 1.0, self._at == ENDS_AFTER, False, {}


class Walks(gymnasium.vector.VectorEnv[Any, Any, Any]):
    """Many of them, which end together."""

    metadata: ClassVar = {"autoreset_mode": AutoresetMode.NEXT_STEP}
    single_observation_space, single_action_space = OBSERVATION, ACTION

    def __init__(self, num_envs: int) -> None:
        self.num_envs = num_envs
        self.observation_space, self.action_space = (batch_space(space, num_envs) for space in (OBSERVATION, ACTION))

    def reset(self, *, seed: Any = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        self._at = 0
        return self._observations(), {}

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        self._at = (self._at + 1) % (ENDS_AFTER + 1)
        has_ended = np.full(self.num_envs, self._at == ENDS_AFTER)
        return self._observations(), np.full(self.num_envs, float(self._at > 0)), has_ended, np.zeros(self.num_envs, bool), {}

    def _observations(self) -> Any:
        return np.full((self.num_envs, 1), self._at, np.float32)


gymnasium.register("Walk-v0", entry_point=Walk, vector_entry_point=Walks)
