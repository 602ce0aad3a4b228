"""Queries for the credentials that we hold."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import func, or_, select
from sqlalchemy.orm import Session

from connector.store.tables import HeldCredential


class HeldCredentialQueries:
    """Queries for the credentials that we hold."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def store(self, row: HeldCredential) -> None:
        """Store a credential; the same one again is kept once.

        A delivered one replaces what its issuer delivered before with the same types for the same request.
        """
        if row.holder_pid:
            same = select(HeldCredential).filter_by(issuer=row.issuer, holder_pid=row.holder_pid)
            for before in self._session.scalars(same).all():
                if sorted(before.types) == sorted(row.types) and before.id != row.id:
                    self._session.delete(before)
        self._session.merge(row)

    def count(self) -> int:
        return self._session.scalar(select(func.count()).select_from(HeldCredential)) or 0

    def list_current(self, now: float) -> Sequence[HeldCredential]:
        """The credentials that have not ended, in the order in which they were stored."""
        current = or_(HeldCredential.expires.is_(None), HeldCredential.expires > now)
        order = (HeldCredential.stored_at, HeldCredential.id)
        return self._session.scalars(select(HeldCredential).where(current).order_by(*order)).all()
