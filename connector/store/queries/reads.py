"""Queries for reads under way, and for the processes that they are under way in."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from typing import Any

from sqlalchemy import ColumnElement, Float, and_, bindparam, delete, func, insert, or_, select, update

from connector.store.clock import Now
from connector.store.compiled_statements import Prepared, adding
from connector.store.tables import OpenRead, ProcessLease, ReadPlace, bare
from connector.store.unit_of_work import Unit

MORE = "more"  # in `OpenRead.body`: what the read has under its further agreements
_THEN = Now() + bindparam("seconds", type_=Float)
_READ, _PLACE, _LEASE = bare(OpenRead), bare(ReadPlace), bare(ProcessLease)
_THIS = and_(_READ.c.id == bindparam("read"), _READ.c.instance == bindparam("by"))
_OPEN = adding(_READ, "id", "instance", "body", "rows", "bytes")
_PROGRESS = Prepared(update(_READ).where(_THIS).values(rows=bindparam("rows_left"), bytes=bindparam("bytes_left")))
_CLOSE = Prepared(delete(_READ).where(_THIS))

_UNDER = _PLACE.c.agreement_id == bindparam("agreement")
_LAPSED = Prepared(delete(_PLACE).where(_UNDER, _PLACE.c.until < Now()))
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
_RENEW = Prepared(update(_LEASE).where(_LEASE.c.run == bindparam("whose"), _LEASE.c.until >= Now()).values(until=_THEN))
_BEGIN_LEASE = Prepared(insert(_LEASE).inline().values(run=bindparam("whose"), until=_THEN))
_END_LEASE = Prepared(delete(_LEASE).where(_LEASE.c.run == bindparam("whose")))
_END_LAPSED = Prepared(delete(_LEASE).where(_LEASE.c.until < Now()).returning(_LEASE.c.run))
_ALIVE = Prepared(select(_LEASE.c.run).where(_LEASE.c.until >= Now()))
_FREE = Prepared(delete(_PLACE).where(_PLACE.c.read_id == bindparam("read")))


class OpenReads:
    def __init__(self, unit: Unit) -> None:
        self._unit = unit

    def add(self, read_id: str, *, instance: str, body: dict[str, Any]) -> None:
        """A read is under way in the process `instance`, who alone tells of it; nothing has left yet."""
        self._unit.change(_OPEN, id=read_id, instance=instance, body=body, rows=0, bytes=0)

    def progress(self, read_id: str, *, instance: str, rows: int, nbytes: int) -> bool:
        """What has left so far. False where the read is under way no more: somebody has recorded its end."""
        return self._unit.change(_PROGRESS, read=read_id, by=instance, rows_left=rows, bytes_left=nbytes) > 0

    def close(self, read_id: str, *, instance: str) -> bool:
        """The read is under way no more. Whether it was until now, in that process: another one may have its id."""
        return self._unit.change(_CLOSE, read=read_id, by=instance) > 0

    def has(self, read_id: str, *, consumer: str) -> bool:
        """Whether a read with this id, of this consumer's, is under way in whatever process."""
        row = self._unit.session.get(OpenRead, read_id)
        return row is not None and row.body.get("actor") == consumer

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

    def keep_lease(self, run: str, *, seconds: float) -> bool:
        """This run is alive, and is thought to be for so long. Whether that had not lapsed since the last time."""
        if self._unit.change(_RENEW, whose=run, seconds=seconds):
            return True
        self._unit.change(_END_LEASE, whose=run)
        self._unit.change(_BEGIN_LEASE, whose=run, seconds=seconds)
        return False

    def end_lease(self, run: str) -> None:
        self._unit.change(_END_LEASE, whose=run)

    def end_lapsed_leases(self) -> list[str]:
        """The runs whose leases have lapsed: from now on they have none."""
        return [run for (run,) in self._unit.rows(_END_LAPSED)]

    def alive(self) -> set[str]:
        """The runs whose leases hold."""
        return {run for (run,) in self._unit.rows(_ALIVE)}

    def left_by(self, instance: str) -> Sequence[OpenRead]:
        """Reads that this run, or any run of this process, began and did not end."""
        runs = OpenRead.instance.startswith(f"{instance}.", autoescape=True)
        return self._unit.session.scalars(select(OpenRead).where(or_(OpenRead.instance == instance, runs))).all()

    def under_way(self, *, agreement: str = "", limit: int | None = None, offset: int = 0) -> Sequence[OpenRead]:
        """Reads that were begun and have not ended, the newest first; of one agreement only those under it."""
        newest = func.coalesce(OpenRead.body["since"].as_float(), 0.0).desc()
        asked = select(OpenRead).where(*_under(agreement)).order_by(newest, OpenRead.id)
        return self._unit.session.scalars(asked.limit(limit).offset(offset)).all()

    def number(self, *, agreement: str = "") -> int:
        """How many these are."""
        return int(self._unit.session.scalar(select(func.count()).select_from(OpenRead).where(*_under(agreement))) or 0)


def _under(agreement: str) -> list[ColumnElement[bool]]:
    """Where a read is under the agreement, its first or a further one, or any."""
    if not agreement:
        return []
    more = OpenRead.body[MORE].as_string().contains(json.dumps(agreement), autoescape=True)
    return [or_(OpenRead.body["agreement"].as_string() == agreement, more)]
