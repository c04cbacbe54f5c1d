"""What a policy has to show before it is served. Pure statistics: no clock, no I/O."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import Literal

from controller.model import Evaluation, GateSpec

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Verdict:
    outcome: Literal["Pass", "Fail"]
    message: str


def lower_bound(mean: float, std: float, episodes: int) -> float:
    """The one-sided 95 % lower confidence bound of a mean episode return.

    Args:
        mean, std: sample mean and sample standard deviation, in units of return.
        episodes: how many independent episodes they come from, at least 2.

    Source: Student's t interval; its quantile by the Cornish-Fisher expansion (Abramowitz & Stegun, 26.7.5), within 0.2 % for
    10 episodes and more.
    """
    z = NormalDist().inv_cdf(CONFIDENCE)
    freedom = episodes - 1
    quantile = z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
    return mean - quantile * std / math.sqrt(episodes)


def verdict(candidate: Evaluation, rules: GateSpec) -> Verdict:
    """Whether a policy may be served. The bound counts, not the mean: a lucky evaluation is no proof."""
    figures = (
        f"mean return {candidate.mean:.1f} over {candidate.episodes} episodes, "
        f"lower bound {candidate.lower:.1f} (95 %); spec.gate.minReturn is {rules.min_return:g}"
    )
    return Verdict("Pass" if candidate.lower >= rules.min_return else "Fail", figures)
