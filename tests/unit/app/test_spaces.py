"""What clients may send for a space: read as the space says, refused by the place of the bad part."""

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.reader import ObservationReader, ObservationRefused
from app.spaces import (
    Arrays,
    Box,
    Dict,
    Discrete,
    MultiBinary,
    MultiDiscrete,
    Space,
    Tuple,
    as_json,
    assembled,
    batched,
    described_space,
    leaf_values,
    leaves,
    parsed_space,
)

CAMERA = {"type": "Box", "shape": [2, 2], "dtype": "uint8", "low": 0.0, "high": 255.0}
SPEED = {"type": "Box", "shape": [2], "dtype": "float32", "low": [None, -1.5], "high": None}
GEAR = {"type": "Discrete", "n": 3, "start": -1}
DIALS = {"type": "MultiDiscrete", "nvec": [[2, 3], [4, 1]], "start": [[0, -1], [5, 0]]}
LAMPS = {"type": "MultiBinary", "shape": [3]}
CAR = {
    "type": "Dict",
    "spaces": {"a/b~c": LAMPS, "camera": {"type": "Tuple", "spaces": [CAMERA, GEAR]}, "dials": DIALS, "speed": SPEED},
}
SENT = {"camera": [[[0, 255], [1, 2]], -1], "dials": [[1, 1], [8, 0]], "a/b~c": [0, 1, 1], "speed": [1e9, -1.5]}


def edited(path: str, value: Any) -> Any:
    """SENT with one part changed; the last key is added where it is not there."""
    found = json.loads(json.dumps(SENT))
    *parents, last = [int(key) if key.isdigit() else key for key in path.split(">")]
    node = found
    for key in parents:
        node = node[key]
    node[last] = value
    return found


SCALAR = {"type": "Box", "shape": [], "dtype": "float64", "low": -1.0, "high": 1.0}


@pytest.mark.parametrize("described", [CAMERA, SPEED, SCALAR, GEAR, DIALS, LAMPS, CAR, {"type": "Tuple", "spaces": [CAR, GEAR]}])
def test_a_space_is_described_as_it_was_read(described: dict[str, Any]) -> None:
    assert described_space(parsed_space(described)) == described


@pytest.mark.parametrize(
    "described",
    [
        None,
        {},
        {"type": "Dict"},
        {"type": "Discrete", "n": 0, "start": 0},
        {"type": "Discrete", "n": "3", "start": 0},
        {"type": "Box", "shape": [2]},
        {"type": "MultiDiscrete", "nvec": [2, 2], "start": [0]},
        {"type": "MultiDiscrete", "nvec": [0], "start": [0]},
        {"type": "Tuple", "spaces": [{"type": "Text"}]},
        {"type": "Dict", "spaces": [LAMPS]},
    ],
)
def test_an_unknown_space_is_refused(described: Any) -> None:
    with pytest.raises(ValueError, match="space"):
        parsed_space(described)


def test_the_leaves_stand_in_the_order_of_their_keys_whatever_the_order_of_the_description() -> None:
    reverse = {"type": "Dict", "spaces": dict(reversed(CAR["spaces"].items()))}  # type: ignore[attr-defined]
    for described in (CAR, reverse):
        pointers = [leaf.pointer for leaf in leaves(parsed_space(described))]
        assert pointers == ["/a~1b~0c", "/camera/0", "/camera/1", "/dials", "/speed"]


def test_a_nested_observation_becomes_one_array_a_leaf_in_its_own_dtype() -> None:
    arrays = ObservationReader(parsed_space(CAR)).batch([SENT, SENT])
    assert [(array.shape, str(array.dtype)) for array in arrays] == [
        ((2, 3), "int8"),
        ((2, 2, 2), "uint8"),
        ((2,), "int64"),
        ((2, 2, 2), "int64"),
        ((2, 2), "float32"),
    ]
    assert as_json(parsed_space(CAR), arrays) == [SENT, SENT]


