"""One table of good and bad objects: `controller.schema` and the API server say the same, and give the same defaults.

The server's half needs a cluster (`kubectl get --raw /readyz`) that holds the CRD. What is validated here is then validated by the
very schema that the server holds, so the two halves never compare different versions of it.
"""

from __future__ import annotations

import copy
import json
import re
import subprocess
from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
import yaml

from app.training import search as app_search
from app.training import settings as app_settings
from controller import names, schema

EXAMPLE = (schema.CRD_PATH.parent / "examples" / "policymodel.yaml").read_text()
CRD_NAME = f"{names.PLURAL}.{names.GROUP}"
GONE = object()


def text(*edits: tuple[str, Any], name: str = "schema-contract") -> str:
    """The example as YAML with some fields changed, by their paths; `GONE` removes one."""
    found = yaml.safe_load(EXAMPLE)
    found["metadata"]["name"] = name
    for path, value in edits:
        *parents, last = path.split(".")
        node = found
        for parent in parents:
            node = node.setdefault(parent, {})
        if value is GONE:
            node.pop(last)
        else:
            node[last] = value
    return yaml.safe_dump(found)


def replaced(old: str, new: str) -> str:
    """The example with some of its text changed: for what only YAML can say."""
    assert old in EXAMPLE
    return EXAMPLE.replace("name: cartpole\n", "name: schema-contract\n").replace(old, new)


def adopting(*edits: tuple[str, Any]) -> str:
    return text(("spec.serving.rayService", "shared"), *edits)


def scaling(*edits: tuple[str, Any]) -> str:
    autoscaling = {"max": 3, "targetRequestsPerSecond": 10}
    return text(("spec.serving.replicas", GONE), ("spec.serving.autoscaling", autoscaling), *edits)


def in_a_bucket(s3: dict[str, Any]) -> str:
    return text(("spec.storage.pvc", GONE), ("spec.storage.s3", s3))


def searching(search: dict[str, Any], *edits: tuple[str, Any]) -> str:
    return text(("spec.training.config", GONE), ("spec.training.search", search), *edits)


def drawing(**config: Any) -> str:
    return searching({"config": config})


