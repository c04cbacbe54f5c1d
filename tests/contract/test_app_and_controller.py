"""`app` and `controller` never import each other; here both sides read the text that they share, alike."""

from __future__ import annotations

import io
import itertools
import json
import re
import shlex
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import orjson
import pytest
import yaml
from fakes.world import document

from app import evaluate, objects, prune, report, storage, submit, train
from app.environments import Environment
from app.errors import InputError
from app.serving import asgi, local_serve, replica
from app.training import search, settings, standing, stop, tracking, warm
from controller import names, observation, replica_report, resources, schema, words
from controller.model import Against, FoundBy, Images, Owner, Problem, ReplicaRow, Replicas, Revision, SearchStatus, Settings, TrialStatus
from controller.spec import Spec, Trigger, spec_of

IMAGES = Images("train:1", "serve:1")
OWNER = Owner("default", "cartpole", "uid-1")
DIGEST = "sha256:" + "ab" * 32
TAGS = {"namespace": "default", "name": "cartpole"}
PROPERTIES: dict[str, Any] = schema.schema()["properties"]["spec"]["properties"]["training"]["properties"]
CONFIG, STOP = PROPERTIES["config"]["properties"], PROPERTIES["stop"]["properties"]


def spec(**changes: Any) -> Spec:
    return spec_of(document(**changes))


def here(path: Path) -> Settings:
    """An operator whose storage is a directory of this machine."""
    return Settings("train:1", "serve:1", storage_root=f"file://{path}", entry_point_prefixes=("acme", "gymnasium.envs"))


def arguments(job: Any, module: str) -> list[str]:
    container = job["spec"]["template"]["spec"]["containers"][0]
    assert container["command"] == ["python"]
    assert container["args"][:2] == ["-m", module]
    return container["args"][2:]


RUNS = {
    "the example": {},
    "a seed, workers and checkpoints": {"training__seed": 7, "training__workers": 2, "training__checkpointEvery": 3},
    "a class of a package": {"environment": {"entryPoint": "gymnasium.envs.classic_control.cartpole:CartPoleEnv"}},
    "arguments of the environment": {"environment": {"id": "CartPole-v1", "config": {"sutton_barto_reward": True}}},
    "every setting": {"training__config": {"lr": 0.01, "gradClip": 1, "fcnetHiddens": [8], "fcnetActivation": "relu", "useKlLoss": True}},
    "an observation filter and an LSTM": {
        "training__config": {"observationFilter": "MeanStd", "useLstm": True, "lstmCellSize": 16, "maxSeqLen": 8}
    },
    "every stop criterion": {"training__stop": {"episodeReturnMean": -1.5, "envSteps": 1, "iterations": 2, "timeSeconds": 10}},
    "another gate": {"gate__episodes": 10, "gate__seed": 5},
    "a search": {"training__search": {"config": {"lr": {"min": 0.001, "max": 0.01}, "numEpochs": {"values": [2, 4]}}}},
}


@pytest.mark.parametrize("changes", RUNS.values(), ids=RUNS)
def test_the_training_jobs_arguments_mean_the_same_to_the_app(changes, tmp_path):
    wanted = spec(**changes)
    run = train.parsed_run(arguments(resources.training_job(OWNER, wanted, here(tmp_path), IMAGES), "app.train"))
    assert run.id == wanted.run
    assert run.storage.path == tmp_path / "default" / "cartpole"
    assert run.task.settings == settings.parsed_settings(wanted.training.config)
    assert run.stop == stop.parsed_stop(wanted.training.stop)
    assert (run.task.workers, run.task.seed, run.checkpoint_every) == (
        wanted.training.workers,
        wanted.training.seed,
        wanted.training.checkpoint_every,
    )
    assert run.evaluation == evaluate.EvaluationRequest(wanted.looks(wanted.run)[0].id, wanted.gate.episodes, wanted.gate.seed)
    assert tuple(run.prefixes) == ("acme", "gymnasium.envs")
    assert run.search == search.parsed_search(wanted.training.search, wanted.training.config)
    assert len(run.trials) == (wanted.training.search or {"trials": 0})["trials"]
    assert isinstance(run.task.environment, Environment)
    assert {key: value for key, value in run.task.environment.described().items() if value} == {
        key: value for key, value in wanted.environment.items() if value
    }


