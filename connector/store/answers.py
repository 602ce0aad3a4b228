"""Private answers and their budget: what was spent is counted before the question runs, and repeats cost nothing."""

from __future__ import annotations

from sqlalchemy import BigInteger, bindparam, delete, select, update
from sqlalchemy.orm import Session

from connector.store.tables import Grant, PrivateAnswer, bare

_GRANT = bare(Grant)
_THIS = _GRANT.c.agreement_id == bindparam("agreement")
_MORE = _GRANT.c.epsilon_micro + bindparam("micro")
_SPEND = (
    update(_GRANT)
    .where(_THIS, _GRANT.c.revoked_at.is_(None), bindparam("most", type_=BigInteger) >= _MORE)
    .values(epsilon_micro=_MORE)
)
_GIVE_BACK = update(_GRANT).where(_THIS).values(epsilon_micro=_GRANT.c.epsilon_micro - bindparam("micro"))
_SPENT = select(_GRANT.c.epsilon_micro).where(_THIS)
_KEPT = 1_000  # answers of one agreement; beyond that the oldest goes


class PrivateAnswers:
    def __init__(self, session: Session) -> None:
        self._session = session

    def spend(self, agreement_id: str, *, micro: int, most: int) -> bool:
        """Take millionths of epsilon from the budget, whole or not at all. Whether they were there.

        They are given back only for a question that no worker has had: any other may have told something by failing.
        """
        which = {"agreement": agreement_id, "micro": micro, "most": most}
        return self._session.connection().execute(_SPEND, which).rowcount > 0

    def give_back(self, agreement_id: str, *, micro: int) -> None:
        """Return what was taken for a question that was never begun."""
        self._session.connection().execute(_GIVE_BACK, {"agreement": agreement_id, "micro": micro})

    def spent(self, agreement_id: str) -> int:
        """Millionths of epsilon that are spent under an agreement."""
        return self._session.connection().scalar(_SPENT, {"agreement": agreement_id}) or 0

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
