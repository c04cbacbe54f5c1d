"""Starts what is measured, each in a session of its own, and ends all of it: whatever of a session is left is killed."""

import contextlib
import datetime
import http.client
import os
import platform
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

END_S = 20.0
POLL_S = 0.02
LOG_CHARACTERS = 2000


class NotStarted(Exception):
    """A server ended or did not answer in time; the message holds the end of its log."""


@dataclass(frozen=True)
class Launch:
    """How a server is started.

    Attributes:
        environment: over that of this process.
        replica_port: where the first replica of Serve listens itself; 0 where there is none.
    """

    command: list[str]
    port: int
    environment: dict[str, str] = field(default_factory=dict)
    replica_port: int = 0


@contextlib.contextmanager
def running(launch: Launch, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The server's process for the length of the block."""
    environment = {**os.environ, **launch.environment}
    with log.open("wb") as written:
        # The pipe ends `app.serve` even where this process is killed.
        process = subprocess.Popen(
            launch.command, stdin=subprocess.PIPE, stdout=written, stderr=subprocess.STDOUT, env=environment, start_new_session=True
        )
    try:
        yield process
    finally:
        _end(process)


@contextlib.contextmanager
def awake(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """Lets a session run for the length of the block alone: what a server does while nobody asks it would take a share of the cores."""
    _signal_all(process, signal.SIGCONT)
    try:
        yield
    finally:
        _signal_all(process, signal.SIGSTOP)


def _signal_all(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    for pid in members(process.pid):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)


def _end(process: subprocess.Popen[bytes]) -> None:
    _signal_all(process, signal.SIGCONT)
    if process.stdin is not None:
        process.stdin.close()
    if process.poll() is None:
        process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(END_S)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    while left := members(process.pid):
        for pid in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(POLL_S)


def members(session: int) -> list[int]:
    """The processes of a session that are not dead; what a server starts may have a process group of its own."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):  # it ended meanwhile
            fields = stat_fields(stat.read_text())
            if int(fields[3]) == session and fields[0] not in "ZX":
                found.append(int(stat.parent.name))
    return found


def stat_fields(stat: str) -> list[str]:
    """The fields of /proc/PID/stat from the third on (state, ppid, pgrp, session, ...; proc(5)); the name before them may hold anything."""
    return stat.rpartition(")")[2].split()


def wait_for_answer(launch: Launch, process: subprocess.Popen[bytes], port: int, path: str, body: bytes, log: Path, limit_s: float) -> None:
    """Waits for the first answer 200 to a POST.

    Raises:
        NotStarted: there is none in time.
    """
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline and process.poll() is None:
        if is_answered(port, path, body):
            return
        time.sleep(POLL_S)
    why = f"ended with exit code {process.returncode}" if process.poll() is not None else f"did not answer within {limit_s:g} s"
    raise NotStarted(f"{' '.join(launch.command)} {why}:\n{log.read_text(errors='replace')[-LOG_CHARACTERS:]}")


def is_answered(port: int, path: str, body: bytes) -> bool:
    """Whether a POST is answered by 200 now."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("POST", path, body, {"Content-Type": "application/json"})
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def free_port() -> int:
    """A port that nothing listens at now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def free_range(first: int, size: int, last: int = 32700) -> int:
    """The first of `size` ports side by side that are all free, at `first` or above, below the ports that the kernel hands out.

    Raises:
        NotStarted: there are none.
    """
    for base in range(first, last - size, size):
        if all(_is_free(port) for port in range(base, base + size)):
            return base
    raise NotStarted(f"no {size} free ports side by side between {first} and {last}")


def _is_free(port: int) -> bool:
    with socket.socket() as listener:
        try:
            listener.bind(("", port))
        except OSError:
            return False
        return True


def machine() -> dict[str, Any]:
    """What was measured on, and when."""
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "cores": os.cpu_count(),
        "memory": f"{memory_bytes / 2**30:.1f} GiB",
        "python": platform.python_version(),
        "ray": version("ray"),
        "onnxruntime": version("onnxruntime"),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }
