"""The manifests, whole, as files in `golden/`; and what each builder may and may not do.

A manifest that changed on purpose is written anew by `PYTHONPATH=.:tests python tests/unit/controller/test_resources.py`. Read the
difference first: one in `ray-service.yaml` is seen by new RayServices only, one in a Job by new Jobs only.
"""

from __future__ import annotations

import copy
import json
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml
from fakes.world import SETTINGS, document

from controller import names, resources
from controller.model import Images, Owner, Revision, Settings
from controller.spec import Spec, spec_of

GOLDEN = Path(__file__).parent / "golden"
OWNER = Owner("default", "cartpole", "uid-1", 1)
IMAGES = Images("train:1", "serve:1")
REVISION = Revision(1, "sha256:" + "ab" * 32, "file:///storage/default/cartpole/bundles/" + "ab" * 32, "run-1")
LOOK = spec_of(document()).looks(REVISION.run)[0]
POLICY = {"uri": REVISION.uri, "digest": REVISION.digest, "revision": 1}


def spec(**changes: Any) -> Spec:
    return spec_of(document(**changes))


FULL: dict[str, Any] = {
    "environment": {"entryPoint": "acme.envs:Maze", "config": {"size": 5}},
    "imagePullSecrets": [{"name": "registry"}],
    "training__image": "mine:train",
    "training__workers": 2,
    "training__backoffLimit": 0,
    "training__resources": {"requests": {"cpu": "2"}, "limits": {"nvidia.com/gpu": 1}},
    "training__template": {
        "labels": {"team": "a"},
        "annotations": {"note": "b"},
        "nodeSelector": {"gpu": "yes"},
        "tolerations": [{"key": "gpu", "operator": "Exists"}],
        "priorityClassName": "high",
        "runtimeClassName": "nvidia",
        "env": [{"name": "TOKEN", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}],
    },
    "storage__pvc": {"size": "5Gi", "accessModes": ["ReadWriteMany"], "storageClassName": "fast"},
    "storage__deletionPolicy": "Retain",
    "serving__image": "mine:serve",
    "serving__replicas": 3,
    "serving__outOfBounds": "Reject",
    "serving__decisionLog": {"claimName": "decisions", "maxMegabytes": 64},
    "serving__resources": {"limits": {"memory": "3Gi"}},
    "serving__template": {"labels": {"team": "a"}, "env": [{"name": "LOG", "value": "debug"}], "nodeSelector": {"disk": "ssd"}},
    "serving__ingress": {"host": "a.example", "className": "traefik", "tlsSecretName": "tls", "annotations": {"k": "v"}},
}


S3 = {"bucket": "policies", "prefix": "all", "endpoint": "http://minio.minio.svc:9000", "region": "eu-central-1", "secretName": "keys"}
IN_A_BUCKET: dict[str, Any] = {"storage__pvc": None, "storage__s3": {**S3, "pathStyle": True}}
MLFLOW = {"trackingUri": "http://mlflow.ml:5000", "secretName": "mlflow"}
TRACKED: dict[str, Any] = {"training__tracking": {"tensorBoard": True, "mlflow": MLFLOW}}
ON_A_CLUSTER: dict[str, Any] = {**IN_A_BUCKET, "training__engine": "RayJob", "training__workers": 2}


SEARCHING = {"training__search": {"trials": 4, "config": {"lr": {"min": 0.0001, "max": 0.003, "scale": "Log"}}}}


