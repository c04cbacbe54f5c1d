"""What RLlib is given of an observation and what an environment is given of RLlib's actions, held to Gymnasium's own flattening."""

from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from app.encoding import Encoding
from app.environments import spaces_of
from app.errors import InputError
from app.spaces import Discrete, assembled, batched

ACTIONS = spaces.Discrete(2)
OBSERVATIONS = {
    "Box": spaces.Box(-5, 5, (2, 3), np.float64),
    "scalar": spaces.Box(-5, 5, (), np.float32),
    "integers": spaces.Box(0, 9, (4,), np.int16),
    "Discrete": spaces.Discrete(5, start=-2),
    "MultiDiscrete": spaces.MultiDiscrete([2, 3, 1]),
    "MultiBinary": spaces.MultiBinary([2, 2]),
    "Tuple": spaces.Tuple((spaces.Discrete(3), spaces.Box(0, 1, (2,), np.float32), spaces.MultiBinary(2))),
    "Dict": spaces.Dict({"b": spaces.Tuple((spaces.Discrete(2), spaces.Discrete(3))), "a": spaces.Box(0, 255, (2, 2), np.uint8)}),
}


class Made(gymnasium.Env[Any, Any]):
    """An environment that has spaces, and notes what it is given."""

    def __init__(self, observation: Any, action: Any = ACTIONS) -> None:
        self.observation_space, self.action_space = observation, action
        observation.seed(0)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        return self.observation_space.sample(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action), action
        self.given = action
        return self.observation_space.sample(), 0.0, False, False, {}


def encoding(observation: Any = ACTIONS, action: Any = ACTIONS) -> Encoding:
    return Encoding(*spaces_of(Made(observation, action)))


@pytest.mark.parametrize("space", OBSERVATIONS.values(), ids=OBSERVATIONS)
def test_observations_are_flattened_as_gymnasium_does(space: Any) -> None:
    space.seed(0)
    found = encoding(space)
    values = [space.sample() for _ in range(20)]
    expected = np.stack([spaces.flatten(space, value) for value in values]).astype(np.float32)
    seen = found.seen(batched(found.observation_space, values))
    assert seen.dtype == np.float32
    np.testing.assert_array_equal(seen, expected.reshape(20, -1))
    assert seen.shape[1:] == found.seen_space.shape
    assert all(found.seen_space.contains(row) for row in seen)


@pytest.mark.parametrize(
    ("name", "pointers"),
    [
        ("Box", ["/0/0", "/0/1", "/0/2", "/1/0", "/1/1", "/1/2"]),
        ("scalar", [""]),
        ("MultiDiscrete", ["/0", "/0", "/1", "/1", "/1", "/2"]),
        ("Tuple", ["/0", "/0", "/0", "/1/0", "/1/1", "/2/0", "/2/1"]),
        ("Dict", ["/a/0/0", "/a/0/1", "/a/1/0", "/a/1/1", "/b/0", "/b/0", "/b/1", "/b/1", "/b/1"]),
    ],
)
def test_a_number_of_a_flat_observation_is_found_again_in_the_whole(name: str, pointers: list[str]) -> None:
    found = encoding(OBSERVATIONS[name])
    assert [found.pointer(index) for index in range(found.seen_space.shape[0])] == pointers


def test_a_multi_discrete_that_begins_elsewhere_is_one_hot_from_there() -> None:
    found = encoding(spaces.MultiDiscrete([[2, 3]], start=[[7, -1]]))
    assert found.seen((np.array([[[8, -1]], [[7, 1]]]),)).tolist() == [[0, 1, 1, 0, 0], [1, 0, 0, 0, 1]]


@pytest.mark.parametrize(
    ("shape", "dtype", "seen"),
    [
        ((42, 42, 3), np.uint8, (42, 42, 3)),
        ((84, 84, 4), np.uint8, (84, 84, 4)),
        ((4, 84, 84), np.uint8, (84, 84, 4)),
        ((1, 20, 24), np.uint8, (20, 24, 1)),
        ((8, 8, 1), np.uint8, (8, 8, 1)),
        ((7, 42, 3), np.uint8, (7 * 42 * 3,)),
        ((42, 42, 40), np.uint8, (42 * 42 * 40,)),
        ((42, 42, 3), np.float32, (42 * 42 * 3,)),
        ((42, 42), np.uint8, (42 * 42,)),
    ],
)
def test_pictures_go_to_the_convolutions_and_all_else_is_flat(shape: tuple[int, ...], dtype: Any, seen: tuple[int, ...]) -> None:
    found = encoding(spaces.Box(0, 255, shape, dtype))
    assert found.seen_space.shape == seen
    if found.is_image:
        bright = found.seen((np.full((1, *shape), 255, dtype),))
        assert bright.shape == (1, *seen)
        assert (bright.min(), bright.max()) == (1, 1)


