"""The gate's statistics against published quantiles of Student's t."""

from __future__ import annotations

import math

import pytest

from controller import gate
from controller.model import Evaluation, GateSpec

# One-sided 95 % quantiles of Student's t by degrees of freedom: NIST/SEMATECH e-Handbook of Statistical Methods, 1.3.6.7.2.
QUANTILES = {9: 1.833, 10: 1.812, 14: 1.761, 19: 1.729, 29: 1.699, 49: 1.677, 99: 1.660, 100: 1.660}


def evaluation(mean: float, std: float = 0.0, episodes: int = 100) -> Evaluation:
    return Evaluation("e", mean, std, episodes, 1000, gate.lower_bound(mean, std, episodes))


@pytest.mark.parametrize(("freedom", "quantile"), QUANTILES.items(), ids=lambda value: f"{value}")
def test_the_bound_is_that_of_students_t_within_two_parts_in_a_thousand(freedom, quantile):
    episodes = freedom + 1
    found = (0.0 - gate.lower_bound(0.0, 1.0, episodes)) * math.sqrt(episodes)
    assert found == pytest.approx(quantile, rel=0.002)


def test_with_many_episodes_the_bound_is_that_of_the_normal_distribution():
    assert gate.lower_bound(0.0, 1.0, 100_000) * math.sqrt(100_000) == pytest.approx(-1.6449, rel=1e-4)


def test_without_scatter_the_bound_is_the_mean():
    assert gate.lower_bound(500.0, 0.0, 100) == 500.0


@pytest.mark.parametrize(
    ("mean", "std", "episodes", "outcome"),
    [
        (500.0, 0.0, 100, "Pass"),
        (475.0, 0.0, 100, "Pass"),
        (474.999, 0.0, 100, "Fail"),
        (480.0, 10.0, 100, "Pass"),
        (480.0, 40.0, 100, "Fail"),
        (480.0, 10.0, 10, "Fail"),
        (-1e9, 1.0, 100, "Fail"),
    ],
    ids=["certain", "just enough", "just too little", "little scatter", "much scatter", "few episodes", "hopeless"],
)
def test_the_lower_bound_decides_and_not_the_mean(mean, std, episodes, outcome):
    assert gate.verdict(evaluation(mean, std, episodes), GateSpec(episodes, 1000, 475)).outcome == outcome


def test_a_verdict_states_its_figures_and_its_field():
    message = gate.verdict(evaluation(480.0, 40.0), GateSpec(100, 1000, 475)).message
    assert message == "mean return 480.0 over 100 episodes, lower bound 473.4 (95 %); spec.gate.minReturn is 475"


def test_a_negative_threshold_can_be_met():
    assert gate.verdict(evaluation(-150.0, 5.0), GateSpec(100, 1000, -200.5)).outcome == "Pass"
