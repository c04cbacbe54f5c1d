"""constraints.txt makes an install repeatable, on any machine."""

from __future__ import annotations

import re
import sysconfig
import tomllib
from importlib.metadata import distributions
from pathlib import Path

ROOT = Path(__file__).parents[2]
PIN = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*==[0-9][0-9a-z.]*")
# What makes an environment, rather than being in it.
TOOLS = {"policymodel", "pip", "setuptools", "wheel"}


def normalized(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def pins() -> dict[str, str]:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    bad = [line for line in lines if not PIN.fullmatch(line)]
    assert not bad, f"only name==version is allowed, without a path, a marker or a local version: {bad}"
    assert lines == sorted(set(lines))
    return dict(line.split("==") for line in lines)


def test_every_line_pins_one_public_version() -> None:
    assert pins()["torch"] == "2.13.0"


def test_every_direct_dependency_is_pinned() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    named = {
        normalized(match[0])
        for extra in project["optional-dependencies"].values()
        for requirement in extra
        if (match := re.match(r"[A-Za-z0-9._-]+", requirement)) and not requirement.startswith("policymodel[")
    }
    assert named <= set(pins()), "renew constraints.txt: its head says how"


def test_the_environment_of_the_tests_has_nothing_that_is_not_pinned() -> None:
    found = distributions(path=[sysconfig.get_path("purelib")])  # setuptools puts others beside it, once it is imported
    installed = {normalized(each.metadata["Name"]): each.version.partition("+")[0] for each in found}
    unpinned = {name: version for name, version in installed.items() if name not in TOOLS and pins().get(name) != version}
    assert unpinned == {}, "renew constraints.txt: its head says how"
