"""The Ray Serve deployment: puts the ASGI app and the policy holder into replicas. The only server module that imports Ray.

`user_config` is

    {route, outOfBounds: Answer|Reject, maxBodyBytes, accessLog, serving: {uri, digest, revision}, drainSeconds, revoked,
     candidate: {uri, digest, revision, mode: Canary|Shadow, weight, timeBudgetMilliseconds},
     decisionLog: {directory, fileBytes, totalBytes}}

and all of it may be left out; see `app.serving.replica` for what a change does.
"""

import asyncio
import gc
from typing import Any

from ray import serve
from ray.exceptions import RayError
from ray.serve import metrics
from ray.serve.exceptions import RayServeException
from ray.serve.handle import DeploymentHandle

from app.door import doorway
from app.serving.asgi import PolicyApp, log
from app.serving.meter import Publisher
from app.serving.problem import OVERLOAD_RETRY_S
from app.serving.replica import PolicyHolder
from app.serving.rewards import merged_returns
from app.serving.trial import trial_samples

DEPLOYMENT = "ServePPOModel"
STATUS_TIMEOUT_S = 3.0
# Prometheus asks every 15 s or so, and Ray's agent gathers every 10 s.
PUBLISH_S = 5.0


class NoPolicyForNewReplica(RuntimeError):
    """Other replicas answer by a policy that a new replica cannot load; it must not take traffic from them."""


@serve.ingress()
class ServePPOModel:
    """One replica: answers HTTP by the policy that it holds."""

    def __init__(self) -> None:
        # Serve collects garbage once before the replica is ready, and need not look at all that was imported.
        gc.freeze()
        self._context = serve.get_replica_context()
        self._holder = PolicyHolder(self._context.replica_id.unique_id)
        self._app = PolicyApp(self._holder, self._context.app_name, self.status)
        self._is_new = True
        self._handle: DeploymentHandle[Any] | None = None
        self._publishing = asyncio.get_running_loop().create_task(self._publish(Publisher(metrics.Gauge)))
        doorway.answer = self._app.act

    def __serve_build_asgi_app__(self) -> PolicyApp:
        """Ray Serve asks for the app once, after `__init__`."""
        return self._app

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Takes note of a `user_config`.

        A replica leaves routing while this runs, so a later call only takes note. The first one runs before the replica is
        routable: it waits for its policy, or a scale-up would answer 503 meanwhile.

        Where that first policy is refused, raising would keep the traffic with the other replicas, but Serve then starts this one
        again and again, and brings the new config to none of the others while it does (seen on Ray 2.60): nobody could
        read in the status what is wrong, and without another replica there would be no endpoint. So the replica answers by the policy
        that the others hold, and tells the refusal in its row; where none holds one, it answers 503 with Retry-After and does the same.

        Raises:
            NoPolicyForNewReplica: others answer, but their policy cannot be loaded here either. Started, this replica would fail its
                share of the requests.
        """
        self._holder.want(user_config)
        doorway.path = self._holder.manners.route
        if not self._is_new:
            return
        self._is_new = False
        await self._holder.first_attempt()
        refusal = self._holder.refusal
        if refusal is None or await self._running_replicas() == 0:
            return
        held = await self._from_all("held")
        for serving in held or []:
            if await self._holder.stand_in(serving):
                return
        # Silence is no word that nobody else answers: they may only be busy.
        if held or held is None:
            self._holder.close()
            raise NoPolicyForNewReplica(f"{refusal.reason}: {refusal.message}")

    def record_autoscaling_stats(self) -> dict[str, float]:
        """What Serve's autoscaler is told of this replica; see `app.autoscaling`."""
        return {"requests_per_second": self._holder.meter.requests_per_second()}

    async def held(self) -> dict[str, Any] | None:
        """What this replica answers by, for a new one that cannot load what it is told to."""
        return self._holder.held()

    async def status_row(self) -> dict[str, Any]:
        """This replica's row of the status, and beside it what was reported to it."""
        return {"replica": self._context.replica_id.unique_id, **self._holder.row(), "rewards": self._holder.rewards.told()}

    async def status(self) -> dict[str, Any]:
        """The status of the application: one row a replica, gathered within `STATUS_TIMEOUT_S`.

        `returns` are those of all replicas together.

        Where one does not answer in time, there is the row of the asked replica alone, and `runningReplicas` tells that some are missing.
        """
        own = await self.status_row()
        rows, running = await asyncio.gather(self._from_all("status_row"), self._running_replicas())
        gathered = {row["replica"]: row for row in (*(rows or []), own)}
        returns = merged_returns([row.pop("rewards") for row in gathered.values()])
        return {
            "application": self._context.app_name,
            "runningReplicas": running,
            "returns": returns,
            "replicas": [gathered[name] for name in sorted(gathered)],
        }

    async def _publish(self, publisher: Publisher) -> None:
        while True:
            await asyncio.sleep(PUBLISH_S)
            holder = self._holder
            digest = None if holder.serving is None else holder.serving.policy.digest
            publisher.publish(holder.meter, digest, [] if holder.trial is None else trial_samples(holder.trial))
            # Serve keeps up to a thousand lines back, where it is optimised for throughput.
            for handler in log.handlers:
                handler.flush()

    async def _from_all(self, method: str) -> list[dict[str, Any]] | None:
        """What a method gives on every running replica that gives something; None when one does not answer within `STATUS_TIMEOUT_S`."""
        if self._handle is None:
            self._handle = serve.get_deployment_handle(self._context.deployment, self._context.app_name)
        gathered = asyncio.to_thread(self._handle.broadcast(method).results, timeout_s=STATUS_TIMEOUT_S, return_exceptions=True)
        try:
            answers = await asyncio.wait_for(gathered, STATUS_TIMEOUT_S + 1)
        except (TimeoutError, RayError, RayServeException):  # the rest of the status is still true
            return None
        return [answer for answer in answers if isinstance(answer, dict)]

    async def _running_replicas(self) -> int | None:
        """How many replicas Serve says are RUNNING, None where it does not say in time."""
        try:
            status = await asyncio.wait_for(asyncio.to_thread(serve.status), STATUS_TIMEOUT_S)
        except (TimeoutError, RayError, RayServeException):
            return None
        application = status.applications.get(self._context.app_name)
        deployment = None if application is None else application.deployments.get(self._context.deployment)
        return 0 if deployment is None else int(deployment.replica_states.get("RUNNING", 0))


def application() -> serve.Application:
    """The application of one deployment; `serveConfigV2` sets its options over these."""
    options = {
        # What is no action only: those that read a body end within its 10 s, and the status must not wait for them.
        "max_ongoing_requests": 1000,
        "max_queued_requests": 1000,
        "backpressure_config": {"retry_after_s": OVERLOAD_RETRY_S},
        "graceful_shutdown_timeout_s": 20,
        "ray_actor_options": {"num_cpus": 0.1},
    }
    return serve.deployment(ServePPOModel, name=DEPLOYMENT, **options).bind()