CONFIG = "spec.training.config"
LR = {"min": 0.0001, "max": 0.003, "scale": "Log"}
GOOD = {
    "the example": text(),
    "an entry point": text(("spec.environment", {"entryPoint": "acme.envs:Maze", "config": {"size": [1, {"a": None}], "b": "c"}})),
    "every optional field of training": text(
        ("spec.training.image", "registry.example/mine:1"),
        ("spec.training.workers", 64),
        ("spec.training.checkpointEvery", 1),
        ("spec.training.backoffLimit", 0),
        ("spec.training.resources", {"requests": {"cpu": 1}, "limits": {"memory": "1.5Gi", "nvidia.com/gpu": 1}}),
        (
            "spec.training.template",
            {
                "labels": {"a": "b"},
                "annotations": {"a": "b"},
                "nodeSelector": {"a": "b"},
                "priorityClassName": "p",
                "runtimeClassName": "r",
                "tolerations": [{"key": "gpu", "operator": "Exists"}],
                "env": [{"name": "A", "value": "b"}, {"name": "C", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}],
            },
        ),
    ),
    "a Ray cluster beside a bucket": text(
        ("spec.storage.pvc", GONE), ("spec.storage.s3", {"bucket": "policies"}), ("spec.training.engine", "RayJob")
    ),
    "a Ray cluster beside a claim for many nodes": text(
        ("spec.storage.pvc.accessModes", ["ReadWriteMany"]), ("spec.training.engine", "RayJob")
    ),
    "a Ray cluster beside a claim that says nothing of itself here": text(
        ("spec.storage.pvc", {"existingClaim": "mine"}), ("spec.training.engine", "RayJob")
    ),
    "the engine by its name": text(("spec.training.engine", "Job")),
    "another claim": text(("spec.storage.pvc", {"size": "1.5Ti", "accessModes": ["ReadWriteMany"], "storageClassName": "fast"})),
    "an existing claim": text(("spec.storage.pvc", {"existingClaim": "mine"})),
    "a small claim": text(("spec.storage.pvc.size", "0.5Gi")),
    "the fewest revisions": text(("spec.storage.keepRevisions", 1)),
    "the most revisions": text(("spec.storage.keepRevisions", 50)),
    "a kept claim": text(("spec.storage.deletionPolicy", "Retain")),
    "a warm start from what serves": text(("spec.training.warmStart", "Serving")),
    "a warm start from a revision": text(("spec.training.warmStart", 3)),
    "a cold start that says so": text(("spec.training.warmStart", "None")),
    "a schedule": text(("spec.training.schedule", {"cron": "0 3 * * *"})),
    "every field of a schedule": text(
        ("spec.training.schedule", {"cron": "*/5 1-3,9 1 JAN mon", "timeZone": "America/Argentina/Ushuaia", "startingDeadlineSeconds": 10})
    ),
    "event files": text(("spec.training.tracking", {"tensorBoard": True})),
    "no tracking that says so": text(("spec.training.tracking", {})),
    "an MLflow server": text(("spec.training.tracking", {"mlflow": {"trackingUri": "http://mlflow.ml:5000"}})),
    "every field of tracking": text(
        (
            "spec.training.tracking",
            {"tensorBoard": False, "mlflow": {"trackingUri": "https://a.b/ml/flow/", "experiment": "a b/c", "secretName": "mlflow"}},
        )
    ),
    "a search": drawing(lr=LR),
    "every field of a search": searching(
        {
            "trials": 32,
            "parallel": 16,
            "config": {
                "lr": LR,
                "gamma": {"min": 0, "max": 1, "scale": "Uniform"},
                "numEpochs": {"min": 1, "max": 1000},
                "entropyCoeff": {"values": [0, 0.01]},
                "fcnetHiddens": {"values": [[64, 64], [128, 128]]},
                "fcnetActivation": {"values": ["tanh", "relu"]},
                "useLstm": {"values": [True, False]},
                "lrEnd": {"values": [0]},
            },
        }
    ),
    "a search beside other settings": searching({"config": {"lr": LR}}, (CONFIG, {"gamma": 0.9, "lr": 0.001})),
    "a plateau": text(("spec.training.stop.plateauIterations", 50)),
    "a bucket": in_a_bucket({"bucket": "policies"}),
    "a bucket of another store": in_a_bucket(
        {"bucket": "a.b-c", "prefix": "a/b", "endpoint": "http://10.0.0.1:9000", "region": "x", "secretName": "s", "pathStyle": True}
    ),
    "a bucket in the name of the host": in_a_bucket({"bucket": "abc", "endpoint": "https://s3.example", "pathStyle": False}),
    "adoption": adopting(),
    "no replicas named": text(("spec.serving.replicas", GONE)),
    "autoscaling": scaling(),
    "autoscaling from two on": scaling(("spec.serving.autoscaling.min", 2)),
    "Serve's own proxy": text(("spec.serving.httpProxy", "Serve")),
    "a log of decisions": text(("spec.serving.decisionLog", {"claimName": "decisions", "maxMegabytes": 64})),
    "large bodies and a log of them": text(("spec.serving.maxBodyBytes", 2**28), ("spec.serving.accessLog", True)),
    "no Ingress": text(("spec.serving.ingress", GONE)),
    "a full Ingress": text(("spec.serving.ingress", {"host": "a", "className": "b", "tlsSecretName": "c", "annotations": {"d": "e"}})),
    "a deep route": text(("spec.serving.route", "/a/b.c/~d_e-f")),
    "pull secrets": text(("spec.imagePullSecrets", [{"name": "a"}, {"name": "b"}])),
    "a pause": text(("spec.paused", True)),
    "the smallest stop": text(("spec.training.stop", {"iterations": 1})),
    "no stop": text(("spec.training.stop", GONE)),
    "no config": text((CONFIG, GONE)),
    "an LSTM behind a filter": text((CONFIG, {"useLstm": True, "lstmCellSize": 1, "maxSeqLen": 1, "observationFilter": "MeanStd"})),
    "schedules": text((CONFIG, {"lrEnd": 0, "entropyCoeff": 0.01, "entropyCoeffEnd": 0, "scheduleSteps": 5000})),
    "no filter": text((f"{CONFIG}.observationFilter", "None")),
    "an integer that is written as a fraction": text(("spec.training.seed", 1.0)),
    "an integer where a number is asked for": text((f"{CONFIG}.lr", 1)),
    "a negative threshold": text(("spec.gate.minReturn", -0.5)),
    "a comparison in units of return": text(("spec.gate.againstServing", {"maxRegression": 0})),
    "a comparison in standard deviations": text(("spec.gate.againstServing", {"maxRegressionStd": 0.5, "confidence": 0.999})),
    "the least confidence": text(("spec.gate.againstServing", {"maxRegression": 12.5, "confidence": 0.5})),
    "every field of the gate": text(
        ("spec.gate", {"minReturn": 1, "episodes": 10, "maxEpisodes": 10, "onFail": "Retrain", "maxRetrains": 1, "seed": 0})
    ),
    "the longest name": text(name="a" * 40),
    "1e-3": replaced("lr: 0.001", "lr: 1e-3"),
    "1E2 episodes": replaced("minReturn: 475", "minReturn: 475\n    episodes: 1E2"),
    "a field that stands there empty": replaced("stop: {episodeReturnMean: 475, envSteps: 200000}", "stop:"),
    "a null with a default": replaced("seed: 0", "seed: null"),
    "a null without a default": replaced("seed: 0", "image: ~"),
    "a merge": replaced("{lr: 0.001, gamma: 0.98}", "{<<: {lr: 0.5}, gamma: 0.98}"),
    "scalars of YAML 1.1": replaced(
        "id: CartPole-v1",
        "id: CartPole-v1\n    config: {a: 2026-01-01, b: 1:30, c: yes, d: 0o10, e: 010, 2: f, g: 1_000, h: .5e3, i: 09, j: 1e3, "
        "k: 0b11, l: 1., on: m}",
    ),
}
BAD = {
    "an unknown setting": text((f"{CONFIG}.learning_rate", 0.1)),
    "a setting spelt nearly right": text((f"{CONFIG}.gama", 0.9)),
    "an unknown field": text(("spec.seed", 1)),
    "an unknown field at the top": text(("spce", {})),
    "an unknown stop criterion": text(("spec.training.stop.steps", 1)),
    "an unknown field of the template": text(("spec.training.template", {"hostNetwork": True})),
    "no environment": text(("spec.environment", GONE)),
    "no gate": text(("spec.gate", GONE)),
    "no threshold": text(("spec.gate.minReturn", GONE)),
    "a null threshold": replaced("minReturn: 475", "minReturn: null"),
    "no storage": text(("spec.storage", GONE)),
    "no claim": text(("spec.storage.pvc", GONE)),
    "a warm start from nowhere": text(("spec.training.warmStart", "Latest")),
    "a warm start from revision 0": text(("spec.training.warmStart", 0)),
    "a schedule without times": text(("spec.training.schedule", {"timeZone": "Etc/UTC"})),
    "a schedule of four fields": text(("spec.training.schedule", {"cron": "0 3 * *"})),
    "a schedule of six fields": text(("spec.training.schedule", {"cron": "0 0 3 * * *"})),
    "a schedule by a name": text(("spec.training.schedule", {"cron": "@daily"})),
    "a time zone that is a path": text(("spec.training.schedule", {"cron": "0 3 * * *", "timeZone": "../etc/passwd"})),
    "event files by a word": text(("spec.training.tracking", {"tensorBoard": "yes"})),
    "MLflow without a server": text(("spec.training.tracking", {"mlflow": {"experiment": "a"}})),
    "MLflow in a directory": text(("spec.training.tracking", {"mlflow": {"trackingUri": "file:///mlruns"}})),
    "MLflow with a password": text(("spec.training.tracking", {"mlflow": {"trackingUri": "http://me:secret@mlflow"}})),
    "an experiment without a name": text(("spec.training.tracking", {"mlflow": {"trackingUri": "http://a", "experiment": ""}})),
    "an MLflow Secret that is none": text(("spec.training.tracking", {"mlflow": {"trackingUri": "http://a", "secretName": "../a"}})),
    "a deadline of 0": text(("spec.training.schedule", {"cron": "0 3 * * *", "startingDeadlineSeconds": 0})),
    "a search for nothing": drawing(),
    "a search without a config": searching({"trials": 4}),
    "one trial": searching({"trials": 1, "config": {"lr": LR}}),
    "33 trials": searching({"trials": 33, "config": {"lr": LR}}),
    "17 trials at once": searching({"parallel": 17, "config": {"lr": LR}}),
    "a search for a setting that is none": drawing(learning_rate=LR),
    "a setting that is drawn from nothing": drawing(lr={}),
    "a setting that is drawn from no values": drawing(lr={"values": []}),
    "a setting that is drawn from half a range": drawing(lr={"min": 0.1}),
    "a setting that is drawn from both": drawing(lr={**LR, "values": [0.1]}),
    "a scale beside values": drawing(lr={"values": [0.1], "scale": "Log"}),
    "another scale": drawing(lr={**LR, "scale": "Cubic"}),
    "a range backwards": drawing(lr={"min": 0.1, "max": 0.01}),
    "a range of whole numbers backwards": drawing(numEpochs={"min": 2, "max": 2}),
    "a logarithm of 0": drawing(gamma={"min": 0, "max": 1, "scale": "Log"}),
    "a range beyond the setting": drawing(lr={"min": 0.1, "max": 2}),
    "a value beyond the setting": drawing(lr={"values": [0.1, 0]}),
    "a range of words": drawing(fcnetActivation={"min": "relu", "max": "tanh"}),
    "a word that is no activation": drawing(fcnetActivation={"values": ["gelu"]}),
    "a fraction of an integer": drawing(numEpochs={"min": 1, "max": 2.5}),
    "a setting that is drawn and set": searching({"config": {"lr": LR}}, (CONFIG, {"lr": 0.01})),
    "a setting without a default that is drawn and set": searching({"config": {"lrEnd": {"values": [0]}}}, (CONFIG, {"lrEnd": 0})),
    "a search with workers": searching({"config": {"lr": LR}}, ("spec.training.workers", 1)),
    "a search on many nodes": searching(
        {"config": {"lr": LR}}, ("spec.training.engine", "RayJob"), ("spec.storage.pvc.accessModes", ["ReadWriteMany"])
    ),
    "a plateau of nothing": text(("spec.training.stop.plateauIterations", 0)),
    "both a claim and a bucket": text(("spec.storage.s3", {"bucket": "policies"})),
    "a bucket without a name": in_a_bucket({}),
    "a bucket that is none": in_a_bucket({"bucket": "My_Bucket"}),
    "a prefix that climbs": in_a_bucket({"bucket": "abc", "prefix": "../other"}),
    "a prefix of nothing": in_a_bucket({"bucket": "abc", "prefix": ""}),
    "an endpoint that is none": in_a_bucket({"bucket": "abc", "endpoint": "minio:9000"}),
    "an endpoint with a password": in_a_bucket({"bucket": "abc", "endpoint": "http://me:secret@minio"}),
    "a bucket in the name of an address": in_a_bucket({"bucket": "abc", "endpoint": "http://10.0.0.1", "pathStyle": False}),
    "no route": text(("spec.serving.route", GONE)),
    "no spec": text(("spec", GONE)),
    "neither id nor entry point": text(("spec.environment", {})),
    "both id and entry point": text(("spec.environment.entryPoint", "a:B")),
    "an entry point that is none": text(("spec.environment", {"entryPoint": "os.system('x')"})),
    "an empty id": text(("spec.environment.id", "")),
    "another engine": text(("spec.training.engine", "Pod")),
    "a Ray cluster beside a claim for one node": text(("spec.training.engine", "RayJob")),
    "a Ray cluster beside a claim that says it is for one node": text(
        ("spec.storage.pvc.accessModes", ["ReadWriteOnce"]), ("spec.training.engine", "RayJob")
    ),
    "another algorithm": text(("spec.training.algorithm", "DQN")),
    "text for a number": text(("spec.training.seed", "0")),
    "a number for text": text(("spec.serving.route", 5)),
    "a fraction for an integer": text(("spec.training.seed", 0.5)),
    "a number for true": text(("spec.paused", 1)),
    "a list for an object": text(("spec.environment.config", [])),
    "an object for a list": text(("spec.imagePullSecrets", {})),
    "a negative seed": text(("spec.training.seed", -1)),
    "a seed of 32 bits": text(("spec.training.seed", 2**31)),
    "too few episodes": text(("spec.gate.episodes", 9)),
    "a comparison without a margin": text(("spec.gate.againstServing", {"confidence": 0.9})),
    "a comparison with both margins": text(("spec.gate.againstServing", {"maxRegression": 1, "maxRegressionStd": 1})),
    "a negative margin": text(("spec.gate.againstServing", {"maxRegression": -1})),
    "a confidence of chance": text(("spec.gate.againstServing", {"maxRegression": 1, "confidence": 0.49})),
    "a confidence of 1": text(("spec.gate.againstServing", {"maxRegression": 1, "confidence": 1})),
    "fewer episodes at most than at first": text(("spec.gate.maxEpisodes", 99)),
    "another way of failing": text(("spec.gate.onFail", "Ignore")),
    "no retrains": text(("spec.gate.maxRetrains", 0)),
    "too many replicas": text(("spec.serving.replicas", 51)),
    "no replicas": text(("spec.serving.replicas", 0)),
    "replicas beside autoscaling": text(("spec.serving.autoscaling", {"max": 3, "targetRequestsPerSecond": 10})),
    "more replicas at least than at most": scaling(("spec.serving.autoscaling.min", 4)),
    "autoscaling without a target": scaling(("spec.serving.autoscaling", {"max": 3})),
    "a target of 0": scaling(("spec.serving.autoscaling.targetRequestsPerSecond", 0)),
    "another proxy": text(("spec.serving.httpProxy", "Envoy")),
    "a log of decisions without a claim": text(("spec.serving.decisionLog", {"maxMegabytes": 64})),
    "a log of decisions of no size": text(("spec.serving.decisionLog", {"claimName": "a", "maxMegabytes": 0})),
    "a body of no size": text(("spec.serving.maxBodyBytes", 0)),
    "lr of 0": text((f"{CONFIG}.lr", 0)),
    "gamma above 1": text((f"{CONFIG}.gamma", 1.01)),
    "no layers": text((f"{CONFIG}.fcnetHiddens", [])),
    "a layer of 0": text((f"{CONFIG}.fcnetHiddens", [0])),
    "another filter": text((f"{CONFIG}.observationFilter", "Max")),
    "an LSTM of 0": text((f"{CONFIG}.lstmCellSize", 0)),
    "another activation": text((f"{CONFIG}.fcnetActivation", "gelu")),
    "a minibatch larger than the batch": text((f"{CONFIG}.minibatchSize", 64), (f"{CONFIG}.trainBatchSize", 32)),
    "a minibatch larger than the default batch": text((f"{CONFIG}.minibatchSize", 1025)),
    "a route without a slash": text(("spec.serving.route", "cartpole")),
    "a route that ends with a slash": text(("spec.serving.route", "/cartpole/")),
    "the root as a route": text(("spec.serving.route", "/")),
    "out of bounds otherwise": text(("spec.serving.outOfBounds", "Clip")),
    "both size and existing claim": text(("spec.storage.pvc.existingClaim", "mine")),
    "an existing claim of another namespace": text(("spec.storage.pvc", {"existingClaim": "../../other/persistentvolumeclaims/theirs"})),
    "a RayService of another namespace": text(("spec.serving.rayService", "../../other/rayservices/theirs")),
    "neither size nor existing claim": text(("spec.storage.pvc", {})),
    "access modes of an existing claim": text(("spec.storage.pvc", {"existingClaim": "mine", "accessModes": ["ReadWriteOnce"]})),
    "another access mode": text(("spec.storage.pvc.accessModes", ["ReadOnlyMany"])),
    "a size of nothing, which could never be changed": text(("spec.storage.pvc.size", "0.0Gi")),
    "a size that is none": text(("spec.storage.pvc.size", "1Gb")),
    "no revision kept": text(("spec.storage.keepRevisions", 0)),
    "too many revisions kept": text(("spec.storage.keepRevisions", 51)),
    "a deletion policy that is none": text(("spec.storage.deletionPolicy", "Orphan")),
    "adoption with an image": adopting(("spec.serving.image", "a")),
    "adoption with a proxy": adopting(("spec.serving.httpProxy", "Serve")),
    "adoption with resources": adopting(("spec.serving.resources", {"limits": {"cpu": 1}})),
    "adoption with a template": adopting(("spec.serving.template", {"labels": {"a": "b"}})),
    "an Ingress without a host": text(("spec.serving.ingress", {"className": "a"})),
    "an annotation that is a number": text(("spec.serving.ingress.annotations", {"a": 1})),
    "a quantity that is none": text(("spec.training.resources", {"requests": {"cpu": "many"}})),
    "a negative quantity": text(("spec.training.resources", {"requests": {"cpu": "-1"}})),
    "a variable without a name": text(("spec.training.template", {"env": [{"value": "a"}]})),
    "a secret without a name": text(("spec.imagePullSecrets", [{}])),
    "a long name": text(name="a" * 41),
    "a name that begins with a digit": text(name="1cartpole"),
    "a name with a dot": text(name="cart.pole"),
    "a name with a capital": text(name="Cartpole"),
    "another version": replaced("v1alpha1", "v2"),
    "infinity": replaced("minReturn: 475", "minReturn: .inf"),
    "no number": replaced("minReturn: 475", "minReturn: .nan"),
    "broken YAML": replaced("seed: 0", "seed: [0"),
}


