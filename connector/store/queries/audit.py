"""Queries for the audit log's rows. What they mean is the business of `connector.audit`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, Integer, String, and_, bindparam, delete, exists, func, or_, select
from sqlalchemy.dialects import postgresql, sqlite

from connector.store.compiled_statements import Prepared, adding
from connector.store.tables import (
    Agreement,
    AuditCheckpoint,
    AuditEvent,
    AuditPending,
    AuditTile,
    Dataset,
    Json,
    bare,
)
from connector.store.unit_of_work import Unit

CHANNEL = "hanse_log"  # NOTIFY: records were numbered
_LOCK = 0x48616E7365  # any number, the same for every connector process on one database
_MEANT_MAX = 10
_EQUALS = ("kind", "actor", "agreement", "dataset", "named", "outcome")


class Pending(NamedTuple):
    """A record that is not numbered yet."""

    id: int
    ts: float
    body: Json
    origin: str


_EVENT, _PENDING, _TILE = bare(AuditEvent), bare(AuditPending), bare(AuditTile)
_KEPT = Prepared(
    select(
        or_(
            *(
                exists().where(table.c.ts == bindparam("ts"), table.c.origin == bindparam("origin"))
                for table in (_PENDING, _EVENT)
            )
        )
    )
)
_LOCKED = Prepared(select(func.pg_try_advisory_xact_lock(_LOCK)))
_TELL = Prepared(select(func.pg_notify(CHANNEL, bindparam("origin", type_=String))))
_OLDEST = Prepared(
    select(*(_PENDING.c[name] for name in Pending._fields))
    .order_by(_PENDING.c.id)
    .limit(bindparam("most", type_=Integer))
)
_SETTLE = Prepared(delete(_PENDING).where(_PENDING.c.id.in_(bindparam("ids", expanding=True))))
_TOP = Prepared(select(func.max(_EVENT.c.idx)))
_APPEND = adding(_EVENT, *_EVENT.c.keys())
_TILE_AT = Prepared(select(_TILE.c.data).where(_TILE.c.level == bindparam("level"), _TILE.c.n == bindparam("n")))
_CHECKPOINT = adding(bare(AuditCheckpoint), "size", "note", "created_at")


def _put(build: Any) -> Prepared:
    put = build(_TILE)
    return Prepared(
        put.on_conflict_do_update(index_elements=[_TILE.c.level, _TILE.c.n], set_={"data": put.excluded.data})
    )


_PUT = {"sqlite": _put(sqlite.insert), "postgresql": _put(postgresql.insert)}


def mark(process: str, number: int) -> str:
    """An origin that the records of one transaction have, and nothing else: the `number` is given out once in a
    process, and who the process is nobody else has drawn."""
    return f"{process}.{number}"


def process_of(origin: str) -> str:
    """The process in an origin, which may be a transaction's own."""
    return origin.partition(".")[0]


