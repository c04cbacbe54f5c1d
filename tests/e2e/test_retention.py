"""Old revisions go from the storage, and what serves stays."""

from __future__ import annotations

from typing import Any

from e2e.conftest import example
from e2e.kube import Namespace, head_pod, steady_load, wait
from e2e.rollouts import request


def revisions(namespace: Namespace) -> list[dict[str, Any]]:
    return list((namespace.get("policymodel", "cartpole") or {}).get("status", {}).get("revisions", []))


def retentions(namespace: Namespace) -> list[str]:
    return [revision.get("retention", "kept") for revision in revisions(namespace)]


def bundles(namespace: Namespace) -> set[str]:
    """The bundles in the claim, as a replica sees them."""
    listed = namespace.kubectl("exec", head_pod(namespace), "-c", "ray-head", "--", "ls", f"/storage/{namespace.name}/cartpole/bundles")
    return {f"sha256:{name}" for name in listed.split()}


def test_a_retrained_model_keeps_what_it_is_told_to_and_serves_all_along(namespace: Namespace) -> None:
    document = example(namespace)
    document["spec"]["training"]["stop"] = {"envSteps": 2000}
    document["spec"]["gate"] = {"minReturn": 1, "episodes": 10}
    document["spec"]["storage"]["keepRevisions"] = 1
    namespace.apply(document)
    namespace.wait_condition("cartpole", "Ready", "True", timeout_s=300)
    with steady_load(f"{namespace.name}.localhost", 2) as load:
        request(namespace, "retrain")
        wait(lambda: retentions(namespace) == ["Pruned", "kept"], 240, "the first revision to go", lambda: str(revisions(namespace)))
        namespace.wait_condition("cartpole", "Ready", "True", timeout_s=60)
    kept = revisions(namespace)[1]
    assert bundles(namespace) == {kept["digest"]}
    assert (kept["parent"], kept["trigger"]["kind"], kept["trigger"]["user"]) == (1, "Request", "e2e")
    assert load.digests[-1] == kept["digest"]
    assert load.failures == []
    namespace.kubectl("patch", "pm", "cartpole", "--type=merge", "-p", '{"spec": {"servedRevision": 1}}')
    assert "revision 1" in namespace.wait_condition("cartpole", "Ready", "False", "RevisionPruned", timeout_s=60)["message"]
