"""Queries for applications of participants that want to join."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import delete, exists, func, or_, select
from sqlalchemy.orm import Session

from catalogue.store.tables import JoinApplication, Member
from connector.errors import Absent

_WAITS = JoinApplication.declined_at.is_(None), ~exists().where(Member.id == JoinApplication.did)


class ApplicationQueries:
    def __init__(self, session: Session) -> None:
        self._session = session

    def add(self, row: JoinApplication) -> None:
        self._session.add(row)
        self._session.flush()

    def of(self, key: str, *, lock: bool = False) -> JoinApplication:
        """By its key. Raises Absent if unknown. `lock`: for update."""
        found = self._session.get(JoinApplication, key, with_for_update=lock)
        if found is None:
            raise Absent("there is no such application; it may be older than the catalogue keeps them")
        return found

    def list_waiting(self) -> Sequence[JoinApplication]:
        """Applications without an answer, the oldest first."""
        found = select(JoinApplication).where(*_WAITS).order_by(JoinApplication.created_at)
        return self._session.scalars(found).all()

    def count_waiting(self) -> int:
        return self._session.scalar(select(func.count(JoinApplication.key)).where(*_WAITS)) or 0

    def find_waiting(self, did: str, name: str) -> JoinApplication | None:
        """One without an answer that has this DID or short name."""
        same = or_(JoinApplication.did == did, JoinApplication.name == name)
        return self._session.scalars(select(JoinApplication).where(same, *_WAITS).limit(1)).one_or_none()

    def forget(self, before: float) -> None:
        """Remove applications that were made before a time."""
        self._session.execute(delete(JoinApplication).where(JoinApplication.created_at < before))
