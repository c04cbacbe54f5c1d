"""Tells RLlib's figures of a run to others: TensorBoard's event files beside the run, an MLflow server. No part of what is learnt.

Ray's own loggers write both (`app.training.loggers`). The event files lie in the run's storage, and fail a run as its checkpoints do. A
tracking server never does: a thread tells it, in order; what it does not take is said once and tried again, and at the end of a run for
`END_S`.
"""

import json
import math
import os
import re
import shutil
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from app.errors import InputError
from app.storage import Place, storage_faults, write_aside
from app.training.leaving import Terminated
from app.training.stop import Point

FIELD = "spec.training.tracking"
TENSORBOARD = "tensorboard"
# No user and password: those would be read by whoever may read the spec.
SERVER = re.compile(r"https?://[^\s/?#@]+(/[^\s?#@]*)?")
# Of RLlib's result, what is no figure of the training.
NO_FIGURES = ("config", "date", "done", "hostname", "node_ip", "pid", "timestamp", "trial_id")
# MLflow's own defaults wait 2 minutes for an answer, and try 7 times with growing pauses; we try again ourselves. The Secret, or
# spec.training.template.env, may say otherwise.
MLFLOW_DEFAULTS = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "10", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "MLFLOW_DISABLE_TELEMETRY": "true"}
TAG = "policymodel"
PAUSE_S = 30.0
# While it is waited for.
CLOSING_PAUSE_S = 1.0
END_S = 30.0
# One that is asked to end has little time.
LEAVING_S = 2.0
# Iterations that are kept for a server that is away, some 10 kB each; the oldest go first.
MOST_WAITING = 1000


@dataclass(frozen=True)
class MLflow:
    """A run of an MLflow server.

    Attributes:
        tracking_uri: of the server.
        experiment: that the run is of; made where it is not there.
        tags: by which the run is known beside its id.
    """

    tracking_uri: str
    experiment: str
    tags: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Tracking:
    """Where the figures of a run are told."""

    tensor_board: bool = False
    mlflow: MLflow | None = None


def parsed_tracking(tracking: Any) -> Tracking:
    """The tracking that `--tracking` asks for; null asks for none.

    Raises:
        InputError: a field is missing or not allowed, or what it needs is not installed.
    """
    if tracking is None:
        return Tracking()
    if not isinstance(tracking, dict) or tracking.keys() - {"tensorBoard", "mlflow"}:
        raise InputError("InvalidConfig", f"{FIELD} must be an object; allowed are tensorBoard and mlflow")
    tensor_board, mlflow = tracking.get("tensorBoard", False), tracking.get("mlflow")
    if not isinstance(tensor_board, bool):
        raise InputError("InvalidConfig", f"{FIELD}.tensorBoard must be true or false")
    return Tracking(tensor_board, None if mlflow is None else _parsed_mlflow(mlflow))


def _parsed_mlflow(mlflow: Any) -> MLflow:
    named = f"{FIELD}.mlflow"
    if not isinstance(mlflow, dict) or mlflow.keys() - {"trackingUri", "experiment", "tags"}:
        raise InputError("InvalidConfig", f"{named} must be an object; allowed are trackingUri, experiment and tags")
    uri, experiment, tags = mlflow.get("trackingUri"), mlflow.get("experiment"), mlflow.get("tags", {})
    if not isinstance(uri, str) or not SERVER.fullmatch(uri):
        raise InputError("InvalidConfig", f"{named}.trackingUri must be http:// or https:// and a host, without user and password")
    if not isinstance(experiment, str) or not experiment:
        raise InputError("InvalidConfig", f"{named}.experiment must be a name")
    if not isinstance(tags, dict) or not all(isinstance(value, str) and "'" not in value for value in tags.values()):
        raise InputError("InvalidConfig", f"{named}.tags must be text by name, without '")
    if find_spec("mlflow") is None:
        raise InputError(
            "InvalidConfig",
            f"{named}: MLflow is not installed where the training runs; name an image with the extra `mlflow` in spec.training.image, "
            "or leave the field out",
        )
    return MLflow(uri, experiment, tags)


