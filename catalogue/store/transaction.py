"""One transaction, with the queries of every aggregate at hand."""

from __future__ import annotations

from functools import cached_property

from sqlalchemy.orm import Session

from catalogue.store.entries import EntryQueries
from catalogue.store.members import MemberQueries
from catalogue.store.tokens import CatalogueTokenQueries


class CatalogueTransaction:
    """What a unit of work sees. `now` is the transaction's time in UTC seconds since the epoch.

    Who waits for locks while it holds some takes them in one order, or two would wait for each other: the member, its
    source (several of them by id), the change number, its entries, the number of the register. Who changes entries
    of a member holds its source.
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
