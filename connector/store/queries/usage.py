"""Queries for what the owner vouches for, and for the ledger of duties."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy import bindparam, delete, func, select
from sqlalchemy.orm import Session

from connector.store.tables import Attestation, DutyEvidence, DutyWatch

_ABOUT = (
    select(Attestation).where(Attestation.subject == bindparam("subject")).order_by(Attestation.fact, Attestation.value)
)
_EVIDENCE = (
    select(DutyEvidence)
    .where(DutyEvidence.agreement_id == bindparam("agreement"), DutyEvidence.role == bindparam("ours"))
    .order_by(DutyEvidence.fulfilled_at, DutyEvidence.id)
)
_WATCHED = (DutyWatch.agreement_id == bindparam("agreement"), DutyWatch.role == bindparam("ours"))
_WATCH = select(DutyWatch).where(*_WATCHED)
_FIRST_VIOLATED = select(func.min(DutyWatch.told_at)).where(*_WATCHED, DutyWatch.state == "violated")


class Attestations:
    def __init__(self, session: Session) -> None:
        self._session = session

    def put(self, row: Attestation) -> None:
        """Keep it, in place of an earlier one for the same value."""
        self._session.merge(row)

    def of(self, subject: str) -> Sequence[Attestation]:
        return self._session.scalars(_ABOUT, {"subject": subject}).all()

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
        return self._session.scalars(_EVIDENCE, {"agreement": agreement_id, "ours": role}).all()

    def watch(self, agreement_id: str, *, role: str) -> dict[str, DutyWatch]:
        """The last state of each duty that was told, and when, by path."""
        return {row.path: row for row in self._session.scalars(_WATCH, {"agreement": agreement_id, "ours": role})}

    def first_violated(self, agreement_id: str, *, role: str) -> float | None:
        """When a duty was first found violated."""
        return self._session.scalar(_FIRST_VIOLATED, {"agreement": agreement_id, "ours": role})

    def told(self, row: DutyWatch) -> None:
        self._session.merge(row)
