"""Queries for running reads, their places under agreements, and the leases of processes."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from typing import Any

from sqlalchemy import ColumnElement, Float, and_, bindparam, delete, func, insert, or_, select, update

from connector.store.clock import Now
from connector.store.compiled_statements import CompiledStatement, build_insert
from connector.store.tables import OpenRead, ProcessLease, ReadPlace, core_table
from connector.store.unit_of_work import UnitOfWork

MORE = "more"  # key in `OpenRead.body`: the read's further agreements
_THEN = Now() + bindparam("seconds", type_=Float)
_READ, _PLACE, _LEASE = core_table(OpenRead), core_table(ReadPlace), core_table(ProcessLease)
_THIS = and_(_READ.c.id == bindparam("read"), _READ.c.instance == bindparam("by"))
_OPEN = build_insert(_READ, "id", "instance", "body", "rows", "bytes")
_PROGRESS = CompiledStatement(
    update(_READ).where(_THIS).values(rows=bindparam("rows_left"), bytes=bindparam("bytes_left"))
)
_CLOSE = CompiledStatement(delete(_READ).where(_THIS))

_UNDER = _PLACE.c.agreement_id == bindparam("agreement")
_LAPSED = CompiledStatement(delete(_PLACE).where(_UNDER, _PLACE.c.until < Now()))
_TAKE = CompiledStatement(
    insert(_PLACE).inline().values(read_id=bindparam("read"), agreement_id=bindparam("agreement"), until=_THEN)
)
_TAKEN = CompiledStatement(select(func.count()).select_from(_PLACE).where(_UNDER))
_KEEP = CompiledStatement(
    update(_PLACE)
    .where(_PLACE.c.read_id.in_(bindparam("reads", expanding=True)))
    .values(until=_THEN)
    .returning(_PLACE.c.read_id)
)
_RENEW = CompiledStatement(
    update(_LEASE).where(_LEASE.c.run == bindparam("whose"), _LEASE.c.until >= Now()).values(until=_THEN)
)
_BEGIN_LEASE = CompiledStatement(insert(_LEASE).inline().values(run=bindparam("whose"), until=_THEN))
_END_LEASE = CompiledStatement(delete(_LEASE).where(_LEASE.c.run == bindparam("whose")))
_END_LAPSED = CompiledStatement(delete(_LEASE).where(_LEASE.c.until < Now()).returning(_LEASE.c.run))
_ALIVE = CompiledStatement(select(_LEASE.c.run).where(_LEASE.c.until >= Now()))
_FREE = CompiledStatement(delete(_PLACE).where(_PLACE.c.read_id == bindparam("read")))


class OpenReadQueries:
    """Queries for running reads. `instance` is a run of a process; times are durations in seconds."""

    def __init__(self, unit: UnitOfWork) -> None:
        self._unit = unit

    def add(self, read_id: str, *, instance: str, body: dict[str, Any]) -> None:
        """Store that a read started in `instance`. Only that process updates it."""
        self._unit.execute(_OPEN, id=read_id, instance=instance, body=body, rows=0, bytes=0)

    def update_totals(self, read_id: str, *, instance: str, rows: int, nbytes: int) -> bool:
        """Store the rows and bytes sent so far. False if the read has already been closed."""
        return self._unit.execute(_PROGRESS, read=read_id, by=instance, rows_left=rows, bytes_left=nbytes) > 0

    def close(self, read_id: str, *, instance: str) -> bool:
        """Remove the read. Returns whether it was running in `instance`; another process may use the same id."""
        return self._unit.execute(_CLOSE, read=read_id, by=instance) > 0

    def has(self, read_id: str, *, consumer: str) -> bool:
        """Whether a read with this id and consumer is running in any process."""
        row = self._unit.session.get(OpenRead, read_id)
        return row is not None and row.body.get("actor") == consumer

    def take_place(self, read_id: str, agreement_id: str, *, seconds: float) -> int:
        """Take a place among the concurrent reads of an agreement. Returns how many are taken, with this one.

        The transaction must have locked the agreement's grant, so that other transactions wait for it.
        """
        self._unit.execute(_LAPSED, agreement=agreement_id)
        self._unit.execute(_TAKE, read=read_id, agreement=agreement_id, seconds=seconds)
        return int(self._unit.fetch(_TAKEN, agreement=agreement_id)[0][0])

    def keep_places(self, read_ids: Collection[str], *, seconds: float) -> set[str]:
        """Extend the places of these reads. Returns the reads that still had one."""
        return {read_id for (read_id,) in self._unit.fetch(_KEEP, reads=list(read_ids), seconds=seconds)}

    def free_places(self, read_id: str) -> None:
        self._unit.execute(_FREE, read=read_id)

    def keep_lease(self, run: str, *, seconds: float) -> bool:
        """Extend the lease of a run. Returns False if it had lapsed and was begun again."""
        if self._unit.execute(_RENEW, whose=run, seconds=seconds):
            return True
        self._unit.execute(_END_LEASE, whose=run)
        self._unit.execute(_BEGIN_LEASE, whose=run, seconds=seconds)
        return False

    def end_lease(self, run: str) -> None:
        self._unit.execute(_END_LEASE, whose=run)

    def end_lapsed_leases(self) -> list[str]:
        """Remove leases that lapsed. Returns their runs."""
        return [run for (run,) in self._unit.fetch(_END_LAPSED)]

    def list_live_runs(self) -> set[str]:
        """Runs whose lease has not lapsed."""
        return {run for (run,) in self._unit.fetch(_ALIVE)}

    def list_of_instance(self, instance: str) -> Sequence[OpenRead]:
        """Reads that this run, or any run of this process, started and did not close."""
        runs = OpenRead.instance.startswith(f"{instance}.", autoescape=True)
        return self._unit.session.scalars(select(OpenRead).where(or_(OpenRead.instance == instance, runs))).all()

    def list_open(self, *, agreement: str = "", limit: int | None = None, offset: int = 0) -> Sequence[OpenRead]:
        """Running reads, newest first; with `agreement` only those under it."""
        newest = func.coalesce(OpenRead.body["since"].as_float(), 0.0).desc()
        query = select(OpenRead).where(*_is_under(agreement)).order_by(newest, OpenRead.id)
        return self._unit.session.scalars(query.limit(limit).offset(offset)).all()

    def count(self, *, agreement: str = "") -> int:
        """The number of running reads; with `agreement` only those under it."""
        return int(
            self._unit.session.scalar(select(func.count()).select_from(OpenRead).where(*_is_under(agreement))) or 0
        )


def _is_under(agreement: str) -> list[ColumnElement[bool]]:
    """Condition that a read is under the agreement, its first or a further one; no condition if it is empty."""
    if not agreement:
        return []
    more = OpenRead.body[MORE].as_string().contains(json.dumps(agreement), autoescape=True)
    return [or_(OpenRead.body["agreement"].as_string() == agreement, more)]
