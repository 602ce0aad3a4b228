"""Queries for the audit log's rows. What they mean is the business of `connector.audit`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from sqlalchemy import ColumnElement, Integer, Row, String, bindparam, delete, func, insert, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from connector.store.tables import AuditCheckpoint, AuditEvent, AuditPending, AuditTile, bare

CHANNEL = "hanse_log"  # NOTIFY: records were numbered
_LOCK = 0x48616E7365  # any number, the same for every connector process on one database
_EQUALS = ("kind", "actor", "agreement", "dataset", "outcome")

_EVENT, _PENDING, _TILE = bare(AuditEvent), bare(AuditPending), bare(AuditTile)
_LOCKED = select(func.pg_try_advisory_xact_lock(_LOCK))
_TELL = select(func.pg_notify(CHANNEL, bindparam("origin", type_=String)))
_OLDEST = select(_PENDING).order_by(_PENDING.c.id).limit(bindparam("most", type_=Integer))
_SETTLE = delete(_PENDING).where(_PENDING.c.id.in_(bindparam("ids", expanding=True)))
_TOP = select(func.max(_EVENT.c.idx))
_APPEND = insert(_EVENT)
_TILE_AT = select(_TILE.c.data).where(_TILE.c.level == bindparam("level"), _TILE.c.n == bindparam("n"))
_CHECKPOINT = insert(bare(AuditCheckpoint))


def _put(build: Any) -> Any:
    put = build(_TILE)
    return put.on_conflict_do_update(index_elements=[_TILE.c.level, _TILE.c.n], set_={"data": put.excluded.data})


_PUT = {"sqlite": _put(sqlite.insert), "postgresql": _put(postgresql.insert)}


class AuditRows:
    def __init__(self, session: Session) -> None:
        self._session = session

    def lock(self) -> bool:
        """Whether this transaction is the only one that may number records. SQLite has one writer at a time anyway."""
        connection = self._session.connection()
        return connection.dialect.name == "sqlite" or bool(connection.scalar(_LOCKED))

    def pending(self, limit: int) -> Sequence[Row[Any]]:
        """The oldest records that are not numbered yet, with the columns of `AuditPending`."""
        return self._session.connection().execute(_OLDEST, {"most": limit}).all()

    def settle(self, ids: Sequence[int]) -> None:
        """Remove pending records that now stand in the log."""
        self._session.connection().execute(_SETTLE, {"ids": ids})

    def size(self) -> int:
        """How many records the log has."""
        top: int | None = self._session.connection().scalar(_TOP)
        return 0 if top is None else top + 1

    def append(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Add numbered records, each a mapping of the columns of `AuditEvent`; other processes hear of the commit.

        The notice names the process that all of them are from, if it is one: that one has nothing to look for.
        """
        connection = self._session.connection()
        connection.execute(_APPEND, rows)
        if connection.dialect.name == "postgresql":
            origins = {str(row["origin"]) for row in rows}
            connection.execute(_TELL, {"origin": origins.pop() if len(origins) == 1 else ""})

    def of_others(self, origin: str, *, start: int, stop: int, limit: int) -> Sequence[AuditEvent]:
        """Records from `start` to before `stop` that another process committed, in order."""
        others = select(AuditEvent).where(AuditEvent.idx >= start, AuditEvent.idx < stop, AuditEvent.origin != origin)
        return self._session.scalars(others.order_by(AuditEvent.idx).limit(limit)).all()

    def waiting_since(self) -> float | None:
        """The time of the oldest record that is not numbered yet; None where there is none."""
        oldest = select(AuditPending.ts).order_by(AuditPending.id).limit(1)
        found: float | None = self._session.scalar(oldest)
        return found

    def put_tile(self, level: int, n: int, data: bytes) -> None:
        connection = self._session.connection()
        connection.execute(_PUT[connection.dialect.name], {"level": level, "n": n, "data": data})

    def tile(self, level: int, n: int) -> bytes | None:
        data: bytes | None = self._session.connection().scalar(_TILE_AT, {"level": level, "n": n})
        return data

    def put_checkpoint(self, size: int, note: str, created_at: float) -> None:
        self._session.connection().execute(_CHECKPOINT, {"size": size, "note": note, "created_at": created_at})

    def checkpoint(self) -> AuditCheckpoint | None:
        """The newest signed tree head."""
        return self._session.scalars(select(AuditCheckpoint).order_by(AuditCheckpoint.size.desc()).limit(1)).first()

    def event(self, idx: int) -> AuditEvent | None:
        return self._session.get(AuditEvent, idx)

    def events(
        self,
        *,
        start: int = 0,
        stop: int | None = None,
        since: float | None = None,
        until: float | None = None,
        newest_first: bool = False,
        limit: int = 100,
        equals: Mapping[str, str] = MappingProxyType({}),
    ) -> Sequence[AuditEvent]:
        """Records from `start` to before `stop` whose kind, actor, agreement, dataset, outcome are `equals`."""
        query = select(AuditEvent).where(*_conditions(start, stop, since, until, equals))
        order = AuditEvent.idx.desc() if newest_first else AuditEvent.idx
        return self._session.scalars(query.order_by(order).limit(limit)).all()

    def walk(
        self,
        *,
        stop: int,
        batch: int = 1000,
        since: float | None = None,
        until: float | None = None,
        equals: Mapping[str, str] = MappingProxyType({}),
    ) -> Iterator[AuditEvent]:
        """Every such record before `stop`, in order, a batch in memory at a time."""
        start = 0
        while start < stop:
            rows = self.events(start=start, stop=stop, since=since, until=until, limit=batch, equals=equals)
            if not rows:
                return
            yield from rows
            start = rows[-1].idx + 1
            self._session.expunge_all()


def _conditions(
    start: int, stop: int | None, since: float | None, until: float | None, equals: Mapping[str, str]
) -> list[ColumnElement[bool]]:
    unknown = set(equals) - set(_EQUALS)
    if unknown:
        raise TypeError(f"expected filters among {', '.join(_EQUALS)}, came {', '.join(sorted(unknown))}")
    conditions = [AuditEvent.idx >= start]
    if stop is not None:
        conditions.append(AuditEvent.idx < stop)
    if since is not None:
        conditions.append(AuditEvent.ts >= since)
    if until is not None:
        conditions.append(AuditEvent.ts < until)
    return conditions + [getattr(AuditEvent, name) == value for name, value in equals.items()]
