"""Queries for negotiations and transfers. Rows read `for update` are locked until the transaction ends."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, ClassVar, Generic, TypeVar

from sqlalchemy import ColumnElement, Integer, Select, bindparam, func, literal, select, tuple_
from sqlalchemy.orm import Session

from connector.errors import NotFound
from connector.store.tables import KNOWN, OPEN, Negotiation, Transfer

Row = TypeVar("Row", Negotiation, Transfer)


class _Processes(Generic[Row]):
    _table: type[Row]
    _noun = ""
    _by_peer: ClassVar[Select[Any]]
    _open: ClassVar[Select[Any]]
    _open_all: ClassVar[Select[Any]]
    _any_with: ClassVar[Select[Any]]

    def __init__(self, session: Session) -> None:
        self._session = session

    def add(self, row: Row) -> None:
        self._session.add(row)

    def get(self, pid: str) -> Row | None:
        """For update, by our own pid."""
        return self._session.get(self._table, pid, with_for_update=True)

    def peek(self, pid: str) -> Row | None:
        """By our own pid, to be looked at only."""
        return self._session.get(self._table, pid)

    def of(self, pid: str, counterparty: str) -> Row:
        """For update, by our own pid and the caller. Not there and not yours look alike: NotFound."""
        row = self.get(pid)
        if row is None or row.counterparty != counterparty:
            raise NotFound(f"no {self._noun} {pid!r} between you and this participant")
        return row

    def peek_of(self, pid: str, counterparty: str) -> Row:
        """As `of`, to be looked at only."""
        row = self.peek(pid)
        if row is None or row.counterparty != counterparty:
            raise NotFound(f"no {self._noun} {pid!r} between you and this participant")
        return row

    def by_peer(self, *, role: str, counterparty: str, peer_pid: str) -> Row | None:
        """For update, by the counterparty's pid: recognises a repeated first request."""
        which = {"ours": role, "who": counterparty, "theirs": peer_pid}
        return self._session.scalars(self._by_peer, which).first()

    def open_with(self, counterparty: str, *, role: str, up_to: int) -> int:
        """How many processes that have not ended a counterparty has with us in this role; counts no further."""
        which = {"who": counterparty, "ours": role, "most": up_to}
        return self._session.scalar(self._open, which) or 0

    def open_in(self, *, role: str, up_to: int) -> int:
        """How many that have not ended there are in this role of ours, with anybody; counts no further."""
        return self._session.scalar(self._open_all, {"ours": role, "most": up_to}) or 0

    def not_over(self, *, role: str) -> Sequence[str]:
        """Our pids of those that have not ended, in this role of ours."""
        table = self._table
        return self._session.scalars(select(table.id).where(table.role == role, OPEN)).all()

    def any_with(self, counterparty: str, *, role: str, states: Collection[str]) -> bool:
        """Whether one with this counterparty, in this role of ours, is in one of these states."""
        which = {"who": counterparty, "ours": role, "among": list(states)}
        return self._session.scalar(self._any_with, which) is not None

    def page(
        self, *, limit: int = 100, offset: int = 0, waiting: bool = False, oldest: bool = False, **equals: str
    ) -> Sequence[Row]:
        """Newest first, those whose columns (role, state, counterparty, ...) are `equals`; empty texts say nothing.

        `waiting`: only those that have no message of ours on its way. `oldest`: these first.
        """
        table = self._table
        query = select(table).where(*self._equal(waiting, equals))
        order = table.created_at if oldest else table.created_at.desc()
        return self._session.scalars(query.order_by(order, table.id).limit(limit).offset(offset)).all()

    def number(self, *, waiting: bool = False, **equals: str) -> int:
        """How many there are of what `page` lists."""
        found = select(func.count()).select_from(self._table).where(*self._equal(waiting, equals))
        return self._session.scalar(found) or 0

    def _equal(self, waiting: bool, equals: Mapping[str, str]) -> list[ColumnElement[bool]]:
        pending = [self._table.pending == ""] if waiting else []
        return pending + [getattr(self._table, column) == value for column, value in equals.items() if value]


