"""Queries for reads under way."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from sqlalchemy import delete, func, select, update
from sqlalchemy.orm import Session

from connector.store.tables import OpenRead, ReadPlace


class OpenReads:
    def __init__(self, session: Session) -> None:
        self._session = session

    def add(self, row: OpenRead) -> None:
        self._session.add(row)

    def progress(self, read_id: str, *, rows: int, nbytes: int) -> None:
        """What has left so far."""
        self._session.execute(update(OpenRead).where(OpenRead.id == read_id).values(rows=rows, bytes=nbytes))

    def close(self, read_id: str) -> bool:
        """The read is under way no more. Whether it was until now."""
        closed = delete(OpenRead).where(OpenRead.id == read_id).returning(OpenRead.id)
        return self._session.scalar(closed) is not None

    def take_place(self, row: ReadPlace, *, now: float) -> int:
        """A place among the reads of an agreement; how many have one with it.

        For a transaction that has the agreement's grant changed: the others that want one wait for its end.
        """
        of = ReadPlace.agreement_id == row.agreement_id
        self._session.execute(delete(ReadPlace).where(of, ReadPlace.until < now))
        self._session.add(row)
        self._session.flush()
        return self._session.scalar(select(func.count()).select_from(ReadPlace).where(of)) or 0

    def keep_places(self, read_ids: Collection[str], *, until: float) -> set[str]:
        """Hold the places of these reads until then; the reads that still had one."""
        kept = update(ReadPlace).where(ReadPlace.read_id.in_(read_ids)).values(until=until)
        return set(self._session.scalars(kept.returning(ReadPlace.read_id)))

    def free_places(self, read_id: str) -> None:
        self._session.execute(delete(ReadPlace).where(ReadPlace.read_id == read_id))

    def left_by(self, instance: str) -> Sequence[OpenRead]:
        """Reads that an earlier run of this process began and did not end."""
        return self._session.scalars(select(OpenRead).where(OpenRead.instance == instance)).all()

    def under_way(self, *, limit: int) -> Sequence[OpenRead]:
        """Reads that were begun and have not ended, in no order of note."""
        return self._session.scalars(select(OpenRead).limit(limit)).all()
