"""Where `report` finds what the status does not hold: files of `policymodel run`, or the log of the training's pod. Decides nothing."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from controller import words
from controller.model import Revision
from controller.spec import Json
from controller.verbs.api import EXIT_NOT_FOUND, ApiTrouble
from controller.verbs.report import Material

NO_CURVE = "Learning curve: the bundle's manifest has it; from here only the log of the training's pod could tell it, and that is gone."
NO_RETURNS = "Evaluation: its returns, one by one, lie in the storage, which cannot be read from here."


def local_document(state: Path, namespace: str, name: str) -> Json:
    """A PolicyModel of `policymodel run`, as far as its state tells it.

    Raises:
        ApiTrouble: there is none.
    """
    path = state / namespace / name / "local" / "status.json"
    try:
        status = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ApiTrouble(f"--state: {path} cannot be read: {type(error).__name__}", EXIT_NOT_FOUND) from error
    metadata = {"name": name, "namespace": namespace, "generation": status.get("observedGeneration", 1)}
    manifests = [_read(_bundle(revision["uri"]) / "manifest.json") for revision in status.get("revisions", [])]
    environment: Json = next((manifest["environment"] for manifest in reversed(manifests) if "environment" in manifest), {})
    return {"metadata": metadata, "spec": {"environment": environment}, "status": status}


def of_files(revision: Revision) -> Material:
    """What the bundle and its evaluation on this machine tell."""
    bundle, evaluation = _bundle(revision.uri), revision.evaluation
    curve = tuple((float(point[1]), float(point[2])) for point in _read(bundle / "manifest.json").get("curve", []) if point[2] is not None)
    record = _read(bundle.parent.parent / "evaluations" / f"{evaluation.id}.json") if evaluation else {}
    return Material(curve, tuple(float(row["return"]) for row in record.get("rows", [])))


def of_log(pieces: Iterable[bytes], trial: int | None = None) -> Material:
    """What the log of a training tells: a line of JSON an iteration.

    Args:
        trial: whose curve it is, where the training was a search: each line tells of all trials then.
    """
    lines = b"".join(pieces).decode(errors="replace").splitlines()
    points = [found for line in lines for found in [words.parsed(line).get("progress")] if isinstance(found, dict)]
    if trial is not None:
        points = [found for point in points for found in _trials(point) if found.get("trial") == trial]
    told = [
        (float(point["envSteps"]), float(point["episodeReturnMean"]))
        for point in points
        if all(isinstance(point.get(name), int | float) for name in ("envSteps", "episodeReturnMean"))
    ]
    # Lines that are about other trials say the same of this one again.
    curve = tuple(dict.fromkeys(told)) if trial is not None else tuple(told)
    return Material(curve, missing=(NO_RETURNS,) if curve else (NO_CURVE, NO_RETURNS))


def _trials(progress: dict[str, Any]) -> list[dict[str, Any]]:
    match progress.get("search"):
        case {"trials": list(trials)}:
            return [trial for trial in trials if isinstance(trial, dict)]
    return []


def with_reason(found: Material, why: str) -> Material:
    return replace(found, missing=(*found.missing, why))


def _bundle(uri: str) -> Path:
    return Path(unquote(urlsplit(uri).path))


def _read(path: Path) -> dict[str, Any]:
    """A file of JSON; nothing where there is none."""
    try:
        return words.parsed(path.read_text())
    except OSError:
        return {}
