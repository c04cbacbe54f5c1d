"""What Prometheus is told of trainings."""

from __future__ import annotations

import socket
from collections.abc import Iterable
from pathlib import Path

import pytest
import requests
from prometheus_client.parser import text_string_to_metric_families

from controller import metrics
from controller.loop import Key
from controller.model import Progress, Status, TrainingStatus

RUNNING = TrainingStatus("cartpole-train-1", "r1", 2, None, Progress(3, 3072, 61.2, 12.5, 40.0, 5.5, 2000.0))
STATUSES: list[tuple[Key, Status]] = [
    (("default", "cartpole"), Status(training=RUNNING)),
    (("default", "young"), Status(training=TrainingStatus("young-train-1", "r2", 1, None, Progress(1, 32, None, 0.5, None)))),
    (("other", "starting"), Status(training=TrainingStatus("starting-train-1", "r3", 1, None, None))),
    (("other", "done"), Status()),
]


def scraped(statuses: Iterable[tuple[Key, Status]]) -> dict[tuple[str, str], float]:
    """What a scrape finds, by the name of the metric and of the PolicyModel."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    stop = metrics.serve(lambda: statuses, port)
    try:
        with requests.Session() as http:
            http.trust_env = False
            answer = http.get(f"http://127.0.0.1:{port}/metrics", timeout=10)
    finally:
        stop()
    assert answer.status_code == 200
    families = text_string_to_metric_families(answer.text)
    return {(sample.name, sample.labels["name"]): sample.value for family in families for sample in family.samples}


def test_a_training_that_runs_is_told_figure_by_figure() -> None:
    found = scraped(STATUSES[:1])
    assert found == {
        ("policymodel_training_attempt", "cartpole"): 2,
        ("policymodel_training_iteration", "cartpole"): 3,
        ("policymodel_training_env_steps", "cartpole"): 3072,
        ("policymodel_training_steps_per_second", "cartpole"): 2000,
        ("policymodel_training_episode_return_mean", "cartpole"): 61.2,
        ("policymodel_training_episode_return_std", "cartpole"): 5.5,
        ("policymodel_training_progress_ratio", "cartpole"): 0.125,
        ("policymodel_training_eta_seconds", "cartpole"): 40,
    }


def test_what_is_not_known_or_does_not_run_is_left_out() -> None:
    found = scraped(STATUSES)
    assert {name for _, name in found} == {"cartpole", "young"}
    assert ("policymodel_training_episode_return_mean", "young") not in found


def test_every_metric_is_in_the_docs() -> None:
    page = (Path(__file__).parents[3] / "docs" / "training.md").read_text()
    assert all(f"`policymodel_training_{gauge.name}`" in page for gauge in metrics.GAUGES)


def test_a_scrape_that_cannot_ask_the_api_server_fails() -> None:
    def refused() -> Iterable[tuple[Key, Status]]:
        raise ConnectionError("the API server does not answer")

    collector = metrics.TrainingCollector(refused)
    with pytest.raises(ConnectionError):
        list(collector.collect())