def kubectl(*arguments: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["kubectl", *arguments], input=stdin, capture_output=True, text=True, timeout=60, check=False)


@cache
def crd_of_the_cluster() -> dict[str, Any] | str:
    """The CRD that the cluster holds, or why there is none."""
    try:
        if kubectl("get", "--raw", "/readyz", "--request-timeout=5s").returncode != 0:
            return "no cluster answers"
        found = kubectl("get", "customresourcedefinition", CRD_NAME, "-o", "json")
    except OSError:
        return "kubectl is not installed"
    return json.loads(found.stdout) if found.returncode == 0 else "the cluster does not hold the CRD; run `make deploy`"


CRD = yaml.safe_load(schema.CRD_PATH.read_text())


def is_ours() -> bool:
    """Whether the cluster holds the schema of this checkout."""
    held = crd_of_the_cluster()
    return isinstance(held, dict) and held["spec"]["versions"][0]["schema"] == CRD["spec"]["versions"][0]["schema"]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> Iterator[None]:
    """A cluster that answers; `controller.schema` reads the schema that it holds."""
    crd = crd_of_the_cluster()
    if isinstance(crd, str):
        pytest.skip(crd)
    (tmp_path / "crd.yaml").write_text(yaml.safe_dump(crd))
    monkeypatch.setattr(schema, "CRD_PATH", tmp_path / "crd.yaml")
    schema._crd_version.cache_clear()
    yield
    schema._crd_version.cache_clear()


