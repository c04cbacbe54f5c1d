"""The charts say what the operator's builders, k8s/ and the CRD say.

k8s/operator.yaml and k8s/rbac.yaml are made from the operator's chart; docs/install.md has the commands.
"""

from __future__ import annotations

import copy
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from controller import cli, names, resources, schema
from controller.model import Images, Owner, Settings
from controller.spec import Spec, spec_of

ROOT = Path(__file__).parents[2]
OPERATOR, POLICY = ROOT / "helm" / "policymodel-operator", ROOT / "helm" / "policy-service"
NAMESPACE, NAME = "robots", "cartpole"
OWNER = Owner(NAMESPACE, NAME, "7d6c3f0e-0000-4000-8000-000000000000")
DIGEST = "sha256:" + "4f" * 32
BUNDLE = {"uri": f"file:///storage/{NAMESPACE}/{NAME}/bundles/{'4f' * 32}", "digest": DIGEST, "revision": 3}
TEMPLATE = {
    "labels": {"team": "robots"},
    "annotations": {"note": "warm"},
    "nodeSelector": {"disk": "ssd"},
    "tolerations": [{"key": "gpu", "operator": "Exists"}],
    "priorityClassName": "high",
    "runtimeClassName": "runc",
    "env": [{"name": "LOG", "value": "1"}, {"name": "TOKEN", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}],
}

# Where everything is meant to be tested, what is missing is a failure.
pytestmark = pytest.mark.skipif(shutil.which("helm") is None and os.environ.get("CI") != "true", reason="helm is not installed")


def helm(*arguments: str, values: Any = None) -> subprocess.CompletedProcess[str]:
    given = ["--values", "-"] if values is not None else []
    text = json.dumps(values) if values is not None else None
    return subprocess.run(["helm", *arguments, *given], input=text, capture_output=True, text=True, timeout=60, check=False)


def rendered(chart: Path, release: str, namespace: str, values: Any = None) -> dict[tuple[str, str, str], Any]:
    """What `helm template` makes, by kind, name and namespace; tests of the chart left out."""
    answer = helm("template", release, str(chart), "--namespace", namespace, "--skip-tests", values=values or {})
    assert answer.returncode == 0, answer.stderr
    return by_identity(yaml.safe_load_all(answer.stdout))


def by_identity(documents: Any) -> dict[tuple[str, str, str], Any]:
    found = [document for document in documents if document]
    by = {(each["kind"], each["metadata"]["name"], each["metadata"].get("namespace", "")): each for each in found}
    assert len(by) == len(found)
    return by


def policy(values: Any = None) -> dict[str, Any]:
    """The objects of the policy chart, by kind."""
    return {kind: document for (kind, _, _), document in rendered(POLICY, NAME, NAMESPACE, values).items()}


def spec(serving: dict[str, Any] | None = None, **changes: Any) -> Spec:
    """The spec of the example, as a PolicyModel that makes its own children would have it."""
    document = yaml.safe_load((ROOT / "k8s" / "examples" / "policymodel.yaml").read_text())
    document["spec"]["serving"] |= serving or {}
    if serving and "autoscaling" in serving:
        del document["spec"]["serving"]["replicas"]
    document["spec"] |= changes
    return spec_of(schema.defaulted(document))


def without_bookkeeping(manifest: Any) -> Any:
    """A manifest without owner, hash, and the labels that say who manages it."""
    metadata = dict(manifest["metadata"])
    metadata.pop("ownerReferences", None)
    ours = {names.LABEL_NAME: metadata["labels"][names.LABEL_NAME]}
    annotations = {key: value for key, value in metadata.pop("annotations", {}).items() if key != names.ANNOTATION_HASH}
    bare = copy.deepcopy({**manifest, "metadata": {**metadata, "labels": ours, **({"annotations": annotations} if annotations else {})}})
    pod = bare["spec"].get("rayClusterConfig", {}).get("headGroupSpec", {}).get("template", {}).get("metadata", {})
    if pod.get("annotations", {}).pop(names.ANNOTATION_HASH, None) and not pod["annotations"]:
        del pod["annotations"]
    return bare


# The operator's chart


def test_the_chart_holds_the_crd_as_it_is() -> None:
    held = (OPERATOR / "files" / "crd.yaml").read_text()
    assert held == (ROOT / "k8s" / "crd.yaml").read_text(), "cp k8s/crd.yaml helm/policymodel-operator/files/crd.yaml"


