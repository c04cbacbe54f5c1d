"""Counts what a replica does, in plain numbers on the request's path; `Publisher` hands them to Ray's metrics now and then.

Ray's own metrics cost microseconds a call, which is what the policy costs; counted here, a request pays a fraction of one.
"""

import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from app.spaces import Array

# Upper bounds in seconds: a small policy answers in tens of microseconds, a large batch of images in seconds.
SECONDS = (0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0)
OBSERVATIONS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
# More values than this would make a time series each.
MOST_ACTIONS = 64


@dataclass
class Distribution:
    """How often values fell below each of some bounds, as Prometheus counts a histogram."""

    bounds: tuple[float, ...]
    sum: float = 0.0
    counts: list[int] = field(init=False)

    def __post_init__(self) -> None:
        self.counts = [0] * (len(self.bounds) + 1)

    def add(self, value: float) -> None:
        """Counts one value."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    def cumulative(self) -> list[tuple[str, int]]:
        """`le` and the count of values up to it, the last one `+Inf`."""
        total, found = 0, []
        for bound, count in zip((*map(str, self.bounds), "+Inf"), self.counts, strict=True):
            total += count
            found.append((bound, total))
        return found


class Meter:
    """What one replica has done since its start."""

    def __init__(self) -> None:
        self.requests: Counter[int] = Counter()
        self.actions: Counter[int] = Counter()
        self.seconds = Distribution(SECONDS)
        self.inference_seconds = Distribution(SECONDS)
        self.batch = Distribution(OBSERVATIONS)
        self.out_of_bounds = 0
        self.load_failures = 0
        self._rate_from = (time.monotonic(), 0)

    @property
    def answered(self) -> int:
        """Requests for actions, refused ones included."""
        return self.requests.total()

    def acted(self, actions: Array, is_discrete: bool, inference_s: float) -> None:
        """Counts one inference.

        Args:
            actions: shape (batch, ...).
            is_discrete: whether they are of a Discrete space, whose values are counted one by one.
        """
        self.batch.add(len(actions))
        self.inference_seconds.add(inference_s)
        if is_discrete:
            if len(actions) == 1:
                self.actions[int(actions[0])] += 1
            else:
                values, counts = np.unique(actions, return_counts=True)
                self.actions.update(dict(zip(values.tolist(), counts.tolist(), strict=True)))

    def requests_per_second(self) -> float:
        """The rate since the last time that this was asked."""
        now, answered = time.monotonic(), self.answered
        then, before = self._rate_from
        self._rate_from = (now, answered)
        return (answered - before) / (now - then) if now > then else 0.0


# Every metric, with what Prometheus tells of it. Counters end in `_total`; a histogram is its `_bucket`, `_sum` and `_count`.
DESCRIPTIONS = {
    "policymodel_requests_total": "Requests for actions, by the status code of their answer.",
    "policymodel_request_seconds": "Time from a whole request to its answer, in the replica.",
    "policymodel_inference_seconds": "Time of one inference, whatever its batch.",
    "policymodel_batch_observations": "Observations per request.",
    "policymodel_actions_total": "Actions of a Discrete space, by value.",
    "policymodel_out_of_bounds_total": "Observations outside the bounds of their space.",
    "policymodel_load_failures_total": "Bundles that could not be loaded, each try counted.",
    "policymodel_loaded": "1 for the policy that answers, by its digest.",
    "policymodel_trial_requests_total": "Requests decided for a policy while a candidate is tried, by its digest.",
    "policymodel_trial_errors_total": "Of those, what the policy failed.",
    "policymodel_trial_inferences_total": "Inferences that were timed while a candidate is tried.",
    "policymodel_trial_inference_seconds_total": "Processor time of those inferences.",
    "policymodel_trial_sessions": "Sessions that a policy was asked in while a candidate is tried.",
    "policymodel_shadow_observations_total": "Observations that a shadow decided too, by result: agreed, differed, dropped.",
    "policymodel_candidate_weight": "Per cent of the sessions that a candidate answers, 0 once it is none.",
}
# What is true of a policy for a time: a digest that it is no longer true of is published as 0.
STATES = ("policymodel_loaded", "policymodel_candidate_weight")
Sample = tuple[str, dict[str, str], float]


def samples(meter: Meter, digest: str | None) -> list[Sample]:
    """Every figure under its name and labels, as Prometheus has them.

    Args:
        digest: of the policy that answers, if any.
    """
    found: list[Sample] = [
        *(("policymodel_requests_total", {"code": str(code)}, count) for code, count in meter.requests.items()),
        *(("policymodel_actions_total", {"action": str(value)}, count) for value, count in meter.actions.most_common(MOST_ACTIONS)),
        ("policymodel_out_of_bounds_total", {}, meter.out_of_bounds),
        ("policymodel_load_failures_total", {}, meter.load_failures),
    ]
    if digest:
        found.append(("policymodel_loaded", {"digest": digest}, 1))
    for name, distribution in (
        ("policymodel_request_seconds", meter.seconds),
        ("policymodel_inference_seconds", meter.inference_seconds),
        ("policymodel_batch_observations", meter.batch),
    ):
        cumulative = distribution.cumulative()
        found += [(f"{name}_bucket", {"le": bound}, count) for bound, count in cumulative]
        found += [(f"{name}_sum", {}, distribution.sum), (f"{name}_count", {}, cumulative[-1][1])]
    return found


class Publisher:
    """Hands samples to Ray's metrics, which the node's Prometheus endpoint shows with the prefix `ray_`.

    All of them go as gauges, under the names that counters and histograms have in Prometheus: Ray's own counters and histograms can only
    be added to one value at a time.

    Args:
        gauge: makes a gauge as `ray.serve.metrics.Gauge` does, which adds the names of application and replica.
    """

    def __init__(self, gauge: Callable[..., Any]) -> None:
        self._gauge = gauge
        self._gauges: dict[str, Any] = {}
        self._states: set[tuple[str, str]] = set()

    def publish(self, meter: Meter, digest: str | None, trial: Sequence[Sample] = ()) -> None:
        """Sets every gauge.

        Args:
            digest: of the policy that answers, if any.
            trial: further samples, of a candidate that is tried.
        """
        published = [*samples(meter, digest), *trial]
        states = {(name, labels["digest"]) for name, labels, _ in published if name in STATES}
        published += [(name, {"digest": gone}, 0) for name, gone in sorted(self._states - states)]
        self._states = states
        for name, labels, value in published:
            if name not in self._gauges:
                described = next(text for known, text in DESCRIPTIONS.items() if name.startswith(known))
                self._gauges[name] = self._gauge(name, description=described, tag_keys=tuple(labels))
            self._gauges[name].set(value, labels)
