"""Reads under way, in the database: what a crash leaves open gets its end, with what had left, at the next start."""

from __future__ import annotations

from typing import Any

from connector.events import ReadEnded, ReadStarted
from connector.store import Store, Transaction

_REPEATED = ("actor", "dataset", "version", "agreement", "purpose", "process", "correlation")


def begin(tx: Transaction, event: ReadStarted, *, instance: str) -> None:
    """Record the start of a read, and that its end is owed."""
    tx.publish(event)
    tx.reads.add(event.process, instance=instance, body={name: getattr(event, name) for name in _REPEATED})


def end(tx: Transaction, event: ReadEnded, *, instance: str) -> bool:
    """Record the end of a read that `instance` began, unless it is recorded already. Whether it was not."""
    if not tx.reads.close(event.process, instance=instance):
        return False
    tx.publish(event)
    return True


async def close_left_over(store: Store, *, instance: str) -> int:
    """Record an end for every read that an earlier run of this process did not end; how many there were."""

    def work(tx: Transaction) -> int:
        rows = tx.reads.left_by(instance)
        for row in rows:
            tx.reads.free_places(row.id)
            end(tx, _interrupted(row.body, rows=row.rows, nbytes=row.bytes), instance=row.instance)
        return len(rows)

    return await store.write(work)


def _interrupted(body: dict[str, Any], *, rows: int, nbytes: int) -> ReadEnded:
    return ReadEnded(
        **body,
        outcome="broken",
        code="interrupted",
        reason="the connector ended in mid-read; at least this much had been let through",
        detail={"rows": rows, "bytes": nbytes},
    )
