"""What is served acts as RLlib would: small trainings of every kind of space, with an observation filter, with a state.

Each run is held to RLlib's own greedy answers before it publishes, and the environments refuse an action that is not theirs.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from unit.app.parity import WORLDS

from app.distributions import inputs_size
from app.policy import Policy, loaded_policy
from app.reader import ObservationReader
from app.spaces import as_json, leaves
from app.storage import Storage, file_uri, open_storage

ABORTED = "images in the wrong scale"
PUBLISHED = [name for name in WORLDS if name != ABORTED]


@dataclass(frozen=True)
class Parity:
    """All trainings of `parity.WORLDS`, by name, and where they published."""

    storage: Storage
    results: dict[str, dict[str, Any]]

    def policy(self, name: str) -> Policy:
        digest = self.results[name]["digest"]
        return loaded_policy(self.storage.bundles() / digest.removeprefix("sha256:"), digest)


@pytest.fixture(scope="module")
def parity(tmp_path_factory: pytest.TempPathFactory, said: Callable[..., Any]) -> Parity:
    storage = open_storage(file_uri(tmp_path_factory.mktemp("parity")))
    done = said("parity", storage.uri, *WORLDS, timeout_s=800)
    assert done.code == 0, done.stderr
    return Parity(storage, {name: result for line in done.lines for name, result in line.items()})


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_served_greedy_actions_equal_the_trainers(parity: Parity, name: str) -> None:
    """Loading replays what RLlib answered; here the actions are compared as clients get them."""
    policy = parity.policy(name)
    golden = policy.manifest["golden"]
    observations = ObservationReader(policy.observation_space).batch(golden["observations"])
    state = ObservationReader(policy.state_space).batch(golden["states"]) if policy.is_recurrent else None
    decision = policy.decide(observations, state)
    assert len(golden["observations"]) >= 4
    assert decision.action_dist_inputs.shape[1] == sum(inputs_size(leaf.space) for leaf in leaves(policy.action_space))
    for given, expected in zip(as_json(policy.action_space, decision.actions), golden["actions"], strict=True):
        for one, other in zip(flat(given), flat(expected), strict=True):
            assert one == pytest.approx(other, rel=1e-4, abs=1e-5)


def flat(value: Any) -> list[Any]:
    """The numbers of a JSON value."""
    if isinstance(value, dict):
        return flat(list(value.values()))
    return [number for item in value for number in flat(item)] if isinstance(value, list) else [value]


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_policy_was_played_in_its_environment(parity: Parity, name: str) -> None:
    evaluation = parity.results[name]["evaluation"]
    assert evaluation["episodes"] == 2
    assert np.isfinite(evaluation["mean"])


def test_a_policy_that_does_not_answer_as_the_trainer_is_not_published(parity: Parity) -> None:
    assert parity.results[ABORTED] == {"error": "ExportMismatch"}


@pytest.mark.parametrize("name", [name for name in PUBLISHED if "LSTM" in name])
def test_the_state_of_a_recurrent_policy_is_told_and_matters(parity: Parity, name: str) -> None:
    policy = parity.policy(name)
    assert policy.manifest["state"] == {"c": [16], "h": [16]}
    golden = policy.manifest["golden"]
    observations = ObservationReader(policy.observation_space).batch(golden["observations"])
    remembered = ObservationReader(policy.state_space).batch(golden["states"])
    assert not np.allclose(policy.decide(observations).action_dist_inputs, policy.decide(observations, remembered).action_dist_inputs)


def test_exploring_stays_within_the_spaces_of_the_actions(parity: Parity) -> None:
    policy = parity.policy("nested actions")
    golden = policy.manifest["golden"]["observations"] * 20
    decision = policy.decide(ObservationReader(policy.observation_space).batch(golden), explore=True, seed=1)
    gear, arm, grip, winch = decision.actions
    assert set(gear.tolist()) == {2, 3, 4}
    assert (arm.min(), arm.max()) == (-2, 5)
    assert set(grip.ravel().tolist()) == {0, 1}
    assert winch.dtype == np.float64
