"""Environments that are awkward on purpose, for trainings in tests."""

import multiprocessing
import os
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


class Fragile(ShiftedDiscrete):
    """Ends the process that it is sampled in, where that is one beside another."""

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        if multiprocessing.parent_process():
            os._exit(1)
        return super().step(action)


class Corridor(gymnasium.Env[Any, Any]):
    """A walk of `length` steps; it may begin where its observation space does not reach, or end with an error that tells a secret."""

    action_space = spaces.Discrete(2)

    def __init__(self, length: int, starts_outside: bool = False, secret: str = "", wanders: bool = False) -> None:
        if length < 1:
            raise ValueError(f"the length is at least 1, says {secret}")
        self.observation_space = spaces.Box(0, length, (1,), np.float32)
        self._length, self._secret, self._wanders = length, secret, wanders
        self._start = -1.0 if starts_outside else 0.0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self._at = self._start
        return np.array([self._at], np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        if self._secret:
            raise KeyError(self._secret)
        self._at += np.random.default_rng().random() if self._wanders else 1.0
        return np.array([min(self._at, self._length)], np.float32), 1.0, self._at >= self._length, False, {}


class Panel(gymnasium.Env[Any, Any]):
    """Spaces of any kind with observations drawn from them; an action outside its space ends the process with an assertion."""

    observation_space: gymnasium.Space[Any]
    action_space: gymnasium.Space[Any]

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        if seed is not None:
            self.observation_space.seed(seed)
        self._left = 12
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action), action
        self._left -= 1
        return self.observation_space.sample(), float(np.sum(spaces.flatten(self.action_space, action))), self._left == 0, False, {}


class Dials(Panel):
    """A Dict of most kinds; MultiDiscrete actions of two dimensions that begin anywhere."""

    observation_space = spaces.Dict(
        {
            "speed": spaces.Box(-1, 1, (3,), np.float64),
            "gear": spaces.Discrete(4, start=-1),
            "dials": spaces.MultiDiscrete([2, 3], start=[5, 0]),
            "lamps": spaces.MultiBinary([2, 2]),
            "radar": spaces.Box(0, 1000, (2, 2), np.uint16),
        }
    )
    action_space = spaces.MultiDiscrete([[2, 3], [4, 2]], start=[[0, -1], [7, 0]])


class Lamps(Panel):
    """Switches as observations and as actions."""

    observation_space = spaces.MultiBinary(5)
    action_space = spaces.MultiBinary([2, 3])


class Crane(Panel):
    """Actions nested in a Tuple and a Dict, with Boxes of every kind of bound."""

    observation_space = spaces.Tuple((spaces.Box(-np.inf, np.inf, (2,), np.float32), spaces.Dict({"b": spaces.Discrete(2)})))
    action_space = spaces.Tuple(
        (
            spaces.Discrete(3, start=2),
            spaces.Dict(
                {
                    "grip": spaces.MultiBinary(2),
                    "arm": spaces.Box(-2, 5, (2, 2), np.float32),
                    "winch": spaces.Box(0, np.inf, (), np.float64),
                }
            ),
        )
    )

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        # A Box without an upper bound is left alone by RLlib, so its actions leave the space.
        assert isinstance(action, tuple)
        action[1]["winch"] = np.abs(action[1]["winch"])
        return super().step(action)


class Screen(Panel):
    """Small pictures, channels last."""

    observation_space = spaces.Box(0, 255, (42, 42, 3), np.uint8)
    action_space = spaces.Discrete(3)


class Frames(Panel):
    """Stacked grey pictures, channels first, and a continuous action in half precision."""

    observation_space = spaces.Box(0, 255, (4, 20, 24), np.uint8)
    action_space = spaces.Box(-3, 1, (2,), np.float16)


class Offset(Panel):
    """Observations far from 0, with a part that never changes."""

    observation_space = spaces.Box(np.array([1e4, -0.1, 7], np.float32), np.array([1e4 + 3, 0.1, 7], np.float32))
    action_space = spaces.Box(-1, 1, (1,), np.float32)


class Fine(Panel):
    """Observations that differ by little."""

    observation_space = spaces.Box(-1e-3, 1e-3, (2,), np.float32)
    action_space = spaces.Box(-1, 1, (1,), np.float32)


class Words(Panel):
    """A space that no network takes."""

    observation_space = spaces.Dict({"say": spaces.Tuple((spaces.Text(5),))})
    action_space = spaces.Discrete(2)


class Unseeded(gymnasium.Env[Any, Any]):
    """Draws past its seed."""

    def __init__(self) -> None:
        self.observation_space, self.action_space = gymnasium.spaces.Box(0, 1, (2,)), gymnasium.spaces.Discrete(2)
        self._draw = np.random.default_rng()

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        return self._draw.random(2, np.float32), {}

    def step(self, action: Any) -> Any:
        return self._draw.random(2, np.float32), 1.0, False, False, {}


class Forgetful(Unseeded):
    """Draws past its seed, and steps as Gym did before version 0.26, or to an observation of another size."""

    def __init__(self, values: int = 5, size: int = 2) -> None:
        super().__init__()
        self._values, self._size = values, size

    def step(self, action: Any) -> Any:
        return self._draw.random(self._size, np.float32), 1.0, *[False] * (self._values - 3), {}
