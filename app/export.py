"""From an RLModule to an ONNX policy that acts alone: observation handling, forward pass and action decoding in one graph, proven equal."""

import logging
import warnings
from typing import Any

import numpy as np
import onnx
import torch
from ray.rllib.core.columns import Columns
from ray.rllib.core.rl_module.torch import TorchRLModule
from ray.rllib.utils.spaces.space_utils import unsquash_action

from app.bundle import Bundle
from app.errors import RunError
from app.policy import Decision, Policy, disagreements
from app.spaces import Arrays, Box, Discrete, Space, as_json, described_space

OPSET = 20


class GreedyPolicy(torch.nn.Module):
    """What RLlib does between an observation and a greedy action, as one module of tensors.

    Source: rllib/connectors/env_to_module/numpy_to_tensor.py, rllib/connectors/module_to_env/get_actions.py and
    unsquash_action in rllib/utils/spaces/space_utils.py (Ray 2.60).
    """

    def __init__(self, module: TorchRLModule, action_space: Box | Discrete) -> None:
        super().__init__()
        self.module = module
        self._action_space = action_space
        self.low: torch.Tensor
        self.high: torch.Tensor
        if isinstance(action_space, Box):
            self.register_buffer("low", torch.from_numpy(action_space.low.astype(action_space.dtype)))
            self.register_buffer("high", torch.from_numpy(action_space.high.astype(action_space.dtype)))

    def forward(self, observation: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The actions as the environment takes them, and the inputs of the action distribution (batch, inputs)."""
        flat = observation.to(torch.float32).flatten(1)
        inputs = self.module._forward({Columns.OBS: flat})[Columns.ACTION_DIST_INPUTS]
        if isinstance(self._action_space, Discrete):
            return torch.argmax(inputs, dim=1) + self._action_space.start, inputs
        return self._unsquashed(inputs, self._action_space), inputs

    def _unsquashed(self, inputs: torch.Tensor, space: Box) -> torch.Tensor:
        mean = torch.chunk(inputs, 2, dim=1)[0].reshape(-1, *space.shape)
        if not space.is_bounded:  # RLlib leaves a space alone as soon as one element has no bound
            return mean.to(self.low.dtype)
        unsquashed = self.low + (mean + 1.0) * (self.high - self.low) / 2.0
        return torch.minimum(torch.maximum(unsquashed, self.low), self.high)


def exported_model(module: TorchRLModule, observation_space: Box, action_space: Box | Discrete) -> bytes:
    """The ONNX model: input `observation`, outputs `action` and `action_dist_inputs`, any batch."""
    greedy = GreedyPolicy(module, action_space).eval()
    example = torch.from_numpy(np.zeros((2, *observation_space.shape), observation_space.dtype))
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # the exporter warns of its own internals
        program = torch.onnx.export(
            greedy,
            (example,),
            input_names=["observation"],
            output_names=["action", "action_dist_inputs"],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            opset_version=OPSET,
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    return _without_traces(program.model_proto)


def _without_traces(proto: onnx.ModelProto) -> bytes:
    """The model without the exporter's notes (source paths, stack traces), which would make equal policies differ."""
    graph = proto.graph
    for holder in (proto, graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        del holder.metadata_props[:]
        holder.doc_string = ""
    for function in proto.functions:
        del function.metadata_props[:]
        for node in function.node:
            del node.metadata_props[:]
            node.doc_string = ""
    onnx.checker.check_model(proto)
    stripped: bytes = proto.SerializeToString(deterministic=True)
    return stripped


def trainer_answers(module: TorchRLModule, action_space: Box | Discrete, gym_action_space: Any, observations: Arrays) -> Decision:
    """What RLlib itself answers greedily.

    Args:
        module: the trained module.
        action_space: of the environment.
        gym_action_space: the same as the trainer knows it (`Discrete` from 0).
        observations: as the environment gave them.
    """
    flat = torch.from_numpy(observations[0].astype(np.float32).reshape(len(observations[0]), -1))
    with torch.no_grad():
        inputs = module.forward_inference({Columns.OBS: flat})[Columns.ACTION_DIST_INPUTS]
        distribution = module.get_inference_action_dist_cls().from_logits(inputs).to_deterministic()
        sampled = distribution.sample().numpy()
    if isinstance(action_space, Discrete):
        return Decision((sampled + action_space.start,), inputs.numpy())
    unsquashed = [unsquash_action(action.reshape(action_space.shape), gym_action_space) for action in sampled]
    return Decision((np.stack(unsquashed).astype(action_space.dtype),), inputs.numpy())


def golden_record(observation_space: Space, action_space: Box | Discrete, observations: Arrays, answers: Decision) -> dict[str, Any]:
    """The golden observations as the manifest keeps them: as a client sends them, and the actions as it gets them."""
    return {
        "observations": as_json(observation_space, observations),
        "actions": as_json(action_space, answers.actions),
        "actionDistInputs": answers.action_dist_inputs.tolist(),
    }


def prove_parity(model: bytes, observation_space: Box, action_space: Box | Discrete, observations: Arrays, answers: Decision) -> None:
    """Compares the exported model in ONNX Runtime with what RLlib answered.

    Raises:
        RunError: an answer differs by more than the tolerance of `app.policy`.
    """
    spaces = {"observationSpace": described_space(observation_space), "actionSpace": described_space(action_space)}
    differing = disagreements(action_space, answers, Policy(Bundle("", spaces, model)).decide(observations))
    if differing:
        share = f"{differing} of {len(observations[0])} observations"
        raise RunError("ExportMismatch", f"the exported policy answers {share} otherwise than RLlib; nothing was published")
