"""A search on the cluster: how its trials stand in the status, and which of them is served."""

from __future__ import annotations

from e2e.conftest import example
from e2e.kube import Namespace, post


def test_the_best_of_a_search_is_served_and_each_trial_is_told(namespace: Namespace) -> None:
    document = example(namespace)
    drawn = {"lr": {"min": 0.0003, "max": 0.003, "scale": "Log"}, "fcnetHiddens": {"values": [[32], [64, 64]]}}
    search = {"trials": 2, "config": drawn}
    document["spec"]["training"] = {"stop": {"iterations": 4}, "search": search, "tracking": {"tensorBoard": True}}
    document["spec"]["gate"] = {"minReturn": 1, "episodes": 10}
    namespace.apply(document)
    namespace.wait_condition("cartpole", "Ready", "True", timeout_s=400)
    status = namespace.get("policymodel", "cartpole")["status"]
    found, trials = status["revisions"][0]["search"], status["training"]["search"]["trials"]
    assert [trial["trial"] for trial in trials] == [1, 2]
    assert {trial["state"] for trial in trials} <= {"Finished", "Stopped"}
    assert status["training"]["search"]["best"] == found["trial"]
    assert max(trials, key=lambda trial: trial["episodeReturnMean"])["trial"] == found["trial"]
    assert set(found["config"]) == set(drawn)
    assert 0.0003 <= found["config"]["lr"] <= 0.003
    assert post(f"{namespace.name}.localhost").headers["x-policy-digest"] == status["serving"]["digest"]
