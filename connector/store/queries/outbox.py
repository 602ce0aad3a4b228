"""Queries for the outbox, the inbox and webhooks."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Protocol

from sqlalchemy import ColumnElement, and_, bindparam, case, delete, func, or_, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from connector.store.clock import Now
from connector.store.tables import Inbox, Outbox, Webhook, bare

_OUTBOX, _INBOX = bare(Outbox), bare(Inbox)
_DONE = (
    delete(_OUTBOX)
    .where(_OUTBOX.c.id == bindparam("message"), _OUTBOX.c.lease_owner == bindparam("owner"))
    .returning(_OUTBOX.c.id)
)
_DROP = delete(_OUTBOX).where(_OUTBOX.c.process == bindparam("of"))
_REMEMBER = {
    "sqlite": sqlite.insert(_INBOX).on_conflict_do_nothing().returning(_INBOX.c.digest),
    "postgresql": postgresql.insert(_INBOX).on_conflict_do_nothing().returning(_INBOX.c.digest),
}


class PassedOver(Protocol):
    """What is not taken up: whole circles, and by circle whom, or what host, it is for."""

    @property
    def circles(self) -> Collection[str]: ...

    @property
    def names(self) -> Collection[tuple[str, str]]: ...


class Messages:
    def __init__(self, session: Session) -> None:
        self._session = session

    def send(self, row: Outbox) -> None:
        """Put a message in the outbox; it leaves after the commit."""
        self._session.add(row)

    def claim(
        self, *, owner: str, now: float, lease: float, limit: int, but: PassedOver | None = None
    ) -> Sequence[Outbox]:
        """Lease messages that are due, the oldest of each process only, so that order holds. Nobody shares a lease.

        `but`: none of these.
        """
        oldest = select(func.min(Outbox.id)).group_by(Outbox.process).scalar_subquery()
        due = self._session.scalars(
            select(Outbox)
            .where(Outbox.id.in_(oldest), Outbox.due_at <= now, Outbox.lease_until <= now, _none_of(but))
            .order_by(Outbox.id)
            .limit(limit)
            .with_for_update(skip_locked=True)
        ).all()
        for row in due:
            row.lease_until = now + lease
            row.lease_owner = owner
        return due

    def clock(self) -> float:
        """What the database's clock says, in UTC seconds."""
        return self._session.scalars(select(Now())).one()

    def leased(self, message_id: int, *, owner: str) -> Outbox | None:
        """A message that is still leased to `owner`, for update."""
        row = self._session.get(Outbox, message_id, with_for_update=True)
        return row if row is not None and row.lease_owner == owner else None

    def done(self, message_id: int, *, owner: str) -> bool:
        """Remove a message that is dealt with. False where it was not leased to `owner` any more."""
        return self._session.execute(_DONE, {"message": message_id, "owner": owner}).first() is not None

    def drop(self, process: str) -> None:
        """Forget everything that was still to be sent in a process."""
        self._session.execute(_DROP, {"of": process})

    def release(self, *, owner: str) -> None:
        self._session.execute(update(Outbox).where(Outbox.lease_owner == owner).values(lease_until=0.0, lease_owner=""))

    def release_of(self, instance: str) -> None:
        """End the leases of an instance's earlier processes: for its new one, when it starts."""
        theirs = Outbox.lease_owner.startswith(f"{instance}.", autoescape=True)
        self._session.execute(update(Outbox).where(theirs).values(lease_until=0.0, lease_owner=""))

    def release_all(self) -> None:
        """End every lease: for the only process on a database, when it starts."""
        self._session.execute(update(Outbox).values(lease_until=0.0, lease_owner=""))

    def next_due(self, *, but: PassedOver | None = None) -> float | None:
        """The earliest time at which a message may be sent or a lease ends; None when nothing waits. `but` as above."""
        later = case((Outbox.lease_until > Outbox.due_at, Outbox.lease_until), else_=Outbox.due_at)
        found: float | None = self._session.scalar(select(func.min(later)).where(_none_of(but)))
        return found

    def bring_forward(self, now: float, *, beyond: float) -> None:
        """What nobody has leased, and is due later than `beyond`, is due now, and as old as of now."""
        late = update(Outbox).where(Outbox.due_at > beyond, Outbox.lease_owner == "")
        self._session.execute(late.values(due_at=now, created_at=now))

    def waiting(self) -> int:
        return self._session.scalar(select(func.count()).select_from(Outbox)) or 0

    def seen(self, sender: str, message_id: str) -> Inbox | None:
        return self._session.get(Inbox, (sender, message_id))

    def remember(self, *, sender: str, message_id: str, digest: str, now: float) -> bool:
        """Note a message as taken in. False where it was noted before; then nothing changes."""
        note = _REMEMBER[self._session.get_bind().dialect.name]
        values = {"sender": sender, "message_id": message_id, "digest": digest, "received_at": now}
        return self._session.execute(note, values).first() is not None

    def forget_older(self, than: float) -> None:
        self._session.execute(delete(Inbox).where(Inbox.received_at < than))

    def webhooks(self) -> Sequence[Webhook]:
        return self._session.scalars(select(Webhook).order_by(Webhook.created_at)).all()

    def webhook(self, webhook_id: str) -> Webhook | None:
        return self._session.get(Webhook, webhook_id)

    def add_webhook(self, row: Webhook) -> None:
        self._session.add(row)

    def remove_webhook(self, row: Webhook) -> None:
        self._session.delete(row)


def _none_of(but: PassedOver | None) -> ColumnElement[bool]:
    circles, names = (but.circles, but.names) if but is not None else ((), ())
    among: dict[str, list[str]] = {}
    for circle, name in names:
        among.setdefault(circle, []).append(name)
    each = [  # lists of single values: databases compare each row with each pair, and look up a value
        or_(Outbox.circle != circle, and_(Outbox.audience.not_in(of), Outbox.host.not_in(of)))
        for circle, of in among.items()
    ]
    return and_(Outbox.circle.not_in(circles), *each)
