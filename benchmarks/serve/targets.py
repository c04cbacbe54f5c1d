"""What is measured against what: how each server is started, and what one request to it is."""

import json
import os
import subprocess
import sys
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from app.storage import file_uri
from benchmarks.serve.load import Request
from benchmarks.serve.processes import Launch, NotStarted, free_port, free_range

ROOT = Path(__file__).parents[2]
SERVERS = Path(__file__).parent / "servers"
ROUTE = "/cartpole-ppo"
OBSERVATION = [0.02, 0.01, -0.03, 0.04]
# Ray's own ranges begin at 30000 and 40000; those who measure beside a Ray of others' want another.
REPLICA_PORTS = 31000

OWN_ENVIRONMENT = {
    "PYTHONPATH": str(ROOT),
    "PYTHONDONTWRITEBYTECODE": "",  # else our modules are compiled at each start, and those that pip has installed are not
    "RAY_AUTH_MODE": "disabled",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_worker_niceness": "0",  # as in what we render; Ray's default of 15 lets the generator take the cores from the workers
}


@dataclass(frozen=True)
class World:
    """What all servers of one run share.

    Attributes:
        directory: for configurations and logs; its path is short, because Ray puts sockets below it.
        uri, digest: of the bundle that every server but the tutorial serves.
        cache: where the environments of servers lie.
        python: of the environment that our server runs in, as in its image: Serve imports pandas and more where it finds them.
    """

    directory: Path
    uri: str
    digest: str
    cache: Path
    python: str = sys.executable

    @property
    def model(self) -> str:
        """The path of the bundle's ONNX model."""
        return f"{self.uri.removeprefix('file://')}/policy.onnx"

    @property
    def checkpoint(self) -> Path:
        """RLlib's checkpoint for the tutorial."""
        return self.directory / "checkpoint"


def trained_world(directory: Path, cache: Path, with_checkpoint: bool) -> World:
    """Trains the policy that is served, and for the tutorial its checkpoint.

    Raises:
        NotStarted: a training failed.
    """
    training = ["-m", "app.train", "--storage", file_uri(directory / "storage"), "--run", "bench"]
    said = _output([*training, "--environment", '{"id": "CartPole-v1"}', "--stop", '{"iterations": 2}'])
    result = json.loads(said.splitlines()[-1])["result"]
    python = installed_python(cache / "serve", _serve_requirements(), ROOT / "constraints.txt")
    world = World(directory, result["uri"], result["digest"], cache, python)
    if with_checkpoint:
        _output(["-m", "benchmarks.serve.servers.checkpoint", str(world.checkpoint), str(directory / "c")])
    return world


def _output(arguments: list[str]) -> str:
    environment = {**os.environ, **OWN_ENVIRONMENT}
    done = subprocess.run([sys.executable, *arguments], check=False, capture_output=True, text=True, env=environment, timeout=300)
    if done.returncode:
        raise NotStarted(f"{' '.join(arguments)} failed:\n{done.stdout[-500:]}{done.stderr[-2000:]}")
    return done.stdout


def ours(world: World, name: str, replicas: int, **rollout: object) -> Launch:
    """Our server as local mode starts it; `rollout` goes into its `user_config`."""
    deployment = {
        "name": "ServePPOModel",
        "num_replicas": replicas,
        "user_config": {
            "route": ROUTE,
            "outOfBounds": "Answer",
            "serving": {"uri": world.uri, "digest": world.digest, "revision": 1},
            **rollout,
        },
    }
    return _by_local_serve(world, name, {"import_path": "app.serve:build", "deployments": [deployment]})


def bare(world: World, name: str) -> Launch:
    """A replica that does nothing, started as ours is."""
    return _by_local_serve(world, name, {"import_path": "benchmarks.serve.servers.bare:build"})


def _by_local_serve(world: World, name: str, application: dict[str, object]) -> Launch:
    config = {
        "proxy_location": "EveryNode",
        "logging_config": {"encoding": "JSON", "enable_access_log": False},
        "applications": [{"name": name, "route_prefix": ROUTE, **application}],
    }
    file = world.directory / f"{name}.yaml"
    file.write_text(json.dumps(config))  # JSON is YAML
    port, replica_port = free_port(), free_range(REPLICA_PORTS, 20)
    ports = {"RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT": replica_port, "RAY_SERVE_DIRECT_INGRESS_MAX_HTTP_PORT": replica_port + 19}
    command = [world.python, "-m", "app.serve", "--config", str(file), "--port", str(port)]
    return Launch(command, port, {**OWN_ENVIRONMENT, **{key: str(value) for key, value in ports.items()}}, replica_port)


def _tutorial(world: World, max_ongoing_requests: int) -> Launch:
    """The tutorial's server, with Ray's default niceness; its replica takes at most `max_ongoing_requests` at once.

    The tutorial leaves that at Serve's default of 5: a client beyond them waits for a proxy that asks again at longer and longer intervals.
    """
    port = free_port()
    arguments = [str(port), str(world.checkpoint), str(world.directory / f"t{max_ongoing_requests}"), str(max_ongoing_requests)]
    command = [sys.executable, "-m", "benchmarks.serve.servers.tutorial", *arguments]
    return Launch(command, port, {**OWN_ENVIRONMENT, "RAY_worker_niceness": "15"})


def _asgi(world: World) -> Launch:
    port = free_port()
    return Launch([sys.executable, "-m", "benchmarks.serve.servers.asgi", str(port), world.uri, world.digest], port, OWN_ENVIRONMENT)


