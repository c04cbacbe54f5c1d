"""Trains the trials of a search in processes beside this one, and stops those that lag. Publishes nothing.

Of Ray Tune it uses the scheduler (`app.training.halving`), and not the Tuner: `Tuner.restore` needs Tune's own directory, which is no
place of `app.storage`, reads pickles from it, and knows nothing of time that was spent or of a torn checkpoint; and a Tuner needs a Ray,
which is what a training without workers does without. What a trial has done is read from our own checkpoints and records
(`app.training.standing`).
"""

import multiprocessing
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, Literal

from app.errors import InputError, RetryableError, RunError
from app.storage import Place, Storage, storage_faults
from app.training.checkpoints import restored_state, write_checkpoint
from app.training.halving import Halving, rungs
from app.training.iterating import DIVERGED, iterated
from app.training.leaving import Leaving
from app.training.search import Search, Trial
from app.training.standing import CHECKPOINTS, Standing, best, known_standing, place_of_trial, write_ended
from app.training.stop import Point, Stop
from app.training.tracking import END_S, LEAVING_S, TENSORBOARD, Tracking, Tracks
from app.training.trainer import Trainer, TrainingTask
from app.training.warm import WarmStart, begun_state

BROKEN = "Internal"
TIME = "timeSeconds"
# How soon a SIGTERM is seen while no trial says anything.
LOOK_S = 0.5
# For a process that has nothing left to do.
JOIN_S = 5.0


@dataclass(frozen=True)
class TrialTracking:
    """Where the figures of each trial are told.

    Attributes:
        run: the id of the run; a trial is known by that and its number.
        parameters: what each trial was told, in their order.
    """

    tracking: Tracking
    run: str
    parameters: tuple[Mapping[str, Any], ...]

    def tracks(self, run: Place, number: int) -> Tracks:
        """What one attempt of a trial tells."""
        return Tracks(self.tracking, run / TENSORBOARD / f"{number:02d}", f"{self.run}-{number:02d}", self.parameters[number - 1])


@dataclass(frozen=True)
class Work:
    """What is to be trained.

    Attributes:
        run: the directory of the run.
        tasks: what each trial trains, in their order.
        stop: the criteria of the run; its time is that of the whole search.
        warm_start: what every trial begins with, if anything.
    """

    storage: Storage
    run: Place
    tasks: tuple[TrainingTask, ...]
    search: Search
    trials: tuple[Trial, ...]
    stop: Stop
    checkpoint_every: int
    tracking: TrialTracking
    warm_start: WarmStart | None = None

    @property
    def trial_stop(self) -> Stop:
        """The criteria that a trial is held against; how much time it may take is for the search to say."""
        return self.stop.without_time


@dataclass(frozen=True)
class Step:
    """What a trial's process says after an iteration; without a point the trial has diverged, and does nothing more.

    Attributes:
        time_s: seconds that the trial has trained.
        stopped_by: the criterion that it has met.
    """

    point: Point | None = None
    time_s: float = 0.0
    stopped_by: str | None = None
    reason: str | None = None


@dataclass(frozen=True)
class Trouble:
    """What ends a trial's process, and with it the attempt: an error does not come through a pipe as it is.

    Attributes:
        is_final: the same input would fail again.
    """

    reason: str
    message: str
    is_final: bool


# What a trial's process is answered after an iteration: another one, the end of the trial, or of the attempt.
Answer = Literal["GoOn", "End", "Leave"]

Tell = Callable[[Mapping[int, Standing], float], None]


def trained_population(work: Work, time_s: float, leaving: Leaving, tell: Tell) -> dict[int, Standing]:
    """Trains the trials that have not ended.

    Args:
        time_s: seconds that earlier attempts have taken.
        tell: is told after each iteration how all trials stand, and the seconds that the search has taken.

    Returns:
        How each trial stands at the end, by its number. Some have not ended where the search was asked to leave, or its time is over;
        of all that has begun there is a checkpoint.

    Raises:
        RetryableError: the storage failed, here or in a trial's process.
        InputError: a trial cannot be trained at all.
    """
    watch = Watch(work, time_s, tell)
    with _workers() as workers, leaving.patience():
        while True:
            while watch.waiting and not leaving.is_asked and not watch.is_late and len(_busy(workers)) < work.search.parallel:
                _idle_worker(workers, work).begin(watch.begun())
            if not _busy(workers):
                break
            for worker in _speaking(_busy(workers)):
                _heard(worker, watch, leaving)
            workers[:] = [worker for worker in workers if not worker.connection.closed]
    return watch.standings


