"""What the replicas' own report says, and that an answer which is none is refused."""

from __future__ import annotations

import pytest

from controller import replica_report
from controller.model import Problem, ReplicaRow, Replicas


def test_replicas_say_what_they_serve_and_what_they_refuse():
    report = {
        "runningReplicas": 2,
        "replicas": [
            {"replica": "a", "serving": {"digest": "sha256:ab", "revision": 1}, "error": None, "requests": 3},
            {"replica": "b", "serving": None, "error": {"digest": "sha256:cd", "reason": "DigestMismatch", "message": "bad"}},
        ],
    }
    assert replica_report.replicas(report) == Replicas(
        2,
        (
            ReplicaRow("a", "sha256:ab", can_try=False),
            ReplicaRow("b", None, "sha256:cd", Problem("DigestMismatch", "bad"), can_try=False),
        ),
    )


NO_REPORTS = {
    "nothing": {},
    "a list": [],
    "no count": {"runningReplicas": None, "replicas": []},
    "rows that are text": {"runningReplicas": 1, "replicas": ["a"]},
    "serving that is text": {"runningReplicas": 1, "replicas": [{"replica": "a", "serving": "sha256:ab"}]},
    "manners that are text": {"runningReplicas": 1, "replicas": [{"replica": "a", "serving": None, "manners": "good"}]},
    "an error without a reason": {"runningReplicas": 1, "replicas": [{"replica": "a", "serving": None, "error": {"digest": "x"}}]},
}


@pytest.mark.parametrize("report", NO_REPORTS.values(), ids=NO_REPORTS)
def test_an_answer_that_is_no_report_is_refused(report):
    with pytest.raises((KeyError, TypeError, replica_report.ReportUnusable)):
        replica_report.replicas(report)
