"""A fair semaphore with a bounded, timed queue in front of it."""

from __future__ import annotations

import asyncio
import math

from connector.errors import Unavailable
from connector.infra.concurrency.fair_semaphore import FairSemaphore


def pause_after(wait_seconds: float) -> int:
    """Whole seconds for the `Retry-After` header of a request that was refused after at most `wait_seconds`."""
    return max(1, math.ceil(wait_seconds))


class TurnQueue:
    """`size` places, at most `each` of them for one consumer; free ones go to waiting consumers in turn.

    At most `waiting` requests queue, at most half of them from one consumer, for at most `wait_seconds`. `what` names a
    place in messages.
    """

    def __init__(
        self, size: int, *, waiting: int, wait_seconds: float, each: int | None = None, what: str = "worker"
    ) -> None:
        self.places = FairSemaphore(size, each=each)
        self._most_waiting = waiting
        self._wait_seconds = wait_seconds
        self._what = what

    @property
    def waiting(self) -> int:
        return self.places.all_waiting

    @property
    def has_spare(self) -> bool:
        """Whether taking a place now would leave another free."""
        return self.places.free > 1 and not self.waiting

    async def take(self, consumer: str, *, seconds: float | None = None) -> None:
        """Wait for a place; `give_back` frees it.

        `seconds` replaces the usual limit for callers that have used up part of their time. Raises: Unavailable, with
        code `queue_full` or `queue_timeout`.
        """
        own_max = max(1, self._most_waiting // 2)
        is_full = self.waiting >= self._most_waiting or self.places.waiting(consumer) >= own_max
        if is_full and not self.places.is_free_for(consumer):
            raise Unavailable("too many queries are waiting; try again later", code="queue_full")
        try:
            async with asyncio.timeout(self._wait_seconds if seconds is None else seconds):
                await self.places.take(consumer)
        except TimeoutError:
            raise Unavailable(f"no {self._what} became free in time; try again later", code="queue_timeout") from None

    def give_back(self, consumer: str, *, after_others: bool = False) -> None:
        """Free a place that `take` got for this consumer; with `after_others`, its next turn comes last."""
        if after_others:
            self.places.move_to_end(consumer)
        self.places.give_back(consumer)
