"""Units that an environment tells, from its class to the spec of the policy."""

from typing import Any

import gymnasium
import numpy as np
import pytest
from fakes.policies import BOX, linear_model
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec

from app.bundle import Bundle
from app.environments import Environment, checked_interface
from app.errors import InputError
from app.policy import Policy
from app.serving.acting import Serving
from app.serving.description import Description

CART = {"observation": {"/0": "m", "/1": "m/s", "/2": "rad", "/3": "rad/s"}, "action": {"": "push"}}


class Arm(gymnasium.Env[Any, Any]):
    """Tells what its parts are measured in."""

    observation_space = spaces.Dict({"tip": spaces.Box(-1, 1, (2, 3)), "a/b": spaces.Tuple((spaces.Discrete(3), spaces.MultiBinary(2)))})
    action_space = spaces.Box(-1, 1, (2,))


def interface(units: Any, monkeypatch: pytest.MonkeyPatch) -> dict[str, dict[str, str]]:
    monkeypatch.setattr(Arm, "metadata", {"render_modes": []} | ({} if units is None else {"units": units}))
    monkeypatch.setitem(gymnasium.registry, "Arm-v0", EnvSpec("Arm-v0", entry_point=Arm))
    return checked_interface(Environment("Arm-v0", "", {}))[2]


@pytest.mark.parametrize(
    "units",
    [
        {},
        {"observation": {"/tip": "m", "/a~1b/0": "gear", "/a~1b/1/1": "on"}},
        {"observation": {"": "cm"}, "action": {"/0": "N m", "/1": "N m"}},
        {"observation": {"/tip/1": "m", "/tip/0/2": "rad"}},
    ],
)
def test_an_environment_tells_units_in_its_metadata(units: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    assert interface(units, monkeypatch) == units


def test_one_that_tells_none_adds_nothing_to_its_manifest(monkeypatch: pytest.MonkeyPatch) -> None:
    assert interface(None, monkeypatch) == {}
    assert interface({"observation": {}, "action": {}}, monkeypatch) == {}


@pytest.mark.parametrize(
    ("units", "named"),
    [
        ("m", "must be an object"),
        ({"reward": {"": "EUR"}}, "observation and action"),
        ({"observation": ["m"]}, "by JSON pointer"),
        ({"observation": {"/tip": 1}}, "'/tip'"),
        ({"observation": {"/tip": ""}}, "'/tip'"),
        ({"observation": {"/tip": "m" * 33}}, "1 to 32"),
        ({"observation": {"/elbow": "m"}}, "'/elbow'"),
        ({"observation": {"tip": "m"}}, "'tip'"),
        ({"observation": {"/tip/2": "m"}}, "'/tip/2'"),
        ({"observation": {"/tip/0/0/0": "m"}}, "'/tip/0/0/0'"),
        ({"observation": {"/a~1b/2": "m"}}, "'/a~1b/2'"),
        ({"action": {"/00": "m"}}, "'/00'"),
        ({"action": {3: "m"}}, "3"),
    ],
)
def test_units_of_nothing_are_refused_before_the_training(units: Any, named: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="metadata") as caught:
        interface(units, monkeypatch)
    assert caught.value.reason == "InvalidEnvironment"
    assert named in caught.value.message


def description(**more: Any) -> Description:
    weights = np.ones((4, 2), np.float32)
    golden = {"observations": [[0.0, 0.0, 0.0, 0.0]], "actions": [0], "actionDistInputs": [[0.0, 0.0]]}
    discrete = {"type": "Discrete", "n": 2, "start": 0}
    manifest = {"observationSpace": BOX, "actionSpace": discrete, "golden": golden, **more}
    return Description("cartpole", "/cartpole", Serving(Policy(Bundle("sha256:" + "0" * 64, manifest, linear_model(weights))), 1))


def test_the_schema_of_the_spec_names_the_units() -> None:
    spec = description(units=CART).spec()
    assert spec["observation"]["x-units"] == CART["observation"]
    assert spec["action"]["x-units"] == {"": "push"}


def test_a_bundle_without_units_is_described_as_before() -> None:
    spec = description().spec()
    assert "x-units" not in spec["observation"]
    assert "x-units" not in spec["action"]
