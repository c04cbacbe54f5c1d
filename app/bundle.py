"""The policy bundle: a directory named by the sha256 of its manifest. Writes, reads and verifies; it never parses the model.

policy.onnx      observation handling, forward pass and action decoding in one graph
manifest.json    canonical JSON, written last; names the sha256 of every other file
"""

import contextlib
import hashlib
import json
import os
import re
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app.objects import ObjectPlace
from app.storage import Place, Storage, directory_aside, read_bytes, write_aside

FORMAT_VERSION = 1
MODEL_FILE = "policy.onnx"
MANIFEST_FILE = "manifest.json"
# In the cache of a machine that serves from a bucket: the one that serves, the one before, and some to go back to.
BUNDLES_KEPT = 8
DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


class BundleRefused(Exception):
    """A bundle that cannot be trusted or used.

    Args:
        reason: Missing, Unreadable, DigestMismatch, UnsupportedFormat, InvalidModel, NotFinite or GoldenMismatch.
        message: one sentence for the user.
    """

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message


@dataclass(frozen=True)
class Bundle:
    """A bundle whose digests were found right.

    Attributes:
        digest: `sha256:<64 hex>` of the manifest's bytes.
        manifest: its content.
        model: the bytes of policy.onnx.
    """

    digest: str
    manifest: dict[str, Any]
    model: bytes


def canonical_json(content: dict[str, Any]) -> bytes:
    """The one spelling of a JSON object: sorted names, no spaces, ASCII, no NaN; equal content gives an equal digest."""
    return json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False).encode()


def digest_of(content: bytes) -> str:
    """`sha256:<64 hex>` of some bytes."""
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def published_bundle(storage: Storage, facts: dict[str, Any], model: bytes) -> str:
    """Writes a bundle; one that is there already is left as it is.

    Args:
        storage: where to.
        facts: the manifest without `formatVersion` and `files`, which are added here.
        model: the bytes of the ONNX model.

    Returns:
        The bundle's digest.
    """
    manifest = canonical_json({**facts, "formatVersion": FORMAT_VERSION, "files": {MODEL_FILE: digest_of(model)}})
    digest = digest_of(manifest)
    with directory_aside(storage.bundles() / digest.removeprefix("sha256:"), MANIFEST_FILE) as directory:
        write_aside(directory / MODEL_FILE, model)
        write_aside(directory / MANIFEST_FILE, manifest)
    return digest


def read_bundle(directory: Place, digest: str) -> Bundle:
    """Reads a bundle and checks every digest before anything of it is parsed.

    Raises:
        BundleRefused: it is missing, unreadable, or not what its digest says.
    """
    if not DIGEST.fullmatch(digest):
        raise BundleRefused("DigestMismatch", "the digest must be sha256:<64 hex>")
    manifest = _read(directory / MANIFEST_FILE)
    if digest_of(manifest) != digest:
        raise BundleRefused("DigestMismatch", f"{MANIFEST_FILE} is not the one that {digest} names")
    content = json.loads(manifest)
    if content.get("formatVersion") != FORMAT_VERSION:
        raise BundleRefused(
            "UnsupportedFormat", f"formatVersion must be {FORMAT_VERSION}: train again, or serve the bundle with another image"
        )
    model = _read(directory / MODEL_FILE)
    if digest_of(model) != content.get("files", {}).get(MODEL_FILE):
        raise BundleRefused("DigestMismatch", f"{MODEL_FILE} is not the one that the manifest of {digest} names")
    return Bundle(digest, content, model)


def held_bundle(place: Place, digest: str) -> Bundle:
    """A bundle for serving: what lies in a bucket is kept on this machine, and read and verified there from then on.

    Raises:
        BundleRefused: see `read_bundle`.
    """
    if not isinstance(place, ObjectPlace):
        return read_bundle(place, digest)
    kept = Path(tempfile.gettempdir(), "policymodel-bundles", digest.removeprefix("sha256:"))
    with contextlib.suppress(BundleRefused):
        return read_bundle(kept, digest)
    bundle = read_bundle(place, digest)
    with contextlib.suppress(OSError):  # a full disk is no reason not to serve
        _keep(kept, bundle)
    return bundle


def _keep(kept: Path, bundle: Bundle) -> None:
    """Takes a bundle into the cache, and the oldest out. Other replicas of this machine may be doing the same."""
    kept.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    aside = Path(tempfile.mkdtemp(prefix=".", dir=kept.parent))
    (aside / MODEL_FILE).write_bytes(bundle.model)
    (aside / MANIFEST_FILE).write_bytes(canonical_json(bundle.manifest))
    shutil.rmtree(kept, ignore_errors=True)  # it was refused
    with contextlib.suppress(OSError):
        os.rename(aside, kept)
    shutil.rmtree(aside, ignore_errors=True)
    by_age = sorted((path for path in kept.parent.iterdir() if not path.name.startswith(".")), key=lambda path: path.stat().st_mtime)
    for old in by_age[:-BUNDLES_KEPT]:
        shutil.rmtree(old, ignore_errors=True)


def _read(place: Place) -> bytes:
    try:
        content = read_bytes(place)
    except OSError as error:
        raise BundleRefused("Unreadable", f"{place.name} cannot be read: {error.strerror}") from error
    if content is None:
        raise BundleRefused("Missing", f"there is no {place.name} in {str(place).rpartition('/')[0]}")
    return content
