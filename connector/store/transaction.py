"""One transaction: the queries of every aggregate, and the events to publish with it."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property

from sqlalchemy import Connection, String, func, select
from sqlalchemy.orm import Session

from connector.acting import Acting
from connector.events import Event
from connector.infra.database.witnessed_logs import WitnessedLogQueries
from connector.store.compiled_statements import CompiledStatement, build_insert
from connector.store.queries.agreements import AgreementQueries
from connector.store.queries.audit import AuditQueries
from connector.store.queries.callers import CallerQueries
from connector.store.queries.datasets import DatasetQueries
from connector.store.queries.held_credentials import HeldCredentialQueries
from connector.store.queries.negotiations_transfers import NegotiationQueries, TransferQueries
from connector.store.queries.noised_answers import NoisedAnswerQueries
from connector.store.queries.outbox import OutboxQueries
from connector.store.queries.process_counters import ProcessCounterQueries
from connector.store.queries.pushed_data import PushedDataQueries
from connector.store.queries.reads import OpenReadQueries
from connector.store.queries.sessions import SessionQueries
from connector.store.queries.tokens import TokenQueries
from connector.store.queries.usage import AttestationQueries, DutyQueries
from connector.store.tables import AuditPending, WitnessedLog, core_table
from connector.store.unit_of_work import UnitOfWork

_INSERT = build_insert(core_table(AuditPending), "ts", "body", "origin")
_INSERT_LAST = build_insert(
    core_table(AuditPending), "ts", "body", "origin", returning=func.txid_current()
)  # PostgreSQL's
_READ_ONLY = CompiledStatement(select(func.current_setting("transaction_read_only", type_=String)))  # PostgreSQL's


class Transaction:
    """The argument of a unit of work. `now` is the transaction's time in UTC seconds since the epoch.

    `origin` is stored with each event. It names the process, so that another process on the same database can tell the
    events apart. Where it names the transaction too (`audit.make_origin`), it proves that the transaction was
    committed.
    """

    def __init__(self, connection: Connection, *, now: float, origin: str = "", shared: bool = False) -> None:
        self._unit = UnitOfWork(connection, shared=shared)
        self.now = now
        self.origin = origin
        self.published: list[Event] = []
        self.acting: Acting | None = None  # set by the store for work of a management request
        self.transaction_id: int | None = None  # PostgreSQL's, where there are events

    def publish(self, event: Event) -> None:
        """Store the event with the change; it is delivered to subscribers after the commit.

        An event of the current request's caller also gets the caller's subject, token and job.
        """
        self.published.append(_complete(event, self.acting))

    def is_writable(self) -> bool:
        """Whether the database accepts changes. A standby and a read-only database do not."""
        return self._unit.database == "sqlite" or self._unit.fetch(_READ_ONLY)[0][0] == "off"

    def finish(self) -> None:
        """Write the published events and changed rows. The store calls this at the end of a unit of work."""
        if self.published:
            rows = [{"ts": self.now, "body": event.body(), "origin": self.origin} for event in self.published]
            last = [rows.pop()] if self._unit.database == "postgresql" else []
            if rows:
                self._unit.execute_many(_INSERT, rows)
            for row in last:
                self.transaction_id = self._unit.fetch(_INSERT_LAST, **row)[0][0]
        self._unit.finish()

    def close(self) -> None:
        """Release the session and cursor. The store calls this at the end; row objects stay readable."""
        self._unit.close()

    @property
    def session(self) -> Session:
        return self._unit.session

    @cached_property
    def tokens(self) -> TokenQueries:
        return TokenQueries(self.session)

    @cached_property
    def sessions(self) -> SessionQueries:
        return SessionQueries(self.session)

    @cached_property
    def datasets(self) -> DatasetQueries:
        return DatasetQueries(self.session)

    @cached_property
    def process_counters(self) -> ProcessCounterQueries:
        return ProcessCounterQueries(self.session)

    @cached_property
    def negotiations(self) -> NegotiationQueries:
        return NegotiationQueries(self.session)

    @cached_property
    def transfers(self) -> TransferQueries:
        return TransferQueries(self.session)

    @cached_property
    def agreements(self) -> AgreementQueries:
        return AgreementQueries(self._unit)

    @cached_property
    def outbox(self) -> OutboxQueries:
        return OutboxQueries(self.session)

    @cached_property
    def noised_answers(self) -> NoisedAnswerQueries:
        return NoisedAnswerQueries(self.session)

    @cached_property
    def reads(self) -> OpenReadQueries:
        return OpenReadQueries(self._unit)

    @cached_property
    def pushed_data(self) -> PushedDataQueries:
        return PushedDataQueries(self.session)

    @cached_property
    def attestations(self) -> AttestationQueries:
        return AttestationQueries(self.session)

    @cached_property
    def callers(self) -> CallerQueries:
        return CallerQueries(self.session)

    @cached_property
    def held_credentials(self) -> HeldCredentialQueries:
        return HeldCredentialQueries(self.session)

    @cached_property
    def duties(self) -> DutyQueries:
        return DutyQueries(self.session)

    @cached_property
    def witnessed(self) -> WitnessedLogQueries:
        return WitnessedLogQueries(self.session, WitnessedLog)

    @cached_property
    def audit(self) -> AuditQueries:
        return AuditQueries(self._unit)


def _complete(event: Event, acting: Acting | None) -> Event:
    """Return the event with subject, token and job, if the caller of the current request is its actor."""
    if acting is None or event.actor != acting.name:
        return event
    return replace(event, subject=event.subject or acting.subject, token=acting.token, job=event.job or acting.job)
