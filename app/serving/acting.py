"""What a body asks a policy for, and the JSON that answers it. Reads and decides; it knows nothing of HTTP connections.

| member | of one observation | of many |
| --- | --- | --- |
| what is observed | `observation` | `observations`, a list |
| draw from the distribution instead of taking the likeliest action | `explore: true` | the same, for all |
| makes that draw repeatable: an integer of 0 or more | `seed` | the same, for all |
| actions that may not be chosen (0) | `action_mask` | `action_masks`, a list |
| what a recurrent policy gave with its last action; none at the start of an episode | `state` | `states`, a list |

The answer is `{"action": ...}` or `{"actions": [...]}`, with `state` or `states` where the policy is recurrent, and with `decision_id`
while a candidate is tried or decisions are logged.
"""

import time
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import orjson

from app.distributions import MaskReader
from app.policy import Decision, Policy
from app.reader import ObservationReader, PartRefused
from app.serving.meter import Meter
from app.serving.problem import Headers, Problem
from app.spaces import Array, Arrays, Discrete, as_json

OBSERVATIONS = 4096
# So much of its policy's digest a decision id begins with, that it names the policy wherever it is told again.
DIGEST_PREFIX = slice(7, 19)
LARGEST_SEED = 2**63 - 1
# The members of a body by the one that decides which: for one observation and for many.
MEMBERS = {
    "observation": ("explore", "seed", "action_mask", "state"),
    "observations": ("explore", "seed", "action_masks", "states"),
}


@dataclass(frozen=True)
class Question:
    """What a policy is asked, for a batch.

    Attributes:
        observations: one array a leaf of the observation space.
        masks: bools of shape (batch, inputs of the action distribution).
        state: one array for each name of the policy's state; None at the start of an episode.
    """

    observations: Arrays
    explore: bool = False
    seed: int | None = None
    masks: Array | None = None
    state: Arrays | None = None

    def put_to(self, policy: Policy) -> Decision:
        """What a policy decides."""
        return policy.decide(self.observations, self.state, self.explore, self.seed, self.masks)


class Witness(Protocol):
    """Looks at the decision of one request, while a candidate is tried or decisions are logged."""

    @property
    def decision_id(self) -> str:
        """Names the decision in its answer."""

    def decided(self, question: Question) -> Decision:
        """What the policy decides that this witness looks at; raises what the policy raises, and where the decision is of no use."""


