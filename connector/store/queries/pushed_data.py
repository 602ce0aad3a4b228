"""Queries for data that providers pushed to this connector."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import select
from sqlalchemy.orm import Session

from connector.store.tables import PushedData, Transfer


class PushedDataQueries:
    """Queries for received pushes."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def add(self, row: PushedData) -> None:
        self._session.add(row)

    def get(self, transfer_id: str) -> PushedData | None:
        """The push under a transfer, also if its file was removed; None if there was no push."""
        return self._session.get(PushedData, transfer_id)

    def get_many(self, transfer_ids: Sequence[str]) -> dict[str, PushedData]:
        """The pushes under these transfers, by transfer id."""
        rows = self._session.scalars(select(PushedData).where(PushedData.transfer_id.in_(transfer_ids)))
        return {row.transfer_id: row for row in rows}

    def list_with_file(self) -> Sequence[tuple[PushedData, Transfer]]:
        """Pushes whose file was not removed, each with its transfer."""
        query = select(PushedData, Transfer).join(Transfer, Transfer.id == PushedData.transfer_id)
        pairs = self._session.execute(query.where(PushedData.removed_at.is_(None)))
        return [(row, transfer) for row, transfer in pairs]
