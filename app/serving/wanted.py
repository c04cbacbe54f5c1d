"""Reads `user_config`: what a replica is to hold, and how it is to answer. Pure; what makes no sense is as if it were not said."""

from dataclasses import dataclass, field
from typing import Any

from app.serving.asgi import BODY_BYTES, Manners
from app.serving.trial import BUDGET_S, CANARY, SHADOW, Terms

# How long a policy that was replaced goes on answering those who pin it: an episode that it began it may end.
DRAIN_S = 60.0


@dataclass(frozen=True)
class Wanted:
    """The policy that `user_config.serving` names."""

    uri: str
    digest: str
    revision: int | None


@dataclass(frozen=True)
class WantedCandidate:
    """The policy that `user_config.candidate` names, and how it is to be tried."""

    policy: Wanted
    terms: Terms = field(default_factory=Terms)


def parsed_wanted(serving: Any) -> Wanted | None:
    """What `user_config.serving` names, None where it names nothing."""
    match serving:
        case {"uri": str(uri), "digest": str(digest)}:
            revision = serving.get("revision")
            return Wanted(uri, digest, revision if isinstance(revision, int) else None)
    return None


def parsed_candidate(candidate: Any) -> WantedCandidate | None:
    """What `user_config.candidate` names, None where it names nothing.

    A mode or a weight that makes no sense is that of a canary which answers nobody.
    """
    policy = parsed_wanted(candidate)
    if policy is None:
        return None
    weight, budget_ms = _number(candidate.get("weight"), 0), _number(candidate.get("timeBudgetMilliseconds"), 0)
    is_shadow = candidate.get("mode") == SHADOW
    return WantedCandidate(
        policy,
        Terms(
            SHADOW if is_shadow else CANARY,
            0 if is_shadow or not 0 <= weight <= 100 else weight,
            budget_ms / 1000 if budget_ms > 0 else BUDGET_S,
        ),
    )


def parsed_drain_s(user_config: dict[str, Any]) -> float:
    """How long a policy that is replaced goes on answering those who pin it, in seconds."""
    return max(0.0, _number(user_config.get("drainSeconds"), DRAIN_S))


def parsed_revoked(user_config: dict[str, Any]) -> str | None:
    """The digest of a policy that was taken back: nobody may pin it any more."""
    revoked = user_config.get("revoked")
    return revoked if isinstance(revoked, str) else None


def parsed_manners(user_config: dict[str, Any]) -> Manners:
    """How the replica is to answer."""
    route, body_bytes = user_config.get("route"), user_config.get("maxBodyBytes")
    return Manners(
        route=route if isinstance(route, str) else "",
        rejects_out_of_bounds=user_config.get("outOfBounds") == "Reject",
        body_bytes=body_bytes if isinstance(body_bytes, int) and body_bytes > 0 else BODY_BYTES,
        writes_access_log=user_config.get("accessLog") is True,
    )


def described_manners(manners: Manners) -> dict[str, Any]:
    """The manners in the words of `user_config`: by them it can be told whether a replica has taken over what it was sent."""
    return {
        "route": manners.route,
        "outOfBounds": "Reject" if manners.rejects_out_of_bounds else "Answer",
        "maxBodyBytes": manners.body_bytes,
        "accessLog": manners.writes_access_log,
    }


def _number(sent: Any, otherwise: float) -> float:
    return sent if type(sent) in (int, float) else otherwise