class Watch:
    """What is known of a search while it runs, and what becomes of each trial."""

    def __init__(self, work: Work, time_s: float, tell: Tell) -> None:
        self._work, self._tell = work, tell
        self._began = time.monotonic() - time_s
        self._until: dict[int, float] = {}
        self._halving = Halving(rungs(work.stop, [trial.settings.train_batch_size for trial in work.trials]))
        with storage_faults():
            self.standings = {trial.number: known_standing(work.run, trial) for trial in work.trials}
            for number, standing in self.standings.items():
                self._remember(number, standing)
        self.waiting = [number for number, standing in self.standings.items() if not standing.has_ended]

    def _remember(self, number: int, standing: Standing) -> None:
        """Tells the scheduler what a trial did before. One that lagged at its last point is stopped now: that was not noted in time."""
        is_behind = False
        for point in standing.curve:
            is_behind = self._halving.is_behind(number, point)
        if standing.state == "Finished":
            self._halving.has_finished(number, standing.curve[-1])
        elif is_behind and not standing.has_ended and not self._work.trial_stop.reached(standing.curve, standing.time_s):
            self.standings[number] = replace(standing, state="Stopped")
            write_ended(self._work.run, self.standings[number])

    @property
    def time_s(self) -> float:
        """Seconds that the search has taken, over all attempts."""
        return time.monotonic() - self._began

    @property
    def is_late(self) -> bool:
        """Whether the time of the search is over. It has one iteration at least, as every training has."""
        limit_s = self._work.stop.time_s
        return limit_s is not None and self.time_s >= limit_s and best(self.standings.values()) is not None

    def begun(self) -> int:
        """The trial that begins now. It may go on until it has had its share of the time that is left."""
        rounds = -(-sum(not standing.has_ended for standing in self.standings.values()) // self._work.search.parallel)
        number = self.waiting.pop(0)
        if self._work.stop.time_s is not None:
            self._until[number] = self.time_s + max(0.0, self._work.stop.time_s - self.time_s) / rounds
        self.standings[number] = replace(self.standings[number], state="Training")
        return number

    def goes_on(self, number: int, step: Step) -> bool:
        """Takes note of an iteration of a trial; gives whether it is to do another one."""
        if step.point is None:
            standing = replace(self.standings[number], state="Failed", reason=step.reason)
        else:
            standing = self.standings[number].with_point(step.point, step.time_s)
            is_behind = self._halving.is_behind(number, step.point)
            is_late = number in self._until and self.time_s >= self._until[number]
            stopped_by = step.stopped_by or (TIME if is_late else None)
            if stopped_by:
                self._halving.has_finished(number, step.point)
                standing = replace(standing, state="Finished", stopped_by=stopped_by)
            elif is_behind:
                standing = replace(standing, state="Stopped")
        self.standings[number] = standing
        self._tell(self.standings, self.time_s)
        return not standing.has_ended

    def left(self, number: int) -> None:
        """Takes note that a trial's process has left its checkpoint."""
        if self.standings[number].has_ended:
            with storage_faults():
                write_ended(self._work.run, self.standings[number])

    def broke(self, number: int) -> None:
        """Takes note that a trial's process broke. It is not written down: another attempt may have more room for it."""
        self.standings[number] = replace(self.standings[number], state="Failed", reason=BROKEN)
        self._tell(self.standings, self.time_s)


@dataclass
class _Worker:
    """A process that trains one trial after the other.

    Attributes:
        trial: the one that it trains now.
    """

    process: BaseProcess
    connection: "Connection[object, object]"
    trial: int | None = field(default=None)

    def begin(self, trial: int) -> None:
        """Lets it train a trial."""
        self.trial = trial
        self.connection.send(trial)


@contextmanager
def _workers() -> Iterator[list[_Worker]]:
    """Processes that are ended with the block: those that wait for a trial end by themselves."""
    workers: list[_Worker] = []
    try:
        yield workers
    finally:
        for worker in workers:
            worker.connection.close()
        for worker in workers:
            if worker.trial is None:
                worker.process.join(JOIN_S)
            worker.process.kill()
            worker.process.join()


def _busy(workers: list[_Worker]) -> list[_Worker]:
    return [worker for worker in workers if worker.trial is not None]


def _idle_worker(workers: list[_Worker], work: Work) -> _Worker:
    """One that waits for a trial, or a new one."""
    for worker in workers:
        if worker.trial is None:
            return worker
    # A fork would take over threads' locks and our handlers of signals.
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_train_trials, args=(theirs, work))
    process.start()
    theirs.close()
    workers.append(_Worker(process, ours))
    return workers[-1]