def test_a_ray_job_and_its_submitter_mean_the_same_to_the_app(tmp_path, monkeypatch):
    """The submitter hands on its flags as they are; the driver reads them, quoted for a shell."""
    wanted = spec(
        training__engine="RayJob",
        training__workers=2,
        storage__pvc={"size": "1Gi", "accessModes": ["ReadWriteMany"]},
        environment={"id": "CartPole-v1", "config": {"sutton_barto_reward": True}},
    )
    job = resources.training_job(OWNER, wanted, here(tmp_path), IMAGES)["spec"]
    python, flag, module, *flags = shlex.split(job["entrypoint"])
    assert (python, flag, module) == ("python", "-m", "app.train")
    run = train.parsed_run(flags)
    assert (run.id, run.joins_cluster, run.task.workers) == (wanted.run, True, 2)
    assert run.task.environment.described()["config"] == {"sutton_barto_reward": True}
    submitted: list[Any] = []

    async def followed(job_: Any, entrypoint: str, report_: Any) -> dict[str, Any]:
        submitted.append(entrypoint)
        return {}

    monkeypatch.setattr(submit, "followed", followed)
    monkeypatch.setattr(submit, "Leaving", lambda: SimpleNamespace(listen=lambda: None))
    monkeypatch.setenv("RAY_DASHBOARD_ADDRESS", "head:8265")
    monkeypatch.setenv("RAY_JOB_SUBMISSION_ID", "id")
    submit.run(arguments({"spec": {"template": job["submitterPodTemplate"]}}, "app.submit"), report.Report(io.StringIO(), None))
    assert submitted == [job["entrypoint"]]


@pytest.mark.parametrize(
    ("wanted", "read"),
    [
        ({}, tracking.Tracking()),
        ({"tensorBoard": True}, tracking.Tracking(tensor_board=True)),
        (
            {"mlflow": {"trackingUri": "http://mlflow.ml:5000", "secretName": "mlflow"}},
            tracking.Tracking(mlflow=tracking.MLflow("http://mlflow.ml:5000", "default/cartpole", TAGS)),
        ),
        (
            {"tensorBoard": True, "mlflow": {"trackingUri": "https://m/a", "experiment": "mine"}},
            tracking.Tracking(True, tracking.MLflow("https://m/a", "mine", TAGS)),
        ),
    ],
)
def test_tracking_means_the_same_to_the_app(wanted, read, tmp_path, monkeypatch):
    monkeypatch.setattr(tracking, "find_spec", lambda name: object())
    job = resources.training_job(OWNER, spec(training__tracking=wanted), here(tmp_path), IMAGES)
    assert train.parsed_run(arguments(job, "app.train")).tracking == read


def test_a_job_has_a_ray_of_its_own(tmp_path):
    assert not train.parsed_run(arguments(resources.training_job(OWNER, spec(), here(tmp_path), IMAGES), "app.train")).joins_cluster


def test_a_warm_start_means_the_same_to_the_app(tmp_path):
    job = resources.training_job(OWNER, spec(), here(tmp_path), IMAGES, begins_with=Revision(3, DIGEST, "file:///b", "run-1"))
    assert train.parsed_run(arguments(job, "app.train")).warm_start == warm.WarmStart("run-1", DIGEST)


def test_an_entry_point_that_the_planner_would_refuse_is_refused_by_the_app_too(tmp_path):
    wanted = spec(environment={"entryPoint": "os.path:join"})
    with pytest.raises(InputError) as refused:
        train.parsed_run(arguments(resources.training_job(OWNER, wanted, here(tmp_path), IMAGES), "app.train"))
    assert refused.value.reason == "EntryPointNotAllowed"


