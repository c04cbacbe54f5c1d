"""What is drawn from the inputs of an action distribution, and what a mask allows."""

from typing import Any

import numpy as np
import pytest

from app.distributions import ActionDistribution, MaskReader, MaskRefused, inputs_size
from app.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Tuple

DRAWS = 40_000
ARM = Box((2,), np.dtype(np.float32), np.array([-2.0, 0.0]), np.array([2.0, 10.0]))
FREE = Box((1,), np.dtype(np.float64), np.array([-np.inf]), np.array([1.0]))
DIALS = MultiDiscrete(np.array([[2, 3]]), np.array([[0, 5]]))


def drawn(space: Any, row: list[float], seed: int = 0, draws: int = DRAWS) -> Any:
    inputs = np.tile(np.array(row, np.float32), (draws, 1))
    return ActionDistribution(space).sampled(inputs, np.random.default_rng(seed))


def softmax(logits: list[float]) -> Any:
    powers = np.exp(np.array(logits) - max(logits))
    return powers / powers.sum()


def shares(actions: Any, first: int, count: int) -> Any:
    return np.bincount(actions - first, minlength=count) / len(actions)


def test_actions_of_a_discrete_space_are_drawn_by_the_softmax_of_their_logits() -> None:
    (actions,) = drawn(Discrete(3, start=-1), [0.5, -1.0, 2.0])
    np.testing.assert_allclose(shares(actions, -1, 3), softmax([0.5, -1.0, 2.0]), atol=0.01)


def test_each_element_of_a_multi_discrete_space_is_drawn_by_its_own_logits() -> None:
    (actions,) = drawn(DIALS, [0.0, 1.0, 2.0, 0.0, 1.0])
    assert actions.shape == (DRAWS, 1, 2)
    np.testing.assert_allclose(shares(actions[:, 0, 0], 0, 2), softmax([0, 1]), atol=0.01)
    np.testing.assert_allclose(shares(actions[:, 0, 1], 5, 3), softmax([2, 0, 1]), atol=0.01)
    assert abs(np.corrcoef(actions[:, 0, 0], actions[:, 0, 1])[0, 1]) < 0.02


def test_each_element_of_a_multi_binary_space_is_drawn_by_its_own_two_logits() -> None:
    (actions,) = drawn(MultiBinary((2,)), [0.0, 1.0, 3.0, 0.0])
    assert actions.dtype == np.int8
    np.testing.assert_allclose(actions.mean(axis=0), [softmax([0, 1])[1], softmax([3, 0])[1]], atol=0.01)


def test_actions_of_a_bounded_box_are_drawn_normally_then_unsquashed_and_clipped() -> None:
    (actions,) = drawn(ARM, [0.25, 0.0, -1.0, 1.0])
    assert actions.dtype == np.float32
    # (mean + 1) of 2 halves of the range; the spread likewise
    assert actions[:, 0].mean() == pytest.approx(0.5, abs=0.02)
    assert actions[:, 0].std() == pytest.approx(2 * np.exp(-1), abs=0.02)
    assert (actions[:, 1].min(), actions[:, 1].max()) == (0, 10)
    assert (actions[:, 1] == 0).mean() == pytest.approx(0.3564, abs=0.01)  # Phi(-1 / e)


def test_actions_of_a_box_without_a_bound_are_drawn_as_they_are() -> None:
    (actions,) = drawn(FREE, [3.0, 0.0])
    assert (actions.mean(), actions.std()) == (pytest.approx(3, abs=0.02), pytest.approx(1, abs=0.02))
    assert actions.max() > 1


def test_nested_actions_are_drawn_leaf_by_leaf() -> None:
    space = Dict({"arm": ARM, "gear": Tuple((Discrete(2, start=4), FREE))})
    actions = drawn(space, [0.0, 0.0, -20, -20, 0.0, 1.0, 7.0, -20])
    np.testing.assert_allclose(actions[0].mean(axis=0), [0, 5], atol=1e-5)
    np.testing.assert_allclose(shares(actions[1], 4, 2), softmax([0, 1]), atol=0.01)
    np.testing.assert_allclose(actions[2].mean(axis=0), [7], atol=1e-5)


def test_the_same_seed_draws_the_same_and_another_does_not() -> None:
    row = [0.1, 0.2, -1.0, 1.0]
    one, again, other = (drawn(ARM, row, seed, 8)[0] for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, again)
    assert (one != other).any()


@pytest.mark.parametrize(
    ("space", "size"), [(Discrete(4), 4), (DIALS, 5), (MultiBinary((2, 2)), 8), (ARM, 4), (Box((), ARM.dtype, ARM.low[0], ARM.high[0]), 2)]
)
def test_inputs_are_counted_by_the_leaf(space: Any, size: int) -> None:
    assert inputs_size(space) == size


@pytest.mark.parametrize("explores", [False, True])
def test_a_masked_action_is_never_chosen(explores: bool) -> None:
    masks = MaskReader(DIALS).batch([[[[0, 1], [0, 1, 1]]]] * 2000)
    inputs = np.where(masks, np.tile(np.array([50.0, 0, 50.0, 0, 0], np.float32), (2000, 1)), -np.inf)
    distribution = ActionDistribution(DIALS)
    (actions,) = distribution.sampled(inputs, np.random.default_rng(0)) if explores else distribution.greedy(inputs)
    assert set(actions[:, 0, 0].tolist()) == {1}
    assert set(actions[:, 0, 1].tolist()) == ({6, 7} if explores else {6})


@pytest.mark.parametrize(
    ("space", "sent", "pointer", "expected"),
    [
        (Discrete(2), [1], "", "must be a list of 2 items"),
        (Discrete(2), None, "", "must be a list of 2 items"),
        (Discrete(2), [1, 2], "/1", "must be 0 or 1"),
        (Discrete(2), [1, True], "/1", "must be 0 or 1"),
        (Discrete(2), [1, [1]], "/1", "must be 0 or 1"),
        (Discrete(2), [0, 0], "", "must allow at least one action"),
        (DIALS, [[1, 1]], "/0/0", "must be a list of 2 items"),
        (DIALS, [[[1, 0], [0, 0, 0]]], "/0/1", "must allow at least one action"),
        (ARM, [1, 1], None, "may stand only where the actions are Discrete or MultiDiscrete"),
        (Tuple((Discrete(2),)), [[1, 1]], None, "may stand only where the actions are Discrete or MultiDiscrete"),
    ],
)
def test_a_bad_mask_is_named_by_its_place(space: Any, sent: Any, pointer: str | None, expected: str) -> None:
    good: Any = [1, 1] if isinstance(space, Discrete) else [[[1, 1], [1, 1, 1]]]
    with pytest.raises(MaskRefused) as refused:
        MaskReader(space).batch([good, sent], "/masks")
    assert refused.value.pointer == ("/masks" if pointer is None else f"/masks/1{pointer}")
    assert expected in refused.value.detail
