"""Local mode over small processes: a package `app` of a few lines stands where the real one would."""

from __future__ import annotations

import json
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml
from fakes.world import EXAMPLE

from controller import names, schema
from controller.local import NO_IMAGE, Local, StateInUse
from controller.loop import ActionRefused, reconcile_once
from controller.model import Create, Delete, Observed, Settings

DEADLINE_S = 60.0

TRAIN = """
import argparse, json, os, signal, sys, time
parser = argparse.ArgumentParser()
for flag in ("storage", "run", "environment", "config", "stop", "workers", "seed", "checkpoint-every", "evaluation"):
    parser.add_argument("--" + flag)
asked = parser.parse_args()
with open("started", "a") as started:
    started.write(f"{os.getpid()} {asked.run}\\n")
progress = {"iteration": 1, "envSteps": 32, "episodeReturnMean": 20.5, "progressPercent": 12.5, "etaSeconds": 40}
print(json.dumps({"progress": progress}), flush=True)
print("chatter", file=sys.stderr)
if asked.seed == "1":
    print(json.dumps({"error": {"reason": "InvalidEnvironment", "message": "no such environment"}}))
    sys.exit(2)
if asked.seed == "2":
    sys.stdin.buffer.read()
    sys.exit(9)
if asked.seed == "3":
    print('{"result": {"dig')
    sys.exit(1)
evaluation = json.loads(asked.evaluation)
digest = "sha256:" + asked.run.ljust(64, "0")
result = {"digest": digest, "uri": asked.storage + "/bundles/x", "envSteps": 64, "evaluation": {**evaluation, "mean": 500.0, "std": 0.0}}
print(json.dumps({"result": result}))
"""
PRUNE = """
import argparse, json
parser = argparse.ArgumentParser()
parser.add_argument("--storage")
parser.add_argument("--delete", nargs="+")
asked = parser.parse_args()
with open("pruned", "a") as pruned:
    pruned.write("".join(f"{digest}\\n" for digest in asked.delete))
print(json.dumps({"result": {"pruned": len(asked.delete)}}))
"""
SERVE = """
import argparse, json, os, sys, threading, yaml
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
parser = argparse.ArgumentParser()
for flag in ("config", "host", "port"):
    parser.add_argument("--" + flag)
asked = parser.parse_args()
with open("served", "a") as served:
    served.write(f"{os.getpid()}\\n")

class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        application = yaml.safe_load(open(asked.config))["applications"][0]
        if self.path != application["route_prefix"] + "/v1/status":
            return self.send_error(404)
        deployment = application["deployments"][0]
        policy = deployment["user_config"].get("serving")
        rows = [{"replica": str(index), "serving": policy, "error": None} for index in range(deployment["num_replicas"])]
        body = json.dumps({"runningReplicas": len(rows), "replicas": rows}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass

server = ThreadingHTTPServer((asked.host, int(asked.port)), Handler)
threading.Thread(target=lambda: (sys.stdin.buffer.read(), os._exit(0)), daemon=True).start()
server.serve_forever()
"""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with the stub of `app`, which processes that are started in it find first."""
    (tmp_path / "app").mkdir()
    (tmp_path / "app" / "__init__.py").touch()
    for module, text in (("train", TRAIN), ("evaluate", TRAIN), ("prune", PRUNE), ("serve", SERVE)):
        (tmp_path / "app" / f"{module}.py").write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    (tmp_path / "model.yaml").write_text(EXAMPLE)
    return tmp_path


@pytest.fixture
def port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def started(home: Path, port: int) -> Iterator[Callable[[], Local]]:
    """Starts `policymodel run`'s backend; everything that it began is ended after the test."""
    made: list[Local] = []

    def start() -> Local:
        made.append(Local(home / "model.yaml", home / "state", port))
        return made[-1]

    yield start
    for local in made:
        local.close()


def edit(home: Path, **changes: Any) -> None:
    found = yaml.safe_load(EXAMPLE)
    for path, value in changes.items():
        section, field = path.split("__")
        found["spec"][section][field] = value
    (home / "model.yaml").write_text(yaml.safe_dump(found))


def seen(local: Local) -> Observed:
    found = local.observe(local.key)
    assert found is not None
    return found


def until(local: Local, is_true: Callable[[Observed], bool], settings: Settings | None = None) -> Observed:
    """Reconciles until something is true; gives what was seen then."""
    deadline = time.monotonic() + DEADLINE_S
    while True:
        assert local.reread() is None
        reconcile_once(local, local.key, settings or local.settings([]))
        found = seen(local)
        if is_true(found):
            return found
        assert time.monotonic() < deadline, found.status
        time.sleep(0.02)