def test_the_evaluation_jobs_arguments_mean_the_same_to_the_app(tmp_path, monkeypatch):
    asked: list[Any] = []
    monkeypatch.setattr(evaluate, "evaluated", lambda *given: asked.append(given) or {"id": "e"})
    wanted, revision = spec(gate__episodes=12), Revision(3, DIGEST, "file:///b", "run-1")
    job = resources.evaluation_job(OWNER, wanted, here(tmp_path), IMAGES, revision, wanted.looks("run-1")[0])
    result = evaluate.run(arguments(job, "app.evaluate"), report.Report(io.StringIO(), None))
    ((found, digest, request, prefixes),) = asked
    assert found.path == tmp_path / "default" / "cartpole"
    assert (digest, tuple(prefixes)) == (DIGEST, ("acme", "gymnasium.envs"))
    assert request == evaluate.EvaluationRequest(wanted.looks("run-1")[0].id, 12, 1000)
    assert result == {"digest": DIGEST, "evaluation": {"id": "e"}}


def test_both_jobs_ask_for_a_comparison_alike(tmp_path, monkeypatch):
    asked: list[Any] = []
    monkeypatch.setattr(evaluate, "evaluated", lambda *given: asked.append(given) or {"id": "e"})
    wanted, revision = spec(gate__againstServing={"maxRegression": 5}), Revision(3, DIGEST, "file:///b", "run-1")
    first, second, *_ = wanted.looks("run-1", DIGEST)
    evaluate.run(arguments(resources.evaluation_job(OWNER, wanted, here(tmp_path), IMAGES, revision, second), "app.evaluate"), report)
    assert asked[0][2] == evaluate.EvaluationRequest(second.id, 200, second.seed, DIGEST)
    job = resources.training_job(OWNER, wanted, here(tmp_path), IMAGES, against=DIGEST)
    look = wanted.looks(wanted.run, DIGEST)[0]
    assert train.parsed_run(arguments(job, "app.train")).evaluation == evaluate.EvaluationRequest(look.id, 100, look.seed, DIGEST)
    assert look.seed not in (first.seed, wanted.gate.seed)


def test_a_triggered_run_is_another_run_from_another_seed(tmp_path):
    wanted = replace(spec(training__seed=2**31 - 1), trigger=Trigger("Request", spec().origin, "r1", 1))
    run = train.parsed_run(arguments(resources.training_job(OWNER, wanted, here(tmp_path), IMAGES), "app.train"))
    assert (run.id, run.task.seed) == (wanted.run, 0)
    assert run.id != wanted.origin


def test_the_prune_jobs_arguments_mean_the_same_to_the_app(tmp_path, monkeypatch):
    digests = [DIGEST, "sha256:" + "cd" * 32]
    home = tmp_path / "default" / "cartpole"
    for digest in digests:
        (home / "bundles" / digest.removeprefix("sha256:")).mkdir(parents=True)
    job = resources.prune_job(OWNER, spec(), here(tmp_path), digests)
    said = spoken(lambda told: told.result(prune.run(arguments(job, "app.prune"), told)))
    assert list((home / "bundles").iterdir()) == []
    assert words.is_result(json.loads(said), names.ROLE_PRUNE)
    assert observation.prunes(job["metadata"]) == tuple(digests)


def test_the_settings_of_the_schema_are_those_that_the_app_takes():
    assert set(CONFIG) == set(settings.SETTINGS)


def test_the_stop_criteria_of_the_schema_are_those_that_the_app_takes():
    for name in STOP:
        stop.parsed_stop({name: 100})
    with pytest.raises(InputError, match=", ".join(STOP)):
        stop.parsed_stop({"other": 1})


def edges(field: dict[str, Any]) -> list[Any]:
    """Values that the schema only just takes."""
    kind = field["type"]
    if kind == "boolean":
        return [True, False]
    if kind == "string":
        return field["enum"]
    if kind == "array":
        low, high = field["items"]["minimum"], field["items"]["maximum"]
        return [[low] * field["minItems"], [high] * field["maxItems"]]
    least = 1e-9 if field.get("exclusiveMinimum") else field.get("minimum", -1e9)
    return [least, field.get("maximum", 1e9)]


