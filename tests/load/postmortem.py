"""What is known of conversations that did not come to their end: both sides' rows, what waits in their outboxes, the
last events, and what their logs say. For the crash program, when it fails.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import select

from connector.store import Store, Transaction
from connector.store.tables import Negotiation, Outbox, Transfer

T = TypeVar("T")
PROCESSES = 10  # told of at most
EVENTS, LINES = 12, 25  # the last ones of each
ENDS = {"negotiation": "FINALIZED", "transfer": "COMPLETED"}


@dataclass(frozen=True, slots=True)
class Side:
    """One connector: its name, its database and its log."""

    name: str
    url: str
    log: Path


def reading(url: str, work: Callable[[Transaction], T]) -> T:
    """`work` on what a database holds now, whether its connector runs or not."""
    store = Store(url, pool_size=1)
    try:
        return store.read_now(work)
    finally:
        store.close()


def events(tx: Transaction) -> list[tuple[float, dict[str, Any]]]:
    """Everything that was told, numbered in the log or not yet."""
    numbered = [(row.ts, json.loads(row.body)) for row in tx.audit.walk(stop=tx.audit.read_size())]
    return numbered + [(row.ts, row.body) for row in tx.audit.list_pending(10**6)]


def unfinished(tx: Transaction) -> list[Negotiation | Transfer]:
    """Every process that has not come to its good end, or has a message of ours on its way."""
    rows = [*tx.negotiations.page(limit=10**6), *tx.transfers.page(limit=10**6)]
    return [row for row in rows if row.state != ENDS[row.__tablename__] or row.pending]


def report(sides: Iterable[Side], pids: Iterable[str] = ()) -> str:
    """The post-mortem of these processes (by either side's pid), and of everything that is unfinished at a side."""
    named, both = set(pids), tuple(sides)
    for one in both:
        for row in reading(one.url, unfinished)[:PROCESSES]:
            named |= {row.id, row.peer_pid} - {""}
    return "\n".join(line for one in both for line in _side(one, named))


def _side(one: Side, named: set[str]) -> Iterator[str]:
    yield f"== {one.name}, {time.strftime('%H:%M:%S')}"
    yield from reading(one.url, lambda tx: list(_processes(tx, named)))
    lines = one.log.read_text(errors="replace").splitlines()
    about = [line for line in lines if any(pid in line for pid in named)][-LINES:]
    yield f"  log, about them: {len(about)} lines"
    yield from (f"    {line[:400]}" for line in about)
    yield "  log, the last lines"
    yield from (f"    {line[:400]}" for line in lines[-LINES:])


def _processes(tx: Transaction, named: set[str]) -> Iterator[str]:
    told = events(tx)
    rows = [*tx.negotiations.page(limit=10**6), *tx.transfers.page(limit=10**6)]
    for row in [row for row in rows if row.id in named or row.peer_pid in named][: 2 * PROCESSES]:
        yield (
            f"  {row.__tablename__} {row.id} ({row.role}; theirs {row.peer_pid or 'unknown'}): {row.state or '(new)'}, "
            f"pending {row.pending or 'nothing'}, {row.code} {row.reason}, updated {_clock(row.updated_at)}"
        )
        for ts, body in [one for one in told if one[1].get("process") == row.id][-EVENTS:]:
            detail = body.get("detail", {})
            said = [body["kind"], detail.get("message", detail.get("command", "")), detail.get("state", "")]
            yield f"    event {_clock(ts)} {' '.join(said)} {body.get('outcome', 'ok')} {body.get('reason', '')}"
    for row in tx.session.scalars(select(Outbox).order_by(Outbox.id).limit(2 * PROCESSES)):
        yield (
            f"  outbox {row.id} {row.process} {row.message.get('@type', row.kind)} to {row.path}: {row.attempts} "
            f"attempts ({row.not_yet} not yet), due {_clock(row.due_at)}, leased to {row.lease_owner[:8] or 'nobody'} "
            f"until {_clock(row.lease_until)}"
        )


def _clock(seconds: float) -> str:
    return time.strftime("%H:%M:%S", time.localtime(seconds)) + f".{int(seconds * 1e3) % 1000:03d}"
