"""Queries for management tokens."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import func, select, update
from sqlalchemy.orm import Session

from connector.store.tables import ApiToken

_LOCK = 0x48544F4B  # any number, the same for every connector process on one database


class TokenQueries:
    """Queries for tokens of the management API."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def lock_exclusively(self) -> None:
        """Wait for other transactions that hold this lock, and hold it until this one ends.

        SQLite has one writer anyway.
        """
        if self._session.get_bind().dialect.name == "postgresql":
            self._session.execute(select(func.pg_advisory_xact_lock(_LOCK)))

    def add(self, token: ApiToken) -> None:
        self._session.add(token)

    def find_by_digest(self, digest: str) -> ApiToken | None:
        return self._session.scalars(select(ApiToken).where(ApiToken.digest == digest)).one_or_none()

    def find_by_name(self, name: str) -> ApiToken | None:
        return self._session.get(ApiToken, name)

    def list_all(self) -> Sequence[ApiToken]:
        return self._session.scalars(select(ApiToken).order_by(ApiToken.name)).all()

    def list_owned(self, owner: str) -> Sequence[ApiToken]:
        """List the personal access tokens of an owner, the oldest first."""
        query = select(ApiToken).where(ApiToken.owner == owner).order_by(ApiToken.created_at, ApiToken.name)
        return self._session.scalars(query).all()

    def narrow(self, owner: str, scopes: Sequence[str]) -> Sequence[ApiToken]:
        """Take every other scope from the tokens of an owner; delete and return those that have none left."""
        ended = []
        for row in self.list_owned(owner):
            row.scopes = [scope for scope in row.scopes if scope in scopes]
            if not row.scopes:
                self.remove(row)
                ended.append(row)
        return ended

    def touch(self, name: str, at: float) -> None:
        """Note that a token was used."""
        self._session.execute(update(ApiToken).where(ApiToken.name == name).values(last_used_at=at))

    def count(self) -> int:
        return self._session.scalar(select(func.count()).select_from(ApiToken)) or 0

    def remove(self, token: ApiToken) -> None:
        self._session.delete(token)
