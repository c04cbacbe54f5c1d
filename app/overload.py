"""Tells when a replica has more to do than it can: by how much work waits in its event loop."""

import asyncio
import time

from app.problem import overloaded

# A turn of the event loop with more work makes everybody wait so long; who comes later in it is better told to come again.
LONGEST_TURN_S = 0.25


class Turnstile:
    """Admits requests for `LONGEST_TURN_S` of work in each turn of the event loop.

    A turn serves whoever was ready when it began, one after another. So the work since the turn's first request is what the present
    one has waited behind, and with so many clients that a turn takes too long, each turn does as much work as before and refuses
    the rest, which costs little. Work is the processor time of this thread: a replica that is not given a processor for a while, because
    the machine is busy with others, has nobody to refuse for that.
    """

    def __init__(self) -> None:
        self._turn_began: float | None = None

    def enter(self) -> None:
        """Lets one more request be served in this turn.

        Raises:
            Problem: 503, the turn has done its work.
        """
        if self._turn_began is None:
            self._turn_began = time.thread_time()
            asyncio.get_running_loop().call_soon(self._next_turn)
        elif time.thread_time() - self._turn_began >= LONGEST_TURN_S:
            raise overloaded()

    def _next_turn(self) -> None:
        self._turn_began = None
