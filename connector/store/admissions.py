"""How fast each counterparty begins processes: one row each, locked while a new one is admitted."""

from __future__ import annotations

from sqlalchemy import case, delete, select
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from connector.store.tables import Begun


class Admissions:
    def __init__(self, session: Session) -> None:
        self._session = session

    def take(self, counterparty: str, *, kind: str, step: float, most: float, now: float) -> float:
        """Count one more, and lock the counterparty's row until the transaction ends; 0, or the seconds to wait.

        Each new process fills `step` seconds of the time ahead, of which at most `most` may be full (the generic cell
        rate algorithm): one statement, so that two that count at once cannot both take the last place.
        """
        build = sqlite.insert if self._session.get_bind().dialect.name == "sqlite" else postgresql.insert
        full = case((Begun.full_until > now, Begun.full_until), else_=now) + step
        count = build(Begun).values(counterparty=counterparty, kind=kind, full_until=now + step)
        count = count.on_conflict_do_update(
            index_elements=[Begun.counterparty, Begun.kind], set_={"full_until": full}, where=full - now <= most
        )
        if self._session.execute(count.returning(Begun.kind)).first() is not None:
            return 0.0
        query = select(Begun.full_until).where(Begun.counterparty == counterparty, Begun.kind == kind)
        until = self._session.scalar(query) or now
        return max(until + step - now - most, 1e-3)

    def forget_idle(self, now: float) -> None:
        """Remove those that began nothing of late: they count as if they had never been here."""
        self._session.execute(delete(Begun).where(Begun.full_until < now))
