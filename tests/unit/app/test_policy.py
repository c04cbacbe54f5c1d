"""A policy over graphs made by hand: nested spaces, a state, exploring, masks, and the replay of its golden observations."""

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from app.bundle import Bundle, BundleRefused, published_bundle
from app.distributions import MaskReader
from app.policy import Decision, Policy, disagreements, loaded_policy
from app.reader import ObservationReader
from app.spaces import as_json, parsed_space
from app.storage import Storage

FLOAT, INT64 = TensorProto.FLOAT, TensorProto.INT64
BOX = {"type": "Box", "shape": [2], "dtype": "float32", "low": None, "high": None}
OBSERVATIONS = {"type": "Dict", "spaces": {"gear": {"type": "Discrete", "n": 3, "start": 0}, "speed": BOX}}
DIALS = {"type": "MultiDiscrete", "nvec": [2, 2], "start": [0, 3]}
ACTIONS = {"type": "Tuple", "spaces": [{"type": "Discrete", "n": 2, "start": 0}, {"type": "Box", **{**BOX, "shape": [1]}}]}


def info(name: str, kind: int, *shape: int) -> Any:
    return helper.make_tensor_value_info(name, kind, ["batch", *shape])


def graph(nodes: list[Any], inputs: list[Any], outputs: list[Any], **constants: Any) -> bytes:
    held = [numpy_helper.from_array(np.array(value), name) for name, value in constants.items()]
    model = helper.make_model(
        helper.make_graph(nodes, "made by hand", inputs, outputs, held), opset_imports=[helper.make_opsetid("", 20)], ir_version=9
    )
    onnx.checker.check_model(model)
    return model.SerializeToString()


def nested_model() -> bytes:
    """The inputs are the speed, then the gear, then 0; the greedy action is taken from them as the contract says."""
    nodes = [
        helper.make_node("Cast", ["observation/0"], ["gear"], to=FLOAT),
        helper.make_node("Unsqueeze", ["gear", "axis"], ["column"]),
        helper.make_node("Mul", ["column", "nothing"], ["zero"]),
        helper.make_node("Concat", ["observation/1", "column", "zero"], ["action_dist_inputs"], axis=1),
        helper.make_node("ArgMax", ["observation/1"], ["action/0"], axis=1, keepdims=0),
        helper.make_node("Identity", ["column"], ["action/1"]),
    ]
    inputs = [info("observation/0", INT64), info("observation/1", FLOAT, 2)]
    outputs = [info("action/0", INT64), info("action/1", FLOAT, 1), info("action_dist_inputs", FLOAT, 4)]
    return graph(nodes, inputs, outputs, axis=np.array([1]), nothing=np.array([0.0], np.float32))


def counting_model() -> bytes:
    """A state that adds up what is observed; the logits are the state."""
    nodes = [
        helper.make_node("Add", ["observation", "state/sum"], ["state_out/sum"]),
        helper.make_node("Identity", ["state_out/sum"], ["action_dist_inputs"]),
        helper.make_node("ArgMax", ["state_out/sum"], ["action"], axis=1, keepdims=0),
    ]
    inputs = [info("observation", FLOAT, 2), info("state/sum", FLOAT, 2)]
    outputs = [info("action", INT64), info("action_dist_inputs", FLOAT, 2), info("state_out/sum", FLOAT, 2)]
    return graph(nodes, inputs, outputs)


def dials_model() -> bytes:
    """The inputs are the observation, twice; the graph's own greedy action is left out of the question."""
    nodes = [
        helper.make_node("Concat", ["observation", "observation"], ["action_dist_inputs"], axis=1),
        helper.make_node("Cast", ["observation"], ["action"], to=INT64),
    ]
    return graph(nodes, [info("observation", FLOAT, 2)], [info("action", INT64, 2), info("action_dist_inputs", FLOAT, 4)])


NESTED = {"observationSpace": OBSERVATIONS, "actionSpace": ACTIONS, "state": {}}
COUNTING = {"observationSpace": BOX, "actionSpace": {"type": "Discrete", "n": 2, "start": 0}, "state": {"sum": [2]}}


def nested() -> Policy:
    return Policy(Bundle("", NESTED, nested_model()))


def counting() -> Policy:
    return Policy(Bundle("", COUNTING, counting_model()))


def sent(*observations: Any) -> Any:
    return ObservationReader(parsed_space(OBSERVATIONS)).batch(observations)


def test_a_nested_observation_gets_a_nested_action() -> None:
    policy = nested()
    observations = sent({"gear": 2, "speed": [1, 0]}, {"gear": 0, "speed": [0, 1]})
    assert as_json(policy.action_space, policy.act(observations)) == [[0, [2.0]], [1, [0.0]]]
    decision = policy.decide(observations)
    assert decision.action_dist_inputs.tolist() == [[1, 0, 2, 0], [0, 1, 0, 0]]
    assert decision.state == ()


def test_exploring_draws_from_the_inputs_and_a_seed_repeats_it() -> None:
    policy, observations = nested(), sent(*[{"gear": 1, "speed": [0, 1]}] * 4000)
    one, again, other = (policy.decide(observations, explore=True, seed=seed).actions for seed in (7, 7, 8))
    for first, second, third in zip(one, again, other, strict=True):
        np.testing.assert_array_equal(first, second)
        assert (first != third).any()
    assert one[0].mean() == pytest.approx(np.e / (1 + np.e), abs=0.03)
    assert (one[1].mean(), one[1].std()) == (pytest.approx(1, abs=0.06), pytest.approx(1, abs=0.06))


