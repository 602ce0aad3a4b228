"""Queries for attested facts and for the ledger of duties."""

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


class AttestationQueries:
    """Queries for facts that the owner attests."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def store(self, row: Attestation) -> None:
        """Store an attestation; it replaces an earlier one of the same value."""
        self._session.merge(row)

    def of(self, subject: str) -> Sequence[Attestation]:
        return self._session.scalars(_ABOUT, {"subject": subject}).all()

    def page(self, *, after: tuple[str, str, str] = ("", "", ""), limit: int = 100) -> Sequence[Attestation]:
        """Attestations in order of subject, fact and value, after the key `after`."""
        columns = (Attestation.subject, Attestation.fact, Attestation.value)
        subject, fact, value = columns
        later = (
            (subject > after[0])
            | ((subject == after[0]) & (fact > after[1]))
            | ((subject == after[0]) & (fact == after[1]) & (value > after[2]))
        )
        return self._session.scalars(select(Attestation).where(later).order_by(*columns).limit(limit)).all()

    def remove(self, subject: str, fact: str, value: str = "") -> Sequence[str]:
        """Remove one value of a fact, or all if `value` is empty. Returns the removed values."""
        query = delete(Attestation).where(Attestation.subject == subject, Attestation.fact == fact)
        if value:
            query = query.where(Attestation.value == value)
        return sorted(self._session.scalars(query.returning(Attestation.value)).all())


class DutyQueries:
    """Queries for the evidence and state of duties. `role` is this participant's role under the agreement."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def add(self, row: DutyEvidence) -> None:
        self._session.add(row)

    def list_evidence(self, agreement_id: str, *, role: str) -> Sequence[DutyEvidence]:
        """All reported evidence of an agreement, in order of time."""
        return self._session.scalars(_EVIDENCE, {"agreement": agreement_id, "ours": role}).all()

    def read_states(self, agreement_id: str, *, role: str) -> dict[str, DutyWatch]:
        """The last recorded state of each duty, by its path in the policy."""
        return {row.path: row for row in self._session.scalars(_WATCH, {"agreement": agreement_id, "ours": role})}

    def read_first_violation(self, agreement_id: str, *, role: str) -> float | None:
        """When a duty of the agreement was first recorded as violated (UTC seconds); None if never."""
        return self._session.scalar(_FIRST_VIOLATED, {"agreement": agreement_id, "ours": role})

    def store_state(self, row: DutyWatch) -> None:
        self._session.merge(row)
