"""What a rollout's measurements say of a candidate: go on, or stop. Pure statistics over what replicas counted; no clock, no I/O.

All figures are those of the whole trial, so far: a candidate that once failed too often does not get better by waiting.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

from controller.gate import quantile
from controller.model import Problem, Replicas, Returns, Tally
from controller.spec import AnalysisSpec

# A mean of fewer says little.
LEAST_INFERENCES = 30
LEAST_ACTIONS = 500
LEAST_EPISODES = 5
# A candidate that takes less is not slow, whatever it is compared with: a request takes longer on its way.
UNNOTICED_S = 0.001


@dataclass(frozen=True)
class Measured:
    """What all replicas together measured of the two policies of a rollout."""

    serving: Tally
    candidate: Tally
    compared: int = 0
    agreed: int = 0
    serving_returns: Returns | None = None
    candidate_returns: Returns | None = None


def measured(seen: Replicas, serving: str | None, candidate: str) -> Measured:
    """The sums over the replicas that have this candidate.

    Args:
        serving, candidate: digests of the two policies.
    """
    trials = [row.trial for row in seen.rows if row.trial and row.candidate and row.candidate.digest == candidate]
    return Measured(
        serving=_sum([trial.serving for trial in trials]),
        candidate=_sum([trial.candidate for trial in trials]),
        compared=sum(trial.compared for trial in trials),
        agreed=sum(trial.agreed for trial in trials),
        serving_returns=seen.returns.get(serving) if serving else None,
        candidate_returns=seen.returns.get(candidate),
    )


def objection(found: Measured, rules: AnalysisSpec) -> Problem | None:
    """Why a candidate is to be stopped at once, or None. What it earns is looked at when a step ends (`returns`)."""
    return errors(found, rules) or latency(found, rules) or actions(found, rules)


def errors(found: Measured, rules: AnalysisSpec) -> Problem | None:
    """The lower bound of its error ratio is above what is allowed.

    Source: Wilson, JASA 22 (1927), one-sided: it holds for few requests and for ratios near 0, where the normal interval does not.
    """
    failed = found.candidate.errors
    if failed == 0:
        return None
    # One request of a shadow may fail in two ways.
    requests = max(found.candidate.requests, failed)
    z = NormalDist().inv_cdf(rules.confidence)
    ratio = failed / requests
    centre = ratio + z**2 / (2 * requests)
    spread = z * math.sqrt(ratio * (1 - ratio) / requests + z**2 / (4 * requests**2))
    lower = (centre - spread) / (1 + z**2 / requests)
    if lower <= rules.max_error_ratio:
        return None
    return Problem(
        "TooManyErrors",
        f"it failed {failed} of {requests} requests, which the serving policy answered: at least {lower:.2%} ({_percent(rules)}); "
        f"spec.rollout.analysis.maxErrorRatio is {rules.max_error_ratio:g}",
    )


def latency(found: Measured, rules: AnalysisSpec) -> Problem | None:
    """Its inferences take longer than those of the serving policy by more than is allowed. Both share one event loop, so the time of a
    request says nothing of who was slow."""
    if min(found.serving.inferences, found.candidate.inferences) < LEAST_INFERENCES:
        return None
    before = found.serving.inference_s / found.serving.inferences
    after = found.candidate.inference_s / found.candidate.inferences
    if after <= UNNOTICED_S or after <= rules.max_latency_ratio * before:
        return None
    return Problem(
        "TooSlow",
        f"an inference takes it {1000 * after:.2f} ms, and the serving policy {1000 * before:.2f} ms; "
        f"spec.rollout.analysis.maxLatencyRatio is {rules.max_latency_ratio:g}",
    )


def actions(found: Measured, rules: AnalysisSpec) -> Problem | None:
    """It chooses otherwise than the serving policy by more than is allowed: half the sum of the differences of all shares."""
    before, after = found.serving.actions, found.candidate.actions
    counts = sum(before.values()), sum(after.values())
    if rules.max_action_distance is None or min(counts) < LEAST_ACTIONS:
        return None
    distance = sum(abs(before.get(action, 0) / counts[0] - after.get(action, 0) / counts[1]) for action in {*before, *after}) / 2
    if distance <= rules.max_action_distance:
        return None
    return Problem(
        "ActsOtherwise",
        f"its actions are distributed otherwise: total variation distance {distance:.2f} over {counts[1]} actions; "
        f"spec.rollout.analysis.maxActionDistance is {rules.max_action_distance:g}",
    )


def returns(found: Measured, rules: AnalysisSpec, looks: int) -> Problem | None:
    """Its episodes, as clients reported them, are shown to bring less than is allowed.

    Args:
        looks: how often this is asked in the whole rollout: the error rate is divided by it (Bonferroni), as in `controller.gate`.

    Source: Welch, Biometrika 34 (1947): two samples of unequal variance.
    """
    before, after, margin = found.serving_returns, found.candidate_returns, rules.max_return_regression
    if margin is None or before is None or after is None or min(before.episodes, after.episodes) < LEAST_EPISODES:
        return None
    variances = before.std**2 / before.episodes, after.std**2 / after.episodes
    error = 0.0
    if sum(variance**2 for variance in variances) > 0:
        freedom = sum(variances) ** 2 / (variances[0] ** 2 / (before.episodes - 1) + variances[1] ** 2 / (after.episodes - 1))
        error = quantile(1 - (1 - rules.confidence) / looks, max(1, int(freedom))) * math.sqrt(sum(variances))
    difference = after.mean - before.mean
    if difference + error >= -margin:
        return None
    return Problem(
        "EarnsLess",
        f"mean return {after.mean:.1f} in {after.episodes} episodes, and {before.mean:.1f} in {before.episodes} of the serving policy: "
        f"at most {difference + error:+.2f} ({_percent(rules)}); spec.rollout.analysis.maxReturnRegression is {margin:g}",
    )


def summary(found: Measured) -> str:
    """The figures in a line."""
    tally = found.candidate
    if found.compared:
        said = f"{found.compared} observations compared, {found.agreed / found.compared:.1%} answered alike"
    else:
        said = f"{tally.requests} requests in {tally.sessions} sessions, {tally.errors} failed"
    if found.candidate_returns and found.candidate_returns.episodes:
        said += f", mean return {found.candidate_returns.mean:.1f} in {found.candidate_returns.episodes} episodes"
    return said


def _sum(tallies: list[Tally]) -> Tally:
    actions: dict[str, int] = {}
    for tally in tallies:
        for action, count in tally.actions.items():
            actions[action] = actions.get(action, 0) + count
    return Tally(
        requests=sum(tally.requests for tally in tallies),
        errors=sum(tally.errors for tally in tallies),
        inferences=sum(tally.inferences for tally in tallies),
        inference_s=sum(tally.inference_s for tally in tallies),
        sessions=sum(tally.sessions for tally in tallies),
        actions=actions,
    )


def _percent(rules: AnalysisSpec) -> str:
    return f"{100 * rules.confidence:g} %"
