"""One transaction, with the queries of every aggregate at hand, and the events it publishes."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

from sqlalchemy import insert
from sqlalchemy.orm import Session

from connector.events import Event
from connector.store.admissions import Admissions
from connector.store.agreements import Agreements
from connector.store.answers import PrivateAnswers
from connector.store.audit import AuditRows
from connector.store.datasets import Datasets
from connector.store.messages import Messages
from connector.store.processes import Negotiations, Transfers
from connector.store.reads import OpenReads
from connector.store.received import ReceivedRows
from connector.store.tables import AuditPending, bare
from connector.store.tokens import Tokens
from connector.store.usage import Attestations, Duties

_STORE = insert(bare(AuditPending))


class Transaction:
    """What a unit of work sees. `now` is the transaction's time in UTC seconds since the epoch.

    `origin` names the process, so that another one on the same database tells our events from its own.
    """

    def __init__(self, session: Session, *, now: float, origin: str = "") -> None:
        self.session = session
        self.now = now
        self._origin = origin
        self.published: list[Event] = []
        self.afterwards: list[Callable[[], None]] = []

    def publish(self, event: Event) -> None:
        """Store the event with the change; it is delivered to subscribers after the commit."""
        self.published.append(event)

    def after_commit(self, act: Callable[[], None]) -> None:
        """Call `act` once this is committed, in the event loop's thread, before the events are delivered."""
        self.afterwards.append(act)

    def store_events(self) -> None:
        """Write what was published; the store calls this at the end of a unit of work."""
        if self.published:
            rows = [{"ts": self.now, "body": event.body(), "origin": self._origin} for event in self.published]
            self.session.execute(_STORE, rows)

    @cached_property
    def tokens(self) -> Tokens:
        return Tokens(self.session)

    @cached_property
    def datasets(self) -> Datasets:
        return Datasets(self.session)

    @cached_property
    def admissions(self) -> Admissions:
        return Admissions(self.session)

    @cached_property
    def negotiations(self) -> Negotiations:
        return Negotiations(self.session)

    @cached_property
    def transfers(self) -> Transfers:
        return Transfers(self.session)

    @cached_property
    def agreements(self) -> Agreements:
        return Agreements(self.session)

    @cached_property
    def messages(self) -> Messages:
        return Messages(self.session)

    @cached_property
    def answers(self) -> PrivateAnswers:
        return PrivateAnswers(self.session)

    @cached_property
    def reads(self) -> OpenReads:
        return OpenReads(self.session)

    @cached_property
    def received(self) -> ReceivedRows:
        return ReceivedRows(self.session)

    @cached_property
    def facts(self) -> Attestations:
        return Attestations(self.session)

    @cached_property
    def duties(self) -> Duties:
        return Duties(self.session)

    @cached_property
    def audit(self) -> AuditRows:
        return AuditRows(self.session)
