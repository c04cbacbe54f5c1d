"""docs/cli.md and docs/rollouts.md say what is so, and every command of the pages is one."""

from __future__ import annotations

import argparse
import ast
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from fakes.world import document

from controller import cli
from controller.verbs import api as verb_api
from controller.verbs import commands
from controller.verbs import options as verb_options

ROOT = Path(__file__).parent.parent.parent
PAGES = {path.name: path.read_text() for path in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]}
PAGE, ROLLOUTS = PAGES["cli.md"], PAGES["rollouts.md"]
COMMANDS = [
    (name, command)
    for name, text in PAGES.items()
    for command in re.findall(r"^    (?:\.venv/bin/)?((?:kubectl )?policymodel .*)$", text, re.M)
    if "$(" not in command
]
GOLDEN = ROOT / "tests/unit/controller/golden_status/canary.txt"


def verbs_of_the_parser() -> set[str]:
    action = next(action for action in cli.parser()._actions if isinstance(action, argparse._SubParsersAction))
    return set(action.choices)


@pytest.mark.parametrize(("page", "command"), COMMANDS)
def test_every_command_of_the_pages_is_one(page: str, command: str) -> None:
    cli.parser().parse_args(shlex.split(command.removeprefix("kubectl "), comments=True)[1:])


def test_every_verb_that_a_page_names_in_its_text_is_one() -> None:
    assert len(COMMANDS) > 15
    for text in PAGES.values():
        assert set(re.findall(r"`(?:kubectl )?policymodel ([a-z]+)", text)) <= verbs_of_the_parser()


def test_the_page_has_every_verb_with_its_flags() -> None:
    rows = re.findall(r"^\| (`[a-z]+ NAME.*?) \| ", PAGE, re.M)
    shown = {usage.split()[0]: usage for row in rows for usage in re.findall(r"`([^`]+)`", row)}
    assert set(shown) == verbs_of_the_parser() - {"run", "operate"}
    for usage in shown.values():
        named = re.sub(r"\[|\]", "", usage).replace("NAME", "cartpole").replace("OBSERVATION", "1").replace("REVISION", "1")
        cli.parser().parse_args(re.sub(r"\bN\b", "1", named).split())


def test_the_page_says_what_each_verb_writes_as_the_verbs_do() -> None:
    written = dict(re.findall(r"^\| (`[a-z]+ NAME.*?) \| .* \| (.*)\|$", PAGE, re.M))
    told = {verb for usage, fields in written.items() if fields for verb in re.findall(r"`([a-z]+) NAME", usage)}
    assert told == set(verb_options.WRITING)


def test_the_exit_codes_of_the_page_are_those_of_the_verbs() -> None:
    codes = {value for name, value in vars(verb_api).items() if name.startswith("EXIT_")} | {0, commands.EXIT_INTERRUPTED}
    assert {int(code) for code in re.findall(r"^\| (\d+) \| ", PAGE, re.M)} == codes


def test_the_page_shows_a_status_as_it_is() -> None:
    shown = [line[4:] for line in PAGE.splitlines() if line.startswith("    ")]
    golden = GOLDEN.read_text().splitlines()
    at = shown.index(golden[0])
    assert shown[at : at + len(golden)] == golden


def test_the_page_of_rollouts_shows_a_spec_that_the_schema_takes() -> None:
    shown = yaml.safe_load(re.search(r"```yaml\n(.*?)```", ROLLOUTS, re.S).group(1))
    document(rollout=shown["rollout"])


def test_the_page_of_rollouts_explains_every_reason_that_one_ends_with() -> None:
    explained = set(re.findall(r"`([A-Z][A-Za-z]+)`", ROLLOUTS))
    assert len(reasons()) > 10
    assert reasons() <= explained


def test_the_verbs_need_no_more_than_the_image_of_the_operator_has() -> None:
    command = "import sys, controller.cli, controller.verbs.commands; print(*{name.partition('.')[0] for name in sys.modules})"
    loaded = subprocess.run([sys.executable, "-c", command], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    assert not {"ray", "torch", "rich", "jsonschema", "celpy", "gymnasium", "numpy", "kopf"} & set(loaded)


def reasons() -> set[str]:
    """What rollout and analysis name as the reason of a problem or of an end."""
    found: set[Any] = set()
    for module in ("rollout", "analysis"):
        for node in ast.walk(ast.parse((ROOT / f"controller/{module}.py").read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("Problem", "RolloutEnd"):
                words = [word for argument in node.args for word in ast.walk(argument) if isinstance(word, ast.Constant)]
                found |= {word.value for word in words if re.fullmatch(r"[A-Z][a-z]+([A-Z][a-z]+)*", str(word.value))}
    return found
