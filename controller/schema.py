"""Reads a PolicyModel from a file as the API server would: the same defaults, the same refusals, from the same `k8s/crd.yaml`.

Only local mode needs it; in a cluster the API server does this. `tests/contract` sends one table of good and bad objects both ways.
"""

from __future__ import annotations

import copy
import difflib
import json
import math
import re
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import celpy
import jsonschema
import yaml
from celpy.adapter import json_to_cel

from controller import names

CRD_PATH = Path(__file__).parent.parent / "k8s" / "crd.yaml"


class InvalidPolicyModel(ValueError):
    """The document is no PolicyModel that the API server would take; each line of the text names a field and what is allowed."""


class _Loader(yaml.SafeLoader):
    """YAML as Kubernetes reads it, which is YAML as JSON can hold it: `1e-3` and `0o10` are numbers, `1:30` and `2026-01-01` are text,
    keys are text and may stand only once."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [_key(self.construct_object(key, deep=True)) for key, _ in node.value if key.tag != _MERGE]
        twice = next((key for index, key in enumerate(keys) if key in keys[:index]), None)
        if twice is not None:
            raise yaml.constructor.ConstructorError(None, None, f"the key {twice!r} stands twice", node.start_mark)
        found = super().construct_mapping(node, deep)
        return {_key(key): value for key, value in found.items()}

    def construct_number(self, node: yaml.ScalarNode) -> int | float:
        text = str(self.construct_scalar(node)).replace("_", "")
        if re.fullmatch(r"[-+]?0[0-7]+", text):
            return int(text, 8)
        try:
            return int(text, 0)
        except ValueError:
            value = float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
        if not math.isfinite(value):
            raise yaml.constructor.ConstructorError(None, None, "numbers have to be finite", node.start_mark)
        return value


def _key(key: Any) -> str:
    return key if isinstance(key, str) else json.dumps(key, default=str)


_MERGE = "tag:yaml.org,2002:merge"
_NUMBER = re.compile(
    r"""^[-+]?(0x[0-9a-fA-F_]+|0o[0-7_]+|0b[01_]+
    |[0-9][0-9_]*(\.[0-9_]*)?([eE][-+]?[0-9]+)?|\.[0-9][0-9_]*([eE][-+]?[0-9]+)?
    |\.(inf|Inf|INF|nan|NaN|NAN))$""",
    re.VERBOSE,
)
_NOT_OF_JSON = {f"tag:yaml.org,2002:{name}" for name in ("int", "float", "timestamp")}
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in _NOT_OF_JSON]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", _NUMBER, list("-+.0123456789"))
_Loader.add_constructor("tag:yaml.org,2002:float", _Loader.construct_number)
_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_number)


@cache
def _crd_version() -> dict[str, Any]:
    crd: dict[str, Any] = yaml.safe_load(CRD_PATH.read_text())["spec"]["versions"][0]
    return crd


def schema() -> dict[str, Any]:
    """The OpenAPI schema of a PolicyModel. Not to be changed by its readers."""
    found: dict[str, Any] = _crd_version()["schema"]["openAPIV3Schema"]
    return found


def load(text: str) -> dict[str, Any]:
    """The one PolicyModel of a YAML text, validated and with its defaults.

    Raises:
        InvalidPolicyModel: it is not YAML, not exactly one PolicyModel, or breaks the schema or one of its rules.
    """
    return defaulted(loaded(text))


def loaded(text: str) -> dict[str, Any]:
    """The one document of a YAML text, as its user wrote it.

    Raises:
        InvalidPolicyModel: it is not YAML, or not exactly one document.
    """
    try:
        documents = [document for document in yaml.load_all(text, _Loader) if document is not None]
    except yaml.YAMLError as error:
        raise InvalidPolicyModel(f"not YAML: {_where_and_why(error)}") from error
    if len(documents) != 1 or not isinstance(documents[0], dict):
        raise InvalidPolicyModel(f"exactly one PolicyModel is allowed in the file; it holds {len(documents)} documents")
    return documents[0]


def _where_and_why(error: yaml.YAMLError) -> str:
    """The place and the reason, without the line itself: there may be a secret in it."""
    if not isinstance(error, yaml.MarkedYAMLError) or error.problem_mark is None:
        return type(error).__name__
    return f"line {error.problem_mark.line + 1}, column {error.problem_mark.column + 1}: {error.problem}"


def defaulted(document: Mapping[str, Any], before: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The document with the schema's defaults.

    Args:
        document: a PolicyModel as its user wrote it; it is not changed.
        before: the accepted document that this one replaces, for the rules about fields that may not be changed.

    Raises:
        InvalidPolicyModel: naming each bad field and what is allowed.
    """
    _check_identity(document)
    whole: dict[str, Any] = _without_nulls(dict(document), schema())
    errors = sorted(set(_errors(whole)))
    if errors:
        raise InvalidPolicyModel("\n".join(errors))
    _set_defaults(whole, schema())
    errors = sorted(set(_broken_rules(whole, before, schema(), "")))
    if errors:
        raise InvalidPolicyModel("\n".join(errors))
    return whole


