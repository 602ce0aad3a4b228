"""Queries for negotiations and transfers. Rows read "for update" are locked until the transaction ends."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, ClassVar, Generic, TypeVar

from sqlalchemy import ColumnElement, Integer, Select, bindparam, func, literal, select, tuple_
from sqlalchemy.orm import Session

from connector.errors import Absent
from connector.store.tables import HAS_PEER_PID, IS_OPEN, Negotiation, Transfer

Row = TypeVar("Row", Negotiation, Transfer)


class _ProcessQueries(Generic[Row]):
    """Queries that negotiations and transfers share. `pid` is this participant's id of a process, `role` its role."""

    _table: type[Row]
    _noun = ""
    _by_peer: ClassVar[Select[Any]]
    _open: ClassVar[Select[Any]]
    _open_all: ClassVar[Select[Any]]
    _select_any_with: ClassVar[Select[Any]]

    def __init__(self, session: Session) -> None:
        self._session = session

    def add(self, row: Row) -> None:
        self._session.add(row)

    def get(self, pid: str) -> Row | None:
        """By pid, for update."""
        return self._session.get(self._table, pid, with_for_update=True)

    def peek(self, pid: str) -> Row | None:
        """By pid, without a lock."""
        return self._session.get(self._table, pid)

    def of(self, pid: str, counterparty: str) -> Row:
        """By pid and counterparty, for update.

        Raises Absent for an unknown pid and for another party's process alike.
        """
        row = self.get(pid)
        if row is None or row.counterparty != counterparty:
            raise Absent(f"no {self._noun} {pid!r} between you and this participant")
        return row

    def peek_of(self, pid: str, counterparty: str) -> Row:
        """As `of`, without a lock."""
        row = self.peek(pid)
        if row is None or row.counterparty != counterparty:
            raise Absent(f"no {self._noun} {pid!r} between you and this participant")
        return row

    def find_by_peer(self, *, role: str, counterparty: str, peer_pid: str) -> Row | None:
        """By the counterparty's pid, for update. Recognises a repeated first request."""
        which = {"ours": role, "who": counterparty, "theirs": peer_pid}
        return self._session.scalars(self._by_peer, which).first()

    def count_open_with(self, counterparty: str, *, role: str, up_to: int) -> int:
        """The number of open processes with a counterparty in a role; counting stops at `up_to`."""
        which = {"who": counterparty, "ours": role, "most": up_to}
        return self._session.scalar(self._open, which) or 0

    def count_open_in(self, *, role: str, up_to: int) -> int:
        """The number of open processes in a role with all counterparties; counting stops at `up_to`."""
        return self._session.scalar(self._open_all, {"ours": role, "most": up_to}) or 0

    def list_not_ended(self, *, role: str) -> Sequence[str]:
        """Pids of open processes in a role."""
        table = self._table
        return self._session.scalars(select(table.id).where(table.role == role, IS_OPEN)).all()

    def has_any_with(self, counterparty: str, *, role: str, states: Collection[str]) -> bool:
        """Whether a process with this counterparty in this role is in one of these states."""
        which = {"who": counterparty, "ours": role, "among": list(states)}
        return self._session.scalar(self._select_any_with, which) is not None

    def page(
        self, *, limit: int = 100, offset: int = 0, waiting: bool = False, oldest: bool = False, **equals: str
    ) -> Sequence[Row]:
        """Processes whose columns (role, state, counterparty, ...) equal `equals`, newest first. Empty texts are
        ignored.

        `waiting`: only those without an unacknowledged message. `oldest`: oldest first.
        """
        table = self._table
        query = select(table).where(*self._match(waiting, equals))
        order = table.created_at if oldest else table.created_at.desc()
        return self._session.scalars(query.order_by(order, table.id).limit(limit).offset(offset)).all()

    def count(self, *, waiting: bool = False, **equals: str) -> int:
        """The number of processes that `page` would list."""
        query = select(func.count()).select_from(self._table).where(*self._match(waiting, equals))
        return self._session.scalar(query) or 0

    def _match(self, waiting: bool, equals: Mapping[str, str]) -> list[ColumnElement[bool]]:
        pending = [self._table.pending == ""] if waiting else []
        return pending + [getattr(self._table, column) == value for column, value in equals.items() if value]