def accepted(manifest: str) -> dict[str, Any] | None:
    """What the API server would store, or None where it refuses."""
    answer = kubectl("apply", "--dry-run=server", "--namespace=default", "--output=json", "--filename=-", stdin=manifest)
    return json.loads(answer.stdout) if answer.returncode == 0 else None


@pytest.mark.parametrize("manifest", GOOD.values(), ids=GOOD)
def test_a_good_object_is_taken_here(manifest):
    schema.load(manifest)


def test_a_key_that_stands_twice_is_refused_here_though_kubectl_takes_the_last_one():
    with pytest.raises(schema.InvalidPolicyModel, match="the key 'seed' stands twice"):
        schema.load(replaced("seed: 0", "seed: 0\n    seed: 1"))


@pytest.mark.parametrize("manifest", BAD.values(), ids=BAD)
def test_a_bad_object_is_refused_here(manifest):
    with pytest.raises(schema.InvalidPolicyModel):
        schema.load(manifest)


def test_a_ray_cluster_beside_a_claim_for_one_node_is_told_the_field_and_what_is_allowed():
    with pytest.raises(schema.InvalidPolicyModel, match=r"spec.training.engine: .* spec.storage has to be s3, or a pvc .* ReadWriteMany"):
        schema.load(text(("spec.training.engine", "RayJob")))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"lr": {"min": 0.1, "max": 0.01}}, "spec.training.search.config.lr.max: max has to be above min"),
        (
            {"gamma": {"min": 0, "max": 1, "scale": "Log"}},
            "spec.training.search.config.gamma.min: min has to be above 0 where the scale is Log",
        ),
        ({"klTarget": {}}, "spec.training.search.config.klTarget: either values is allowed, or min and max, and scale beside these"),
        ({"lr": {"min": 0.1, "max": 2}}, "spec.training.search.config.lr.max: allowed is at most 1"),
        ({}, "spec.training.search.config: allowed is at least 1 of its fields"),
    ],
)
def test_what_is_wrong_with_a_search_is_told_with_its_field(config, message):
    with pytest.raises(schema.InvalidPolicyModel, match=re.escape(message)):
        schema.load(drawing(**config))


