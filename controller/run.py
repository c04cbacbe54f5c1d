"""`policymodel run`: brings one PolicyModel to life on this machine, shows how it gets on, and plays against it."""

from __future__ import annotations

import argparse
import json
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from controller import schema
from controller import status as statuses
from controller.local import Local, StateInUse
from controller.loop import ActionRefused, reconcile_once
from controller.model import Observed, Settings, Status

EPISODES = 20
TICK_S = 0.5
EXIT_FAILED, EXIT_USAGE = 1, 2


def run(options: argparse.Namespace) -> int:
    """Brings one PolicyModel to life here, and keeps it so until Ctrl-C."""
    if not 0 < options.port < 65536:
        print(f"--port: 1 to 65535 is allowed, not {options.port}", file=sys.stderr)
        return EXIT_USAGE
    if not _is_free(options.port):
        print(f"--port: {options.port} is in use on 127.0.0.1; give another", file=sys.stderr)
        return EXIT_USAGE
    try:
        local = Local(options.file, options.state, options.port)
    except (ValueError, RecursionError, OSError, StateInUse) as error:
        said = str(error) if isinstance(error, schema.InvalidPolicyModel | OSError | StateInUse) else f"not YAML: {type(error).__name__}"
        print(f"{options.file}: {said}", file=sys.stderr)
        return EXIT_USAGE
    with _interruptible():
        try:
            return _keep(local, local.settings(options.entry_point_prefix), once=options.once)
        except KeyboardInterrupt:
            return 0 if not options.once else 130
        finally:
            # A second Ctrl-C is impatience: what is being ended is ended all the same.
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            local.close()


def _keep(local: Local, settings: Settings, *, once: bool) -> int:
    display, played = _Display(), 0
    while True:
        refusal = local.reread()
        if refusal:
            display.say(f"the edit is refused, and the last good one stays in force:\n{refusal}")
        local.retry()
        try:
            reconcile_once(local, local.key, settings)
        except ActionRefused as error:
            display.say(str(error))
        seen = local.observe(local.key)
        assert seen is not None
        display.show(seen.status)
        ready, serving = seen.status.condition(statuses.READY), seen.status.serving
        if once and _is_hopeless(seen):
            display.close()
            return EXIT_FAILED
        if ready and ready.status == "True" and serving and serving.revision and serving.revision != played:
            display.close()
            episodes = subprocess.run(_client(seen, EPISODES, quiet=False), check=False)
            if once:
                return episodes.returncode
            played = serving.revision
            display.say(f"revision {played} answers at {seen.status.url}; edit {local.key[1]}'s file to change it, Ctrl-C to stop")
        time.sleep(TICK_S)


def _is_hopeless(seen: Observed) -> bool:
    """Whether nothing is under way and something is wrong: only another spec can help."""
    degraded, progressing = seen.status.condition(statuses.DEGRADED), seen.status.condition(statuses.PROGRESSING)
    return bool(degraded and progressing and degraded.status == "True" and progressing.status != "True")


def _client(seen: Observed, episodes: int, *, quiet: bool) -> list[str]:
    environment = json.dumps(seen.spec.environment)
    command = [sys.executable, "-m", "app.client", "--url", str(seen.status.url), "--episodes", str(episodes), "--environment", environment]
    return [*command, "--quiet"] if quiet else command


class _Display:
    """A progress bar while a policy is trained, and a line for each thing that changes."""

    def __init__(self) -> None:
        self._console = Console(highlight=False, soft_wrap=True)
        self._bar: Progress | None = None
        self._told: dict[str, str] = {}
        self._last_tenth = -1

    def say(self, text: str) -> None:
        self._console.print(text, markup=False)

    def show(self, status: Status) -> None:
        for condition in status.conditions:
            news = f"{condition.reason}"
            if self._told.get(condition.type) != news and condition.type in (statuses.TRAINED, statuses.APPROVED, statuses.READY):
                self._told[condition.type] = news
                self.say(f"{time.strftime('%H:%M:%S')} {condition.type}={condition.status} {condition.reason}: {condition.message}")
        if status.schedule and self._told.get("schedule") != status.schedule.next_time:
            self._told["schedule"] = status.schedule.next_time
            self.say(f"spec.training.schedule: trains again at {status.schedule.next_time}, if this is running then")
        progress = status.training.progress if status.training else None
        if progress is None:
            self.close()
            return
        reward = "-" if progress.episode_return_mean is None else f"{progress.episode_return_mean:.1f}"
        figures = f"{progress.env_steps} steps, return {reward}"
        if status.training and status.training.search:
            figures = f"trial {status.training.search.best} of {len(status.training.search.trials)} is best: {figures}"
        if self._console.is_terminal:
            if self._bar is None:
                columns = (TextColumn("training"), BarColumn(), TextColumn("{task.percentage:>3.0f}%"), TextColumn("{task.description}"))
                self._bar = Progress(*columns, console=self._console, transient=True)
                self._bar.add_task("", total=100)
                self._bar.start()
            left = "" if progress.eta_s is None else f", {progress.eta_s:.0f} s left"
            self._bar.update(self._bar.task_ids[0], completed=progress.percent, description=figures + left)
        elif int(progress.percent // 10) != self._last_tenth:
            self._last_tenth = int(progress.percent // 10)
            self.say(f"training {progress.percent:.0f} %: {figures}")

    def close(self) -> None:
        if self._bar:
            self._bar.stop()
            self._bar = None


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


@contextmanager
def _interruptible() -> Iterator[None]:
    """SIGTERM and SIGHUP end a run as Ctrl-C does."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