def _uvicorn(module: str) -> Callable[[World], Launch]:
    def launch(world: World) -> Launch:
        port = free_port()
        app = f"benchmarks.serve.servers.{module}:app"
        command = [sys.executable, "-m", "uvicorn", app, "--port", str(port), "--no-access-log", "--log-level", "warning"]
        return Launch(command, port, {**OWN_ENVIRONMENT, "BENCH_MODEL": world.model})

    return launch


def _bentoml(world: World) -> Launch:
    port = free_port()
    program = str(world.cache / "bentoml/bin/bentoml")
    command = [program, "serve", "bentoml_service:Policy", "--host", "127.0.0.1", "--port", str(port), "--working-dir", str(SERVERS)]
    variables = {"BENCH_MODEL": world.model, "BENTOML_HOME": str(world.directory / "bentoml"), "BENTOML_DO_NOT_TRACK": "True"}
    return Launch(command, port, {**variables, "PYTHONPATH": ""})


def _litserve(world: World) -> Launch:
    port = free_port()
    command = [str(world.cache / "litserve/bin/python"), str(SERVERS / "litserve_server.py"), str(port)]
    return Launch(command, port, {"BENCH_MODEL": world.model, "PYTHONPATH": ""})


def _mlserver(world: World) -> Launch:
    port, folder = free_port(), world.directory / "mlserver"
    folder.mkdir()
    # In its own process: its pool of workers, which is the default, costs more than a small policy.
    settings = {"host": "127.0.0.1", "http_port": port, "grpc_port": free_port(), "metrics_port": free_port(), "parallel_workers": 0}
    (folder / "settings.json").write_text(json.dumps({**settings, "debug": False}))
    (folder / "model-settings.json").write_text(json.dumps({"name": "policy", "implementation": "mlserver_runtime.Policy"}))
    command = [str(world.cache / "mlserver/bin/mlserver"), "start", str(folder)]
    return Launch(command, port, {"BENCH_MODEL": world.model, "PYTHONPATH": str(SERVERS)})


def own_body(batch: int) -> bytes:
    """The body of one request to our server, and for one observation to most others."""
    content = {"observation": OBSERVATION} if batch == 1 else {"observations": [OBSERVATION] * batch}
    return json.dumps(content).encode()


def _open_inference_body(batch: int) -> bytes:
    tensor = {"name": "observation", "shape": [batch, 4], "datatype": "FP32", "data": OBSERVATION * batch}
    return json.dumps({"inputs": [tensor]}).encode()


@dataclass(frozen=True)
class Target:
    """One thing that is measured.

    Attributes:
        server: name of the process that it is asked of; several targets may share one.
        launch: how that process is started.
        path: of a request.
        asks_replica: whether it is asked at the replica's own port, without a proxy.
        has_batches: whether one request may hold many observations.
        package: what has to be installed for it into an environment of its own; empty where ours holds it.
    """

    name: str
    server: str
    launch: Callable[[World], Launch]
    path: str = "/"
    body: Callable[[int], bytes] = own_body
    asks_replica: bool = False
    has_batches: bool = False
    package: str = ""

    def request(self, launch: Launch, batch: int) -> Request:
        """One request to the started server."""
        return Request(launch.replica_port if self.asks_replica else launch.port, self.path, self.body(batch))


TARGETS = {
    target.name: target
    for target in (
        Target("ours", "ours", lambda world: ours(world, "ours", 1), ROUTE, has_batches=True),
        Target("ours-port", "ours", lambda world: ours(world, "ours", 1), ROUTE, asks_replica=True),
        Target("ours-2", "ours-2", lambda world: ours(world, "ours-2", 2), ROUTE),
        Target("tutorial", "tutorial", lambda world: _tutorial(world, 5), ROUTE),
        Target("tutorial-100", "tutorial-100", lambda world: _tutorial(world, 100), ROUTE),
        Target("asgi", "asgi", _asgi, has_batches=True),
        Target("starlette", "starlette", _uvicorn("starlette_app")),
        Target("fastapi", "fastapi", _uvicorn("fastapi_app")),
        Target("bentoml", "bentoml", _bentoml, "/act", package="bentoml"),
        Target("litserve", "litserve", _litserve, "/predict", package="litserve"),
        Target("mlserver", "mlserver", _mlserver, "/v2/models/policy/infer", _open_inference_body, package="mlserver"),
    )
}


def installed_version(target: Target, cache: Path) -> str:
    """The version of the target's package in its own environment, which is made where it is missing.

    Raises:
        NotStarted: it cannot be installed here.
    """
    python = installed_python(cache / target.name, [target.package, "onnxruntime", "numpy"])
    program = f"import importlib.metadata; print(importlib.metadata.version({target.package!r}))"
    return subprocess.run([python, "-c", program], check=True, capture_output=True, text=True).stdout.strip()


def installed_python(folder: Path, requirements: Sequence[str], constraints: Path | None = None) -> str:
    """The Python of an environment with what pip is asked for, which is made anew when that, or the text of `constraints`, changes.

    Raises:
        NotStarted: it cannot be installed here.
    """
    python, mark = str(folder / "bin/python"), folder / "installed"
    asked = "\n".join([*requirements, *([constraints.read_text()] if constraints else [])])
    within = ["-c", str(constraints)] if constraints else []
    if not mark.exists() or mark.read_text() != asked:
        for command in (
            [sys.executable, "-m", "venv", "--clear", str(folder)],
            [python, "-m", "pip", "install", "-q", "--disable-pip-version-check", *within, *requirements],
        ):
            done = subprocess.run(command, check=False, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": ""})
            if done.returncode:
                raise NotStarted(f"{folder.name} cannot be installed: {done.stderr[-500:]}")
        mark.write_text(asked)
    return python


def _serve_requirements() -> list[str]:
    """What the image of the server is installed from."""
    extras: dict[str, list[str]] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    return extras["serve"]