def manifests() -> dict[str, Any]:
    """Every golden file, by its name."""
    example, full, in_a_bucket = spec(), spec(**FULL), spec(**IN_A_BUCKET)
    on_a_cluster, full_on_a_cluster = spec(**ON_A_CLUSTER), spec(**FULL, training__engine="RayJob")
    tracked, tracked_on_a_cluster = spec(**TRACKED), spec(**ON_A_CLUSTER, **TRACKED)
    return {
        "training-job.yaml": resources.training_job(OWNER, example, SETTINGS, IMAGES),
        "training-job-full.yaml": resources.training_job(OWNER, full, SETTINGS, IMAGES),
        "training-job-tracked.yaml": resources.training_job(OWNER, tracked, SETTINGS, IMAGES),
        "training-ray-job-tracked.yaml": resources.training_job(OWNER, tracked_on_a_cluster, SETTINGS, IMAGES),
        "evaluation-job.yaml": resources.evaluation_job(OWNER, example, SETTINGS, IMAGES, REVISION, LOOK),
        "prune-job.yaml": resources.prune_job(OWNER, example, SETTINGS, [REVISION.digest, "sha256:" + "cd" * 32]),
        "prune-job-full.yaml": resources.prune_job(OWNER, full, SETTINGS, [REVISION.digest]),
        "training-job-search.yaml": resources.training_job(OWNER, spec(**SEARCHING), SETTINGS, IMAGES),
        "training-job-s3.yaml": resources.training_job(OWNER, in_a_bucket, SETTINGS, IMAGES),
        "training-ray-job.yaml": resources.training_job(OWNER, on_a_cluster, SETTINGS, IMAGES),
        "training-ray-job-full.yaml": resources.training_job(OWNER, full_on_a_cluster, SETTINGS, IMAGES, replaces="sha256:old"),
        "evaluation-job-s3.yaml": resources.evaluation_job(OWNER, in_a_bucket, SETTINGS, IMAGES, REVISION, LOOK),
        "prune-job-s3.yaml": resources.prune_job(OWNER, in_a_bucket, SETTINGS, [REVISION.digest]),
        "ray-service-s3.yaml": resources.ray_service(OWNER, in_a_bucket, IMAGES),
        "claim.yaml": resources.claim(OWNER, example),
        "claim-full.yaml": resources.claim(OWNER, full),
        "ingress.yaml": resources.ingress(OWNER, example),
        "ingress-full.yaml": resources.ingress(OWNER, full),
        "ray-service.yaml": resources.ray_service(OWNER, example, IMAGES),
        "ray-service-full.yaml": resources.ray_service(OWNER, full, IMAGES),
        "serve-config.yaml": yaml.safe_load(resources.serve_config(OWNER, example, POLICY)),
        "serve-config-without-policy.yaml": yaml.safe_load(resources.serve_config(OWNER, full, None)),
        "serve-config-patch.yaml": resources.serve_config_patch(OWNER, example, resources.serve_config(OWNER, example, POLICY)),
    }


@pytest.mark.parametrize("name", sorted(manifests()))
def test_the_manifest_is_the_golden_one(name):
    assert manifests()[name] == yaml.safe_load((GOLDEN / name).read_text())


def test_every_golden_file_is_compared():
    assert {path.name for path in GOLDEN.iterdir()} == set(manifests())


def test_no_builder_changes_what_it_is_given():
    whole = document(**FULL)
    before, example = copy.deepcopy(whole), spec_of(whole)
    for _ in range(2):
        resources.training_job(OWNER, example, SETTINGS, IMAGES)
        resources.evaluation_job(OWNER, example, SETTINGS, IMAGES, REVISION, LOOK)
        resources.prune_job(OWNER, example, SETTINGS, [REVISION.digest])
        resources.claim(OWNER, example)
        resources.ingress(OWNER, example)
        resources.ray_service(OWNER, example, IMAGES)
        resources.serve_config(OWNER, example, POLICY)
    assert whole == before
    assert example == spec_of(before)


def test_two_manifests_share_nothing_that_one_could_change():
    first = resources.training_job(OWNER, spec(), SETTINGS, IMAGES)
    before = copy.deepcopy(resources.ray_service(OWNER, spec(), IMAGES))
    first["spec"]["template"]["spec"]["securityContext"]["runAsUser"] = 0
    first["spec"]["template"]["metadata"]["labels"]["x"] = "y"
    assert resources.ray_service(OWNER, spec(), IMAGES) == before


