"""Events that another process on the same PostgreSQL committed reach this process's subscribers.

The log is the events' table: every event is numbered in it without a gap, by one process at a time, and a cursor over
these numbers misses none. NOTIFY only says when to look. LISTEN is in force before the first look, and without a word
there is a look every few seconds: a lost notice, or a lost connection, costs time and no event. Subscribers have an
event of another process once, in the log's order, within a quarter of a second; an SQLite file has no other process,
so there is nothing to do.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from connector.errors import HanseError
from connector.events import Event, body_to_event
from connector.store.engine import Store
from connector.store.error_mapping import cause_of
from connector.store.queries.audit import CHANNEL
from connector.store.transaction import Transaction
from connector.telemetry import logger

if TYPE_CHECKING:  # on an SQLite file nobody needs the driver, and a start need not wait for it
    import psycopg

_LOOK_AGAIN = 2.0  # seconds without a notice
_LEFT_BEHIND = 1.0  # seconds after which a record that is not numbered belongs to a process that died
_PAGE = 500
_PAUSE, _PAUSE_MAX = 0.1, 5.0
_log = logger("relay")


class Relay:
    """One per process. `number` is called where somebody's records wait to be numbered: its process may be dead."""

    def __init__(self, store: Store, *, number: Callable[[], None]) -> None:
        self._store = store
        self._number = number
        self._next = 0
        self._task: asyncio.Task[None] | None = None
        self._stopping = False

    async def start(self) -> None:
        """From now on: what was committed before is not told."""
        if self._store.is_sqlite:
            return
        self._next = await self._store.read(lambda tx: tx.audit.size())
        self._task = asyncio.create_task(self._run())

    async def stop(self) -> None:
        self._stopping = True  # the driver may swallow the cancellation where it meets a notice
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        pause = _PAUSE
        while not self._stopping:
            try:
                async with _listening(self._store) as connection:
                    while not self._stopping:
                        await self.look()
                        pause = _PAUSE
                        await self._news(connection)
            except Exception as error:  # noqa: BLE001  # a relay that stops is a process that hears nothing any more
                reason = error.message if isinstance(error, HanseError) else cause_of(error)
                _log.warning("relay_interrupted", reason=reason, pause=pause)
                await asyncio.sleep(pause)
                pause = min(2 * pause, _PAUSE_MAX)

    async def _news(self, connection: psycopg.AsyncConnection) -> None:
        """Wait for a notice of what others did, or until it is time to look without one."""
        ends = time.monotonic() + _LOOK_AGAIN
        while (left := ends - time.monotonic()) > 0:
            async for notice in connection.notifies(timeout=left, stop_after=1):
                if notice.payload != self._store.origin:
                    return
        await _say(connection, "SELECT 1")  # a connection that is dead is as quiet as one that has no news

    async def look(self) -> None:
        """Deliver everything that others committed since the last look, and what we did without knowing."""
        await self._store.look_up()
        more = True
        while more:
            events, self._next, more, left = await self._store.read(self._page)
            for event in events:
                self._store.bus.relay(event)
            if left:
                self._number()

    def _page(self, tx: Transaction) -> tuple[list[Event], int, bool, bool]:
        """Events of others, where to go on, whether there are more, and whether somebody has left some unnumbered."""
        size = tx.audit.size()
        rows = tx.audit.of_others(self._store.origin, start=self._next, stop=size, limit=_PAGE)
        found = [event for row in rows if (event := body_to_event(json.loads(row.body))) is not None]
        more = len(rows) == _PAGE
        oldest = tx.audit.waiting_since()
        return found, rows[-1].idx + 1 if more else size, more, oldest is not None and tx.now - oldest > _LEFT_BEHIND


@asynccontextmanager
async def _listening(store: Store) -> AsyncIterator[psycopg.AsyncConnection]:
    """A connection of our own that hears of rounds."""
    import psycopg

    arguments, options = store.engine.dialect.create_connect_args(store.engine.url)
    connection = await psycopg.AsyncConnection.connect(*arguments, **options, autocommit=True)
    async with connection:
        await _say(connection, f"LISTEN {CHANNEL}")
        yield connection


async def _say(connection: psycopg.AsyncConnection, statement: str) -> None:
    """Have a statement carried out; TimeoutError where there is no answer."""
    from connector.infra.database.postgres_options import ANSWER_SECONDS

    async with asyncio.timeout(ANSWER_SECONDS):
        await connection.execute(statement.encode())
