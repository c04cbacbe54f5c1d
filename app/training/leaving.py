"""How a run leaves when it is asked to: at once while nothing would be lost, else after a checkpoint. It writes nothing itself."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from app.errors import RunError

# A pod is killed 30 s after it was asked to end: this much is for the iteration, the rest for the checkpoint and for Ray's end.
PATIENCE_S = 15


class Terminated(RunError):
    """The run was asked to end, and another attempt goes on from its checkpoint."""

    exit_code = 128 + signal.SIGTERM


class Leaving:
    """Whether this process was asked to end (SIGTERM)."""

    def __init__(self) -> None:
        self.is_asked = False
        self._is_patient = False

    def listen(self) -> None:
        """Takes SIGTERM over from whoever has it. Main thread only."""
        signal.signal(signal.SIGTERM, self._take_note)

    @contextmanager
    def patience(self) -> Iterator[None]:
        """In here a SIGTERM is only noted, and the block ends itself soon; after `PATIENCE_S` it is ended."""
        self._is_patient = True
        try:
            yield
        finally:
            self._is_patient = False

    def _take_note(self, signum: int, frame: FrameType | None) -> None:
        if self.is_asked:
            return
        self.is_asked = True
        if not self._is_patient:
            _end(signum, frame)
        signal.signal(signal.SIGALRM, _end)
        signal.alarm(PATIENCE_S)


def _end(_signum: int, _frame: FrameType | None) -> None:
    """Ends the process with Ray's processes ended on the way out."""
    raise SystemExit(Terminated.exit_code)