def is_ready(found: Observed) -> bool:
    condition = found.status.condition("Ready")
    return condition is not None and condition.status == "True" and found.status.observed_generation == found.owner.generation


def is_(type_: str, reason: str) -> Callable[[Observed], bool]:
    def check(found: Observed) -> bool:
        condition = found.status.condition(type_)
        return condition is not None and condition.reason == reason

    return check


def runs(home: Path) -> list[str]:
    """The runs whose processes were started."""
    record = home / "started"
    return [line.split()[1] for line in record.read_text().splitlines()] if record.exists() else []


def servers(home: Path) -> list[int]:
    return [int(line) for line in (home / "served").read_text().split()]


def is_alive(pid: int) -> bool:
    with suppress(ProcessLookupError, FileNotFoundError):
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def test_a_file_comes_to_life_and_its_status_is_what_the_replicas_say(home, started):
    found = until(started(), is_ready)
    assert found.status.phase == "Ready"
    assert found.status.serving.replicas == 1
    assert found.status.revisions[0].evaluation.mean == 500.0
    assert found.status.revisions[0].uri == (home / "state" / "default" / "cartpole").as_uri() + "/bundles/x"
    assert found.status.url.endswith("/cartpole-ppo")
    assert len(runs(home)) == 1


def test_a_second_start_reuses_what_is_published(home, started):
    first = started()
    until(first, is_ready)
    first.close()
    found = until(started(), is_ready)
    assert len(runs(home)) == 1
    assert found.status.serving.revision == 1


def test_another_seed_trains_anew_and_the_server_is_not_restarted(home, started):
    local = started()
    until(local, is_ready)
    edit(home, training__seed=4)
    found = until(local, is_ready)
    assert (found.owner.generation, found.status.serving.revision) == (2, 2)
    assert len(runs(home)) == 2
    assert len(servers(home)) == 1


def test_old_revisions_are_removed_by_a_process_as_they_are_by_a_job(home, started):
    local = started()
    first = until(local, is_ready).status.revisions[0]
    edit(home, training__seed=4, storage__keepRevisions=1)
    found = until(local, lambda found: any(revision.retention == "Pruned" for revision in found.status.revisions))
    assert [(revision.number, revision.retention) for revision in found.status.revisions] == [(1, "Pruned"), (2, None)]
    until(local, lambda found: all(job.role != names.ROLE_PRUNE for job in found.jobs))
    assert (home / "pruned").read_text().split() == [first.digest]


def test_more_replicas_are_a_change_in_place(home, started):
    local = started()
    until(local, is_ready)
    edit(home, serving__replicas=3)
    found = until(local, is_ready)
    assert found.status.serving.replicas == 3
    assert (len(runs(home)), len(servers(home))) == (1, 1)


def test_progress_and_the_time_left_are_told(home, started):
    edit(home, training__seed=2)
    progress = until(started(), lambda found: bool(found.status.training and found.status.training.progress)).status.training.progress
    assert (progress.iteration, progress.env_steps, progress.episode_return_mean, progress.eta_s) == (1, 32, 20.5, 40.0)


def test_an_edit_in_the_middle_of_training_ends_the_old_process_first(home, started):
    edit(home, training__seed=2)
    local = started()
    until(local, lambda found: len(runs(home)) == 1)
    pid = int((home / "started").read_text().split()[0])
    edit(home, training__seed=4)
    until(local, is_ready)
    assert not is_alive(pid)
    assert len(runs(home)) == 2


def test_wrong_input_is_told_in_the_apps_words(home, started):
    edit(home, training__seed=1)
    found = until(started(), is_("Trained", "InvalidEnvironment"))
    assert "no such environment" in found.status.condition("Trained").message
    assert len(runs(home)) == 1


def test_a_process_that_dies_without_a_word_names_its_log(home, started):
    edit(home, training__seed=3)
    found = until(started(), is_("Trained", "TrainingFailed"))
    message = found.status.condition("Trained").message
    assert "exit code 1; read " in message
    log = Path(message.partition("read ")[2].partition(". Change")[0])
    assert "chatter" in log.read_text()


def test_a_new_start_is_a_new_try(home, started):
    edit(home, training__seed=3)
    first = started()
    until(first, is_("Trained", "TrainingFailed"))
    first.close()
    until(started(), lambda found: len(runs(home)) == 2)


