"""`spec.training.search`: which settings a search draws, and what each of its trials has drawn. Pure: it trains nothing."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

import numpy as np

from app.errors import InputError
from app.training.settings import SETTINGS, Setting, Settings, parsed_settings

FIELD = "spec.training.search"
SCALES = ("Uniform", "Log")
LEAST_TRIALS, MOST_TRIALS, MOST_PARALLEL, MOST_VALUES = 2, 32, 16, 16
DEFAULT_TRIALS, DEFAULT_PARALLEL = 8, 1
# Of a number that is drawn: more would only make it long.
SIGNIFICANT_DIGITS = 4


@dataclass(frozen=True)
class Range:
    """Numbers of which any is drawn, both ends included; whole ones where the setting is an integer.

    Attributes:
        is_log: each order of magnitude is as likely as any other.
    """

    least: float
    most: float
    is_log: bool
    is_whole: bool

    def drawn(self, random: np.random.Generator) -> Any:
        """One of the numbers."""
        if self.is_whole and not self.is_log:
            return int(random.integers(int(self.least), int(self.most) + 1))
        low, high = (math.log(self.least), math.log(self.most)) if self.is_log else (self.least, self.most)
        drawn = random.uniform(low, high)
        value = float(f"{math.exp(drawn) if self.is_log else drawn:.{SIGNIFICANT_DIGITS}g}")
        within = min(self.most, max(self.least, value))
        return round(within) if self.is_whole else within


@dataclass(frozen=True)
class Choice:
    """Values of which one is drawn, each as likely as any other."""

    values: tuple[Any, ...]

    def drawn(self, random: np.random.Generator) -> Any:
        """One of the values."""
        return self.values[int(random.integers(len(self.values)))]


@dataclass(frozen=True)
class Search:
    """What is searched.

    Attributes:
        parallel: how many trials run at once.
        config: what is drawn from, by the name of the setting.
    """

    trials: int
    parallel: int
    config: Mapping[str, Range | Choice]


@dataclass(frozen=True)
class Trial:
    """One policy of a search, as it is to be trained.

    Attributes:
        number: counts from 1.
        seed: of its training.
        chosen: the settings that it has drawn, by the names of the spec.
        settings: all of its settings.
    """

    number: int
    seed: int
    chosen: Mapping[str, Any]
    settings: Settings


def parsed_search(search: Any, config: Mapping[str, Any]) -> Search | None:
    """The search that `spec.training.search` asks for, None where it asks for none.

    Args:
        search: the JSON value of the field.
        config: `spec.training.config`, which `parsed_settings` takes. The API server fills defaults in there, so a setting counts as
            chosen where it is not the default.

    Raises:
        InputError: a name is unknown or chosen in `config`, too, or a value is not allowed; the message names the field.
    """
    if search is None:
        return None
    if not isinstance(search, dict):
        raise InputError("InvalidConfig", f"{FIELD} must be an object")
    for name in search:
        if name not in ("trials", "parallel", "config"):
            raise InputError("InvalidConfig", f"{FIELD}.{name} is no field; allowed are trials, parallel, config")
    trials = _counted("trials", search.get("trials", DEFAULT_TRIALS), LEAST_TRIALS, MOST_TRIALS)
    parallel = _counted("parallel", search.get("parallel", DEFAULT_PARALLEL), 1, MOST_PARALLEL)
    drawn = search.get("config")
    if not isinstance(drawn, dict) or not drawn:
        raise InputError("InvalidConfig", f"{FIELD}.config must name at least one of {', '.join(SETTINGS)}")
    given, default = parsed_settings(config), Settings()
    for name in drawn:
        setting = SETTINGS.get(name)
        if setting is None:
            near = get_close_matches(str(name), SETTINGS, n=1)
            hint = f" (did you mean {near[0]}?)" if near else ""
            raise InputError("InvalidConfig", f"{FIELD}.config.{name} is not a setting{hint}; allowed are {', '.join(SETTINGS)}")
        if getattr(given, setting.field) != getattr(default, setting.field):
            raise InputError(
                "InvalidConfig", f"{FIELD}.config.{name}: spec.training.config.{name} is set, too; only one of them is allowed"
            )
    return Search(trials, parallel, {name: _dimension(f"{FIELD}.config.{name}", SETTINGS[name], drawn[name]) for name in sorted(drawn)})


def drawn_trials(search: Search, config: Mapping[str, Any], seed: int) -> tuple[Trial, ...]:
    """All trials of a search: what each draws is a function of the seed, its number and the names that are searched.

    Args:
        config: `spec.training.config`, over which the draws are laid.

    Raises:
        InputError: what a trial has drawn does not go together; the message names it.
    """
    return tuple(_trial(number, search, config, seed) for number in range(1, search.trials + 1))


def _trial(number: int, search: Search, config: Mapping[str, Any], seed: int) -> Trial:
    random = np.random.default_rng((seed, number))
    own_seed = int(random.integers(2**31))
    chosen = {name: dimension.drawn(random) for name, dimension in search.config.items()}
    try:
        settings = parsed_settings({**config, **chosen})
    except InputError as error:
        raise InputError(error.reason, f"{FIELD}.config: trial {number} has drawn {chosen}; {error.message}") from error
    return Trial(number, own_seed, chosen, settings)


def _counted(name: str, value: Any, least: int, most: int) -> int:
    if type(value) is not int or not least <= value <= most:
        raise InputError("InvalidConfig", f"{FIELD}.{name} must be an integer from {least} to {most}")
    return value


def _dimension(path: str, setting: Setting, asked: Any) -> Range | Choice:
    if not isinstance(asked, dict) or ("values" in asked) == bool({"min", "max"} & set(asked)):
        raise InputError("InvalidConfig", f"{path} must hold either values, or min and max")
    for name in asked:
        if name not in ("values", "min", "max", "scale"):
            raise InputError("InvalidConfig", f"{path}.{name} is no field; allowed are values, or min, max and scale")
    if "values" in asked:
        return _choice(path, setting, asked)
    return _range(path, setting, asked)


def _choice(path: str, setting: Setting, asked: Mapping[str, Any]) -> Choice:
    values = asked["values"]
    if "scale" in asked:
        raise InputError("InvalidConfig", f"{path}.scale is allowed beside min and max only")
    if not isinstance(values, list) or not 1 <= len(values) <= MOST_VALUES:
        raise InputError("InvalidConfig", f"{path}.values must be a list of 1 to {MOST_VALUES} values")
    for value in values:
        if setting.checked(value) is None:
            raise InputError("InvalidConfig", f"{path}.values: each must be {setting.allowed}")
    return Choice(tuple(values))


def _range(path: str, setting: Setting, asked: Mapping[str, Any]) -> Range:
    ends: dict[str, Any] = {}
    for name in ("min", "max"):
        ends[name] = setting.checked(asked.get(name))
        if ends[name] is None:
            raise InputError("InvalidConfig", f"{path}.{name} must be {setting.allowed}")
        if isinstance(ends[name], bool) or not isinstance(ends[name], int | float):
            raise InputError("InvalidConfig", f"{path} must hold values: it is {setting.allowed}")
    scale = asked.get("scale", SCALES[0])
    if scale not in SCALES:
        raise InputError("InvalidConfig", f"{path}.scale must be one of {', '.join(SCALES)}")
    if ends["min"] >= ends["max"]:
        raise InputError("InvalidConfig", f"{path}.max must be above min ({ends['min']})")
    if scale == "Log" and ends["min"] <= 0:
        raise InputError("InvalidConfig", f"{path}.min must be above 0, because its scale is Log")
    return Range(ends["min"], ends["max"], scale == "Log", isinstance(ends["min"], int))
