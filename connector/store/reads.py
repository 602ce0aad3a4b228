"""Queries for reads under way."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from sqlalchemy import ColumnElement, Float, and_, bindparam, delete, func, insert, or_, select, update
from sqlalchemy.ext.compiler import compiles

from connector.store.prepared import Prepared, adding
from connector.store.tables import OpenRead, ReadPlace, bare
from connector.store.unit import Unit


class _Now(ColumnElement[float]):
    """What the database's clock says, in UTC seconds since the epoch: those of processes may be minutes apart."""

    inherit_cache = True
    type = Float()


@compiles(_Now, "postgresql")
def _now_of_the_server(*_: object, **__: object) -> str:
    return "CAST(extract(epoch FROM clock_timestamp()) AS double precision)"


@compiles(_Now, "sqlite")
def _now_of_this_machine(*_: object, **__: object) -> str:
    return "((julianday('now') - 2440587.5) * 86400.0)"


_THEN = _Now() + bindparam("seconds", type_=Float)
_READ, _PLACE = bare(OpenRead), bare(ReadPlace)
_THIS = and_(_READ.c.id == bindparam("read"), _READ.c.instance == bindparam("by"))
_OPEN = adding(_READ, "id", "instance", "body", "rows", "bytes")
_PROGRESS = Prepared(update(_READ).where(_THIS).values(rows=bindparam("rows_left"), bytes=bindparam("bytes_left")))
_CLOSE = Prepared(delete(_READ).where(_THIS))

_UNDER = _PLACE.c.agreement_id == bindparam("agreement")
_LAPSED = Prepared(delete(_PLACE).where(_UNDER, _PLACE.c.until < _Now()))
_TAKE = Prepared(
    insert(_PLACE).inline().values(read_id=bindparam("read"), agreement_id=bindparam("agreement"), until=_THEN)
)
_TAKEN = Prepared(select(func.count()).select_from(_PLACE).where(_UNDER))
_KEEP = Prepared(
    update(_PLACE)
    .where(_PLACE.c.read_id.in_(bindparam("reads", expanding=True)))
    .values(until=_THEN)
    .returning(_PLACE.c.read_id)
)
_FREE = Prepared(delete(_PLACE).where(_PLACE.c.read_id == bindparam("read")))


class OpenReads:
    def __init__(self, unit: Unit) -> None:
        self._unit = unit

    def add(self, read_id: str, *, instance: str, body: dict[str, Any]) -> None:
        """A read is under way in the process `instance`, who alone tells of it; nothing has left yet."""
        self._unit.change(_OPEN, id=read_id, instance=instance, body=body, rows=0, bytes=0)

    def progress(self, read_id: str, *, instance: str, rows: int, nbytes: int) -> None:
        """What has left so far."""
        self._unit.change(_PROGRESS, read=read_id, by=instance, rows_left=rows, bytes_left=nbytes)

    def close(self, read_id: str, *, instance: str) -> bool:
        """The read is under way no more. Whether it was until now, in that process: another one may have its id."""
        return self._unit.change(_CLOSE, read=read_id, by=instance) > 0

    def take_place(self, read_id: str, agreement_id: str, *, seconds: float) -> int:
        """A place among the reads of an agreement, for so long; how many have one with it.

        For a transaction that has the agreement's grant changed: the others that want one wait for its end.
        """
        self._unit.change(_LAPSED, agreement=agreement_id)
        self._unit.change(_TAKE, read=read_id, agreement=agreement_id, seconds=seconds)
        return int(self._unit.rows(_TAKEN, agreement=agreement_id)[0][0])

    def keep_places(self, read_ids: Collection[str], *, seconds: float) -> set[str]:
        """Hold the places of these reads so much longer; the reads that still had one."""
        return {read_id for (read_id,) in self._unit.rows(_KEEP, reads=list(read_ids), seconds=seconds)}

    def free_places(self, read_id: str) -> None:
        self._unit.change(_FREE, read=read_id)

    def left_by(self, instance: str) -> Sequence[OpenRead]:
        """Reads that an earlier run of this process began and did not end."""
        runs = OpenRead.instance.startswith(f"{instance}.", autoescape=True)
        return self._unit.session.scalars(select(OpenRead).where(or_(OpenRead.instance == instance, runs))).all()

    def under_way(self, *, limit: int) -> Sequence[OpenRead]:
        """Reads that were begun and have not ended, in no order of note."""
        return self._unit.session.scalars(select(OpenRead).limit(limit)).all()
