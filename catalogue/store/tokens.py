"""Queries for the operator's tokens and sessions."""

from __future__ import annotations

from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from catalogue.store.tables import Token


class CatalogueTokenQueries:
    def __init__(self, session: Session) -> None:
        self._session = session

    def add(self, token: Token) -> None:
        self._session.add(token)

    def find_by_digest(self, digest: str, *, lock: bool = False) -> Token | None:
        """The token with this digest; None if it does not exist. `lock`: for update."""
        return self._session.get(Token, digest, with_for_update=lock)

    def count(self) -> int:
        """The number of tokens, without sessions."""
        return self._session.scalar(select(func.count()).select_from(Token).where(Token.kind == "token")) or 0

    def remove(self, digest: str) -> None:
        self._session.execute(delete(Token).where(Token.digest == digest))

    def end_person(self, subject: str) -> None:
        """Remove the sessions of a person."""
        self._session.execute(delete(Token).where(Token.kind == "person", Token.name == subject))

    def end_all(self) -> None:
        """Remove all tokens and sessions."""
        self._session.execute(delete(Token).where(Token.kind == "token"))  # waits for who begins a session by one
        self._session.execute(delete(Token))

    def sweep(self, now: float) -> None:
        """Remove expired tokens and sessions."""
        self._session.execute(delete(Token).where(Token.expires_at < now))
