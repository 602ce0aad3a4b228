"""One transaction with the queries of every aggregate."""

from __future__ import annotations

from functools import cached_property

from sqlalchemy.orm import Session

from catalogue.store.applications import ApplicationQueries
from catalogue.store.entries import EntryQueries
from catalogue.store.issuances import IssuanceQueries
from catalogue.store.members import MemberQueries
from catalogue.store.tables import MemberLog
from catalogue.store.tokens import CatalogueTokenQueries
from connector.infra.database.witnessed_logs import WitnessedLogQueries


class CatalogueTransaction:
    """The argument of a unit of work. `now` is the transaction's time in UTC seconds since the epoch.

    Locks are taken in one order to avoid deadlocks: the member, its crawl state (several by id), the change number, its
    entries, the register's revision, its issuances, status lists (by kind and number). A change of a member's entries
    requires the lock on its crawl state, a change of its credentials the lock on the member.
    """

    def __init__(self, session: Session, *, now: float) -> None:
        self.session = session
        self.now = now

    @cached_property
    def tokens(self) -> CatalogueTokenQueries:
        return CatalogueTokenQueries(self.session)

    @cached_property
    def members(self) -> MemberQueries:
        return MemberQueries(self.session)

    @cached_property
    def entries(self) -> EntryQueries:
        return EntryQueries(self.session)

    @cached_property
    def witnessed(self) -> WitnessedLogQueries:
        return WitnessedLogQueries(self.session, MemberLog)

    @cached_property
    def issuances(self) -> IssuanceQueries:
        return IssuanceQueries(self.session)

    @cached_property
    def applications(self) -> ApplicationQueries:
        return ApplicationQueries(self.session)
