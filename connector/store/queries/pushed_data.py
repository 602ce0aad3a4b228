"""Queries for what was pushed to us."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import select
from sqlalchemy.orm import Session

from connector.store.tables import Received, Transfer


class ReceivedRows:
    def __init__(self, session: Session) -> None:
        self._session = session

    def add(self, row: Received) -> None:
        self._session.add(row)

    def get(self, transfer_id: str) -> Received | None:
        """What was received under one transfer, also if its file is gone since."""
        return self._session.get(Received, transfer_id)

    def of(self, transfer_ids: Sequence[str]) -> dict[str, Received]:
        """The same for many, by transfer."""
        rows = self._session.scalars(select(Received).where(Received.transfer_id.in_(transfer_ids)))
        return {row.transfer_id: row for row in rows}

    def kept(self) -> Sequence[tuple[Received, Transfer]]:
        """Whatever should still have its file, with its transfer."""
        query = select(Received, Transfer).join(Transfer, Transfer.id == Received.transfer_id)
        found = self._session.execute(query.where(Received.removed_at.is_(None)))
        return [(row, transfer) for row, transfer in found]