@pytest.mark.parametrize("name", schema.schema()["properties"]["spec"]["properties"]["training"]["properties"]["config"]["properties"])
def test_a_setting_is_drawn_within_its_own_bounds_and_where_it_is_not_set(name):
    training = schema.schema()["properties"]["spec"]["properties"]["training"]["properties"]
    bounds = {key: value for key, value in training["config"]["properties"][name].items() if key not in ("description", "default")}
    drawn = training["search"]["properties"]["config"]["properties"][name]["properties"]
    for node in (drawn["values"]["items"], *(drawn[end] for end in ("min", "max") if end in drawn)):
        assert {key: value for key, value in node.items() if key != "description"} == bounds
    assert ("min" in drawn) == (bounds["type"] in ("number", "integer"))
    one = next(iter(bounds.get("enum", [])), None) or {"boolean": True, "array": [8]}.get(bounds["type"], bounds.get("maximum", 1))
    # Where the default is filled in, the setting may be drawn; where another value is given, it may not.
    schema.load(searching({"config": {name: {"values": [one]}}}))
    least = bounds.get("minimum", 0) or 0.25
    other = {"boolean": True, "array": [8], "string": bounds.get("enum", [""])[-1]}.get(bounds["type"], least)
    others = {"minibatchSize": 8} if name == "trainBatchSize" else {}
    with pytest.raises(schema.InvalidPolicyModel, match="a setting that is drawn may not be set"):
        schema.load(searching({"config": {name: {"values": [one]}}}, (CONFIG, {**others, name: other})))


