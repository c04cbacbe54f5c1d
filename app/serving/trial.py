"""A candidate that is tried in this replica: whom it answers, what is counted, when it is set aside. Knows nothing of HTTP or Ray."""

import hashlib
import random
import time
from dataclasses import dataclass
from typing import Any

from app.bundle import BundleRefused
from app.policy import Decision, Policy
from app.serving.acting import Question, Serving
from app.serving.meter import Sample
from app.serving.shadow import Outcome, Shadow
from app.serving.soundness import Soundness
from app.serving.tally import HASH_SPACE, RAISED, SLOW, Tally, has_counted_actions

CANARY = "Canary"
SHADOW = "Shadow"
BUDGET_S = 0.1
# A batch may also take so many times as long as so many observations take the serving policy.
PATIENCE = 5
TIMINGS = 3


class Unsound(Exception):
    """A candidate decided, but its decision is not given to the client; its argument is the reason that it is counted under."""


@dataclass(frozen=True)
class Terms:
    """How a candidate is tried.

    Attributes:
        mode: `Canary` or `Shadow`.
        weight: per cent of the sessions that a canary answers.
        budget_s: processor time that one inference may take.
    """

    mode: str = CANARY
    weight: float = 0
    budget_s: float = BUDGET_S


@dataclass(frozen=True)
class SetAside:
    """Why a candidate answers nobody any more in this replica."""

    reason: str
    message: str


class Trial:
    """One candidate beside the policy that serves.

    Args:
        candidate: what is tried.
        serving: what answers for it, and what it is compared with.
        terms: at the beginning.
    """

    def __init__(self, candidate: Serving, serving: Serving, terms: Terms) -> None:
        self.candidate = candidate
        self._serving = serving
        self.terms = terms
        self.set_aside: SetAside | None = None
        self.serving_tally = Tally(serving.policy.digest, has_counted_actions(serving.policy.action_space))
        self.candidate_tally = Tally(candidate.policy.digest, self.serving_tally.counts_actions)
        self.compared = 0
        self.agreed = 0
        self._soundness = Soundness(candidate.policy.action_space)
        self.shadow = Shadow(candidate.policy, self._shadowed)
        self.pin = candidate.policy.digest.encode()
        self._hashing = hashlib.blake2b(self.pin, digest_size=8)

    @property
    def is_open(self) -> bool:
        """Whether the candidate may answer at all, be it only those who pin it."""
        return self.terms.mode == CANARY and self.set_aside is None

    def hash_of(self, session: bytes) -> int:
        """Where a session lies from 0 to 2^64 - 1: everywhere alike, and elsewhere for another candidate."""
        hashing = self._hashing.copy()
        hashing.update(session)
        return int.from_bytes(hashing.digest(), "big")

    def takes(self, hashed: int | None) -> bool:
        """Whether the candidate answers a session, by its hash; without one each request is decided by itself.

        A greater weight takes the sessions of a smaller one and more.
        """
        if hashed is None:
            return random.random() * 100 < self.terms.weight
        return hashed * 100 < self.terms.weight * HASH_SPACE

    def decided(self, serving: Serving, question: Question, hashed: int | None) -> Decision:
        """What one of the two policies decides, counted.

        Args:
            hashed: of the session, if there is one.

        Raises:
            Unsound: the candidate decided what is no answer, or took too long. Else whatever the policy raises.
        """
        is_candidate = serving is self.candidate
        tally = self.candidate_tally if is_candidate else self.serving_tally
        count = len(question.observations[0])
        tally.requests += 1
        if hashed is not None:
            tally.sessions.add(hashed)
        began = time.thread_time()
        try:
            decision = question.put_to(serving.policy)
            seconds = time.thread_time() - began
            flaw = self._soundness.flaw_of(decision, count) if is_candidate else None
        except Exception:
            tally.failures[RAISED] += 1
            if is_candidate:
                self._takes_too_long(time.thread_time() - began, count)
            raise
        tally.took(seconds, count)
        if is_candidate:
            if self._takes_too_long(seconds, count):
                flaw = flaw or SLOW
            if flaw is not None:
                # An observation that is beyond both (so large that no number comes out, say) is no fault of the candidate.
                if flaw == SLOW or not self._has_no_answer(question, count):
                    tally.failures[flaw] += 1
                raise Unsound(flaw)
        elif self.terms.mode == SHADOW and self.set_aside is None:
            self.shadow.offer(question, decision)
        tally.acted(decision.actions[0])
        return decision

    def put_aside(self, seconds: float) -> None:
        """Lets the candidate answer nobody, for it took too long."""
        message = f"one inference took {seconds * 1000:.0f} ms of processor time, the budget is {self.terms.budget_s * 1000:g} ms"
        self.set_aside = SetAside("SetAsideTooSlow", message)
        self.shadow.close()

    def compare_with(self, serving: Serving) -> None:
        """Takes note of the policy that serves from now on: another one is counted anew."""
        self._serving = serving
        if self.serving_tally.digest != serving.policy.digest:
            self.serving_tally = Tally(serving.policy.digest, self.candidate_tally.counts_actions)

    def figures(self) -> dict[str, Any]:
        """What the status tells of it."""
        return {
            "serving": self.serving_tally.figures(),
            "candidate": self.candidate_tally.figures(),
            "shadow": {"compared": self.compared, "agreed": self.agreed, "dropped": self.shadow.dropped},
        }

    def close(self) -> None:
        """Ends it."""
        self.shadow.close()

    def _has_no_answer(self, question: Question, count: int) -> bool:
        """Whether the serving policy has none to give either."""
        try:
            return self._soundness.flaw_of(question.put_to(self._serving.policy), count) is not None
        except Exception:  # noqa: BLE001  the state of a candidate may be none of the serving policy's: then nothing is known
            return False

    def _takes_too_long(self, seconds: float, observations: int) -> bool:
        """Whether an inference took longer than it may; the candidate is set aside then."""
        usual = self.serving_tally
        patience_s = PATIENCE * observations * usual.inference_s / max(1, usual.observations) if observations > 1 else 0.0
        if seconds <= max(self.terms.budget_s, patience_s):
            return False
        self.put_aside(seconds)
        return True

    def _shadowed(self, outcome: Outcome) -> None:
        self.candidate_tally.add(outcome.tally)
        self.compared += outcome.compared
        self.agreed += outcome.agreed
        if any(self._takes_too_long(seconds, count) for seconds, count in outcome.timed):
            self.candidate_tally.failures[SLOW] += 1


