"""Tells when a replica has more to do than it can: by how much work waits in its event loop, and in the line of large requests."""

import asyncio
import time
from collections.abc import Callable
from typing import TypeVar

from app.serving.problem import overloaded

# A turn of the event loop with more work makes everybody wait so long; who comes later in it is better told to come again.
LONGEST_TURN_S = 0.25
# And so much work may stand in the line of large requests.
LONGEST_LINE_S = 0.25
# From this size of a body on, its work (a millisecond and more) is long beside that of taking a connection.
LARGE_BYTES = 16 * 1024
# uvloop takes one connection a turn, and four turns later its request is read. So after as many quiet turns nobody waits at the door.
QUIET_TURNS = 4
# Those who come may hold up a large request for so many times what the one before it took: large ones keep a quarter of the processor.
MOST_FOR_THE_DOOR = 3
# What a byte of a large body costs, until the first is answered: that of 4,096 observations of CartPole takes some 6 ms.
FIRST_WORK_S_PER_BYTE = 6e-8

Work = TypeVar("Work")


class Turnstile:
    """Admits requests for `LONGEST_TURN_S` of work in each turn of the event loop.

    A turn serves whoever was ready when it began, one after another. So the work since the turn's first request is what the present
    one has waited behind, and with so many clients that a turn takes too long, each turn does as much work as before and refuses
    the rest, which costs little. Work is the processor time of this thread: a replica that is not given a processor for a while, because
    the machine is busy with others, has nobody to refuse for that.

    Attributes:
        turns: how many turns had a request in them.
        left_out_s: work that was none of the requests', since the beginning.
    """

    def __init__(self) -> None:
        self.turns = 0
        self.left_out_s = 0.0
        self._turn_began: float | None = None

    def enter(self) -> None:
        """Lets one more request be served in this turn.

        Raises:
            Problem: 503, the turn has done its work.
        """
        if self._turn_began is None:
            self.turns += 1
            self._turn_began = time.thread_time()
            asyncio.get_running_loop().call_soon(self._next_turn)
        elif time.thread_time() - self._turn_began >= LONGEST_TURN_S:
            raise overloaded()

    def leave_out(self, work_s: float) -> None:
        """Counts so much work of the present request as none: what a candidate took that will answer nobody again is no crowd."""
        self.left_out_s += work_s
        if self._turn_began is not None:
            self._turn_began += work_s

    def _next_turn(self) -> None:
        self._turn_began = None


class Line:
    """Serves large requests one after another, and refuses those who would stand behind more than `LONGEST_LINE_S` of work.

    A turn of the event loop takes one new connection. Were each request served in the turn that it is read in, a crowd that comes over
    new connections would wait where nobody sees it, in the kernel's queue of connections, until that is full and they fail. So before each
    large request the loop is left to whoever waits at the door, for a time that depends on what the large request before it took.

    Args:
        turnstile: what all requests pass.
    """

    def __init__(self, turnstile: Turnstile) -> None:
        self._turnstile = turnstile
        self._lock = asyncio.Lock()  # serves in the order of arrival
        self._waiting_bytes = 0
        self._work_s_per_byte = FIRST_WORK_S_PER_BYTE
        self._last_work_s = 0.001

    @property
    def is_full(self) -> bool:
        """Whether one more large request would be refused."""
        return self._waiting_bytes * self._work_s_per_byte >= LONGEST_LINE_S

    async def served(self, size: int, work: Callable[[], Work]) -> Work:
        """Waits for the turn of a request; gives what its work gives, and raises what that raises.

        Args:
            size: bytes of its body.

        Raises:
            Problem: 503, the line is full.
        """
        if self.is_full:
            raise overloaded()
        self._waiting_bytes += size
        try:
            async with self._lock:
                await self._door_is_quiet()
                began, left_out_s = time.thread_time(), self._turnstile.left_out_s
                try:
                    return work()
                finally:
                    self._last_work_s = time.thread_time() - began - (self._turnstile.left_out_s - left_out_s)
                    self._work_s_per_byte += (self._last_work_s / size - self._work_s_per_byte) / 8
        finally:
            self._waiting_bytes -= size

    async def _door_is_quiet(self) -> None:
        """Waits until nobody has come for some turns, but not for ever."""
        until = time.thread_time() + MOST_FOR_THE_DOOR * self._last_work_s
        quiet_turns, seen = 0, self._turnstile.turns
        while quiet_turns < QUIET_TURNS and time.thread_time() < until:
            await asyncio.sleep(0)
            quiet_turns = quiet_turns + 1 if self._turnstile.turns == seen else 0
            seen = self._turnstile.turns
