"""How RLlib is given an environment's observations, and how the environment is given RLlib's actions. Knows gymnasium, not RLlib or torch.

RLlib sees one array of float32: an image for its CNN where the observation is one, else everything flat, one part after another in the
order of `app.spaces.leaves`. A Box is flattened, a Discrete is one-hot, MultiDiscrete one-hot for each element, as
`gymnasium.spaces.utils.flatten` has it. Its actions begin at 0, have one dimension, and are a flat Tuple where there are several leaves.
`app.training.export` builds the same into the graph.
"""

from dataclasses import dataclass
from functools import cached_property
from math import ceil, log2, prod
from typing import Any

import gymnasium
import numpy as np

from app.distributions import categories, first_action
from app.spaces import Array, Arrays, Box, Dict, Discrete, LeafSpace, MultiDiscrete, Space, Tuple, assembled, leaf_values, leaves, value_at

# Smaller ones leave a CNN nothing to do, and more channels are no picture.
LEAST_IMAGE_SIDE = 8
MOST_IMAGE_CHANNELS = 16
BRIGHTEST = 255.0


@dataclass(frozen=True)
class OneHot:
    """Which category each number of a one-hot part stands for.

    Attributes:
        elements: int64 of shape (size,), index of the element in the flattened leaf.
        values: int64 of shape (size,), its value that the number is 1 for.
    """

    elements: Array
    values: Array


def one_hot(space: Discrete | MultiDiscrete) -> OneHot:
    """The one-hot part of a leaf."""
    counts = np.array(categories(space), dtype=np.int64)
    starts = np.broadcast_to(first_action(space), space.shape).reshape(-1)
    elements = np.repeat(np.arange(len(counts)), counts)
    return OneHot(elements, np.concatenate([start + np.arange(count) for start, count in zip(starts, counts, strict=True)]))


def flat_size(space: LeafSpace) -> int:
    """How many numbers a leaf has in a flat observation."""
    return sum(categories(space)) if isinstance(space, Discrete | MultiDiscrete) else prod(space.shape)


