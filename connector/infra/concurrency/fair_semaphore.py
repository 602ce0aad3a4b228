"""A bounded number of places, none of which anybody can keep from all others: knows nothing of what is done there."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from connector.infra.concurrency.fair_queue import Lines


@dataclass(slots=True, eq=False)
class _Waiting:
    names: tuple[str, ...]
    turn: asyncio.Future[None]


class Places:
    """`size` places, of which nobody has more than `each` at once.

    Who waits stands in a line of its own, and a free place goes to the first of the next line. The lines have no bound
    here: who calls looks at `waiting` first. Who comes under two names stands in the line of the first, of which
    no more than `first` are inside at once.
    """

    def __init__(self, size: int, *, each: int, first: int | None = None) -> None:
        self._free = size
        self._each = each
        self._first = each if first is None else first
        self._held: Counter[str] = Counter()
        self._lines = Lines[_Waiting]()

    def waiting(self, who: str) -> int:
        """How many wait in this one's line."""
        return self._lines.waiting(who)

    @asynccontextmanager
    async def one(self, who: str, *also: str) -> AsyncIterator[None]:
        """Wait for a place, and keep it within the block."""
        await self.take(who, *also)
        try:
            yield
        finally:
            self.give_back(who, *also)

    async def take(self, *names: str) -> None:
        """Wait for a place, for whom no block holds it: it is to be given back under the same names."""
        place = _Waiting(names, asyncio.get_running_loop().create_future())
        self._lines.add(names[0], place)
        self._fill()
        try:
            await place.turn
        except BaseException:
            if place.turn.done() and not place.turn.cancelled():
                self.give_back(*names)  # it was ours already
            else:
                self._lines.remove(names[0], place)
                self._fill()  # it may have been passed over just now
            raise

    def give_back(self, *names: str) -> None:
        self._free += 1
        for name in names:
            self._held[name] -= 1
            if not self._held[name]:
                del self._held[name]
        self._fill()

    def _fill(self) -> None:
        """Hand out what is free, in turn."""
        while self._free and (found := self._lines.next(self._may)) is not None:
            place = found[1]
            if not place.turn.done():
                self._free -= 1
                self._held.update(place.names)
                place.turn.set_result(None)

    def _may(self, who: str, place: _Waiting) -> bool:
        also = place.names[1:]
        most = self._first if also else self._each
        return self._held[who] < most and all(self._held[name] < self._each for name in also)
