"""Objects as the Kubernetes API gives them, and the facts in them."""

from __future__ import annotations

import json
import math
from datetime import UTC, datetime
from typing import Any

import pytest

from controller import observation
from controller.model import Owner, Problem, Progress, Request, SearchStatus, TrialStatus

NOW = datetime(2026, 1, 1, 12, 0, 0, tzinfo=UTC)
OWNER = Owner("default", "cartpole", "uid-1")
OWNED = [{"apiVersion": "policymodel.dev/v1alpha1", "kind": "PolicyModel", "name": "cartpole", "uid": "uid-1", "controller": True}]
OTHERS = [{"apiVersion": "policymodel.dev/v1alpha1", "kind": "PolicyModel", "name": "cartpole", "uid": "uid-2", "controller": True}]
RESULT = {"run": "r1", "digest": "sha256:ab", "uri": "file:///storage/b", "envSteps": 25600}


def job(status: dict[str, Any] | None = None, **metadata: Any) -> dict[str, Any]:
    return {
        "metadata": {
            "name": "cartpole-train-r1",
            "labels": {"policymodel.dev/name": "cartpole", "policymodel.dev/role": "train", "policymodel.dev/run": "r1"},
            "ownerReferences": OWNED,
            **metadata,
        },
        "spec": {"template": {"spec": {"containers": [{"name": "train", "image": "train:1"}]}}},
        "status": status or {},
    }


def ended(type_: str, reason: str = "", message: str = "") -> dict[str, Any]:
    condition = {"type": type_, "status": "True", "reason": reason, "message": message}
    criteria = {"Complete": "SuccessCriteriaMet", "Failed": "FailureTarget"}[type_]
    return {"conditions": [{**condition, "type": criteria}, condition], "startTime": "2026-01-01T11:00:00Z"}


def pod(
    name: str = "cartpole-train-r1-abcde", *, state: dict[str, Any] | None = None, age: str = "2026-01-01T11:00:00Z", **more: Any
) -> dict:
    container = {"name": "train", "image": "train:1", "state": state or {"running": {}}, **more.pop("container", {})}
    return {
        "metadata": {"name": name, "creationTimestamp": age},
        "status": {"phase": "Running", "containerStatuses": [container], **more},
    }


def terminated(message: str = "", exit_code: int = 0, reason: str = "Completed") -> dict[str, Any]:
    return {"terminated": {"exitCode": exit_code, "reason": reason, "message": message}}


def said(word: dict[str, Any]) -> str:
    return json.dumps(word)


def seen(job_: dict[str, Any], *pods: dict[str, Any], log: str | None = "") -> Any:
    return observation.job_state(job_, pods, log, NOW)


def test_a_job_that_was_just_made_runs():
    state = seen(job())
    assert (state.name, state.role, state.run, state.evaluation) == ("cartpole-train-r1", "train", "r1", None)
    assert (state.phase, state.deleting, state.attempt, state.start_time, state.image) == ("Running", False, 1, None, "train:1")
    assert (state.result, state.problem, state.progress) == (None, None, None)


def test_a_job_tells_what_its_pods_were_made_from():
    assert seen(job()).hash is None
    assert seen(job(annotations={"policymodel.dev/hash": "abc"})).hash == "abc"


def test_a_job_that_succeeded_gives_the_last_line_of_its_termination_message():
    state = seen(job(ended("Complete")), pod(state=terminated("chatter\n" + said({"result": RESULT}) + "\n")))
    assert (state.phase, state.result, state.problem) == ("Succeeded", RESULT, None)


def test_a_result_counts_only_once_the_job_is_complete():
    state = seen(job({"active": 1}), pod(state=terminated(said({"result": RESULT}))))
    assert (state.phase, state.result) == ("Running", None)


def test_of_several_pods_the_youngest_that_has_a_result_counts():
    old = pod(
        "a", state=terminated(said({"error": {"reason": "StorageUnavailable", "message": "gone"}}), 1, "Error"), age="2026-01-01T10:00:00Z"
    )
    new = pod("b", state=terminated(said({"result": RESULT})), age="2026-01-01T11:00:00Z")
    for pods in ((old, new), (new, old)):
        assert seen(job(ended("Complete")), *pods).result == RESULT


def test_a_container_that_a_mesh_put_into_the_pod_says_nothing_of_ours():
    mesh = {"name": "istio-proxy", "image": "mesh:1", "state": terminated()}
    ours = {"name": "train", "image": "train:1", "state": terminated(said({"result": RESULT}))}
    assert seen(job(ended("Complete")), pod(containerStatuses=[mesh, ours])).result == RESULT


def test_a_failed_attempt_whose_pod_outlived_the_good_one_does_not_pass_for_it():
    failed = pod(state=terminated(said({"error": {"reason": "StorageUnavailable", "message": "gone"}}), 1, "Error"))
    state = seen(job(ended("Complete")), failed)
    assert (state.phase, state.result, state.problem) == ("Succeeded", None, None)


def test_a_job_that_succeeded_and_lost_its_pod_has_no_result():
    assert seen(job(ended("Complete"))).result is None


TORN = {
    "half a line": '{"result": {"digest": "sha2',
    "nothing": "",
    "a list": "[1, 2]",
    "a number": "42",
    "a result that is text": '{"result": "done"}',
    "a result without a digest": '{"result": {"uri": "file:///b"}}',
    "a result without a place": '{"result": {"digest": "sha256:ab"}}',
    "figures that are none": said({"result": {**RESULT, "evaluation": {"id": "e", "mean": None}}}),
    "figures without a name": said({"result": {**RESULT, "evaluation": {"mean": 1, "std": 0, "episodes": 10, "seed": 0}}}),
}