class Serving:
    """A policy that answers, with what its answers need; made once for each policy, and not changed.

    Args:
        policy: what acts.
        revision: its number in the PolicyModel, where there is one.
    """

    def __init__(self, policy: Policy, revision: int | None) -> None:
        self.policy = policy
        self.revision = revision
        self.reader = ObservationReader(policy.observation_space)
        self.headers: Headers = [(b"x-policy-digest", policy.digest.encode())]
        self.id_prefix = policy.digest[DIGEST_PREFIX]
        if revision is not None:
            self.headers.append((b"x-policy-revision", str(revision).encode()))
        self._masks = MaskReader(policy.action_space)
        self._states = ObservationReader(policy.state_space)
        self._is_discrete = isinstance(policy.action_space, Discrete)

    def answer(self, content: Any, meter: Meter, *, rejects_out_of_bounds: bool, witness: Witness | None = None) -> bytes:
        """The JSON that answers a decoded body.

        Args:
            witness: of the decision.

        Raises:
            Problem: 422, naming the bad part; 500, the policy itself failed.
        """
        sent, is_batch = _observed(content)
        pointer = "/observations" if is_batch else "/observation"
        try:
            observations = self.reader.batch(sent, pointer, numbered=is_batch)
            question = Question(observations) if len(content) == 1 else self._question(content, observations, is_batch)
        except PartRefused as refused:
            raise Problem(422, refused.detail, refused.pointer) from refused
        decision = self.decided(question, meter, rejects_out_of_bounds=rejects_out_of_bounds, pointer=pointer, witness=witness)
        actions = as_json(self.policy.action_space, decision.actions)
        answer: dict[str, Any] = {"actions": actions} if is_batch else {"action": actions[0]}
        if self.policy.is_recurrent:
            states = as_json(self.policy.state_space, decision.state)
            answer |= {"states": states} if is_batch else {"state": states[0]}
        if witness is not None:
            answer["decision_id"] = witness.decision_id
        return orjson.dumps(answer)

    def decided(
        self, question: Question, meter: Meter, *, rejects_out_of_bounds: bool, pointer: str, witness: Witness | None = None
    ) -> Decision:
        """What the policy decides.

        Args:
            pointer: where the observations stand in the body.
            witness: of the decision.

        Raises:
            Problem: 422, out of bounds, or so far out that the policy's action is no number; 500, the policy itself failed.
        """
        outside = self.reader.out_of_bounds(question.observations)
        if outside and rejects_out_of_bounds:
            meter.out_of_bounds += outside
            raise Problem(422, "lies outside the bounds of the observation space", pointer)
        began = time.perf_counter()
        try:
            decision = question.put_to(self.policy) if witness is None else witness.decided(question)
        except Exception as error:
            # Its text may hold the observation, so the log may have it, and the client does not.
            raise Problem(500, "the policy could not act on this observation", pointer) from error
        if not self._is_discrete and not all(np.isfinite(actions).all() for actions in decision.actions):
            raise Problem(422, "is so large that the policy has no finite action for it", pointer)
        meter.out_of_bounds += outside
        meter.acted(decision.actions[0], self._is_discrete, time.perf_counter() - began)
        return decision

    def _question(self, content: dict[str, Any], observations: Arrays, is_batch: bool) -> Question:
        """The question of a body with more than observations in it.

        Raises:
            Problem, PartRefused: naming the bad part.
        """
        allowed = MEMBERS["observations" if is_batch else "observation"]
        for name in content:
            if name not in (*allowed, "observations" if is_batch else "observation"):
                raise Problem(422, f"beside the observations there may be {', '.join(allowed)}, and nothing else", "")
        masks, states = allowed[2:]
        count = len(observations[0])
        return Question(
            observations,
            explore=explore_of(content, ""),
            seed=seed_of(content, ""),
            masks=self._masks.batch(_each(content[masks], count, masks, is_batch), f"/{masks}", is_batch) if masks in content else None,
            state=self._state(_each(content[states], count, states, is_batch), f"/{states}", is_batch) if states in content else None,
        )

    def _state(self, sent: list[Any], pointer: str, is_batch: bool) -> Arrays:
        if not self.policy.is_recurrent:
            raise Problem(422, "may stand only where the policy is recurrent", pointer)
        start = as_json(self.policy.state_space, self.policy.initial_state(1))[0]
        return self._states.batch([start if one is None and is_batch else one for one in sent], pointer, numbered=is_batch)


def explore_of(sent: dict[str, Any], pointer: str) -> bool:
    """Whether an object at a pointer asks to explore.

    Raises:
        Problem: it says neither true nor false.
    """
    explore = sent.get("explore", False)
    if not isinstance(explore, bool):
        raise Problem(422, "must be true or false", f"{pointer}/explore")
    return explore


def seed_of(sent: dict[str, Any], pointer: str) -> int | None:
    """The seed in an object at a pointer, where there is one; 7.0 is an integer of JSON.

    Raises:
        Problem: it is no seed.
    """
    if "seed" not in sent:
        return None
    seed = sent["seed"]
    if type(seed) not in (int, float) or not 0 <= seed <= LARGEST_SEED or seed != int(seed):
        raise Problem(422, f"must be an integer from 0 to {LARGEST_SEED}", f"{pointer}/seed")
    return int(seed)


def _each(sent: Any, count: int, name: str, is_batch: bool) -> list[Any]:
    """What was sent for each observation."""
    if not is_batch:
        return [sent]
    if not isinstance(sent, list) or len(sent) != count:
        raise Problem(422, f"must be a list of {count} items, one for each observation", f"/{name}")
    return sent


def _observed(content: Any) -> tuple[list[Any], bool]:
    """The observations of a body, and whether they came as a batch."""
    if not isinstance(content, dict):
        raise Problem(422, "the body must be a JSON object", "")
    if ("observation" in content) == ("observations" in content):
        raise Problem(422, "the body must hold either observation or observations", "")
    if "observation" in content:
        return [content["observation"]], False
    sent = content["observations"]
    if not isinstance(sent, list) or not 1 <= len(sent) <= OBSERVATIONS:
        raise Problem(422, f"must be a list of 1 to {OBSERVATIONS} observations", "/observations")
    return sent, True