@pytest.mark.parametrize(
    ("sent", "pointer", "expected"),
    [
        ([SENT], "", "must be an object with the keys a/b~c, camera, dials, speed"),
        (None, "", "must be an object"),
        ({key: SENT[key] for key in ("camera", "dials", "speed")}, "/a~1b~0c", "is missing"),
        (edited("secret", 1), "", "must have no other keys than a/b~c, camera, dials, speed"),
        (edited("camera", {}), "/camera", "must be a list of 2 items"),
        (edited("camera", [1]), "/camera", "must be a list of 2 items"),
        (edited("camera>0>1", [1]), "/camera/0/1", "must be a list of 2 items"),
        (edited("camera>0>1>0", 256), "/camera/0/1/0", "must be an integer of type uint8"),
        (edited("camera>0>1>0", 0.5), "/camera/0/1/0", "must be an integer of type uint8"),
        (edited("camera>1", 2), "/camera/1", "must be an integer from -1 to 1"),
        (edited("camera>1", True), "/camera/1", "must be a number"),
        (edited("camera>1", "secret"), "/camera/1", "must be a number"),
        (edited("camera>1", float("nan")), "/camera/1", "must be an integer from -1 to 1"),
        (edited("camera>1", 10**400), "/camera/1", "must be an integer from -1 to 1"),
        (edited("dials>1>0", 9), "/dials/1/0", "must be an integer from 5 to 8"),
        (edited("dials>0>1", 0.5), "/dials/0/1", "must be an integer from -1 to 1"),
        (edited("a/b~c>2", 2), "/a~1b~0c/2", "must be an integer from 0 to 1"),
        (edited("speed>0", float("inf")), "/speed/0", "must be a finite number of type float32"),
    ],
)
def test_the_bad_part_is_named_by_its_place_and_not_echoed(sent: Any, pointer: str, expected: str) -> None:
    reader = ObservationReader(parsed_space(CAR))
    for batch, numbered, place in (([sent], False, "/observation"), ([SENT, sent], True, "/observations/1")):
        with pytest.raises(ObservationRefused) as refused:
            reader.batch(batch, place.removesuffix("/1"), numbered)
        assert refused.value.pointer == place + pointer
        assert expected in refused.value.detail
        assert "secret" not in refused.value.pointer + refused.value.detail


def test_each_observation_outside_any_bound_counts_once() -> None:
    low, high = np.array(-1.0), np.array(1.0)
    one = Box((2,), np.dtype(np.float32), np.broadcast_to(low, (2,)), np.broadcast_to(high, (2,)))
    reader = ObservationReader(Tuple((one, Discrete(2), one)))
    rows = [[[0, 0], 1, [0, 0]], [[2, 2], 1, [-2, 0]], [[0, 0], 0, [0, 1.5]], [[1, -1], 0, [0, 0]]]
    assert reader.out_of_bounds(reader.batch(rows)) == 2


@pytest.mark.parametrize("dtype", ["int8", "uint16", "int32", "uint32", "int64", "uint64", "float16", "float32", "float64", "bool"])
def test_every_dtype_of_a_box_takes_what_it_can_hold_and_nothing_beyond(dtype: str) -> None:
    reader = ObservationReader(parsed_space({"type": "Box", "shape": [], "dtype": dtype, "low": None, "high": None}))
    kind = np.dtype(dtype)
    most = 1 if kind.kind == "b" else (np.finfo(kind).max if kind.kind == "f" else np.iinfo(kind).max)
    for taken in (0, 1):
        assert reader.batch([taken])[0].dtype == kind
    for beyond in (2 * int(most) + 2, -2 * int(most) - 2):
        with pytest.raises(ObservationRefused, match=f"of type {dtype}"):
            reader.batch([beyond])


def test_an_integer_of_64_bits_that_is_just_too_large_is_refused() -> None:
    reader = ObservationReader(parsed_space({"type": "Box", "shape": [], "dtype": "int64", "low": None, "high": None}))
    with pytest.raises(ObservationRefused):
        reader.batch([2**63])
    assert reader.batch([-(2**63)])[0].tolist() == [-(2**63)]