@pytest.mark.parametrize("message", TORN.values(), ids=TORN)
def test_a_word_that_is_no_result_is_none(message):
    assert seen(job(ended("Complete")), pod(state=terminated(message))).result is None


def test_an_evaluation_job_gives_its_figures():
    result = {"digest": "sha256:ab", "evaluation": {"id": "e1", "episodes": 100, "seed": 1000, "mean": 500.0, "std": 0.0}}
    labels = {"policymodel.dev/name": "cartpole", "policymodel.dev/role": "evaluate", "policymodel.dev/run": "r1"}
    state = seen(
        job(ended("Complete"), labels={**labels, "policymodel.dev/evaluation": "e1"}), pod(state=terminated(said({"result": result})))
    )
    assert (state.role, state.evaluation, state.result) == ("evaluate", "e1", result)


FAILED = ended("Failed", "BackoffLimitExceeded", "Job has reached the specified backoff limit")
FAILURES = {
    "the container says why": (
        ended("Failed", "PodFailurePolicy", "Container train for pod x failed with exit code 2 matching FailJob rule at index 0"),
        [terminated(said({"error": {"reason": "InvalidEnvironment", "message": "spec.environment.id: no such"}}), 2, "Error")],
        Problem("InvalidEnvironment", "spec.environment.id: no such"),
    ),
    "out of memory": (
        FAILED,
        [terminated("", 137, "OOMKilled")],
        Problem(
            "OutOfMemory",
            "the container ran out of memory; allow more (spec.training.resources.limits.memory), or train with fewer environments",
        ),
    ),
    "the deadline": (
        ended("Failed", "DeadlineExceeded", "Job was active longer than specified deadline"),
        [],
        Problem("DeadlineExceeded", "Job was active longer than specified deadline"),
    ),
    "torn words": (
        FAILED,
        [terminated('{"error": {"reas', 1, "Error")],
        Problem("BackoffLimitExceeded", "Job has reached the specified backoff limit"),
    ),
    "an error that is text": (
        FAILED,
        [terminated('{"error": "boom"}', 1, "Error")],
        Problem("BackoffLimitExceeded", "Job has reached the specified backoff limit"),
    ),
    "an error without a message": (
        FAILED,
        [terminated('{"error": {"reason": "Boom"}}', 1, "Error")],
        Problem("BackoffLimitExceeded", "Job has reached the specified backoff limit"),
    ),
    "not a word": (ended("Failed"), [], Problem("TrainingFailed", "the Job failed without a word")),
}


@pytest.mark.parametrize(("status", "states", "wanted"), FAILURES.values(), ids=FAILURES)
def test_a_failed_job_says_why(status, states, wanted):
    state = seen(job(status), *[pod(f"pod-{index}", state=state) for index, state in enumerate(states)])
    assert (state.phase, state.problem, state.result) == ("Failed", wanted, None)


def test_the_last_attempts_error_is_the_jobs_error():
    words = [terminated(said({"error": {"reason": reason, "message": reason}}), 1, "Error") for reason in ("First", "Last")]
    pods = [pod("b", state=words[1], age="2026-01-01T11:30:00Z"), pod("a", state=words[0], age="2026-01-01T11:00:00Z")]
    assert seen(job(FAILED), *pods).problem == Problem("Last", "Last")


SETBACKS = {
    "killed": (terminated("", 137, "Error"), "the pod a was ended by exit code 137"),
    "out of memory": (terminated("", 137, "OOMKilled"), "the pod a ran out of memory (spec.training.resources.limits.memory)"),
    "its own word": (
        terminated(said({"error": {"reason": "StorageUnavailable", "message": "no answer"}}), 1, "Error"),
        "the pod a ended with StorageUnavailable: no answer",
    ),
    "never started": ({"waiting": {}}, "the pod a ended without a word"),
}


@pytest.mark.parametrize(("state", "setback"), SETBACKS.values(), ids=SETBACKS)
def test_an_attempt_that_failed_is_told_while_the_next_one_is_under_way(state, setback):
    older = pod("b", state=terminated("", 1, "Error"), age="2026-01-01T10:00:00Z", phase="Failed")
    failed, running = pod("a", state=state, phase="Failed"), pod("c", age="2026-01-01T11:30:00Z")
    assert seen(job({"failed": 2, "active": 1}), running, failed, older).setback == setback
    assert seen(job({"active": 1}), running).setback is None


def waiting(reason: str, message: str = "") -> dict[str, Any]:
    return {"waiting": {"reason": reason, "message": message}}


def unscheduled(since: str) -> dict[str, Any]:
    condition = {
        "type": "PodScheduled",
        "status": "False",
        "reason": "Unschedulable",
        "message": "0/3 nodes are available: 3 Insufficient cpu.",
    }
    return {"phase": "Pending", "containerStatuses": [], "conditions": [{**condition, "lastTransitionTime": since}]}


@pytest.mark.parametrize("reason", ["ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull"])
def test_an_image_that_cannot_be_pulled_names_the_field_to_check(reason):
    problem = seen(job({"active": 1}), pod(state=waiting(reason, "not found"))).problem
    advice = "check spec.training.image and spec.imagePullSecrets"
    assert problem == Problem(
        "ImagePullFailed", f"the image train:1 cannot be pulled for the pod cartpole-train-r1-abcde (not found); {advice}"
    )


def test_an_image_that_cannot_be_pulled_without_a_word_gives_the_reason():
    assert "(ImagePullBackOff)" in seen(job(), pod(state=waiting("ImagePullBackOff"))).problem.message


