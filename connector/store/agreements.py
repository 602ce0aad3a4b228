"""Queries for agreements and their grants. Counters move in one conditional update, so nobody can overspend."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from sqlalchemy import Select, case, exists, func, or_, select, update
from sqlalchemy.orm import Session

from connector.errors import NotFound
from connector.store.tables import Agreement, Grant, Negotiation


def used_today(row: Grant, *, day: int) -> int:
    """Queries that are counted for a day (days since the epoch, UTC) by a clock that may be a little behind."""
    return row.queries_today if row.day in (day, day + 1) else 0


class Agreements:
    def __init__(self, session: Session) -> None:
        self._session = session

    def add(self, row: Agreement | Grant) -> None:
        self._session.add(row)

    def get(self, agreement_id: str, *, role: str) -> Agreement | None:
        return self._session.get(Agreement, (agreement_id, role))

    def of(self, agreement_id: str, *, role: str) -> Agreement:
        if (found := self.get(agreement_id, role=role)) is None:
            raise NotFound(f"no agreement {agreement_id!r} with this participant as {role}")
        return found

    def page(self, *, role: str = "", dataset_id: str = "", limit: int = 100) -> Sequence[Agreement]:
        query = select(Agreement).order_by(Agreement.signed_at.desc(), Agreement.id).limit(limit)
        if role:
            query = query.where(Agreement.role == role)
        if dataset_id:
            query = query.where(Agreement.dataset_id == dataset_id)
        return self._session.scalars(query).all()

    def on(self, dataset_id: str) -> Iterator[tuple[Agreement, int]]:
        """Every agreement that we signed as provider of a dataset, with how many reads were counted under it; none
        that came to nothing before it was final."""
        query = (
            select(Agreement, func.coalesce(Grant.queries, 0))
            .outerjoin(Grant, Grant.agreement_id == Agreement.id)
            .outerjoin(Negotiation, Negotiation.id == Agreement.negotiation_id)
            .where(Agreement.role == "provider", Agreement.dataset_id == dataset_id)
            .where(or_(Agreement.finalized.is_(True), Negotiation.state != "TERMINATED"))
            .order_by(Agreement.signed_at.desc(), Agreement.id)
        )
        for row, reads in self._session.execute(query.execution_options(yield_per=500)):
            yield row, int(reads)

    def after(self, agreement_id: str, *, limit: int) -> Sequence[Agreement]:
        """Final agreements in order of their id, after that one; both sides of one with oneself come together."""
        query = select(Agreement).where(Agreement.finalized.is_(True), Agreement.id > agreement_id)
        ids = select(Agreement.id).where(Agreement.finalized.is_(True), Agreement.id > agreement_id).distinct()
        return self._session.scalars(
            query.where(Agreement.id.in_(ids.order_by(Agreement.id).limit(limit))).order_by(Agreement.id)
        ).all()

    def taken_back(self, offer_id: str, *, consumer: str, lapsed: str) -> bool:
        """Whether this provider has ended an agreement with that consumer under an offer for another reason than
        `lapsed`."""
        query = self._under(offer_id, consumer).where(Agreement.ended_at.is_not(None), Agreement.end_reason != lapsed)
        return self._session.scalar(query.where(Agreement.finalized.is_(True))) is not None

    def held_under(self, offer_id: str, *, consumer: str, ended: bool = False) -> bool:
        """Whether that consumer has an agreement under an offer that is final or may become so; `ended`: or had one."""
        query = self._under(offer_id, consumer)
        if not ended:
            query = query.where(Agreement.ended_at.is_(None))
        coming = exists().where(Negotiation.id == Agreement.negotiation_id, Negotiation.state != "TERMINATED")
        return self._session.scalar(query.where(or_(Agreement.finalized.is_(True), coming))) is not None

    @staticmethod
    def _under(offer_id: str, consumer: str) -> Select[str]:
        ours = (Agreement.role == "provider", Agreement.offer_id == offer_id, Agreement.consumer == consumer)
        return select(Agreement.id).where(*ours).limit(1)

    def fresh(self, row: Agreement) -> Agreement:
        """The row as it is now: for whoever has just waited for a lock."""
        self._session.flush()  # what this transaction changed stays
        self._session.refresh(row)
        return row

    def grant(self, agreement_id: str) -> Grant | None:
        return self._session.get(Grant, agreement_id)

    def grant_held(self, agreement_id: str, *, to_change: bool = False) -> Grant | None:
        """The grant, which nobody revokes before this transaction ends."""
        return self._session.get(Grant, agreement_id, with_for_update=True if to_change else {"read": True})

    def count_use(self, agreement_id: str, *, day: int, most: int | None, most_today: int | None) -> bool:
        """Count one more query, if the grant holds and has room. Whether it did.

        Where another process's clock has begun the next day, that day goes on: begun anew by each in turn, a day would
        have no end of queries as long as their clocks differ.
        """
        same = Grant.day.in_((day, day + 1))
        today = case((same, Grant.queries_today), else_=0)
        room = [Grant.agreement_id == agreement_id, Grant.revoked_at.is_(None)]
        if most is not None:
            room.append(Grant.queries < most)
        if most_today is not None:
            room.append(today < most_today)
        changed = self._session.execute(
            update(Grant)
            .where(*room)
            .values(queries=Grant.queries + 1, queries_today=today + 1, day=case((same, Grant.day), else_=day))
            .returning(Grant.agreement_id),
            execution_options={"synchronize_session": False},
        )
        return changed.first() is not None

    def reserve(
        self, agreement_id: str, *, rows: int, nbytes: int, most_rows: int | None, most_bytes: int | None
    ) -> bool:
        """Take rows and bytes from what is left, whole or not at all. Whether it was there."""
        room = [Grant.agreement_id == agreement_id, Grant.revoked_at.is_(None)]
        if most_rows is not None:
            room.append(Grant.rows + rows <= most_rows)
        if most_bytes is not None:
            room.append(Grant.bytes + nbytes <= most_bytes)
        changed = self._session.execute(
            update(Grant)
            .where(*room)
            .values(rows=Grant.rows + rows, bytes=Grant.bytes + nbytes)
            .returning(Grant.agreement_id),
            execution_options={"synchronize_session": False},
        )
        return changed.first() is not None

    def give_back(self, agreement_id: str, *, rows: int, nbytes: int) -> None:
        """Return what was reserved and not used."""
        self._session.execute(
            update(Grant)
            .where(Grant.agreement_id == agreement_id)
            .values(rows=Grant.rows - rows, bytes=Grant.bytes - nbytes),
            execution_options={"synchronize_session": False},
        )