def taken_by_the_app(name: str, value: Any) -> None:
    config = {name: value}
    if name == "minibatchSize":
        config["trainBatchSize"] = value
    if name == "trainBatchSize":
        config["minibatchSize"] = min(value, 256)
    settings.parsed_settings(config)


@pytest.mark.parametrize(
    ("name", "value"), [pytest.param(name, value, id=f"{name}={value}") for name, field in CONFIG.items() for value in edges(field)]
)
def test_what_the_schema_only_just_takes_the_app_takes(name, value):
    taken_by_the_app(name, value)


@pytest.mark.parametrize(
    ("name", "value"), [pytest.param(name, value, id=f"{name}={value}") for name, field in STOP.items() for value in edges(field)]
)
def test_a_stop_criterion_that_the_schema_only_just_takes_the_app_takes(name, value):
    stop.parsed_stop({name: value})


BEYOND = [("lr", 0), ("lr", 1.1), ("gamma", -0.1), ("gamma", 1.1), ("lambda", 2), ("clipParam", 0), ("clipParam", 11), ("vfClipParam", 0)]
BEYOND += [
    ("klTarget", 0),
    ("gradClip", 0),
    ("vfLossCoeff", -1),
    ("entropyCoeff", -1),
    ("klCoeff", -1),
    ("numEpochs", 0),
    ("numEpochs", 1001),
]
BEYOND += [("numEnvs", 0), ("trainBatchSize", 10_000_001), ("minibatchSize", 0), ("fcnetHiddens", []), ("fcnetHiddens", [0])]
BEYOND += [("fcnetHiddens", [8] * 9), ("fcnetHiddens", [4097]), ("fcnetActivation", "step"), ("useKlLoss", 1), ("vfShareLayers", "yes")]
BEYOND += [
    ("freeLogStd", "yes"),
    ("rewardScale", 0),
    ("rewardScale", 1_000_001),
    ("observationFilter", "Max"),
    ("useLstm", 1),
    ("lstmCellSize", 0),
    ("lstmCellSize", 4097),
    ("maxSeqLen", 0),
    ("maxSeqLen", 1001),
]
BEYOND += [("lr", "0.1"), ("numEpochs", 1.5), ("fcnetHiddens", 64), ("other", 1)]


@pytest.mark.parametrize(("name", "value"), BEYOND, ids=str)
def test_what_the_app_refuses_the_schema_refuses_first(name, value):
    with pytest.raises(InputError, match=re.escape(f"spec.training.config.{name}")):
        settings.parsed_settings({name: value})
    with pytest.raises(schema.InvalidPolicyModel, match=re.escape(f"spec.training.config.{name}")):
        document(training__config={name: value})


@pytest.mark.parametrize(
    "changes", [{"gate__episodes": 10}, {"gate__episodes": 100_000}, {"gate__seed": 2**31 - 1}, {"gate__seed": 0}], ids=str
)
def test_a_gate_that_the_schema_only_just_takes_the_app_takes(changes):
    gate = spec(**changes).gate
    evaluate.parsed_request({"id": "e", "episodes": gate.episodes, "seed": gate.seed})


def test_both_sides_have_the_same_allow_list(tmp_path):
    from app.environments import parsed_environment
    from controller import reconcile

    for field, named in itertools.product(("entryPoint", "id"), ("acme:A", "acme.b:A", "acmeb:A", "b.acme:A")):
        try:
            parsed_environment({field: named}, ["acme"])
        except InputError as error:
            allowed = error.reason != "EntryPointNotAllowed"
        else:
            allowed = True
        assert reconcile._is_within(named, "acme") is allowed, named


