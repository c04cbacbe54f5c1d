"""When an environment is solved, for every trainer alike: 20 fixed greedy episodes average so much. Runs in each trainer's own Python."""

import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np

EPISODES, FIRST_SEED = 20, 50_000
CHECK_EVERY = 1000
# The mean return to be reached, and the steps after which nobody will reach it any more.
GOALS = {"CartPole-v1": (475.0, 200_000), "Acrobot-v1": (-85.0, 1_000_000), "LunarLander-v3": (200.0, 2_000_000)}


class Solved(Exception):
    """The policy is good enough, or will not be."""


class Watch:
    """Counts the time from the start of the process on, without that of its own episodes, and says what came out.

    `BENCHMARK_BEGAN` is the time (`time.time()`) at which the process was asked for.
    """

    def __init__(self) -> None:
        self._goal, self._most_steps = GOALS[environment()]
        self._environments = [gymnasium.make(environment()) for _ in range(EPISODES)]
        self._ready = 0.0
        self._checking_s = 0.0
        self._checked_steps = 0

    def start(self) -> None:
        """The first step of the training follows."""
        self._ready = time.time()

    def look(self, env_steps: int, act: Callable[[Any], Any]) -> None:
        """Plays the episodes, if enough steps were done since the last time.

        Args:
            env_steps: done so far.
            act: greedy actions, int of shape (batch,), for observations, float32 of shape (batch, size).

        Raises:
            Solved: nothing more is to be done.
        """
        if env_steps - self._checked_steps < CHECK_EVERY:
            return
        self._checked_steps = env_steps
        began = time.time()
        mean = self._mean_return(act)
        self._checking_s += time.time() - began
        if mean < self._goal and env_steps < self._most_steps:
            return
        train_s = time.time() - self._ready - self._checking_s
        startup_s = self._ready - float(os.environ["BENCHMARK_BEGAN"])
        print(json.dumps({"startup_s": startup_s, "train_s": train_s, "env_steps": env_steps, "solved": mean >= self._goal}), flush=True)
        raise Solved

    def _mean_return(self, act: Callable[[Any], Any]) -> float:
        observations = np.stack([one.reset(seed=FIRST_SEED + i)[0] for i, one in enumerate(self._environments)])
        live, total = list(range(EPISODES)), 0.0
        while live:
            actions = np.asarray(act(observations[live]))
            ended = set()
            for row, index in enumerate(live):
                observations[index], reward, terminated, truncated, _ = self._environments[index].step(int(actions[row]))
                total += float(reward)
                if terminated or truncated:
                    ended.add(index)
            live = [index for index in live if index not in ended]
        return total / EPISODES


def environment() -> str:
    """What is trained in."""
    return sys.argv[2]


def seed() -> int:
    """The seed of this training."""
    return int(sys.argv[1])
