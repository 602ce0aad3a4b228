"""Rate limit for new processes of each counterparty: one row each, locked while a process is admitted."""

from __future__ import annotations

from typing import Any

from sqlalchemy import bindparam, case, delete, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from connector.store.tables import ProcessRate, core_table

_BEGUN = core_table(ProcessRate)
_NOW: Any = bindparam("now")
_STEP: Any = bindparam("step")
_MOST: Any = bindparam("most")
# Beyond the limit: a clock was ahead and was set back. Without this the counterparty would be refused until then.
_WRONG = _BEGUN.c.full_until > _NOW + 2 * _MOST
_FULL = case((_WRONG, _NOW), (_BEGUN.c.full_until > _NOW, _BEGUN.c.full_until), else_=_NOW) + _STEP


def _build_count(build: Any) -> Any:
    count = build(_BEGUN).values(full_until=bindparam("first"))
    return count.on_conflict_do_update(
        index_elements=[_BEGUN.c.counterparty, _BEGUN.c.kind], set_={"full_until": _FULL}, where=_FULL - _NOW <= _MOST
    ).returning(_BEGUN.c.kind)


_COUNT = {"sqlite": _build_count(sqlite.insert), "postgresql": _build_count(postgresql.insert)}


class ProcessCounterQueries:
    """Queries for the rate of new processes."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def take(self, counterparty: str, *, kind: str, step: float, most: float, now: float) -> float:
        """Count a new process and lock the counterparty's row until the transaction ends.

        Returns 0 if it is allowed, else the seconds to wait. Generic cell rate algorithm: each process adds `step`
        seconds, and at most `most` seconds may lie ahead of `now`. One statement, so that two transactions cannot both
        take the last place.
        """
        key = {"counterparty": counterparty, "kind": kind}
        times = {"first": now + step, "now": now, "step": step, "most": most}
        count = _COUNT[self._session.get_bind().dialect.name]
        if self._session.execute(count, {**key, **times}).first() is not None:
            return 0.0
        query = select(ProcessRate.full_until).where(ProcessRate.counterparty == counterparty, ProcessRate.kind == kind)
        until = self._session.scalar(query) or now
        return max(until + step - now - most, 1e-3)

    def forget_idle(self, now: float) -> None:
        """Remove rows of counterparties without recent processes."""
        self._session.execute(delete(ProcessRate).where(ProcessRate.full_until < now))
