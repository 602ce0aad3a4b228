"""The table of logs that a service is a witness for; the same in the stores of connector and catalogue.

Every change is one statement with its condition, so that several processes can share a database.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from sqlalchemy import BigInteger, Float, String, Text, func, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Mapped, Session, mapped_column

_INSERT: dict[str, Any] = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}


class WitnessedLogColumns:
    """A log by its origin, with the member and key that it was first known with. `note` is the newest cosigned head."""

    __tablename__ = "witnessed_log"
    origin: Mapped[str] = mapped_column(String(255), primary_key=True)
    member: Mapped[str] = mapped_column(String(1024))  # DID; empty for a log of the operator's file
    vkey: Mapped[str] = mapped_column(Text)
    size: Mapped[int] = mapped_column(BigInteger)
    note: Mapped[str] = mapped_column(Text)
    cosignatures: Mapped[str] = mapped_column(Text)
    cosigned_at: Mapped[float] = mapped_column(Float)
    refused_at: Mapped[float] = mapped_column(Float)  # of the last refusal that was recorded


class WitnessedLogState(NamedTuple):
    """A row of the table."""

    origin: str
    member: str
    vkey: str
    size: int
    note: str
    cosignatures: str
    cosigned_at: float
    refused_at: float


class WitnessedLogQueries:
    """Queries for witnessed logs in `table`, a store's class with `WitnessedLogColumns`."""

    def __init__(self, session: Session, table: Any) -> None:
        self._session, self._table = session, table
        self._columns = [getattr(table, name) for name in WitnessedLogState._fields]

    def find(self, origin: str) -> WitnessedLogState | None:
        found = self._session.execute(select(*self._columns).where(self._table.origin == origin)).one_or_none()
        return None if found is None else WitnessedLogState(*found)

    def list_all(self) -> Sequence[WitnessedLogState]:
        rows = self._session.execute(select(*self._columns).order_by(self._table.origin))
        return [WitnessedLogState(*row) for row in rows]

    def count_of(self, member: str) -> int:
        """The number of logs that a member has begun."""
        mine = select(func.count()).select_from(self._table).where(self._table.member == member)
        return int(self._session.scalar(mine) or 0)

    def begin(self, origin: str, *, member: str, vkey: str) -> None:
        """Add a log of size 0, unless it is there."""
        first = {"origin": origin, "member": member, "vkey": vkey, "size": 0, "note": "", "cosignatures": ""}
        insert = _INSERT[self._session.get_bind().dialect.name](self._table)
        values = {**first, "cosigned_at": 0.0, "refused_at": 0.0}
        self._session.execute(insert.values(**values).on_conflict_do_nothing(index_elements=["origin"]))

    def advance(
        self, origin: str, *, old: int, old_note: str, size: int, note: str, cosignatures: str, now: float
    ) -> bool:
        """Replace the head if it still is the old one. Returns whether it was."""
        table = self._table
        change = update(table).where(table.origin == origin, table.size == old, table.note == old_note)
        values = {"size": size, "note": note, "cosignatures": cosignatures, "cosigned_at": now}
        done: Any = self._session.execute(change.values(**values).execution_options(synchronize_session=False))
        return bool(done.rowcount == 1)

    def refuse(self, origin: str, *, now: float, before: float) -> bool:
        """Note the time of a refusal that is to be recorded. False if one was noted after `before`."""
        table = self._table
        change = update(table).where(table.origin == origin, table.refused_at <= before).values(refused_at=now)
        done: Any = self._session.execute(change.execution_options(synchronize_session=False))
        return bool(done.rowcount == 1)
