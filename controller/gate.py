"""What a policy has to show before it is served. Pure statistics: no clock, no I/O.

The gate may look more than once, each time at twice as many episodes, and stops at the first look that decides. Each look is made at
the error rate of the whole divided by the number of looks (Bonferroni), so the stated confidence is that of the whole procedure,
however the looks depend on each other: Jennison & Turnbull, Group Sequential Methods (2000), section 2.1; Dunn, JASA 56 (1961).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from statistics import NormalDist
from typing import Literal

from controller.model import Against, Evaluation
from controller.spec import AgainstServing, GateSpec

Outcome = Literal["Pass", "Fail", "Inconclusive"]

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Verdict:
    outcome: Outcome
    message: str


@dataclass(frozen=True)
class Bounds:
    """One-sided confidence bounds of a mean, each at its own confidence."""

    lower: float
    upper: float

    def outcome(self, threshold: float) -> Outcome:
        """Whether the mean is shown to reach a threshold, shown not to, or neither."""
        if self.lower >= threshold:
            return "Pass"
        return "Fail" if self.upper < threshold else "Inconclusive"


def quantile(confidence: float, freedom: int) -> float:
    """The one-sided quantile of Student's t.

    Source: Cornish-Fisher expansion (Abramowitz & Stegun, 26.7.5), within 0.3 % for 9 degrees of freedom and more up to 99.9 %.
    """
    z = NormalDist().inv_cdf(confidence)
    first = (z**3 + z) / 4
    second = (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    return z + first / freedom + second / freedom**2 + third / freedom**3


def bounds(mean: float, std: float, episodes: int, confidence: float = CONFIDENCE, looks: int = 1) -> Bounds:
    """The confidence bounds of a mean episode return, at one of several looks.

    Args:
        mean, std: sample mean and sample standard deviation, in units of return.
        episodes: how many independent episodes they come from, at least 2.
        confidence: of either bound over all looks.

    Source: Student's t interval.
    """
    error = quantile(1 - (1 - confidence) / looks, episodes - 1) * std / math.sqrt(episodes)
    return Bounds(mean - error, mean + error)


def judged(evaluation: Evaluation, rules: GateSpec) -> Evaluation:
    """The evaluation with the bounds that the gate compares."""
    found = bounds(evaluation.mean, evaluation.std, evaluation.episodes, looks=len(rules.looks))
    against = evaluation.against
    if against and not against.problem and rules.against_serving:
        against = _compared(against, evaluation.episodes, rules.against_serving, len(rules.looks))
    return replace(evaluation, lower=found.lower, upper=found.upper, against=against)


def verdict(candidate: Evaluation, rules: GateSpec, *, is_compared: bool = True) -> Verdict:
    """Whether a policy may be served. The bounds count, not the mean: a lucky evaluation is no proof.

    Args:
        candidate: as `judged` gives it.
        is_compared: False where the candidate serves already: its comparison is told, and counts no more.
    """
    outcomes = [Bounds(candidate.lower, candidate.upper).outcome(rules.min_return)]
    messages = [_absolute(candidate, rules)]
    against = candidate.against if rules.against_serving else None
    if against and against.problem:
        messages.append(f"the policy that served could not be played, so they are not compared ({against.problem})")
    elif against and rules.against_serving:
        outcomes += [Bounds(against.lower, against.upper).outcome(-against.margin)] if is_compared else []
        messages.append(_relative(against, rules.against_serving))
    outcome: Outcome = "Fail" if "Fail" in outcomes else "Inconclusive" if "Inconclusive" in outcomes else "Pass"
    return Verdict(outcome, "; ".join(messages))


def _compared(against: Against, episodes: int, rules: AgainstServing, looks: int) -> Against:
    """The comparison with its margin and bounds.

    A margin in standard deviations is itself an estimate: its variance, s^2 / 2n for returns that are about normal (the delta method
    on the sample variance), is added to that of the difference.
    """
    margin, variance = rules.max_regression or 0.0, against.difference_std**2
    if rules.max_regression_std is not None:
        margin = rules.max_regression_std * against.std
        variance += margin**2 / 2
    found = bounds(against.difference_mean, math.sqrt(variance), episodes, rules.confidence, looks)
    return replace(against, margin=margin, lower=found.lower, upper=found.upper)


def _absolute(candidate: Evaluation, rules: GateSpec) -> str:
    bound = f"lower bound {candidate.lower:.1f}"
    if candidate.lower < rules.min_return:
        bound += f", upper bound {candidate.upper:.1f}"
    return (
        f"mean return {candidate.mean:.1f} over {candidate.episodes} episodes, "
        f"{bound} ({_percent(CONFIDENCE)}{_looks(rules)}); spec.gate.minReturn is {rules.min_return:g}"
    )


def _relative(against: Against, rules: AgainstServing) -> str:
    field = "maxRegression" if rules.max_regression_std is None else "maxRegressionStd"
    return (
        f"against the policy that served (mean return {against.mean:.1f}) in the same episodes {against.difference_mean:+.2f}, "
        f"between {against.lower:+.2f} and {against.upper:+.2f} ({_percent(rules.confidence)}); "
        f"spec.gate.againstServing.{field} allows {against.margin:.2f} less"
    )


def _looks(rules: GateSpec) -> str:
    return f" over {len(rules.looks)} looks" if len(rules.looks) > 1 else ""


def _percent(share: float) -> str:
    return f"{100 * share:g} %"
