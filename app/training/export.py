"""From an RLModule to an ONNX policy that acts alone: observation handling, forward pass and action decoding in one graph, proven equal.

The names and shapes of the graph are told in `app.policy`.
"""

import logging
import warnings
from math import prod
from typing import Any

import numpy as np
import onnx
import torch
from ray.rllib.core.columns import Columns
from ray.rllib.core.models.base import ACTOR, ENCODER_OUT
from ray.rllib.core.models.torch.heads import TorchFreeLogStdMLPHead
from ray.rllib.core.rl_module.torch import TorchRLModule
from ray.rllib.utils.numpy import SMALL_NUMBER

from app.bundle import Bundle
from app.distributions import categories, first_action, inputs_size
from app.encoding import BRIGHTEST, Encoding, one_hot
from app.errors import RunError
from app.policy import Decision, Policy, disagreements, tensor_names
from app.spaces import Arrays, Box, Discrete, Leaf, MultiDiscrete, as_json, described_space, leaves
from app.training.filter import FILTER_CLIP
from app.training.recording import ObservationFilter, Recording

OPSET = 20

Tensors = tuple[torch.Tensor, ...]


class _Observations(torch.nn.Module):
    """What RLlib's module is given, from the observation's tensors: `Encoding.seen`, then the filter."""

    def __init__(self, encoding: Encoding, known: ObservationFilter | None) -> None:
        super().__init__()
        self._encoding = encoding
        self._leaves = leaves(encoding.observation_space)
        self._is_filtered = known is not None
        if known is not None:
            self.register_buffer("mean", torch.from_numpy(known.mean))
            self.register_buffer("std", torch.from_numpy(known.std))
        for index, leaf in enumerate(self._leaves):
            if isinstance(leaf.space, Discrete | MultiDiscrete):
                part = one_hot(leaf.space)
                self.register_buffer(f"elements_{index}", torch.from_numpy(part.elements))
                self.register_buffer(f"values_{index}", torch.from_numpy(part.values))

    def forward(self, tensors: Tensors) -> torch.Tensor:
        """The module's input, float32 of shape (batch, *seen_space.shape)."""
        if self._encoding.is_image:
            pixels = tensors[0].movedim(1, -1) if self._encoding.is_channels_first else tensors[0]
            seen = pixels.to(torch.float32) / BRIGHTEST
        else:
            seen = torch.cat([self._flat(i, leaf, tensors[i]) for i, leaf in enumerate(self._leaves)], dim=1)
        return self._filtered(seen) if self._is_filtered else seen

    def _flat(self, index: int, leaf: Leaf, tensor: torch.Tensor) -> torch.Tensor:
        rows = tensor.reshape(-1, prod(leaf.space.shape))
        if isinstance(leaf.space, Discrete | MultiDiscrete):
            elements, values = self.get_buffer(f"elements_{index}"), self.get_buffer(f"values_{index}")
            return (rows[:, elements] == values).to(torch.float32)
        return rows.to(torch.float32)

    def _filtered(self, seen: torch.Tensor) -> torch.Tensor:
        # As doubles, because what is left of a large mean is small.
        centred = (seen.to(torch.float64) - self.get_buffer("mean")) / (self.get_buffer("std") + float(SMALL_NUMBER))
        return centred.clamp(-FILTER_CLIP, FILTER_CLIP).to(torch.float32)