class Tracks:
    """What one attempt tells. Without anything that is asked for it does nothing.

    Args:
        events: the directory of its event files.
        run: by which an MLflow server knows it.
        parameters: what it was told.
    """

    def __init__(self, tracking: Tracking, events: Place, run: str, parameters: Mapping[str, Any]) -> None:
        flat = {name: value if isinstance(value, str | bool | int | float) else json.dumps(value) for name, value in parameters.items()}
        self._events = _Events(events, run, flat) if tracking.tensor_board else None
        self._server = _Server(tracking.mlflow, run, flat) if tracking.mlflow else None
        self._digest: str | None = None
        self._has_ended_well = False

    def told(self, result: Mapping[str, Any], point: Point) -> None:
        """Tells of an iteration.

        Args:
            result: RLlib's.
            point: what the run counts, over all attempts. Ray's loggers take `timesteps_total` for the step.
        """
        counted = {"training_iteration": point.iteration, "timesteps_total": point.env_steps}
        figures = {name: value for name, value in result.items() if name not in NO_FIGURES} | counted
        if self._events:
            self._events.told(figures)
        if self._server:
            self._server.told(figures)

    def keep(self) -> None:
        """Brings the event files to the storage: to be called before a checkpoint is written, so that no iteration of it is missing.

        Raises:
            OSError: the storage failed.
        """
        if self._events:
            self._events.keep()

    def ended_well(self, digest: str | None = None) -> None:
        """Notes that it came to its end, and the bundle that it was published as, if it was."""
        self._digest, self._has_ended_well = digest, True

    def close(self, patience_s: float) -> None:
        """Ends it.

        Raises:
            OSError: the storage failed.
        """
        try:
            if self._events:
                self._events.close()
        finally:
            if self._server:
                self._server.close(self._digest, patience_s, has_ended_well=self._has_ended_well)


@contextmanager
def tracked(tracking: Tracking, place: Place, run: str, parameters: Mapping[str, Any]) -> Iterator[Tracks]:
    """What an attempt tells of a run while the block goes on.

    Args:
        place: of the run.
        run: its id.
        parameters: what it was told.

    Raises:
        RetryableError: the storage failed, at the end of a block that went well.
    """
    tracks = Tracks(tracking, place / TENSORBOARD, run, parameters)
    try:
        yield tracks
    except BaseException as error:
        with suppress(OSError):  # what ended the block is what is told
            tracks.close(LEAVING_S if isinstance(error, Terminated | SystemExit | KeyboardInterrupt) else END_S)
        raise
    with storage_faults():
        tracks.close(END_S)


class _Events:
    """TensorBoard's event files, written aside: a disk that is full would let tensorboardX's thread die, and its queue wait for ever.

    A file is whole when it is brought to the storage, and never written to again.
    """

    def __init__(self, place: Place, run: str, parameters: Mapping[str, Any]) -> None:
        self._place = place
        self._directory = Path(tempfile.mkdtemp(prefix="pm-tensorboard-"))
        self._run, self._parameters = run, parameters
        self._logger: Any = None
        self._step = 0

    def told(self, figures: Mapping[str, Any]) -> None:
        self._step = figures["timesteps_total"]
        if self._logger is None:
            from app.training.loggers import EventFiles, Trial

            self._logger, self._trial = EventFiles(), Trial(self._run, self._parameters, self._directory)
            self._logger.begin_file(self._trial, self._step, purges=True)
        self._logger.log_trial_result(figures["training_iteration"], self._trial, figures)

    def keep(self) -> None:
        if self._logger is not None:
            whole = self._files()
            self._logger.begin_file(self._trial, self._step + 1, purges=False)
            self._move(whole)

    def close(self) -> None:
        if self._logger is not None:
            self._logger.log_trial_end(self._trial)  # the parameters are in the last file
            self._move(self._files())
        shutil.rmtree(self._directory, ignore_errors=True)

    def _files(self) -> list[Path]:
        return sorted(self._directory.iterdir())

    def _move(self, files: list[Path]) -> None:
        for file in files:
            write_aside(self._place / file.name, file.read_bytes())
            file.unlink()


