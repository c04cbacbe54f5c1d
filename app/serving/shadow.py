"""Asks a candidate what the serving policy was asked, after the answer, and counts where both decide alike. No client waits for it.

A thread of its own asks, so that a candidate that takes long does not stand in the way of answers. It shares the interpreter with the
loop, though: whoever is answered while it works waits for it. So it works four times a second at most, which is too seldom to be seen in
the 99th percentile of a busy replica, and takes a twentieth of one processor at most. What comes meanwhile waits in a bounded queue, and is
dropped where that is full: about a thousand requests a second are compared, and the rest of them are counted.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from app.policy import Decision, Policy
from app.serving.acting import Question
from app.serving.soundness import Soundness, agreements
from app.serving.tally import RAISED, Tally, has_counted_actions
from app.spaces import Arrays

WAITING = 256
WAITING_BYTES = 8 * 1024 * 1024
PAUSE_S = 0.25
# Pauses are so many times as long as the work.
REST = 19
# More than this in one inference would hold memory, and gains nothing.
JOINED_OBSERVATIONS = 1024


@dataclass(slots=True)
class Answered:
    """What the serving policy was asked, and decided. Made for each request, so it is not frozen: that would cost as much again."""

    question: Question
    decision: Decision

    @property
    def count(self) -> int:
        """How many observations it is."""
        return len(self.question.observations[0])

    @property
    def is_plain(self) -> bool:
        """Whether it can be asked together with others."""
        question = self.question
        return not question.explore and question.masks is None and question.state is None


@dataclass
class Outcome:
    """What the candidate did with some of them.

    Attributes:
        tally: of the candidate, for this part alone.
        soundness: of its decisions.
        compared, agreed: observations.
        timed: processor time in seconds and observations of each inference that answers one request.
    """

    tally: Tally
    soundness: Soundness
    compared: int = 0
    agreed: int = 0
    timed: list[tuple[float, int]] = field(default_factory=list)


class Shadow:
    """The queue of one candidate.

    Args:
        policy: the candidate.
        count: takes what came of a part of the queue, in the loop's thread.
    """

    def __init__(self, policy: Policy, count: Callable[[Outcome], None]) -> None:
        self._policy = policy
        self._count = count
        self._waiting: deque[Answered] = deque()
        self._waiting_bytes = 0
        self._is_under_way = False
        self._is_over = False
        self.dropped = 0

    def offer(self, question: Question, decision: Decision) -> None:
        """Takes one that is to be compared, or drops it."""
        if question.state is not None:
            # A recurrent state is the serving policy's own: only the beginnings of episodes can be compared.
            return
        size = bytes_of(question, decision)
        if self._is_over or len(self._waiting) >= WAITING or self._waiting_bytes + size > WAITING_BYTES:
            self.dropped += len(question.observations[0])
            return
        self._waiting.append(Answered(question, decision))
        self._waiting_bytes += size
        if not self._is_under_way:
            self._is_under_way = True
            asyncio.get_running_loop().call_later(PAUSE_S, self._begin)

    def close(self) -> None:
        """Asks no more; what waits is dropped."""
        self._is_over = True
        self.dropped += sum(one.count for one in self._waiting)
        self._waiting.clear()
        self._waiting_bytes = 0

    def _begin(self) -> None:
        if not self._waiting:
            self._is_under_way = False
            return
        waiting, self._waiting, self._waiting_bytes = self._waiting, deque(), 0
        asyncio.get_running_loop().run_in_executor(None, decided_by, self._policy, list(waiting)).add_done_callback(self._end)

    def _end(self, done: "asyncio.Future[tuple[Outcome, float]]") -> None:
        if done.cancelled():
            return
        outcome, seconds = done.result()
        if not self._is_over:
            self._count(outcome)
        asyncio.get_running_loop().call_later(max(PAUSE_S, REST * seconds), self._begin)


def bytes_of(question: Question, decision: Decision) -> int:
    """How much memory the arrays of a decision, and of what it answers, hold."""
    asked = (*question.observations, *(question.state or ())) if question.masks is None else (*question.observations, question.masks)
    return sum(array.nbytes for array in (*asked, *decision.actions, decision.action_dist_inputs, *decision.state))


def decided_by(policy: Policy, answered: Sequence[Answered]) -> tuple[Outcome, float]:
    """What a policy does with what another one answered, and the processor time of it in seconds.

    The first request is asked alone, as the serving policy was: that is measured. The others are joined, which costs a tenth.
    """
    began = time.thread_time()
    outcome = Outcome(Tally(policy.digest, has_counted_actions(policy.action_space)), Soundness(policy.action_space))
    first, *others = answered
    alone = [first, *(one for one in others if not one.is_plain)]
    joined = [one for one in others if one.is_plain]
    for one in alone:
        _ask_alone(policy, one, outcome)
    for part in _parts(joined):
        if not _ask_joined(policy, part, outcome):
            # One of them fails it: which one shows when they are asked by themselves.
            for one in part:
                _ask_alone(policy, one, outcome)
    return outcome, time.thread_time() - began


def _parts(joined: Sequence[Answered]) -> list[list[Answered]]:
    parts: list[list[Answered]] = []
    room = 0
    for one in joined:
        if one.count > room:
            parts.append([])
            room = JOINED_OBSERVATIONS
        parts[-1].append(one)
        room -= one.count
    return parts


def _ask_alone(policy: Policy, one: Answered, outcome: Outcome) -> None:
    tally = outcome.tally
    tally.requests += 1
    began = time.thread_time()
    try:
        decision = one.question.put_to(policy)
        seconds = time.thread_time() - began
        flaw = outcome.soundness.flaw_of(decision, one.count)
        ours, theirs = (_likeliest(policy, one.question, each) for each in (decision, one.decision))
    except Exception:  # noqa: BLE001  whatever a candidate raises is its own failure: it is counted, and the controller judges it
        tally.failures[RAISED] += 1
        return
    tally.took(seconds, one.count)
    outcome.timed.append((seconds, one.count))
    if flaw is not None:
        if outcome.soundness.flaw_of(one.decision, one.count) is None:
            tally.failures[flaw] += 1
        return
    tally.acted(decision.actions[0])
    outcome.compared += one.count
    outcome.agreed += agreements(policy.action_space, ours, theirs)


def _ask_joined(policy: Policy, part: Sequence[Answered], outcome: Outcome) -> bool:
    """Whether the candidate could answer all of them in one inference; else nothing is counted."""
    observations = tuple(np.concatenate(leaves) for leaves in zip(*(one.question.observations for one in part), strict=True))
    count = len(observations[0])
    try:
        decision = policy.decide(observations)
        is_sound = outcome.soundness.flaw_of(decision, count) is None
    except Exception:  # noqa: BLE001  see `_ask_alone`, which is asked next
        return False
    if not is_sound:
        return False
    theirs = tuple(np.concatenate(leaves) for leaves in zip(*(one.decision.actions for one in part), strict=True))
    outcome.tally.requests += len(part)
    outcome.tally.acted(decision.actions[0])
    outcome.compared += count
    outcome.agreed += agreements(policy.action_space, decision.actions, theirs)
    return True


def _likeliest(policy: Policy, question: Question, decision: Decision) -> Arrays:
    """The actions that would be taken without exploring: what is drawn says little of who agrees."""
    return policy.likeliest(decision.action_dist_inputs, question.masks) if question.explore else decision.actions
