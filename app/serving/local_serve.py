"""Ray Serve on this machine, in one process tree, driven by a file with the text of `serveConfigV2`; ends with its parent."""

import argparse
import contextlib
import logging
import os
import queue
import resource
import shutil
import signal
import socket
import stat
import tempfile
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from app.errors import InputError, RunError
from app.report import Report, claimed_stdout

# As the RayService sets them: HAProxy in front of the replicas, the door in them, nothing in the request's path that is not needed.
FAST_PATH = {
    "RAY_SERVE_ENABLE_HA_PROXY": "1",
    "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
    "RAY_SERVE_HAPROXY_NBTHREAD": "1",
    "RAY_SERVE_HAPROXY_RETRY_ON": "conn-failure empty-response",
    "RAY_SERVE_HAPROXY_TIMEOUT_CLIENT_S": "60",
    "RAY_SERVE_HAPROXY_METRICS_ENABLED": "0",
    "RAY_SERVE_HAPROXY_LOG_TARGET": "127.0.0.1:514 sample 1:1000000",
    "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "app.door:middlewares",
    "RAY_worker_niceness": "0",
    "RAY_AUTH_MODE": "disabled",
    "RAY_USAGE_STATS_ENABLED": "0",
}
# HAProxy does not start without 2.5 file descriptors a connection; see `HAPROXY_ENVIRONMENT` in controller/resources.py for the number.
MOST_CONNECTIONS = 7000
DESCRIPTORS_PER_CONNECTION = 2.5
POLL_S = 0.25
ANSWER_TIMEOUT_S = 120
LONGEST_TEMP_DIR = 40


def main(argv: Sequence[str]) -> int:
    """Serves until SIGTERM, SIGINT or the end of a piped stdin; gives the exit code."""
    arguments = _parser().parse_args(argv)
    ending: queue.SimpleQueue[str] = queue.SimpleQueue()
    _end_on_parent(ending)
    with claimed_stdout() as stream:
        report = Report(stream, None)
        try:
            with _ray_and_serve(arguments.host, arguments.port) as client:
                _end_on_signals(ending)  # ray.init puts its own handler there
                _follow(arguments, client, report, ending)
        except RunError as error:
            report.error(error.reason, error.message)
            return error.exit_code
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="app.serve", description="Serves a policy on this machine with Ray Serve.")
    parser.add_argument("--config", required=True, type=Path, metavar="FILE", help="text of serveConfigV2; changes are applied in place")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--host", default="127.0.0.1")
    return parser


def _end_on_signals(ending: "queue.SimpleQueue[str]") -> None:
    # SimpleQueue.put is reentrant, so a handler may call it while this thread waits on the queue.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda signum, _frame: ending.put(signal.Signals(signum).name))


def _end_on_parent(ending: "queue.SimpleQueue[str]") -> None:
    """Watches stdin where it is the pipe of a parent; a terminal or /dev/null says nothing about one."""
    mode = os.fstat(0).st_mode
    if stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode):
        threading.Thread(target=_wait_for_parent, args=(ending,), daemon=True, name="parent").start()


def _wait_for_parent(ending: "queue.SimpleQueue[str]") -> None:
    while os.read(0, 4096):
        pass
    ending.put("parent ended")


@contextlib.contextmanager
def _ray_and_serve(host: str, port: int) -> Iterator[Any]:
    """Starts Ray with Serve for the length of the block; gives Serve's client."""
    _check_port_is_free(host, port)
    base = tempfile.gettempdir()
    temp_dir = Path(tempfile.mkdtemp(prefix="pm-", dir=base if len(base) <= LONGEST_TEMP_DIR else "/tmp"))
    _set_environment(temp_dir)
    import ray
    from ray.serve._private.api import serve_start

    ray.init(
        address="local",
        num_cpus=max(16, os.cpu_count() or 1),
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        _temp_dir=str(temp_dir),
    )
    try:
        # What `serve run CONFIG` does (ray/serve/scripts.py); the public way, the REST API, needs the dashboard.
        yield serve_start(http_options={"host": host, "port": port, "location": "EveryNode"})
    finally:
        ray.shutdown()  # ends Serve's actors and HAProxy with it; serve.shutdown() first would wait 30 s for the controller
        shutil.rmtree(temp_dir, ignore_errors=True)