@pytest.mark.parametrize("reason", ["CreateContainerConfigError", "CreateContainerError", "RunContainerError"])
def test_a_container_that_cannot_be_made_names_the_template(reason):
    problem = seen(job(), pod("p", state=waiting(reason, 'secret "x" not found'))).problem
    assert problem == Problem("PodNotStarted", 'the pod p cannot start: secret "x" not found; check spec.training.template')


def test_a_container_that_crashes_again_and_again_says_how_it_ended():
    crashed = {"lastState": {"terminated": {"reason": "Error", "exitCode": 1}}}
    problem = seen(job(), pod("p", state=waiting("CrashLoopBackOff"), container=crashed)).problem
    assert problem == Problem("PodCrashes", "the pod p crashes again and again: Error (exit code 1); read kubectl logs --previous p")


@pytest.mark.parametrize("reason", ["ContainerCreating", "PodInitializing", ""])
def test_a_container_on_its_way_up_is_no_problem(reason):
    assert seen(job(), pod(state=waiting(reason))).problem is None


@pytest.mark.parametrize(
    ("since", "is_problem"),
    [("2026-01-01T11:59:50Z", False), ("2026-01-01T11:59:45Z", False), ("2026-01-01T11:59:44Z", True), ("2026-01-01T08:00:00Z", True)],
    ids=["10 s", "15 s", "16 s", "hours"],
)
def test_a_pod_that_no_node_takes_is_a_problem_after_a_while(since, is_problem):
    problem = seen(job({"active": 1}), pod("p", **unscheduled(since))).problem
    if not is_problem:
        assert problem is None
        return
    assert problem.reason == "Unschedulable"
    assert problem.message == (
        "no node takes the pod p: 0/3 nodes are available: 3 Insufficient cpu.; check spec.training.resources and spec.training.template"
    )


def leaving(since: str, found: dict[str, Any]) -> dict[str, Any]:
    return {**found, "metadata": {**found["metadata"], "deletionTimestamp": since}, "spec": {"nodeName": "worker-1"}}


@pytest.mark.parametrize(
    ("since", "is_problem"),
    [("2026-01-01T12:00:20Z", False), ("2026-01-01T11:59:00Z", False), ("2026-01-01T11:58:59Z", True), ("2026-01-01T08:00:00Z", True)],
    ids=["within its grace period", "60 s", "61 s", "hours"],
)
def test_a_pod_that_should_be_long_gone_is_on_a_node_that_does_not_answer(since, is_problem):
    lost = leaving(since, pod("p"))
    for state in (seen(job({"active": 1}), lost), seen_on_a_cluster({}, submitter(), leaving(since, node())), served(ray_service(), lost)):
        assert bool(state.problem) is is_problem
        if is_problem:
            assert state.problem.reason == "NodeLost"
            assert state.problem.message.startswith("the node worker-1 does not answer: the pod ")
            assert "kubectl delete node worker-1" in state.problem.message
            assert "kubectl taint node worker-1 node.kubernetes.io/out-of-service=nodeshutdown:NoExecute" in state.problem.message


def test_a_pod_that_has_ended_or_was_never_placed_is_on_no_lost_node():
    for found in (pod(phase="Failed"), pod(phase="Succeeded")):
        assert seen(job(), leaving("2026-01-01T08:00:00Z", found)).problem is None
    assert seen(job(), {**leaving("2026-01-01T08:00:00Z", pod()), "spec": {}}).problem is None


def test_a_training_that_gets_on_is_not_held_up_by_the_node_of_a_worker():
    lost = leaving("2026-01-01T08:00:00Z", node())
    assert seen_on_a_cluster({}, submitter(), lost, log=said(PROGRESS)).problem is None


def test_a_pod_without_a_status_is_no_problem():
    assert seen(job(), {"metadata": {"name": "p"}}).problem is None


@pytest.mark.parametrize(
    ("status", "attempt"),
    [({}, 1), ({"active": 1}, 1), ({"failed": 1, "active": 1}, 2), ({"failed": 2, "succeeded": 1}, 3)],
    ids=["none", "first", "second", "third"],
)
def test_attempts_are_counted_from_one(status, attempt):
    assert seen(job(status)).attempt == attempt


PROGRESS = {"progress": {"iteration": 3, "envSteps": 3072, "episodeReturnMean": 61.2, "progressPercent": 12.5, "etaSeconds": 40}}
FOUND = Progress(3, 3072, 61.2, 12.5, 40)
DRAINED = "a pod was drained, evicted or deleted, which costs none of spec.training.backoffLimit"
KILLED = "the pod a was ended by exit code 137"


@pytest.mark.parametrize(
    ("status", "failed", "told", "attempt", "setback"),
    [
        ({"active": 1}, [], None, 1, None),
        ({"active": 1}, [], 1, 1, None),
        ({"active": 1}, [], 2, 2, DRAINED),
        ({"failed": 1, "active": 1}, ["a"], 2, 2, KILLED),
        ({"failed": 1, "active": 1}, ["a"], 3, 3, DRAINED),
        ({"failed": 1, "active": 1}, ["a"], None, 2, KILLED),
        ({"active": 1}, ["a"], 2, 2, KILLED),
        ({"failed": 1, "active": 1}, [], 2, 2, None),
        ({"active": 1}, [], "2", 1, None),
        ({"active": 1}, [], 10**400, 1, None),
    ],
    ids=[
        *("an older image", "the first", "a pod that was drained", "a pod that was killed", "one of each", "an older image, killed"),
        *("evicted by its node, and still there", "killed, and gone", "text", "no number"),
    ],
)
def test_a_drained_pod_is_an_attempt_as_the_training_counts_them(status, failed, told, attempt, setback):
    pods = [pod(name, state=terminated("", 137, "Error"), phase="Failed") for name in failed]
    log = said({"progress": PROGRESS["progress"] | ({} if told is None else {"attempt": told})})
    found = seen(job(status), *pods, pod("c", age="2026-01-01T11:30:00Z"), log=log)
    assert (found.progress, found.attempt, found.setback) == (FOUND, attempt, setback)


