"""What one replica holds and how it changes: a policy beside the traffic, an error that is told, counts. Knows nothing of Ray or HTTP."""

import asyncio
import itertools
import time
from dataclasses import asdict, dataclass
from typing import Any

from app.acting import Serving
from app.asgi import BODY_BYTES, Manners
from app.bundle import BundleRefused
from app.errors import InputError
from app.meter import Meter
from app.policy import Policy, loaded_policy
from app.storage import place_of

# How long the policy that was replaced goes on answering those who ask for it: an episode that it began it may end.
DRAIN_S = 60.0
# A bundle that could not be loaded may lie there later (a volume that lags, a store that is back).
RETRY_S = (2.0, 5.0, 10.0, 30.0, 60.0)


@dataclass(frozen=True)
class Wanted:
    """The policy that `user_config.serving` names."""

    uri: str
    digest: str
    revision: int | None


@dataclass(frozen=True)
class Refusal:
    """Why the wanted policy is not the one that serves."""

    digest: str
    reason: str
    message: str


def parsed_wanted(serving: Any) -> Wanted | None:
    """What `user_config.serving` names, None where it names nothing."""
    match serving:
        case {"uri": str(uri), "digest": str(digest)}:
            revision = serving.get("revision")
            return Wanted(uri, digest, revision if isinstance(revision, int) else None)
    return None


def parsed_manners(user_config: dict[str, Any]) -> Manners:
    """How the replica is to answer; what is missing, or makes no sense, is as if it were not said."""
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


class PolicyHolder:
    """Holds the policy that answers, and brings in the one that is wanted beside the traffic.

    The policy that answers is replaced only by one that was loaded, verified and replayed; until then, and when that fails,
    it goes on answering.
    """

    def __init__(self) -> None:
        self.serving: Serving | None = None
        self.leaving: Serving | None = None
        self.refusal: Refusal | None = None
        self.manners = Manners()
        self.meter = Meter()
        self._held: Wanted | None = None
        self._wanted: Wanted | None = None
        self._tried: Wanted | None = None
        self._task: asyncio.Task[None] | None = None
        self._began = time.monotonic()

    def want(self, user_config: dict[str, Any]) -> None:
        """Takes note of a new `user_config` and returns at once. Without `serving` what is held stays."""
        self.manners = parsed_manners(user_config)
        wanted = parsed_wanted(user_config.get("serving"))
        if wanted is None or wanted == self._wanted:
            return
        self._wanted = wanted
        if self._task is not None:
            self._task.cancel()
        self._task = asyncio.get_running_loop().create_task(self._bring_in(wanted))

    @property
    def is_settled(self) -> bool:
        """Whether the wanted policy was tried at least once: it serves then, or it was refused."""
        return self._wanted is None or self._tried == self._wanted

    async def first_attempt(self) -> None:
        """Waits until the wanted policy was tried once, whether it then serves or is refused."""
        while not self.is_settled:
            await asyncio.sleep(0.01)

    def row(self) -> dict[str, Any]:
        """This replica's part of the status, without its name."""
        serving, refusal = self.serving, self.refusal
        return {
            "serving": None if serving is None else {"digest": serving.policy.digest, "revision": serving.revision},
            "error": None if refusal is None else {"digest": refusal.digest, "reason": refusal.reason, "message": refusal.message},
            "uptimeSeconds": round(time.monotonic() - self._began, 1),
            "requests": self.meter.answered,
            "outOfBounds": self.meter.out_of_bounds,
            "manners": described_manners(self.manners),
        }

    def held(self) -> dict[str, Any] | None:
        """What answers here, as `user_config.serving` would name it; None without a policy."""
        return None if self._held is None else asdict(self._held)

    async def stand_in(self, serving: dict[str, Any]) -> bool:
        """Answers by a policy that another replica holds, until the wanted one can be loaded; False when it cannot be loaded either."""
        other = parsed_wanted(serving)
        if other is None:
            return False
        try:
            policy = await self._loaded(other)
        except (BundleRefused, InputError):
            return False
        if self.serving is None:
            self._hold(policy, other)
        return True

    def close(self) -> None:
        """Stops what goes on beside the traffic."""
        if self._task is not None:
            self._task.cancel()

    def _hold(self, policy: Policy, named: Wanted) -> None:
        before = self.serving
        self.serving = Serving(policy, named.revision)
        self._held = named
        if before is not None and before.policy is not policy:
            self.leaving = before
            asyncio.get_running_loop().call_later(DRAIN_S, self._let_go, before)

    def _let_go(self, drained: Serving) -> None:
        if self.leaving is drained:
            self.leaving = None

    async def _bring_in(self, wanted: Wanted) -> None:
        for pause_s in itertools.chain(RETRY_S, itertools.repeat(RETRY_S[-1])):
            try:
                policy = await self._loaded(wanted)
            except (BundleRefused, InputError) as refused:
                self.meter.load_failures += 1
                self.refusal = Refusal(wanted.digest, refused.reason, refused.message)
                self._tried = wanted
                await asyncio.sleep(pause_s)
            else:
                self._hold(policy, wanted)
                self.refusal = None
                self._tried = wanted
                return

    async def _loaded(self, wanted: Wanted) -> Policy:
        """The wanted policy: the one in hand where only the revision changed, else from its bundle, read in a thread."""
        if self.serving is not None and self.serving.policy.digest == wanted.digest:
            return self.serving.policy
        return await asyncio.to_thread(loaded_policy, place_of(wanted.uri), wanted.digest)
