"""`act` and `play`: asks a served policy over HTTP, and draws how it does.

An episode is played by `python -m app.client` in a process of its own, as `policymodel run` does it: the environment is no part of the
controller. They share text alone: its flags, and a line of JSON for each step.
"""

from __future__ import annotations

import importlib.util
import io
import json
import math
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import IO, Any, TextIO

import requests

from controller import words
from controller.spec import Json
from controller.verbs.api import EXIT_NOT_DONE, EXIT_UNREACHED, EXIT_USAGE, ApiTrouble
from controller.verbs.text import bar
from controller.verbs.view import View

ANSWER_TIMEOUT_S = (5, 30)
NUMBERS_SHOWN = 8
TRACK = 49
TRACK_HALF = 2.4
POLE_ROWS = 5
NEEDED = ("app", "gymnasium", "numpy")
_COMMAND = ("-m", "app.client")


@dataclass(frozen=True)
class Address:
    """Where a policy is asked; `host` is what an Ingress knows it by, where the URL has another name."""

    url: str
    host: str | None = None


def address(view: View, url: str | None, host: str | None) -> Address:
    """Where to ask: what the flags say, or the status. A URL of one's own still has to name the Ingress's host.

    Raises:
        ApiTrouble: nothing says where.
    """
    found = url or view.status.url
    if found is None:
        raise ApiTrouble("status.url is not known yet: the operator has not looked at this PolicyModel; or name one with --url")
    return Address(found, host or (view.ingress_host if url else None))


def acted(view: View, where: Address, asked: Json) -> dict[str, Any]:
    """The answer to one observation, with the digest and the revision that gave it.

    Raises:
        ApiTrouble: nothing answers there, or it refuses.
    """
    headers = {"Host": where.host} if where.host else {}
    try:
        answer = requests.post(where.url, json=asked, headers=headers, timeout=ANSWER_TIMEOUT_S, allow_redirects=False)
    except requests.RequestException as error:
        raise ApiTrouble(f"{where.url} cannot be reached: {type(error).__name__}; {reachable(view)}", EXIT_UNREACHED) from error
    said = words.parsed(answer.text)
    if answer.status_code != 200 or "action" not in said:
        why = " ".join(str(said[part]) for part in ("title", "detail", "pointer") if said.get(part)) or answer.text.strip()[:200]
        raise ApiTrouble(f"{where.url} answered {answer.status_code}: {why}")
    revision = answer.headers.get("x-policy-revision", "")
    return {**said, "digest": answer.headers.get("x-policy-digest"), "revision": int(revision) if revision.isdigit() else None}


def reachable(view: View) -> str:
    """How a policy is reached from outside the cluster."""
    service = f"service/{view.ray_service}-serve-svc"
    forward = view.kubectl(f"port-forward {service} 8000")
    return f"from outside the cluster: {forward}, and --url http://127.0.0.1:8000/<route>"


def play(view: View, where: Address, *, episodes: int, seed: int | None, fps: float, prefixes: Sequence[str], as_json: bool) -> int:
    """Plays episodes, and draws them where somebody looks.

    Raises:
        ApiTrouble: what plays is not installed, or the environment is not to be made here.
    """
    command = _client(view, where, episodes, seed, prefixes)
    screen = Screen(sys.stdout, is_cartpole=str(view.environment.get("id", "")).startswith("CartPole"))
    is_drawn, returns = sys.stdout.isatty() and not as_json, []
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as playing:
        assert playing.stdout
        try:
            for step in _steps(playing.stdout):
                if step["done"]:
                    returns.append(step["return"])
                if is_drawn:
                    screen.show(step, len(returns) + (0 if step["done"] else 1))
                    time.sleep(1 / fps)
                elif step["done"] and not as_json:
                    print(f"episode {len(returns)}: return {step['return']:g} in {step['step']} steps, by {step['digest']}", flush=True)
        finally:
            playing.terminate()
    if len(returns) < episodes:
        print(reachable(view), file=sys.stderr)
        return EXIT_NOT_DONE
    mean = sum(returns) / len(returns)
    print(json.dumps({"returns": returns, "meanReturn": mean}) if as_json else f"mean return over {len(returns)} episodes: {mean:.1f}")
    return 0