def test_a_job_that_is_being_deleted_says_so():
    assert seen(job(deletionTimestamp="2026-01-01T11:00:00Z")).deleting


OLDER = {"progress": {"iteration": 2, "envSteps": 2048, "episodeReturnMean": None, "progressPercent": 8, "etaSeconds": None}}
LOGS = {
    "nothing": ("", None),
    "chatter only": ("2026-01-01 INFO worker.py started\n[]\nnull\n17\n", None),
    "one line": (said(PROGRESS), FOUND),
    "between chatter": (f"warming up\n{said(OLDER)}\n(pid=1) noise {{\n{said(PROGRESS)}\nmore noise\n", FOUND),
    "a torn last line": (f"{said(PROGRESS)}\n" + said(PROGRESS)[:40], FOUND),
    "a torn first line": (said(OLDER)[30:] + f"\n{said(PROGRESS)}", FOUND),
    "nothing known": (said(OLDER), Progress(2, 2048, None, 8.0, None)),
    "somebody else's progress": (
        f"{said(PROGRESS)}\n" + '{"progress": {"epoch": 1}}\n{"progress": 0.5}\n{"progress": {"iteration": null}}',
        FOUND,
    ),
}


@pytest.mark.parametrize(("log", "wanted"), LOGS.values(), ids=LOGS)
def test_the_newest_progress_line_is_found_between_chatter(log, wanted):
    assert seen(job({"active": 1}), pod(), log=log).progress == wanted


def test_a_pod_that_is_not_heard_tells_nothing_and_no_pod_is_another_thing():
    unheard, silent = seen(job({"active": 1}), pod(), log=None), seen(job({"active": 1}))
    assert (unheard.is_unheard, unheard.progress, unheard.search, unheard.attempt) == (True, None, None, 1)
    assert not silent.is_unheard


TRIALS = [
    {"trial": 1, "state": "Stopped", "config": {"lr": 0.1}, "envSteps": 1024, "episodeReturnMean": 20.5},
    {"trial": 2, "state": "Training", "config": {"fcnetHiddens": [64], "useLstm": True}, "envSteps": 0},
]
STANDING = SearchStatus(1, (TrialStatus(1, "Stopped", {"lr": 0.1}, 1024, 20.5), TrialStatus(2, "Training", TRIALS[1]["config"], 0)))


def searching(*trials: Any, best: Any = 1) -> str:
    return said({"progress": {**PROGRESS["progress"], "search": {"best": best, "trials": list(trials)}}})


SEARCHES = {
    "no search": (said(PROGRESS), None),
    "a search": (searching(*TRIALS), STANDING),
    "the newest": (f"{searching()}\n{searching(*TRIALS)}\nnoise\n", STANDING),
    "trials that are none": (
        searching(*TRIALS, {"trial": 3}, 4, {**TRIALS[0], "state": "Lost"}, {**TRIALS[0], "config": {"a": {}}}),
        STANDING,
    ),
    "figures that are none": (
        searching(*TRIALS, {**TRIALS[0], "episodeReturnMean": "9"}, {**TRIALS[0], "config": {"lr": math.nan}}),
        STANDING,
    ),
    "a best that is none": (searching(*TRIALS, best="first"), None),
    "somebody else's search": ('{"progress": {"search": 3}}\n{"progress": 3}', None),
}


@pytest.mark.parametrize(("log", "wanted"), SEARCHES.values(), ids=SEARCHES)
def test_how_the_trials_of_a_search_stand_is_read_from_the_log(log, wanted):
    assert seen(job({"active": 1}), pod(), log=log).search == wanted


def ray_service(status: dict[str, Any] | None = None, config: str | None = "applications: []", **metadata: Any) -> dict[str, Any]:
    spec = {} if config is None else {"serveConfigV2": config}
    return {"metadata": {"name": "cartpole", "ownerReferences": OWNED, **metadata}, "spec": spec, "status": status or {}}


def served(found: dict[str, Any], *pods: dict[str, Any]) -> Any:
    return observation.ray_service_state(found, pods, OWNER, "cartpole", NOW)


def test_a_new_ray_service_has_no_configuration_and_no_problem():
    state = served(ray_service(config=None))
    assert (state.serve_config, state.hash, state.foreign, state.deleting, state.switching, state.problem) == (
        "",
        None,
        False,
        False,
        False,
        None,
    )


def test_a_ray_service_shows_the_claims_that_its_pods_mount():
    def group(*claims: str) -> dict[str, Any]:
        mounted = [{"name": claim, "persistentVolumeClaim": {"claimName": claim}} for claim in claims]
        return {"template": {"spec": {"volumes": [{"name": "tmp", "emptyDir": {}}, *mounted]}}}

    found = ray_service()
    found["spec"]["rayClusterConfig"] = {"headGroupSpec": group("a"), "workerGroupSpecs": [group("b", "c"), {}]}
    assert observation.ray_service_state(found, [], OWNER, "cartpole", NOW).claims == ("a", "b", "c")
    assert observation.ray_service_state(ray_service(), [], OWNER, "cartpole", NOW).claims == ()