def test_the_storage_is_mounted_where_the_uri_of_a_cluster_points():
    wanted, in_cluster = spec(), Settings("train:1", "serve:1")
    uri = resources.storage_uri(OWNER, wanted, in_cluster)
    root = storage.open_storage(uri).path
    assert root == Path("/storage/default/cartpole")
    head = resources.ray_service(OWNER, wanted, IMAGES)["spec"]["rayClusterConfig"]["headGroupSpec"]["template"]
    revision = Revision(1, DIGEST, "file:///b", "run-1")
    jobs = [
        resources.training_job(OWNER, wanted, in_cluster, IMAGES),
        resources.evaluation_job(OWNER, wanted, in_cluster, IMAGES, revision, wanted.looks("run-1")[0]),
        resources.prune_job(OWNER, wanted, in_cluster, [DIGEST]),
    ]
    for pod in (head, *[job["spec"]["template"] for job in jobs]):
        mounts = {mount["name"]: mount["mountPath"] for mount in pod["spec"]["containers"][0]["volumeMounts"]}
        assert root.is_relative_to(mounts["policies"])


def test_a_bucket_is_told_in_words_that_the_app_reads(monkeypatch, tmp_path):
    s3 = {"bucket": "policies", "endpoint": "http://10.0.0.1:9000", "region": "r", "secretName": "keys", "pathStyle": True}
    wanted, in_cluster = spec(storage__pvc=None, storage__s3={"prefix": "all", **s3}), Settings("train:1", "serve:1")
    place = storage.open_storage(resources.storage_uri(OWNER, wanted, in_cluster)).path
    assert place == objects.ObjectPlace("policies", "all/default/cartpole")
    given = resources._s3_environment(wanted)
    assert set(given) <= set(re.findall(r"^[A-Z][A-Z_0-9]+", objects.__doc__, re.M))
    (tmp_path / resources.S3_CREDENTIALS).write_text("[default]\naws_access_key_id = a\naws_secret_access_key = b%c\n")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / resources.S3_CREDENTIALS))
    assert (objects._credentials()["access_key_id"], objects._credentials()["secret_access_key"]) == ("a", "b%c")


def test_on_one_machine_a_bucket_is_a_directory(tmp_path):
    wanted = spec(storage__pvc=None, storage__s3={"bucket": "policies", "prefix": "all"})
    local = Settings("here", "here", storage_root=tmp_path.as_uri(), in_cluster=False)
    assert resources.storage_uri(OWNER, wanted, local) == f"{tmp_path.as_uri()}/default/cartpole"


def test_a_name_that_the_operator_makes_is_one_that_the_storage_takes(tmp_path):
    wanted, found = spec(), storage.open_storage(f"file://{tmp_path}")
    assert found.run(wanted.run).is_relative_to(tmp_path)
    assert found.evaluation(wanted.looks(wanted.run)[0].id).is_relative_to(tmp_path)


def test_wrong_input_ends_with_the_code_that_fails_the_job_at_once(tmp_path):
    job = resources.training_job(OWNER, spec(), here(tmp_path), IMAGES)
    rules = job["spec"]["podFailurePolicy"]["rules"]
    assert [rule["onExitCodes"] for rule in rules if rule["action"] == "FailJob"] == [
        {
            "containerName": job["spec"]["template"]["spec"]["containers"][0]["name"],
            "operator": "In",
            "values": [InputError("a", "b").exit_code],
        }
    ]


def spoken(say: Any) -> str:
    stream = io.StringIO()
    say(report.Report(stream, None))
    return stream.getvalue()


def test_a_progress_line_of_the_app_is_progress_to_the_controller():
    curve: list[stop.Point] = [stop.next_point([], 1024, 0, 0.0)]
    curve.append(stop.next_point(curve, 2048, 2, 122.4))
    criteria = stop.parsed_stop({"envSteps": 20480})
    for length in (1, 2):
        told = stop.progress_line(curve[length - 1], criteria.progress_percent(curve[:length], 10.0), 10.0, 300.0)
        found = words.last_progress("noise\n" + spoken(lambda said, told=told: said.progress(told)))
        assert (found.iteration, found.env_steps, found.episode_return_mean) == (
            length,
            1024 * length,
            curve[length - 1].episode_return_mean,
        )
        assert (found.percent, found.eta_s) == (told["progressPercent"], told["etaSeconds"])


