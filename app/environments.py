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

from app.errors import InputError
from app.spaces import Box, Discrete

FIELD = "spec.environment"
ENTRY_POINT = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*")


@dataclass(frozen=True)
class Environment:
    """An environment that can be made as often as needed. Plain data, so it travels to other processes.

    Attributes:
        id: its Gymnasium id, empty when `entry_point` is set.
        entry_point: `package.module:Class`, empty when `id` is set.
        config: keyword arguments of its constructor.
    """

    id: str
    entry_point: str
    config: dict[str, Any]

    def described(self) -> dict[str, Any]:
        """What the spec says, as the manifest keeps it."""
        named = {"entryPoint": self.entry_point} if self.entry_point else {"id": self.id}
        return {**named, "config": self.config}

    def made(self) -> gymnasium.Env[Any, Any]:
        """One environment."""
        if self.entry_point:
            environment: gymnasium.Env[Any, Any] = _entry_point_class(self.entry_point)(**self.config)
        else:
            environment = gymnasium.make(self.id, **self.config)
        return environment

    def has_vector_entry_point(self) -> bool:
        """Whether Gymnasium knows a version that steps many at once in NumPy, which is much faster."""
        return not self.entry_point and gymnasium.spec(self.id).vector_entry_point is not None

    def made_vector(self, count: int) -> gymnasium.vector.VectorEnv[Any, Any, Any]:
        """`count` environments behind their own vector entry point."""
        return gymnasium.make_vec(self.id, num_envs=count, vectorization_mode="vector_entry_point", **self.config)


def parsed_environment(environment: Any, allowed_prefixes: Sequence[str] = ()) -> Environment:
    """The environment that `spec.environment` asks for; nothing of it is made or imported yet.

    Args:
        environment: `{"id": ..., "config": {...}}` or `{"entryPoint": "package.module:Class", "config": {...}}`.
        allowed_prefixes: modules (with all below them) or whole entry points that may be imported.

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
        return Environment(_known_id(environment["id"]), "", config)
    return Environment("", _allowed_entry_point(environment["entryPoint"], allowed_prefixes), config)


def checked_spaces(environment: Environment) -> tuple[Box, Box | Discrete]:
    """Makes the environment once and gives its observation and action space.

    Raises:
        InputError: it cannot be made (InvalidEnvironment), or has spaces that are not supported (UnsupportedSpace).
    """
    named = environment.entry_point or environment.id
    try:
        one = environment.made()
    except InputError:
        raise
    except Exception as error:
        # What Gymnasium or Python say of the arguments may be told; anything else may hold a secret, and is in the log.
        is_harmless = isinstance(error, gymnasium.error.Error | TypeError | ModuleNotFoundError)
        why = f"{type(error).__name__}: {error}" if is_harmless else f"{type(error).__name__}; the log of the Job has more"
        traceback.print_exc(file=sys.stderr)
        raise InputError("InvalidEnvironment", f"{FIELD}: {named} cannot be made with this config: {why}") from error
    try:
        return _observation_box(one.observation_space), _action_space(one.action_space)
    finally:
        one.close()


def _known_id(environment_id: Any) -> str:
    if not isinstance(environment_id, str) or ":" in environment_id:
        # Gymnasium imports what stands before a colon, past the allow-list.
        raise InputError(
            "InvalidEnvironment", f"{FIELD}.id must be a Gymnasium id such as CartPole-v1; entryPoint takes classes of your own"
        )
    try:
        gymnasium.spec(environment_id)
    except gymnasium.error.Error as error:
        near = get_close_matches(environment_id, list(gymnasium.registry), n=3)
        hint = f"; near it: {', '.join(near)}" if near else ""
        raise InputError("InvalidEnvironment", f"{FIELD}.id: Gymnasium {gymnasium.__version__} knows no {environment_id}{hint}") from error
    return environment_id


def _allowed_entry_point(entry_point: Any, allowed_prefixes: Sequence[str]) -> str:
    if not isinstance(entry_point, str) or not ENTRY_POINT.fullmatch(entry_point):
        raise InputError("InvalidEnvironment", f"{FIELD}.entryPoint must be package.module:Class")
    module = entry_point.partition(":")[0]
    for prefix in (prefix.rstrip(".") for prefix in allowed_prefixes):
        if prefix and (entry_point == prefix or module == prefix or module.startswith(f"{prefix}.")):
            return entry_point
    allowed = ", ".join(allowed_prefixes) or "none"
    raise InputError("EntryPointNotAllowed", f"{FIELD}.entryPoint must lie below a prefix that the operator allows: {allowed}")


def _entry_point_class(entry_point: str) -> Any:
    module, _, name = entry_point.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        why = f"{entry_point} cannot be imported: {error}; is it in spec.training.image?"
        raise InputError("InvalidEnvironment", f"{FIELD}.entryPoint: {why}") from error


def _observation_box(space: gymnasium.Space[Any]) -> Box:
    if not isinstance(space, gymnasium.spaces.Box):
        raise InputError("UnsupportedSpace", f"{FIELD}: the observation space is {type(space).__name__}; supported is Box")
    return _box(space)


def _action_space(space: gymnasium.Space[Any]) -> Box | Discrete:
    if isinstance(space, gymnasium.spaces.Discrete):
        return Discrete(int(space.n), int(space.start))
    if isinstance(space, gymnasium.spaces.Box) and np.issubdtype(space.dtype, np.floating):
        return _box(space)
    found = f"{type(space).__name__} of {space.dtype}"
    raise InputError("UnsupportedSpace", f"{FIELD}: the action space is {found}; supported are Discrete and Box of floats")


def _box(space: gymnasium.spaces.Box) -> Box:
    low, high = space.low.astype(np.float64), space.high.astype(np.float64)
    return Box(tuple(int(size) for size in space.shape), np.dtype(space.dtype), low, high)