def test_a_second_cluster_shows_since_when_it_is_there_and_which_of_its_pods_do_not_get_ready():
    status = {"activeServiceStatus": {"rayClusterName": "a"}, "pendingServiceStatus": {"rayClusterName": "b"}}

    def head(cluster: str, ready: str) -> dict[str, Any]:
        metadata = {"name": f"{cluster}-head", "labels": {"ray.io/cluster": cluster}}
        return {"metadata": metadata, "status": {"conditions": [{"type": "Ready", "status": ready}]}}

    clusters = {
        name: {"metadata": {"creationTimestamp": f"2026-01-01T0{hour}:00:00Z"}, "spec": {"rayVersion": name}}
        for hour, name in enumerate("ab")
    }
    pods = [head("a", "False"), head("b", "False"), {**head("b", "True"), "metadata": {"name": "w", "labels": {"ray.io/cluster": "b"}}}]
    state = observation.ray_service_state(ray_service(status), pods, OWNER, "cartpole", NOW, clusters)
    assert (state.switching, state.pending_since, state.active_config) == (True, "2026-01-01T01:00:00Z", {"rayVersion": "a"})
    assert state.unready_pods == ("b-head",)
    unread = observation.ray_service_state(ray_service(status), pods, OWNER, "cartpole", NOW)
    assert (unread.pending_since, unread.active_config) == (None, None)


def test_it_is_told_why_a_second_cluster_gets_no_pods():
    status = {"activeServiceStatus": {"rayClusterName": "a"}, "pendingServiceStatus": {"rayClusterName": "b"}}
    refused = {"type": "ReplicaFailure", "status": "True", "message": "FailedCreateHeadPod\npods are forbidden: exceeded quota: q"}
    clusters = {"a": {"metadata": {"name": "a"}}, "b": {"metadata": {"name": "b"}, "status": {"conditions": [refused]}}}
    problem = observation.ray_service_state(ray_service(status), [], OWNER, "cartpole", NOW, clusters).problem
    assert problem is not None
    assert problem.reason == "PodsNotCreated"
    assert "RayCluster b cannot create its pods: FailedCreateHeadPod pods are forbidden: exceeded quota: q" in problem.message
    refused["status"] = "False"
    assert observation.ray_service_state(ray_service(status), [], OWNER, "cartpole", NOW, clusters).problem is None


def test_a_ray_service_shows_its_hash_and_its_configuration():
    state = served(ray_service(annotations={"policymodel.dev/hash": "h"}, deletionTimestamp="2026-01-01T11:00:00Z"))
    assert (state.hash, state.serve_config, state.deleting) == ("h", "applications: []", True)


@pytest.mark.parametrize(
    ("owners", "is_foreign"),
    [(OWNED, False), (OTHERS, True), ([], True), ([*OTHERS, *OWNED], False)],
    ids=["ours", "of a namesake", "of nobody", "of both"],
)
def test_a_ray_service_without_our_owner_reference_is_somebody_elses(owners, is_foreign):
    assert served(ray_service(ownerReferences=owners)).foreign is is_foreign


CLUSTERS = {
    "none yet": ({}, False, []),
    "the first one": ({"pendingServiceStatus": {"rayClusterName": "a"}}, False, ["a"]),
    "one that serves": ({"activeServiceStatus": {"rayClusterName": "a"}, "pendingServiceStatus": {}}, False, ["a"]),
    "a switch": ({"activeServiceStatus": {"rayClusterName": "a"}, "pendingServiceStatus": {"rayClusterName": "b"}}, True, ["a", "b"]),
}


@pytest.mark.parametrize(("status", "switching", "names"), CLUSTERS.values(), ids=CLUSTERS)
def test_a_switch_is_a_second_cluster_beside_one_that_serves(status, switching, names):
    assert served(ray_service(status)).switching is switching
    assert observation.ray_clusters(ray_service(status)) == names


@pytest.mark.parametrize("word", ["DEPLOY_FAILED", "UNHEALTHY"])
@pytest.mark.parametrize("place", ["activeServiceStatus", "pendingServiceStatus"])
def test_an_application_that_does_not_come_up_is_told_by_its_first_line(word, place):
    statuses = {"cartpole": {"status": word, "message": "\n  Deploying failed: no module\nTraceback ...\n"}}
    problem = served(ray_service({place: {"rayClusterName": "a", "applicationStatuses": statuses}})).problem
    assert problem == Problem("ServeFailed", f"the Serve application cartpole is {word}:   Deploying failed: no module")


@pytest.mark.parametrize(
    "statuses",
    [
        {},
        {"cartpole": {"status": "RUNNING"}},
        {"cartpole": {"status": "DEPLOYING"}},
        {"other": {"status": "DEPLOY_FAILED", "message": "x"}},
    ],
    ids=["nothing", "running", "deploying", "another application"],
)
def test_an_application_that_comes_up_or_is_not_ours_is_no_problem(statuses):
    assert served(ray_service({"activeServiceStatus": {"rayClusterName": "a", "applicationStatuses": statuses}})).problem is None


def test_a_head_pod_that_does_not_start_names_the_serving_fields():
    problem = served(ray_service(), pod("head", state=waiting("ErrImagePull", "denied"))).problem
    why = "the image train:1 cannot be pulled for the pod head (denied)"
    assert problem.message == f"{why}; check spec.serving.image and spec.imagePullSecrets"


KEPT = {"policymodel.dev/name": "cartpole", "app.kubernetes.io/managed-by": "policymodel-operator"}


def claim(phase: str = "Pending", owners: list[Any] | None = None, **metadata: Any) -> dict[str, Any]:
    found = {
        "metadata": {"name": "cartpole-policies", "labels": KEPT, **metadata},
        "status": {"phase": phase},
    }
    if owners:
        found["metadata"]["ownerReferences"] = owners
    return found


def warning(message: str, at: str | None, type_: str = "Warning") -> dict[str, Any]:
    return {"type": type_, "message": message, "lastTimestamp": at, "metadata": {"creationTimestamp": "2026-01-01T09:00:00Z"}}