def standings(trials: int) -> dict[int, standing.Standing]:
    """Trials of which the first has finished, the second has lagged, and the others have not begun."""
    asked = search.parsed_search({"trials": trials, "config": {"lr": {"min": 0.001, "max": 0.01}}}, {})
    point = stop.next_point([], 1024, 20, 20 * 9.5)
    ended = {1: {"state": "Finished", "curve": (point,), "stopped_by": "envSteps"}, 2: {"state": "Stopped", "curve": (point,)}}
    return {
        trial.number: standing.Standing(trial, **ended.get(trial.number, {}))  # type: ignore[arg-type]
        for trial in search.drawn_trials(asked, {}, 0)
    }


def test_a_progress_line_of_a_search_tells_the_controller_of_its_trials():
    all_ = standings(3)
    told = standing.progress_of(all_, stop.parsed_stop({"envSteps": 2048}), 10.0)
    log = spoken(lambda said: said.progress(told))
    assert words.last_progress(log).percent == round(200 / 3, 1)
    assert words.last_search(log) == SearchStatus(
        1,
        (
            TrialStatus(1, "Finished", all_[1].trial.chosen, 1024, 9.5),
            TrialStatus(2, "Stopped", all_[2].trial.chosen, 1024, 9.5),
            TrialStatus(3, "Pending", all_[3].trial.chosen, 0, None),
        ),
    )


def test_the_result_of_the_largest_search_is_a_termination_message_and_a_revision_to_the_controller(tmp_path):
    all_ = standings(search.MOST_TRIALS)
    outcome = standing.outcome_of(all_, all_[1])
    longest = {name: [4096] * 8 if name == "fcnetHiddens" else 0.0001234 for name in settings.SETTINGS}
    against = {"digest": DIGEST, "mean": 1 / 3, "std": 1 / 3, "differenceMean": 1 / 3, "differenceStd": 1 / 3}
    evaluation = {"id": "22f122a329", "episodes": 100000, "seed": 2**31, "mean": 1 / 3, "std": 1 / 3, "against": against}
    found = {"trial": 1, "seed": 2**31, "config": longest, "trials": outcome.told}
    result = {**RESULT, "uri": "s3://" + "b" * 600, "configHash": DIGEST, "search": found, "evaluation": evaluation}
    state = job_that_said(tmp_path, lambda said: result, 0)
    assert words.found_by(state.result) == FoundBy(1, 32, 2**31, longest)
    ended = words.ended_search(state.result, SearchStatus(1, (TrialStatus(2, "Training", {"lr": 0.5}),)))
    assert ended.trials[:3] == (
        TrialStatus(1, "Finished", longest, 1024, 9.5),
        TrialStatus(2, "Stopped", {"lr": 0.5}, 1024, 9.5),
        TrialStatus(3, "Pending", None, 0, None),
    )


def job_that_said(tmp_path: Path, run: Any, exit_code: int) -> Any:
    """A Job whose container ran `app.report.reported_run`, as the controller sees it."""
    log = tmp_path / "termination-log"
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(io.StringIO()):
        patch.setenv("TERMINATION_LOG", str(log))
        assert report.reported_run(run) == exit_code
    manifest = resources.training_job(OWNER, spec(), here(tmp_path), IMAGES)
    condition = {"type": "Failed" if exit_code else "Complete", "status": "True", "reason": "PodFailurePolicy", "message": "exit code"}
    ended = {"terminated": {"exitCode": exit_code, "reason": "Completed", "message": log.read_text()}}
    pod = {"metadata": {"name": "p"}, "status": {"containerStatuses": [{"name": "train", "image": "train:1", "state": ended}]}}
    return observation.job_state({**manifest, "status": {"conditions": [condition]}}, [pod], "", None)


RESULT = {
    "run": "r",
    "digest": DIGEST,
    "uri": "file:///b",
    "iteration": 1,
    "envSteps": 1024,
    "episodeReturnMean": 9.5,
    "trainedAt": "2026-01-01T00:00:00Z",
}


