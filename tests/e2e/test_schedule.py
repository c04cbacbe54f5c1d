"""A schedule trains again, on the clock of the cluster."""

from __future__ import annotations

from typing import Any

import pytest

from e2e.conftest import example
from e2e.kube import Namespace, wait

# It may begin just after a minute's beginning, and one time may fall into the training before.
TWO_TIMES_S = 420


def trained_at(namespace: Namespace) -> list[str]:
    """The scheduled times whose training has published a policy."""
    status: dict[str, Any] = (namespace.get("policymodel", "cartpole") or {}).get("status", {})
    triggers = [revision.get("trigger", {}) for revision in status.get("revisions", [])]
    return [trigger["id"] for trigger in triggers if trigger.get("kind") == "Schedule"]


@pytest.mark.full
def test_a_schedule_of_every_minute_fires_twice_and_no_two_trainings_go_at_once(namespace: Namespace) -> None:
    document = example(namespace)
    document["spec"]["training"] |= {"stop": {"iterations": 1}, "schedule": {"cron": "* * * * *"}}
    document["spec"]["gate"] = {"minReturn": 1, "episodes": 10}
    namespace.apply(document)

    def has_fired_twice() -> list[str] | None:
        running = [job for job in namespace.list("job", "policymodel.dev/role=train") if job.get("status", {}).get("active")]
        assert len(running) <= 1
        times = trained_at(namespace)
        return times if len(times) >= 2 else None

    # The first training needs its images, the RayService and the minute: 10 minutes in all at most.
    namespace.wait_condition("cartpole", "Available", "True", timeout_s=400)
    times = wait(has_fired_twice, TWO_TIMES_S, "two scheduled trainings", lambda: namespace.kubectl("describe", "pm", "cartpole"))
    assert times == sorted(set(times))
    status = namespace.get("policymodel", "cartpole")["status"]
    assert status["schedule"]["lastTime"] >= times[-1]
    assert status["schedule"]["nextTime"] > status["schedule"]["lastTime"]
    events = namespace.kubectl("get", "events", "--field-selector", "reason=ScheduleFired", "-o", "name").split()
    assert len(events) >= 2