@pytest.mark.parametrize("keep", [True, False])
def test_the_rendered_crd_is_the_crd_and_stays_unless_told_otherwise(keep: bool) -> None:
    answer = helm("template", "o", str(OPERATOR), "--show-only", "templates/crds.yaml", values={"crds": {"keep": keep}})
    crd = schema.loaded(answer.stdout)
    metadata = crd["metadata"]
    assert {**crd, "metadata": {"name": metadata["name"]}} == schema.loaded((ROOT / "k8s" / "crd.yaml").read_text())
    assert metadata.get("annotations", {}) == ({"helm.sh/resource-policy": "keep"} if keep else {})


def test_the_crd_may_be_left_to_others() -> None:
    objects = rendered(OPERATOR, "o", "s", {"crds": {"install": False}})
    assert not [kind for kind, _, _ in objects if kind == "CustomResourceDefinition"]


def test_the_plain_manifests_are_what_the_chart_makes() -> None:
    chart = rendered(OPERATOR, "policymodel-operator", "policymodel-system", {"crds": {"install": False}})
    plain = by_identity(each for name in ("operator", "rbac") for each in yaml.safe_load_all((ROOT / "k8s" / f"{name}.yaml").read_text()))
    assert plain == chart, "docs/install.md, 'Plain manifests', has the commands that make them anew"


def test_the_namespace_of_the_plain_manifests_is_there() -> None:
    namespace = yaml.safe_load((ROOT / "k8s" / "namespace.yaml").read_text())
    (deployment,) = (each for each in yaml.safe_load_all((ROOT / "k8s" / "operator.yaml").read_text()) if each)
    assert namespace["metadata"]["name"] == deployment["metadata"]["namespace"]


def test_the_operator_understands_the_arguments_of_its_deployment() -> None:
    values = {"entryPointPrefixes": ["robots", "arms"], "watchNamespaces": ["a", "b"], "trainingImage": "t:1", "servingImage": "s:1"}
    values["nodesMayBeAdded"] = True
    deployment = rendered(OPERATOR, "o", "s", values)["Deployment", "o-policymodel-operator", "s"]
    options = cli.parser().parse_args(deployment["spec"]["template"]["spec"]["containers"][0]["args"])
    assert (options.command, options.training_image, options.serving_image) == ("operate", "t:1", "s:1")
    assert (options.entry_point_prefix, options.namespace) == (["robots", "arms"], ["a", "b"])
    assert options.nodes_may_be_added


def test_with_watch_namespaces_the_operator_has_rights_in_these_alone() -> None:
    objects = rendered(OPERATOR, "o", "s", {"watchNamespaces": ["a", "b"]})
    name = "o-policymodel-operator"
    assert {key: each["roleRef"]["name"] for key, each in objects.items() if key[0].endswith("RoleBinding")} == {
        ("RoleBinding", name, "a"): name,
        ("RoleBinding", name, "b"): name,
    }
    assert not [key for key in objects if key[0] == "ClusterRole" and key[1].endswith("-discovery")]


def test_no_role_names_everything_or_touches_secrets() -> None:
    rules = [rule for key, each in rendered(OPERATOR, "o", "s").items() if key[0] == "ClusterRole" for rule in each["rules"]]
    assert rules
    assert not [rule for rule in rules if "*" in [*rule["apiGroups"], *rule["resources"], *rule["verbs"]]]
    assert not [rule for rule in rules if {"secrets", "serviceaccounts", "pods/exec"} & set(rule["resources"])]
    # What they have left is looked at; nothing of them is changed.
    assert {verb for rule in rules if "nodes" in rule["resources"] for verb in rule["verbs"]} == {"get", "list"}


# The chart of one policy


@pytest.mark.parametrize(
    "serving",
    [
        {},
        {"resources": {"requests": {"cpu": "1", "memory": "4Gi"}, "limits": {"memory": "4Gi"}}},
        {"template": TEMPLATE},
        {"httpProxy": "Serve"},
        {"template": {"env": [{"name": "RAY_SERVE_HAPROXY_NBTHREAD", "value": "2"}, {"name": "HOME", "value": "/home/ray"}]}},
        {"template": {"env": [{"name": "A", "value": "1"}, {"name": "RAY_worker_niceness", "value": "5"}, {"name": "A", "value": "2"}]}},
    ],
    ids=["defaults", "resources", "template", "proxy", "our variables", "a variable twice"],
)
@pytest.mark.parametrize("secrets", [[], [{"name": "registry"}]], ids=["no secrets", "secrets"])
def test_the_ray_service_is_the_operators(serving: dict[str, Any], secrets: list[dict[str, str]]) -> None:
    chart = policy({"serving": {**serving, "image": "registry/serve:2"}, "imagePullSecrets": secrets})["RayService"]
    ours = resources.ray_service(OWNER, spec(serving, imagePullSecrets=secrets), Images("registry/train:2", "registry/serve:2"))
    assert without_bookkeeping(chart) == without_bookkeeping(ours)


