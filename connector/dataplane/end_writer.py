"""Records the ends of reads, and retries while the database is away. No end is lost while this process lives."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import suppress
from functools import partial
from typing import Any

from connector.errors import Unavailable
from connector.infra.concurrency.active_counter import ActiveCounter
from connector.store import Store, Transaction

_PAUSE, _PAUSE_MAX = 0.1, 2.0  # seconds: before the second attempt, and at most
_MOST = 2_000  # pending ends, of some kilobytes each

Later = Callable[[Coroutine[Any, Any, Any]], asyncio.Task[Any]]


class EndWriter:
    """Ends of reads that wait to be recorded. `ids` are held meanwhile, so that no other read gets the same id."""

    def __init__(self, store: Store, ids: ActiveCounter, *, later: Later, leaving: Callable[[], bool]) -> None:
        self._store = store
        self._ids = ids
        self._later = later
        self._leaving = leaving
        self._tasks: set[asyncio.Task[bool]] = set()

    @property
    def is_full(self) -> bool:
        """Whether the limit of waiting ends is reached; then no new read should begin."""
        return len(self._tasks) >= _MOST

    def record(self, read_id: str, work: Callable[[bool, Transaction], None]) -> asyncio.Task[bool]:
        """Start a task that records an end, and retries until the process stops. Its result is whether the end was
        recorded.

        `work` may run twice. Its first argument says whether an earlier run may have committed.
        """
        task = self._later(self._record(read_id, work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def wait_for_all(self) -> None:
        """Wait until the ends that are pending now are recorded or given up."""
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def _record(self, read_id: str, work: Callable[[bool, Transaction], None]) -> bool:
        """Hold the read's id until its end is recorded: another read with that id would receive this end."""
        with suppress(Unavailable), self._ids.hold(read_id):  # on Unavailable, the next start finds the open read
            await self._write_until_done(work)
            return True
        return False

    async def _write_until_done(self, work: Callable[[bool, Transaction], None]) -> None:
        """Retry while the database is away. Raises Unavailable once the process is stopping."""
        pause, again = _PAUSE, False
        while True:
            try:
                return await self._store.write(partial(work, again))
            except Unavailable:
                if self._leaving():
                    raise
            again = True
            await asyncio.sleep(pause)
            pause = min(2 * pause, _PAUSE_MAX)
