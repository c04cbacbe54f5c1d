"""Where things lie: turns a storage URI into places to read and write. The only module that knows URI schemes."""

import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote, urlsplit

from app.errors import InputError, RetryableError
from app.objects import ObjectPlace

# One path segment that can neither climb nor hide: run and evaluation ids become names of files.
SAFE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,252}")

# A directory or file, or objects in a bucket: both are put together with `/`, and the functions here take either.
Place = Path | ObjectPlace


@dataclass(frozen=True)
class Storage:
    """The storage of one PolicyModel.

    Attributes:
        uri: as given, without a slash at its end.
        path: the place it names.
    """

    uri: str
    path: Place

    def bundle_uri(self, digest: str) -> str:
        """The URI of the bundle with this digest (`sha256:<64 hex>`)."""
        return f"{self.uri}/bundles/{digest.removeprefix('sha256:')}"

    def bundles(self) -> Place:
        """Where all bundles are."""
        return self.path / "bundles"

    def evaluations(self) -> Place:
        """Where all records of evaluations are."""
        return self.path / "evaluations"

    def evaluation(self, evaluation_id: str) -> Place:
        """The file of one evaluation's record."""
        return self.evaluations() / f"{safe_name('evaluation.id', evaluation_id)}.json"

    def run(self, run: str) -> Place:
        """Where all of one training run is."""
        return self.path / "runs" / safe_name("run", run)


def open_storage(uri: str) -> Storage:
    """The storage at `uri`; touches nothing.

    Raises:
        InputError: the URI is neither `file:///absolute/path` nor `s3://bucket/path`.
    """
    return Storage(uri.rstrip("/"), place_of(uri))


def place_of(uri: str) -> Place:
    """The place that `uri` names.

    Raises:
        InputError: the URI is neither `file:///absolute/path` nor `s3://bucket/path`.
    """
    parts = urlsplit(uri)
    path = Path(unquote(parts.path))
    if ".." not in path.parts and path.is_absolute():
        if parts.scheme == "file" and not parts.netloc:
            return path
        if parts.scheme == "s3" and parts.netloc and not parts.query and path.name:
            return ObjectPlace(parts.netloc, path.as_posix().strip("/"))
    raise InputError("InvalidStorage", "the storage URI must be file:///<absolute path> or s3://<bucket>/<path>")


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


def read_bytes(place: Place) -> bytes | None:
    """The content of a file, None where there is none."""
    if isinstance(place, ObjectPlace):
        return place.read()
    try:
        return place.read_bytes()
    except FileNotFoundError:
        return None


def write_aside(place: Place, content: bytes) -> None:
    """Writes a file so that readers see all of it or none: aside, flushed to disk, then renamed."""
    if isinstance(place, ObjectPlace):
        place.write(content)
        return
    place.parent.mkdir(parents=True, exist_ok=True)
    aside = place.with_name(f".{place.name}.{os.getpid()}.partial")
    with aside.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    aside.rename(place)


@contextmanager
def directory_aside(final: Place, seal: str) -> Iterator[Path]:
    """An empty directory that becomes `final` when the block ends well, and goes when it does not.

    A directory that is there under that name already is kept: what is named by its content is the same content.

    Args:
        final: where it is to be.
        seal: the file in it without which it counts as not there; of objects it is written last.
    """
    if isinstance(final, ObjectPlace):
        with tempfile.TemporaryDirectory(prefix="pm-aside-") as local:
            yield Path(local)
            if (final / seal).read() is None:
                _upload(Path(local), final, seal)
        return
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


def _upload(directory: Path, place: ObjectPlace, seal: str) -> None:
    files = [path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file()]
    for name in sorted(files, key=lambda name: (name == seal, name)):
        (place / name).write((directory / name).read_bytes())


def _flush(directory: Path) -> None:
    """Brings all files below a directory to the disk: a node that loses its power must not leave a name without content."""
    for path in directory.rglob("*"):
        if path.is_file():
            with path.open("rb") as file:
                os.fsync(file.fileno())


@contextmanager
def local_copy(place: Place) -> Iterator[Path]:
    """A directory of this machine with what lies at a place, which need not be whole; gone after the block unless it lies here."""
    if isinstance(place, Path):
        yield place
        return
    with tempfile.TemporaryDirectory(prefix="pm-copy-") as local:
        for key in place.below():
            content = (place / key).read()
            path = Path(local, key)
            if content is not None and path.resolve().is_relative_to(local):
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
        yield Path(local)


def children(place: Place) -> list[str]:
    """The names of what lies in a directory, sorted; none where there is no such directory."""
    if isinstance(place, ObjectPlace):
        return sorted({key.partition("/")[0] for key in place.below()})
    return sorted(path.name for path in place.iterdir()) if place.is_dir() else []


def remove(place: Place, seal: str | None = None) -> None:
    """Removes a directory, its seal first, if it has one: whatever stops it half-way, what is left counts as not there."""
    if isinstance(place, ObjectPlace):
        place.remove(sorted(place.below(), key=lambda key: (key != seal, key)))
        return
    if seal:
        (place / seal).unlink(missing_ok=True)
    shutil.rmtree(place, ignore_errors=True)


def remove_file(directory: Place, name: str) -> None:
    """Removes a file of a directory, if it is there."""
    if isinstance(directory, ObjectPlace):
        directory.remove([name])
        return
    (directory / name).unlink(missing_ok=True)


def read_json(place: Place) -> dict[str, Any] | None:
    """The JSON object in a file, None where there is no file or it is no JSON object (it is then written again)."""
    content = read_bytes(place)
    if content is None:
        return None
    try:
        parsed = json.loads(content)
    except ValueError:
        return None
    return parsed if isinstance(parsed, dict) else None
