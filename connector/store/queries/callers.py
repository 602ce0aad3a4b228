"""Queries for what the processes of a connector share about callers: used tokens and presented credentials."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import delete
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from connector.store.tables import PresentedCredentials, UsedToken


def _build_note(insert: Any) -> Any:
    return insert(UsedToken).on_conflict_do_nothing().returning(UsedToken.digest)


def _build_store(insert: Any) -> Any:
    new = insert(PresentedCredentials)
    values = {name: new.excluded[name] for name in ("at", "until", "credentials")}
    later = PresentedCredentials.at < new.excluded.at
    return new.on_conflict_do_update(index_elements=["holder"], set_=values, where=later)


_NOTE = {"sqlite": _build_note(sqlite.insert), "postgresql": _build_note(postgresql.insert)}
_STORE = {"sqlite": _build_store(sqlite.insert), "postgresql": _build_store(postgresql.insert)}


class CallerQueries:
    """Queries for tokens that were used, and for credentials that were presented."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def note_token(self, digest: str, until: float) -> bool:
        """Note a used token until it expires; False if it was noted before."""
        return self._session.execute(self._pick(_NOTE), {"digest": digest, "until": until}).first() is not None

    def find_presented(self, holder: str) -> PresentedCredentials | None:
        return self._session.get(PresentedCredentials, holder)

    def store_presented(self, holder: str, credentials: Sequence[str], *, at: float, until: float) -> None:
        """Store what a holder presented, unless something later is stored."""
        values = {"holder": holder, "at": at, "until": until, "credentials": list(credentials)}
        self._session.execute(self._pick(_STORE), values)

    def forget_presented(self, holder: str, *, before: float) -> None:
        """Delete what a holder presented before a time."""
        of_holder = PresentedCredentials.holder == holder
        self._session.execute(delete(PresentedCredentials).where(of_holder, PresentedCredentials.at < before))

    def forget_expired(self, now: float) -> None:
        for table in (UsedToken, PresentedCredentials):
            self._session.execute(delete(table).where(table.until < now))

    def _pick(self, statements: Mapping[str, Any]) -> Any:
        return statements[self._session.get_bind().dialect.name]