def test_a_result_of_the_app_is_a_revision_to_the_controller(tmp_path):
    from controller import history

    result = {**RESULT, "evaluation": {"id": "e", "episodes": 100, "seed": 1000, "mean": 500.0, "std": 0.0}}
    with_returns = {**RESULT, "evaluation": {**result["evaluation"], "returns": [500.0] * 100}}
    assert json.loads(spoken(lambda said: said.result(with_returns))) == {"result": with_returns}
    # They would be too much for a termination message.
    state = job_that_said(tmp_path, lambda said: with_returns, 0)
    assert (state.phase, state.result) == ("Succeeded", result)
    evaluation = history.evaluation_of(state.result)
    assert (evaluation.id, evaluation.mean, evaluation.episodes, evaluation.seed) == ("e", 500.0, 100, 1000)


def test_a_result_has_the_fields_that_the_controller_reads(tmp_path, monkeypatch):
    """`_record` is what an evaluation leaves, `RESULT` what `app.train` publishes: `test_a_result_...` above reads both."""
    request = evaluate.EvaluationRequest("e", 2, 1000)
    record = evaluate._record(DIGEST, request, {"id": "CartPole-v1"}, [evaluate.Episode(1000, 1.0, 1), evaluate.Episode(1001, 3.0, 3)])
    summary = {name: record[name] for name in evaluate.SUMMARY}
    state = job_that_said(tmp_path, lambda said: {**RESULT, "evaluation": summary}, 0)
    assert state.result["evaluation"] == summary


def test_a_comparison_of_the_app_is_one_to_the_controller(tmp_path):
    from controller import history

    ours, theirs = [evaluate.Episode(7, 1.0, 1), evaluate.Episode(8, 3.0, 3)], [evaluate.Episode(7, 2.0, 2), evaluate.Episode(8, 2.0, 2)]
    against = evaluate._against(DIGEST, ours, theirs)
    told = {name: against[name] for name in evaluate.SUMMARY_AGAINST if name in against}
    figures = {"id": "e", "episodes": 2, "seed": 7, "mean": 2.0, "std": 1.0}
    state = job_that_said(tmp_path, lambda said: {**RESULT, "evaluation": {**figures, "against": told}}, 0)
    assert history.evaluation_of(state.result).against == Against(DIGEST, 2.0, 0.0, 0.0, pytest.approx(2**0.5))
    failed = {**figures, "against": {"digest": DIGEST, "problem": "Missing: it is gone"}}
    state = job_that_said(tmp_path, lambda said: {**RESULT, "evaluation": failed}, 0)
    assert history.evaluation_of(state.result).against == Against(DIGEST, problem="Missing: it is gone")


def test_an_error_of_the_app_is_a_problem_to_the_controller(tmp_path):
    def refuse(said: Any) -> dict[str, Any]:
        raise InputError("InvalidEnvironment", "spec.environment.id: no such environment")

    state = job_that_said(tmp_path, refuse, 2)
    assert (state.phase, state.problem.reason) == ("Failed", "InvalidEnvironment")
    assert state.problem.message == "spec.environment.id: no such environment"


def test_a_message_of_any_length_and_script_survives_the_termination_message(tmp_path):
    def refuse(said: Any) -> dict[str, Any]:
        raise InputError("InvalidConfig", 'ü"\n' * 4000)

    assert job_that_said(tmp_path, refuse, 2).problem.reason == "InvalidConfig"


def test_both_sides_name_the_deployment_alike_and_the_import_path_exists():
    import importlib

    config = yaml.safe_load(resources.serve_config(OWNER, spec(), None))
    application = config["applications"][0]
    module, _, function = application["import_path"].partition(":")
    assert callable(getattr(importlib.import_module(module), function))
    assert application["deployments"][0]["name"] == names.DEPLOYMENT
    # Read and not imported: it imports Ray.
    assert f'DEPLOYMENT = "{names.DEPLOYMENT}"\n' in (Path(asgi.__file__).parent / "deployment.py").read_text()