def test_a_claim_that_waits_for_its_first_pod_is_no_problem():
    events = [warning("waiting for first consumer to be created before binding", "2026-01-01T10:00:00Z", "Normal")]
    assert observation.claim_state(claim(owners=OWNED), OWNER, events).problem is None


def test_a_claim_that_cannot_be_bound_gives_the_last_warning():
    events = [
        warning("old", "2026-01-01T10:00:00Z"),
        warning('storageclass "fast" not found', "2026-01-01T11:00:00Z"),
        warning("no time", None),
    ]
    problem = observation.claim_state(claim(owners=OWNED), OWNER, events).problem
    assert problem == Problem(
        "StorageNotBound",
        'the claim cartpole-policies cannot be bound: storageclass "fast" not found; '
        "check spec.storage.pvc and the cluster's StorageClasses",
    )


def test_a_bound_claim_has_no_problem_whatever_was_said_before():
    assert observation.claim_state(claim("Bound", OWNED), OWNER, [warning("old", "2026-01-01T10:00:00Z")]).problem is None


@pytest.mark.parametrize(
    ("found", "is_foreign"),
    [
        (claim(owners=OWNED), False),
        (claim(), False),
        (claim(owners=OTHERS), True),
        (claim(labels={}), True),
        (claim(labels={**KEPT, "app.kubernetes.io/managed-by": "Helm"}), True),
        (claim(labels={"policymodel.dev/name": "other"}), True),
    ],
    ids=["ours", "kept from before", "a namesake's", "nobody's", "a release's", "another PolicyModel's"],
)
def test_a_claim_that_outlived_its_policy_model_is_ours_again(found, is_foreign):
    assert observation.claim_state(found, OWNER, []).foreign is is_foreign


def test_an_ingress_is_ours_or_not_and_may_be_on_its_way_out():
    ours = {"metadata": {"name": "cartpole", "ownerReferences": OWNED}}
    assert observation.ingress_state(ours, OWNER) == observation.ChildState(ours, False, False, None)
    assert observation.ingress_state({"metadata": {"name": "cartpole"}}, OWNER).foreign
    assert observation.ingress_state({"metadata": {**ours["metadata"], "deletionTimestamp": "x"}}, OWNER).deleting


ASKED = {"id": "r1", "user": "alice", "time": "2026-01-01T12:00:00Z"}


def annotated(text: str, verb: str = "approve", **metadata: Any) -> Any:
    return observation.requests({"annotations": {f"policymodel.dev/{verb}": text}, **metadata}).get(verb)


def test_a_request_is_read_with_all_that_it_claims():
    assert annotated(json.dumps({**ASKED, "revision": 3})) == Request("r1", "alice", "2026-01-01T12:00:00Z", None, 3)
    assert annotated(json.dumps(ASKED), "retrain") == Request("r1", "alice", "2026-01-01T12:00:00Z")


def test_the_program_that_wrote_a_request_is_the_one_that_the_api_server_has_noted_last():
    fields = {"f:metadata": {"f:annotations": {".": {}, "f:policymodel.dev/approve": {}}}}
    managed = [
        {"manager": "kubectl-annotate", "time": "2026-01-01T11:00:00Z", "fieldsV1": fields},
        {"manager": "kubectl-policymodel", "time": "2026-01-01T12:00:00Z", "fieldsV1": fields},
        {"manager": "argocd", "time": "2026-01-01T13:00:00Z", "fieldsV1": {"f:metadata": {"f:annotations": {"f:else": {}}}}},
        {"manager": "policymodel-operator", "time": "2026-01-01T14:00:00Z", "fieldsV1": {"f:status": {}}},
    ]
    asked = annotated(json.dumps({**ASKED, "revision": 3}), managedFields=managed)
    assert asked.field_manager == "kubectl-policymodel"


UNREADABLE = {
    "no JSON": "yes",
    "nothing": "",
    "no object": "[1]",
    "no id": json.dumps({"user": "a", "time": "2026-01-01T12:00:00Z", "revision": 1}),
    "nobody": json.dumps({**ASKED, "user": "", "revision": 1}),
    "a user as long as a novel": json.dumps({**ASKED, "user": "a" * 254, "revision": 1}),
    "a number for an id": json.dumps({**ASKED, "id": 1, "revision": 1}),
    "no revision": json.dumps(ASKED),
    "a revision that is text": json.dumps({**ASKED, "revision": "1"}),
    "a revision that is true": json.dumps({**ASKED, "revision": True}),
}


@pytest.mark.parametrize("text", UNREADABLE.values(), ids=UNREADABLE)
def test_a_request_that_cannot_be_read_says_why_and_has_an_id_all_the_same(text):
    asked = annotated(text)
    assert asked.problem
    assert asked.id == annotated(text).id


def test_without_annotations_nothing_is_asked():
    assert observation.requests({}) == {}


COMPARED = {"id": "e", "episodes": 100, "seed": 5, "mean": 1.0, "std": 0.0}
COMPARISONS = {
    "figures": ({"digest": "d", "mean": 1, "std": 0, "differenceMean": 0.5, "differenceStd": 0}, True),
    "a problem": ({"digest": "d", "problem": "it is gone"}, True),
    "no digest": ({"problem": "it is gone"}, False),
    "a problem that is none": ({"digest": "d", "problem": 5}, False),
    "half of the figures": ({"digest": "d", "mean": 1, "std": 0}, False),
    "no number": ({"digest": "d", "mean": 1, "std": 0, "differenceMean": float("nan"), "differenceStd": 0}, False),
    "text": ("d", False),
}


