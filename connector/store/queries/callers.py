"""Queries for what the processes of a connector share about callers: used tokens and presented credentials."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import delete
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from connector.store.tables import PresentedCredentials, UsedToken

_INSERT: dict[str, Any] = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}


class CallerQueries:
    """Queries for tokens that were used, and for credentials that were presented."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def note_token(self, digest: str, until: float) -> bool:
        """Note a used token until it expires; False if it was noted before."""
        insert = self._insert(UsedToken).values(digest=digest, until=until).on_conflict_do_nothing()
        return self._session.execute(insert.returning(UsedToken.digest)).first() is not None

    def find_presented(self, holder: str) -> PresentedCredentials | None:
        return self._session.get(PresentedCredentials, holder)

    def store_presented(self, holder: str, credentials: Sequence[str], *, at: float, until: float) -> None:
        """Store what a holder presented, unless something later is stored."""
        values = {"at": at, "until": until, "credentials": list(credentials)}
        insert = self._insert(PresentedCredentials).values(holder=holder, **values)
        later = PresentedCredentials.at < at
        self._session.execute(insert.on_conflict_do_update(index_elements=["holder"], set_=values, where=later))

    def forget_presented(self, holder: str, *, before: float) -> None:
        """Delete what a holder presented before a time."""
        of_holder = PresentedCredentials.holder == holder
        self._session.execute(delete(PresentedCredentials).where(of_holder, PresentedCredentials.at < before))

    def forget_expired(self, now: float) -> None:
        for table in (UsedToken, PresentedCredentials):
            self._session.execute(delete(table).where(table.until < now))

    def _insert(self, table: Any) -> Any:
        return _INSERT[self._session.get_bind().dialect.name](table)
