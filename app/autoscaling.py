"""How many replicas the requests need: the policy that Serve's autoscaler asks. Runs in Serve's controller, beside no replica.

What the door answers is not among Serve's ongoing requests, so the replicas tell their rates themselves (`record_autoscaling_stats`).
Serve keeps the answer within `min_replicas` and `max_replicas`, and waits its delays before it acts.
"""

import math
from typing import Any

METRIC = "requests_per_second"


class RequestsPerSecond:
    """Replicas in proportion to the requests.

    Args:
        target: requests per second that one replica is to answer.
    """

    def __init__(self, target: float) -> None:
        self._target = target

    def __call__(self, context: Any) -> tuple[int, dict[str, Any]]:
        """The wanted number of replicas, and the state to keep (none).

        Args:
            context: `ray.serve.config.AutoscalingContext`; its metrics are averages over `look_back_period_s`, one a replica.
        """
        rates = context.aggregated_metrics.get(METRIC) if context.aggregated_metrics else None
        if not rates:
            # Nobody has told a rate yet, and silence is no word that there is nothing to do.
            return context.target_num_replicas, {}
        return max(1, math.ceil(sum(rates.values()) / self._target)), {}
