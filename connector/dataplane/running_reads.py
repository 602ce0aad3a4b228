"""Reads under way, in the database: what a crash leaves open gets its end, with what had left.

At the next start of the process, or from another one on the same PostgreSQL once the dead one's lease has lapsed. The
quota that such a read had reserved does not come back: what left in its last second nobody knows.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from connector.errors import HanseError
from connector.events import ReadEnded, ReadStarted, together
from connector.store import Store, Transaction
from connector.store.queries.reads import MORE
from connector.store.tables import OpenRead
from connector.telemetry import logger

_LEASE_SECONDS = 60.0  # how long a process that says nothing is thought to be alive
_RENEW_SECONDS = 15.0
_CODE = "interrupted"  # of an end that is not told by the read's own process
_log = logger("dataplane")
# Of each agreement (`MORE`: of the further ones); beside it stands what people look for in a running read.
_REPEATED = ("actor", "dataset", "version", "agreement", "purpose", "process", "correlation")


@dataclass(frozen=True, slots=True)
class ReadAgreement:
    """What a running read has under one of its agreements."""

    dataset: str
    version: str
    agreement: str
    purpose: str
    transfer: str


@dataclass(frozen=True, slots=True)
class RunningRead:
    """A read under way, for people. `rows` and `bytes` are what had left by the last second."""

    id: str
    consumer: str
    transport: str
    since: float
    rows: int
    bytes: int
    under: tuple[ReadAgreement, ...]


def list_running(tx: Transaction, *, agreement: str = "", limit: int, offset: int = 0) -> list[RunningRead]:
    """Reads that have begun and not ended, the newest first; of one agreement only those under it."""
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
    """Record the start of a read under each of its agreements, and that its end is owed. `transfers`: that of each."""
    first, *more = [{name: getattr(event, name) for name in _REPEATED} for event in events]
    for one, transfer in zip((first, *more), transfers, strict=False):
        one["transfer"] = transfer
    for event in events:
        tx.publish(event)
    about = {"since": tx.now, "transport": transport}
    tx.reads.add(events[0].process, instance=instance, body=first | about | ({MORE: more} if more else {}))


def end(tx: Transaction, *events: ReadEnded, instance: str) -> bool:
    """Record the end of a read that `instance` began, unless it is recorded already. Whether it was not."""
    if not tx.reads.close(events[0].process, instance=instance):
        return False
    for event in events:
        tx.publish(event)
    return True


def end_again(tx: Transaction, *events: ReadEnded) -> None:
    """Record how a read ended whose end others have recorded, as its process was away for a minute: with all that left.
    What it had reserved stays used, as they have left it."""
    for event in events:
        tx.publish(replace(event, detail={**event.detail, "after": _CODE}))


async def close_left_over(store: Store, *, instance: str, before: str = "") -> int:
    """Record an end for every read that earlier runs of this process did not end; how many there were.

    `before`: the last of these runs, where we know that it is over. One whose lease holds may be a process with a copy
    of our name: its reads are its own.
    """

    def work(tx: Transaction) -> tuple[int, set[str]]:
        tx.reads.end_lease(before)
        alive = {run for run in tx.reads.list_live_runs() if run.startswith(f"{instance}.")}
        return _close(tx, [row for row in tx.reads.list_of_instance(instance) if row.instance not in alive]), alive

    closed, alive = await store.write(work)
    if alive:
        _log.warning(
            "instance_in_use",
            reason="a process with this keys/instance.secret is alive, or was a minute ago; each needs one of its own",
        )
    return closed


def _close(tx: Transaction, rows: Sequence[OpenRead]) -> int:
    for row in rows:
        tx.reads.free_places(row.id)
        end(tx, *_interruption_events(row.body, rows=row.rows, nbytes=row.bytes), instance=row.instance)
    return len(rows)


class Leases:
    """Says to others on the same PostgreSQL that this run of a process is alive, and ends what dead ones have left."""

    def __init__(self, store: Store, *, run: str) -> None:
        self._store = store
        self._run = run
        self._seen = self._since = 0.0  # when we saw the database the last time, and since when without a gap
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Before the first read. An SQLite file has no other process."""
        if not self._store.is_sqlite:
            await self.look()
            self._task = asyncio.create_task(self._look_again())

    async def stop(self) -> None:
        """After the last read. Where the end of one is owed all the same, the lease lapses, and others record it."""
        if self._task is None:
            return
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

        def work(tx: Transaction) -> None:
            if not tx.reads.list_of_instance(self._run):
                tx.reads.end_lease(self._run)

        with suppress(HanseError):
            await self._store.write(work)

    async def look(self) -> int:
        """Renew our lease; how many reads of dead processes were ended.

        After an outage all leases have lapsed, and those who are alive need a moment to say so: whoever has not seen
        the database for the whole time of a lease judges nobody.
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
            except Exception as error:  # noqa: BLE001  a process without a lease is taken for dead
                _log.warning("lease_not_renewed", error=type(error).__name__)


def _interruption_events(body: dict[str, Any], *, rows: int, nbytes: int) -> list[ReadEnded]:
    told = [{name: one[name] for name in _REPEATED if name in one} for one in (body, *body.get(MORE, ()))]
    return [
        ReadEnded(
            **one,
            outcome="broken",
            code=_CODE,
            reason="the connector ended in mid-read; at least this much had been let through",
            detail={"rows": rows, "bytes": nbytes, **together([one["agreement"] for one in told])},
        )
        for one in told
    ]
