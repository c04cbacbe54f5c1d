"""Returns of episodes, as clients report them: by them a candidate is judged against the policy that serves. Bounded, and idempotent.

`POST <route>/v1/rewards` takes

| member | what |
| --- | --- |
| `session` | names the episode, as `x-session-id` does |
| `step` | how many actions the episode had; the greatest one counts, so any report may be sent again, in any order, to any replica |
| `return` | the sum of the rewards so far |
| `done` | whether the episode is over; only then does it count |
| `digest`, `decision_id` | of an answer in that episode: which policy acted; the header `x-policy-pin` says it as well, and goes first |
"""

import hashlib
import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from app.serving.acting import DIGEST_PREFIX
from app.serving.problem import Problem

SESSIONS = 4096
LONGEST_NAME = 256
LARGEST_STEP = 2**53
LARGEST_RETURN = 1e15
MEMBERS = ("session", "step", "return", "done", "digest", "decision_id")

SCHEMA: dict[str, Any] = {
    "type": "object",
    "required": ["session", "step", "return"],
    "additionalProperties": False,
    "properties": {
        "session": {"type": "string", "minLength": 1, "maxLength": LONGEST_NAME, "description": "Names the episode."},
        "step": {"type": "integer", "minimum": 0, "maximum": LARGEST_STEP, "description": "Actions so far; the greatest one counts."},
        "return": {"type": "number", "minimum": -LARGEST_RETURN, "maximum": LARGEST_RETURN, "description": "Sum of the rewards so far."},
        "done": {"type": "boolean", "default": False, "description": "Whether the episode is over."},
        "digest": {"type": "string", "maxLength": LONGEST_NAME, "description": "Of the policy that acted."},
        "decision_id": {"type": "string", "maxLength": LONGEST_NAME, "description": "Of an answer in this episode."},
    },
}


@dataclass(frozen=True)
class Report:
    """What a client reports of an episode.

    Attributes:
        total: the episode's return so far.
        is_done: whether it is the last one of its episode.
        digest, decision_id: of the policy that acted, and of a decision of it; empty where they are not told.
    """

    session: str
    step: int
    total: float
    is_done: bool
    digest: str = ""
    decision_id: str = ""

    def policy_of(self, pin: str, known: Collection[str]) -> str | None:
        """The digest of the policy that acted; None where it is not told, or none that is held.

        Args:
            pin: the header `x-policy-pin`, which may be empty.
            known: digests that there may be reports of.
        """
        if pin or self.digest:
            named = pin or self.digest
            return named if named in known else None
        prefix = self.decision_id.partition("-")[0]
        return next((digest for digest in known if prefix and digest[DIGEST_PREFIX] == prefix), None)


def parsed_report(content: Any) -> Report:
    """The report in a decoded body.

    Raises:
        Problem: 422, naming the bad part.
    """
    if not isinstance(content, dict):
        raise Problem(422, "the body must be a JSON object", "")
    for name in content:
        if name not in MEMBERS:
            raise Problem(422, f"there may be {', '.join(MEMBERS)}, and nothing else", "")
    session = _text(content, "session")
    if not session:
        raise Problem(422, "must be the name of an episode", "/session")
    step: Any = content.get("step")
    total: Any = content.get("return")
    is_done = content.get("done", False)
    if type(step) not in (int, float) or not 0 <= step <= LARGEST_STEP or step != int(step):
        raise Problem(422, f"must be an integer from 0 to {LARGEST_STEP}", "/step")
    if type(total) not in (int, float) or not -LARGEST_RETURN <= total <= LARGEST_RETURN:
        raise Problem(422, f"must be a number from {-LARGEST_RETURN:g} to {LARGEST_RETURN:g}", "/return")
    if not isinstance(is_done, bool):
        raise Problem(422, "must be true or false", "/done")
    return Report(session, int(step), float(total), is_done, _text(content, "digest"), _text(content, "decision_id"))


def _text(content: dict[str, Any], name: str) -> str:
    text = content.get(name, "")
    # A lone surrogate is no text that could be written anywhere.
    if not isinstance(text, str) or len(text) > LONGEST_NAME or any("\ud800" <= letter <= "\udfff" for letter in text):
        raise Problem(422, f"must be text of at most {LONGEST_NAME} characters", f"/{name}")
    return text


