"""Reads under way, in the database, so that a read that a crash leaves open gets an end with its last known totals.

That happens at the next start of the process, or from another process on the same PostgreSQL once the lease of the dead
one has lapsed. Quota that such a read had reserved is not returned: what left in its last second is unknown. How many
reads may run is decided in `admission`.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from connector.errors import ConnectorError
from connector.events import ReadEnded, ReadStarted, together
from connector.store import Store, Transaction
from connector.store.queries.reads import MORE
from connector.store.tables import OpenRead
from connector.telemetry import logger

_LEASE_SECONDS = 60.0  # a process that has not renewed for so long counts as dead
_RENEW_SECONDS = 15.0
_CODE = "interrupted"  # code of an end that another process records
_log = logger("dataplane")
# Fields for each agreement (`MORE`: the further ones). The body also has what people look for in a running read.
_REPEATED = ("actor", "dataset", "version", "agreement", "purpose", "process", "correlation")


@dataclass(frozen=True, slots=True)
class ReadAgreement:
    """One agreement that a running read is under."""

    dataset: str
    version: str
    agreement: str
    purpose: str
    transfer: str


@dataclass(frozen=True, slots=True)
class RunningRead:
    """A read under way, for people. `rows` and `bytes` are the totals of the last second."""

    id: str
    consumer: str
    transport: str
    since: float
    rows: int
    bytes: int
    under: tuple[ReadAgreement, ...]


def list_running(tx: Transaction, *, agreement: str = "", limit: int, offset: int = 0) -> list[RunningRead]:
    """Return the reads that have started and not ended, newest first; with `agreement`, those under it."""
    return [_row_to_running_read(row) for row in tx.reads.list_open(agreement=agreement, limit=limit, offset=offset)]


def _row_to_running_read(row: OpenRead) -> RunningRead:
    told = [row.body, *row.body.get(MORE, ())]
    under = tuple(
        ReadAgreement(*(str(one.get(name, "")) for name in ReadAgreement.__dataclass_fields__)) for one in told
    )
    consumer, transport, since = (row.body.get(name) or "" for name in ("actor", "transport", "since"))
    return RunningRead(row.id, consumer, transport, float(since or 0), row.rows, row.bytes, under)


def begin(
    tx: Transaction, *events: ReadStarted, instance: str, transfers: Sequence[str] = (), transport: str = ""
) -> None:
    """Record the start of a read under each of its agreements, and that its end is pending.

    `transfers`: the transfer of each agreement.
    """
    first, *more = [{name: getattr(event, name) for name in _REPEATED} for event in events]
    for one, transfer in zip((first, *more), transfers, strict=False):
        one["transfer"] = transfer
    for event in events:
        tx.publish(event)
    about = {"since": tx.now, "transport": transport}
    tx.reads.add(events[0].process, instance=instance, body=first | about | ({MORE: more} if more else {}))


def end(tx: Transaction, *events: ReadEnded, instance: str) -> bool:
    """Record the end of a read that `instance` began. Returns False where it was recorded already."""
    if not tx.reads.close(events[0].process, instance=instance):
        return False
    for event in events:
        tx.publish(event)
    return True


def end_again(tx: Transaction, *events: ReadEnded) -> None:
    """Record the true end of a read whose end another process has recorded, because this one was away for a minute.

    What the read had reserved stays used.
    """
    for event in events:
        tx.publish(replace(event, detail={**event.detail, "after": _CODE}))


async def close_left_over(store: Store, *, instance: str, before: str = "") -> int:
    """Record an end for each read that earlier runs of this process left open. Returns their number.

    `before`: the last of these runs, if it is known to be over. A run with a valid lease may be another process with a
    copy of our instance secret, and keeps its reads.
    """

    def work(tx: Transaction) -> tuple[int, set[str]]:
        tx.reads.end_lease(before)
        alive = {run for run in tx.reads.list_live_runs() if run.startswith(f"{instance}.")}
        return _close(tx, [row for row in tx.reads.list_of_instance(instance) if row.instance not in alive]), alive

    closed, alive = await store.write(work)
    if alive:
        _log.warning(
            "instance_in_use",
            reason="another process uses this keys/instance.secret, or did a minute ago; give each process its own",
        )
    return closed


def _close(tx: Transaction, rows: Sequence[OpenRead]) -> int:
    for row in rows:
        tx.reads.free_places(row.id)
        end(tx, *_interruption_events(row.body, rows=row.rows, nbytes=row.bytes), instance=row.instance)
    return len(rows)


class Leases:
    """Tells other processes on the same PostgreSQL that this run is alive, and ends the reads of dead runs."""

    def __init__(self, store: Store, *, run: str) -> None:
        self._store = store
        self._run = run
        self._seen = self._since = 0.0  # last contact with the database, and since when without a gap
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Start before the first read. An SQLite file has no other process."""
        if not self._store.is_sqlite:
            await self.look()
            self._task = asyncio.create_task(self._look_again())

    async def stop(self) -> None:
        """Stop after the last read. If an end is still pending, the lease lapses and another process records it."""
        if self._task is None:
            return
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

        def work(tx: Transaction) -> None:
            if not tx.reads.list_of_instance(self._run):
                tx.reads.end_lease(self._run)

        with suppress(ConnectorError):
            await self._store.write(work)

    async def look(self) -> int:
        """Renew the lease. Returns the number of reads of dead processes that were ended.

        After an outage all leases have lapsed, and living processes need a moment to renew theirs. So a process ends
        the reads of others only after it has seen the database for the whole time of a lease.
        """
        now = time.monotonic()
        if now - self._seen > 2 * _RENEW_SECONDS:
            self._since = now
        may = now - self._since >= _LEASE_SECONDS

        def work(tx: Transaction) -> tuple[bool, int]:
            held = tx.reads.keep_lease(self._run, seconds=_LEASE_SECONDS)
            dead = tx.reads.end_lapsed_leases() if held and may else []
            return held, sum(_close(tx, tx.reads.list_of_instance(run)) for run in dead)

        held, closed = await self._store.write(work)
        self._seen = time.monotonic()
        if not held:
            self._since = self._seen
        return closed

    async def _look_again(self) -> None:
        while True:
            await asyncio.sleep(_RENEW_SECONDS)
            try:
                if closed := await self.look():
                    _log.warning("ended_for_others", reads=closed, reason="their process is gone")
            except Exception as error:  # noqa: BLE001  a process without a lease counts as dead
                _log.warning("lease_not_renewed", error=type(error).__name__)


def _interruption_events(body: dict[str, Any], *, rows: int, nbytes: int) -> list[ReadEnded]:
    told = [{name: one[name] for name in _REPEATED if name in one} for one in (body, *body.get(MORE, ()))]
    return [
        ReadEnded(
            **one,
            outcome="broken",
            code=_CODE,
            reason="the connector stopped during the read; at least these rows and bytes had been released",
            detail={"rows": rows, "bytes": nbytes, **together([one["agreement"] for one in told])},
        )
        for one in told
    ]
