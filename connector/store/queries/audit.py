"""Queries for the rows of the audit log. `connector.audit` gives them their meaning."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, Integer, String, and_, bindparam, delete, exists, func, or_, select
from sqlalchemy.dialects import postgresql, sqlite

from connector.store.compiled_statements import CompiledStatement, build_insert
from connector.store.tables import (
    Agreement,
    AuditCheckpoint,
    AuditCosignature,
    AuditEvent,
    AuditPending,
    AuditTile,
    Json,
    RegisteredDataset,
    core_table,
)
from connector.store.unit_of_work import UnitOfWork

CHANNEL = "hanse_log"  # of NOTIFY after records were numbered
_LOCK = 0x48616E7365  # any number, the same for every connector process on one database
_MEANT_MAX = 10
_COSIGNED_KEPT = 4  # heads of a witness whose cosignatures are kept
_EQUALS = ("kind", "actor", "agreement", "dataset", "named", "outcome")


class PendingRecord(NamedTuple):
    """A record that has no number yet."""

    id: int
    ts: float
    body: Json
    origin: str


_EVENT, _PENDING, _TILE = core_table(AuditEvent), core_table(AuditPending), core_table(AuditTile)
_KEPT = CompiledStatement(
    select(
        or_(
            *(
                exists().where(table.c.ts == bindparam("ts"), table.c.origin == bindparam("origin"))
                for table in (_PENDING, _EVENT)
            )
        )
    )
)
_LOCKED = CompiledStatement(select(func.pg_try_advisory_xact_lock(_LOCK)))
_TELL = CompiledStatement(select(func.pg_notify(CHANNEL, bindparam("origin", type_=String))))
_OLDEST = CompiledStatement(
    select(*(_PENDING.c[name] for name in PendingRecord._fields))
    .order_by(_PENDING.c.id)
    .limit(bindparam("most", type_=Integer))
)
_SETTLE = CompiledStatement(delete(_PENDING).where(_PENDING.c.id.in_(bindparam("ids", expanding=True))))
_TOP = CompiledStatement(select(func.max(_EVENT.c.idx)))
_APPEND = build_insert(_EVENT, *_EVENT.c.keys())
_TILE_AT = CompiledStatement(
    select(_TILE.c.data).where(_TILE.c.level == bindparam("level"), _TILE.c.n == bindparam("n"))
)
_CHECKPOINT = build_insert(core_table(AuditCheckpoint), "size", "note", "created_at")


def _build_tile_upsert(build: Any) -> CompiledStatement:
    put = build(_TILE)
    return CompiledStatement(
        put.on_conflict_do_update(index_elements=[_TILE.c.level, _TILE.c.n], set_={"data": put.excluded.data})
    )


_TILE_UPSERT = {"sqlite": _build_tile_upsert(sqlite.insert), "postgresql": _build_tile_upsert(postgresql.insert)}


def make_origin(process: str, number: int) -> str:
    """The origin of the records of one transaction.

    `number` is used once in a process, and `process` is a random id.
    """
    return f"{process}.{number}"


def origin_to_process(origin: str) -> str:
    """The process in an origin, with or without a transaction's number."""
    return origin.partition(".")[0]