@pytest.mark.parametrize(
    "storage",
    [{"size": "1Gi"}, {"size": "20Gi", "accessModes": ["ReadWriteMany"], "storageClassName": "nfs"}],
    ids=["defaults", "shared"],
)
def test_the_claim_is_the_operators(storage: dict[str, Any]) -> None:
    ours = resources.claim(OWNER, spec(storage={"pvc": storage}))
    assert without_bookkeeping(policy({"storage": storage})["PersistentVolumeClaim"]) == without_bookkeeping(ours)


@pytest.mark.parametrize(
    "storage",
    [{"size": "1Gi"}, {"size": "1Gi", "accessModes": ["ReadWriteMany"]}, {"existingClaim": "shared"}],
    ids=["one node", "any node", "existing"],
)
def test_the_pods_of_both_are_placed_alike(storage: dict[str, Any]) -> None:
    chart = policy({"storage": storage, "serving": {"image": "s:1"}})["RayService"]
    ours = resources.ray_service(OWNER, spec(storage={"pvc": storage}), Images("t:1", "s:1"))
    assert without_bookkeeping(chart) == without_bookkeeping(ours)


@pytest.mark.parametrize(
    "ingress",
    [
        {"host": "cartpole.localhost"},
        {"host": "c.example", "className": "nginx", "tlsSecretName": "tls", "annotations": {"a.example/b": "c"}},
    ],
    ids=["defaults", "all"],
)
def test_the_ingress_is_the_operators(ingress: dict[str, Any]) -> None:
    ours = resources.ingress(OWNER, spec({"ingress": ingress}))
    assert without_bookkeeping(policy({"ingress": ingress})["Ingress"]) == without_bookkeeping(ours)


def test_a_claim_of_others_is_used_and_not_made() -> None:
    objects = policy({"storage": {"existingClaim": "shared"}})
    assert "PersistentVolumeClaim" not in objects
    volumes = objects["RayService"]["spec"]["rayClusterConfig"]["headGroupSpec"]["template"]["spec"]["volumes"]
    assert volumes[0]["persistentVolumeClaim"]["claimName"] == "shared"
    assert objects["PolicyModel"]["spec"]["storage"]["pvc"] == {"existingClaim": "shared"}


def test_a_driven_chart_leaves_the_served_policy_to_its_policy_model() -> None:
    objects = policy()
    assert "serveConfigV2" not in objects["RayService"]["spec"]
    driving = spec_of(schema.defaulted(objects["PolicyModel"]))
    assert resources.ray_service_name(OWNER, driving) == objects["RayService"]["metadata"]["name"]
    assert resources.claim_name(OWNER, driving) == objects["PersistentVolumeClaim"]["metadata"]["name"]
    assert driving.serving.ingress is None


def test_a_driven_chart_trains_what_the_example_trains() -> None:
    assert spec_of(schema.defaulted(policy()["PolicyModel"])).run == spec().run


def test_an_entry_point_takes_the_place_of_the_default_environment() -> None:
    values = {"policyModel": {"environment": {"entryPoint": "robots.arm:Arm", "config": {"joints": 6}}}}
    document = schema.defaulted(policy(values)["PolicyModel"])
    assert document["spec"]["environment"] == {"entryPoint": "robots.arm:Arm", "config": {"joints": 6}}


@pytest.mark.parametrize("bundle", [None, BUNDLE, {**BUNDLE, "revision": 12345678}], ids=["none", "bundle", "large number"])
@pytest.mark.parametrize(
    "serving",
    [
        {},
        {"route": "/a/b", "replicas": 3, "outOfBounds": "Reject", "maxBodyBytes": 100000000, "accessLog": True},
        {"autoscaling": {"max": 4, "targetRequestsPerSecond": 2000}},
        {"decisionLog": {"claimName": "decisions"}},
    ],
    ids=["defaults", "all", "autoscaling", "decision log"],
)
def test_without_a_policy_model_the_chart_writes_the_operators_serve_config(bundle: Any, serving: dict[str, Any]) -> None:
    values = {"policyModel": {"enabled": False}, "serving": serving, **({"policy": bundle} if bundle else {})}
    objects = policy(values)
    assert "PolicyModel" not in objects
    assert objects["RayService"]["spec"]["serveConfigV2"] == resources.serve_config(OWNER, spec(serving), bundle)


