"""Delivers events that other processes on the same PostgreSQL committed to this process's subscribers.

The audit log is the queue: one process at a time numbers the events without gaps, so a cursor over the numbers misses
none. NOTIFY only says when to read. LISTEN is in force before the first read, and the log is also read every few
seconds: a lost notice or connection costs time and no event. Subscribers get each event of another process once, in the
log's order, within a quarter of a second. An SQLite file has one process only, so there is nothing to do.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from connector.errors import ConnectorError
from connector.events import Event, body_to_event
from connector.store.engine import Store
from connector.store.error_mapping import describe_cause
from connector.store.queries.audit import CHANNEL
from connector.store.transaction import Transaction
from connector.telemetry import logger

if TYPE_CHECKING:  # SQLite does not need the driver, and importing it slows the start
    import psycopg

_POLL_SECONDS = 2.0  # longest time between reads without a notice
_ABANDONED_SECONDS = 1.0  # a record without a number for this long belongs to a process that died
_PAGE = 500
_PAUSE, _PAUSE_MAX = 0.1, 5.0
_log = logger("relay")


class EventRelay:
    """Event relay of one process. `number` is called when records of another process wait for a number too long."""

    def __init__(self, store: Store, *, number: Callable[[], None]) -> None:
        self._store = store
        self._number = number
        self._next = 0
        self._task: asyncio.Task[None] | None = None
        self._stopping = False

    async def start(self) -> None:
        """Start to relay. Events that were committed before are not delivered."""
        if self._store.is_sqlite:
            return
        self._next = await self._store.read(lambda tx: tx.audit.read_size())
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
                async with _open_listener(self._store) as connection:
                    while not self._stopping:
                        await self.deliver_new()
                        pause = _PAUSE
                        await self._wait_for_notice(connection)
            except Exception as error:  # noqa: BLE001  # a stopped relay would leave this process without events
                reason = error.message if isinstance(error, ConnectorError) else describe_cause(error)
                _log.warning("relay_interrupted", reason=reason, pause=pause)
                await asyncio.sleep(pause)
                pause = min(2 * pause, _PAUSE_MAX)

    async def _wait_for_notice(self, connection: psycopg.AsyncConnection) -> None:
        """Wait for a notice of another process, at most `_POLL_SECONDS`."""
        ends = time.monotonic() + _POLL_SECONDS
        while (left := ends - time.monotonic()) > 0:
            async for notice in connection.notifies(timeout=left, stop_after=1):
                if notice.payload != self._store.origin:
                    return
        await _execute(connection, "SELECT 1")  # a dead connection is silent too; this raises

    async def deliver_new(self) -> None:
        """Deliver events of other processes since the last call, and own events whose commit was in doubt."""
        await self._store.resolve_unknown_commits()
        more = True
        while more:
            events, self._next, more, abandoned = await self._store.read(self._read_page)
            for event in events:
                self._store.bus.relay(event)
            if abandoned:
                self._number()

    def _read_page(self, tx: Transaction) -> tuple[list[Event], int, bool, bool]:
        """Events of other processes, the next position, whether more follow, and whether records wait for a number."""
        size = tx.audit.read_size()
        rows = tx.audit.list_from_others(self._store.origin, start=self._next, stop=size, limit=_PAGE)
        events = [event for row in rows if (event := body_to_event(json.loads(row.body))) is not None]
        more = len(rows) == _PAGE
        oldest = tx.audit.read_oldest_pending_time()
        is_abandoned = oldest is not None and tx.now - oldest > _ABANDONED_SECONDS
        return events, rows[-1].idx + 1 if more else size, more, is_abandoned


@asynccontextmanager
async def _open_listener(store: Store) -> AsyncIterator[psycopg.AsyncConnection]:
    """A separate connection that listens for notices of the audit log."""
    import psycopg

    arguments, options = store.engine.dialect.create_connect_args(store.engine.url)
    connection = await psycopg.AsyncConnection.connect(*arguments, **options, autocommit=True)
    async with connection:
        await _execute(connection, f"LISTEN {CHANNEL}")
        yield connection


async def _execute(connection: psycopg.AsyncConnection, statement: str) -> None:
    """Run a statement. Raises TimeoutError if there is no answer."""
    from connector.infra.database.postgres_options import ANSWER_SECONDS

    async with asyncio.timeout(ANSWER_SECONDS):
        await connection.execute(statement.encode())