class AuditRows:
    def __init__(self, unit: Unit) -> None:
        self._unit = unit

    def lock(self) -> bool:
        """Whether this transaction is the only one that may number records. SQLite has one writer at a time anyway."""
        return self._unit.database == "sqlite" or bool(self._unit.rows(_LOCKED)[0][0])

    def pending(self, limit: int) -> list[Pending]:
        """The oldest records that are not numbered yet."""
        return [Pending(*row) for row in self._unit.rows(_OLDEST, most=limit)]

    def settle(self, ids: Sequence[int]) -> None:
        """Remove pending records that now stand in the log."""
        self._unit.change(_SETTLE, ids=ids)

    def size(self) -> int:
        """How many records the log has."""
        top: int | None = self._unit.rows(_TOP)[0][0]
        return 0 if top is None else top + 1

    def is_empty(self) -> bool:
        """Whether nothing has been recorded yet, as in a database that was made a moment ago."""
        return not self.size() and self.waiting_since() is None

    def append(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Add numbered records, each a mapping of the columns of `AuditEvent`; other processes hear of the commit.

        The notice names the process that all of them are from, if it is one: that one has nothing to look for.
        """
        self._unit.add(_APPEND, rows)
        if self._unit.database == "postgresql":
            origins = {process_of(str(row["origin"])) for row in rows}
            self._unit.rows(_TELL, origin=origins.pop() if len(origins) == 1 else "")

    def has(self, origin: str, *, ts: float) -> bool:
        """Whether a record of this very origin and time is here, numbered or not."""
        return bool(self._unit.rows(_KEPT, origin=origin, ts=ts)[0][0])

    def of_others(self, process: str, *, start: int, stop: int, limit: int) -> Sequence[AuditEvent]:
        """Records from `start` to before `stop` that another process committed, in order."""
        whose = func.substr(AuditEvent.origin, 1, len(process))
        others = select(AuditEvent).where(AuditEvent.idx >= start, AuditEvent.idx < stop, whose != process)
        return self._unit.session.scalars(others.order_by(AuditEvent.idx).limit(limit)).all()

    def waiting_since(self) -> float | None:
        """The time of the oldest record that is not numbered yet; None where there is none."""
        oldest = select(AuditPending.ts).order_by(AuditPending.id).limit(1)
        found: float | None = self._unit.session.scalar(oldest)
        return found

    def put_tile(self, level: int, n: int, data: bytes) -> None:
        self._unit.change(_PUT[self._unit.database], level=level, n=n, data=data)

    def tile(self, level: int, n: int) -> bytes | None:
        found = self._unit.rows(_TILE_AT, level=level, n=n)
        return found[0][0] if found else None

    def put_checkpoint(self, size: int, note: str, created_at: float) -> None:
        self._unit.change(_CHECKPOINT, size=size, note=note, created_at=created_at)

    def checkpoint(self) -> AuditCheckpoint | None:
        """The newest signed tree head."""
        return self._unit.session.scalars(
            select(AuditCheckpoint).order_by(AuditCheckpoint.size.desc()).limit(1)
        ).first()

    def event(self, idx: int) -> AuditEvent | None:
        return self._unit.session.get(AuditEvent, idx)

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
        """Records from `start` to before `stop` whose kind, actor, agreement, dataset, outcome are `equals`. One that
        names no dataset is about its agreement's; `named` is another text that a record may have for the dataset."""
        query = select(AuditEvent).where(*_conditions(start, stop, since, until, equals))
        order = AuditEvent.idx.desc() if newest_first else AuditEvent.idx
        return self._unit.session.scalars(query.order_by(order).limit(limit)).all()

    def datasets(self, name: str) -> list[str]:
        """The ids of the datasets that somebody may mean by a name, the surest alone: the one that has it here; the one
        of `owner/name`; those agreed on whose id ends in it; those in the log. Whoever sends us a message chooses
        what stands in the log, and so may not come before any other."""
        named = self._unit.session.scalars(select(Dataset.id).where(Dataset.name == name)).all()
        owner, slash, rest = name.partition("/")
        whole = f"urn:hanse:{owner}:{rest}"
        if not named and slash and self.knows_dataset(whole):
            return [whole]
        agreed = list(named) or self._ending(name, Dataset.id, Agreement.dataset_id)
        return agreed or self._ending(name, AuditEvent.dataset)

    def _ending(self, name: str, *ids: Any) -> list[str]:
        last = f":{name}"  # not LIKE: SQLite's takes capitals for small letters
        queries = (
            select(one)
            .where(func.substr(one, func.length(one) - len(last) + 1) == last, func.length(one) >= len(last))
            .distinct()
            .limit(_MEANT_MAX)
            for one in ids
        )
        return sorted({one for query in queries for one in self._unit.session.scalars(query)})

    def knows_dataset(self, dataset: str) -> bool:
        """Whether one with this very id is registered or agreed on here, or a record names it so."""
        return (
            self._has(Dataset.id == dataset)
            or self._has(Agreement.dataset_id == dataset)
            or self._has(AuditEvent.dataset == dataset)
        )

    def knows_agreement(self, agreement: str) -> bool:
        """Whether it was concluded here, or the log names it."""
        return self._has(Agreement.id == agreement) or self._has(AuditEvent.agreement == agreement)

    def _has(self, condition: ColumnElement[bool]) -> bool:
        return bool(self._unit.session.scalar(select(exists().where(condition))))

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
            self._unit.session.expunge_all()


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
    if datasets := [equals[name] for name in ("dataset", "named") if name in equals]:
        conditions.append(_about(datasets))
    plain = equals.keys() - {"dataset", "named"}
    return conditions + [getattr(AuditEvent, name) == equals[name] for name in sorted(plain)]


def _about(datasets: Sequence[str]) -> ColumnElement[bool]:
    """Records that name one of these, or none and an agreement on one."""
    its = select(Agreement.id).where(Agreement.dataset_id.in_(datasets))
    return or_(AuditEvent.dataset.in_(datasets), and_(AuditEvent.dataset == "", AuditEvent.agreement.in_(its)))
