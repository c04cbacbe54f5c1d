"""docs/client.md shows what runs."""

from __future__ import annotations

import inspect
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from fakes.policy_server import Reply, policy_server

from app.async_client import AsyncPolicyClient
from app.client import PolicyClient, Retries

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/client.md").read_text()
URL = "http://127.0.0.1:8000/cartpole-ppo"
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.S)


@pytest.mark.parametrize("block", range(len(BLOCKS)))
def test_every_example_in_python_runs(block: int) -> None:
    with policy_server() as server:
        program = BLOCKS[block].replace(URL, server.url)
        done = subprocess.run([sys.executable, "-c", program], check=False, capture_output=True, text=True, cwd=ROOT, timeout=60)
    assert done.returncode == 0, done.stderr
    assert server.asked


def test_what_curl_sends_is_what_the_client_sends() -> None:
    commands = [shlex.split(line) for line in re.findall(r"^    (curl .*)$", PAGE, re.M)]
    with policy_server(Reply(content={"action": 0, "actions": [0, 1]})) as server:
        for command in commands:
            subprocess.run([command[0], "-sS", *(word.replace(URL, server.url) for word in command[1:])], check=True, capture_output=True)
        by_curl = [(asked.method, asked.path, asked.body) for asked in server.asked]
        server.asked.clear()
        with PolicyClient(server.url) as client:
            client.act([0.02, 0.01, -0.03, 0.04])
            client.act_batch([[0.02, 0.01, -0.03, 0.04], [0.0, 0.0, 0.1, 0.0]])
            client.act([0.02, 0.01, -0.03, 0.04], explore=True, seed=7)
            client.status()
        by_client = [(asked.method, asked.path, asked.body) for asked in server.asked]
    assert by_curl == by_client


@pytest.mark.parametrize("client", [PolicyClient, AsyncPolicyClient])
def test_the_table_of_methods_is_that_of_both_clients(client: type) -> None:
    shown = re.findall(r"^\| `(\w+)\((.*?)\)` \|", PAGE.partition("## Episodes")[0], re.M)
    assert len(shown) == 7
    for name, parameters in shown:
        real = inspect.signature(getattr(client, name)).parameters.values()
        said = [each.name if each.default is each.empty else f"{each.name}={each.default}" for each in real if each.name != "self"]
        assert parameters == ", ".join(said), name


def test_the_figures_of_the_repetitions_are_the_defaults() -> None:
    retries = Retries()
    text = " ".join(PAGE.split())
    assert f"up to {retries.tries} tries within {retries.deadline_s:g} seconds" in text
    assert f"double from {retries.first_pause_s:g} s" in text
    assert f"up to {retries.longest_pause_s:g} s." in text
