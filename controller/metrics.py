"""How far trainings are, for Prometheus: gauges made from `status.training` each time they are asked for. Remembers and decides nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from controller.loop import Key
from controller.model import Progress, Status, TrainingStatus

PORT = 8082
LABELS = ("namespace", "name", "run")


@dataclass(frozen=True)
class Gauge:
    """One figure of a training; None is left out."""

    name: str
    description: str
    value: Callable[[TrainingStatus, Progress], float | None]


GAUGES = (
    Gauge("attempt", "Which attempt of the training Job, from 1.", lambda training, _: training.attempt),
    Gauge("iteration", "Training iterations done.", lambda _, progress: progress.iteration),
    Gauge("env_steps", "Environment steps done.", lambda _, progress: progress.env_steps),
    Gauge(
        "steps_per_second",
        "Environment steps per second, learning included.",
        lambda _, progress: progress.steps_per_s,
    ),
    Gauge(
        "episode_return_mean",
        "Mean return of recent training episodes, exploring.",
        lambda _, progress: progress.episode_return_mean,
    ),
    Gauge(
        "episode_return_std",
        "Standard deviation of the returns that the mean is of.",
        lambda _, progress: progress.episode_return_std,
    ),
    Gauge(
        "progress_ratio",
        "Share of the nearest stop criterion, 0 to 1.",
        lambda _, progress: progress.percent / 100,
    ),
    Gauge("eta_seconds", "Seconds left, at the pace so far.", lambda _, progress: progress.eta_s),
)


class TrainingCollector(Collector):
    """The gauges of all PolicyModels whose training Job runs.

    Args:
        statuses: reads them; what it raises makes the scrape fail, which Prometheus tells as `up == 0`.
    """

    def __init__(self, statuses: Callable[[], Iterable[tuple[Key, Status]]]) -> None:
        self._statuses = statuses

    def collect(self) -> Iterable[GaugeMetricFamily]:
        """One family a gauge, also where nothing trains."""
        running = [
            ((*key, status.training.run), status.training, status.training.progress)
            for key, status in self._statuses()
            if status.training and status.training.progress
        ]
        for gauge in GAUGES:
            family = GaugeMetricFamily(f"policymodel_training_{gauge.name}", gauge.description, labels=LABELS)
            for labels, training, progress in running:
                value = gauge.value(training, progress)
                if value is not None:
                    family.add_metric(labels, value)
            yield family

    def describe(self) -> Sequence[GaugeMetricFamily]:
        """Nothing is asked of the API server to register."""
        return []


def serve(statuses: Callable[[], Iterable[tuple[Key, Status]]], port: int = PORT) -> Callable[[], None]:
    """Serves `/metrics` in a thread of its own; gives what ends it."""
    registry = CollectorRegistry()
    registry.register(TrainingCollector(statuses))
    server, thread = start_http_server(port, registry=registry)

    def stop() -> None:
        server.shutdown()
        server.server_close()
        thread.join()

    return stop