def test_closing_leaves_no_process(home, started):
    edit(home, training__seed=2)
    local = started()
    until(local, lambda found: len(runs(home)) == 1 and (home / "served").exists())
    pids = [int((home / "started").read_text().split()[0]), *servers(home)]
    assert all(map(is_alive, pids))
    local.close()
    assert not any(map(is_alive, pids))


def test_what_was_training_when_it_was_closed_is_started_again(home, started):
    edit(home, training__seed=2)
    first = started()
    until(first, lambda found: len(runs(home)) == 1)
    first.close()
    until(started(), lambda found: len(runs(home)) == 2)


def test_a_server_that_ended_is_told_and_started_anew(home, started, monkeypatch):
    monkeypatch.setattr("controller.local.RESTART_S", 0.2)
    local = started()
    until(local, is_ready)
    os.kill(servers(home)[0], signal.SIGKILL)
    until(local, is_("Ready", "ServeFailed"))
    until(local, lambda found: len(servers(home)) == 2)
    until(local, is_ready)


def test_two_in_one_state_directory_are_one_too_many(home, started):
    started()
    with pytest.raises(StateInUse, match="stop it, or give another --state"):
        started()


def test_a_bad_edit_is_refused_once_and_the_last_good_one_stays(home, started):
    local = started()
    edit(home, training__seed=-1)
    assert "spec.training.seed: allowed is at least 0" in local.reread()
    assert local.reread() is None
    assert seen(local).spec.training.seed == 0
    (home / "model.yaml").write_text("{")
    assert "not YAML" in local.reread()
    (home / "model.yaml").unlink()
    assert "No such file" in local.reread()
    edit(home, training__seed=6)
    assert local.reread() is None
    assert seen(local).spec.training.seed == 6


def test_a_field_that_may_not_change_is_refused_as_the_api_server_would(home, started):
    local = started()
    edit(home, storage__pvc={"size": "2Gi"})
    assert "spec.storage.pvc: may not be changed" in local.reread()


def test_another_name_is_another_policy_model(home, started):
    local = started()
    (home / "model.yaml").write_text(EXAMPLE.replace("name: cartpole\n", "name: other\n"))
    assert "metadata.name and metadata.namespace: may not be changed" in local.reread()


def test_a_file_that_is_no_policy_model_is_refused_at_the_start(home, started):
    (home / "model.yaml").write_text("kind: Pod")
    with pytest.raises(schema.InvalidPolicyModel):
        started()


def test_generations_count_the_changes_of_the_spec(home, started):
    local = started()
    generations = [seen(local).owner.generation, seen(local).owner.generation]
    edit(home, training__seed=4)
    local.reread()
    generations.append(seen(local).owner.generation)
    local.close()
    generations.append(seen(started()).owner.generation)
    assert generations == [1, 1, 2, 2]


def test_the_settings_are_those_of_this_machine(home, started, port):
    settings = started().settings(["acme"])
    assert settings == Settings(NO_IMAGE, NO_IMAGE, (home / "state").as_uri(), ("acme",), f"http://127.0.0.1:{port}", False)


def test_a_directory_of_any_name_is_a_uri(home, port):
    local = Local(home / "model.yaml", home / "a b#c%20", port)
    try:
        assert local.settings([]).storage_root == (home / "a b#c%20").as_uri()
    finally:
        local.close()


def test_what_the_operating_system_refuses_is_refused_in_words(home, started, monkeypatch):
    local = started()
    manifest = {"kind": "Job", "metadata": {"name": "x", "labels": {names.LABEL_ROLE: "train", names.LABEL_RUN: "r"}}}
    container = {"args": ["-m", "app.train"], "env": []}
    manifest["spec"] = {"template": {"spec": {"containers": [container]}}}
    monkeypatch.setattr("sys.executable", str(home / "missing"))
    with pytest.raises(ActionRefused, match=r"Create Job x: .*No such file"):
        local.apply(seen(local).owner, Create(manifest))


def test_deleting_a_job_that_is_gone_is_no_error(started):
    local = started()
    local.apply(seen(local).owner, Delete("Job", "nothing"))


def test_a_status_is_written_whole_or_not_at_all(home, started):
    local = started()
    until(local, is_ready)
    files = {path.name for path in (home / "state/default/cartpole/local").iterdir()}
    assert not {name for name in files if name.endswith(".new")}
    assert json.loads((home / "state/default/cartpole/local/status.json").read_text())["phase"] == "Ready"
