"""What the processes of a connector on one PostgreSQL share about callers: used tokens and presented credentials."""

from __future__ import annotations

from hashlib import sha256

from connector.identity.credentials.verifier import Presented
from connector.store.engine import Store


class SharedCallers:
    """Used tokens and presented credentials in the connector's database.

    Each method raises Unavailable if the database is away.
    """

    def __init__(self, store: Store) -> None:
        self._store = store

    async def note_first_use(self, issuer: str, jti: str, until: float) -> bool:
        """Note a token until it is no longer accepted (UTC seconds); False if a process noted it before."""
        digest = sha256(f"{issuer} {jti}".encode()).hexdigest()  # a DID has no blank
        return await self._store.write(lambda tx: tx.callers.note_token(digest, until))

    async def find(self, holder: str) -> Presented | None:
        """What `holder` presented last to any of our processes."""
        row = await self._store.read(lambda tx: tx.callers.find_presented(holder))
        return None if row is None else Presented(row.at, tuple(row.credentials))

    async def store_presented(self, holder: str, presented: Presented, *, until: float) -> None:
        """Store what `holder` presented, unless something later is stored. It is deleted after `until`."""
        await self._store.write(
            lambda tx: tx.callers.store_presented(holder, presented.credentials, at=presented.at, until=until)
        )

    async def forget(self, holder: str, *, before: float) -> None:
        """Forget what `holder` presented before a time (UTC seconds)."""
        await self._store.write(lambda tx: tx.callers.forget_presented(holder, before=before))
