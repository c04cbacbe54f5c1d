"""Environments that are awkward on purpose, for trainings in tests."""

from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces


class ShiftedDiscrete(gymnasium.Env[Any, Any]):
    """Integer matrices as observations, actions 3 and 4; any other action ends the process with an assertion."""

    observation_space = spaces.Box(0, 9, (2, 3), np.int16)
    action_space = spaces.Discrete(2, start=3)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self._left = 5
        return self.np_random.integers(0, 10, (2, 3), dtype=np.int16), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert action in (3, 4)
        self._left -= 1
        return self.np_random.integers(0, 10, (2, 3), dtype=np.int16), float(action == 4), self._left == 0, False, {}


class Explosive(ShiftedDiscrete):
    """Pays so much that every loss overflows."""

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        observation, _, terminated, truncated, more = super().step(action)
        return observation, float("inf"), terminated, truncated, more
