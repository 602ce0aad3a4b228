"""Limits concurrent visits by kind. A waiting visit may be queued for several kinds."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager


class VisitPlaces:
    """A number of places for each kind, first come, first served."""

    def __init__(self, places: Mapping[str, int]) -> None:
        self._free = dict(places)
        self._lines: dict[str, dict[str, asyncio.Future[str]]] = {kind: {} for kind in places}
        self._waiting: dict[str, asyncio.Future[str]] = {}

    @asynccontextmanager
    async def turn(self, key: str, kind: str) -> AsyncIterator[str]:
        """A place while the block runs, for the one `key`; the kind whose place it is."""
        turn = self._waiting[key] = asyncio.get_running_loop().create_future()
        self.join(key, kind)
        try:
            got = await turn
        except asyncio.CancelledError:
            if not turn.cancelled():  # it came in the same moment
                self._leave(turn.result())
            raise
        finally:
            del self._waiting[key]
            for line in self._lines.values():
                line.pop(key, None)
        try:
            yield got
        finally:
            self._leave(got)

    def join(self, key: str, kind: str) -> bool:
        """Have `key` stand in the line of this kind, too; False where it does not wait, or no more."""
        turn = self._waiting.get(key)
        if turn is None or turn.done():
            return False
        self._lines[kind].setdefault(key, turn)
        self._next(kind)
        return True

    def _next(self, kind: str) -> None:
        line = self._lines[kind]
        while line and self._free[kind]:
            turn = line.pop(next(iter(line)))
            if not turn.done():
                self._free[kind] -= 1
                turn.set_result(kind)

    def _leave(self, kind: str) -> None:
        self._free[kind] += 1
        self._next(kind)