@dataclass(frozen=True)
class Moments:
    """How many values there were, their mean, and the sum of their squared distances from it.

    Source: Chan, Golub, LeVeque, Updating formulae and a pairwise algorithm for computing sample variances (1979).
    """

    count: int = 0
    mean: float = 0.0
    squares: float = 0.0

    def with_these(self, other: "Moments") -> "Moments":
        """Those of both together."""
        count = self.count + other.count
        if count == 0:
            return self
        apart = other.mean - self.mean
        mean = self.mean + apart * other.count / count
        return Moments(count, mean, self.squares + other.squares + apart * apart * self.count * other.count / count)

    @property
    def std(self) -> float:
        """The sample standard deviation; 0 of fewer than two."""
        return math.sqrt(self.squares / (self.count - 1)) if self.count > 1 else 0.0


@dataclass(frozen=True)
class Seen:
    """The last report of one session, with the digest that it is attributed to."""

    step: int
    is_done: bool
    total: float
    digest: str

    def is_after(self, other: "Seen | None") -> bool:
        """Whether this one counts rather than another one of its session."""
        return other is None or (self.step, self.is_done) > (other.step, other.is_done)


class Rewards:
    """What was reported to one replica since the trial began.

    The last report of `SESSIONS` sessions is kept; of those before only how many episodes they were, and their mean and deviation.
    """

    def __init__(self) -> None:
        self._sessions: dict[str, Seen] = {}
        self._before: dict[str, Moments] = {}

    def add(self, report: Report, digest: str) -> None:
        """Takes a report of an episode that this policy played."""
        name = hashlib.blake2b(report.session.encode(), digest_size=8).hexdigest()
        seen = Seen(report.step, report.is_done, report.total, digest)
        if not seen.is_after(self._sessions.get(name)):
            return
        self._sessions.pop(name, None)  # so that it becomes the youngest
        self._sessions[name] = seen
        if len(self._sessions) > SESSIONS:
            oldest = self._sessions.pop(next(iter(self._sessions)))
            if oldest.is_done:
                self._before[oldest.digest] = self._before.get(oldest.digest, Moments()).with_these(Moments(1, oldest.total))

    def clear(self) -> None:
        """Forgets all: another trial begins."""
        self._sessions.clear()
        self._before.clear()

    def told(self) -> dict[str, Any]:
        """What another replica needs to merge these with its own; JSON."""
        return {
            "sessions": {name: [seen.step, seen.is_done, seen.total, seen.digest] for name, seen in self._sessions.items()},
            "before": {digest: [each.count, each.mean, each.squares] for digest, each in self._before.items()},
        }


def merged_returns(told: Iterable[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """The returns of finished episodes by policy; of a session that several replicas know the last step counts.

    Args:
        told: by each replica, see `Rewards.told`.

    Returns:
        For each digest `episodes`, `mean` and `std` (the sample's).
    """
    # Rows as they are told, [step, done, return, digest]: thousands of them are read between two turns of a replica's loop.
    sessions: dict[str, list[Any]] = {}
    found: dict[str, Moments] = {}
    for each in told:
        for digest, moments in each["before"].items():
            found[digest] = found.get(digest, Moments()).with_these(Moments(*moments))
        for name, row in each["sessions"].items():
            known = sessions.get(name)
            if known is None or row[:2] > known[:2]:
                sessions[name] = row
    totals: dict[str, list[float]] = {}
    for _, is_done, total, digest in sessions.values():
        if is_done:
            totals.setdefault(digest, []).append(total)
    for digest, returns in totals.items():
        found[digest] = found.get(digest, Moments()).with_these(_moments(returns))
    return {digest: {"episodes": each.count, "mean": each.mean, "std": each.std} for digest, each in sorted(found.items())}


def _moments(values: Sequence[float]) -> Moments:
    mean = math.fsum(values) / len(values)
    return Moments(len(values), mean, math.fsum((value - mean) ** 2 for value in values))