def _set_environment(temp_dir: Path) -> None:
    """Sets what Ray's processes inherit; a value that is set already is kept."""
    own = {
        **FAST_PATH,
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": str(temp_dir / "haproxy.cfg"),
        "RAY_SERVE_HAPROXY_SOCKET_PATH": str(temp_dir / "haproxy.sock"),
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": str(temp_dir),
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": str(temp_dir / "server-state"),
        "RAY_SERVE_HAPROXY_MAXCONN": str(_most_connections()),
        "RAY_SERVE_HAPROXY_STATS_PORT": str(_free_port()),
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(_free_port()),
    }
    for name, value in own.items():
        os.environ.setdefault(name, value)
    package_root = str(Path(__file__).resolve().parents[2])
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (package_root, os.environ.get("PYTHONPATH"))))


def _most_connections() -> int:
    """How many connections HAProxy may have with the file descriptors of this process."""
    _, descriptors = resource.getrlimit(resource.RLIMIT_NOFILE)
    if descriptors == resource.RLIM_INFINITY:
        return MOST_CONNECTIONS
    return min(MOST_CONNECTIONS, int(descriptors / DESCRIPTORS_PER_CONNECTION) - 100)


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def _check_port_is_free(host: str, port: int) -> None:
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
        except OSError as error:
            why = f"{error.strerror}; end what listens there or choose another --port"
            raise RunError("PortInUse", f"{host}:{port} cannot be listened on: {why}") from error


def _follow(arguments: argparse.Namespace, client: Any, report: Report, ending: "queue.SimpleQueue[str]") -> None:
    """Applies the file, says once that it answers, and applies each change of it until the end is asked for."""
    from ray.serve.schema import ServeDeploySchema

    applied = ""
    while True:
        text = _text(arguments.config)
        if text and text != applied:
            config = _parsed_config(text, arguments.host, arguments.port)
            client.deploy_apps(ServeDeploySchema.model_validate(config))
            if not applied:
                route = config["applications"][0].get("route_prefix", "/").rstrip("/")
                url = f"http://{arguments.host}:{arguments.port}{route}"
                if not _is_answering(url, ending):
                    return
                report.serving(url)
            applied = text
        with contextlib.suppress(queue.Empty):
            ending.get(timeout=POLL_S)
            return


def _text(path: Path) -> str:
    """The file's text; empty between the two steps of one that is replaced, so that it is read again later."""
    try:
        return path.read_text()
    except FileNotFoundError:
        return ""


def _parsed_config(text: str, host: str, port: int) -> dict[str, Any]:
    """The content of `serveConfigV2`, listening where this machine was told to."""
    try:
        config = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise InputError("InvalidConfig", f"--config is not YAML: {error}") from error
    if not isinstance(config, dict) or not config.get("applications"):
        raise InputError("InvalidConfig", "--config must hold applications, as serveConfigV2 does")
    return {**config, "http_options": {**config.get("http_options", {}), "host": host, "port": port}}


def _is_answering(url: str, ending: "queue.SimpleQueue[str]") -> bool:
    """Waits for the first answer; False when the end is asked for meanwhile.

    Raises:
        RunError: there is none in time.
    """
    deadline = time.monotonic() + ANSWER_TIMEOUT_S
    while time.monotonic() < deadline:
        with contextlib.suppress(urllib.error.URLError, ConnectionError, TimeoutError), urllib.request.urlopen(f"{url}/healthz", timeout=2):
            return True
        with contextlib.suppress(queue.Empty):
            ending.get(timeout=POLL_S)
            return False
    raise RunError("NotAnswering", f"{url} did not answer within {ANSWER_TIMEOUT_S} s; Ray's logs say why")