def test_without_a_seed_each_draw_is_new() -> None:
    policy, observations = nested(), sent({"gear": 1, "speed": [0, 1]})
    assert len({float(policy.decide(observations, explore=True).actions[1][0, 0]) for _ in range(5)}) == 5


def test_a_state_goes_in_and_comes_out_and_an_episode_begins_with_zeros() -> None:
    policy, one = counting(), (np.array([[1, 0]], np.float32),)
    first = policy.decide(one)
    second = policy.decide((np.array([[0, 3]], np.float32),), first.state)
    assert (first.state[0].tolist(), second.state[0].tolist()) == ([[1, 0]], [[1, 3]])
    assert (first.actions[0].tolist(), second.actions[0].tolist()) == ([0], [1])
    assert policy.act(one)[0].tolist() == [0]
    assert as_json(policy.state_space, second.state) == [{"sum": [1, 3]}]


@pytest.mark.parametrize("explores", [False, True])
def test_a_masked_action_is_never_chosen(explores: bool) -> None:
    policy = Policy(Bundle("", {"observationSpace": BOX, "actionSpace": DIALS}, dials_model()))
    masks = MaskReader(policy.action_space).batch([[[0, 1], [1, 0]]] * 500)
    observations = (np.tile(np.array([9, 0], np.float32), (500, 1)),)
    (actions,) = policy.decide(observations, masks=masks, explore=explores, seed=0).actions
    assert set(map(tuple, actions.tolist())) == {(1, 3)}
    (unmasked,) = policy.decide(observations, explore=True, seed=0).actions
    assert {tuple(action) for action in unmasked.tolist()} > {(0, 3)}


def loaded(storage: Storage, digest: str) -> Policy:
    return loaded_policy(storage.bundles() / digest.removeprefix("sha256:"), digest)


NESTED_GOLDEN = {
    "observations": [{"gear": 2, "speed": [1.0, 0.0]}],
    "actions": [[0, [2.0]]],
    "actionDistInputs": [[1.0, 0.0, 2.0, 0.0]],
}
COUNTING_GOLDEN = {
    "observations": [[1.0, 0.0], [0.0, 3.0]],
    "actions": [0, 1],
    "actionDistInputs": [[1.0, 0.0], [1.0, 3.0]],
    "states": [{"sum": [0.0, 0.0]}, {"sum": [1.0, 0.0]}],
    "statesOut": [{"sum": [1.0, 0.0]}, {"sum": [1.0, 3.0]}],
}


@pytest.mark.parametrize(
    ("facts", "model", "golden"), [(NESTED, nested_model(), NESTED_GOLDEN), (COUNTING, counting_model(), COUNTING_GOLDEN)], ids=str
)
def test_golden_observations_are_replayed_whatever_their_space_and_state(
    storage: Storage, facts: dict[str, Any], model: bytes, golden: dict[str, Any]
) -> None:
    digest = published_bundle(storage, {**facts, "golden": golden}, model)
    assert loaded(storage, digest).digest == digest


@pytest.mark.parametrize(
    ("golden", "reason"),
    [
        ({**COUNTING_GOLDEN, "statesOut": [{"sum": [1.0, 0.0]}, {"sum": [1.0, 3.1]}]}, "GoldenMismatch"),
        ({**COUNTING_GOLDEN, "actions": [0, 0]}, "GoldenMismatch"),
        ({**COUNTING_GOLDEN, "states": [{"other": [0.0, 0.0]}] * 2}, "InvalidModel"),
        ({**COUNTING_GOLDEN, "observations": [[1.0], [0.0]]}, "InvalidModel"),
        ({key: COUNTING_GOLDEN[key] for key in ("observations", "actions", "actionDistInputs")}, "InvalidModel"),
    ],
    ids=str,
)
def test_a_golden_record_that_is_not_true_is_refused(storage: Storage, golden: dict[str, Any], reason: str) -> None:
    with pytest.raises(BundleRefused) as refused:
        loaded(storage, published_bundle(storage, {**COUNTING, "golden": golden}, counting_model()))
    assert refused.value.reason == reason


@pytest.mark.parametrize(
    ("logits", "actions", "differing"),
    [
        ([2.0, 0.0, 0.0, 1.0], [0, 4], 0),
        ([2.0, 0.0, 0.0, 1.0], [1, 4], 1),
        ([2.0, 1.9999, 0.0, 1.0], [1, 4], 0),
        ([2.0, 1.9999, 0.0, 1.0], [1, 3], 1),
    ],
)
def test_a_close_call_counts_for_its_own_element_only(logits: list[float], actions: list[int], differing: int) -> None:
    inputs = np.array([logits], np.float32)
    expected = Decision((np.array([[0, 4]]),), inputs)
    assert disagreements(parsed_space(DIALS), expected, Decision((np.array([actions]),), inputs)) == differing


def test_answers_of_another_shape_differ_for_every_observation() -> None:
    inputs = np.zeros((3, 4), np.float32)
    expected = Decision((np.zeros((3, 2), np.int64),), inputs)
    assert disagreements(parsed_space(DIALS), expected, Decision((np.zeros(3, np.int64),), inputs)) == 3
