"""How fast each counterparty begins processes: one row each, locked while a new one is admitted."""

from __future__ import annotations

from typing import Any

from sqlalchemy import bindparam, case, delete, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from connector.store.tables import Begun, bare

_BEGUN = bare(Begun)
_NOW: Any = bindparam("now")
_STEP: Any = bindparam("step")
_MOST: Any = bindparam("most")
# Fuller than it can get: a clock was ahead and was set back. It would keep the counterparty out for as long as it was.
_WRONG = _BEGUN.c.full_until > _NOW + 2 * _MOST
_FULL = case((_WRONG, _NOW), (_BEGUN.c.full_until > _NOW, _BEGUN.c.full_until), else_=_NOW) + _STEP


def _count(build: Any) -> Any:
    count = build(_BEGUN).values(full_until=bindparam("first"))
    return count.on_conflict_do_update(
        index_elements=[_BEGUN.c.counterparty, _BEGUN.c.kind], set_={"full_until": _FULL}, where=_FULL - _NOW <= _MOST
    ).returning(_BEGUN.c.kind)


_COUNT = {"sqlite": _count(sqlite.insert), "postgresql": _count(postgresql.insert)}


class Admissions:
    def __init__(self, session: Session) -> None:
        self._session = session

    def take(self, counterparty: str, *, kind: str, step: float, most: float, now: float) -> float:
        """Count one more, and lock the counterparty's row until the transaction ends; 0, or the seconds to wait.

        Each new process fills `step` seconds of the time ahead, of which at most `most` may be full (the generic cell
        rate algorithm): one statement, so that two that count at once cannot both take the last place.
        """
        who = {"counterparty": counterparty, "kind": kind}
        times = {"first": now + step, "now": now, "step": step, "most": most}
        count = _COUNT[self._session.get_bind().dialect.name]
        if self._session.execute(count, {**who, **times}).first() is not None:
            return 0.0
        query = select(Begun.full_until).where(Begun.counterparty == counterparty, Begun.kind == kind)
        until = self._session.scalar(query) or now
        return max(until + step - now - most, 1e-3)

    def forget_idle(self, now: float) -> None:
        """Remove those that began nothing of late: they count as if they had never been here."""
        self._session.execute(delete(Begun).where(Begun.full_until < now))
