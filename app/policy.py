"""A policy that acts: a verified bundle in ONNX Runtime. Runs in the server: it may not import torch, RLlib or gymnasium.

The graph of a bundle, with any batch as first dimension:

| name | what |
| --- | --- |
| inputs `observation`, or `observation/0`, `observation/1`, ... | the observation, or the leaves of a Tuple or Dict |
| inputs `state/<name>` | of a recurrent policy: float32 of shape (batch, size), zeros at the start of an episode |
| outputs `action`, or `action/0`, `action/1`, ... | the greedy action, or the leaves of a Tuple or Dict |
| output `action_dist_inputs` | float32 of shape (batch, inputs), see `app.distributions` |
| outputs `state_out/<name>` | what goes in as `state/<name>` with the next observation |

A leaf has its own shape and dtype, as the environment has it. The manifest's `state` is `{name: [size]}`, empty for a policy that is
not recurrent.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnxruntime

from app.bundle import Bundle, BundleRefused, held_bundle
from app.distributions import ActionDistribution
from app.reader import ObservationReader
from app.spaces import Array, Arrays, Box, Dict, Space, Tuple, leaves, parsed_space
from app.storage import Place

# Another CPU rounds otherwise: figures are equal within RTOL (and ATOL near zero), and a greedy choice counts only where the
# two best logits differ by more than LOGIT_MARGIN.
RTOL = 1e-4
ATOL = 1e-5
LOGIT_MARGIN = 1e-3


@dataclass(frozen=True, eq=False)
class Decision:
    """What a policy decides for a batch of observations.

    Attributes:
        actions: one array for each leaf of the action space, of shape (batch, *leaf.space.shape), as the environment takes them.
        action_dist_inputs: float32 of shape (batch, inputs), see `app.distributions`.
        state: what goes in with the next observations, one array for each name of `Policy.state_space`; empty when not recurrent.
    """

    actions: Arrays
    action_dist_inputs: Array
    state: Arrays = ()


def tensor_names(name: str, space: Space) -> list[str]:
    """The names of a space's leaves in the graph."""
    return [f"{name}/{i}" for i in range(len(leaves(space)))] if isinstance(space, Tuple | Dict) else [name]


def state_space(sizes: dict[str, Any]) -> Dict:
    """The space of a recurrent state, whose manifest says `{name: [size]}`."""
    unbounded = float("inf")
    return Dict(
        {name: Box((int(sizes[name][0]),), np.dtype(np.float32), np.array(-unbounded), np.array(unbounded)) for name in sorted(sizes)}
    )


class Policy:
    """Acts by one bundle. Not changed after it is made, so any number of calls may share it."""

    def __init__(self, bundle: Bundle) -> None:
        self.digest = bundle.digest
        self.manifest = bundle.manifest
        self.observation_space = parsed_space(bundle.manifest["observationSpace"])
        self.action_space = parsed_space(bundle.manifest["actionSpace"])
        self.state_space = state_space(bundle.manifest.get("state", {}))
        self.is_recurrent = bool(self.state_space.spaces)
        self._distribution = ActionDistribution(self.action_space)
        self._observation_names = tensor_names("observation", self.observation_space)
        self._action_names = tensor_names("action", self.action_space)
        self._state_names = [f"state/{name}" for name in self.state_space.spaces]
        self._all_outputs = [*self._action_names, "action_dist_inputs", *(f"state_out/{name}" for name in self.state_space.spaces)]
        self._session = _session(bundle.model)

    def act(self, observations: Arrays) -> Arrays:
        """The greedy actions; those of a recurrent policy are the first of an episode.

        Args:
            observations: one array for each leaf of the observation space, of shape (batch, *leaf.space.shape) and the leaf's dtype.

        Returns:
            One array for each leaf of the action space, of shape (batch, *leaf.space.shape), as the environment takes them.
        """
        if self.is_recurrent:
            return self.decide(observations).actions
        fed = dict(zip(self._observation_names, observations, strict=True))
        return tuple(self._session.run(self._action_names, fed))

    def initial_state(self, batch: int) -> Arrays:
        """The state at the start of an episode, one array for each name of `state_space`."""
        return tuple(np.zeros((batch, *leaf.space.shape), np.float32) for leaf in leaves(self.state_space))

    def golden_observations(self, most: int) -> Arrays:
        """So many of the observations that the policy was recorded with, as arrays; fewer where there are fewer."""
        return ObservationReader(self.observation_space).batch(self.manifest["golden"]["observations"][:most])

    def likeliest(self, inputs: Array, masks: Array | None = None) -> Arrays:
        """The likeliest actions of a distribution.

        Args:
            inputs: as `Decision.action_dist_inputs`.
            masks: as for `decide`.
        """
        return self._distribution.greedy(inputs if masks is None else np.where(masks, inputs, -np.inf))

    def decide(
        self,
        observations: Arrays,
        state: Arrays | None = None,
        explore: bool = False,
        seed: int | None = None,
        masks: Array | None = None,
    ) -> Decision:
        """The actions with what they come from.

        Args:
            observations: as for `act`.
            state: from the decision before, or None at the start of an episode.
            explore: draws from the distribution instead of taking the likeliest action.
            seed: of that draw, 0 or more: with the same seed the same observations get the same actions. None draws anew each time.
            masks: bools of shape (batch, inputs) as `app.distributions.MaskReader` gives them; what is false is never chosen.
        """
        fed = dict(zip(self._observation_names, observations, strict=True))
        if self.is_recurrent:
            known = self.initial_state(len(observations[0])) if state is None else state
            fed.update(zip(self._state_names, known, strict=True))
        found = self._session.run(self._all_outputs, fed)
        count = len(self._action_names)
        actions, inputs, next_state = tuple(found[:count]), found[count], tuple(found[count + 1 :])
        if explore or masks is not None:
            allowed = inputs if masks is None else np.where(masks, inputs, -np.inf)
            distribution = self._distribution
            actions = distribution.sampled(allowed, np.random.default_rng(seed)) if explore else distribution.greedy(allowed)
        return Decision(actions, inputs, next_state)