def trial_samples(trial: Trial) -> list[Sample]:
    """The figures of a trial as Prometheus has them."""
    found: list[Sample] = []
    for tally in (trial.serving_tally, trial.candidate_tally):
        labels = {"digest": tally.digest}
        found += [
            ("policymodel_trial_requests_total", labels, tally.requests),
            ("policymodel_trial_errors_total", labels, tally.errors),
            ("policymodel_trial_inferences_total", labels, tally.inferences),
            ("policymodel_trial_inference_seconds_total", labels, tally.inference_s),
            ("policymodel_trial_sessions", labels, tally.sessions.count),
        ]
    labels = {"digest": trial.candidate_tally.digest}
    results = {"agreed": trial.agreed, "differed": trial.compared - trial.agreed, "dropped": trial.shadow.dropped}
    found += [("policymodel_shadow_observations_total", {**labels, "result": result}, count) for result, count in results.items()]
    weight = trial.terms.weight if trial.is_open else 0
    return [*found, ("policymodel_candidate_weight", labels, weight)]


def mismatch(candidate: Policy, serving: Policy) -> str | None:
    """In which of its spaces a candidate differs from the policy that serves; None where it can answer in its place."""
    for name, ours, theirs in (
        ("observations", candidate.manifest["observationSpace"], serving.manifest["observationSpace"]),
        ("actions", candidate.manifest["actionSpace"], serving.manifest["actionSpace"]),
        ("state", candidate.manifest.get("state", {}), serving.manifest.get("state", {})),
    ):
        if ours != theirs:
            return name
    return None


def inference_s(policy: Policy) -> float:
    """The processor time of one inference in seconds, the least of some; any thread may measure it.

    Raises:
        BundleRefused: it cannot begin an episode.
    """
    observations, found = policy.golden_observations(1), []
    try:
        for _ in range(TIMINGS):
            began = time.thread_time()
            policy.decide(observations)
            found.append(time.thread_time() - began)
    except Exception as error:
        raise BundleRefused("InvalidModel", f"it cannot begin an episode: {type(error).__name__}") from error
    return min(found)
