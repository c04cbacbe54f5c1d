"""Environments by id or entry point: resolves, checks and makes them. Needs gymnasium; knows nothing of RLlib or Ray."""

import importlib
import re
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

import gymnasium
import numpy as np
from gymnasium.envs.registration import EnvSpec

from app.encoding import Encoding, flat_size
from app.errors import InputError
from app.spaces import Box, Dict, Discrete, MultiBinary, MultiDiscrete, Space, Tuple, leaves
from app.units import told_units

FIELD = "spec.environment"
# A network's first layer has a row for each number of the observation.
MOST_NUMBERS = 200_000
BOX_DTYPES = ("bool", "float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")
UNSUPPORTED = {
    "Text": "a network takes numbers, and the length of a text varies; encode it in the environment, for example as MultiDiscrete",
    "Sequence": "its length varies, and a network takes a fixed number of numbers; pad it in the environment",
    "Graph": "its size varies, and a network takes a fixed number of numbers; pad it in the environment",
    "OneOf": "which of its spaces a value is of varies; make it a Tuple of a Discrete and those spaces in the environment",
}
MODULE = r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*"
ENTRY_POINT = re.compile(rf"{MODULE}:[A-Za-z_]\w*")
# Gymnasium imports what stands before a colon.
ID = re.compile(rf"({MODULE}:)?[^:]+")
FORMS = {
    "id": "a Gymnasium id such as CartPole-v1, or package.module:Id of one that a module of your own registers",
    "entryPoint": "package.module:Class",
}


@dataclass(frozen=True)
class Environment:
    """An environment that can be made as often as needed. Plain data, so it travels to other processes.

    Attributes:
        id: its Gymnasium id, with the module that registers it where it is none of Gymnasium's own (`package.module:Id-v0`); empty when
            `entry_point` is set.
        entry_point: `package.module:Class`, empty when `id` is set.
        config: keyword arguments of its constructor.
    """

    id: str
    entry_point: str
    config: dict[str, Any]

    @property
    def name(self) -> str:
        """For people."""
        return self.entry_point or self.id

    def registration(self) -> EnvSpec:
        """What Gymnasium knows of its id."""
        module, _, name = self.id.rpartition(":")
        if module:
            importlib.import_module(module)
        return gymnasium.spec(name)

    def default_arguments(self) -> dict[str, Any]:
        """The arguments that its registration gives."""
        return {} if self.entry_point else dict(self.registration().kwargs)

    def described(self) -> dict[str, Any]:
        """What the spec says, as the manifest keeps it."""
        named = {"entryPoint": self.entry_point} if self.entry_point else {"id": self.id}
        return {**named, "config": self.config}

    def made(self) -> gymnasium.Env[Any, Any]:
        """One environment."""
        if self.entry_point:
            environment: gymnasium.Env[Any, Any] = entry_point_class(self.entry_point)(**self.config)
        else:
            environment = gymnasium.make(self.id, **self.config)
        return environment

    def has_vector_entry_point(self) -> bool:
        """Whether Gymnasium knows a version that steps many at once in NumPy, which is much faster."""
        return not self.entry_point and self.registration().vector_entry_point is not None

    def made_vector(self, count: int) -> gymnasium.vector.VectorEnv[Any, Any, Any]:
        """`count` environments behind their own vector entry point."""
        return gymnasium.make_vec(self.id, num_envs=count, vectorization_mode="vector_entry_point", **self.config)


def parsed_environment(environment: Any, allowed_prefixes: Sequence[str] = ()) -> Environment:
    """The environment that `spec.environment` asks for; nothing of it is made yet, and nothing imported but a module that an id names.

    Args:
        environment: `{"id": ..., "config": {...}}` or `{"entryPoint": "package.module:Class", "config": {...}}`.
        allowed_prefixes: modules (with all below them), whole entry points or ids with a module that may be imported.

    Raises:
        InputError: InvalidEnvironment or EntryPointNotAllowed.
    """
    if not isinstance(environment, dict) or ("id" in environment) == ("entryPoint" in environment):
        raise InputError("InvalidEnvironment", f"{FIELD} must have either id or entryPoint")
    unknown = sorted(set(environment) - {"id", "entryPoint", "config"})
    if unknown:
        raise InputError("InvalidEnvironment", f"{FIELD}.{unknown[0]} is no field; allowed are id, entryPoint, config")
    config = environment.get("config") or {}
    if not isinstance(config, dict):
        raise InputError("InvalidEnvironment", f"{FIELD}.config must be an object (keyword arguments of the environment)")
    if "id" in environment:
        return _known(Environment(_allowed("id", environment["id"], ID, allowed_prefixes), "", config))
    return Environment("", _allowed("entryPoint", environment["entryPoint"], ENTRY_POINT, allowed_prefixes), config)


def checked_interface(environment: Environment) -> tuple[Space, Space, dict[str, dict[str, str]]]:
    """Makes the environment once and gives its observation space, its action space, and the units that it tells (see `app.units`).

    Raises:
        InputError: it cannot be made or tells units of nothing (InvalidEnvironment), or has spaces that are not supported
            (UnsupportedSpace).
    """
    try:
        one = environment.made()
    except InputError:
        raise
    except Exception as error:
        # What Gymnasium or Python say of the arguments may be told; anything else may hold a secret, and is in the log.
        is_harmless = isinstance(error, gymnasium.error.Error | TypeError | ModuleNotFoundError)
        why = f"{type(error).__name__}: {error}" if is_harmless else f"{type(error).__name__}; the log of the Job has more"
        traceback.print_exc(file=sys.stderr)
        raise InputError("InvalidEnvironment", f"{FIELD}.config: {environment.name} cannot be made with this config: {why}") from error
    try:
        spaces = spaces_of(one)
        return *spaces, _units_of(one, environment.name, spaces)
    finally:
        one.close()