class _GreedyActions(torch.nn.Module):
    """The likeliest actions as the environment takes them, from the inputs of their distribution.

    Source: rllib/connectors/module_to_env/get_actions.py and unsquash_action in rllib/utils/spaces/space_utils.py (Ray 2.60).
    """

    def __init__(self, encoding: Encoding) -> None:
        super().__init__()
        self._leaves = leaves(encoding.action_space)
        for index, leaf in enumerate(self._leaves):
            match leaf.space:
                case Box(_, dtype, low, high):
                    # RLlib unsquashes a float16 as a float32.
                    kind = np.float64 if dtype == np.float64 else np.float32
                    self.register_buffer(f"low_{index}", torch.from_numpy(low.astype(kind)))
                    self.register_buffer(f"high_{index}", torch.from_numpy(high.astype(kind)))
                case space:
                    first = np.broadcast_to(first_action(space), space.shape)
                    self.register_buffer(f"first_{index}", torch.from_numpy(np.array(first, np.int64)))

    def forward(self, inputs: torch.Tensor) -> Tensors:
        """One tensor for each leaf."""
        parts = torch.split(inputs, [inputs_size(leaf.space) for leaf in self._leaves], dim=1)
        return tuple(self._action(i, leaf, part) for i, (leaf, part) in enumerate(zip(self._leaves, parts, strict=True)))

    def _action(self, index: int, leaf: Leaf, inputs: torch.Tensor) -> torch.Tensor:
        space = leaf.space
        kind = torch.from_numpy(np.zeros(0, space.dtype)).dtype
        if isinstance(space, Box):
            return self._unsquashed(index, space, inputs[:, : prod(space.shape)].reshape(-1, *space.shape)).to(kind)
        counts = categories(space)
        if len(set(counts)) == 1:
            chosen = inputs.reshape(-1, len(counts), counts[0]).argmax(dim=2)
        else:
            chosen = torch.stack([logits.argmax(dim=1) for logits in torch.split(inputs, list(counts), dim=1)], dim=1)
        return (chosen.reshape(-1, *space.shape) + self.get_buffer(f"first_{index}")).to(kind)

    def _unsquashed(self, index: int, space: Box, mean: torch.Tensor) -> torch.Tensor:
        if not space.is_bounded:  # RLlib leaves a space alone as soon as one element has no bound
            return mean
        low, high = self.get_buffer(f"low_{index}"), self.get_buffer(f"high_{index}")
        return torch.minimum(torch.maximum(low + (mean + 1.0) * (high - low) / 2.0, low), high)


