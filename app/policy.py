"""A policy that acts: a verified bundle in ONNX Runtime. Runs in the server: it may not import torch, RLlib or gymnasium."""

from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from app.bundle import Bundle, BundleRefused, read_bundle
from app.spaces import Array, Box, Discrete, Space, parsed_space

# Another CPU rounds otherwise: figures are equal within RTOL (and ATOL near zero), and a greedy discrete action counts
# only where the two best logits differ by more than LOGIT_MARGIN.
RTOL = 1e-4
ATOL = 1e-5
LOGIT_MARGIN = 1e-3


class Policy:
    """Acts greedily by one bundle. Not changed after it is made, so any number of calls may share it."""

    def __init__(self, bundle: Bundle) -> None:
        self.digest = bundle.digest
        self.manifest = bundle.manifest
        self.observation_space = _box(parsed_space(bundle.manifest["observationSpace"]))
        self.action_space: Space = parsed_space(bundle.manifest["actionSpace"])
        self._session = _session(bundle.model)

    def act(self, observations: Array) -> Array:
        """The greedy actions.

        Args:
            observations: shape (batch, *observation_space.shape), dtype of the observation space.

        Returns:
            Discrete: int64 of shape (batch,), `start` included. Box: shape (batch, *action_space.shape), in the units of the environment.
        """
        actions: Array = self._session.run(["action"], {"observation": observations})[0]
        return actions

    def decide(self, observations: Array) -> tuple[Array, Array]:
        """The greedy actions as `act` gives them, and the inputs of the action distribution, float32 of shape (batch, inputs)."""
        actions, inputs = self._session.run(["action", "action_dist_inputs"], {"observation": observations})
        return actions, inputs


def loaded_policy(directory: Path, digest: str) -> Policy:
    """Reads, verifies and replays a bundle.

    Raises:
        BundleRefused: it is not what its digest names, no usable model, or does not act as it did when it was made.
    """
    bundle = read_bundle(directory, digest)
    try:
        policy = Policy(bundle)
    except (KeyError, ValueError) as error:
        raise BundleRefused("InvalidModel", f"the manifest of {digest} describes no policy") from error
    replay_golden(policy)
    return policy


def replay_golden(policy: Policy) -> None:
    """Acts on the golden observations and compares.

    Raises:
        BundleRefused: they cannot be replayed, or an action or a distribution input differs by more than the tolerance.
    """
    try:
        golden = policy.manifest["golden"]
        observations = np.array(golden["observations"], dtype=policy.observation_space.dtype)
        actions, inputs = policy.decide(observations)
        expected = np.array(golden["actions"], dtype=actions.dtype)
        differing = disagreements(policy.action_space, expected, np.array(golden["actionDistInputs"]), actions, inputs)
    except Exception as error:
        # Whatever ONNX Runtime or NumPy object to, this is no bundle that can be served.
        raise BundleRefused("InvalidModel", f"the golden observations cannot be replayed: {type(error).__name__}") from error
    if differing:
        share = f"{differing} of {len(observations)} golden observations"
        raise BundleRefused("GoldenMismatch", f"{share} are answered otherwise than when the bundle was made")


def disagreements(space: Space, expected: Array, expected_inputs: Array, actions: Array, inputs: Array) -> int:
    """How many observations are answered differently, by the tolerance above.

    Args:
        space: of the actions.
        expected, actions: shape (batch, ...).
        expected_inputs, inputs: of the action distribution, shape (batch, inputs).
    """
    batch = len(expected)
    if actions.shape != expected.shape or inputs.shape != expected_inputs.shape:
        return batch
    same_inputs = np.isclose(inputs, expected_inputs, rtol=RTOL, atol=ATOL).all(axis=1)
    if isinstance(space, Discrete):
        best = np.sort(expected_inputs, axis=1)
        is_close_call = (best[:, -1] - best[:, -2] <= LOGIT_MARGIN) if best.shape[1] > 1 else np.zeros(batch, bool)
        same_actions = (actions == expected) | is_close_call
    else:
        same_actions = np.isclose(actions, expected, rtol=RTOL, atol=ATOL).reshape(batch, -1).all(axis=1)
    return int((~(same_inputs & same_actions)).sum())


def _box(space: Space) -> Box:
    if not isinstance(space, Box):
        raise ValueError("the observation space must be a Box")
    return space


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