def test_the_bounds_of_a_search_are_those_of_the_app():
    fields = schema.schema()["properties"]["spec"]["properties"]["training"]["properties"]["search"]["properties"]
    assert (fields["trials"]["minimum"], fields["trials"]["maximum"]) == (app_search.LEAST_TRIALS, app_search.MOST_TRIALS)
    assert fields["parallel"]["maximum"] == app_search.MOST_PARALLEL
    assert (fields["trials"]["default"], fields["parallel"]["default"]) == (app_search.DEFAULT_TRIALS, app_search.DEFAULT_PARALLEL)
    lr = fields["config"]["properties"]["lr"]["properties"]
    assert (lr["values"]["maxItems"], tuple(lr["scale"]["enum"])) == (app_search.MOST_VALUES, app_search.SCALES)


def without_nulls_of_the_environment(document: dict[str, Any]) -> dict[str, Any]:
    """`kubectl apply` drops a null inside the environment's free-form arguments; here it stays, as it would with Helm."""
    return json.loads(json.dumps(document), object_hook=lambda found: {key: value for key, value in found.items() if value is not None})


@pytest.mark.parametrize("manifest", GOOD.values(), ids=GOOD)
def test_a_good_object_is_taken_by_the_server_with_the_same_defaults(server, manifest):
    stored = accepted(manifest)
    if stored is None and not is_ours():
        pytest.skip("the cluster holds the CRD of another checkout, which refuses it; run `make deploy`")
    assert stored is not None
    assert without_nulls_of_the_environment(schema.load(manifest)["spec"]) == stored["spec"]