@pytest.mark.parametrize(("against", "is_one"), COMPARISONS.values(), ids=COMPARISONS)
def test_a_comparison_is_read_only_where_it_is_whole(against, is_one):
    result = {**RESULT, "evaluation": {**COMPARED, "against": against}}
    found = seen(job(ended("Complete")), pod(state=terminated(said({"result": result}))))
    assert (found.result is not None) is is_one


def ray_job(status: dict[str, Any] | None = None, **metadata: Any) -> dict[str, Any]:
    template = {"spec": {"containers": [{"name": "train", "image": "train:1"}]}}
    return {**job(**metadata), "spec": {"submitterPodTemplate": template}, "status": status or {}}


def of(labels: dict[str, str], found: dict[str, Any]) -> dict[str, Any]:
    return {**found, "metadata": {**found["metadata"], "labels": labels}}


def submitter(name: str = "cartpole-train-r1-abcde", **more: Any) -> dict[str, Any]:
    return of({"batch.kubernetes.io/job-name": "cartpole-train-r1"}, pod(name, **more))


def node(**more: Any) -> dict[str, Any]:
    return of({"ray.io/cluster": "cartpole-train-r1-xyz"}, pod("cartpole-train-r1-xyz-head", **more))


def seen_on_a_cluster(status: dict[str, Any], *pods: dict[str, Any], log: str = "") -> Any:
    return observation.ray_job_state(ray_job({"rayClusterName": "cartpole-train-r1-xyz", **status}), pods, log, NOW)


@pytest.mark.parametrize("deployment", ["", "Initializing", "Running", "Retrying", "Waiting", "Suspended"])
def test_a_ray_job_that_has_not_ended_runs(deployment):
    log = said({"progress": {"iteration": 1, "envSteps": 1024, "progressPercent": 5.0}})
    state = seen_on_a_cluster({"jobDeploymentStatus": deployment, "startTime": "2026-01-01T11:00:00Z"}, submitter(), log=log)
    assert (state.kind, state.phase, state.attempt, state.start_time) == ("RayJob", "Running", 1, "2026-01-01T11:00:00Z")
    assert (state.name, state.role, state.run, state.image) == ("cartpole-train-r1", "train", "r1", "train:1")
    assert state.progress.env_steps == 1024


def test_a_ray_job_that_is_not_yet_known_to_kuberay_runs():
    assert observation.ray_job_state(ray_job(), [], "", NOW).phase == "Running"


def of_pods(reason: str, message: str, at: str) -> dict[str, Any]:
    return {"reason": reason, "message": message, "lastTimestamp": f"2026-01-01T{at}:00Z", "metadata": {}}


def test_it_is_told_why_a_job_gets_no_pod_until_one_is_made():
    events = [of_pods("FailedCreate", "exceeded quota: q,\n used: 1", "11:30"), of_pods("FailedCreate", "older", "11:00")]
    state = observation.job_state(job(), [], "", NOW, [*events, {"reason": "Else", "message": "m", "metadata": {}}])
    why = "the Job cartpole-train-r1 cannot create its pods: exceeded quota: q, used: 1"
    assert (state.phase, state.problem) == ("Running", Problem("PodsNotCreated", f"{why}; check spec.training.resources"))
    made = of_pods("SuccessfulCreate", "Created pod: p", "11:31")
    assert observation.job_state(job(), [], "", NOW, [*events, made]).problem is None
    prune = job(labels={"policymodel.dev/role": "prune"})
    assert observation.job_state(prune, [], "", NOW, events).problem == Problem("PodsNotCreated", why)


@pytest.mark.parametrize(
    ("status", "is_without"), [({}, True), ({"failed": 1}, True), ({"active": 1}, False), (ended("Complete"), False), (FAILED, False)]
)
def test_a_job_is_without_a_pod_between_its_beginning_and_its_end(status, is_without):
    assert observation.is_without_a_pod(job(status)) is is_without


def test_it_is_told_why_the_cluster_of_a_ray_job_gets_no_pods():
    waiting_one = ray_job({"rayClusterName": "r1-xyz", "jobDeploymentStatus": "Initializing"})
    condition = {"type": "ReplicaFailure", "status": "True", "message": "exceeded quota: q"}
    cluster = {"metadata": {"name": "r1-xyz"}, "status": {"conditions": [condition]}}
    head = {"metadata": {"name": "head", "labels": {"ray.io/cluster": "r1-xyz"}}, "status": {"phase": "Running"}}
    problem = observation.ray_job_state(waiting_one, [head], "", NOW, cluster).problem
    why = "the RayCluster r1-xyz cannot create its pods: exceeded quota: q; check spec.training.resources"
    assert problem == Problem("PodsNotCreated", why)
    assert observation.cluster_to_come(waiting_one) == "r1-xyz"
    for status in ({}, {"rayClusterName": "r1-xyz", "jobDeploymentStatus": "Running"}):
        assert observation.cluster_to_come(ray_job(status)) is None


@pytest.mark.parametrize(("made", "is_told"), [("2026-01-01T11:58:00Z", True), ("2026-01-01T11:59:30Z", False)])
def test_what_kuberay_does_not_take_up_is_told_after_a_minute(made, is_told):
    age = {"creationTimestamp": made, "namespace": "policies"}
    job, service = ray_job(**age), ray_service(**age)
    for kind, state in (("RayJob", observation.ray_job_state(job, [], "", NOW)), ("RayService", served(service))):
        if is_told:
            assert state.problem.reason == "KubeRaySilent"
            assert f"the {kind} {job['metadata']['name'] if kind == 'RayJob' else 'cartpole'}" in state.problem.message
            assert state.problem.message.endswith("does it watch the namespace policies?")
        else:
            assert state.problem is None
    assert (
        observation.ray_job_state({**job, "spec": {**job["spec"], "managedBy": "kueue.x-k8s.io/multikueue"}}, [], "", NOW).problem is None
    )
    heard = ray_job({"jobDeploymentStatus": "Initializing"}, **age)
    assert observation.ray_job_state(heard, [], "", NOW).problem is None