class AuditQueries:
    """Queries for records, tree tiles and checkpoints of the audit log."""

    def __init__(self, unit: UnitOfWork) -> None:
        self._unit = unit

    def lock(self) -> bool:
        """Take the lock for numbering records; False if another transaction has it. SQLite has one writer anyway."""
        return self._unit.database == "sqlite" or bool(self._unit.fetch(_LOCKED)[0][0])

    def list_pending(self, limit: int) -> list[PendingRecord]:
        """The oldest records without a number."""
        return [PendingRecord(*row) for row in self._unit.fetch(_OLDEST, most=limit)]

    def remove_pending(self, ids: Sequence[int]) -> None:
        """Remove pending records that were appended to the log."""
        self._unit.execute(_SETTLE, ids=ids)

    def read_size(self) -> int:
        """The number of records in the log."""
        top: int | None = self._unit.fetch(_TOP)[0][0]
        return 0 if top is None else top + 1

    def is_empty(self) -> bool:
        """Whether no record exists, as in a new database."""
        return not self.read_size() and self.read_oldest_pending_time() is None

    def append(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Append numbered records, each a mapping of the columns of `AuditEvent`. Other processes get a notice.

        If all records are of one process, the notice names it, and that process ignores the notice.
        """
        self._unit.execute_many(_APPEND, rows)
        if self._unit.database == "postgresql":
            origins = {origin_to_process(str(row["origin"])) for row in rows}
            self._unit.fetch(_TELL, origin=origins.pop() if len(origins) == 1 else "")

    def has_record(self, origin: str, *, ts: float) -> bool:
        """Whether a record with this origin and time exists, numbered or pending."""
        return bool(self._unit.fetch(_KEPT, origin=origin, ts=ts)[0][0])

    def list_from_others(self, process: str, *, start: int, stop: int, limit: int) -> Sequence[AuditEvent]:
        """Records from `start` to before `stop` that other processes committed, in order."""
        committed_by = func.substr(AuditEvent.origin, 1, len(process))
        others = select(AuditEvent).where(AuditEvent.idx >= start, AuditEvent.idx < stop, committed_by != process)
        return self._unit.session.scalars(others.order_by(AuditEvent.idx).limit(limit)).all()

    def read_oldest_pending_time(self) -> float | None:
        """The time of the oldest record without a number (UTC seconds); None if all have one."""
        oldest = select(AuditPending.ts).order_by(AuditPending.id).limit(1)
        ts: float | None = self._unit.session.scalar(oldest)
        return ts

    def put_tile(self, level: int, n: int, data: bytes) -> None:
        self._unit.execute(_TILE_UPSERT[self._unit.database], level=level, n=n, data=data)

    def read_tile(self, level: int, n: int) -> bytes | None:
        rows = self._unit.fetch(_TILE_AT, level=level, n=n)
        return rows[0][0] if rows else None

    def put_checkpoint(self, size: int, note: str, created_at: float) -> None:
        self._unit.execute(_CHECKPOINT, size=size, note=note, created_at=created_at)

    def read_checkpoint(self) -> AuditCheckpoint | None:
        """The newest signed tree head."""
        return self._unit.session.scalars(
            select(AuditCheckpoint).order_by(AuditCheckpoint.size.desc()).limit(1)
        ).first()

    def put_cosignature(self, size: int, *, witness: str, lines: str, now: float) -> None:
        """Keep the cosignatures of a witness for a head, and only its newest few heads."""
        session = self._unit.session
        session.merge(AuditCosignature(size=size, witness=witness, lines=lines, cosigned_at=now))
        session.flush()
        kept = select(AuditCosignature.size).where(AuditCosignature.witness == witness)
        sizes = session.scalars(kept.order_by(AuditCosignature.size.desc()).limit(_COSIGNED_KEPT)).all()
        old = (AuditCosignature.witness == witness, AuditCosignature.size < sizes[-1])
        session.execute(delete(AuditCosignature).where(*old))

    def list_cosignatures(self, *, start: int) -> Sequence[AuditCosignature]:
        """The kept cosignatures of heads of at least `start` records."""
        kept = select(AuditCosignature).where(AuditCosignature.size >= start)
        return self._unit.session.scalars(kept.order_by(AuditCosignature.size, AuditCosignature.witness)).all()

    def list_newest_cosignatures(self) -> Sequence[AuditCosignature]:
        """The newest cosignature of each witness."""
        newest = {row.witness: row for row in self.list_cosignatures(start=0)}
        return list(newest.values())

    def read_cosigned_size(self, witness: str) -> int:
        """The largest size that a witness cosigned; 0 for none."""
        sizes = select(func.max(AuditCosignature.size)).where(AuditCosignature.witness == witness)
        return int(self._unit.session.scalar(sizes) or 0)

    def find_checkpoint(self, size: int) -> AuditCheckpoint | None:
        """The signed head of exactly `size` records."""
        return self._unit.session.get(AuditCheckpoint, size)

    def get_event(self, idx: int) -> AuditEvent | None:
        return self._unit.session.get(AuditEvent, idx)

    def list_events(
        self,
        *,
        start: int = 0,
        stop: int | None = None,
        since: float | None = None,
        until: float | None = None,
        newest_first: bool = False,
        limit: int = 100,
        equals: Mapping[str, str] = MappingProxyType({}),
        without: str = "",
    ) -> Sequence[AuditEvent]:
        """Records from `start` to before `stop` that match `equals` (kind, actor, agreement, dataset, named, outcome).
        Those of the kind `without` are left out.

        A record without a dataset matches by its agreement's dataset. `named` is a second name of the dataset.
        `since` and `until` are UTC seconds; `until` is exclusive.
        """
        query = select(AuditEvent).where(*_conditions(start, stop, since, until, equals))
        if without:
            query = query.where(AuditEvent.kind != without)
        order = AuditEvent.idx.desc() if newest_first else AuditEvent.idx
        return self._unit.session.scalars(query.order_by(order).limit(limit)).all()

    def find_datasets(self, name: str) -> list[str]:
        """Ids of the datasets that a name may mean, from the first source that has any.

        1. the dataset registered under the name, 2. the dataset `owner/name`, 3. registered and agreed datasets whose
        id ends in the name, 4. datasets in the log. The log comes last, as senders of messages choose its texts.
        """
        registered = self._unit.session.scalars(
            select(RegisteredDataset.id).where(RegisteredDataset.name == name)
        ).all()
        owner, slash, rest = name.partition("/")
        whole = f"urn:hanse:{owner}:{rest}"
        if not registered and slash and self.knows_dataset(whole):
            return [whole]
        agreed = list(registered) or self._find_by_last_part(name, RegisteredDataset.id, Agreement.dataset_id)
        return agreed or self._find_by_last_part(name, AuditEvent.dataset)

    def _find_by_last_part(self, name: str, *ids: Any) -> list[str]:
        last = f":{name}"  # not LIKE: in SQLite it ignores case
        queries = (
            select(column)
            .where(func.substr(column, func.length(column) - len(last) + 1) == last, func.length(column) >= len(last))
            .distinct()
            .limit(_MEANT_MAX)
            for column in ids
        )
        return sorted({name for query in queries for name in self._unit.session.scalars(query)})

    def knows_dataset(self, dataset: str) -> bool:
        """Whether a dataset with this id is registered, agreed on, or named in a record."""
        return (
            self._exists(RegisteredDataset.id == dataset)
            or self._exists(Agreement.dataset_id == dataset)
            or self._exists(AuditEvent.dataset == dataset)
        )

    def knows_agreement(self, agreement: str) -> bool:
        """Whether an agreement is stored or named in a record."""
        return self._exists(Agreement.id == agreement) or self._exists(AuditEvent.agreement == agreement)

    def _exists(self, condition: ColumnElement[bool]) -> bool:
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
        """Every matching record before `stop`, in order, with one batch in memory at a time."""
        start = 0
        while start < stop:
            rows = self.list_events(start=start, stop=stop, since=since, until=until, limit=batch, equals=equals)
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
        raise TypeError(f"expected filters among {', '.join(_EQUALS)}, got {', '.join(sorted(unknown))}")
    conditions = [AuditEvent.idx >= start]
    if stop is not None:
        conditions.append(AuditEvent.idx < stop)
    if since is not None:
        conditions.append(AuditEvent.ts >= since)
    if until is not None:
        conditions.append(AuditEvent.ts < until)
    if datasets := [equals[name] for name in ("dataset", "named") if name in equals]:
        conditions.append(_is_about(datasets))
    plain = equals.keys() - {"dataset", "named"}
    return conditions + [getattr(AuditEvent, name) == equals[name] for name in sorted(plain)]


def _is_about(datasets: Sequence[str]) -> ColumnElement[bool]:
    """Condition that a record names one of these datasets, or no dataset and an agreement on one."""
    agreements = select(Agreement.id).where(Agreement.dataset_id.in_(datasets))
    return or_(AuditEvent.dataset.in_(datasets), and_(AuditEvent.dataset == "", AuditEvent.agreement.in_(agreements)))