def observed_episode(view: View, where: Address, prefixes: Sequence[str]) -> tuple[tuple[float, ...], ...]:
    """The numbers of each observation of one episode that is played now.

    Raises:
        ApiTrouble: as `play`, or nothing answers.
    """
    done = subprocess.run(_client(view, where, 1, 0, prefixes), check=False, capture_output=True, text=True)
    steps = list(_steps(io.StringIO(done.stdout)))
    if done.returncode or not steps:
        raise ApiTrouble(f"no episode could be played at {where.url}; {reachable(view)}", EXIT_UNREACHED)
    return tuple(tuple(numbers(step["observation"])) for step in steps)


def _client(view: View, where: Address, episodes: int, seed: int | None, prefixes: Sequence[str]) -> list[str]:
    """The command that plays.

    Raises:
        ApiTrouble: what plays is not installed, or the environment is not to be made here.
    """
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        how = "in a checkout: pip install '.[client]' 'gymnasium[classic-control]' numpy"
        raise ApiTrouble(f"the environment is made on this machine, and {', '.join(missing)} is not installed here; {how}", EXIT_USAGE)
    _check_environment(view.environment, prefixes)
    command = [sys.executable, *_COMMAND, "--url", where.url, "--episodes", str(episodes), "--quiet", "--trace"]
    command += ["--environment", json.dumps(view.environment)]
    command += ["--host", where.host] if where.host else []
    return command + (["--seed", str(seed)] if seed is not None else [])


class Screen:
    """Draws the steps of episodes, each frame over the one before."""

    def __init__(self, out: TextIO, *, is_cartpole: bool) -> None:
        self._out, self._is_cartpole = out, is_cartpole
        self._drawn = 0
        self._largest: list[float] = []

    def show(self, step: Json, episode: int) -> None:
        lines = self.frame(step, episode)
        # Up over the last frame, and clear from there.
        over = f"\033[{self._drawn}A\033[J" if self._drawn else ""
        self._out.write(over + "\n".join(lines) + "\n")
        self._out.flush()
        self._drawn = 0 if step["done"] else len(lines)

    def frame(self, step: Json, episode: int) -> list[str]:
        figures = f"reward {step['reward']:g}   return {step['return']:g}"
        head = f"episode {episode}   step {step['step']}   action {json.dumps(step['action'])}   {figures}"
        seen = numbers(step["observation"])[:NUMBERS_SHOWN]
        if self._is_cartpole and len(seen) == 4:
            return [head, *cart(seen[0], seen[2])]
        self._largest = [max(abs(value), before) for value, before in zip(seen, self._largest or [1.0] * len(seen), strict=False)]
        drawn = [
            f"{index:>3} {value:>10.3f} {bar((value / most + 1) / 2)}"
            for index, (value, most) in enumerate(zip(seen, self._largest, strict=True))
        ]
        return [head, *drawn]


def cart(position: float, angle: float) -> list[str]:
    """CartPole from the side.

    Args:
        position: of the cart, in metres from the middle; the track ends at 2.4.
        angle: of the pole, in radians from upright, to the right.
    """
    at = min(TRACK - 3, max(2, round((position + TRACK_HALF) / (2 * TRACK_HALF) * (TRACK - 1))))
    mark = "|" if abs(angle) < 0.05 else "/" if angle > 0 else "\\"
    # A row of a terminal is about as high as two columns are wide.
    pole = [at + round(2 * row * math.tan(max(-1.0, min(1.0, angle)))) for row in range(POLE_ROWS, 0, -1)]
    rows = [" " * min(TRACK - 1, max(0, column)) + mark for column in pole]
    return [*rows, " " * (at - 2) + "[===]", "-" * TRACK]


def numbers(value: Any) -> list[float]:
    """All numbers of an observation, in order."""
    if isinstance(value, bool | int | float):
        return [float(value)]
    parts = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return [number for part in parts for number in numbers(part)]


def _steps(lines: IO[str]) -> Iterator[Json]:
    """The steps among what the client prints; it tells the totals besides, and they are in the steps."""
    for line in lines:
        step = words.parsed(line)
        if step:
            yield step


def _check_environment(environment: Json, prefixes: Sequence[str]) -> None:
    """An environment that names code is the word of whoever wrote the PolicyModel, and here it would run with the caller's rights."""
    named = str(environment.get("entryPoint") or environment.get("id", ""))
    if "entryPoint" not in environment and ":" not in named:
        return
    module = named.partition(":")[0]
    if not any(module == prefix or module.startswith(prefix + ".") for prefix in prefixes):
        raise ApiTrouble(
            f"the environment {named} would run code of {module} on this machine: allow it with --entry-point-prefix {module}", EXIT_USAGE
        )
