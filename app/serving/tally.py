"""Counts what one policy does while a candidate is tried: what the candidate is judged by. Bounded, however long a trial takes."""

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from app.spaces import Array, Discrete, Space

# Reasons why an answer is counted against a policy, beside those of `app.serving.soundness`.
RAISED = "Raised"
SLOW = "Slow"

# A Discrete space with more actions is not counted action by action.
MOST_ACTIONS = 1024
MOST_SESSIONS = 4096
HASH_SPACE = 2**64


class Distinct:
    """How many different values were added: exact up to `MOST_SESSIONS`, then an estimate, from as many hashes.

    Only hashes below a limit are kept, and the limit is halved whenever there are too many: each one stands for so many more.
    Source: Flajolet, On adaptive sampling, Computing 43 (1990).
    """

    def __init__(self) -> None:
        self._kept: set[int] = set()
        self._limit = HASH_SPACE

    def add(self, hashed: int) -> None:
        """Adds a value by its hash, uniform from 0 to 2^64 - 1."""
        if hashed >= self._limit or hashed in self._kept:
            return
        self._kept.add(hashed)
        while len(self._kept) > MOST_SESSIONS:
            self._limit //= 2
            self._kept = {one for one in self._kept if one < self._limit}

    @property
    def count(self) -> int:
        """How many there were."""
        return len(self._kept) * (HASH_SPACE // self._limit)


def has_counted_actions(space: Space) -> bool:
    """Whether the actions of a space are counted one by one."""
    return isinstance(space, Discrete) and space.n <= MOST_ACTIONS


@dataclass
class Tally:
    """What one policy did.

    Attributes:
        digest: of the policy.
        counts_actions: see `has_counted_actions`.
        requests: that were decided for it, those that it failed included.
        failures: of those, what was not given to the client, by reason.
        inferences, inference_s, observations: what it was asked, and the processor time that this took. A replica's loop is one thread, and
            so is an inference: what else the machine does is not in it.
        singles, single_s: of those the ones of one observation alone, by which two policies can be compared.
        sessions: that it was asked in.
        actions: by value.
    """

    digest: str
    counts_actions: bool = False
    requests: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    inferences: int = 0
    inference_s: float = 0.0
    observations: int = 0
    singles: int = 0
    single_s: float = 0.0
    sessions: Distinct = field(default_factory=Distinct)
    actions: Counter[int] = field(default_factory=Counter)

    def took(self, seconds: float, observations: int) -> None:
        """Counts the time of one inference."""
        self.inferences += 1
        self.inference_s += seconds
        self.observations += observations
        if observations == 1:
            self.singles += 1
            self.single_s += seconds

    def acted(self, actions: Array) -> None:
        """Counts actions, of shape (batch,) where they are counted."""
        if not self.counts_actions:
            return
        if len(actions) == 1:
            self.actions[int(actions[0])] += 1
        else:
            values, counts = np.unique(actions, return_counts=True)
            self.actions.update(dict(zip(values.tolist(), counts.tolist(), strict=True)))

    def add(self, other: "Tally") -> None:
        """Adds what was counted apart, but for sessions."""
        self.requests += other.requests
        self.failures.update(other.failures)
        self.inferences += other.inferences
        self.inference_s += other.inference_s
        self.observations += other.observations
        self.singles += other.singles
        self.single_s += other.single_s
        self.actions.update(other.actions)

    @property
    def errors(self) -> int:
        """Requests that it failed."""
        return self.failures.total()

    def figures(self) -> dict[str, Any]:
        """The tally as the status tells it."""
        return {
            "digest": self.digest,
            "requests": self.requests,
            "errors": self.errors,
            "failures": dict(self.failures),
            "inferences": self.singles,
            "inferenceSeconds": round(self.single_s, 6),
            "sessions": self.sessions.count,
            "actions": {str(action): count for action, count in sorted(self.actions.items())},
        }
