"""Reads under way, in the database: what a crash leaves open gets its end, with what had left, at the next start."""

from __future__ import annotations

from typing import Any

from connector.dataplane.records import together
from connector.events import ReadEnded, ReadStarted
from connector.store import Store, Transaction

_REPEATED = ("actor", "dataset", "version", "agreement", "purpose", "process", "correlation")
_MORE = "more"  # the same of its further agreements


def begin(tx: Transaction, *events: ReadStarted, instance: str) -> None:
    """Record the start of a read under each of its agreements, and that its end is owed."""
    first, *more = [{name: getattr(event, name) for name in _REPEATED} for event in events]
    for event in events:
        tx.publish(event)
    tx.reads.add(events[0].process, instance=instance, body=first | ({_MORE: more} if more else {}))


def end(tx: Transaction, *events: ReadEnded, instance: str) -> bool:
    """Record the end of a read that `instance` began, unless it is recorded already. Whether it was not."""
    if not tx.reads.close(events[0].process, instance=instance):
        return False
    for event in events:
        tx.publish(event)
    return True


async def close_left_over(store: Store, *, instance: str) -> int:
    """Record an end for every read that an earlier run of this process did not end; how many there were."""

    def work(tx: Transaction) -> int:
        rows = tx.reads.left_by(instance)
        for row in rows:
            tx.reads.free_places(row.id)
            end(tx, *_interrupted(row.body, rows=row.rows, nbytes=row.bytes), instance=row.instance)
        return len(rows)

    return await store.write(work)


def _interrupted(body: dict[str, Any], *, rows: int, nbytes: int) -> list[ReadEnded]:
    told = [{name: value for name, value in body.items() if name != _MORE}, *body.get(_MORE, ())]
    return [
        ReadEnded(
            **one,
            outcome="broken",
            code="interrupted",
            reason="the connector ended in mid-read; at least this much had been let through",
            detail={"rows": rows, "bytes": nbytes, **together([one["agreement"] for one in told])},
        )
        for one in told
    ]
