"""The gate's statistics against published quantiles of Student's t, its verdicts, and how often it errs."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from controller import gate
from controller.model import Against, Evaluation
from controller.spec import AgainstServing, GateSpec

# One-sided quantiles of Student's t by confidence and degrees of freedom: NIST/SEMATECH e-Handbook of Statistical Methods, 1.3.6.7.2.
QUANTILES = {
    (0.95, 9): 1.833,
    (0.95, 10): 1.812,
    (0.95, 14): 1.761,
    (0.95, 19): 1.729,
    (0.95, 29): 1.699,
    (0.95, 49): 1.677,
    (0.95, 99): 1.660,
    (0.95, 100): 1.660,
    (0.99, 9): 2.821,
    (0.99, 99): 2.365,
    (0.999, 9): 4.297,
    (0.999, 99): 3.175,
}
MIN_RETURN = GateSpec(100, 1000, 475)


def evaluation(mean: float, std: float = 0.0, episodes: int = 100, rules: GateSpec = MIN_RETURN) -> Evaluation:
    return gate.judged(Evaluation("e", mean, std, episodes, 1000), rules)


def rules(max_regression: float | None = None, max_regression_std: float | None = None, **more: object) -> GateSpec:
    """A gate that compares, and asks for no return."""
    confidence = float(more.pop("confidence", 0.95))
    return replace(GateSpec(100, 1000, -1e9, AgainstServing(max_regression, max_regression_std, confidence)), **more)


def outcome(difference: float, std: float, asked: GateSpec, episodes: int = 100, opponent_std: float = 1.0) -> str:
    """The verdict on a policy whose returns differ so from those of the serving one."""
    against = Against("sha256:a", 500.0, opponent_std, difference, std)
    judged = gate.judged(Evaluation("e", 500.0 + difference, 1.0, episodes, 1000, against=against), asked)
    return gate.verdict(judged, asked).outcome


@pytest.mark.parametrize(("at", "quantile"), QUANTILES.items(), ids=str)
def test_the_quantile_is_that_of_students_t_within_three_parts_in_a_thousand(at, quantile):
    assert gate.quantile(*at) == pytest.approx(quantile, rel=0.003)


def test_with_many_episodes_the_bound_is_that_of_the_normal_distribution():
    assert gate.bounds(0.0, 1.0, 100_000).lower * math.sqrt(100_000) == pytest.approx(-1.6449, rel=1e-4)


def test_without_scatter_both_bounds_are_the_mean():
    assert gate.bounds(500.0, 0.0, 100) == gate.Bounds(500.0, 500.0)


def test_of_several_looks_each_has_its_share_of_the_error():
    assert gate.bounds(0.0, 1.0, 100, 0.95, looks=5) == gate.bounds(0.0, 1.0, 100, 0.99)


@pytest.mark.parametrize(
    ("asked", "looks"),
    [
        (MIN_RETURN, (100,)),
        (replace(MIN_RETURN, max_episodes=100), (100,)),
        (replace(MIN_RETURN, max_episodes=199), (100,)),
        (replace(MIN_RETURN, max_episodes=200), (100, 200)),
        (replace(MIN_RETURN, max_episodes=1000), (100, 200, 400, 800)),
        (rules(1), (100, 200, 400)),
        (rules(1, episodes=30_000), (30_000, 60_000)),
        (rules(1, episodes=100_000), (100_000,)),
    ],
    ids=["a return alone", "no more", "less than twice", "twice", "up to a limit", "a comparison", "nearly the most", "the most"],
)
def test_the_gate_looks_after_twice_as_many_episodes_each_time_up_to_a_limit(asked, looks):
    assert asked.looks == looks


@pytest.mark.parametrize(
    ("mean", "std", "episodes", "outcome"),
    [
        (500.0, 0.0, 100, "Pass"),
        (475.0, 0.0, 100, "Pass"),
        (474.999, 0.0, 100, "Fail"),
        (480.0, 10.0, 100, "Pass"),
        (480.0, 40.0, 100, "Inconclusive"),
        (470.0, 40.0, 100, "Inconclusive"),
        (470.0, 10.0, 100, "Fail"),
        (480.0, 10.0, 10, "Inconclusive"),
        (-1e9, 1.0, 100, "Fail"),
    ],
    ids=["certain", "just enough", "just too little", "little scatter", "much scatter", "below", "surely below", "few", "hopeless"],
)
def test_the_bounds_decide_and_not_the_mean(mean, std, episodes, outcome):
    assert gate.verdict(evaluation(mean, std, episodes), replace(MIN_RETURN, episodes=episodes)).outcome == outcome


def test_a_verdict_states_its_figures_and_its_field():
    passed = gate.verdict(evaluation(480.0, 10.0), MIN_RETURN).message
    failed = gate.verdict(evaluation(480.0, 40.0), MIN_RETURN).message
    assert passed == "mean return 480.0 over 100 episodes, lower bound 478.3 (95 %); spec.gate.minReturn is 475"
    assert failed == "mean return 480.0 over 100 episodes, lower bound 473.4, upper bound 486.6 (95 %); spec.gate.minReturn is 475"


def test_a_negative_threshold_can_be_met():
    asked = GateSpec(100, 1000, -200.5)
    assert gate.verdict(evaluation(-150.0, 5.0, rules=asked), asked).outcome == "Pass"


@pytest.mark.parametrize(
    ("difference", "std", "asked", "wanted"),
    [
        (0.0, 0.0, rules(0), "Pass"),
        (0.0, 10.0, rules(0), "Inconclusive"),
        (0.0, 10.0, rules(5), "Pass"),
        (-4.0, 10.0, rules(5), "Inconclusive"),
        (-10.0, 10.0, rules(5), "Fail"),
        (10.0, 10.0, rules(0), "Pass"),
        (-10.0, 10.0, rules(None, 20), "Pass"),
        (-10.0, 10.0, rules(None, 1), "Fail"),
        (-2.5, 10.0, rules(5, confidence=0.8), "Pass"),
        (-2.5, 10.0, rules(5, confidence=0.999), "Inconclusive"),
    ],
    ids=["the same", "as good", "as good within a margin", "maybe", "worse", "better", "of many std", "of one std", "bold", "careful"],
)
def test_a_regression_is_what_the_bounds_of_the_paired_difference_show(difference, std, asked, wanted):
    assert outcome(difference, std, asked) == wanted


def test_a_comparison_states_its_figures_and_its_field():
    asked = rules(5)
    against = Against("sha256:a", 500.0, 1.0, -4.0, 10.0)
    judged = gate.judged(Evaluation("e", 496.0, 1.0, 100, 1000, against=against), asked)
    assert gate.verdict(judged, asked).message.partition("; against ")[2] == (
        "the policy that served (mean return 500.0) in the same episodes -4.00, between -6.16 and -1.84 (95 %); "
        "spec.gate.againstServing.maxRegression allows 5.00 less"
    )


def test_a_policy_that_may_not_be_worse_also_needs_the_return_that_is_asked_for():
    asked = replace(rules(5), min_return=600)
    assert outcome(0.0, 0.0, asked) == "Fail"


def test_a_serving_policy_that_could_not_be_played_leaves_the_return_that_is_asked_for():
    asked = replace(rules(5), min_return=475)
    judged = gate.judged(Evaluation("e", 500.0, 1.0, 100, 1000, against=Against("sha256:a", problem="Missing: it is gone")), asked)
    found = gate.verdict(judged, asked)
    assert found.outcome == "Pass"
    assert "are not compared (Missing: it is gone)" in found.message


def test_what_serves_is_not_compared_with_what_it_replaced():
    asked = rules(0)
    judged = gate.judged(Evaluation("e", 400.0, 1.0, 100, 1000, against=Against("sha256:a", 500.0, 1.0, -100.0, 1.0)), asked)
    assert gate.verdict(judged, asked).outcome == "Fail"
    assert gate.verdict(judged, asked, is_compared=False).outcome == "Pass"


DRAWS, MOST_ERRORS = 1000, 60


def decided(asked: GateSpec, candidate: np.ndarray, incumbent: np.ndarray) -> str:
    """The verdict of the whole procedure: the first look that decides.

    Args:
        candidate, incumbent: the returns of each episode, shape (the most episodes,).
    """
    found = "Inconclusive"
    for episodes in asked.looks:
        ours, theirs = candidate[:episodes], incumbent[:episodes]
        differences = ours - theirs
        against = Against("sha256:a", theirs.mean(), theirs.std(ddof=1), differences.mean(), differences.std(ddof=1))
        judged = gate.judged(Evaluation("e", ours.mean(), ours.std(ddof=1), episodes, 1000, against=against), asked)
        found = gate.verdict(judged, asked).outcome
        if found != "Inconclusive":
            return found
    return found


def normal(random: np.random.Generator, episodes: int) -> np.ndarray:
    return random.normal(-200.0, 50.0, episodes)


def skewed(random: np.random.Generator, episodes: int) -> np.ndarray:
    """Most episodes reach the end, as in CartPole."""
    return np.where(random.random(episodes) < 0.7, 500.0, random.uniform(100.0, 500.0, episodes))


NULLS = {
    "in units of return": (rules(10), 10.0, normal),
    "in standard deviations": (rules(None, 0.2), 10.0, normal),
    "none allowed": (rules(0), 0.0, normal),
    "returns that are cut off": (rules(20), 20.0, skewed),
    "few episodes": (rules(10, episodes=20), 10.0, normal),
    "many looks": (rules(10, max_episodes=1600), 10.0, normal),
}


@pytest.mark.parametrize(("asked", "margin", "returns"), NULLS.values(), ids=NULLS)
def test_at_the_edge_of_what_is_allowed_the_gate_errs_in_six_of_a_hundred_or_fewer(asked, margin, returns):
    """A policy that is worse by exactly the margin is regressed no more than allowed, and no less: each verdict would be an error."""
    random, most = np.random.default_rng(7), asked.looks[-1]
    verdicts = [decided(asked, returns(random, most) - margin, returns(random, most)) for _ in range(DRAWS)]
    assert verdicts.count("Pass") <= MOST_ERRORS
    assert verdicts.count("Fail") <= MOST_ERRORS


def test_an_equal_policy_is_nearly_never_failed_where_some_regression_is_allowed():
    random, asked = np.random.default_rng(7), rules(10)
    verdicts = [decided(asked, normal(random, 400), normal(random, 400)) for _ in range(DRAWS)]
    assert verdicts.count("Fail") <= 1
    assert verdicts.count("Pass") >= 0.6 * DRAWS


def test_pairing_tells_what_the_seeds_bring_about_from_what_the_policy_does():
    """Where the start decides most of the return, equal policies pass at a margin that unpaired returns could never show."""
    random, asked = np.random.default_rng(7), rules(5)
    starts = random.normal(-200.0, 100.0, 400)
    candidate, incumbent = starts + random.normal(0, 5, 400), starts + random.normal(0, 5, 400)
    assert decided(asked, candidate, incumbent) == "Pass"
    assert decided(asked, candidate, random.permutation(incumbent)) == "Inconclusive"
