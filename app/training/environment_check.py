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
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode

from app.environments import FIELD, Environment, entry_point_class
from app.errors import InputError

# What `gymnasium.make` takes beside the arguments of the environment.
ARGUMENTS_OF_MAKE = ("max_episode_steps", "disable_env_checker")
# How many are stepped at once where the environment has a vector entry point.
PROBED = 2
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
    one = environment.made()
    try:
        complaint = _complaint(lambda: check_env(one, skip_render_check=True, skip_close_check=True))
    finally:
        one.close()
    if complaint and any(word in complaint.lower() for word in TOLD_ONLY):
        print(f"{FIELD}: gymnasium.utils.env_checker says of {environment.name}: {complaint}", file=sys.stderr)
    elif complaint:
        raise InputError("EnvironmentCheckFailed", f"{FIELD}: gymnasium.utils.env_checker says of {environment.name}: {complaint}")
    if environment.has_vector_entry_point():
        complaint = _complaint(lambda: _probe(environment))
        if complaint:
            raise InputError("EnvironmentCheckFailed", f"{FIELD}: the vector entry point of {environment.name}: {complaint}")


def _probe(environment: Environment) -> None:
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
    """A vector environment answered wrongly; the text is ours."""


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
    creator = gymnasium.spec(environment.id).entry_point
    loaded: Callable[..., Any] = load_env_creator(creator) if isinstance(creator, str) else creator
    return loaded
