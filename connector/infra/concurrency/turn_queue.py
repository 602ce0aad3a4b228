"""Whose turn it is: a bounded number of places, and a bounded line of those who wait, fair between consumers."""

from __future__ import annotations

import asyncio
import math
from collections import Counter

from connector.errors import Busy
from connector.infra.concurrency.fair_queue import Lines


def pause_after(wait_seconds: float) -> int:
    """Whole seconds for `Retry-After` of a request that was refused after a wait of at most `wait_seconds`."""
    return max(1, math.ceil(wait_seconds))


class Turns:
    """`size` places. Each consumer has a line of its own, and a free place goes to the next consumer's first.

    No consumer's line takes more than half of those who may wait, and none has more than `each` places, where that is
    told: then they say who gives one back. `what` a place is for those who wait for it.
    """

    def __init__(
        self, size: int, *, waiting: int, wait_seconds: float, each: int | None = None, what: str = "worker"
    ) -> None:
        self._free = size
        self._each = each
        self._held = Counter[str]()  # where there is an `each`
        self._most_waiting = waiting
        self._wait_seconds = wait_seconds
        self._what = what
        self._lines = Lines[asyncio.Future[None]]()

    @property
    def waiting(self) -> int:
        return len(self._lines)

    @property
    def spare(self) -> bool:
        """Whether somebody who takes a place now leaves one for others."""
        return self._free > 1 and not self._lines

    async def take(self, consumer: str, *, seconds: float | None = None) -> None:
        """Wait for a place, no longer than `seconds` for who has waited for something else before; Busy when the line
        is full or the wait too long. Pair it with `give_back`."""
        if self._free and self._may(consumer):  # who waits while a place is free has as many as it may have
            self._free -= 1
            self._takes(consumer)
            return
        own = self._lines.waiting(consumer)
        if self.waiting >= self._most_waiting or own >= max(1, self._most_waiting // 2):
            raise Busy("too many queries are waiting; try again later", code="queue_full")
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._lines.add(consumer, place)
        try:
            async with asyncio.timeout(self._wait_seconds if seconds is None else seconds):
                await place
        except BaseException as error:
            self._leave(consumer, place)
            if isinstance(error, TimeoutError):
                raise Busy(f"no {self._what} became free in time; try again later", code="queue_timeout") from None
            raise

    def give_back(self, *, of: str = "", after_others: str = "") -> None:
        """Free a place, or hand it to whose turn it is; `after_others` has the last turn. `of`: whose it was."""
        if self._held[of] > 1:
            self._held[of] -= 1
        else:
            del self._held[of]
        self._lines.pass_over(after_others)
        while (found := self._lines.next(lambda who, _: self._may(who))) is not None:
            consumer, place = found
            if not place.done():
                self._takes(consumer)
                place.set_result(None)
                return
        self._free += 1

    def _may(self, consumer: str) -> bool:
        return self._each is None or self._held[consumer] < self._each

    def _takes(self, consumer: str) -> None:
        if self._each is not None:
            self._held[consumer] += 1

    def _leave(self, consumer: str, place: asyncio.Future[None]) -> None:
        if place.done() and not place.cancelled():
            self.give_back(of=consumer)  # it was ours already
        else:
            self._lines.remove(consumer, place)
