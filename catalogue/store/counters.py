"""Numbers that only grow, one row each. The row stays locked until commit, so numbers become visible in order.

One is taken before the rows that get it are written (catalogue.store.transaction has the order of all locks).
"""

from __future__ import annotations

from sqlalchemy import select, update
from sqlalchemy.orm import Session

from catalogue.store.tables import Counter


def bump(session: Session, name: str) -> int:
    """The next number."""
    bumped = update(Counter).where(Counter.name == name).values(value=Counter.value + 1).returning(Counter.value)
    with session.no_autoflush:  # what has changed by now is written, and locked, after it
        value = session.scalar(bumped)
    if value is None:
        session.add(Counter(name=name, value=1))
        session.flush()
        return 1
    return int(value)


def current(session: Session, name: str) -> int:
    """The last number given out, 0 before the first."""
    return session.scalar(select(Counter.value).where(Counter.name == name)) or 0