def loaded_policy(place: Place, digest: str) -> Policy:
    """Reads, verifies and replays a bundle.

    Raises:
        BundleRefused: it is not what its digest names, no usable model, or does not act as it did when it was made.
    """
    bundle = held_bundle(place, digest)
    try:
        policy = Policy(bundle)
    except (KeyError, ValueError, TypeError, IndexError, AttributeError) as error:
        raise BundleRefused("InvalidModel", f"the manifest of {digest} describes no policy") from error
    replay_golden(policy)
    return policy


def replay_golden(policy: Policy) -> None:
    """Acts on the golden observations and compares.

    Raises:
        BundleRefused: they cannot be replayed, or an action, a distribution input or a state is no number, or differs by more than the
            tolerance.
    """
    try:
        golden = policy.manifest["golden"]
        observations = ObservationReader(policy.observation_space).batch(golden["observations"])
        expected_actions = ObservationReader(policy.action_space).batch(golden["actions"])
        states = ObservationReader(policy.state_space)
        state, state_out = (states.batch(golden[name]) if policy.is_recurrent else () for name in ("states", "statesOut"))
        expected = Decision(expected_actions, np.array(golden["actionDistInputs"]), state_out)
        found = policy.decide(observations, state)
        is_number = not np.isnan(found.action_dist_inputs).any()
        differing = disagreements(policy.action_space, expected, found)
    except Exception as error:
        # Whatever ONNX Runtime or NumPy object to, this is no bundle that can be served.
        raise BundleRefused("InvalidModel", f"the golden observations cannot be replayed: {type(error).__name__}") from error
    if not is_number:
        raise BundleRefused("NotFinite", "the golden observations are answered by what is no number; its weights may be none")
    if differing:
        share = f"{differing} of {len(observations[0])} golden observations"
        raise BundleRefused("GoldenMismatch", f"{share} are answered otherwise than when the bundle was made")


def disagreements(space: Space, expected: Decision, found: Decision) -> int:
    """How many observations are answered differently, by the tolerance above.

    Args:
        space: of the actions.
        expected, found: for the same observations.
    """
    batch = len(expected.action_dist_inputs)
    pairs = [
        (expected.action_dist_inputs, found.action_dist_inputs),
        *zip(expected.state, found.state, strict=True),
    ]
    if any(one.shape != other.shape for one, other in (*pairs, *zip(expected.actions, found.actions, strict=True))):
        return batch
    is_same = np.ones(batch, bool)
    for one, other in pairs:
        is_same &= _are_close(one, other)
    categoricals = ActionDistribution(space).categoricals(expected.action_dist_inputs)
    for leaf, inputs, one, other in zip(leaves(space), categoricals, expected.actions, found.actions, strict=True):
        if isinstance(leaf.space, Box):
            is_same &= _are_close(one, other)
            continue
        is_equal = (one == other).reshape(batch, -1)
        for element, logits in enumerate(inputs):
            is_same &= is_equal[:, element] | _are_close_calls(logits)
    return int((~is_same).sum())


def _are_close(one: Array, other: Array) -> Array:
    """For each item of two batches, whether they are equal within the tolerance."""
    close = np.asarray(np.isclose(one, other, rtol=RTOL, atol=ATOL))
    return np.asarray(close.reshape(len(one), -1).all(axis=1))


def _are_close_calls(logits: Array) -> Array:
    """For each row, whether another category is as good as the best."""
    if logits.shape[1] == 1:
        return np.zeros(len(logits), bool)
    best = np.sort(logits, axis=1)
    return np.asarray(best[:, -1] - best[:, -2] <= LOGIT_MARGIN)


def _session(model: bytes) -> Any:
    options = onnxruntime.SessionOptions()
    # A small network is done before a second thread has woken, and the spinning of idle ones takes the cores from the replicas beside it.
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.log_severity_level = 3
    try:
        return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise BundleRefused("InvalidModel", "ONNX Runtime cannot read the bundle's policy.onnx") from error
