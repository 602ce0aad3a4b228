"""Queries for reads under way."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from sqlalchemy import bindparam, delete, func, insert, select, update
from sqlalchemy.orm import Session

from connector.store.tables import OpenRead, ReadPlace, bare

_READ, _PLACE = bare(OpenRead), bare(ReadPlace)
_THIS = _READ.c.id == bindparam("read")
_OPEN = insert(_READ)
_PROGRESS = update(_READ).where(_THIS).values(rows=bindparam("rows_left"), bytes=bindparam("bytes_left"))
_CLOSE = delete(_READ).where(_THIS)

_UNDER = _PLACE.c.agreement_id == bindparam("agreement")
_LAPSED = delete(_PLACE).where(_UNDER, _PLACE.c.until < bindparam("now"))
_TAKE = insert(_PLACE)
_TAKEN = select(func.count()).select_from(_PLACE).where(_UNDER)
_KEEP = (
    update(_PLACE)
    .where(_PLACE.c.read_id.in_(bindparam("reads", expanding=True)))
    .values(until=bindparam("then"))
    .returning(_PLACE.c.read_id)
)
_FREE = delete(_PLACE).where(_PLACE.c.read_id == bindparam("read"))


class OpenReads:
    def __init__(self, session: Session) -> None:
        self._session = session

    def add(self, read_id: str, *, instance: str, body: dict[str, Any]) -> None:
        """A read is under way; nothing has left yet."""
        self._session.connection().execute(_OPEN, {"id": read_id, "instance": instance, "body": body})

    def progress(self, read_id: str, *, rows: int, nbytes: int) -> None:
        """What has left so far."""
        told = {"read": read_id, "rows_left": rows, "bytes_left": nbytes}
        self._session.connection().execute(_PROGRESS, told)

    def close(self, read_id: str) -> bool:
        """The read is under way no more. Whether it was until now."""
        return self._session.connection().execute(_CLOSE, {"read": read_id}).rowcount > 0

    def take_place(self, read_id: str, agreement_id: str, *, now: float, until: float) -> int:
        """A place among the reads of an agreement; how many have one with it.

        For a transaction that has the agreement's grant changed: the others that want one wait for its end.
        """
        connection, under = self._session.connection(), {"agreement": agreement_id}
        connection.execute(_LAPSED, {**under, "now": now})
        connection.execute(_TAKE, {"read_id": read_id, "agreement_id": agreement_id, "until": until})
        return connection.scalar(_TAKEN, under) or 0

    def keep_places(self, read_ids: Collection[str], *, until: float) -> set[str]:
        """Hold the places of these reads until then; the reads that still had one."""
        kept = self._session.connection().execute(_KEEP, {"reads": list(read_ids), "then": until})
        return set(kept.scalars())

    def free_places(self, read_id: str) -> None:
        self._session.connection().execute(_FREE, {"read": read_id})

    def left_by(self, instance: str) -> Sequence[OpenRead]:
        """Reads that an earlier run of this process began and did not end."""
        return self._session.scalars(select(OpenRead).where(OpenRead.instance == instance)).all()

    def under_way(self, *, limit: int) -> Sequence[OpenRead]:
        """Reads that were begun and have not ended, in no order of note."""
        return self._session.scalars(select(OpenRead).limit(limit)).all()