def _without_nulls(value: Any, node: Mapping[str, Any]) -> Any:
    """A copy without the fields that are null: the API server takes a field that stands there empty for one that is not there."""
    if isinstance(value, list):
        return [_without_nulls(item, node.get("items", {})) for item in value]
    if not isinstance(value, dict):
        return copy.deepcopy(value)
    known = node.get("properties", {})
    return {name: _without_nulls(item, known.get(name, {})) for name, item in value.items() if item is not None or name not in known}


def _check_identity(document: Mapping[str, Any]) -> None:
    for key, allowed in (("apiVersion", names.API_VERSION), ("kind", names.KIND)):
        if document.get(key) != allowed:
            raise InvalidPolicyModel(f"{key}: {allowed} is allowed")
    metadata = document.get("metadata")
    if not isinstance(metadata, dict) or not isinstance(metadata.get("name"), str):
        raise InvalidPolicyModel("metadata.name: a name is required")
    if not re.fullmatch(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?", str(metadata.get("namespace", "default"))):
        raise InvalidPolicyModel("metadata.namespace: allowed are lower-case letters, digits and '-'")


def _errors(document: Mapping[str, Any]) -> Iterator[str]:
    validator = jsonschema.Draft202012Validator(_strict(schema()))
    for error in validator.iter_errors(document):
        yield _in_words(error)


def _strict(node: Any) -> Any:
    """The schema in JSON Schema's terms, refusing unknown names as `kubectl apply` does."""
    if isinstance(node, list):
        return [_strict(item) for item in node]
    if not isinstance(node, dict):
        return node
    strict = {key: _strict(value) for key, value in node.items()}
    if isinstance(node.get("pattern"), str):
        # Python's $ also matches before a line's end.
        strict["pattern"] = node["pattern"].removesuffix("$") + r"\Z"
    if node.get("exclusiveMinimum") is True:
        # OpenAPI 3.0 says how `minimum` is meant; JSON Schema gives the bound itself.
        strict["exclusiveMinimum"] = strict.pop("minimum")
    is_open = node.get("x-kubernetes-preserve-unknown-fields") or "additionalProperties" in node or node == {"type": "object"}
    if node.get("type") == "object" and not is_open:
        strict["additionalProperties"] = False
    return strict


def _in_words(error: jsonschema.ValidationError) -> str:
    path = ".".join(str(part) for part in error.absolute_path) or "the document"
    rule: Any = error.validator_value
    node: Any = error.schema
    value: Any = error.instance
    if error.validator == "additionalProperties":
        allowed = sorted(node["properties"])
        return "\n".join(_unknown_in_words(f"{path}.{name}", name, allowed) for name in sorted(set(value) - set(allowed)))
    if error.validator == "required":
        return "\n".join(f"{path}.{name}: a value is required" for name in rule if name not in value)
    # The value itself is not repeated: it may be a secret in the wrong place.
    rules = {
        "type": "type {}",
        "enum": "one of {}",
        "minimum": "at least {}",
        "maximum": "at most {}",
        "exclusiveMinimum": "above {}",
        "minLength": "at least {} characters",
        "maxLength": "at most {} characters",
        "minItems": "at least {} items",
        "maxItems": "at most {} items",
        "minProperties": "at least {} of its fields",
        "pattern": "text that matches {}",
        "anyOf": "an integer or text",
    }
    allowed_value = ", ".join(map(str, rule)) if isinstance(rule, list) else rule
    return f"{path}: allowed is {rules.get(str(error.validator), '{}').format(allowed_value)}"


def _unknown_in_words(path: str, name: str, allowed: list[str]) -> str:
    near = difflib.get_close_matches(name, allowed, 1)
    hint = f" (did you mean {near[0]}?)" if near else ""
    return f"{path}: unknown field{hint}; allowed are {', '.join(allowed)}"


def _set_defaults(value: Any, node: Mapping[str, Any]) -> None:
    if isinstance(value, list):
        for item in value:
            _set_defaults(item, node.get("items", {}))
    if isinstance(value, dict):
        for name, child in node.get("properties", {}).items():
            if name not in value and "default" in child:
                value[name] = copy.deepcopy(child["default"])
            if name in value:
                _set_defaults(value[name], child)


def _broken_rules(value: Any, before: Any, node: Mapping[str, Any], path: str) -> Iterator[str]:
    for rule in node.get("x-kubernetes-validations", []):
        if "oldSelf" in rule["rule"] and before is None:
            continue
        if not _holds(rule["rule"], value, before):
            # One message may stand for many fields, of which the API server names the one, too.
            where, message = f"{path}{rule.get('fieldPath', '')}".lstrip("."), str(rule["message"])
            yield message if message.startswith(where) else f"{where}: {message.partition(': ')[2]}"
    if isinstance(value, dict):
        for name, child in node.get("properties", {}).items():
            if name in value:
                yield from _broken_rules(value[name], before.get(name) if isinstance(before, Mapping) else None, child, f"{path}.{name}")


def _holds(rule: str, value: Any, before: Any) -> bool:
    """Whether a rule in the Common Expression Language holds, as the API server would say."""
    activation = {"self": json_to_cel(value)}
    if before is not None:
        activation["oldSelf"] = json_to_cel(before)
    return bool(_program(rule).evaluate(activation))


@cache
def _program(rule: str) -> celpy.Runner:
    environment = celpy.Environment()
    return environment.program(environment.compile(rule))
