"""The policy bundle: a directory named by the sha256 of its manifest. Writes, reads and verifies; it never parses the model.

policy.onnx      observation handling, forward pass and action decoding in one graph
manifest.json    canonical JSON, written last; names the sha256 of every other file
"""

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from app.storage import Storage, directory_aside, write_aside

FORMAT_VERSION = 1
MODEL_FILE = "policy.onnx"
MANIFEST_FILE = "manifest.json"
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
    with directory_aside(storage.bundles() / digest.removeprefix("sha256:")) as directory:
        write_aside(directory / MODEL_FILE, model)
        write_aside(directory / MANIFEST_FILE, manifest)
    return digest


def read_bundle(directory: Path, digest: str) -> Bundle:
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


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise BundleRefused("Missing", f"there is no {path.name} in {path.parent}") from error
    except OSError as error:
        raise BundleRefused("Unreadable", f"{path.name} cannot be read: {error.strerror}") from error
