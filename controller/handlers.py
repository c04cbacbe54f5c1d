"""kopf only: its settings, and one trigger for every kind: put the PolicyModel's key into the queue.

Nothing is decided here, nothing is remembered, and no handler waits.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Any

import kopf

from controller import metrics, names
from controller.cluster import Cluster
from controller.loop import KeyedQueue, reconcile_once
from controller.model import Settings

RESYNC_S = 300.0
LIVENESS = "http://0.0.0.0:8081/healthz"


def operate(settings: Settings, namespaces: Sequence[str]) -> None:
    """Runs the operator until it is told to stop.

    Args:
        namespaces: the namespaces to watch; none means all.
    """
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    cluster = Cluster(looks_at_nodes=not settings.nodes_may_be_added)
    registry = kopf.OperatorRegistry()
    register(registry, cluster, settings, namespaces)
    metrics.serve(lambda: cluster.statuses(namespaces))
    kopf.run(
        registry=registry,
        standalone=True,
        clusterwide=not namespaces,
        namespaces=namespaces,
        liveness_endpoint=LIVENESS,
    )


def register(registry: kopf.OperatorRegistry, cluster: Cluster, settings: Settings, namespaces: Sequence[str] = ()) -> None:
    """Hangs the triggers into a registry; the queue lives from the operator's start to its end."""
    running: dict[str, Any] = {}

    kopf.on.login(registry=registry)(kopf.login_via_client)

    @kopf.on.startup(registry=registry)
    async def start(settings: kopf.OperatorSettings, **_: Any) -> None:
        _configure(settings, is_clusterwide=not namespaces)
        queue = running["queue"] = KeyedQueue(lambda key: reconcile_once(cluster, key, operator_settings))
        running["tasks"] = [asyncio.create_task(queue.run()), asyncio.create_task(_resync(cluster, queue, namespaces))]

    @kopf.on.cleanup(registry=registry)
    async def stop(**_: Any) -> None:
        for task in running["tasks"]:
            task.cancel()
        await asyncio.gather(*running["tasks"], return_exceptions=True)

    @kopf.on.event(names.GROUP, names.VERSION, names.PLURAL, registry=registry)
    async def policy_model(*, namespace: Any, name: Any, **_: Any) -> None:
        running["queue"].add((namespace, name))

    async def child(*, namespace: Any, labels: Any, **_: Any) -> None:
        running["queue"].add((namespace, labels[names.LABEL_NAME]))

    for group, version, plural in (
        ("batch", "v1", "jobs"),
        ("", "v1", "pods"),
        ("", "v1", "persistentvolumeclaims"),
        ("networking.k8s.io", "v1", "ingresses"),
        ("ray.io", "v1", "rayjobs"),
    ):
        kopf.on.event(group, version, plural, labels={names.LABEL_NAME: kopf.PRESENT}, registry=registry, id=plural)(child)

    @kopf.on.event("ray.io", "v1", "rayservices", registry=registry)
    async def ray_service(*, namespace: Any, name: Any, **_: Any) -> None:
        # An adopted RayService bears no label of ours: who names it has to be asked for.
        for key in await asyncio.to_thread(cluster.driven_by, namespace, name):
            running["queue"].add(key)

    operator_settings = settings


async def _resync(cluster: Cluster, queue: KeyedQueue, namespaces: Sequence[str]) -> None:
    """Brings every PolicyModel back into the queue now and then: what a watch has missed is missed for so long and no longer."""
    while True:
        try:
            for key in await asyncio.to_thread(cluster.keys, namespaces):
                queue.add(key)
        except Exception:
            logging.getLogger(__name__).exception("the PolicyModels could not be listed; the next time is in %.0f s", RESYNC_S)
        await asyncio.sleep(RESYNC_S)


def _configure(settings: kopf.OperatorSettings, *, is_clusterwide: bool) -> None:
    # With rights in some namespaces only, kopf would wait for a list of all namespaces that it may not have.
    settings.scanning.disabled = not is_clusterwide
    # Our events are made from the status, not from log lines.
    settings.posting.enabled = False
    # A line for each event of each kind tells nothing that the status does not tell better.
    for chatty in ("kopf.objects", "aiohttp.access"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
    # A watch that has died silently is noticed after this time at the latest.
    settings.watching.server_timeout = 240
    settings.watching.client_timeout = 300
    settings.watching.connect_timeout = 10
    settings.networking.request_timeout = 30
    settings.networking.connect_timeout = 10
