"""What a rollout's measurements say of a candidate: go on, or stop. Pure statistics over what replicas counted; no clock, no I/O.

All figures are those of the whole trial, so far: a candidate that once failed too often does not get better by waiting.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from controller.gate import quantile
from controller.model import Problem, Replicas, Returns, Tally
from controller.spec import AnalysisSpec

# A mean of fewer says little.
LEAST_INFERENCES = 30
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
    """The lower bound of its error ratio is above what is allowed."""
    failed = found.candidate.errors
    if failed == 0:
        return None
    # One request of a shadow may fail in two ways.
    requests = max(found.candidate.requests, failed)
    lower = least_ratio(failed, requests, rules.confidence, rules.max_error_ratio)
    if lower <= rules.max_error_ratio:
        return None
    return Problem(
        "TooManyErrors",
        f"it failed {failed} of {requests} requests, which the serving policy answered: at least {lower:.2%} ({_percent(rules)}); "
        f"spec.rollout.analysis.maxErrorRatio is {rules.max_error_ratio:g}",
    )


def least_ratio(failed: int, requests: int, confidence: float, allowed: float) -> float:
    """A lower bound of an error ratio that may be looked at after every request, as often as one likes: it is wrong in no more than
    1 - confidence of rollouts.

    How likely is what was seen under all ratios together, weighed in halves uniformly and around the allowed one, and how likely under a
    single one? A true one is left behind that far in few rollouts only (Ville's inequality for this martingale).

    Source: Robbins, Ann. Math. Statist. 41 (1970), with beta mixtures.
    """
    passed, weight = requests - failed, 1 / allowed if allowed else 1.0
    mixture = [_log_beta(failed + 1, passed + beta) - _log_beta(1, beta) for beta in (1.0, weight)]
    seen = max(mixture) + math.log(sum(math.exp(each - max(mixture)) for each in mixture) / 2)
    below, above = 0.0, failed / requests
    for _ in range(50):
        ratio = (below + above) / 2
        if seen - failed * math.log(ratio) - passed * math.log1p(-ratio) >= -math.log(1 - confidence):
            below = ratio
        else:
            above = ratio
    return below


def _log_beta(a: float, b: float) -> float:
    return math.lgamma(a) + math.lgamma(b) - math.lgamma(a + b)


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
    """It chooses otherwise than the serving policy by more than is allowed: half the sum of the differences of all shares.

    What counts is the lower bound of this distance: two equal policies differ, too, in a few hundred actions or among many kinds of them.
    Source: McDiarmid's inequality, and Cauchy's for the mean.
    """
    before, after = found.serving.actions, found.candidate.actions
    counts, kinds = (sum(before.values()), sum(after.values())), {*before, *after}
    if rules.max_action_distance is None or min(counts) == 0:
        return None
    distance = sum(abs(before.get(action, 0) / counts[0] - after.get(action, 0) / counts[1]) for action in kinds) / 2
    by_chance = sum(math.sqrt((len(kinds) - 1) / count) / 2 for count in counts)
    by_chance += math.sqrt(-math.log(1 - rules.confidence) / 2 * sum(1 / count for count in counts))
    if distance - by_chance <= rules.max_action_distance:
        return None
    return Problem(
        "ActsOtherwise",
        f"its actions are distributed otherwise: total variation distance {distance:.2f}, of it {by_chance:.2f} by chance, over "
        f"{counts[1]} actions; "
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
