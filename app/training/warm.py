"""Where a training begins with what another one has learnt: reads and writes weights and filters as plain arrays, never as pickles.

Weights lie beside the run that made them (`runs/<run>/weights.npz`), because a bundle holds what acts, and not the critic.
"""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from zipfile import BadZipFile

import numpy as np

from app.bundle import BundleRefused, read_bundle
from app.errors import InputError
from app.spaces import Array, described_space
from app.storage import Storage, read_bytes, safe_name, write_aside
from app.training.checkpoints import RunState
from app.training.trainer import Trainer, TrainingTask

FIELD = "spec.training.warmStart"
WEIGHTS_FILE = "weights.npz"
# What a manifest does not say where it is so.
UNSAID = {"use_lstm": False, "free_log_std": False, "observation_filter": "None", "reward_scale": 1.0}


@dataclass(frozen=True)
class WarmStart:
    """The published run to begin with."""

    run: str
    digest: str


def parsed_warm_start(warm_start: Any) -> WarmStart | None:
    """The warm start that `--warm-start` asks for, None where it asks for none.

    Raises:
        InputError: a field is missing or not allowed.
    """
    match warm_start:
        case None:
            return None
        case {"run": str(run), "digest": str(digest)}:
            return WarmStart(safe_name("run", run), digest)
    raise InputError("InvalidArguments", f"{FIELD}: run and digest have to be given")


def write_weights(storage: Storage, run: str, weights: Mapping[str, Array]) -> None:
    """Keeps what a run has learnt."""
    file = io.BytesIO()
    # Their names have slashes, which keyword arguments may have, too.
    np.savez(file, **weights)  # type: ignore[arg-type]
    write_aside(storage.run(run) / WEIGHTS_FILE, file.getvalue())


def warm_weights(storage: Storage, start: WarmStart, tasks: Sequence[TrainingTask]) -> dict[str, Array]:
    """What a published run has learnt, if every training that these tasks ask for can go on from it.

    Raises:
        InputError: WarmStartImpossible: what differs, or that it is not there any more.
        OSError: the storage failed.
    """
    try:
        manifest = read_bundle(storage.bundles() / start.digest.removeprefix("sha256:"), start.digest).manifest
    except BundleRefused as refused:
        raise _impossible(f"the bundle {start.digest} is not usable: {refused.message}") from refused
    for task in tasks:
        _check(task, manifest)
    content = read_bytes(storage.run(start.run) / WEIGHTS_FILE)
    if content is None:
        raise _impossible("the weights of that revision are not kept, because an older version trained it")
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as file:
            return dict(file)
    except (ValueError, BadZipFile) as error:
        raise _impossible("the weights of that revision cannot be read") from error


def begun_state(storage: Storage, start: WarmStart | None, task: TrainingTask, trainer: Trainer) -> RunState:
    """The state of a training that has no checkpoint to go on from; where it is asked to, its trainer takes the weights of a run over.

    Raises:
        InputError: WarmStartImpossible.
        OSError: the storage failed.
    """
    if start is None:
        return RunState([], 0.0)
    trainer.begin_with(warm_weights(storage, start, [task]))
    return RunState([], 0.0, start.digest)


def _check(task: TrainingTask, manifest: Mapping[str, Any]) -> None:
    encoding = task.encoding
    for role, space in (("observation", encoding.observation_space), ("action", encoding.action_space)):
        if manifest[f"{role}Space"] != described_space(space):
            raise _impossible(f"the {role} space of that revision is another one than that of spec.environment")
    filters = "MeanStd" if task.settings.filters_observations else "None"
    made_with = UNSAID | manifest["config"]
    asked = UNSAID | task.model_config() | {"observation_filter": filters, "reward_scale": task.settings.reward_scale}
    for name, value in asked.items():
        if made_with.get(name) != value:
            raise _impossible(f"spec.training.config: {name} is {value} here and {made_with.get(name)} in that revision")


def _impossible(why: str) -> InputError:
    return InputError("WarmStartImpossible", f"{FIELD}: {why}. Choose another revision, or None")
