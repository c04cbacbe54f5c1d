"""Units of what an environment observes and does, as its author tells them in the metadata of its class. Pure: it makes no environment.

    metadata = {"units": {"observation": {"/0": "m", "/1": "m/s"}, "action": {"": "N"}}}

Keys are JSON pointers (RFC 6901) to parts of an observation or an action as a client sends or gets it, `""` to the whole; a unit is true of
all below its pointer. Gymnasium itself knows no units: its own environments name them in their docstrings.
"""

import re
from collections.abc import Mapping
from typing import Any

from app.spaces import Dict, Space, Tuple, escaped

KEY = "units"
ROLES = ("observation", "action")
LONGEST_UNIT = 32
INDEX = re.compile(r"0|[1-9][0-9]{0,8}")


def told_units(metadata: Mapping[str, Any], observation: Space, action: Space) -> dict[str, dict[str, str]]:
    """The units that an environment tells, by role and pointer; empty where it tells none.

    Args:
        metadata: of the environment.

    Raises:
        ValueError: naming what is not as the module says.
    """
    told = metadata.get(KEY, {})
    if not isinstance(told, Mapping) or not set(told) <= set(ROLES):
        raise ValueError(f"metadata[{KEY!r}] must be an object with no other keys than {' and '.join(ROLES)}")
    for role, space in zip(ROLES, (observation, action), strict=True):
        units = told.get(role, {})
        if not isinstance(units, Mapping):
            raise ValueError(f"metadata[{KEY!r}][{role!r}] must be an object of units by JSON pointer")
        for pointer, unit in units.items():
            if not isinstance(unit, str) or not 0 < len(unit) <= LONGEST_UNIT:
                raise ValueError(f"metadata[{KEY!r}][{role!r}][{pointer!r}] must be a text of 1 to {LONGEST_UNIT} characters")
            if not isinstance(pointer, str) or not is_part(space, pointer):
                raise ValueError(f"metadata[{KEY!r}][{role!r}] has {pointer!r}, which points to no part of the {role}")
    return {role: dict(told[role]) for role in ROLES if told.get(role)}


def is_part(space: Space, pointer: str) -> bool:
    """Whether a JSON pointer names a part of the values of a space, or the whole."""
    if not pointer:
        return True
    head, *tokens = pointer.split("/")
    return not head and _has(space, tokens)


def _has(space: Space, tokens: list[str]) -> bool:
    if not tokens:
        return True
    token, rest = tokens[0], tokens[1:]
    match space:
        case Dict(spaces):
            return any(escaped(key) == token and _has(one, rest) for key, one in spaces.items())
        case Tuple(spaces):
            return _is_index(token, len(spaces)) and _has(spaces[int(token)], rest)
        case leaf:
            return len(tokens) <= len(leaf.shape) and all(_is_index(one, size) for one, size in zip(tokens, leaf.shape, strict=False))


def _is_index(token: str, size: int) -> bool:
    return INDEX.fullmatch(token) is not None and int(token) < size