@pytest.mark.parametrize("name", ["on", "y", "null", "a-1"])
def test_a_name_that_yaml_reads_otherwise_stays_a_name(name: str) -> None:
    text = policy({"name": name, "policyModel": {"enabled": False}})["RayService"]["spec"]["serveConfigV2"]
    assert yaml.safe_load(text)["applications"][0]["name"] == name


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"policyModel": {"enabled": True}, "policy": BUNDLE}, "policyModel.enabled is true"),
        ({"policyModel": {"enabled": False}, "policy": {"uri": BUNDLE["uri"]}}, "go together"),
        ({"policyModel": {"enabled": False}, "policy": {**BUNDLE, "digest": "latest"}}, "digest"),
        ({"name": "Robot"}, "name"),
        ({"servingg": {}}, "servingg"),
        ({"serving": {"replica": 2}}, "replica"),
        ({"policyModel": {"training": {"lr": 1}}}, "lr"),
        ({"ingress": {"hosts": ["a"]}}, "hosts"),
    ],
)
def test_bad_values_of_a_policy_are_refused_by_name(values: dict[str, Any], said: str) -> None:
    answer = helm("template", NAME, str(POLICY), values=values)
    assert answer.returncode != 0
    assert said in answer.stderr


@pytest.mark.parametrize("values", [{"watchNamespace": ["a"]}, {"image": {"name": "a"}}, {"rbac": {"created": True}}])
def test_unknown_values_of_the_operator_are_refused(values: dict[str, Any]) -> None:
    assert helm("template", "o", str(OPERATOR), values=values).returncode != 0


def test_the_values_speak_the_words_of_the_crd() -> None:
    known = schema.schema()["properties"]["spec"]["properties"]
    file = json.loads((POLICY / "values.schema.json").read_text())
    values, serving = file["properties"], known["serving"]["properties"]
    for field in ("environment", "training", "gate", "rollout"):
        assert set(values["policyModel"]["properties"][field]["properties"]) == set(known[field]["properties"]), field
    assert set(values["serving"]["properties"]) == set(serving) - {"rayService", "ingress"}
    assert set(values["ingress"]["properties"]) - {"enabled"} == set(serving["ingress"]["properties"])
    assert set(values["storage"]["properties"]) == {*known["storage"]["properties"]["pvc"]["properties"], "deletionPolicy"}
    assert set(file["definitions"]["template"]["properties"]) == set(known["training"]["properties"]["template"]["properties"])


def test_the_values_have_the_bounds_of_the_crd() -> None:
    """What `helm install` lets pass is not refused by the API server for its size alone."""
    file = json.loads((POLICY / "values.schema.json").read_text())
    known = schema.schema()["properties"]["spec"]["properties"]

    def bounds(values: dict[str, Any], crd: dict[str, Any], path: str) -> Iterator[tuple[str, list[Any], list[Any]]]:
        values = file["definitions"][values["$ref"].rpartition("/")[2]] if "$ref" in values else values
        if crd.get("type") in ("integer", "number"):
            own = [values.get("minimum", values.get("exclusiveMinimum")), values.get("maximum")]
            yield path, own, [crd.get("minimum"), crd.get("maximum")]
        for name, each in values.get("properties", {}).items():
            if name in crd.get("properties", {}):
                yield from bounds(each, crd["properties"][name], f"{path}.{name}")
        if "items" in values:
            yield from bounds(values["items"], crd["items"], f"{path}[]")

    parts = {**file["properties"]["policyModel"]["properties"], "serving": file["properties"]["serving"]}
    fields = ("environment", "training", "gate", "rollout", "serving")
    seen = [each for field in fields for each in bounds(parts[field], known[field], field)]
    # The CRD says it by a rule of its own, in CEL.
    by_rule = ("gate.againstServing.confidence", [0.5, 0.999], [0, 1])
    assert [each for each in seen if each[1] != each[2]] == [by_rule]
    assert len(seen) > 15


@pytest.mark.parametrize("chart", [OPERATOR, POLICY], ids=lambda chart: chart.name)
def test_helm_finds_nothing_to_complain_of(chart: Path) -> None:
    answer = helm("lint", "--strict", str(chart))
    assert answer.returncode == 0, answer.stdout + answer.stderr


def test_the_charts_name_the_public_images() -> None:
    version = yaml.safe_load((OPERATOR / "Chart.yaml").read_text())["appVersion"]
    values = yaml.safe_load((OPERATOR / "values.yaml").read_text())
    images = [values["image"]["repository"], values["trainingImage"], values["servingImage"]]
    assert images == ["ghcr.io/policymodel/operator", f"ghcr.io/policymodel/train:{version}", f"ghcr.io/policymodel/serve:{version}"]
    assert yaml.safe_load((POLICY / "values.yaml").read_text())["serving"]["image"] == values["servingImage"]
    assert Settings(values["trainingImage"], values["servingImage"]).storage_root == f"file://{resources.STORAGE_PATH}"