def test_channels_that_come_first_are_moved_to_the_end() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 4, 20, 24), dtype=np.uint8)
    seen = encoding(spaces.Box(0, 255, (4, 20, 24), np.uint8)).seen((pixels,))
    np.testing.assert_allclose(seen[1, :, :, 2], pixels[1, 2] / 255, rtol=1e-6)


@pytest.mark.parametrize(("side", "layers"), [(8, 1), (16, 2), (42, 4), (64, 4), (84, 5), (1000, 5)])
def test_a_picture_is_halved_until_it_is_small(side: int, layers: int) -> None:
    filters = encoding(spaces.Box(0, 255, (side, side, 3), np.uint8)).conv_filters
    assert [(kernel, stride) for _, kernel, stride in filters] == [(4, 2)] * layers


@pytest.mark.parametrize(
    ("action", "trained", "expected"),
    [
        (spaces.Discrete(3, start=2), 1, 3),
        (spaces.MultiDiscrete([[2, 3]], start=[[5, -1]]), np.array([1, 0]), np.array([[6, -1]])),
        (spaces.MultiBinary([1, 2]), np.array([1, 0]), np.array([[1, 0]])),
        (spaces.Box(-1, 1, (1, 2), np.float32), np.array([0.5, -1], np.float32), np.array([[0.5, -1]])),
        (spaces.Box(-1, 1, (), np.float16), np.array([0.5], np.float32), np.array(0.5)),
    ],
)
@pytest.mark.parametrize("is_nested", [False, True])
def test_an_environment_is_given_actions_of_its_own_space(action: Any, trained: Any, expected: Any, is_nested: bool) -> None:
    one = Made(ACTIONS, spaces.Dict({"a": spaces.Tuple((action,))}) if is_nested else action)
    found = Encoding(*spaces_of(one))
    adapted = found.adapted(one)
    sent = (trained,) if is_nested else trained
    assert adapted.action_space.contains(sent)
    adapted.step(sent)
    given = one.given["a"][0] if is_nested else one.given
    np.testing.assert_array_equal(given, expected)


def test_what_rllib_takes_as_it_is_is_left_alone() -> None:
    one = Made(spaces.Box(-1, 1, (3,), np.float32))
    assert Encoding(*spaces_of(one)).adapted(one) is one


def test_a_vector_environment_is_adapted_as_a_single_one() -> None:
    def made() -> Made:
        return Made(OBSERVATIONS["Dict"], spaces.Dict({"gear": spaces.Discrete(2, start=3), "lamps": spaces.MultiBinary(2)}))

    many = gymnasium.vector.SyncVectorEnv([made, made])
    found = Encoding(*spaces_of(made()))
    adapted = found.adapted_vector(many)
    seen, _ = adapted.reset(seed=0)
    assert seen.shape == (2, *found.seen_space.shape)
    adapted.step((np.array([0, 1]), np.array([[0, 1], [1, 0]])))
    assert [one.unwrapped.given["gear"] for one in many.envs] == [3, 4]
    assert many.envs[1].unwrapped.given["lamps"].tolist() == [1, 0]


@pytest.mark.parametrize(
    ("observation", "action", "said"),
    [
        (spaces.Text(3), ACTIONS, "the observation space is Text"),
        (spaces.Dict({"a": spaces.Tuple((ACTIONS, spaces.Sequence(ACTIONS)))}), ACTIONS, "the observation space at /a/1 is Sequence"),
        (spaces.Graph(ACTIONS, None), ACTIONS, "the observation space is Graph"),
        (ACTIONS, spaces.OneOf((ACTIONS, ACTIONS)), "the action space is OneOf"),
        (ACTIONS, spaces.Tuple((spaces.Box(0, 3, (2,), np.int64),)), "the action space at /0 is Box of int64"),
        (spaces.Discrete(300_000), ACTIONS, "the observation space has 300000 numbers"),
        (spaces.Dict({}), ACTIONS, "the observation space is Dict"),
        (spaces.Tuple(()), ACTIONS, "the observation space is Tuple"),
    ],
)
def test_a_space_without_a_fixed_size_is_refused_by_its_place(observation: Any, action: Any, said: str) -> None:
    with pytest.raises(InputError) as refused:
        spaces_of(Made(observation, action))
    assert refused.value.reason == "UnsupportedSpace"
    assert refused.value.message.startswith(f"spec.environment: {said}")


def test_the_keys_of_a_dict_are_sorted_whatever_their_order_in_the_environment() -> None:
    made = spaces.Dict({})
    made.spaces = {"b": spaces.Discrete(2), "a": spaces.Discrete(3)}
    found, _ = spaces_of(Made(made))
    assert assembled(found, [1, 0]) == {"a": 1, "b": 0}
    assert isinstance(found.spaces["a"], Discrete)  # type: ignore[union-attr]
