"""Whose frames are looked at: few in one turn of the loop, and of each connection a helping at a time.

What a client sends at once may be hundreds of calls, and whoever asks in vain needs no ticket for that. All that came
from all of them would hold up everybody, over HTTP as well. Knows nothing of what frames mean.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Protocol

from connector.telemetry import logger

HELPING = 32  # of one connection at once: so many small frames, or two calls (see `states`)
_TURN = 2 * HELPING  # of all connections in one turn of the loop: a millisecond or two
_log = logger("flight")


class Guest(Protocol):
    """A connection of which something has come."""

    def look(self, most: int) -> int:
        """Look at so much of it at most; how much that was. It asks for another helping itself."""

    def hang_up(self) -> None:
        """End the connection now."""


class Helpings:
    """The turns of all connections of a listener."""

    def __init__(self) -> None:
        self._waiting: deque[Guest] = deque()
        self._called = False

    def ask(self, guest: Guest) -> None:
        """A helping for it, behind all who wait; it asks again when it has had that."""
        self._waiting.append(guest)
        self._call()

    def _call(self) -> None:
        if self._waiting and not self._called:
            self._called = True
            asyncio.get_running_loop().call_soon(self._serve)

    def _serve(self) -> None:
        self._called, left = False, _TURN
        while self._waiting and left > 0:
            left -= max(1, self._look(self._waiting.popleft()))
        self._call()

    def _look(self, guest: Guest) -> int:
        try:
            return guest.look(HELPING)
        except Exception as error:  # noqa: BLE001  of one connection, which has nothing to do with the others
            _log.exception("unforeseen", exc_info=error)
            guest.hang_up()
            return HELPING
