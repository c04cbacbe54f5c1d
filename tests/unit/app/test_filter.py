"""What several env runners have seen, put together. RLlib is imported in a process of its own, where its warnings are no errors."""

import subprocess
import sys

PROGRAM = """
import numpy as np
from gymnasium import spaces
from app.training.filter import MergingMeanStdFilter, Moments

def moments(values):
    return Moments(len(values), values.mean(axis=0), ((values - values.mean(axis=0)) ** 2).sum(axis=0))

def same(one, other):
    return one.count == other.count and np.allclose(one.mean, other.mean) and np.allclose(one.squares, other.squares)

random = np.random.default_rng(0)
first, second = random.normal(1e4, 2, (50, 3)), random.normal(-3, 1, (70, 3))
both = np.concatenate([first, second])
assert same(moments(first) + moments(second), moments(both))
assert same(moments(both) - moments(first), moments(second))

def made():
    piece = MergingMeanStdFilter()  # the pipeline that it stands in tells it the spaces
    piece.input_action_space, piece.input_observation_space = spaces.Discrete(2), spaces.Box(-np.inf, np.inf, (3,))
    return piece

local, runners = made(), [made(), made()]
seen = []
for turn in range(3):
    for runner in runners:
        runner.get_state()
        for value in random.normal(1e4 * turn, 1, (20, 3)):
            seen.append(value)
            runner._filters[None](value)
    merged = local.merge_states([runner.get_state() for runner in runners])
    for runner in runners:
        runner.set_state(merged)
stats = runners[0]._filters[None].running_stats
assert stats.n == len(seen) == 120
np.testing.assert_allclose(stats.mean, np.mean(seen, axis=0))
np.testing.assert_allclose(stats.std, np.std(seen, axis=0, ddof=1), rtol=1e-4)
"""


def test_the_values_of_all_runners_count_once() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], check=False, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
