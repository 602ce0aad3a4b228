"""Queries for the credentials that we hold, and our requests for them."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import func, or_, select
from sqlalchemy.orm import Session

from connector.store.tables import CredentialRequest, HeldCredential


class HeldCredentialQueries:
    """Queries for the credentials that we hold."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def store(self, row: HeldCredential) -> None:
        """Store a credential; the same one again is kept once."""
        self._session.merge(row)

    def list_delivered(self, issuer: str, holder_pid: str) -> Sequence[HeldCredential]:
        """What an issuer has delivered for one of our requests."""
        found = select(HeldCredential).filter_by(issuer=issuer, holder_pid=holder_pid)
        return self._session.scalars(found).all()

    def remove(self, row: HeldCredential) -> None:
        self._session.delete(row)

    def count(self) -> int:
        return self._session.scalar(select(func.count()).select_from(HeldCredential)) or 0

    def list_all(self) -> Sequence[HeldCredential]:
        """All credentials, the newest first; ended ones too."""
        order = (HeldCredential.stored_at.desc(), HeldCredential.id)
        return self._session.scalars(select(HeldCredential).order_by(*order)).all()

    def add_request(self, row: CredentialRequest) -> None:
        self._session.add(row)

    def get_request(self, id: str) -> CredentialRequest | None:
        return self._session.get(CredentialRequest, id)

    def list_requests(self, limit: int) -> Sequence[CredentialRequest]:
        """Our requests, the newest first."""
        order = (CredentialRequest.created_at.desc(), CredentialRequest.id)
        return self._session.scalars(select(CredentialRequest).order_by(*order).limit(limit)).all()

    def count_open_requests(self) -> int:
        opened = CredentialRequest.status.in_(("REQUESTED", "RECEIVED"))
        return self._session.scalar(select(func.count()).select_from(CredentialRequest).where(opened)) or 0

    def list_current(self, now: float) -> Sequence[HeldCredential]:
        """The credentials that have not ended, in the order in which they were stored."""
        current = or_(HeldCredential.expires.is_(None), HeldCredential.expires > now)
        order = (HeldCredential.stored_at, HeldCredential.id)
        return self._session.scalars(select(HeldCredential).where(current).order_by(*order)).all()
