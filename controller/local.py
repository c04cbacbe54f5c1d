"""The backend of local mode: observe() and apply() over processes on this machine, with the planner of the cluster.

A Job is a process, the RayService is a process with a local Ray, the PolicyModel is a YAML file, and its status is a file beside the
bundles. What the cluster's API server does (generations, refusing a bad edit) is done here as it is done there.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from controller import names, observation, schema, words
from controller import status as statuses
from controller.loop import ActionRefused, Key
from controller.model import Action, Apply, Create, Delete, Event, JobState, Observed, Owner, Problem, RayServiceState, Settings, Status
from controller.replicas import replicas_at
from controller.spec import Json, spec_of

# An image is what a pod is made from; a process is made from this installation.
NO_IMAGE = "this installation"
# A Job that ends so is not tried again (resources.py tells Kubernetes the same).
EXIT_FINAL = 2
STOP_S = 20.0
# A server that ended is started anew after this time, so that a server that cannot start does not spin.
RESTART_S = 10.0
# Characters in which a whole line is, of a search with many trials, too.
LOG_TAIL = 64 * 1024
REPLICAS_TIMEOUT_S = (1, 3)


class StateInUse(Exception):
    """Another `policymodel run` works in the same state directory."""


class Local:
    """One PolicyModel file, brought to life on this machine.

    Args:
        path: the YAML file.
        state: directory for bundles, logs and the status; made when it is missing.
        port: where Serve answers on 127.0.0.1.

    Raises:
        StateInUse: see there.
        schema.InvalidPolicyModel: the file holds no good PolicyModel.
        OSError: the file cannot be read.
    """

    def __init__(self, path: Path, state: Path, port: int) -> None:
        self._path, self._port = path, port
        self._document = schema.load(path.read_text())
        name, namespace = self._document["metadata"]["name"], self._document["metadata"].get("namespace", "default")
        self.key: Key = (namespace, name)
        self.root = state.absolute() / namespace / name
        self._home = self.root / "local"
        self._home.mkdir(parents=True, exist_ok=True)
        self._lock = (self._home / "lock").open("w")
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self._lock.close()
            raise StateInUse(f"another `policymodel run` works in {self.root}; stop it, or give another --state") from error
        self._refused: str | None = None
        self._jobs: dict[str, subprocess.Popen[bytes]] = {}
        self._attempts: dict[str, int] = {}
        self._server: subprocess.Popen[bytes] | None = None
        self._server_ended_at: float | None = None
        for record in self._home.glob("*.job.json"):
            # A process of an earlier start is gone, and what it was doing with it; what failed then may succeed now.
            if self._exit_code(record.name.removesuffix(".job.json")) != 0:
                record.unlink()

    def settings(self, entry_point_prefixes: Iterable[str]) -> Settings:
        return Settings(
            training_image=NO_IMAGE,
            serving_image=NO_IMAGE,
            storage_root=self.root.parent.parent.as_uri(),
            entry_point_prefixes=tuple(entry_point_prefixes),
            base_url=f"http://127.0.0.1:{self._port}",
            in_cluster=False,
        )

    def reread(self) -> str | None:
        """Reads the file again. A bad edit is refused, once, in words; the last good one stays in force."""
        try:
            document = schema.defaulted(schema.loaded(self._path.read_text()), self._document)
        except (ValueError, RecursionError, OSError) as error:
            # Whatever a text editor leaves there for a moment, the policy goes on.
            refusal = str(error) if isinstance(error, schema.InvalidPolicyModel | OSError) else f"not YAML: {type(error).__name__}"
        else:
            if document["metadata"].get("name") == self.key[1] and document["metadata"].get("namespace", "default") == self.key[0]:
                self._document, self._refused = document, None
                return None
            refusal = "metadata.name and metadata.namespace: may not be changed while it runs; start another `policymodel run`"
        news = refusal if refusal != self._refused else None
        self._refused = refusal
        return news

    def retry(self) -> None:
        """Starts failed Jobs again, as often as spec.training.backoffLimit allows, as Kubernetes does. Exit code 2 is final: the input
        is wrong."""
        limit = self._document["spec"]["training"]["backoffLimit"]
        for name, process in list(self._jobs.items()):
            attempt = self._attempts.get(name, 1)
            if process.poll() not in (None, 0, EXIT_FINAL) and attempt <= limit:
                self._attempts[name] = attempt + 1
                _end(process, 0)
                self._start_job(json.loads((self._home / f"{name}.job.json").read_text()))

    def observe(self, key: Key) -> Observed | None:
        """Everything that a plan needs."""
        spec, now = spec_of(self._document), datetime.now(UTC)
        owner = Owner(*key, uid="local", generation=self._generation())
        jobs = [self._job(json.loads(record.read_text())) for record in sorted(self._home.glob("*.job.json"))]
        server = self._ray_service()
        replicas = None
        if server and not server.problem:
            url = f"http://127.0.0.1:{self._port}{spec.serving.route}/v1/status"
            replicas = replicas_at(url, has_endpoint=False, timeout_s=REPLICAS_TIMEOUT_S)
        return Observed(
            now,
            owner,
            spec,
            self._status(),
            jobs=tuple(jobs),
            ray_service=server,
            replicas=replicas,
            requests=observation.requests(self._document["metadata"]),
        )

    def apply(self, owner: Owner, action: Action) -> None:
        """Starts or stops a process, or writes the server's configuration.

        Raises:
            ActionRefused: the operating system would not.
        """
        try:
            if isinstance(action, Create):
                self._start_job(action.manifest)
            elif isinstance(action, Delete):
                self._stop_job(action.name)
            elif isinstance(action, Apply) and action.field_manager == names.SERVE_FIELD_MANAGER:
                _write(self._home / "serve.yaml", action.manifest["spec"]["serveConfigV2"])
                self._start_server()
            elif isinstance(action, Apply):
                _write(self._home / "server.hash", action.manifest["metadata"]["annotations"][names.ANNOTATION_HASH])
        except OSError as error:
            raise ActionRefused(f"{type(action).__name__} {action.kind} {action.name}: {error}") from error

    def publish(self, owner: Owner, status: Status, events: Iterable[Event]) -> None:
        _write(self._home / "status.json", json.dumps(statuses.document_of(status), indent=2))

    def close(self) -> None:
        """Ends every process that was started here, and theirs."""
        processes = [*self._jobs.values(), *([self._server] if self._server else [])]
        for process in processes:
            _signal_group(process, signal.SIGTERM)
        deadline = time.monotonic() + STOP_S
        for process in processes:
            _end(process, deadline - time.monotonic())
        self._lock.close()

    def log_of(self, name: str) -> Path:
        """What a Job, or the server (`serve`), says: JSON lines."""
        return Path(self._home, f"{name}.log")

    def _chatter_of(self, name: str) -> Path:
        """What it writes beside that: tracebacks, Ray's own words."""
        return Path(self._home, f"{name}.err")

    def _generation(self) -> int:
        """Counts the changes of the spec, as the API server does."""
        record = self._home / "generation.json"
        last: dict[str, Any] = json.loads(record.read_text()) if record.exists() else {"generation": 0, "spec": ""}
        spec = names.digest_of(self._document["spec"])
        if last["spec"] != spec:
            last = {"generation": last["generation"] + 1, "spec": spec}
            _write(record, json.dumps(last))
        return int(last["generation"])

    def _status(self) -> Status:
        record = self._home / "status.json"
        try:
            return statuses.status_of(json.loads(record.read_text()))
        except (OSError, ValueError, KeyError, TypeError):
            # Nothing is lost with it: what is published says its result again.
            return Status()

    def _end_of(self, name: str) -> Path:
        return Path(self._home, f"{name}.end.json")

    def _exit_code(self, name: str) -> int | None:
        """How a Job's process ended; None while it has not."""
        end = self._end_of(name)
        return int(json.loads(end.read_text())["exitCode"]) if end.exists() else None

    def _job(self, manifest: Json) -> JobState:
        labels, name = manifest["metadata"]["labels"], manifest["metadata"]["name"]
        process, end, log = self._jobs.get(name), self._end_of(name), self.log_of(name)
        if process and process.poll() is not None and not end.exists():
            _write(end, json.dumps({"exitCode": process.returncode}))
        word: dict[str, Any] = {}
        exit_code = self._exit_code(name)
        text = log.read_text(errors="replace") if log.exists() else ""
        if exit_code is not None and text.strip():
            word = words.parsed(text.strip().splitlines()[-1])
        error = word.get("error", {})
        message = error.get("message", f"exit code {exit_code}; read {self._chatter_of(name)}")
        return JobState(
            name=name,
            role=labels[names.LABEL_ROLE],
            run=labels.get(names.LABEL_RUN, ""),
            evaluation=labels.get(names.LABEL_EVALUATION),
            hash=manifest["metadata"].get("annotations", {}).get(names.ANNOTATION_HASH),
            replaces=manifest["metadata"].get("annotations", {}).get(names.ANNOTATION_REPLACES),
            phase="Running" if exit_code is None else "Succeeded" if exit_code == 0 else "Failed",
            attempt=max(self._attempts.get(name, 1), words.last_attempt(text[-LOG_TAIL:])),
            image=NO_IMAGE,
            result=word.get("result") if exit_code == 0 else None,
            problem=Problem(error.get("reason", "TrainingFailed"), message) if exit_code else None,
            progress=words.last_progress(text[-LOG_TAIL:]),
            prunes=observation.prunes(manifest["metadata"]),
            search=words.last_search(text[-LOG_TAIL:]),
        )

    def _start_job(self, manifest: Json) -> None:
        name = manifest["metadata"]["name"]
        _write(self._home / f"{name}.job.json", json.dumps(manifest))
        self._end_of(name).unlink(missing_ok=True)
        container = manifest["spec"]["template"]["spec"]["containers"][0]
        self._jobs[name] = self._process(name, container["args"], container["env"])

    def _stop_job(self, name: str) -> None:
        process = self._jobs.pop(name, None)
        self._attempts.pop(name, None)
        if process:
            _signal_group(process, signal.SIGTERM)
            _end(process, STOP_S)
        for leftover in (self._home / f"{name}.job.json", self._end_of(name)):
            leftover.unlink(missing_ok=True)

    def _ray_service(self) -> RayServiceState | None:
        if self._server is None:
            return None
        config, mark = self._home / "serve.yaml", self._home / "server.hash"
        problem = None
        if self._server.poll() is not None:
            self._server_ended_at = self._server_ended_at or time.monotonic()
            if time.monotonic() - self._server_ended_at > RESTART_S:
                _end(self._server, 0)
                self._server = self._server_ended_at = None
                return None
            lines = self.log_of("serve").read_text(errors="replace").strip().splitlines()
            error = words.parsed(lines[-1]).get("error", {}) if lines else {}
            why = error.get("message", f"read {self._chatter_of('serve')}")
            message = f"the server ended with exit code {self._server.returncode} and is started anew: {why}"
            problem = Problem("ServeFailed", message)
        return RayServiceState(config.read_text(), mark.read_text() if mark.exists() else None, problem=problem)

    def _start_server(self) -> None:
        if self._server is None:
            arguments = ["-m", "app.serve", "--config", str(self._home / "serve.yaml"), "--host", "127.0.0.1", "--port", str(self._port)]
            self._server = self._process(
                "serve", arguments, [{"name": "POLICYMODEL_DECISIONS", "value": str(self.root.parent.parent / "decisions")}]
            )

    def _process(self, name: str, arguments: list[str], environment: Iterable[Mapping[str, Any]]) -> subprocess.Popen[bytes]:
        """A Python process in a group of its own, so that it and its children can be ended; it ends itself when our end of its
        standard input closes."""
        variables = {
            variable["name"]: str(variable["value"]) for variable in environment if "value" in variable and variable["name"] != "HOME"
        }
        with self.log_of(name).open("wb") as log, self._chatter_of(name).open("wb") as chatter:
            return subprocess.Popen(
                [sys.executable, *arguments],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=chatter,
                env={**os.environ, **variables},
                start_new_session=True,
            )


def _signal_group(process: subprocess.Popen[bytes], number: int) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, number)


def _end(process: subprocess.Popen[bytes], patience_s: float) -> None:
    """Waits for a process, then ends what is left of its session: Ray and HAProxy have groups of their own in it."""
    with suppress(subprocess.TimeoutExpired):
        process.wait(max(0.1, patience_s))
    _signal_group(process, signal.SIGKILL)
    for pid in _session(process.pid):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait()
    if process.stdin:
        process.stdin.close()


def _session(leader: int) -> list[int]:
    """The processes of a session, where the operating system tells (Linux)."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            # What follows the name, which is in brackets and may hold anything: state, parent, group, session.
            fields = stat.read_text().rpartition(")")[2].split()
            if int(fields[3]) == leader:
                found.append(int(stat.parent.name))
    return found


def _write(path: Path, text: str) -> None:
    """Writes a file whole or not at all."""
    aside = path.with_name(path.name + ".new")
    aside.write_text(text)
    aside.replace(path)
