"""Whether an environment does what Gymnasium asks of one, before anything is trained in it. Needs gymnasium; knows nothing of RLlib."""

import inspect
import sys
import traceback
import warnings
from collections.abc import Callable
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium.envs.registration import load_env_creator
from gymnasium.utils.env_checker import check_env, check_reset_options
from gymnasium.utils.passive_env_checker import env_reset_passive_checker, env_step_passive_checker
from gymnasium.vector import AutoresetMode

from app.environments import FIELD, Environment, entry_point_class, spaces_of
from app.errors import InputError
from app.spaces import leaf_values, leaves

# What `gymnasium.make` takes beside the arguments of the environment.
ARGUMENTS_OF_MAKE = ("max_episode_steps", "disable_env_checker")
# How many are stepped at once where the environment has a vector entry point.
PROBED = 2
STEP_VALUES = 5
# What is trained in all the same: an environment that cannot be repeated from its seed, and one whose episodes end with their first step.
TOLD_ONLY = ("determinis", "random number generator", "np_random", "super().reset", "after 1 step")
_GYMNASIUM = str(Path(gymnasium.__file__).parent)


def check_config(environment: Environment) -> None:
    """Compares `config` with the arguments of the environment's constructor, as far as it names them.

    Raises:
        InputError: InvalidEnvironment, naming the argument that is too many or missing.
    """
    try:
        parameters = inspect.signature(_creator(environment)).parameters.values()
    except InputError:
        raise
    except Exception:  # noqa: BLE001 - what is not installed, or has no signature that can be read, says so when it is made
        return
    named = [parameter for parameter in parameters if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)]
    extra = () if environment.entry_point else ARGUMENTS_OF_MAKE
    allowed = sorted({*(parameter.name for parameter in named), *extra})
    takes_any = any(parameter.kind == parameter.VAR_KEYWORD for parameter in parameters)
    for argument in environment.config:
        if argument not in allowed and not takes_any:
            near = get_close_matches(argument, allowed, n=1)
            hint = f" (did you mean {near[0]}?)" if near else ""
            why = f"is no argument of {environment.name}{hint}; allowed are {', '.join(allowed) or 'none'}"
            raise InputError("InvalidEnvironment", f"{FIELD}.config.{argument} {why}")
    given = {*environment.config, *environment.default_arguments()}
    for parameter in named:
        if parameter.default is parameter.empty and parameter.name not in given:
            raise InputError("InvalidEnvironment", f"{FIELD}.config.{parameter.name} is missing: {environment.name} has no default for it")


def check_environment(environment: Environment) -> None:
    """Lets Gymnasium's own checker reset and step it, and its vector entry point where there is one.

    An environment that draws at random past its seed, or whose first step ends an episode, is told of in the log, and trained in all the
    same.

    Raises:
        InputError: EnvironmentCheckFailed, with the complaint.
    """
    one, by_gymnasium = environment.made(), f"gymnasium.utils.env_checker says of {environment.name}"
    try:
        if not _passes(by_gymnasium, lambda: check_env(one, skip_render_check=True, skip_close_check=True)):
            # It ends with its first complaint: this is what would have come after it.
            _passes(by_gymnasium, lambda: check_reset_options(one))
            _passes(by_gymnasium, lambda: env_reset_passive_checker(one))
            _passes(by_gymnasium, lambda: env_step_passive_checker(one, one.action_space.sample()))
        _passes(environment.name, lambda: _probe(one))
    finally:
        one.close()
    if environment.has_vector_entry_point():
        _passes(f"the vector entry point of {environment.name}", lambda: _probe_vector(environment))


def _passes(says: str, check: Callable[[], None]) -> bool:
    """Whether a check has nothing to say.

    Args:
        says: who says it of what.

    Raises:
        InputError: EnvironmentCheckFailed: it says more than is told only.
    """
    complaint = _complaint(check)
    if complaint is None:
        return True
    if not any(word in complaint.lower() for word in TOLD_ONLY):
        raise InputError("EnvironmentCheckFailed", f"{FIELD}: {says}: {complaint}")
    print(f"{FIELD}: {says}: {complaint}", file=sys.stderr)
    return False


def _probe(one: gymnasium.Env[Any, Any]) -> None:
    """Resets and steps an environment, and looks at what Gymnasium only warns of and no training can take.

    Raises:
        ValueError: it answers so.
    """
    one.reset(seed=0)
    answer = one.step(one.action_space.sample())
    if len(answer) != STEP_VALUES:
        raise _Answered(f"step() gives {len(answer)} values, and not observation, reward, terminated, truncated and info")
    space, _ = spaces_of(one)
    for leaf, part in zip(leaves(space), leaf_values(space, answer[0]), strict=True):
        if np.shape(part) != leaf.space.shape:
            place = f" at {leaf.pointer}" if leaf.pointer else ""
            raise _Answered(f"the observation of step(){place} has the shape {np.shape(part)}, and its space {leaf.space.shape}")


def _probe_vector(environment: Environment) -> None:
    """Resets and steps the vector entry point.

    Raises:
        ValueError: it answers what its spaces do not hold.
    """
    vector = environment.made_vector(PROBED)
    try:
        if vector.metadata.get("autoreset_mode", AutoresetMode.NEXT_STEP) != AutoresetMode.NEXT_STEP:
            raise _Answered("its metadata's autoreset_mode must be NEXT_STEP")
        observations, _ = vector.reset(seed=0)
        vector.action_space.seed(0)
        stepped, rewards, terminated, truncated, _ = vector.step(vector.action_space.sample())
        for what, found in (("reset", observations), ("step", stepped)):
            if found not in vector.observation_space:
                raise _Answered(f"what {what}() gives is not in its observation_space")
        for what, figures in (("rewards", rewards), ("terminated", terminated), ("truncated", truncated)):
            if np.shape(figures) != (PROBED,):
                raise _Answered(f"{what} of step() have the shape {np.shape(figures)}, not ({PROBED},)")
    finally:
        vector.close()


class _Answered(ValueError):
    """An environment answered wrongly; the text is ours."""


def _complaint(check: Callable[[], None]) -> str | None:
    """What a check raises, in one line. What Gymnasium says may be told; what the environment raises may hold a secret."""
    with warnings.catch_warnings():
        # Hints are for the log, whatever this interpreter makes of warnings.
        warnings.simplefilter("default")
        # The wrappers of `gymnasium.make` are part of what is trained in.
        warnings.filterwarnings("ignore", message=".*different from the unwrapped version.*")
        try:
            check()
        except Exception as error:  # noqa: BLE001 - the environment is its user's, and may raise anything
            traceback.print_exc(file=sys.stderr)
            is_gymnasium = traceback.extract_tb(error.__traceback__)[-1].filename.startswith(_GYMNASIUM)
            if is_gymnasium or isinstance(error, _Answered):
                return " ".join(str(error).split()) or type(error).__name__
            return f"{type(error).__name__} in reset() or step(); the log of the Job has more"
    return None


def _creator(environment: Environment) -> Callable[..., Any]:
    """What is called to make the environment."""
    if environment.entry_point:
        found: Callable[..., Any] = entry_point_class(environment.entry_point)
        return found
    creator = environment.registration().entry_point
    loaded: Callable[..., Any] = load_env_creator(creator) if isinstance(creator, str) else creator
    return loaded
