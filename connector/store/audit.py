"""Queries for the audit log's rows. What they mean is the business of `connector.audit`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from connector.store.tables import AuditCheckpoint, AuditEvent, AuditPending, AuditTile


class AuditRows:
    def __init__(self, session: Session) -> None:
        self._session = session

    def pending(self, limit: int) -> Sequence[AuditPending]:
        """The oldest records that are not numbered yet."""
        return self._session.scalars(select(AuditPending).order_by(AuditPending.id).limit(limit)).all()

    def settle(self, ids: Sequence[int]) -> None:
        """Remove pending records that now stand in the log."""
        self._session.execute(delete(AuditPending).where(AuditPending.id.in_(ids)))

    def size(self) -> int:
        """How many records the log has."""
        top = self._session.scalar(select(func.max(AuditEvent.idx)))
        return 0 if top is None else top + 1

    def add(self, row: AuditEvent | AuditTile | AuditCheckpoint) -> None:
        self._session.add(row)

    def put_tile(self, level: int, n: int, data: bytes) -> None:
        self._session.merge(AuditTile(level=level, n=n, data=data))

    def tile(self, level: int, n: int) -> bytes | None:
        row = self._session.get(AuditTile, (level, n))
        return None if row is None else row.data

    def checkpoint(self) -> AuditCheckpoint | None:
        """The newest signed tree head."""
        return self._session.scalars(select(AuditCheckpoint).order_by(AuditCheckpoint.size.desc()).limit(1)).first()

    def events(
        self, *, start: int = 0, stop: int | None = None, newest_first: bool = False, limit: int = 100, **equals: str
    ) -> Sequence[AuditEvent]:
        """Records from `start` to before `stop` whose kind, actor, agreement, dataset, outcome are `equals`."""
        query = select(AuditEvent).where(AuditEvent.idx >= start)
        if stop is not None:
            query = query.where(AuditEvent.idx < stop)
        for name, value in equals.items():
            query = query.where(getattr(AuditEvent, name) == value)
        order = AuditEvent.idx.desc() if newest_first else AuditEvent.idx
        return self._session.scalars(query.order_by(order).limit(limit)).all()

    def walk(self, *, stop: int, batch: int = 1000) -> Iterator[AuditEvent]:
        """Every record before `stop`, in order, a batch in memory at a time."""
        start = 0
        while start < stop:
            rows = self.events(start=start, stop=stop, limit=batch)
            if not rows:
                return
            yield from rows
            start = rows[-1].idx + 1
            self._session.expunge_all()