def everything() -> list[dict[str, Any]]:
    return [manifest for name, manifest in manifests().items() if "metadata" in manifest and "patch" not in name]


def test_everything_is_owned_but_a_claim_that_is_to_stay():
    unowned = [manifest["kind"] for manifest in everything() if "ownerReferences" not in manifest["metadata"]]
    assert unowned == ["PersistentVolumeClaim"]


def pods() -> list[dict[str, Any]]:
    jobs = [manifest["spec"]["template"] for manifest in everything() if manifest["kind"] == "Job"]
    clusters = [manifest["spec"]["rayClusterConfig"] for manifest in everything() if manifest["kind"] == "RayService"]
    ray_jobs = [manifest["spec"] for manifest in everything() if manifest["kind"] == "RayJob"]
    clusters += [job["rayClusterSpec"] for job in ray_jobs]
    heads = [cluster["headGroupSpec"]["template"] for cluster in clusters]
    workers = [group["template"] for cluster in clusters for group in cluster.get("workerGroupSpecs", [])]
    return [*jobs, *heads, *workers, *[job["submitterPodTemplate"] for job in ray_jobs]]


def test_every_pod_is_as_the_restricted_standard_asks_and_has_no_token():
    for pod in pods():
        assert pod["spec"]["automountServiceAccountToken"] is False
        assert pod["spec"]["securityContext"]["runAsNonRoot"] is True
        assert pod["spec"]["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for container in pod["spec"]["containers"]:
            assert container["securityContext"]["allowPrivilegeEscalation"] is False
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
            assert container["securityContext"]["readOnlyRootFilesystem"] is True


def test_a_label_of_the_users_cannot_take_ours_away():
    stolen = {"labels": {names.LABEL_NAME: "other", names.LABEL_ROLE: "x", names.LABEL_RUN: "y"}}
    changed = spec(training__template=stolen, serving__template={"labels": {names.LABEL_NAME: "other", names.LABEL_ROLE: "x"}})
    job = resources.training_job(OWNER, changed, SETTINGS, IMAGES)["spec"]["template"]["metadata"]["labels"]
    assert (job[names.LABEL_NAME], job[names.LABEL_ROLE], job[names.LABEL_RUN]) == ("cartpole", "train", changed.run)
    head = resources.ray_service(OWNER, changed, IMAGES)["spec"]["rayClusterConfig"]["headGroupSpec"]["template"]["metadata"]["labels"]
    assert (head[names.LABEL_NAME], head[names.LABEL_ROLE]) == ("cartpole", "serve")


def test_the_server_reads_the_storage_and_cannot_write_it():
    head = resources.ray_service(OWNER, spec(), IMAGES)["spec"]["rayClusterConfig"]["headGroupSpec"]["template"]["spec"]
    mounts = {mount["name"]: mount for mount in head["containers"][0]["volumeMounts"]}
    assert mounts["policies"] == {"name": "policies", "mountPath": "/storage", "readOnly": True}


TOGETHER = {"labelSelector": {"matchLabels": {names.LABEL_NAME: "cartpole"}}, "topologyKey": "kubernetes.io/hostname"}
REQUIRED = {"podAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [TOGETHER]}}
PREFERRED = {"podAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 100, "podAffinityTerm": TOGETHER}]}}


@pytest.mark.parametrize(
    ("pvc", "affinity"),
    [
        ({"size": "1Gi"}, REQUIRED),
        ({"size": "1Gi", "accessModes": ["ReadWriteOnce"]}, REQUIRED),
        ({"size": "1Gi", "accessModes": ["ReadWriteOnce", "ReadWriteMany"]}, None),
        ({"existingClaim": "mine"}, PREFERRED),
    ],
    ids=["default", "one node", "any node", "not known"],
)
def test_pods_that_share_a_claim_of_one_node_are_placed_together(pvc, affinity):
    changed = spec(storage__pvc=pvc)
    built = [
        resources.training_job(OWNER, changed, SETTINGS, IMAGES)["spec"]["template"],
        resources.evaluation_job(OWNER, changed, SETTINGS, IMAGES, REVISION, LOOK)["spec"]["template"],
        resources.ray_service(OWNER, changed, IMAGES)["spec"]["rayClusterConfig"]["headGroupSpec"]["template"],
    ]
    assert [pod["spec"].get("affinity") for pod in built] == [affinity] * 3
    # Without the label that it asks for, the first pod of all would find no node.
    assert all(TOGETHER["labelSelector"]["matchLabels"].items() <= pod["metadata"]["labels"].items() for pod in built)


@pytest.mark.parametrize(
    ("changes", "deadline_s"),
    [({}, (3600 + 900) * 3), ({"training__backoffLimit": 0}, 4500), ({"training__stop": {"timeSeconds": 60}}, 960 * 3)],
    ids=["default", "one attempt", "a minute"],
)
def test_a_training_has_time_for_every_attempt(changes, deadline_s):
    assert resources.training_job(OWNER, spec(**changes), SETTINGS, IMAGES)["spec"]["activeDeadlineSeconds"] == deadline_s


def ray_job(**changes: Any) -> dict[str, Any]:
    job: dict[str, Any] = resources.training_job(OWNER, spec(**ON_A_CLUSTER | changes), SETTINGS, IMAGES)
    assert job["kind"] == "RayJob"
    return job["spec"]


def test_gpus_are_the_learners_and_the_rest_is_each_workers_too():
    wanted = {"requests": {"cpu": "2", "memory": "4Gi"}, "limits": {"memory": "8Gi", "nvidia.com/gpu": 1}}
    cluster = ray_job(training__resources=wanted)["rayClusterSpec"]
    (group,) = cluster["workerGroupSpecs"]
    assert cluster["headGroupSpec"]["template"]["spec"]["containers"][0]["resources"] == wanted
    assert group["template"]["spec"]["containers"][0]["resources"] == {"requests": wanted["requests"], "limits": {"memory": "8Gi"}}


def test_a_ray_cluster_has_a_worker_for_each_env_runner_and_never_more():
    (group,) = ray_job(training__workers=5)["rayClusterSpec"]["workerGroupSpecs"]
    assert (group["replicas"], group["minReplicas"], group["maxReplicas"], group["rayStartParams"]["num-cpus"]) == (5, 5, 5, "1")
    assert "workerGroupSpecs" not in ray_job(training__workers=0)["rayClusterSpec"]


def test_only_the_head_has_the_storage_and_may_be_placed_by_it():
    job = ray_job(storage__s3=None, storage__pvc={"existingClaim": "mine"})
    cluster = job["rayClusterSpec"]
    head, worker = cluster["headGroupSpec"]["template"]["spec"], cluster["workerGroupSpecs"][0]["template"]["spec"]
    assert ["affinity" in pod for pod in (head, worker, job["submitterPodTemplate"]["spec"])] == [True, False, False]
    volumes = [{volume["name"] for volume in pod["volumes"]} for pod in (head, worker, job["submitterPodTemplate"]["spec"])]
    assert volumes == [{"policies", "tmp"}, {"tmp"}, {"tmp"}]


def test_the_submitter_and_the_driver_get_the_same_flags():
    job = ray_job()
    (submitter,) = job["submitterPodTemplate"]["spec"]["containers"]
    assert shlex.split(job["entrypoint"]) == ["python", "-m", "app.train", *submitter["args"][2:]]


def test_one_machine_trains_in_a_process_whichever_engine_is_asked_for():
    here = Settings("t", "s", in_cluster=False)
    assert resources.training_job(OWNER, spec(**ON_A_CLUSTER), here, IMAGES)["kind"] == "Job"


def test_another_engine_makes_a_training_anew_that_does_not_get_on_and_no_other():
    assert resources.job_hash(spec(**ON_A_CLUSTER)) != resources.job_hash(spec(**IN_A_BUCKET))
    assert resources.job_hash(spec(training__engine="Job")) == resources.job_hash(spec())


def test_other_tracking_makes_a_training_anew_that_does_not_get_on_and_no_other():
    assert resources.job_hash(spec(**TRACKED)) != resources.job_hash(spec())
    assert resources.job_hash(spec(training__tracking={})) == resources.job_hash(spec())


def test_the_secret_of_a_tracking_server_goes_to_the_container_that_trains_alone():
    example, on_a_cluster = spec(**TRACKED), spec(**ON_A_CLUSTER, **TRACKED)
    job = resources.training_job(OWNER, example, SETTINGS, IMAGES)["spec"]["template"]
    ray_job = resources.training_job(OWNER, on_a_cluster, SETTINGS, IMAGES)["spec"]
    (workers,) = ray_job["rayClusterSpec"]["workerGroupSpecs"]
    trains = [job, ray_job["rayClusterSpec"]["headGroupSpec"]["template"]]
    others = [
        workers["template"],
        ray_job["submitterPodTemplate"],
        resources.evaluation_job(OWNER, example, SETTINGS, IMAGES, REVISION, LOOK)["spec"]["template"],
        resources.prune_job(OWNER, example, SETTINGS, [REVISION.digest])["spec"]["template"],
    ]
    for pod in trains:
        assert pod["spec"]["containers"][0]["envFrom"] == [{"secretRef": {"name": "mlflow"}}]
    assert not any("envFrom" in pod["spec"]["containers"][0] for pod in others)


def test_the_allow_list_goes_to_both_jobs():
    settings = Settings("t", "s", entry_point_prefixes=("acme", "other.envs"))
    for job in (
        resources.training_job(OWNER, spec(), settings, IMAGES),
        resources.evaluation_job(OWNER, spec(), settings, IMAGES, REVISION, LOOK),
    ):
        assert job["spec"]["template"]["spec"]["containers"][0]["args"][-4:] == [
            "--entry-point-prefix",
            "acme",
            "--entry-point-prefix",
            "other.envs",
        ]


@pytest.mark.parametrize(
    ("changes", "settings", "url"),
    [
        ({}, SETTINGS, "http://cartpole.localhost/cartpole-ppo"),
        ({"serving__ingress": {"host": "a.example", "tlsSecretName": "t"}}, SETTINGS, "https://a.example/cartpole-ppo"),
        ({"serving__ingress": None}, SETTINGS, "http://cartpole-serve-svc.default.svc:8000/cartpole-ppo"),
        (
            {"serving__ingress": None, "serving__rayService": "shared"},
            SETTINGS,
            "http://shared-serve-svc.default.svc:8000/cartpole-ppo",
        ),
        ({}, Settings("t", "s", base_url="http://127.0.0.1:8000", in_cluster=False), "http://127.0.0.1:8000/cartpole-ppo"),
    ],
    ids=["Ingress", "TLS", "inside the cluster", "adopted", "this machine"],
)
def test_the_url_is_where_queries_are_answered(changes, settings, url):
    assert resources.url(OWNER, spec(**changes), settings) == url


SAME_CLUSTER = {
    "replicas": {"serving__replicas": 3},
    "the storage class": {"storage__pvc": {"size": "1Gi", "storageClassName": "fast"}},
    "the size of the claim": {"storage__pvc": {"size": "2Gi"}},
    "the route": {"serving__route": "/other"},
    "the Ingress": {"serving__ingress": {"host": "b.example"}},
    "autoscaling": {"serving__replicas": None, "serving__autoscaling": {"max": 3, "targetRequestsPerSecond": 100}},
    "out of bounds": {"serving__outOfBounds": "Reject"},
    "the size of a body": {"serving__maxBodyBytes": 4096},
    "the access log": {"serving__accessLog": True},
    "the default proxy": {"serving__httpProxy": "HAProxy"},
    "a training field": {"training__seed": 3, "training__image": "mine:1"},
    "the training template": {"training__template": {"nodeSelector": {"a": "b"}}},
    "the gate": {"gate__minReturn": 1},
    "an empty template": {"serving__template": {}},
    "empty resources": {"serving__resources": {}},
    "the deletion policy": {"storage__deletionPolicy": "Retain"},
}
OTHER_CLUSTER = {
    "the serving image": {"serving__image": "mine:1"},
    "the other proxy": {"serving__httpProxy": "Serve"},
    "resources": {"serving__resources": {"limits": {"memory": "4Gi"}}},
    "labels": {"serving__template": {"labels": {"a": "b"}}},
    "annotations": {"serving__template": {"annotations": {"a": "b"}}},
    "the node selector": {"serving__template": {"nodeSelector": {"a": "b"}}},
    "tolerations": {"serving__template": {"tolerations": [{"operator": "Exists"}]}},
    "the priority": {"serving__template": {"priorityClassName": "high"}},
    "the runtime": {"serving__template": {"runtimeClassName": "gvisor"}},
    "the environment": {"serving__template": {"env": [{"name": "A", "value": "b"}]}},
    "pull secrets": {"imagePullSecrets": [{"name": "registry"}]},
    "an existing claim": {"storage__pvc": {"existingClaim": "mine"}},
    "the decision log": {"serving__decisionLog": {"claimName": "decisions"}},
}


def test_the_hash_of_the_examples_cluster_is_pinned():
    """A change of this hash builds a second cluster for every PolicyModel there is."""
    assert resources.serving_hash(spec()) == "44136fa355"


@pytest.mark.parametrize("changes", SAME_CLUSTER.values(), ids=SAME_CLUSTER)
def test_a_field_that_does_not_shape_the_cluster_leaves_its_hash(changes):
    assert resources.serving_hash(spec(**changes)) == resources.serving_hash(spec())


@pytest.mark.parametrize("changes", OTHER_CLUSTER.values(), ids=OTHER_CLUSTER)
def test_a_field_that_shapes_the_cluster_changes_its_hash(changes):
    assert resources.serving_hash(spec(**changes)) != resources.serving_hash(spec())


@pytest.mark.parametrize("changes", [*SAME_CLUSTER.values(), *OTHER_CLUSTER.values()], ids=[*SAME_CLUSTER, *OTHER_CLUSTER])
def test_the_hash_and_the_cluster_change_together(changes):
    """A field that changes the pods and not the hash would never be rolled out; the reverse would apply the same again and again."""
    built = [resources.ray_service(OWNER, spec(**more), IMAGES)["spec"] for more in ({}, changes)]
    hashes = [resources.serving_hash(spec(**more)) for more in ({}, changes)]
    assert (built[0] == built[1]) == (hashes[0] == hashes[1])


def test_the_hash_knows_nothing_of_the_operators_default_images():
    hashes = {
        resources.ray_service(OWNER, spec(), Images("a", image))["metadata"]["annotations"][names.ANNOTATION_HASH] for image in ("b", "c")
    }
    assert len(hashes) == 1


OTHERS = """
http_options: {host: 0.0.0.0, port: 9999}
applications:
- {name: first, import_path: a:b, route_prefix: /first}
- name: cartpole
  import_path: old:one
- {name: last, import_path: c:d, route_prefix: /last}
"""


def adopted(live: str, policy: Any = POLICY) -> dict[str, Any]:
    return yaml.safe_load(resources.serve_config(OWNER, spec(serving__rayService="shared"), policy, live))


def test_adoption_keeps_others_applications_and_their_order():
    config = adopted(OTHERS)
    assert [application["name"] for application in config["applications"]] == ["first", "cartpole", "last"]
    assert config["applications"][0] == {"name": "first", "import_path": "a:b", "route_prefix": "/first"}
    assert config["applications"][1]["import_path"] == "app.serve:build"
    assert config["http_options"]["port"] == 9999


def test_adoption_adds_ours_at_the_end():
    config = adopted("applications: [{name: first, import_path: a:b}]")
    assert [application["name"] for application in config["applications"]] == ["first", "cartpole"]


@pytest.mark.parametrize(
    "live",
    [
        *("", "applications:", "applications: []", "[1, 2]", "just text", "{broken: [", "applications: text", "applications: [text]", "{}"),
        *("since: 2026-02-30", "number: !!int x", "[" * 2000),
    ],
)
def test_adoption_of_what_is_no_configuration_writes_ours(live):
    ours = [application for application in adopted(live)["applications"] if isinstance(application, dict)]
    assert [application["name"] for application in ours] == ["cartpole"]


def test_adoption_written_twice_is_the_same():
    once = resources.serve_config(OWNER, spec(serving__rayService="shared"), POLICY, OTHERS)
    assert resources.serve_config(OWNER, spec(serving__rayService="shared"), POLICY, once) == once


def test_our_own_ray_service_holds_our_application_alone():
    config = yaml.safe_load(resources.serve_config(OWNER, spec(), POLICY, OTHERS))
    assert [application["name"] for application in config["applications"]] == ["cartpole"]


def test_the_patch_of_a_rollout_touches_serve_config_alone():
    patch = resources.serve_config_patch(OWNER, spec(serving__rayService="shared"), "text")
    assert patch == {
        "apiVersion": "ray.io/v1",
        "kind": "RayService",
        "metadata": {"name": "shared", "namespace": "default"},
        "spec": {"serveConfigV2": "text"},
    }


SERVED = {
    "ours": (resources.serve_config(OWNER, spec(), POLICY), POLICY),
    "ours beside others": (resources.serve_config(OWNER, spec(serving__rayService="shared"), POLICY, OTHERS), POLICY),
    "none yet": (resources.serve_config(OWNER, spec(), None), None),
    "another's": (resources.serve_config(Owner("default", "other", "u"), spec(), POLICY), None),
    "nothing": ("", None),
    "no application": ("applications:", None),
    "no deployment": ("applications: [{name: cartpole}]", None),
    "another deployment": ("applications: [{name: cartpole, deployments: [{name: X, user_config: {serving: {uri: a}}}]}]", None),
    "empty user_config": ("applications: [{name: cartpole, deployments: [{name: ServePPOModel, user_config: }]}]", None),
    "text": ("just text", None),
    "applications that are text": ("applications: text", None),
    "an application that is text": ("applications: [text]", None),
    "a policy without a revision": (
        "applications: [{name: cartpole, deployments: [{name: ServePPOModel, user_config: {serving: {uri: a, digest: b}}}]}]",
        {"uri": "a", "digest": "b", "revision": None},
    ),
    "a policy without a digest": (
        "applications: [{name: cartpole, deployments: [{name: ServePPOModel, user_config: {serving: {uri: a}}}]}]",
        None,
    ),
}


@pytest.mark.parametrize(("text", "wanted"), SERVED.values(), ids=SERVED)
def test_the_policy_that_a_configuration_asks_for_is_read_from_it(text, wanted):
    assert resources.served_policy(OWNER, text) == wanted


COVERED = {
    "equal": ({"a": 1}, {"a": 1}, True),
    "more lives": ({"a": 1}, {"a": 1, "b": 2}, True),
    "less lives": ({"a": 1, "b": 2}, {"a": 1}, False),
    "another value": ({"a": 1}, {"a": 2}, False),
    "deep": ({"a": {"b": [{"c": 1}]}}, {"a": {"b": [{"c": 1, "d": 2}], "e": 3}}, True),
    "deep and different": ({"a": {"b": [{"c": 1}]}}, {"a": {"b": [{"c": 2}]}}, False),
    "a longer list": ({"a": [1, 2]}, {"a": [0, 1, 3, 2]}, True),
    "a shorter list": ({"a": [1, 2]}, {"a": [1]}, False),
    "the same twice": ({"a": [1, 1]}, {"a": [1, 2]}, False),
    "another order": ({"a": [1, 2]}, {"a": [2, 1]}, False),
    "not a mapping": ({"a": {"b": 1}}, {"a": "b"}, False),
    "not a list": ({"a": [1]}, {"a": {"0": 1}}, False),
    "nothing asked": ({}, {"a": 1}, True),
    "nothing lives": ({"a": 1}, {}, False),
    "null": ({"a": None}, {}, False),
}


@pytest.mark.parametrize(("desired", "live", "wanted"), COVERED.values(), ids=COVERED)
def test_covered_means_that_all_that_is_asked_for_lives(desired, live, wanted):
    assert resources.is_covered(desired, live) is wanted


@pytest.mark.parametrize(
    ("built", "before", "after"),
    [
        (resources.ingress, {"serving__ingress": {"host": "a", "annotations": {"k": "v"}}}, {"serving__ingress": {"host": "a"}}),
        (resources.ingress, {"serving__ingress": {"host": "a", "className": "c"}}, {"serving__ingress": {"host": "a"}}),
        (resources.claim, {"storage__deletionPolicy": "Delete"}, {"storage__deletionPolicy": "Retain"}),
    ],
    ids=["annotation", "class", "owner"],
)
def test_a_field_that_is_no_longer_asked_for_shows_as_a_change(built, before, after):
    live = built(OWNER, spec(**before))
    assert resources.is_covered(built(OWNER, spec(**before)), live)
    assert not resources.is_covered(built(OWNER, spec(**after)), live)


def in_a_bucket(**changes: Any) -> Spec:
    return spec(storage__pvc=None, storage__s3={"bucket": "policies", "prefix": "all", **changes})


def test_pods_that_use_a_bucket_have_no_claim_and_go_to_any_node():
    pods = [
        resources.training_job(OWNER, in_a_bucket(), SETTINGS, IMAGES)["spec"]["template"]["spec"],
        resources.ray_service(OWNER, in_a_bucket(), IMAGES)["spec"]["rayClusterConfig"]["headGroupSpec"]["template"]["spec"],
    ]
    assert all("affinity" not in pod for pod in pods)
    assert [[volume["name"] for volume in pod["volumes"]] for pod in pods] == [["tmp", "shm"], ["tmp"]]


@pytest.mark.parametrize(
    "more",
    [{"endpoint": "http://a"}, {"region": "b"}, {"secretName": "c"}, {"pathStyle": False}],
    ids=["endpoint", "region", "keys", "path"],
)
def test_how_a_bucket_is_reached_shapes_the_cluster_and_the_job_and_where_in_it_does_not(more):
    one, other, elsewhere = in_a_bucket(), in_a_bucket(**more), in_a_bucket(prefix="other")
    for hash_ in (resources.serving_hash, resources.job_hash):
        assert hash_(one) == hash_(elsewhere)
        assert hash_(one) != hash_(other)
    assert one.run == other.run == spec().run
    assert resources.storage_uri(OWNER, one, SETTINGS) == "s3://policies/all/default/cartpole"


def test_no_value_of_a_secret_is_in_a_manifest():
    """Only references to Secrets get into a pod; the text of `env.value` is the user's own."""
    text = json.dumps(resources.training_job(OWNER, spec(**FULL), SETTINGS, IMAGES))
    assert '"valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}' in text


if __name__ == "__main__":
    GOLDEN.mkdir(exist_ok=True)
    for file_name, content in manifests().items():
        (GOLDEN / file_name).write_text(yaml.safe_dump(content, sort_keys=False, width=200))
