"""What a run says: one JSON object a line on stdout, and its last one in the termination message too. It decides nothing."""

import argparse
import contextlib
import json
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn, TextIO

from app.errors import InputError, RunError

# Kubernetes cuts a termination message here: https://kubernetes.io/docs/tasks/debug/debug-application/determine-reason-pod-failure/
TERMINATION_MESSAGE_BYTES = 4096


class Report:
    """The lines of one run. Nothing else in the process writes to `stream`."""

    def __init__(self, stream: TextIO, termination_log: Path | None) -> None:
        self._stream = stream
        self._termination_log = termination_log

    def progress(self, progress: dict[str, Any]) -> None:
        """Says how far the run is."""
        self._write_line({"progress": progress})

    def serving(self, url: str) -> None:
        """Says where a server answers."""
        self._write_line({"serving": {"url": url}})

    def result(self, result: dict[str, Any]) -> None:
        """Says what came out; nothing is said after it. The returns of an evaluation, one by one, are in its line alone."""
        evaluation = {name: value for name, value in result.get("evaluation", {}).items() if name != "returns"}
        self._write_last({"result": result}, {"result": {**result, "evaluation": evaluation} if evaluation else result})

    def error(self, reason: str, message: str) -> None:
        """Says why nothing came out; nothing is said after it."""
        fitting = message.encode()[: TERMINATION_MESSAGE_BYTES // 4].decode(errors="ignore")
        word = {"error": {"reason": reason, "message": fitting}}
        self._write_last(word, word)

    def _write_line(self, line: dict[str, Any]) -> None:
        self._stream.write(json.dumps(line, allow_nan=False) + "\n")
        self._stream.flush()

    def _write_last(self, line: dict[str, Any], word: dict[str, Any]) -> None:
        self._write_line(line)
        text = json.dumps(word, allow_nan=False)
        if self._termination_log is not None and len(text.encode()) <= TERMINATION_MESSAGE_BYTES:
            with contextlib.suppress(OSError):  # the line on stdout says the same; a pod without the file is no failure
                self._termination_log.write_text(text)


@contextlib.contextmanager
def claimed_stdout() -> Iterator[TextIO]:
    """Gives stdout to one writer: until the end, whatever else this process and its libraries print goes to stderr.

    File descriptors are moved, not `sys.stdout`, because Ray and C++ libraries write past Python.
    """
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    stream = os.fdopen(os.dup(kept), "w")
    try:
        yield stream
    finally:
        stream.close()
        sys.stdout.flush()
        os.dup2(kept, 1)
        os.close(kept)


def termination_log() -> Path | None:
    """The file that Kubernetes reads as the termination message, None outside a container."""
    named = os.environ.get("TERMINATION_LOG")
    if named:
        return Path(named)
    default = Path("/dev/termination-log")
    return default if default.exists() else None


def reported_run(run: Callable[[Report], dict[str, Any]]) -> int:
    """Runs `run`, says its result or its failure, and gives the exit code (0 done, 2 wrong input, 1 may be retried)."""
    with claimed_stdout() as stream:
        report = Report(stream, termination_log())
        try:
            report.result(run(report))
        except RunError as error:
            report.error(error.reason, error.message)
            return error.exit_code
        except Exception as error:  # noqa: BLE001 - the last line must say why, whatever it was
            traceback.print_exc(file=sys.stderr)
            # Its text may hold a secret of the environment's: it is in the log, which fewer may read than the status.
            report.error("Internal", f"{type(error).__name__}; the log of the Job has more")
            return 1
        return 0


class ArgumentParser(argparse.ArgumentParser):
    """Says wrong flags as every other wrong input: by an exception, so that the last line on stdout tells it."""

    def error(self, message: str) -> NoReturn:
        """Raises InputError where argparse would end the process."""
        raise InputError("InvalidArguments", message)


def parsed_json(flag: str, text: str) -> Any:
    """The JSON value of a flag.

    Raises:
        InputError: the text is not JSON.
    """
    try:
        return json.loads(text)
    except ValueError as error:
        raise InputError("InvalidArguments", f"{flag} is not JSON: {error}") from error
