"""Tells when a replica has more to do than it can: by how late its event loop is. Knows nothing of HTTP."""

import asyncio
import time

# A turn of the event loop that takes longer makes everybody wait so long; who comes later in it is better told to come again.
LONGEST_TURN_S = 0.25


class Turnstile:
    """Admits requests for `LONGEST_TURN_S` of each turn of the event loop.

    A turn serves whoever was ready when it began, one after another. So the time since the turn's first request is what the present
    one has waited behind others, and with so many clients that a turn takes too long, each turn does as much work as before and refuses
    the rest, which costs little.
    """

    def __init__(self) -> None:
        self._turn_began: float | None = None

    def admits(self) -> bool:
        """Whether one more request is to be served in this turn."""
        if self._turn_began is None:
            self._turn_began = time.monotonic()
            asyncio.get_running_loop().call_soon(self._next_turn)
            return True
        return time.monotonic() - self._turn_began < LONGEST_TURN_S

    def _next_turn(self) -> None:
        self._turn_began = None