def _select_by_peer(table: type[Negotiation | Transfer]) -> Select[Any]:
    """Select by the counterparty's pid. Built once, as building a statement costs as much as running it."""
    named = (
        table.role == bindparam("ours"),
        table.counterparty == bindparam("who"),
        table.peer_pid == bindparam("theirs"),
    )
    return select(table).where(*named, HAS_PEER_PID).with_for_update()


def _count_open_with(table: type[Negotiation | Transfer]) -> Select[Any]:
    return _count_up_to(table, table.counterparty == bindparam("who"), table.role == bindparam("ours"))


def _count_open_in(table: type[Negotiation | Transfer]) -> Select[Any]:
    return _count_up_to(table, table.role == bindparam("ours"))


def _build_any_with(table: type[Negotiation | Transfer]) -> Select[Any]:
    some = select(literal(1)).select_from(table)
    named = (table.role == bindparam("ours"), table.counterparty == bindparam("who"), HAS_PEER_PID)
    return some.where(*named, table.state.in_(bindparam("among", expanding=True))).limit(1)


def _count_up_to(table: type[Negotiation | Transfer], *named: ColumnElement[bool]) -> Select[Any]:
    some = select(literal(1)).select_from(table).where(*named, IS_OPEN)
    return select(func.count()).select_from(some.limit(bindparam("most", type_=Integer)).subquery())


class NegotiationQueries(_ProcessQueries[Negotiation]):
    _table = Negotiation
    _noun = "negotiation"
    _by_peer = _select_by_peer(Negotiation)
    _open = _count_open_with(Negotiation)
    _open_all = _count_open_in(Negotiation)
    _select_any_with = _build_any_with(Negotiation)

    def list_idle(
        self, at: Collection[tuple[str, str]], *, before: float, after: str, limit: int
    ) -> Sequence[Negotiation]:
        """Negotiations in one of `at` (role, state) without an unacknowledged message and unchanged since `before`.

        In order of id, after the id `after`.
        """
        unchanged = (Negotiation.pending == "", Negotiation.updated_at < before, Negotiation.id > after)
        state = Negotiation.state.in_({state for _, state in at})  # a separate condition, or no index is used
        query = select(Negotiation).where(tuple_(Negotiation.role, Negotiation.state).in_(at), state, *unchanged)
        return self._session.scalars(query.order_by(Negotiation.id).limit(limit)).all()


class TransferQueries(_ProcessQueries[Transfer]):
    _table = Transfer
    _noun = "transfer"
    _by_peer = _select_by_peer(Transfer)
    _open = _count_open_with(Transfer)
    _open_all = _count_open_in(Transfer)
    _select_any_with = _build_any_with(Transfer)

    def read_moments(self, agreement_id: str, *, role: str) -> dict[str, float]:
        """When transfers under an agreement first "Started" and first "Completed" (UTC seconds), where they did."""
        rows = self._session.scalars(
            select(Transfer).where(Transfer.agreement_id == agreement_id, Transfer.role == role)
        ).all()
        started = [row.created_at for row in rows if row.generation > 0 or row.state in ("STARTED", "COMPLETED")]
        completed = [row.updated_at for row in rows if row.state == "COMPLETED"]
        return {name: min(at) for name, at in (("Started", started), ("Completed", completed)) if at}

    def list_started_or_suspended(self, agreement_id: str, *, role: str) -> Sequence[Transfer]:
        """Started and suspended transfers under an agreement without an unacknowledged message."""
        ours = (Transfer.agreement_id == agreement_id, Transfer.role == role, Transfer.pending == "")
        return self._session.scalars(select(Transfer).where(*ours, Transfer.state.in_(("STARTED", "SUSPENDED")))).all()

    def list_started(self, agreement_id: str, *, role: str) -> Sequence[Transfer]:
        """Started transfers under an agreement, newest first, without a lock."""
        ours = (Transfer.agreement_id == agreement_id, Transfer.role == role, Transfer.state == "STARTED")
        return self._session.scalars(select(Transfer).where(*ours).order_by(Transfer.created_at.desc())).all()

    def lock_by_agreement(self, agreement_id: str, *, role: str) -> Sequence[Transfer]:
        """All transfers under an agreement, for update, in order of id as delivery records lock them."""
        return self._session.scalars(
            select(Transfer)
            .where(Transfer.agreement_id == agreement_id, Transfer.role == role)
            .order_by(Transfer.id)
            .with_for_update()
        ).all()
