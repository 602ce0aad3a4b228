"""Private answers and their budget: what was spent is counted before the question runs, and repeats cost nothing."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import BigInteger, bindparam, delete, select, update
from sqlalchemy.dialects import postgresql, sqlite
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
_ANSWER = bare(PrivateAnswer)


def _keeping(insert: Any) -> Any:
    made = insert(_ANSWER)
    return made.on_conflict_do_update(
        index_elements=_ANSWER.primary_key.columns,
        set_={name: made.excluded[name] for name in ("epsilon_micro", "answer", "answered_at")},
        where=made.excluded.epsilon_micro > _ANSWER.c.epsilon_micro,
    )


_KEEP = {"sqlite": _keeping(sqlite.insert), "postgresql": _keeping(postgresql.insert)}
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

    def asked_by(self, agreement_id: str, question: str) -> str:
        """The read that was the last to be charged for this question; empty where there was none."""
        row = self.get(agreement_id, _asked(question))
        return "" if row is None else row.answer.decode()

    def ask(self, agreement_id: str, question: str, *, read_id: str, now: float) -> None:
        """A read is to answer this question. For a transaction that has the agreement's grant changed: others that
        ask under it wait for its end."""
        named = {"agreement_id": agreement_id, "question": _asked(question)}
        self._session.merge(PrivateAnswer(**named, epsilon_micro=0, answer=read_id.encode(), answered_at=now))

    def keep(self, agreement_id: str, question: str, *, micro: int, answer: bytes, now: float) -> bytes:
        """Store an answer, which takes the place of one of less epsilon only; the one that is kept. Nobody is to answer
        the question any more."""
        values = {"epsilon_micro": micro, "answer": answer, "answered_at": now}
        keep = _KEEP[self._session.get_bind().dialect.name]
        self._session.execute(keep, {"agreement_id": agreement_id, "question": question, **values})
        self._delete(agreement_id, [_asked(question)])  # or half of what is kept would be no answers
        kept = self._session.get_one(PrivateAnswer, (agreement_id, question))
        self._forget_old(agreement_id)
        return kept.answer

    def _forget_old(self, agreement_id: str) -> None:
        old = (
            select(PrivateAnswer.question)
            .where(PrivateAnswer.agreement_id == agreement_id)
            .order_by(PrivateAnswer.answered_at.desc(), PrivateAnswer.question)
            .offset(_KEPT)
        )
        names = self._session.scalars(old).all()
        if names:
            self._delete(agreement_id, names)

    def _delete(self, agreement_id: str, questions: Sequence[str]) -> None:
        which = (PrivateAnswer.agreement_id == agreement_id, PrivateAnswer.question.in_(questions))
        self._session.execute(delete(PrivateAnswer).where(*which))


def _asked(question: str) -> str:
    """Beside the answer, where there is one already, stands who is to give a better one."""
    return f"{question}?"
