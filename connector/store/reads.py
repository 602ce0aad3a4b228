"""Queries for reads under way."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import delete, select, update
from sqlalchemy.orm import Session

from connector.store.tables import OpenRead


class OpenReads:
    def __init__(self, session: Session) -> None:
        self._session = session

    def add(self, row: OpenRead) -> None:
        self._session.add(row)

    def progress(self, read_id: str, *, rows: int, nbytes: int) -> None:
        """What has left so far."""
        self._session.execute(update(OpenRead).where(OpenRead.id == read_id).values(rows=rows, bytes=nbytes))

    def close(self, read_id: str) -> None:
        self._session.execute(delete(OpenRead).where(OpenRead.id == read_id))

    def left_by(self, instance: str) -> Sequence[OpenRead]:
        """Reads that an earlier run of this process began and did not end."""
        return self._session.scalars(select(OpenRead).where(OpenRead.instance == instance)).all()

    def under_way(self, *, limit: int) -> Sequence[OpenRead]:
        """Reads that were begun and have not ended, in no order of note."""
        return self._session.scalars(select(OpenRead).limit(limit)).all()
