"""An S3 server (moto) in a process of its own, that can be gone for a while and knows which keys it takes.

It runs in .venv-s3 (`make .venv-s3/.installed`), because its client library and our Kubernetes client cannot be installed together.
"""

from __future__ import annotations

import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

PYTHON = Path(__file__).parents[2] / ".venv-s3/bin/python"
BUCKET = "policies"
AUTHORIZATION = "AWS4-HMAC-SHA256 Credential=first/20260101/us-east-1/s3/aws4_request"


@dataclass(frozen=True)
class S3:
    """A server that runs: where, and its switches.

    Attributes:
        url: its endpoint.
        home: directory of its switches and of the credentials file.
    """

    url: str
    home: Path

    @property
    def environment(self) -> dict[str, str]:
        """What a process has to know to find it."""
        return {"AWS_ENDPOINT_URL_S3": self.url, "AWS_SHARED_CREDENTIALS_FILE": str(self.home / "credentials")}

    def take(self, key: str) -> None:
        """From now on this access key is taken, and no other."""
        (self.home / "taken").write_text(key)

    def hand_out(self, key: str) -> None:
        """Puts an access key into the credentials file."""
        (self.home / "credentials").write_text(f"[default]\naws_access_key_id = {key}\naws_secret_access_key = s%cret\n")

    def answer_503(self, is_gone: bool) -> None:
        """Whether every request is answered by 503."""
        (self.home / "gone").write_text("x" if is_gone else "")


@contextmanager
def s3_server(home: Path) -> Iterator[S3]:
    """Starts a server with one bucket."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = S3(f"http://127.0.0.1:{port}", home)
    server.take("first")
    server.hand_out("first")
    server.answer_503(False)
    with subprocess.Popen([PYTHON, __file__, str(port), str(home)], env={}, stderr=subprocess.DEVNULL) as process:
        try:
            _await(server.url, process)
            request = urllib.request.Request(f"{server.url}/{BUCKET}", method="PUT", headers={"Authorization": AUTHORIZATION})
            urllib.request.urlopen(request, timeout=10).close()
            yield server
        finally:
            process.terminate()


def _await(url: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        try:
            urllib.request.urlopen(f"{url}/moto-api/data.json", timeout=5).close()
        except OSError:
            time.sleep(0.1)
        else:
            return
    raise TimeoutError("the S3 server does not start")


def main(port: int, home: Path) -> None:
    """What the process does."""
    from moto.server import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import make_server

    moto = DomainDispatcherApplication(create_backend_app)

    def application(environ, start_response):
        if environ["PATH_INFO"].startswith("/moto-api"):
            return moto(environ, start_response)
        if (home / "gone").read_text():
            start_response("503 Slow Down", [("Content-Length", "0")])
            return [b""]
        if f"Credential={(home / 'taken').read_text()}/" not in environ.get("HTTP_AUTHORIZATION", ""):
            start_response("403 Forbidden", [("Content-Length", "0")])
            return [b""]
        return moto(environ, start_response)

    make_server("127.0.0.1", port, application, threaded=True).serve_forever()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]))
