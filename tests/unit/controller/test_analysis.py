"""What the measurements of a rollout say."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from controller import analysis
from controller.analysis import Measured
from controller.model import CandidateRow, ReplicaRow, Replicas, Returns, Tally, Trial
from controller.spec import AnalysisSpec

RULES = AnalysisSpec(0.95, 0.01, 5.0, 0.2, 10.0, 0, 100)
NOTHING = Measured(Tally(), Tally())


def errors(failed: int, requests: int) -> str | None:
    found = analysis.objection(replace(NOTHING, candidate=Tally(requests=requests, errors=failed)), RULES)
    return found.reason if found else None


@pytest.mark.parametrize(
    ("failed", "requests", "reason"),
    [
        (0, 0, None),
        (0, 10_000, None),
        (1, 50, None),
        (2, 30, None),  # of those who ask again after each request, many see so many of 30 by chance
        (3, 20, "TooManyErrors"),
        (40, 2000, "TooManyErrors"),  # 2 %, where 1 % is allowed
        (100, 10_000, None),  # 1 %
        (1, 1, "TooManyErrors"),
    ],
)
def test_errors_count_by_their_lower_bound(failed: int, requests: int, reason: str | None) -> None:
    assert errors(failed, requests) == reason


def stopped_after(ratio: float, draws: np.random.Generator, requests: int) -> int | None:
    """The request after which a candidate is stopped that is looked at after each; the bound can rise with those that failed only."""
    failed = np.flatnonzero(draws.random(requests) < ratio) + 1
    return next((int(asked) for count, asked in enumerate(failed, start=1) if errors(count, int(asked))), None)


def test_errors_looked_at_after_every_request_stop_an_allowed_candidate_in_no_more_than_5_percent_of_rollouts() -> None:
    draws = np.random.default_rng(0)
    assert sum(stopped_after(0.01, draws, 5000) is not None for _ in range(400)) <= 0.05 * 400


def test_errors_twice_as_many_as_allowed_are_found_in_a_few_thousand_requests() -> None:
    draws = np.random.default_rng(0)
    found = [stopped_after(0.02, draws, 10_000) for _ in range(100)]
    assert sum(after is not None for after in found) >= 99
    assert np.median([after for after in found if after]) < 2000


def test_no_error_at_all_may_be_allowed() -> None:
    assert analysis.errors(replace(NOTHING, candidate=Tally(requests=100_000, errors=1)), replace(RULES, max_error_ratio=0.0))


def latency(before_ms: float, after_ms: float, inferences: int = 100) -> str | None:
    serving = Tally(inferences=inferences, inference_s=inferences * before_ms / 1000)
    candidate = Tally(inferences=inferences, inference_s=inferences * after_ms / 1000)
    found = analysis.objection(Measured(serving, candidate), RULES)
    return found.reason if found else None


@pytest.mark.parametrize(
    ("before_ms", "after_ms", "inferences", "reason"),
    [
        (0.01, 20, 100, "TooSlow"),
        (0.01, 20, 29, None),
        (0.01, 0.9, 100, None),  # a hundred times, and nobody notices
        (5, 24, 100, None),
        (5, 26, 100, "TooSlow"),
    ],
)
def test_a_candidate_is_slow_by_its_inferences(before_ms: float, after_ms: float, inferences: int, reason: str | None) -> None:
    assert latency(before_ms, after_ms, inferences) == reason


@pytest.mark.parametrize(("requests", "failed"), [(1, 2), (0, 1), (50, 51)])
def test_a_request_that_failed_in_two_ways_is_no_fault_of_the_arithmetic(requests: int, failed: int) -> None:
    objection = analysis.objection(Measured(Tally(), Tally(requests=requests, errors=failed)), RULES)
    assert objection
    assert objection.reason == "TooManyErrors"


@pytest.mark.parametrize(
    ("after", "limit", "reason"),
    [
        ({"0": 500, "1": 500}, 0.2, None),
        ({"0": 800, "1": 200}, 0.2, "ActsOtherwise"),
        ({"0": 800, "1": 200}, None, None),
        ({"0": 20, "2": 1}, 0.2, None),  # too few to say
        ({"0": 750, "1": 250}, 0.2, None),  # it may be chance
        ({"2": 1000}, 0.2, "ActsOtherwise"),
    ],
)
def test_actions_are_compared_by_their_distribution(after: dict[str, int], limit: float | None, reason: str | None) -> None:
    found = Measured(Tally(actions={"0": 5000, "1": 5000}), Tally(actions=after))
    objection = analysis.objection(found, replace(RULES, max_action_distance=limit))
    assert (objection.reason if objection else None) == reason


@pytest.mark.parametrize(
    ("before", "after", "reason"),
    [
        (Returns(100, 480, 10), Returns(50, 300, 80), "EarnsLess"),
        (Returns(100, 480, 10), Returns(50, 475, 10), None),
        (Returns(100, 480, 10), Returns(4, 100, 10), None),  # too few to say
        (Returns(100, 500, 0), Returns(100, 500, 0), None),
        (Returns(100, 500, 0), Returns(100, 480, 0), "EarnsLess"),
        (Returns(100, 500, 0), Returns(100, 480, 4e-101), "EarnsLess"),  # a variance whose square is no number any more
        (None, Returns(100, 480, 0), None),
    ],
)
def test_returns_are_compared_by_the_upper_bound(before: Returns | None, after: Returns, reason: str | None) -> None:
    found = replace(NOTHING, serving_returns=before, candidate_returns=after)
    objection = analysis.returns(found, RULES, looks=1)
    assert (objection.reason if objection else None) == reason
    assert analysis.returns(found, replace(RULES, max_return_regression=None), looks=1) is None


def test_a_candidate_at_the_margin_is_stopped_in_no_more_than_5_percent_of_rollouts() -> None:
    draws = np.random.default_rng(0)
    stopped = 0
    for _ in range(1000):
        before, after = draws.normal(100, 30, 200), draws.normal(90, 30, 100)
        # Looked at after each of two steps, the second time with twice the episodes.
        for part in (2, 1):
            found = [
                Returns(len(one) // part, one[: len(one) // part].mean(), one[: len(one) // part].std(ddof=1)) for one in (before, after)
            ]
            if analysis.returns(replace(NOTHING, serving_returns=found[0], candidate_returns=found[1]), RULES, looks=2):
                stopped += 1
                break
    assert stopped <= 60


def test_what_replicas_measured_is_added_up_for_this_candidate_alone() -> None:
    def row(digest: str) -> ReplicaRow:
        candidate = CandidateRow(digest, "Canary", 10, True)
        trial = Trial(Tally(9, 0, 9, 0.9, 3, {"0": 9}), Tally(1, 1, 1, 0.1, 1, {"1": 1}), 2, 1)
        return ReplicaRow("r", "old", candidate=candidate, trial=trial)

    seen = Replicas(3, (row("new"), row("new"), row("other"), ReplicaRow("r", "old")), {"new": Returns(3, 1.0, 0.0)})
    found = analysis.measured(seen, "old", "new")
    assert found.serving == Tally(18, 0, 18, 1.8, 6, {"0": 18})
    assert found.candidate == Tally(2, 2, 2, 0.2, 2, {"1": 2})
    assert (found.compared, found.agreed, found.candidate_returns, found.serving_returns) == (4, 2, Returns(3, 1.0, 0.0), None)
    assert "4 observations compared, 50.0% answered alike" in analysis.summary(found)
