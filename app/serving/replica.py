"""What one replica holds and how it changes: policies brought in beside the traffic, errors that are told. Knows nothing of Ray or HTTP."""

import asyncio
import itertools
import secrets
import time
from dataclasses import asdict, dataclass, replace
from typing import Any

from app.bundle import BundleRefused
from app.errors import InputError
from app.policy import Policy, loaded_policy
from app.serving.acting import Serving
from app.serving.asgi import Manners
from app.serving.decision_log import DecisionLog, parsed_log_terms
from app.serving.meter import Meter
from app.serving.rewards import Report, Rewards
from app.serving.rollout import Rollout
from app.serving.trial import Trial, inference_s, mismatch
from app.serving.wanted import (
    DRAIN_S,
    Wanted,
    WantedCandidate,
    described_manners,
    parsed_candidate,
    parsed_drain_s,
    parsed_manners,
    parsed_revoked,
    parsed_wanted,
)
from app.storage import place_of

# A bundle that could not be loaded may lie there later (a volume that lags, a store that is back).
RETRY_S = (2.0, 5.0, 10.0, 30.0, 60.0)
# A new replica waits so long for its candidate, so that it answers those who pin it from its first request on.
CANDIDATE_WAIT_S = 15.0
# Each leaving policy is a network in memory.
MOST_LEAVING = 8
SPACE_MISMATCH = "SpaceMismatch"


@dataclass(frozen=True)
class Refusal:
    """Why a policy that is wanted is not held."""

    digest: str
    reason: str
    message: str


