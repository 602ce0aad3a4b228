"""Queries for the sessions of people who logged in at a provider."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from connector.store.tables import SignOnSession


class SessionQueries:
    """Queries for sign-on sessions."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def add(self, row: SignOnSession) -> None:
        self._session.add(row)

    def find(self, digest: str) -> SignOnSession | None:
        return self._session.get(SignOnSession, digest)

    def list_of(self, *, provider: str, subject: str, sid: str) -> Sequence[SignOnSession]:
        """List the sessions of a provider's session `sid`; without it, all of a subject."""
        by = SignOnSession.sid == sid if sid else SignOnSession.subject == subject
        query = select(SignOnSession).where(SignOnSession.provider == provider, by)
        if sid and subject:
            query = query.where(SignOnSession.subject == subject)
        return self._session.scalars(query).all()

    def list_newest(self, subject: str) -> Sequence[SignOnSession]:
        """List the sessions of a subject, the newest first."""
        query = select(SignOnSession).where(SignOnSession.subject == subject)
        return self._session.scalars(query.order_by(SignOnSession.created_at.desc())).all()

    def is_admin(self, subject: str, now: float) -> bool:
        """Return whether a session of this person with the scope admin is open."""
        query = select(SignOnSession).where(SignOnSession.subject == subject, SignOnSession.expires_at > now)
        return any("admin" in row.scopes for row in self._session.scalars(query))

    def remove(self, row: SignOnSession) -> None:
        self._session.delete(row)

    def remove_over(self, now: float) -> None:
        self._session.execute(delete(SignOnSession).where(SignOnSession.expires_at <= now))
