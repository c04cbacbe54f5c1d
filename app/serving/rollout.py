"""Who answers a request while there is more than one policy, or decisions are logged. A replica that only serves has no `Rollout`.

| the request | is answered by |
| --- | --- |
| pins a digest that is held (`x-policy-pin`): of the serving policy, a leaving one, or an open canary | that policy |
| is of a session that a canary takes (`x-session-id`), or of none and chance takes it | the candidate |
| any other, and whatever the chosen policy fails | the serving policy |
"""

import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from app.policy import Decision
from app.serving.acting import Question, Serving
from app.serving.decision_log import DecisionLog
from app.serving.problem import Problem
from app.serving.trial import Trial

PIN = b"x-policy-pin"
SESSION = b"x-session-id"

log = logging.getLogger("ray.serve")

RequestHeaders = Iterable[tuple[bytes, bytes]]


def pin_of(headers: RequestHeaders) -> bytes:
    """The digest that a request asks for; empty where it asks for none."""
    return next((value for name, value in headers if name == PIN), b"")


# The policy that is to answer a request, the session that it is of (empty where it says none), and the hash of that where a trial needs it.
Chosen = tuple[Serving, bytes, int | None]


class Rollout:
    """The policies that a replica holds beside the one that serves, and what looks at their decisions.

    Args:
        serving: what answers whatever the others do not.
        leaving: those that were replaced, by their digests.
        trial: of a candidate.
        log: of decisions.
        replica: whose decisions these are.
        numbers: of its decisions.
    """

    def __init__(
        self,
        serving: Serving,
        leaving: Mapping[str, Serving],
        trial: Trial | None,
        log: DecisionLog | None,
        replica: str,
        numbers: Iterator[int],
    ) -> None:
        self.serving = serving
        self._pinned = {each.policy.digest.encode(): each for each in (*leaving.values(), serving)}
        self._trial = trial
        self._log = log
        self._replica = replica
        self._numbers = numbers
        self._told: set[str] = set()

    @property
    def has_set_aside(self) -> bool:
        """Whether the candidate answers nobody any more."""
        return self._trial is not None and self._trial.set_aside is not None

    def chosen(self, headers: RequestHeaders) -> Chosen:
        """Who is to answer a request with these headers."""
        pin = session = b""
        for name, value in headers:
            if name == PIN:
                pin = value
            elif name == SESSION:
                session = value
        trial = self._trial
        if trial is None:
            return self._pinned.get(pin, self.serving), session, None
        hashed = trial.hash_of(session) if session else None
        serving = self._pinned.get(pin)
        if serving is None:
            serving = trial.candidate if trial.is_open and (pin == trial.pin or trial.takes(hashed)) else self.serving
        return serving, session, hashed

    def tell_failure(self, serving: Serving, problem: Problem) -> None:
        """Logs that a policy failed and another one answers; once for each policy, the rest is counted."""
        if serving.policy.digest not in self._told:
            self._told.add(serving.policy.digest)
            log.error("the policy %s failed and is answered for", serving.policy.digest, exc_info=problem.__cause__)

    def witness(self, chosen: Chosen, serving: Serving) -> "TrialWitness | None":
        """What looks at a policy's decision for a request; None where nothing has to."""
        trial, log = self._trial, self._log
        if trial is None and log is None:
            return None
        _, session, hashed = chosen
        # A leaving policy is not what the candidate is compared with.
        counting = trial if trial is not None and (serving is trial.candidate or serving is self.serving) else None
        decision_id = f"{serving.id_prefix}-{self._replica}-{next(self._numbers):x}"
        return TrialWitness(serving, session, hashed, counting, log, decision_id)


@dataclass(slots=True)
class TrialWitness:
    """Counts and logs one decision; an `app.serving.acting.Witness`.

    Made for each request, so it is not frozen: that would cost as much again.

    Attributes:
        serving: the policy that decides.
        session: that the request is of; `hashed`: its hash, where a trial needs it.
        trial: that counts the decision.
        log: that keeps it.
    """

    serving: Serving
    session: bytes
    hashed: int | None
    trial: Trial | None
    log: DecisionLog | None
    decision_id: str

    def decided(self, question: Question) -> Decision:
        """What the policy decides.

        Raises:
            app.serving.trial.Unsound: a candidate decided what is no answer. Else whatever the policy raises.
        """
        if self.trial is not None:
            decision = self.trial.decided(self.serving, question, self.hashed)
        else:
            decision = question.put_to(self.serving.policy)
        if self.log is not None:
            self.log.decided(self.decision_id, self.session, self.serving, question, decision)
        return decision
