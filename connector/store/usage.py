"""Queries for what the owner vouches for, and for the ledger of duties."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import delete, func, select
from sqlalchemy.orm import Session

from connector.store.tables import Attestation, DutyEvidence, DutyWatch


class Attestations:
    def __init__(self, session: Session) -> None:
        self._session = session

    def put(self, row: Attestation) -> None:
        """Keep it, in place of an earlier one for the same value."""
        self._session.merge(row)

    def of(self, subject: str) -> Sequence[Attestation]:
        query = select(Attestation).where(Attestation.subject == subject)
        return self._session.scalars(query.order_by(Attestation.fact, Attestation.value)).all()

    def page(self, *, after: tuple[str, str, str] = ("", "", ""), limit: int = 100) -> Sequence[Attestation]:
        """In order of subject, fact and value."""
        columns = (Attestation.subject, Attestation.fact, Attestation.value)
        subject, fact, value = columns
        later = (
            (subject > after[0])
            | ((subject == after[0]) & (fact > after[1]))
            | ((subject == after[0]) & (fact == after[1]) & (value > after[2]))
        )
        return self._session.scalars(select(Attestation).where(later).order_by(*columns).limit(limit)).all()

    def remove(self, subject: str, fact: str, value: str = "") -> Sequence[str]:
        """Forget one value, or all of a fact; the values that were there."""
        query = delete(Attestation).where(Attestation.subject == subject, Attestation.fact == fact)
        if value:
            query = query.where(Attestation.value == value)
        return sorted(self._session.scalars(query.returning(Attestation.value)).all())


class Duties:
    def __init__(self, session: Session) -> None:
        self._session = session

    def add(self, row: DutyEvidence) -> None:
        self._session.add(row)

    def evidence(self, agreement_id: str, *, role: str) -> Sequence[DutyEvidence]:
        """Everything that was reported, in order."""
        return self._session.scalars(
            select(DutyEvidence)
            .where(DutyEvidence.agreement_id == agreement_id, DutyEvidence.role == role)
            .order_by(DutyEvidence.fulfilled_at, DutyEvidence.id)
        ).all()

    def watch(self, agreement_id: str, *, role: str) -> dict[str, str]:
        """The last state of each duty that was told, by path."""
        query = select(DutyWatch).where(DutyWatch.agreement_id == agreement_id, DutyWatch.role == role)
        return {row.path: row.state for row in self._session.scalars(query)}

    def first_violated(self, agreement_id: str, *, role: str) -> float | None:
        """When a duty was first found violated."""
        query = select(func.min(DutyWatch.told_at)).where(
            DutyWatch.agreement_id == agreement_id, DutyWatch.role == role, DutyWatch.state == "violated"
        )
        return self._session.scalar(query)

    def told(self, row: DutyWatch) -> None:
        self._session.merge(row)
