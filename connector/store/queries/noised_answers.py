"""Queries for noised answers and their privacy budget. The budget is spent before a query runs; repeats are free."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import BigInteger, bindparam, delete, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from connector.store.tables import GrantState, NoisedAnswer, core_table

_GRANT = core_table(GrantState)
_THIS = _GRANT.c.agreement_id == bindparam("agreement")
_MORE = _GRANT.c.epsilon_micro + bindparam("micro")
_SPEND = (
    update(_GRANT)
    .where(_THIS, _GRANT.c.revoked_at.is_(None), bindparam("most", type_=BigInteger) >= _MORE)
    .values(epsilon_micro=_MORE)
)
_GIVE_BACK = update(_GRANT).where(_THIS).values(epsilon_micro=_GRANT.c.epsilon_micro - bindparam("micro"))
_SPENT = select(_GRANT.c.epsilon_micro).where(_THIS)
_ANSWER = core_table(NoisedAnswer)


def _build_upsert(insert: Any) -> Any:
    statement = insert(_ANSWER)
    return statement.on_conflict_do_update(
        index_elements=_ANSWER.primary_key.columns,
        set_={name: statement.excluded[name] for name in ("epsilon_micro", "answer", "answered_at")},
        where=statement.excluded.epsilon_micro > _ANSWER.c.epsilon_micro,
    )


_UPSERT = {"sqlite": _build_upsert(sqlite.insert), "postgresql": _build_upsert(postgresql.insert)}
_ANSWERS_MAX = 1_000  # answers of one agreement; the oldest are removed


class NoisedAnswerQueries:
    """Queries for noised answers. `question` is the digest of version, permission and query."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def spend(self, agreement_id: str, *, micro: int, most: int) -> bool:
        """Take `micro` millionths of epsilon from the budget, all or nothing. Returns whether the budget allowed it.

        They are returned only if no worker received the query: a query that failed may have revealed something.
        """
        which = {"agreement": agreement_id, "micro": micro, "most": most}
        return self._session.connection().execute(_SPEND, which).rowcount > 0

    def give_back(self, agreement_id: str, *, micro: int) -> None:
        """Return the budget of a query that never began."""
        self._session.connection().execute(_GIVE_BACK, {"agreement": agreement_id, "micro": micro})

    def read_spent(self, agreement_id: str) -> int:
        """Millionths of epsilon spent under an agreement."""
        return self._session.connection().scalar(_SPENT, {"agreement": agreement_id}) or 0

    def get(self, agreement_id: str, question: str) -> NoisedAnswer | None:
        return self._session.get(NoisedAnswer, (agreement_id, question))

    def read_charged_read(self, agreement_id: str, question: str) -> str:
        """Id of the last read that was charged for this question; empty if there was no such read."""
        row = self.get(agreement_id, _pending_key(question))
        return "" if row is None else row.answer.decode()

    def record_question(self, agreement_id: str, question: str, *, read_id: str, now: float) -> None:
        """Store that a read is to answer this question.

        The transaction must have locked the agreement's grant, so that other queries under it wait.
        """
        key = {"agreement_id": agreement_id, "question": _pending_key(question)}
        self._session.merge(NoisedAnswer(**key, epsilon_micro=0, answer=read_id.encode(), answered_at=now))

    def store(self, agreement_id: str, question: str, *, micro: int, answer: bytes, now: float) -> bytes:
        """Store an answer unless one with at least as much epsilon exists. Returns the stored answer.

        Removes the note of the read that was to answer.
        """
        values = {"epsilon_micro": micro, "answer": answer, "answered_at": now}
        upsert = _UPSERT[self._session.get_bind().dialect.name]
        self._session.execute(upsert, {"agreement_id": agreement_id, "question": question, **values})
        self._delete(agreement_id, [_pending_key(question)])  # such notes would take half of the limit
        stored = self._session.get_one(NoisedAnswer, (agreement_id, question))
        self._forget_old(agreement_id)
        return stored.answer

    def _forget_old(self, agreement_id: str) -> None:
        old = (
            select(NoisedAnswer.question)
            .where(NoisedAnswer.agreement_id == agreement_id)
            .order_by(NoisedAnswer.answered_at.desc(), NoisedAnswer.question)
            .offset(_ANSWERS_MAX)
        )
        names = self._session.scalars(old).all()
        if names:
            self._delete(agreement_id, names)

    def _delete(self, agreement_id: str, questions: Sequence[str]) -> None:
        which = (NoisedAnswer.agreement_id == agreement_id, NoisedAnswer.question.in_(questions))
        self._session.execute(delete(NoisedAnswer).where(*which))


def _pending_key(question: str) -> str:
    """Key of the row that names the read which is to answer. A stored answer may exist at the same time."""
    return f"{question}?"
