"""Writes docs/reference.md from k8s/crd.yaml: `python docs/reference.py`. A contract test runs it and compares."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parent.parent
# Its fields are all alike, and their bounds those of the settings themselves: one of them is told for all.
ALIKE = "spec.training.search.config"
HEAD = """# Reference

Made from `k8s/crd.yaml` by `python docs/reference.py`. `kubectl explain pm.spec.training` and so on say the same.

"""


def fields(node: dict[str, Any], path: str, required: bool = False) -> Iterator[str]:
    """A row for each field below a node of the schema."""
    if path.count(".") > 0 or path == "spec":
        yield f"| `{path}` | {_type(node)} | {_allowed(node, required)} | {node.get('description', '')} |"
    if path == ALIKE:
        yield from alike(next(iter(node["properties"].values())))
        return
    for name, child in node.get("properties", {}).items():
        yield from fields(child, f"{path}.{name}", name in node.get("required", []))
    items = node.get("items", {})
    for name, child in items.get("properties", {}).items():
        yield from fields(child, f"{path}[].{name}", name in items.get("required", []))


def alike(node: dict[str, Any]) -> Iterator[str]:
    """The rows of one setting's fields, for all settings."""
    for name, child in node["properties"].items():
        kind, allowed = (_type(child), _allowed(child, False)) if name == "scale" else ("as the setting", "as the setting")
        yield f"| `{ALIKE}.<setting>.{name}` | {'list' if name == 'values' else kind} | {allowed} | {child['description']} |"


def _type(node: dict[str, Any]) -> str:
    if "anyOf" in node:
        return " or ".join(one["type"] for one in node["anyOf"])
    if node["type"] == "array":
        return f"list of {node['items']['type']}"
    return str(node["type"])


def _allowed(node: dict[str, Any], required: bool) -> str:
    said = ["required"] if required else []
    if "enum" in node:
        said.append("one of " + ", ".join(f"`{value}`" for value in node["enum"]))
    if "minimum" in node or "maximum" in node:
        said.append(_range(node.get("minimum"), node.get("maximum"), is_above=node.get("exclusiveMinimum", False)))
    if "maxItems" in node:
        said.append(f"at most {node['maxItems']} of them")
    if "default" in node and node["default"] not in ({}, []):
        said.append(f"default `{json.dumps(node['default'])}`")
    return "; ".join(said)


def _range(low: float | None, high: float | None, *, is_above: bool) -> str:
    least = "" if low is None else f"above {low}" if is_above else f"{low}"
    if high is None:
        return least if is_above else f"{least} or more"
    return f"{least} to {high}".strip()


def page() -> str:
    """The whole page."""
    schema = yaml.safe_load((ROOT / "k8s/crd.yaml").read_text())["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    parts = [HEAD]
    for part in ("spec", "status"):
        rows = list(fields(schema["properties"][part], part))
        parts.append(f"## {part}\n\n| field | type | allowed | what it is |\n| --- | --- | --- | --- |\n" + "\n".join(rows) + "\n\n")
    return "".join(parts).rstrip() + "\n"


if __name__ == "__main__":
    (ROOT / "docs/reference.md").write_text(page())
