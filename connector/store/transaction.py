"""One transaction, with the queries of every aggregate at hand, and the events it publishes."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property

from sqlalchemy import Connection, String, func, select
from sqlalchemy.orm import Session

from connector.events import Event
from connector.store.compiled_statements import Prepared, adding
from connector.store.queries.agreements import Agreements
from connector.store.queries.audit import AuditRows
from connector.store.queries.datasets import Datasets
from connector.store.queries.negotiations_transfers import Negotiations, Transfers
from connector.store.queries.noised_answers import PrivateAnswers
from connector.store.queries.outbox import Messages
from connector.store.queries.process_counters import Admissions
from connector.store.queries.pushed_data import ReceivedRows
from connector.store.queries.reads import OpenReads
from connector.store.queries.tokens import Tokens
from connector.store.queries.usage import Attestations, Duties
from connector.store.tables import AuditPending, bare
from connector.store.unit_of_work import Unit

_STORE = adding(bare(AuditPending), "ts", "body", "origin")
_STORE_LAST = adding(bare(AuditPending), "ts", "body", "origin", returning=func.txid_current())  # PostgreSQL's
_READ_ONLY = Prepared(select(func.current_setting("transaction_read_only", type_=String)))  # PostgreSQL's


class Transaction:
    """What a unit of work sees. `now` is the transaction's time in UTC seconds since the epoch.

    `origin` is what its events are stored with: it names the process, so that another one on the same database tells
    our events from its own, and where it is the transaction's own (`audit.mark`), that it was kept.
    """

    def __init__(self, connection: Connection, *, now: float, origin: str = "", shared: bool = False) -> None:
        self._unit = Unit(connection, shared=shared)
        self.now = now
        self.origin = origin
        self.published: list[Event] = []
        self.afterwards: list[Callable[[], None]] = []
        self.number: int | None = None  # by which PostgreSQL says whether it is over, where there are events

    def publish(self, event: Event) -> None:
        """Store the event with the change; it is delivered to subscribers after the commit."""
        self.published.append(event)

    def after_commit(self, act: Callable[[], None]) -> None:
        """Call `act` once this is committed, in the event loop's thread, before the events are delivered."""
        self.afterwards.append(act)

    def may_change(self) -> bool:
        """Whether the database takes changes: a standby does not, nor one that is set to read only."""
        return self._unit.database == "sqlite" or self._unit.rows(_READ_ONLY)[0][0] == "off"

    def finish(self) -> None:
        """Write what was published and what was changed; the store calls this at the end of a unit of work."""
        if self.published:
            rows = [{"ts": self.now, "body": event.body(), "origin": self.origin} for event in self.published]
            last = [rows.pop()] if self._unit.database == "postgresql" else []
            if rows:
                self._unit.add(_STORE, rows)
            for row in last:
                self.number = self._unit.rows(_STORE_LAST, **row)[0][0]
        self._unit.finish()

    def close(self) -> None:
        """The store calls this when nothing more is asked; rows that were objects can be read on."""
        self._unit.close()

    @property
    def session(self) -> Session:
        return self._unit.session

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
        return Agreements(self._unit)

    @cached_property
    def messages(self) -> Messages:
        return Messages(self.session)

    @cached_property
    def answers(self) -> PrivateAnswers:
        return PrivateAnswers(self.session)

    @cached_property
    def reads(self) -> OpenReads:
        return OpenReads(self._unit)

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
        return AuditRows(self._unit)
