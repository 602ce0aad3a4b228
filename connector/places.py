"""A bounded number of places, none of which anybody can keep from all others: knows nothing of what is done there."""

from __future__ import annotations

import asyncio
from collections import Counter, OrderedDict, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager


class Places:
    """`size` places, of which nobody has more than `each` at once.

    Who waits stands in a line of its own, and a free place goes to the first of the next line. The lines have no bound
    here: who calls looks at `waiting` first.
    """

    def __init__(self, size: int, *, each: int) -> None:
        self._free = size
        self._each = each
        self._held: Counter[str] = Counter()
        self._lines: OrderedDict[str, deque[asyncio.Future[None]]] = OrderedDict()

    def waiting(self, who: str) -> int:
        """How many wait in this one's line."""
        return len(self._lines.get(who, ()))

    @asynccontextmanager
    async def one(self, who: str) -> AsyncIterator[None]:
        """Wait for a place, and keep it within the block."""
        await self._take(who)
        try:
            yield
        finally:
            self._give_back(who)

    async def _take(self, who: str) -> None:
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._lines.setdefault(who, deque()).append(place)
        self._fill()
        try:
            await place
        except BaseException:
            if place.done() and not place.cancelled():
                self._give_back(who)  # it was ours already
            else:
                self._leave(who, place)
                self._fill()  # it may have been passed over just now
            raise

    def _give_back(self, who: str) -> None:
        self._free += 1
        self._held[who] -= 1
        if not self._held[who]:
            del self._held[who]
        self._fill()

    def _fill(self) -> None:
        """Hand out what is free, one to each line in its turn: who got one stands behind the others."""
        for who in tuple(self._lines) if self._free else ():
            if self._free and self._held[who] < self._each:
                self._serve(who)

    def _serve(self, who: str) -> None:
        line = self._lines.pop(who)
        place = line.popleft()
        if line:
            self._lines[who] = line
        if not place.done():
            self._free -= 1
            self._held[who] += 1
            place.set_result(None)

    def _leave(self, who: str, place: asyncio.Future[None]) -> None:
        line = self._lines.get(who)
        if line is not None and place in line:
            line.remove(place)
            if not line:
                del self._lines[who]
