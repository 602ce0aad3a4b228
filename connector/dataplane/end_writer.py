"""Ends of reads whose record waits for the database: none is lost while we live."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import suppress
from functools import partial
from typing import Any

from connector.errors import Busy
from connector.infra.concurrency.active_counter import ActiveCounter
from connector.store import Store, Transaction

_PAUSE, _PAUSE_MAX = 0.1, 2.0  # how long until the second attempt, and until each of many
_MOST = 2_000  # of some kilobytes each: with so many nothing new should begin

Later = Callable[[Coroutine[Any, Any, Any]], asyncio.Task[Any]]


class EndWriter:
    """What is still to be recorded of reads that are over. `ids`: of reads that others must not have meanwhile."""

    def __init__(self, store: Store, ids: ActiveCounter, *, later: Later, leaving: Callable[[], bool]) -> None:
        self._store = store
        self._ids = ids
        self._later = later
        self._leaving = leaving
        self._tasks: set[asyncio.Task[bool]] = set()

    @property
    def is_full(self) -> bool:
        """Whether as many wait as may."""
        return len(self._tasks) >= _MOST

    def record(self, read_id: str, work: Callable[[bool, Transaction], None]) -> asyncio.Task[bool]:
        """The record of an end, tried for as long as we live, whoever waits for it. Whether it was kept.

        `work` may be done twice, and is told whether it may have been done.
        """
        task = self._later(self._record(read_id, work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def wait_for_all(self) -> None:
        """Back when those that are owed now are recorded, or nobody tries any more."""
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def _record(self, read_id: str, work: Callable[[bool, Transaction], None]) -> bool:
        """Until it is known nobody else has the read's id: they would get this end."""
        with suppress(Busy), self._ids.hold(read_id):  # the next start looks for what is left
            await self._write_until_done(work)
            return True
        return False

    async def _write_until_done(self, work: Callable[[bool, Transaction], None]) -> None:
        """Reads end where their database goes away: their ends wait for it, until we end ourselves."""
        pause, again = _PAUSE, False
        while True:
            try:
                return await self._store.write(partial(work, again))
            except Busy:
                if self._leaving():
                    raise
            again = True
            await asyncio.sleep(pause)
            pause = min(2 * pause, _PAUSE_MAX)