def _speaking(workers: list[_Worker]) -> list[_Worker]:
    """Those that have something to say, within a while."""
    speaking = wait([worker.connection for worker in workers], LOOK_S)
    return [worker for worker in workers if worker.connection in speaking]


def _heard(worker: _Worker, watch: Watch, leaving: Leaving) -> None:
    """Takes what a worker says, and answers it."""
    assert worker.trial is not None
    try:
        said = worker.connection.recv()
        if isinstance(said, Step):
            goes_on = watch.goes_on(worker.trial, said)
            answer: Answer = ("Leave" if leaving.is_asked else "GoOn") if goes_on else "End"
            worker.connection.send(answer)
            return
    except (EOFError, ConnectionError):
        watch.broke(worker.trial)
        worker.connection.close()
        worker.process.join(JOIN_S)
        worker.process.kill()
        return
    if isinstance(said, Trouble):
        raise (InputError if said.is_final else RetryableError)(said.reason, said.message)
    watch.left(worker.trial)
    worker.trial = None


def _train_trials(connection: "Connection[object, object]", work: Work) -> None:
    """What a worker does: trains each trial that it is told, and after each iteration asks whether to do another one."""
    for number in (signal.SIGTERM, signal.SIGINT):
        # Whoever ends the run ends its processes with a word over the connection, so that they leave a checkpoint. They are not ignored:
        # what an environment starts would inherit that, and could not be ended.
        signal.signal(number, lambda *_: None)
    with connection:
        try:
            while True:
                trial = connection.recv()
                assert isinstance(trial, int)
                _train(connection, work, work.trials[trial - 1])
                connection.send(None)
        except RunError as error:
            with suppress(ConnectionError):
                connection.send(Trouble(error.reason, error.message, isinstance(error, InputError)))
        except (EOFError, ConnectionError):
            return


def _train(connection: "Connection[object, object]", work: Work, trial: Trial) -> None:
    """Trains a trial until the answer is another than to go on.

    Raises:
        RunError: the storage failed, or it cannot be trained.
        EOFError, ConnectionError: whoever answers is gone.
    """
    member = _Member(work, trial)
    answer: object = None
    try:
        while answer in (None, "GoOn"):
            connection.send(member.step())
            answer = connection.recv()
        member.write()
    finally:
        member.close(has_ended=answer == "End")


class _Member:
    """One trial in its process; it goes on from its last checkpoint."""

    def __init__(self, work: Work, trial: Trial) -> None:
        self._stop, self._checkpoint_every = work.trial_stop, work.checkpoint_every
        self._checkpoints = place_of_trial(work.run, trial.number) / CHECKPOINTS
        task = work.tasks[trial.number - 1]
        self._trainer = Trainer(task)
        with storage_faults():
            state = restored_state(self._checkpoints, self._trainer.restore)
            self._began = state or begun_state(work.storage, work.warm_start, task, self._trainer)
        self._curve, self._time_s = list(self._began.curve), self._began.time_s
        self._written = len(self._curve)
        self._tracks = work.tracking.tracks(work.run, trial.number)
        self._has_diverged = False

    def step(self) -> Step:
        """One iteration, if no criterion is met yet."""
        if not self._stop.reached(self._curve, self._time_s):
            began = time.monotonic()
            try:
                self._curve.append(iterated(self._trainer, self._curve, self._tracks.told))
            except InputError as error:
                if error.reason != DIVERGED:
                    raise
                # What it has learnt is of no use.
                self._written, self._has_diverged = len(self._curve), True
                return Step(reason=error.reason)
            self._time_s += time.monotonic() - began
        if len(self._curve) % self._checkpoint_every == 0:
            self.write()
        return Step(self._curve[-1], self._time_s, self._stop.reached(self._curve, self._time_s))

    def write(self) -> None:
        """Leaves a checkpoint of all that was done."""
        if len(self._curve) > self._written:
            with storage_faults():
                self._tracks.keep()
                state = replace(self._began, curve=self._curve, time_s=self._time_s)
                write_checkpoint(self._checkpoints, state, self._trainer.save)
            self._written = len(self._curve)

    def close(self, *, has_ended: bool) -> None:
        """Ends the algorithm, and what is told of it.

        Raises:
            RetryableError: the storage failed.
        """
        if has_ended and not self._has_diverged:
            self._tracks.ended_well()
        try:
            with storage_faults():
                self._tracks.close(END_S if has_ended else LEAVING_S)
        finally:
            self._trainer.close()