@pytest.mark.parametrize("manifest", BAD.values(), ids=BAD)
def test_a_bad_object_is_refused_by_the_server(server, manifest):
    stored = accepted(manifest)
    if stored and not is_ours():
        pytest.skip("the cluster holds the CRD of another checkout, which takes it; run `make deploy`")
    assert stored is None


def test_the_cluster_holds_the_crd_of_this_checkout():
    crd = crd_of_the_cluster()
    if isinstance(crd, str):
        pytest.skip(crd)
    if not is_ours():
        pytest.skip("the cluster holds the CRD of another checkout; run `make deploy`")


def fields(node: dict[str, Any], path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    for name, child in node.get("properties", {}).items():
        yield f"{path}.{name}", child
        yield from fields(child, f"{path}.{name}")
    if "properties" in node.get("items", {}):
        yield from fields(node["items"], f"{path}[]")


FIELDS = {path: node for path, node in fields(schema.schema(), "") if path != ".metadata"}


@pytest.mark.parametrize("path", FIELDS)
def test_every_field_has_a_description(path):
    assert FIELDS[path].get("description", "").strip()


@pytest.mark.parametrize("path", [path for path in FIELDS if path.startswith(".spec")])
def test_every_description_of_the_spec_is_a_sentence(path):
    description = FIELDS[path]["description"]
    assert description[0].isupper() or description[0] == "`"
    assert description.endswith(".")


NUMBERS = [path for path, node in FIELDS.items() if path.startswith(".spec") and node.get("type") in ("number", "integer")]


@pytest.mark.parametrize("path", NUMBERS)
def test_every_number_is_bounded_but_for_returns(path):
    node = FIELDS[path]
    returns = (".spec.training.stop.episodeReturnMean", ".spec.gate.minReturn", ".spec.gate.againstServing.maxRegression")
    assert {"minimum", "maximum"} <= set(node) or path in returns


@pytest.mark.parametrize("path", NUMBERS)
def test_every_bound_is_a_whole_number(path):
    """The API server cuts a bound's fraction off when the value is an integer: `minimum: 0.01` takes 0."""
    for bound in ("minimum", "maximum"):
        assert float(FIELDS[path].get(bound, 0)).is_integer()


def test_the_defaults_of_the_settings_are_those_of_the_app():
    defaulted = schema.load(text((CONFIG, GONE)))["spec"]["training"]["config"]
    assert app_settings.parsed_settings(copy.deepcopy(defaulted)) == app_settings.Settings()


def test_every_rule_has_a_message_that_names_its_field():
    def rules(node: Any) -> Iterator[dict[str, Any]]:
        if isinstance(node, dict):
            yield from node.get("x-kubernetes-validations", [])
            for child in node.values():
                yield from rules(child)

    found = list(rules(schema.schema()))
    assert found
    for rule in found:
        assert rule["message"].startswith(("spec.", "metadata."))


def test_printer_columns_read_fields_that_the_schema_has():
    for column in CRD["spec"]["versions"][0]["additionalPrinterColumns"]:
        path = column["jsonPath"]
        assert path == ".metadata.creationTimestamp" or path.startswith(".status.conditions[?(@.type==") or path in FIELDS