@dataclass(frozen=True)
class Encoding:
    """Between an environment and RLlib. Plain data, so it travels to other processes.

    Attributes:
        observation_space: of the environment.
        action_space: of the environment.
    """

    observation_space: Space
    action_space: Space

    @cached_property
    def is_image(self) -> bool:
        """Whether RLlib is given an image: uint8, of rank 3, large enough, with channels first or last."""
        space = self.observation_space
        if not isinstance(space, Box) or len(space.shape) != 3 or space.dtype != np.uint8:
            return False
        *sides, channels = (space.shape[1], space.shape[2], space.shape[0]) if self.is_channels_first else space.shape
        return min(sides) >= LEAST_IMAGE_SIDE and channels <= MOST_IMAGE_CHANNELS

    @property
    def is_channels_first(self) -> bool:
        """Whether the first dimension of an image is the channels', as where frames are stacked."""
        shape = self.observation_space.shape if isinstance(self.observation_space, Box) else ()
        return len(shape) == 3 and shape[0] <= MOST_IMAGE_CHANNELS and shape[0] < min(shape[1:]) and shape[2] > MOST_IMAGE_CHANNELS

    @cached_property
    def seen_space(self) -> gymnasium.spaces.Box:
        """The observation space as RLlib sees it."""
        if self.is_image:
            assert isinstance(self.observation_space, Box)
            first, second, third = self.observation_space.shape
            shape = (second, third, first) if self.is_channels_first else (first, second, third)
            return gymnasium.spaces.Box(0.0, 1.0, shape, np.float32)
        bounds = [_flat_bounds(leaf.space) for leaf in leaves(self.observation_space)]
        low, high = (np.concatenate(side).astype(np.float32) for side in zip(*bounds, strict=True))
        return gymnasium.spaces.Box(low, high, dtype=np.float32)

    @cached_property
    def conv_filters(self) -> list[list[int]]:
        """Layers of RLlib's CNN (channels, kernel, stride): each halves the sides, down to about 4."""
        depth = max(1, min(5, ceil(log2(min(self.seen_space.shape[:2]) / 4))))
        return [[min(16 * 2**layer, 128), 4, 2] for layer in range(depth)]

    @cached_property
    def trained_action_space(self) -> gymnasium.Space[Any]:
        """The action space as RLlib sees it."""
        spaces = [_trained_space(leaf.space) for leaf in leaves(self.action_space)]
        return gymnasium.spaces.Tuple(spaces) if isinstance(self.action_space, Tuple | Dict) else spaces[0]

    def seen(self, observations: Arrays) -> Array:
        """What RLlib sees of a batch of observations: float32 of shape (batch, *seen_space.shape)."""
        if self.is_image:
            pixels = np.moveaxis(observations[0], 1, -1) if self.is_channels_first else observations[0]
            return np.asarray(pixels.astype(np.float32) / np.float32(BRIGHTEST))
        parts = zip(leaves(self.observation_space), observations, strict=True)
        return np.concatenate([_flat(leaf.space, array) for leaf, array in parts], axis=1)

    def pointer(self, index: int) -> str:
        """Where one of the numbers of a flat observation stands: a JSON pointer to it, below the whole."""
        for leaf in leaves(self.observation_space):
            if index < flat_size(leaf.space):
                break
            index -= flat_size(leaf.space)
        element = one_hot(leaf.space).elements[index] if isinstance(leaf.space, Discrete | MultiDiscrete) else index
        return leaf.pointer + "".join(f"/{part}" for part in np.unravel_index(element, leaf.space.shape))

    def actions(self, trained: Any) -> Arrays:
        """The actions of a batch as the environment takes them, leaf by leaf, from RLlib's."""
        parts = trained if isinstance(self.action_space, Tuple | Dict) else (trained,)
        return tuple(
            (np.asarray(part).reshape(-1, *leaf.space.shape) + first_action(leaf.space)).astype(leaf.space.dtype)
            for leaf, part in zip(leaves(self.action_space), parts, strict=True)
        )

    def adapted(self, one: Any) -> Any:
        """An environment as RLlib sees it."""
        if not self._sees_as_it_is:
            one = gymnasium.wrappers.TransformObservation(one, self._seen_of_one, self.seen_space)
        if not self._acts_as_it_is:
            one = gymnasium.wrappers.TransformAction(one, self._action_of_one, self.trained_action_space)
        return one

    def adapted_vector(self, many: Any) -> Any:
        """A vector environment as RLlib sees it."""
        if not self._sees_as_it_is:
            many = gymnasium.wrappers.vector.TransformObservation(many, self._seen_of_many, single_observation_space=self.seen_space)
        if not self._acts_as_it_is:
            spaces = gymnasium.vector.utils.batch_space(self.trained_action_space, many.num_envs)
            many = gymnasium.wrappers.vector.TransformAction(
                many, self._actions_of_many, action_space=spaces, single_action_space=self.trained_action_space
            )
        return many

    @property
    def _sees_as_it_is(self) -> bool:
        space = self.observation_space
        return isinstance(space, Box) and len(space.shape) == 1 and space.dtype == np.float32

    @property
    def _acts_as_it_is(self) -> bool:
        match self.action_space:
            case Discrete(_, start):
                return start == 0
            case Box(shape, dtype):
                return len(shape) == 1 and dtype in (np.float32, np.float64)
        return False

    def _seen_of_one(self, observation: Any) -> Array:
        one: Array = self.seen(tuple(np.asarray(part)[None] for part in leaf_values(self.observation_space, observation)))[0]
        return one

    def _seen_of_many(self, observations: Any) -> Array:
        return self.seen(tuple(np.asarray(part) for part in leaf_values(self.observation_space, observations)))

    def _action_of_one(self, trained: Any) -> Any:
        # The reshaping makes a batch of one where there is none.
        return value_at(self.action_space, self.actions(trained), 0)

    def _actions_of_many(self, trained: Any) -> Any:
        return assembled(self.action_space, self.actions(trained))


def _flat(space: LeafSpace, array: Array) -> Array:
    rows = array.reshape(len(array), -1)
    if isinstance(space, Discrete | MultiDiscrete):
        part = one_hot(space)
        return np.asarray(rows[:, part.elements] == part.values, np.float32)
    return rows.astype(np.float32)


def _flat_bounds(space: LeafSpace) -> tuple[Array, Array]:
    if isinstance(space, Box):
        return space.low.reshape(-1), space.high.reshape(-1)
    return np.zeros(flat_size(space)), np.ones(flat_size(space))


def _trained_space(space: LeafSpace) -> gymnasium.Space[Any]:
    """A leaf of the actions as RLlib sees it: from 0, of one dimension."""
    if isinstance(space, Box):
        # RLlib unsquashes no other floats than these.
        kind: Any = np.float64 if space.dtype == np.float64 else np.float32
        return gymnasium.spaces.Box(space.low.reshape(-1).astype(kind), space.high.reshape(-1).astype(kind), dtype=kind)
    if isinstance(space, Discrete):
        return gymnasium.spaces.Discrete(space.n)
    return gymnasium.spaces.MultiDiscrete(np.array(categories(space)))