def test_actions_of_bool_are_given_as_0_and_1() -> None:
    space = parsed_space({"type": "Box", "shape": [2], "dtype": "bool", "low": 0.0, "high": 1.0})
    assert as_json(space, (np.array([[True, False]]),)) == [[1, 0]]


SHAPES = st.lists(st.integers(1, 3), max_size=3).map(tuple)


def boxes(shape: tuple[int, ...], dtype: str) -> Box:
    return Box(shape, np.dtype(dtype), np.full(shape, -np.inf), np.full(shape, np.inf))


def dials(shape: tuple[int, ...]) -> MultiDiscrete:
    counts = 1 + np.arange(np.prod(shape, dtype=int)).reshape(shape)
    return MultiDiscrete(counts, counts - 2)


LEAVES = st.one_of(
    st.builds(boxes, SHAPES, st.sampled_from(["float32", "float64", "uint8", "int16", "bool"])),
    st.builds(Discrete, st.integers(1, 9), st.integers(-5, 5)),
    st.builds(MultiBinary, SHAPES.filter(bool)),
    st.builds(dials, SHAPES.filter(bool)),
)
SPACES: st.SearchStrategy[Space] = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, min_size=1, max_size=3).map(lambda spaces: Tuple(tuple(spaces))),
        st.dictionaries(st.text(max_size=3), inner, min_size=1, max_size=3).map(lambda spaces: Dict(dict(sorted(spaces.items())))),
    ),
    max_leaves=5,
)


def random_batch(space: Space, batch: int) -> Arrays:
    random = np.random.default_rng(0)

    def values(leaf: Any) -> Any:
        shape = (batch, *leaf.shape)
        match leaf:
            case Discrete(n, start):
                return random.integers(start, start + n, shape)
            case MultiDiscrete(nvec, start):
                return random.integers(start, start + nvec, shape)
            case MultiBinary():
                return random.integers(0, 2, shape)
        return random.normal(size=shape) if leaf.dtype.kind == "f" else random.integers(0, 2, shape)

    return tuple(values(leaf.space).astype(leaf.space.dtype) for leaf in leaves(space))


@given(SPACES, st.integers(1, 3))
@settings(max_examples=150, deadline=None)
def test_what_is_given_as_json_is_read_back_the_same(space: Space, batch: int) -> None:
    arrays = random_batch(space, batch)
    sent = json.loads(json.dumps(as_json(space, arrays)))
    read = ObservationReader(parsed_space(described_space(space))).batch(sent)
    for one, other in zip(arrays, read, strict=True):
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)


@given(SPACES)
@settings(max_examples=100, deadline=None)
def test_values_of_the_leaves_put_together_are_the_value(space: Space) -> None:
    arrays = random_batch(space, 2)
    values = [assembled(space, [array[i] for array in arrays]) for i in range(2)]
    for one, other in zip(arrays, batched(space, values), strict=True):
        np.testing.assert_array_equal(one, other)
    assert len(leaf_values(space, values[0])) == len(leaves(space))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["camera", "dials", "speed", "a/b~c", "x"]), inner),
    max_leaves=12,
)


def refusal_or_arrays(space: Space, sent: Any) -> ObservationRefused | Arrays:
    try:
        return ObservationReader(space).batch([sent], "/observation", numbered=False)
    except ObservationRefused as refused:
        return refused


@given(st.one_of(SPACES, st.just(parsed_space(CAR))), JSON)
@settings(max_examples=300, deadline=None)
def test_whatever_is_sent_is_read_as_numbers_or_refused_by_its_place(space: Space, sent: Any) -> None:
    found = refusal_or_arrays(space, sent)
    if isinstance(found, ObservationRefused):
        assert found.pointer.startswith("/observation")
    else:
        assert all(np.isfinite(array.astype(np.float64)).all() for array in found)