def _units_of(one: gymnasium.Env[Any, Any], named: str, spaces: tuple[Space, Space]) -> dict[str, dict[str, str]]:
    try:
        return told_units(one.metadata or {}, *spaces)
    except ValueError as error:
        raise InputError("InvalidEnvironment", f"{FIELD}: {named}: {error}") from error


def _known(environment: Environment) -> Environment:
    """An environment whose id Gymnasium knows."""
    module, _, name = environment.id.rpartition(":")
    try:
        environment.registration()
    except ImportError as error:
        raise InputError(
            "InvalidEnvironment", f"{FIELD}.id: {module} cannot be imported: {error}; is it in spec.training.image?"
        ) from error
    except gymnasium.error.Error as error:
        near = get_close_matches(name, list(gymnasium.registry), n=3)
        hint = f"; near it: {', '.join(near)}" if near else ""
        where = f"{module} registers" if module else f"Gymnasium {gymnasium.__version__} knows"
        raise InputError("InvalidEnvironment", f"{FIELD}.id: {where} no {name}{hint}") from error
    return environment


def _allowed(field: str, named: Any, pattern: re.Pattern[str], allowed_prefixes: Sequence[str]) -> str:
    """What a field names, if the module that it would import, if any, is allowed."""
    if not isinstance(named, str) or not pattern.fullmatch(named):
        raise InputError("InvalidEnvironment", f"{FIELD}.{field} must be {FORMS[field]}")
    module, colon, _ = named.rpartition(":")
    prefixes = [prefix.rstrip(".") for prefix in allowed_prefixes]
    if not colon or any(prefix and (prefix in (named, module) or module.startswith(f"{prefix}.")) for prefix in prefixes):
        return named
    allowed = ", ".join(allowed_prefixes) or "none"
    raise InputError("EntryPointNotAllowed", f"{FIELD}.{field} must lie below a prefix that the operator allows: {allowed}")


def entry_point_class(entry_point: str) -> Any:
    """The class that an allowed entry point names.

    Raises:
        InputError: it cannot be imported.
    """
    module, _, name = entry_point.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        why = f"{entry_point} cannot be imported: {error}; is it in spec.training.image?"
        raise InputError("InvalidEnvironment", f"{FIELD}.entryPoint: {why}") from error


def spaces_of(one: gymnasium.Env[Any, Any]) -> tuple[Space, Space]:
    """The observation and the action space of an environment.

    Raises:
        InputError: UnsupportedSpace, naming the part and the reason.
    """
    observation, action = _space(one.observation_space, "observation"), _space(one.action_space, "action")
    size = sum(flat_size(leaf.space) for leaf in leaves(observation))
    if size > MOST_NUMBERS and not Encoding(observation, action).is_image:
        raise _unsupported("observation", "", f"has {size} numbers (one for each value of a Discrete); at most {MOST_NUMBERS} are possible")
    for leaf in leaves(action):
        if isinstance(leaf.space, Box) and not np.issubdtype(leaf.space.dtype, np.floating):
            why = f"is Box of {leaf.space.dtype}, and RLlib has no distribution over it; MultiDiscrete can have the same values"
            raise _unsupported("action", leaf.pointer, why)
    return observation, action


def _space(space: gymnasium.Space[Any], role: str, pointer: str = "") -> Space:
    match space:
        case gymnasium.spaces.Discrete():
            return Discrete(int(space.n), int(space.start))
        case gymnasium.spaces.MultiDiscrete():
            return MultiDiscrete(space.nvec.astype(np.int64), space.start.astype(np.int64))
        case gymnasium.spaces.MultiBinary():
            return MultiBinary(tuple(int(size) for size in space.shape))
        case gymnasium.spaces.Box() if str(space.dtype) in BOX_DTYPES:
            low, high = space.low.astype(np.float64), space.high.astype(np.float64)
            return Box(tuple(int(size) for size in space.shape), np.dtype(space.dtype), low, high)
        case gymnasium.spaces.Tuple() if space.spaces:
            return Tuple(tuple(_space(part, role, f"{pointer}/{i}") for i, part in enumerate(space.spaces)))
        case gymnasium.spaces.Dict() if space.spaces and all(isinstance(key, str) for key in space.spaces):
            return Dict({key: _space(space.spaces[key], role, f"{pointer}/{key}") for key in sorted(space.spaces)})
    kind = type(space).__name__
    supported = "supported are Box, Discrete, MultiDiscrete, MultiBinary, and Tuple and Dict (with text as keys) of at least one of them"
    raise _unsupported(role, pointer, f"is {kind}{f' of {space.dtype}' if space.dtype else ''}; {UNSUPPORTED.get(kind, supported)}")


def _unsupported(role: str, pointer: str, why: str) -> InputError:
    place = f" at {pointer}" if pointer else ""
    return InputError("UnsupportedSpace", f"{FIELD}: the {role} space{place} {why}")
