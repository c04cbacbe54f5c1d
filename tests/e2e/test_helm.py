"""`helm install` of the policy-service chart: the RayService is the chart's, and the PolicyModel adopts it."""

from __future__ import annotations

import subprocess

from e2e.conftest import ROOT
from e2e.kube import CONTEXT, Namespace, post, wait


def helm(namespace: Namespace, *arguments: str) -> str:
    command = ["helm", "--kube-context", CONTEXT, "-n", namespace.name, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_release_trains_serves_and_is_upgraded_without_losing_its_policy(namespace: Namespace) -> None:
    host = f"{namespace.name}.localhost"
    values = ["--set", f"ingress.host={host}", "--set", "serving.image=policymodel-serve:dev"]
    helm(namespace, "install", "cartpole", "helm/policy-service", *values)
    namespace.wait_condition("cartpole", "Ready", "True", timeout_s=600)
    digest = namespace.get("policymodel", "cartpole")["status"]["serving"]["digest"]
    assert post(host).headers["x-policy-digest"] == digest
    assert "Succeeded" in helm(namespace, "test", "cartpole")

    live = namespace.get("rayservice", "cartpole")
    assert "ownerReferences" not in live["metadata"], "the release owns it, not the PolicyModel"
    for flag in ("--server-side=true", "--server-side=false"):
        helm(namespace, "upgrade", "cartpole", "helm/policy-service", *values, flag)
        after = namespace.get("rayservice", "cartpole")
        assert after["spec"] == live["spec"], flag
    assert post(host).headers["x-policy-digest"] == digest

    namespace.kubectl("delete", "pm", "cartpole", "--timeout=120s")
    wait(lambda: not namespace.list("job"), 120, "no job")
    assert post(host).headers["x-policy-digest"] == digest, "the last policy stays served"
