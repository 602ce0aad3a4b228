"""A semaphore that is fair between keys: no key can take all places, and keys that wait are served in turn."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from connector.infra.concurrency.fair_queue import FairQueue


@dataclass(slots=True, eq=False)
class _Waiting:
    keys: tuple[str, ...]
    turn: asyncio.Future[None]


class FairSemaphore:
    """`size` places; a key has at most `each` of them at once (None: all).

    Each key has a FIFO of its own, and a free place goes to the first in the next key's FIFO. The FIFOs have no limit:
    callers check `waiting` first. A caller with two keys waits in the FIFO of the first key; that key has at most
    `first` places at once.
    """

    def __init__(self, size: int, *, each: int | None, first: int | None = None) -> None:
        self.free = size
        self._each = each
        self._first = each if first is None else first
        self._held: Counter[str] = Counter()
        self._lines = FairQueue[_Waiting]()

    def waiting(self, key: str) -> int:
        """The number of callers that wait under a key."""
        return self._lines.waiting(key)

    @property
    def all_waiting(self) -> int:
        """The number of callers that wait under any key."""
        return len(self._lines)

    def is_free_for(self, key: str) -> bool:
        """Whether `take` would not wait. Callers that wait while a place is free hold all that they may."""
        return self.free > 0 and _is_below(self._held[key], self._each)

    def move_to_end(self, key: str) -> None:
        """Let all other keys have their turn before this one."""
        self._lines.move_to_end(key)

    @asynccontextmanager
    async def hold(self, key: str, *also: str) -> AsyncIterator[None]:
        """Wait for a place and keep it until the block ends."""
        await self.take(key, *also)
        try:
            yield
        finally:
            self.give_back(key, *also)

    async def take(self, *keys: str) -> None:
        """Wait for a place that `give_back` frees under the same keys. Prefer `hold` where a block will do."""
        place = _Waiting(keys, asyncio.get_running_loop().create_future())
        self._lines.add(keys[0], place)
        self._fill()
        try:
            await place.turn
        except BaseException:
            if place.turn.done() and not place.turn.cancelled():
                self.give_back(*keys)  # the place had been assigned already
            else:
                self._lines.remove(keys[0], place)
                self._fill()  # a place may have been meant for this caller just now
            raise

    def give_back(self, *keys: str) -> None:
        """Free a place that `take` got under these keys."""
        self.free += 1
        for key in keys:
            self._held[key] -= 1
            if not self._held[key]:
                del self._held[key]
        self._fill()

    def _fill(self) -> None:
        """Assign free places to waiting callers, in turn."""
        while self.free and (waiting := self._lines.pop_next(self._may_enter)) is not None:
            place = waiting[1]
            if not place.turn.done():
                self.free -= 1
                self._held.update(place.keys)
                place.turn.set_result(None)

    def _may_enter(self, key: str, place: _Waiting) -> bool:
        also = place.keys[1:]
        most = self._first if also else self._each
        return _is_below(self._held[key], most) and all(_is_below(self._held[other], self._each) for other in also)


def _is_below(held: int, most: int | None) -> bool:
    return most is None or held < most
