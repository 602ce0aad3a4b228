"""Queries for the outbox, the inbox and webhooks."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Protocol

from sqlalchemy import ColumnElement, and_, bindparam, case, delete, func, or_, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from connector.store.clock import Now
from connector.store.tables import Inbox, Outbox, Webhook, core_table

_OUTBOX, _INBOX = core_table(Outbox), core_table(Inbox)
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


class DeliveryExclusions(Protocol):
    """Messages that are not claimed now: whole circles, and (circle, audience or host) pairs."""

    @property
    def circles(self) -> Collection[str]: ...

    @property
    def names(self) -> Collection[tuple[str, str]]: ...


class OutboxQueries:
    """Queries for outgoing messages, for ids of received messages, and for webhooks."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def send(self, row: Outbox) -> None:
        """Put a message in the outbox; it leaves after the commit."""
        self._session.add(row)

    def claim(
        self, *, owner: str, now: float, lease: float, limit: int, but: DeliveryExclusions | None = None
    ) -> Sequence[Outbox]:
        """Lease due messages to `owner` for `lease` seconds: only the oldest of each process, to keep the order.

        A message has one lease at a time. `but`: messages to leave out.
        """
        oldest = select(func.min(Outbox.id)).group_by(Outbox.process).scalar_subquery()
        due = self._session.scalars(
            select(Outbox)
            .where(Outbox.id.in_(oldest), Outbox.due_at <= now, Outbox.lease_until <= now, _not_excluded(but))
            .order_by(Outbox.id)
            .limit(limit)
            .with_for_update(skip_locked=True)
        ).all()
        for row in due:
            row.lease_until = now + lease
            row.lease_owner = owner
        return due

    def read_clock(self) -> float:
        """The time of the database's clock in UTC seconds."""
        return self._session.scalars(select(Now())).one()

    def lock_leased(self, message_id: int, *, owner: str) -> Outbox | None:
        """A message that is still leased to `owner`, for update."""
        row = self._session.get(Outbox, message_id, with_for_update=True)
        return row if row is not None and row.lease_owner == owner else None

    def remove_delivered(self, message_id: int, *, owner: str) -> bool:
        """Remove a message. False if it was no longer leased to `owner`."""
        return self._session.execute(_DONE, {"message": message_id, "owner": owner}).first() is not None

    def drop(self, process: str) -> None:
        """Remove all messages of a process that were not sent yet."""
        self._session.execute(_DROP, {"of": process})

    def release(self, *, owner: str) -> None:
        self._session.execute(update(Outbox).where(Outbox.lease_owner == owner).values(lease_until=0.0, lease_owner=""))

    def release_instance(self, instance: str) -> None:
        """End the leases of earlier processes of an instance, when its new process starts."""
        earlier = Outbox.lease_owner.startswith(f"{instance}.", autoescape=True)
        self._session.execute(update(Outbox).where(earlier).values(lease_until=0.0, lease_owner=""))

    def release_all(self) -> None:
        """End every lease, when the only process on a database starts."""
        self._session.execute(update(Outbox).values(lease_until=0.0, lease_owner=""))

    def read_next_due(self, *, but: DeliveryExclusions | None = None) -> float | None:
        """The earliest time at which a message may be claimed; None if no message waits. `but` as for `claim`."""
        claimable = case((Outbox.lease_until > Outbox.due_at, Outbox.lease_until), else_=Outbox.due_at)
        due: float | None = self._session.scalar(select(func.min(claimable)).where(_not_excluded(but)))
        return due

    def bring_forward(self, now: float, *, beyond: float) -> None:
        """Make messages that are not leased and due later than `beyond` due now, with their age reset."""
        late = update(Outbox).where(Outbox.due_at > beyond, Outbox.lease_owner == "")
        self._session.execute(late.values(due_at=now, created_at=now))

    def count_waiting(self) -> int:
        return self._session.scalar(select(func.count()).select_from(Outbox)) or 0

    def find_received(self, sender: str, message_id: str) -> Inbox | None:
        return self._session.get(Inbox, (sender, message_id))

    def record_received(self, *, sender: str, message_id: str, digest: str, now: float) -> bool:
        """Store the id of a received message. False, without a change, if it was stored before."""
        insert = _REMEMBER[self._session.get_bind().dialect.name]
        values = {"sender": sender, "message_id": message_id, "digest": digest, "received_at": now}
        return self._session.execute(insert, values).first() is not None

    def forget_older(self, than: float) -> None:
        self._session.execute(delete(Inbox).where(Inbox.received_at < than))

    def list_webhooks(self) -> Sequence[Webhook]:
        return self._session.scalars(select(Webhook).order_by(Webhook.created_at)).all()

    def get_webhook(self, webhook_id: str) -> Webhook | None:
        return self._session.get(Webhook, webhook_id)

    def add_webhook(self, row: Webhook) -> None:
        self._session.add(row)

    def remove_webhook(self, row: Webhook) -> None:
        self._session.delete(row)


def _not_excluded(but: DeliveryExclusions | None) -> ColumnElement[bool]:
    circles, names = (but.circles, but.names) if but is not None else ((), ())
    among: dict[str, list[str]] = {}
    for circle, name in names:
        among.setdefault(circle, []).append(name)
    each = [  # lists of single values are looked up; pairs would be compared row by row
        or_(Outbox.circle != circle, and_(Outbox.audience.not_in(of), Outbox.host.not_in(of)))
        for circle, of in among.items()
    ]
    return and_(Outbox.circle.not_in(circles), *each)
