"""Where `report` finds what the status does not hold: files of `policymodel run`, or the logs of pods. Decides nothing."""

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

NO_CURVE = "Learning curve: the bundle's manifest has it; from here only the logs of the training's pods could tell it, and they are gone."
NO_BEGINNING = "Learning curve: it begins at iteration {}, because the log of what was before is gone; the bundle's manifest has all of it."
NO_RETURNS = "Evaluation: its returns, one by one, lie in the storage, which cannot be read from here, and no log of its pod tells them."


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
    manifest = _read(bundle / "manifest.json")
    curve = tuple((float(point[1]), float(point[2])) for point in manifest.get("curve", []) if point[2] is not None)
    record = _read(bundle.parent.parent / "evaluations" / f"{evaluation.id}.json") if evaluation else {}
    return Material(curve, tuple(float(row["return"]) for row in record.get("rows", [])), began_with=manifest.get("parent"))


def of_logs(logs: Iterable[bytes], revision: Revision) -> Material:
    """What the logs of a revision's pods tell: a line of JSON an iteration, and the result.

    Args:
        logs: oldest first.
    """
    said = [words.parsed(line) for log in logs for line in log.decode(errors="replace").splitlines()]
    points = [word["progress"] for word in said if isinstance(word.get("progress"), dict)]
    first = points[0].get("iteration") if points else None
    if revision.found_by:
        # Each line of a search tells of all trials.
        points = [found for point in points for found in _trials(point) if found.get("trial") == revision.found_by.trial]
    curve, returns = _curve(points), _returns(said, revision)
    missing = () if curve else (NO_CURVE,)
    if curve and isinstance(first, int) and first > 1:
        missing = (NO_BEGINNING.format(first),)
    return Material(curve, returns, missing=missing if returns else (*missing, NO_RETURNS))


def _curve(points: Iterable[dict[str, Any]]) -> tuple[tuple[float, float], ...]:
    told: list[tuple[float, float]] = []
    for point in points:
        match point:
            case {"envSteps": int() | float() as steps, "episodeReturnMean": mean} if words.is_number(steps):
                # A new attempt goes on from its checkpoint, and what was beyond it is trained again.
                while told and told[-1][0] >= steps:
                    told.pop()
                if words.is_number(mean):
                    told.append((float(steps), float(mean)))
    return tuple(told)


def _returns(said: Iterable[Json], revision: Revision) -> tuple[float, ...]:
    """Those of the evaluation that the gate has judged, where a result tells them."""
    for word in said:
        match word.get("result"):
            case {"digest": revision.digest, "evaluation": {"id": str(id_), "returns": list(told)}} if all(map(words.is_number, told)):
                if revision.evaluation and id_ == revision.evaluation.id:
                    return tuple(float(one) for one in told)
    return ()


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
