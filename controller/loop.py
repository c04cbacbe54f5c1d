"""One reconcile, and the queue that runs one at a time per PolicyModel. Knows neither Kubernetes nor kopf.

The queue holds keys, never facts: whatever called for a reconcile, the reconcile looks for itself.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable
from datetime import datetime
from typing import Protocol

from controller import reconcile
from controller import status as statuses
from controller.model import Action, Event, Observed, Owner, Settings, Status

Key = tuple[str, str]

FIRST_RETRY_S = 1.0
LAST_RETRY_S = 60.0
DOUBLINGS = 6
# Events come in bursts: a pod alone has five on its way up.
SETTLE_S = 0.2
AT_ONCE = 4


class ActionRefused(Exception):
    """A backend would not do what the plan asks; the text says what and why.

    Attributes:
        looks_in_s: when to look again at the latest, whatever has failed before; None where that can wait.
    """

    looks_in_s: float | None = None


class NotObserved(Exception):
    """A PolicyModel could be read, and what belongs to it could not; the text says why.

    Attributes:
        owner, status: what was read of it.
        now: when.
    """

    def __init__(self, owner: Owner, status: Status, now: datetime, why: str) -> None:
        super().__init__(why)
        self.owner, self.status, self.now = owner, status, now


class Backend(Protocol):
    """What a reconcile is done with: a cluster, or processes on this machine."""

    def observe(self, key: Key) -> Observed | None: ...

    def apply(self, owner: Owner, action: Action) -> None: ...

    def publish(self, owner: Owner, status: Status, events: Iterable[Event]) -> None: ...


def reconcile_once(backend: Backend, key: Key, settings: Settings) -> float | None:
    """Looks, plans, acts, and says what was seen.

    Returns:
        Seconds until the next look, or None where the PolicyModel is gone.

    Raises:
        ActionRefused, NotObserved, and what else goes wrong with the plan: after the status has said so; to be retried.
    """
    try:
        observed = backend.observe(key)
    except NotObserved as failure:
        # What was seen before is no longer known to be so: a Ready that stays would be a claim.
        doubt = statuses.with_doubt(failure.status, "NotObserved", f"the cluster could not be asked: {failure}", failure.now)
        _publish(backend, failure.owner, failure.status, doubt, ())
        raise
    if observed is None or observed.deleting:
        return None
    try:
        plan = reconcile.plan(observed, settings)
    except Exception as error:
        message = f"the operator failed over what it saw ({type(error).__name__}); its log has more"
        doubt = statuses.with_doubt(observed.status, "OperatorFailed", message, observed.now)
        _publish(backend, observed.owner, observed.status, doubt, ())
        raise
    refused: list[tuple[Action, ActionRefused]] = []
    for action in plan.actions:
        # One that is refused (a quota, a webhook) keeps no other from being done: each is safe alone.
        try:
            backend.apply(observed.owner, action)
        except ActionRefused as refusal:
            refused.append((action, refusal))
    if not refused:
        _publish(backend, observed.owner, observed.status, plan.status, plan.events)
        return plan.requeue_after_s
    first = refused[0][1]
    status = statuses.with_failure(plan.status, observed.status, "ActionRefused", str(first), observed.now)
    if any(action.kind == "RayService" for action, _ in refused):
        status = statuses.with_rollout_of(status, observed.status)
    if plan.status.candidate:
        # Whatever else is refused, a candidate is watched as before.
        first.looks_in_s = plan.requeue_after_s
    _publish(backend, observed.owner, observed.status, status, statuses.events(observed.status, status))
    raise first


def _publish(backend: Backend, owner: Owner, before: Status, status: Status, events: Iterable[Event]) -> None:
    if statuses.document_of(status) != statuses.document_of(before):
        backend.publish(owner, status, events)


class KeyedQueue:
    """Keys that are due, each at most once; one worker per key at a time."""

    def __init__(self, work: Callable[[Key], float | None]) -> None:
        self._work = work
        self._due: dict[Key, float] = {}
        self._failures: dict[Key, int] = {}
        self._busy: set[Key] = set()
        self._wake = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    def add(self, key: Key, after_s: float = SETTLE_S) -> None:
        """Makes a key due; of two times the earlier one counts."""
        due = time.monotonic() + after_s
        self._due[key] = min(due, self._due.get(key, due))
        self._wake.set()

    async def run(self) -> None:
        """Works until it is cancelled; what is being worked on then is finished first."""
        try:
            while True:
                self._wake.clear()
                now = time.monotonic()
                for key in [key for key, due in self._due.items() if due <= now and key not in self._busy]:
                    if len(self._busy) < AT_ONCE:
                        self._start(key)
                waiting = [due - now for key, due in self._due.items() if key not in self._busy and len(self._busy) < AT_ONCE]
                # Not `asyncio.wait_for`: before Python 3.12 it swallows a cancellation that comes in the moment of a wake
                # (https://github.com/python/cpython/issues/86296), and the queue would never end.
                try:
                    async with asyncio.timeout(max(0.0, min(waiting)) if waiting else None):
                        await self._wake.wait()
                except TimeoutError:
                    continue
        finally:
            await asyncio.gather(*self._tasks)

    def _start(self, key: Key) -> None:
        del self._due[key]
        self._busy.add(key)
        task = asyncio.create_task(self._one(key))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _one(self, key: Key) -> None:
        after_s: float | None = LAST_RETRY_S
        try:
            after_s = await asyncio.to_thread(self._work, key)
        except Exception as error:
            # Whatever it was, the next step is the same: look again later, and less often.
            failures = self._failures[key] = self._failures.get(key, 0) + 1
            after_s = min(LAST_RETRY_S, FIRST_RETRY_S * 2 ** min(failures - 1, DOUBLINGS))
            if isinstance(error, ActionRefused) and error.looks_in_s is not None:
                after_s = min(after_s, error.looks_in_s)
            logging.getLogger(__name__).exception("%s/%s: trying again in %.0f s", *key, after_s)
        else:
            self._failures.pop(key, None)
        finally:
            self._busy.discard(key)
            if after_s is not None:
                self.add(key, after_s)
            self._wake.set()