MANNERS = {
    "defaults": ({}, asgi.Manners("/cartpole-ppo", rejects_out_of_bounds=False, body_bytes=1024 * 1024, writes_access_log=False)),
    "all": (
        {"serving__route": "/a/b", "serving__outOfBounds": "Reject", "serving__maxBodyBytes": 4096, "serving__accessLog": True},
        asgi.Manners("/a/b", rejects_out_of_bounds=True, body_bytes=4096, writes_access_log=True),
    ),
}


@pytest.mark.parametrize(("changes", "manners"), MANNERS.values(), ids=MANNERS)
def test_a_user_config_of_the_controller_is_read_by_the_replica(changes, manners):
    policy = {"uri": "file:///storage/b", "digest": DIGEST, "revision": 7}
    text = resources.serve_config(OWNER, spec(**changes), policy)
    user_config = yaml.safe_load(text)["applications"][0]["deployments"][0]["user_config"]
    assert replica.parsed_wanted(user_config["serving"]) == replica.Wanted("file:///storage/b", DIGEST, 7)
    assert resources.served_policy(OWNER, text) == policy
    holder = replica.PolicyHolder()
    holder.want({key: value for key, value in user_config.items() if key != "serving"})
    assert holder.manners == manners
    (row,) = replica_report.replicas(status_of(holder, 1)).rows
    assert row.manners == resources.manners(spec(**changes))


def test_a_user_config_without_a_policy_wants_none():
    text = resources.serve_config(OWNER, spec(), None)
    user_config = yaml.safe_load(text)["applications"][0]["deployments"][0]["user_config"]
    assert replica.parsed_wanted(user_config.get("serving")) is None
    assert resources.served_policy(OWNER, text) is None


# How a replica answers that was told nothing yet.
UNTOLD = {"route": "", "outOfBounds": "Answer", "maxBodyBytes": 1024 * 1024, "accessLog": False}


def status_of(holder: replica.PolicyHolder, running: int | None) -> Any:
    """The status as one replica gives it, over the wire."""
    rows = [{"replica": "r1", **holder.row()}]
    return json.loads(orjson.dumps({"application": "cartpole", "runningReplicas": running, "replicas": rows}))


def test_a_replica_without_a_policy_reads_so():
    assert replica_report.replicas(status_of(replica.PolicyHolder(), 1)) == Replicas(1, (ReplicaRow("r1", None, manners=UNTOLD),))


def test_a_replica_that_serves_reads_so():
    holder = replica.PolicyHolder()
    holder.serving = SimpleNamespace(policy=SimpleNamespace(digest=DIGEST), revision=7)
    assert replica_report.replicas(status_of(holder, 2)) == Replicas(2, (ReplicaRow("r1", DIGEST, manners=UNTOLD),))


def test_a_replica_that_refuses_reads_so():
    holder = replica.PolicyHolder()
    holder.refusal = replica.Refusal(DIGEST, "DigestMismatch", "the bundle was changed")
    (row,) = replica_report.replicas(status_of(holder, 1)).rows
    assert row == ReplicaRow("r1", None, DIGEST, Problem("DigestMismatch", "the bundle was changed"), UNTOLD)


def test_a_status_that_does_not_know_how_many_replicas_run_is_no_answer():
    with pytest.raises(replica_report.ReportUnusable, match="how many replicas run"):
        replica_report.replicas(status_of(replica.PolicyHolder(), None))


def test_the_status_lies_where_the_controller_asks():
    wanted = spec()
    scope = {"path": f"{wanted.serving.route}/v1/status", "root_path": wanted.serving.route}
    assert asgi._path_below_route(scope) == "/v1/status"


def test_a_policy_on_this_machine_is_served_as_in_a_cluster():
    rendered = {**resources.SERVE_ENVIRONMENT, **resources.HAPROXY_ENVIRONMENT}
    assert int(rendered.pop("RAY_SERVE_HAPROXY_MAXCONN")) == local_serve.MOST_CONNECTIONS
    assert rendered.items() <= local_serve.FAST_PATH.items()
    assert rendered["RAY_SERVE_HAPROXY_TIMEOUT_CLIENT_S"] == "60"