def test_the_attempts_of_a_ray_job_are_the_pods_of_its_submitter():
    first = submitter(state=terminated(said({"error": {"reason": "HeadLost", "message": "m"}}), 1, "Error"))
    state = seen_on_a_cluster({"jobDeploymentStatus": "Running", "jobStatus": "FAILED"}, first, submitter("b"), node())
    assert (state.phase, state.attempt, state.problem) == ("Running", 2, None)


def test_a_ray_job_that_is_complete_gives_the_last_word_of_its_submitter():
    status = {"jobDeploymentStatus": "Complete", "jobStatus": "SUCCEEDED"}
    state = seen_on_a_cluster(status, submitter(state=terminated(said({"result": RESULT}))))
    assert (state.phase, state.result, state.problem) == ("Succeeded", RESULT, None)
    lost = seen_on_a_cluster(status)
    assert (lost.phase, lost.result, lost.problem) == ("Succeeded", None, None)


def test_the_result_of_a_ray_job_counts_only_once_kuberay_says_that_it_is_complete():
    state = seen_on_a_cluster({"jobDeploymentStatus": "Running"}, submitter(state=terminated(said({"result": RESULT}))))
    assert (state.phase, state.result) == ("Running", None)


@pytest.mark.parametrize(
    ("status", "word", "problem"),
    [
        (
            {"reason": "AppFailed", "message": "Job entrypoint command failed with exit code 2, last available logs:\nthe secret"},
            {"error": {"reason": "InvalidEnvironment", "message": "no such argument"}},
            Problem("InvalidEnvironment", "no such argument"),
        ),
        (
            {"reason": "AppFailed", "message": "Job entrypoint command failed with exit code 1, last available logs:\nthe secret"},
            {},
            Problem("TrainingFailed", "Job entrypoint command failed with exit code 1, last available logs:"),
        ),
        ({"reason": "DeadlineExceeded", "message": "too long"}, {}, Problem("DeadlineExceeded", "too long")),
        ({"reason": "SubmissionFailed"}, {}, Problem("TrainingFailed", "the Job failed without a word")),
    ],
    ids=["its own word", "no word", "deadline", "nothing at all"],
)
def test_a_ray_job_that_failed_says_why_and_no_line_of_the_drivers_log(status, word, problem):
    ended_ = submitter(state=terminated(said(word), 1, "Error"))
    state = seen_on_a_cluster({"jobDeploymentStatus": "Failed", "jobStatus": "FAILED", **status}, ended_)
    assert (state.phase, state.problem) == ("Failed", problem)


def test_a_ray_job_whose_submitter_saw_it_end_well_has_not_failed_whatever_kuberay_missed():
    state = seen_on_a_cluster({"jobDeploymentStatus": "Failed"}, submitter(state=terminated(said({"result": RESULT}))))
    assert (state.phase, state.result, state.problem) == ("Succeeded", RESULT, None)


@pytest.mark.parametrize(
    ("status", "words", "reason"),
    [
        ({"reason": "DeadlineExceeded", "message": "too long"}, ["HeadLost"], "DeadlineExceeded"),
        ({"reason": "AppFailed"}, ["EnvRunnersLost", "HeadLost"], "EnvRunnersLost"),
        ({"reason": "AppFailed"}, ["HeadLost", "HeadLost"], "HeadLost"),
    ],
)
def test_that_the_head_has_gone_is_no_reason_where_another_is_known(status, words, reason):
    ended_ = [
        submitter(str(number), state=terminated(said({"error": {"reason": word, "message": "m"}}), 1, "Error"))
        for number, word in enumerate(words)
    ]
    state = seen_on_a_cluster({"jobDeploymentStatus": "Failed", "jobStatus": "FAILED", **status}, *ended_)
    assert (state.phase, state.problem.reason) == ("Failed", reason)


def test_a_worker_that_does_not_start_is_no_problem_of_a_training_that_gets_on():
    waiting = {"waiting": {"reason": "ImagePullBackOff", "message": "not found"}}
    log = said({"progress": {"iteration": 1, "envSteps": 1024, "progressPercent": 5.0}})
    state = seen_on_a_cluster({"jobDeploymentStatus": "Running"}, submitter(), node(state=waiting), log=log)
    assert (state.problem, state.progress.iteration) == (None, 1)


def test_a_ray_job_that_kuberay_does_not_take_has_failed():
    state = seen_on_a_cluster({"jobDeploymentStatus": "ValidationFailed", "message": "the name is too long"})
    assert (state.phase, state.problem) == ("Failed", Problem("TrainingFailed", "the name is too long"))


def test_a_ray_job_that_somebody_stopped_has_failed_and_is_not_asked_again():
    state = seen_on_a_cluster({"jobDeploymentStatus": "Complete", "jobStatus": "STOPPED"})
    assert (state.phase, state.problem.reason) == ("Failed", "TrainingFailed")


def test_a_node_of_the_ray_cluster_that_does_not_start_is_the_problem():
    waiting = {"waiting": {"reason": "ImagePullBackOff", "message": "not found"}}
    assert seen_on_a_cluster({"jobDeploymentStatus": "Initializing"}, node(state=waiting)).problem.reason == "ImagePullFailed"
    other = of({"ray.io/cluster": "cartpole-abc"}, pod("serving", state=waiting))
    assert seen_on_a_cluster({"jobDeploymentStatus": "Initializing"}, other).problem is None