class PolicyHolder:
    """Holds the policy that answers and those beside it, and brings in what is wanted beside the traffic.

    The policy that answers is replaced only by one that was loaded, verified and replayed; until then, and when that fails,
    it goes on answering. What becomes of a candidate never touches it.

    Args:
        replica: the name of the replica, for decision ids and logs.
    """

    def __init__(self, replica: str = "") -> None:
        self.serving: Serving | None = None
        self.rollout: Rollout | None = None
        self.refusal: Refusal | None = None
        self.manners = Manners()
        self.meter = Meter()
        self.rewards = Rewards()
        self.trial: Trial | None = None
        self._replica = replica or secrets.token_hex(4)
        self._leaving: dict[str, Serving] = {}
        self._drain_s = DRAIN_S
        self._revoked: str | None = None
        self._log: DecisionLog | None = None
        self._held: Wanted | None = None
        self._wanted: Wanted | None = None
        self._tried: Wanted | None = None
        self._task: asyncio.Task[None] | None = None
        self._candidate: WantedCandidate | None = None
        self._candidate_refusal: Refusal | None = None
        self._candidate_task: asyncio.Task[None] | None = None
        self._decisions = itertools.count()
        self._began = time.monotonic()

    def want(self, user_config: dict[str, Any]) -> None:
        """Takes note of a new `user_config` and returns at once. Without `serving` what is held stays."""
        self.manners = parsed_manners(user_config)
        self._drain_s = parsed_drain_s(user_config)
        self._revoked = parsed_revoked(user_config)
        if self._revoked is not None:
            self._leaving.pop(self._revoked, None)
        log_terms = parsed_log_terms(user_config.get("decisionLog"))
        if log_terms is None or self._log is None or self._log.terms != log_terms:
            self._log = None if log_terms is None else DecisionLog(log_terms, self._replica)
        wanted = parsed_wanted(user_config.get("serving"))
        if wanted is not None and wanted != self._wanted:
            self._want_serving(wanted)
        # After the serving policy: a promotion takes the candidate in hand before the trial ends.
        candidate = parsed_candidate(user_config.get("candidate"))
        is_promoted = candidate is not None and self._wanted is not None and candidate.policy.digest == self._wanted.digest
        self._want_candidate(None if is_promoted else candidate)
        self._arrange()

    @property
    def is_settled(self) -> bool:
        """Whether the wanted policy was tried at least once: it serves then, or it was refused."""
        return self._wanted is None or self._tried == self._wanted

    @property
    def is_candidate_settled(self) -> bool:
        """Whether there is nothing to wait for that a candidate needs: it was tried, or there is no policy beside which it could be."""
        return self._candidate is None or self.serving is None or self.trial is not None or self._candidate_refusal is not None

    async def first_attempt(self) -> None:
        """Waits until the wanted policy was tried once, whether it then serves or is refused, and for some time for the candidate."""
        while not self.is_settled:
            await asyncio.sleep(0.01)
        deadline = time.monotonic() + CANDIDATE_WAIT_S
        while not self.is_candidate_settled and time.monotonic() < deadline:
            await asyncio.sleep(0.01)

    def row(self) -> dict[str, Any]:
        """This replica's part of the status, without its name."""
        serving = self.serving
        return {
            "serving": None if serving is None else {"digest": serving.policy.digest, "revision": serving.revision},
            "error": None if self.refusal is None else asdict(self.refusal),
            "uptimeSeconds": round(time.monotonic() - self._began, 1),
            "requests": self.meter.answered,
            "outOfBounds": self.meter.out_of_bounds,
            "manners": described_manners(self.manners),
            "candidate": None if self._candidate is None else self._candidate_row(self._candidate),
            "trial": None if self.trial is None else self.trial.figures(),
            "leaving": sorted(self._leaving),
            "decisionLog": None if self._log is None else self._log.figures(),
        }

    def _candidate_row(self, candidate: WantedCandidate) -> dict[str, Any]:
        trial, refusal = self.trial, self._candidate_refusal
        told = trial.set_aside if trial is not None and trial.set_aside is not None else refusal
        return {
            "digest": candidate.policy.digest,
            "revision": candidate.policy.revision,
            "mode": candidate.terms.mode,
            "weight": candidate.terms.weight,
            "loaded": trial is not None,
            "error": None if told is None else {"reason": told.reason, "message": told.message},
            "setAside": trial is not None and trial.set_aside is not None,
        }

    def rewarded(self, report: Report, pin: str) -> str | None:
        """Takes a report of a return; gives the digest that it is attributed to, None where it is of no policy that is held."""
        known = [*self._leaving]
        if self.serving is not None:
            known.append(self.serving.policy.digest)
        if self._candidate is not None:
            known.append(self._candidate.policy.digest)
        digest = report.policy_of(pin, known)
        if digest is not None:
            self.rewards.add(report, digest)
        if self._log is not None:
            self._log.rewarded(report, digest)
        return digest

    def held(self) -> dict[str, Any] | None:
        """What answers here, as `user_config.serving` would name it; None without a policy."""
        return None if self._held is None else asdict(self._held)

    async def stand_in(self, serving: dict[str, Any]) -> bool:
        """Answers by a policy that another replica holds, until the wanted one can be loaded; False when it cannot be loaded either."""
        other = parsed_wanted(serving)
        if other is None:
            return False
        try:
            policy = self._in_hand(other.digest) or await _loaded(other)
        except (BundleRefused, InputError):
            return False
        if self.serving is None:
            self._hold(policy, other)
        return True

    def close(self) -> None:
        """Stops what goes on beside the traffic."""
        for task in (self._task, self._candidate_task):
            if task is not None:
                task.cancel()
        if self.trial is not None:
            self.trial.close()

    def _want_serving(self, wanted: Wanted) -> None:
        self._wanted = wanted
        if self._task is not None:
            self._task.cancel()
        in_hand = self._in_hand(wanted.digest)
        if in_hand is None:
            self._task = asyncio.get_running_loop().create_task(self._bring_in(wanted))
        else:
            self._serve(in_hand, wanted)

    def _want_candidate(self, wanted: WantedCandidate | None) -> None:
        before, self._candidate = self._candidate, wanted
        if wanted is not None and before is not None and replace(before.policy, revision=wanted.policy.revision) == wanted.policy:
            if self.trial is not None:
                self.trial.terms = wanted.terms
                if before.policy != wanted.policy:
                    self.trial.candidate = Serving(self.trial.candidate.policy, wanted.policy.revision)
            return
        if self._candidate_task is not None:
            self._candidate_task.cancel()
            self._candidate_task = None
        if self.trial is not None:
            self.trial.close()
        self.trial = self._candidate_refusal = None
        if wanted is not None:
            self.rewards.clear()
            self._load_candidate(wanted.policy)

    def _load_candidate(self, wanted: Wanted) -> None:
        if self._candidate_task is not None:
            self._candidate_task.cancel()
        self._candidate_task = asyncio.get_running_loop().create_task(self._bring_in_candidate(wanted))

    def _in_hand(self, digest: str) -> Policy | None:
        """The policy with this digest, where it is held already, whatever for."""
        candidate = None if self.trial is None else self.trial.candidate
        held = (self.serving, candidate, *self._leaving.values())
        return next((each.policy for each in held if each is not None and each.policy.digest == digest), None)

    def _serve(self, policy: Policy, wanted: Wanted) -> None:
        self._hold(policy, wanted)
        self.refusal = None
        self._tried = wanted

    def _hold(self, policy: Policy, named: Wanted) -> None:
        before = self.serving
        self.serving = Serving(policy, named.revision)
        self._held = named
        self._leaving.pop(policy.digest, None)
        is_pinnable = before is not None and before.policy is not policy and before.policy.digest != self._revoked
        if before is not None and is_pinnable and self._drain_s > 0:
            self._leaving[before.policy.digest] = before
            asyncio.get_running_loop().call_later(self._drain_s, self._let_go, before)
            if len(self._leaving) > MOST_LEAVING:
                del self._leaving[next(iter(self._leaving))]
        self._arrange()
        if self._candidate is not None and self._candidate_refusal is not None and self._candidate_refusal.reason == SPACE_MISMATCH:
            # It may answer in the place of this one.
            self._load_candidate(self._candidate.policy)

    def _let_go(self, drained: Serving) -> None:
        if self._leaving.get(drained.policy.digest) is drained:
            del self._leaving[drained.policy.digest]
            self._arrange()

    def _arrange(self) -> None:
        """Puts together who answers from now on. Nothing but the serving policy: no rollout, so that a request pays for none."""
        serving, trial = self.serving, self.trial
        if serving is None:
            return
        if trial is not None:
            differing = mismatch(trial.candidate.policy, serving.policy)
            if differing is None:
                trial.compare_with(serving)
            else:
                self._refuse_mismatch(trial.candidate.policy.digest, differing)
                trial.close()
                self.trial = trial = None
        is_plain = trial is None and not self._leaving and self._log is None
        self.rollout = None if is_plain else Rollout(serving, self._leaving, trial, self._log, self._replica, self._decisions)

    async def _bring_in(self, wanted: Wanted) -> None:
        for pause_s in itertools.chain(RETRY_S, itertools.repeat(RETRY_S[-1])):
            try:
                policy = await _loaded(wanted)
            except (BundleRefused, InputError) as refused:
                self.meter.load_failures += 1
                self.refusal = Refusal(wanted.digest, refused.reason, refused.message)
                self._tried = wanted
                await asyncio.sleep(pause_s)
            else:
                self._serve(policy, wanted)
                return

    async def _bring_in_candidate(self, wanted: Wanted) -> None:
        for pause_s in itertools.chain(RETRY_S, itertools.repeat(RETRY_S[-1])):
            try:
                policy = self._in_hand(wanted.digest) or await _loaded(wanted)
                seconds = await asyncio.to_thread(inference_s, policy)
            except (BundleRefused, InputError) as refused:
                self.meter.load_failures += 1
                self._candidate_refusal = Refusal(wanted.digest, refused.reason, refused.message)
                await asyncio.sleep(pause_s)
            else:
                while self.serving is None:  # nothing that it could be compared with
                    await asyncio.sleep(0.1)
                self._try(policy, self.serving, seconds)
                return

    def _try(self, policy: Policy, serving: Serving, seconds: float) -> None:
        """Begins the trial of a loaded candidate, one inference of which took so long."""
        candidate = self._candidate
        if candidate is None:
            return
        differing = mismatch(policy, serving.policy)
        if differing is not None:
            self._refuse_mismatch(policy.digest, differing)
            return
        self._candidate_refusal = None
        self.trial = Trial(Serving(policy, candidate.policy.revision), serving, candidate.terms)
        if seconds > candidate.terms.budget_s:
            self.trial.put_aside(seconds)
        self._arrange()

    def _refuse_mismatch(self, digest: str, differing: str) -> None:
        message = f"the {differing} of {digest} are not those of the policy that serves: it cannot answer in its place"
        self._candidate_refusal = Refusal(digest, SPACE_MISMATCH, message)


async def _loaded(wanted: Wanted) -> Policy:
    """The wanted policy from its bundle, read in a thread.

    Raises:
        BundleRefused, InputError: it cannot be.
    """
    return await asyncio.to_thread(loaded_policy, place_of(wanted.uri), wanted.digest)
