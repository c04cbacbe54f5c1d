"""Where things lie: turns a storage URI into places to read and write. The only module that knows URI schemes."""

import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from app.errors import InputError, RetryableError

# One path segment that can neither climb nor hide: run and evaluation ids become names of files.
SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,252}")


@dataclass(frozen=True)
class Storage:
    """The storage of one PolicyModel.

    Attributes:
        uri: as given, without a slash at its end.
        path: the directory it names.
    """

    uri: str
    path: Path

    def bundle_uri(self, digest: str) -> str:
        """The URI of the bundle with this digest (`sha256:<64 hex>`)."""
        return f"{self.uri}/bundles/{digest.removeprefix('sha256:')}"

    def bundles(self) -> Path:
        """The directory of all bundles."""
        return self.path / "bundles"

    def evaluation(self, evaluation_id: str) -> Path:
        """The file of one evaluation's record."""
        return self.path / "evaluations" / f"{safe_name('evaluation.id', evaluation_id)}.json"

    def run(self, run: str) -> Path:
        """The directory of one training run."""
        return self.path / "runs" / safe_name("run", run)


def open_storage(uri: str) -> Storage:
    """The storage at `uri`; touches nothing.

    Raises:
        InputError: the URI is not `file:///absolute/path`.
    """
    return Storage(uri.rstrip("/"), local_path(uri))


def local_path(uri: str) -> Path:
    """The directory that `uri` names.

    Raises:
        InputError: the URI is not `file:///absolute/path`.
    """
    parts = urlsplit(uri)
    path = Path(unquote(parts.path))
    if parts.scheme != "file" or parts.netloc or not path.is_absolute() or ".." in path.parts:
        raise InputError("InvalidStorage", "the storage URI must be file:///<absolute path>")
    return path


def file_uri(path: Path) -> str:
    """The URI of a local directory."""
    return f"file://{quote(str(path.resolve()))}"


def safe_name(field: str, name: str) -> str:
    """`name` when it is one plain path segment.

    Raises:
        InputError: it is not.
    """
    if not SAFE_NAME.fullmatch(name):
        raise InputError("InvalidArguments", f"{field} must be letters, digits, '.', '_' and '-', at most 253 of them")
    return name


@contextmanager
def storage_faults() -> Iterator[None]:
    """Says an OSError of the storage as what it is: something that a later try may not meet.

    Raises:
        RetryableError: the storage failed.
    """
    try:
        yield
    except OSError as error:
        raise RetryableError("StorageUnavailable", f"storage: {error.strerror or error} ({error.filename})") from error


def write_aside(path: Path, content: bytes) -> None:
    """Writes a file so that readers see all of it or none: aside, flushed to disk, then renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}.partial")
    with aside.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    aside.rename(path)


@contextmanager
def directory_aside(final: Path) -> Iterator[Path]:
    """An empty directory beside `final` that takes its name when the block ends well, and goes when it does not.

    A directory that is there under that name already is kept: what is named by its content is the same content.
    """
    aside = final.with_name(f".{final.name}.partial")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        yield aside
        _flush(aside)
        if not final.exists():
            aside.rename(final)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _flush(directory: Path) -> None:
    """Brings all files below a directory to the disk: a node that loses its power must not leave a name without content."""
    for path in directory.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())


def read_json(path: Path) -> dict[str, Any] | None:
    """The JSON object in a file, None where there is no file or it is no JSON object (it is then written again)."""
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except ValueError:
        return None
    return content if isinstance(content, dict) else None
