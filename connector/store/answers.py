"""Private answers and their budget: what was spent is counted before the question runs, and repeats cost nothing."""

from __future__ import annotations

from sqlalchemy import delete, select, update
from sqlalchemy.orm import Session

from connector.store.tables import Grant, PrivateAnswer

_KEPT = 1_000  # answers of one agreement; beyond that the oldest goes


class PrivateAnswers:
    def __init__(self, session: Session) -> None:
        self._session = session

    def spend(self, agreement_id: str, *, micro: int, most: int) -> bool:
        """Take millionths of epsilon from the budget, whole or not at all. Whether they were there.

        They are never given back: a question that failed may have told something by failing.
        """
        changed = self._session.execute(
            update(Grant)
            .where(Grant.agreement_id == agreement_id, Grant.revoked_at.is_(None))
            .where(Grant.epsilon_micro + micro <= most)
            .values(epsilon_micro=Grant.epsilon_micro + micro)
            .returning(Grant.agreement_id),
            execution_options={"synchronize_session": False},
        )
        return changed.first() is not None

    def spent(self, agreement_id: str) -> int:
        """Millionths of epsilon that are spent under an agreement."""
        return self._session.scalar(select(Grant.epsilon_micro).where(Grant.agreement_id == agreement_id)) or 0

    def get(self, agreement_id: str, question: str) -> PrivateAnswer | None:
        return self._session.get(PrivateAnswer, (agreement_id, question))

    def keep(self, row: PrivateAnswer) -> None:
        """Store an answer; a better one (of more epsilon) takes the place of the first."""
        self._session.merge(row)
        self._session.flush()
        old = (
            select(PrivateAnswer.question)
            .where(PrivateAnswer.agreement_id == row.agreement_id)
            .order_by(PrivateAnswer.answered_at.desc(), PrivateAnswer.question)
            .offset(_KEPT)
        )
        names = self._session.scalars(old).all()
        if names:
            self._session.execute(
                delete(PrivateAnswer).where(
                    PrivateAnswer.agreement_id == row.agreement_id, PrivateAnswer.question.in_(names)
                )
            )
