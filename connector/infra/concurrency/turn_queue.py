"""A bounded number of places with a bounded, timed queue in front of them, fair between consumers."""

from __future__ import annotations

import asyncio
import math
from collections import Counter

from connector.errors import Busy
from connector.infra.concurrency.fair_queue import FairQueue


def pause_after(wait_seconds: float) -> int:
    """Whole seconds for the `Retry-After` header of a request that was refused after at most `wait_seconds`."""
    return max(1, math.ceil(wait_seconds))


class TurnQueue:
    """`size` places. Each consumer has a FIFO of its own, and a free place goes to the next consumer in turn.

    At most `waiting` requests queue, at most half of them from one consumer, for at most `wait_seconds`. With `each`,
    a consumer holds at most that many places, and `give_back` needs to know whose place it frees. `what` names a place
    in messages.
    """

    def __init__(
        self, size: int, *, waiting: int, wait_seconds: float, each: int | None = None, what: str = "worker"
    ) -> None:
        self._free = size
        self._each = each
        self._held = Counter[str]()  # empty without `each`
        self._most_waiting = waiting
        self._wait_seconds = wait_seconds
        self._what = what
        self._lines = FairQueue[asyncio.Future[None]]()

    @property
    def waiting(self) -> int:
        return len(self._lines)

    @property
    def has_spare(self) -> bool:
        """Whether taking a place now would leave another free."""
        return self._free > 1 and not self._lines

    async def take(self, consumer: str, *, seconds: float | None = None) -> None:
        """Wait for a place; `give_back` frees it.

        `seconds` replaces the usual limit for callers that have used up part of their time. Raises: Busy, with code
        `queue_full` or `queue_timeout`.
        """
        if self._free and self._may_enter(consumer):  # those that wait while a place is free hold all they may
            self._free -= 1
            self._count(consumer)
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
        """Free a place of consumer `of` and assign it to the next in turn; consumer `after_others` comes last."""
        if self._held[of] > 1:
            self._held[of] -= 1
        else:
            del self._held[of]
        self._lines.move_to_end(after_others)
        while (waiting := self._lines.pop_next(lambda consumer, _: self._may_enter(consumer))) is not None:
            consumer, place = waiting
            if not place.done():
                self._count(consumer)
                place.set_result(None)
                return
        self._free += 1

    def _may_enter(self, consumer: str) -> bool:
        return self._each is None or self._held[consumer] < self._each

    def _count(self, consumer: str) -> None:
        if self._each is not None:
            self._held[consumer] += 1

    def _leave(self, consumer: str, place: asyncio.Future[None]) -> None:
        if place.done() and not place.cancelled():
            self.give_back(of=consumer)  # the place had been assigned already
        else:
            self._lines.remove(consumer, place)
