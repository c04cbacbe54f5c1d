"""The part of an MLflow tracking server that a training uses, and that may answer 500, or not at all."""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, urlsplit

TAGGED = re.compile(r"tags\.`([^`]+)` = '([^']*)'")


@dataclass
class Run:
    """A run as the server keeps it."""

    id: str
    experiment: str
    name: str
    status: str = "RUNNING"
    tags: dict[str, str] = field(default_factory=dict)
    params: dict[str, str] = field(default_factory=dict)
    metrics: dict[str, list[tuple[int, float]]] = field(default_factory=dict)

    def document(self) -> dict[str, Any]:
        info = {
            "run_id": self.id,
            "experiment_id": self.experiment,
            "run_name": self.name,
            "status": self.status,
            "lifecycle_stage": "active",
        }
        return {"info": info, "data": {"tags": _pairs(self.tags), "params": _pairs(self.params)}}


class MLflowServer:
    """Its runs, and its switches.

    Attributes:
        url: where it answers.
        broken_for: so many requests are answered by 500.
        hangs: no request is answered while it does.
        asked: how many requests there were.
        authorizations: what came with them.
    """

    def __init__(self) -> None:
        self.experiments: dict[str, str] = {}
        self.runs: dict[str, Run] = {}
        self.hangs = False
        self.broken_for = self.asked = 0
        self.authorizations: set[str] = set()
        self.awake = threading.Event()
        self.url = ""

    def answer(self, path: str, asked: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        match path.removeprefix("/api/2.0/mlflow/"):
            case "experiments/get-by-name":
                found = self.experiments.get(asked["experiment_name"])
                if found is None:
                    return 404, {"error_code": "RESOURCE_DOES_NOT_EXIST", "message": "no such experiment"}
                return 200, {"experiment": {"experiment_id": found, "name": asked["experiment_name"], "lifecycle_stage": "active"}}
            case "experiments/create":
                self.experiments[asked["name"]] = str(len(self.experiments) + 1)
                return 200, {"experiment_id": self.experiments[asked["name"]]}
            case "runs/search":
                wanted = dict(TAGGED.findall(asked["filter"]))
                runs = [
                    run for run in self.runs.values() if run.experiment in asked["experiment_ids"] and wanted.items() <= run.tags.items()
                ]
                return 200, {"runs": [run.document() for run in runs]}
            case "runs/create":
                tags = {tag["key"]: tag["value"] for tag in asked["tags"]}
                run = Run(str(len(self.runs) + 1), asked["experiment_id"], asked["run_name"], tags=tags)
                self.runs[run.id] = run
                return 200, {"run": run.document()}
            case "runs/get":
                return 200, {"run": self.runs[asked["run_id"]].document()}
            case "runs/update":
                run = self.runs[asked["run_id"]]
                run.status = asked["status"]
                return 200, {"run_info": run.document()["info"]}
            case "runs/set-tag":
                self.runs[asked["run_id"]].tags[asked["key"]] = asked["value"]
                return 200, {}
            case "runs/log-batch":
                return self._log(self.runs[asked["run_id"]], asked)
        return 404, {"error_code": "ENDPOINT_NOT_FOUND", "message": path}

    def _log(self, run: Run, asked: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        for param in asked.get("params", []):
            if run.params.setdefault(param["key"], param["value"]) != param["value"]:
                return 400, {"error_code": "INVALID_PARAMETER_VALUE", "message": "a parameter is written once"}
        for metric in asked.get("metrics", []):
            run.metrics.setdefault(metric["key"], []).append((int(metric["step"]), float(metric["value"])))
        return 200, {}


@contextmanager
def mlflow_server() -> Iterator[MLflowServer]:
    """Starts a server without runs."""
    server = MLflowServer()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer(dict(parse_qsl(urlsplit(self.path).query)))

        def do_POST(self) -> None:
            self._answer(json.loads(self.rfile.read(int(self.headers["Content-Length"])) or b"{}"))

        def _answer(self, asked: dict[str, Any]) -> None:
            server.asked += 1
            server.authorizations.add(self.headers.get("Authorization", ""))
            if server.hangs:
                server.awake.wait()
                return
            is_broken = server.asked <= server.broken_for
            code, said = (500, {}) if is_broken else server.answer(urlsplit(self.path).path, asked)
            body = json.dumps(said).encode()
            self.send_response(code)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            """Says nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        listening.daemon_threads = True
        server.url = f"http://127.0.0.1:{listening.server_address[1]}"
        thread = threading.Thread(target=listening.serve_forever, daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.awake.set()
            listening.shutdown()
            thread.join()


def _pairs(values: dict[str, str]) -> list[dict[str, str]]:
    return [{"key": key, "value": value} for key, value in values.items()]