def _said_by_peer(table: type[Negotiation | Transfer]) -> Select[Any]:
    """By the counterparty's pid. Statements of every message are built once: building costs as much as running."""
    named = (
        table.role == bindparam("ours"),
        table.counterparty == bindparam("who"),
        table.peer_pid == bindparam("theirs"),
    )
    return select(table).where(*named, KNOWN).with_for_update()


def _open_with(table: type[Negotiation | Transfer]) -> Select[Any]:
    return _counted(table, table.counterparty == bindparam("who"), table.role == bindparam("ours"))


def _open_in(table: type[Negotiation | Transfer]) -> Select[Any]:
    return _counted(table, table.role == bindparam("ours"))


def _any_with(table: type[Negotiation | Transfer]) -> Select[Any]:
    some = select(literal(1)).select_from(table)
    named = (table.role == bindparam("ours"), table.counterparty == bindparam("who"), KNOWN)
    return some.where(*named, table.state.in_(bindparam("among", expanding=True))).limit(1)


def _counted(table: type[Negotiation | Transfer], *named: ColumnElement[bool]) -> Select[Any]:
    some = select(literal(1)).select_from(table).where(*named, OPEN)
    return select(func.count()).select_from(some.limit(bindparam("most", type_=Integer)).subquery())


class Negotiations(_Processes[Negotiation]):
    _table = Negotiation
    _noun = "negotiation"
    _by_peer = _said_by_peer(Negotiation)
    _open = _open_with(Negotiation)
    _open_all = _open_in(Negotiation)
    _any_with = _any_with(Negotiation)

    def resting(
        self, at: Collection[tuple[str, str]], *, before: float, after: str, limit: int
    ) -> Sequence[Negotiation]:
        """Those at one of `at` (our role, state) with no message of ours on its way, unchanged since `before`; in the
        order of their ids, which are more than `after`."""
        still = (Negotiation.pending == "", Negotiation.updated_at < before, Negotiation.id > after)
        state = Negotiation.state.in_({state for _, state in at})  # said by itself, or no index is used
        query = select(Negotiation).where(tuple_(Negotiation.role, Negotiation.state).in_(at), state, *still)
        return self._session.scalars(query.order_by(Negotiation.id).limit(limit)).all()


class Transfers(_Processes[Transfer]):
    _table = Transfer
    _noun = "transfer"
    _by_peer = _said_by_peer(Transfer)
    _open = _open_with(Transfer)
    _open_all = _open_in(Transfer)
    _any_with = _any_with(Transfer)

    def moments(self, agreement_id: str, *, role: str) -> dict[str, float]:
        """When a transfer under an agreement first started and was first completed, as far as one was."""
        rows = self._session.scalars(
            select(Transfer).where(Transfer.agreement_id == agreement_id, Transfer.role == role)
        ).all()
        started = [row.created_at for row in rows if row.generation > 0 or row.state in ("STARTED", "COMPLETED")]
        completed = [row.updated_at for row in rows if row.state == "COMPLETED"]
        return {name: min(at) for name, at in (("Started", started), ("Completed", completed)) if at}

    def resting_or_running(self, agreement_id: str, *, role: str) -> Sequence[Transfer]:
        """Transfers under one agreement that are started or suspended, with no message of ours on its way."""
        ours = (Transfer.agreement_id == agreement_id, Transfer.role == role, Transfer.pending == "")
        return self._session.scalars(select(Transfer).where(*ours, Transfer.state.in_(("STARTED", "SUSPENDED")))).all()

    def started(self, agreement_id: str, *, role: str) -> Sequence[Transfer]:
        """Transfers under one agreement that are started, newest first, to be looked at only."""
        ours = (Transfer.agreement_id == agreement_id, Transfer.role == role, Transfer.state == "STARTED")
        return self._session.scalars(select(Transfer).where(*ours).order_by(Transfer.created_at.desc())).all()

    def under(self, agreement_id: str, *, role: str) -> Sequence[Transfer]:
        """For update, every transfer under one agreement: in the order of their ids, as deliveries are recorded."""
        return self._session.scalars(
            select(Transfer)
            .where(Transfer.agreement_id == agreement_id, Transfer.role == role)
            .order_by(Transfer.id)
            .with_for_update()
        ).all()