class _Server:
    """An MLflow server, told by a thread."""

    def __init__(self, mlflow: MLflow, run: str, parameters: Mapping[str, Any]) -> None:
        self._mlflow, self._run, self._parameters = mlflow, run, parameters
        self._logger: Any = None
        self._outbox = _Outbox(f"{FIELD}.mlflow: {mlflow.tracking_uri}")

    def told(self, figures: Mapping[str, Any]) -> None:
        self._outbox.put(lambda: self._begun().log_trial_result(figures["training_iteration"], self._trial, figures))

    def close(self, digest: str | None, patience_s: float, *, has_ended_well: bool) -> None:
        if digest is None and not self._outbox.has_begun:
            return
        self._outbox.put(lambda: self._end(digest, has_ended_well))
        self._outbox.close(patience_s)

    def _begun(self) -> Any:
        """Ray's logger, once the server knows of the run."""
        if self._logger is None:
            for name, value in MLFLOW_DEFAULTS.items():
                os.environ.setdefault(name, value)
            from app.training.loggers import MLflowRuns, Trial

            tags = {f"{TAG}.{name}": value for name, value in {**self._mlflow.tags, "run": self._run}.items()}
            logger = MLflowRuns(self._mlflow.tracking_uri, experiment_name=self._mlflow.experiment, tags=tags)
            self._trial = Trial(self._run, self._parameters)
            logger.setup()
            logger.log_trial_start(self._trial)
            self._logger = logger
        return self._logger

    def _end(self, digest: str | None, has_ended_well: bool) -> None:
        logger = self._begun()
        if digest:
            logger.tag(self._trial, f"{TAG}.digest", digest)
        logger.log_trial_end(self._trial, failed=not has_ended_well)


class _Outbox:
    """What is to be told, in order, by a thread that begins with the first of it.

    Args:
        name: of the one that is told, for the log.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._waiting: deque[Callable[[], None]] = deque(maxlen=MOST_WAITING)
        self._changed = threading.Condition()
        self._is_closing = self._is_away = False
        self._gives_up = math.inf
        self._untold = 0
        self._thread = threading.Thread(target=self._run, name="tracking", daemon=True)

    @property
    def has_begun(self) -> bool:
        """Whether there ever was something to tell."""
        return self._thread.ident is not None

    def put(self, telling: Callable[[], None]) -> None:
        """Adds something to tell; it raises where it is not taken."""
        with self._changed:
            self._waiting.append(telling)
            self._untold += 1
            self._changed.notify()
        if not self.has_begun:
            self._thread.start()

    def close(self, patience_s: float) -> None:
        """Waits until all is told, so long at most; what is not is given up."""
        with self._changed:
            self._is_closing = True
            self._gives_up = time.monotonic() + patience_s
            self._changed.notify()
        self._thread.join(patience_s)
        if self._untold:
            print(f"{self._name} was not told {self._untold} messages of this attempt: it is away, or slow", file=sys.stderr)

    def _run(self) -> None:
        while telling := self._next():
            while not self._is_told(telling):
                with self._changed:
                    if self._is_closing:
                        self._changed.wait(CLOSING_PAUSE_S)
                    else:
                        self._changed.wait_for(lambda: self._is_closing, PAUSE_S)
                if time.monotonic() > self._gives_up:
                    return

    def _next(self) -> Callable[[], None] | None:
        """What is told next; None when all is, and nothing will come."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._is_closing)
            return self._waiting.popleft() if self._waiting else None

    def _is_told(self, telling: Callable[[], None]) -> bool:
        try:
            telling()
        except Exception as error:  # noqa: BLE001 - whatever the client raises, the training goes on
            if not self._is_away:
                # Its text may quote the server's answer: it goes to the log alone.
                print(f"{self._name} cannot be told, and is tried again every {PAUSE_S:.0f} s: {error}", file=sys.stderr)
            self._is_away = True
            return False
        if self._is_away:
            print(f"{self._name} is told again", file=sys.stderr)
        self._is_away = False
        with self._changed:
            self._untold -= 1
        return True
