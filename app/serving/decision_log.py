"""A log of decisions and rewards as JSON Lines, for off-policy evaluation later. Off unless `user_config.decisionLog` switches it on.

`{"directory": "default/cartpole", "fileBytes": 16777216, "totalBytes": 1073741824}`; all but the directory may be left out. It lies below
`/decisions`, where a volume is mounted, or below what the environment variable `POLICYMODEL_DECISIONS` names. Each replica writes files of
its own there, `<replica>-<number>.jsonl`; the oldest files of all replicas go where they hold too much together.

A thread writes, some time after the answer. What comes faster than it can be written is dropped and counted; so is what cannot be written.
"""

import asyncio
import contextlib
import os
import time
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from app.policy import Decision
from app.serving.acting import Question, Serving
from app.serving.rewards import Report
from app.serving.shadow import bytes_of

ROOT, ROOT_VARIABLE = "/decisions", "POLICYMODEL_DECISIONS"
FILE_BYTES = 16 * 1024 * 1024
TOTAL_BYTES = 1024 * 1024 * 1024
FLUSH_S = 1.0
WAITING = 4096
WAITING_BYTES = 32 * 1024 * 1024


@dataclass(frozen=True)
class LogTerms:
    """Where decisions are logged, and how much of them is kept.

    Attributes:
        file_bytes: a file that is longer is ended.
        total_bytes: of all files of all replicas.
    """

    directory: Path
    file_bytes: int = FILE_BYTES
    total_bytes: int = TOTAL_BYTES


def parsed_log_terms(log: Any) -> LogTerms | None:
    """What `user_config.decisionLog` asks for; None where it asks for nothing, or names no directory below ours."""
    match log:
        case {"directory": str(directory)} if directory and ".." not in Path(directory).parts and not Path(directory).is_absolute():
            file_bytes, total_bytes = log.get("fileBytes", FILE_BYTES), log.get("totalBytes", TOTAL_BYTES)
            if all(type(number) is int and number > 0 for number in (file_bytes, total_bytes)):
                return LogTerms(Path(os.environ.get(ROOT_VARIABLE, ROOT)) / directory, file_bytes, total_bytes)
    return None


@dataclass(slots=True)
class Entry:
    """One decision, as it was made; it is put into words when it is written. Not frozen, for it is made for each request."""

    time_s: float
    decision_id: str
    session: bytes
    serving: Serving
    question: Question
    decision: Decision

    def line(self) -> bytes:
        """The entry as a line of JSON."""
        question, decision = self.question, self.decision
        content = {
            "kind": "decision",
            "time": self.time_s,
            "decision_id": self.decision_id,
            "session": self.session.decode("latin-1") or None,
            "digest": self.serving.policy.digest,
            "revision": self.serving.revision,
            "observations": [leaf.tolist() for leaf in question.observations],
            "state": None if question.state is None else [leaf.tolist() for leaf in question.state],
            "action_masks": None if question.masks is None else question.masks.tolist(),
            "explore": question.explore,
            "seed": question.seed,
            "actions": [leaf.tolist() for leaf in decision.actions],
            "action_dist_inputs": decision.action_dist_inputs.tolist(),
        }
        return orjson.dumps(content, option=orjson.OPT_APPEND_NEWLINE)


@dataclass(frozen=True)
class Rewarded:
    """One report of an episode's return, with the digest that it is attributed to."""

    time_s: float
    report: Report
    digest: str | None

    def line(self) -> bytes:
        """The report as a line of JSON."""
        report = self.report
        content = {
            "kind": "reward",
            "time": self.time_s,
            "session": report.session,
            "step": report.step,
            "return": report.total,
            "done": report.is_done,
            "digest": self.digest,
            "decision_id": report.decision_id or None,
        }
        return orjson.dumps(content, option=orjson.OPT_APPEND_NEWLINE)


class DecisionLog:
    """The log of one replica.

    Args:
        replica: its name, which the names of its files begin with.
    """

    def __init__(self, terms: LogTerms, replica: str) -> None:
        self.terms = terms
        self._files = Files(terms, replica)
        self._waiting: deque[Entry | Rewarded] = deque()
        self._waiting_bytes = 0
        self._is_under_way = False
        self.written = 0
        self.dropped = 0
        self.error: str | None = None

    def decided(self, decision_id: str, session: bytes, serving: Serving, question: Question, decision: Decision) -> None:
        """Takes note of a decision."""
        self._add(Entry(time.time(), decision_id, session, serving, question, decision), bytes_of(question, decision))

    def rewarded(self, report: Report, digest: str | None) -> None:
        """Takes note of a reward."""
        self._add(Rewarded(time.time(), report, digest), 0)

    def figures(self) -> dict[str, Any]:
        """What the status tells of it."""
        return {"directory": str(self.terms.directory), "written": self.written, "dropped": self.dropped, "error": self.error}

    def _add(self, entry: Entry | Rewarded, size: int) -> None:
        if len(self._waiting) >= WAITING or self._waiting_bytes + size > WAITING_BYTES:
            self.dropped += 1
            return
        self._waiting.append(entry)
        self._waiting_bytes += size
        if not self._is_under_way:
            self._is_under_way = True
            asyncio.get_running_loop().call_later(FLUSH_S, self._begin)

    def _begin(self) -> None:
        waiting, self._waiting, self._waiting_bytes = self._waiting, deque(), 0
        asyncio.get_running_loop().run_in_executor(None, self._files.write, list(waiting)).add_done_callback(self._end)

    def _end(self, done: "asyncio.Future[tuple[int, int, str | None]]") -> None:
        self._is_under_way = False
        if done.cancelled():
            return
        written, lost, self.error = done.result()
        self.written += written
        self.dropped += lost
        if self._waiting:
            self._is_under_way = True
            asyncio.get_running_loop().call_later(FLUSH_S, self._begin)


class Files:
    """The files of one replica. For one thread at a time."""

    def __init__(self, terms: LogTerms, replica: str) -> None:
        self._terms = terms
        self._replica = replica
        self._number = 0

    @property
    def path(self) -> Path:
        """Where the next line goes."""
        return self._terms.directory / f"{self._replica}-{self._number:06d}.jsonl"

    def write(self, entries: list[Entry | Rewarded]) -> tuple[int, int, str | None]:
        """Appends lines; gives how many were written, how many were not, and why."""
        written = 0
        try:
            self._terms.directory.mkdir(parents=True, exist_ok=True)
            while written < len(entries):
                with self.path.open("ab") as file:
                    while written < len(entries) and file.tell() < self._terms.file_bytes:
                        file.write(entries[written].line())
                        written += 1
                    is_full = file.tell() >= self._terms.file_bytes
                if is_full:
                    self._number += 1
                    self._prune()
        except OSError as error:
            return written, len(entries) - written, f"{self._terms.directory}: {error.strerror}"
        return written, 0, None

    def _prune(self) -> None:
        """Removes the oldest files as long as all together hold too much; the file that is written next is not there yet."""
        found = []
        for path in self._terms.directory.glob("*.jsonl"):
            with contextlib.suppress(FileNotFoundError):  # another replica removed it
                found.append((path.stat().st_mtime, path.stat().st_size, path))
        total = sum(size for _, size, _ in found)
        for _, size, path in sorted(found):
            if total <= self._terms.total_bytes:
                return
            path.unlink(missing_ok=True)
            total -= size