class GreedyPolicy(torch.nn.Module):
    """What RLlib does between an observation and a greedy action, as one module of tensors."""

    def __init__(self, module: TorchRLModule, encoding: Encoding, known: ObservationFilter | None) -> None:
        super().__init__()
        self.module = module
        self._observations = _Observations(encoding, known)
        self._actions = _GreedyActions(encoding)
        self._count = len(leaves(encoding.observation_space))
        self._state_names = sorted(state_sizes(module))

    def forward(self, tensors: Tensors) -> Tensors:
        """From the leaves of the observation and the states to the leaves of the action, the distribution's inputs and the states."""
        seen = self._observations(tensors[: self._count])
        if not self._state_names:
            inputs = self._inputs({Columns.OBS: seen})
            return (*self._actions(inputs), inputs)
        states = zip(self._state_names, tensors[self._count :], strict=True)
        # RLlib has a dimension for time behind the batch of observations, and one for layers behind that of states.
        batch = {Columns.OBS: seen.unsqueeze(1), Columns.STATE_IN: {name: state.unsqueeze(1) for name, state in states}}
        encoded = _actor_encoder(self.module)(batch)
        inputs = self.module.pi(encoded[ENCODER_OUT]).squeeze(1)
        states_out = (encoded[Columns.STATE_OUT][name].squeeze(1) for name in self._state_names)
        return (*self._actions(inputs), inputs, *states_out)

    def _inputs(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """The inputs of the distribution of actions."""
        head = self.module.pi
        if not isinstance(head, TorchFreeLogStdMLPHead):
            inputs: torch.Tensor = self.module._forward(batch)[Columns.ACTION_DIST_INPUTS]
            return inputs
        # RLlib's head repeats the deviation len(batch) times, which makes the size of the batch a constant of the graph.
        mean = head.net(self.module.encoder(batch)[ENCODER_OUT][ACTOR])
        limit = head.log_std_clip_param_const
        log_std = torch.clamp(head.log_std, -limit, limit) if head.clip_log_std else head.log_std
        return torch.cat([mean, log_std.expand_as(mean)], dim=1)


def _actor_encoder(module: TorchRLModule) -> Any:
    """The recurrent encoder that the actions come from; the critic's own is not needed."""
    return module.encoder.actor_encoder if hasattr(module.encoder, "actor_encoder") else module.encoder.encoder


def state_sizes(module: TorchRLModule) -> dict[str, list[int]]:
    """`{name: [size]}` of a recurrent module's state, as the manifest keeps it; empty where it is not recurrent."""
    initial = module.get_initial_state()
    actor = initial.get(ACTOR, initial)
    return {name: [int(state.shape[-1])] for name, state in actor.items()}


def exported_model(module: TorchRLModule, encoding: Encoding, known: ObservationFilter | None) -> bytes:
    """The ONNX model of a module.

    Args:
        module: as it was trained.
        encoding: of its environment.
        known: what its observation filter knows, None without one.
    """
    greedy = GreedyPolicy(module, encoding, known).eval()
    sizes = state_sizes(module)
    arrays = [np.zeros((2, *leaf.space.shape), leaf.space.dtype) for leaf in leaves(encoding.observation_space)]
    arrays += [np.zeros((2, *sizes[name]), np.float32) for name in sorted(sizes)]
    batch = torch.export.Dim("batch")
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # the exporter warns of its own internals
        program = torch.onnx.export(
            greedy,
            (tuple(torch.from_numpy(array) for array in arrays),),
            input_names=[*tensor_names("observation", encoding.observation_space), *(f"state/{name}" for name in sorted(sizes))],
            output_names=[
                *tensor_names("action", encoding.action_space),
                "action_dist_inputs",
                *(f"state_out/{name}" for name in sorted(sizes)),
            ],
            dynamic_shapes=(tuple({0: batch} for _ in arrays),),
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


def described_policy(encoding: Encoding, module: TorchRLModule) -> dict[str, Any]:
    """What the manifest says of the spaces and the state."""
    return {
        "observationSpace": described_space(encoding.observation_space),
        "actionSpace": described_space(encoding.action_space),
        "state": state_sizes(module),
    }


def golden_record(encoding: Encoding, recording: Recording, policy: Policy) -> dict[str, Any]:
    """The golden observations as the manifest keeps them: as a client sends them, and the actions as it gets them."""
    record = {
        "observations": as_json(encoding.observation_space, recording.observations),
        "actions": as_json(encoding.action_space, recording.answers.actions),
        "actionDistInputs": recording.answers.action_dist_inputs.tolist(),
    }
    if not policy.is_recurrent:
        return record
    states = {"states": recording.states, "statesOut": recording.answers.state}
    return {**record, **{name: as_json(policy.state_space, arrays) for name, arrays in states.items()}}


def proven_policy(model: bytes, described: dict[str, Any], recording: Recording) -> Policy:
    """The exported model in ONNX Runtime, after it was compared with what RLlib answered.

    A recurrent one is played through each episode with its own states: what differs a little may not grow.

    Raises:
        RunError: an answer differs by more than the tolerance of `app.policy`.
    """
    policy = Policy(Bundle("", described, model))
    found = _played(policy, recording) if policy.is_recurrent else policy.decide(recording.observations)
    differing = disagreements(policy.action_space, recording.answers, found)
    if differing:
        share = f"{differing} of {len(recording.is_first)} observations"
        raise RunError("ExportMismatch", f"the exported policy answers {share} otherwise than RLlib; nothing was published")
    return policy


def _played(policy: Policy, recording: Recording) -> Decision:
    """What a recurrent policy decides when it goes through the episodes on its own."""
    state: Arrays | None = None
    decisions: list[Decision] = []
    for step, is_first in enumerate(recording.is_first):
        observation = tuple(array[step : step + 1] for array in recording.observations)
        decisions.append(policy.decide(observation, None if is_first else state))
        state = decisions[-1].state
    return Decision(
        tuple(np.concatenate(parts) for parts in zip(*(decision.actions for decision in decisions), strict=True)),
        np.concatenate([decision.action_dist_inputs for decision in decisions]),
        tuple(np.concatenate(parts) for parts in zip(*(decision.state for decision in decisions), strict=True)),
    )
