"""The env runner and the Learner of ours, beside RLlib's own. The programs are in sampled.py."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from app.encoding import Encoding
from app.environments import Environment
from app.spaces import Dict, Discrete, MultiBinary, Space, Tuple
from app.storage import Storage
from app.training.settings import parsed_settings
from app.training.trainer import TrainingTask

HERE = Path(__file__).parent


IN_ONE_PROCESS = (
    "fragments_hold_what_the_environments_did",
    "advantages_are_those_of_rllib",
    "a_scale_of_rewards_meets_the_learner_alone",
    "a_step_is_that_of_rllib",
    "no_step_is_made_by_a_gradient_that_is_no_number",
    "every_step_is_learnt_from_in_every_epoch",
    "a_filter_has_seen_every_observation_once",
    "environments_are_divided_among_the_workers",
    "an_observation_that_is_no_number_is_named_whatever_samples",
    "a_training_without_workers_starts_no_ray",
)


def wrong(*programs: str) -> dict[str, str]:
    """What went wrong in some programs, by name."""
    variables = {**os.environ, "PYTHONPATH": f"{HERE.parents[2]}:{HERE}"}
    command = [sys.executable, str(HERE / "sampled.py"), *programs]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=120, env=variables)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout.splitlines()[-1]))


@pytest.fixture(scope="module")
def wrong_in_one_process() -> dict[str, str]:
    return wrong(*IN_ONE_PROCESS)


@pytest.mark.parametrize("program", IN_ONE_PROCESS)
def test_in_arrays(program: str, wrong_in_one_process: dict[str, str]) -> None:
    assert program not in wrong_in_one_process, wrong_in_one_process[program]


@pytest.mark.full
def test_runners_in_other_processes_sample_so_too() -> None:
    assert wrong("runners_in_other_processes_sample_so_too") == {}


@pytest.mark.full
def test_what_an_environment_raises_in_another_process_is_told() -> None:
    assert wrong("what_an_environment_raises_in_another_process_is_told") == {}


@pytest.mark.full
def test_a_runner_that_is_killed_is_made_anew_and_nothing_is_told_of_the_time_without_it() -> None:
    assert wrong("a_runner_that_is_killed_is_made_anew_and_nothing_is_told_of_the_time_without_it") == {}


@pytest.mark.parametrize(
    ("action_space", "config", "is_so"),
    [
        (Discrete(2, 0), {}, True),
        (MultiBinary((2, 3)), {"observationFilter": "MeanStd"}, True),
        (Discrete(2, 0), {"useLstm": True}, False),
        (Tuple((Discrete(2, 0),)), {}, False),
        (Dict({"one": Discrete(2, 0)}), {}, False),
    ],
)
def test_a_network_without_state_and_actions_of_one_leaf_sample_in_arrays(action_space: Space, config: dict[str, Any], is_so: bool) -> None:
    task = TrainingTask(Environment("", "some:Thing", {}), Encoding(Discrete(5, 0), action_space), parsed_settings(config), 0, 0)
    assert task.samples_in_arrays is is_so


def test_a_training_with_the_same_seed_gives_the_same_policy(cartpole: Any, storage: Storage, trained: Callable[..., Any]) -> None:
    again = trained(storage, {"id": "CartPole-v1"})
    assert again.last["result"]["digest"] == cartpole.said.last["result"]["digest"]
