"""Queries for issued credentials: requests and their deliveries, credentials and their state, status lists."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Collection, Sequence
from typing import Any

from sqlalchemy import ColumnElement, delete, exists, func, select, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from catalogue.store.tables import Issuance, IssuedCredential, Member, StatusList

LIST_BITS = 131_072  # the least size of a list (Bitstring Status List 1.0, section 6.1)
ACTIVE, SUSPENDED, REVOKED = "active", "suspended", "revoked"
_LIST_FULL = LIST_BITS // 2  # above this, a free place is found by chance too rarely
_SHOWN = 200
_INSERT: dict[str, Any] = {"sqlite": sqlite.insert, "postgresql": postgresql.insert}


class IssuanceQueries:
    def __init__(self, session: Session, *, draw: Callable[[int], int] = secrets.randbelow) -> None:
        self._session, self._draw = session, draw

    def add(self, row: Issuance | IssuedCredential) -> None:
        self._session.add(row)
        self._session.flush()

    def find(self, issuance: str, *, lock: bool = False) -> Issuance | None:
        """A request by its id; None if unknown. `lock`: for update."""
        return self._session.get(Issuance, issuance, with_for_update=lock)

    def list_of(self, holder: str) -> Sequence[Issuance]:
        """A member's requests, newest first."""
        found = select(Issuance).where(Issuance.holder == holder)
        return self._session.scalars(found.order_by(Issuance.created_at.desc(), Issuance.id).limit(_SHOWN)).all()

    def list_credentials(self, holder: str) -> Sequence[IssuedCredential]:
        """A member's credentials, newest first."""
        found = select(IssuedCredential).where(IssuedCredential.holder == holder)
        newest = found.order_by(IssuedCredential.issued_at.desc(), IssuedCredential.id)
        return self._session.scalars(newest.limit(_SHOWN)).all()

    def count_by_state(self, now: float) -> dict[str, dict[str, int]]:
        """The number of credentials that have not ended, by holder and state."""
        groups = select(IssuedCredential.holder, IssuedCredential.state, func.count())
        current = groups.where(IssuedCredential.expires_at > now)
        found: dict[str, dict[str, int]] = {}
        for holder, state, count in self._session.execute(
            current.group_by(IssuedCredential.holder, IssuedCredential.state).order_by(IssuedCredential.state)
        ):
            found.setdefault(holder, {})[state] = count
        return found

    def list_problems(self) -> dict[str, str]:
        """Why the last attempt of a delivery failed that is tried again, by holder."""
        failing = select(Issuance.holder, Issuance.problem).where(Issuance.next_at.is_not(None), Issuance.problem != "")
        return {row.holder: row.problem for row in self._session.execute(failing)}

    def list_issued(self, issuance: str) -> Sequence[IssuedCredential]:
        """The credentials that answer a request."""
        found = select(IssuedCredential).where(IssuedCredential.issuance == issuance)
        return self._session.scalars(found.order_by(IssuedCredential.type, IssuedCredential.profile)).all()

    def count_open(self, holder: str) -> int:
        """The number of a member's requests whose answer is not delivered yet."""
        open_ones = select(func.count()).where(Issuance.holder == holder, Issuance.next_at.is_not(None))
        return self._session.scalar(open_ones) or 0

    def count_current(self, holder: str, now: float) -> int:
        """The number of a member's credentials that have not ended."""
        current = select(func.count()).where(IssuedCredential.holder == holder, IssuedCredential.expires_at > now)
        return self._session.scalar(current) or 0

    def count_holding(self, holder: str, now: float) -> int:
        """The number of a member's credentials that have not ended and are not revoked."""
        here = (IssuedCredential.holder == holder, IssuedCredential.expires_at > now)
        return self._session.scalar(select(func.count()).where(*here, IssuedCredential.state != REVOKED)) or 0

    def list_due(self, now: float, *, apart_from: Collection[str], limit: int) -> list[tuple[str, str]]:
        """Holder and id of the longest due delivery of each holder, without the holders in `apart_from`."""
        first = (
            select(Issuance.holder, func.min(Issuance.next_at).label("at"))
            .where(Issuance.next_at <= now, Issuance.holder.not_in(apart_from))
            .group_by(Issuance.holder)
            .order_by("at")
            .limit(limit)
            .subquery()
        )
        same = (Issuance.holder == first.c.holder) & (Issuance.next_at == first.c.at)
        found = self._session.execute(select(Issuance.holder, func.min(Issuance.id)).join(first, same).group_by(
            Issuance.holder
        ))  # fmt: skip
        return [(holder, issuance) for holder, issuance in found]

    def list_without(self, kind: str, *, beyond: float, since: float) -> Sequence[str]:
        """Active members without a credential of type `kind` that lasts beyond a time, or a request `since`."""
        has = exists().where(
            IssuedCredential.holder == Member.id,
            IssuedCredential.type == kind,
            IssuedCredential.expires_at > beyond,
            IssuedCredential.state != REVOKED,
        )
        asked = exists().where(
            Issuance.holder == Member.id, (Issuance.created_at > since) | Issuance.next_at.is_not(None)
        )
        return self._session.scalars(select(Member.id).where(Member.status == ACTIVE, ~has, ~asked)).all()

    def change_state(self, holder: str, *, before: Collection[str], after: str) -> None:
        """Give all credentials of a member whose state is in `before` the state `after`; their lists change too."""
        self._change(IssuedCredential.holder == holder, before, after)

    def revoke_answer(self, issuance: str) -> None:
        """Revoke the credentials that were signed for a request and that its holder has not taken."""
        self._change(IssuedCredential.issuance == issuance, (ACTIVE, SUSPENDED), REVOKED)

    def _change(self, of: ColumnElement[bool], before: Collection[str], after: str) -> None:
        chosen = (of, IssuedCredential.state.in_(before))
        places = select(IssuedCredential.list_kind, IssuedCredential.list_number).where(*chosen).distinct()
        for kind, number in sorted(tuple(place) for place in self._session.execute(places)):
            here = (StatusList.kind == kind, StatusList.number == number)
            self._session.execute(update(StatusList).where(*here).values(revision=StatusList.revision + 1))
        self._session.execute(update(IssuedCredential).where(*chosen).values(state=after))

    def give_up(self, holder: str, *, problem: str) -> None:
        """Reject all open requests of a member, without a message."""
        chosen = (Issuance.holder == holder, Issuance.next_at.is_not(None))
        ended = {"status": "REJECTED", "next_at": None, "token": "", "problem": problem}
        self._session.execute(update(Issuance).where(*chosen).values(ended))

    def take_place(self, kind: str) -> tuple[int, int]:
        """Number and index of a free place in a list of this kind, chosen by chance: neighbours reveal nothing."""
        newest = select(StatusList).where(StatusList.kind == kind).order_by(StatusList.number.desc()).limit(1)
        current = self._session.scalars(newest.with_for_update()).one_or_none()
        while current is None or current.used >= _LIST_FULL:
            self._make_list(kind, 1 if current is None else current.number + 1)
            current = self._session.scalars(newest.with_for_update()).one()
        current.used += 1
        self._session.flush()
        while not self._is_free(kind, current.number, index := self._draw(LIST_BITS)):
            continue
        return current.number, index

    def _make_list(self, kind: str, number: int) -> None:
        """Add an empty list, unless another transaction has added it."""
        insert = _INSERT[self._session.get_bind().dialect.name]
        row = {"kind": kind, "number": number, "used": 0, "revision": 0}
        self._session.execute(insert(StatusList).values(row).on_conflict_do_nothing())

    def _is_free(self, kind: str, number: int, index: int) -> bool:
        place = (IssuedCredential.list_kind, IssuedCredential.list_number, IssuedCredential.list_index)
        same = (one == value for one, value in zip(place, (kind, number, index), strict=True))
        return self._session.scalar(select(IssuedCredential.id).where(*same)) is None

    def find_list(self, kind: str, number: int) -> StatusList | None:
        """A status list; None if it does not exist."""
        return self._session.get(StatusList, (kind, number))

    def list_set(self, kind: str, number: int) -> Sequence[int]:
        """The places of a list whose credentials do not hold."""
        here = (IssuedCredential.list_kind == kind, IssuedCredential.list_number == number)
        return self._session.scalars(
            select(IssuedCredential.list_index).where(*here, IssuedCredential.state != ACTIVE)
        ).all()

    def sweep(self, before: float) -> None:
        """Remove credentials that ended, and closed requests that were made, before a time."""
        self._session.execute(delete(IssuedCredential).where(IssuedCredential.expires_at < before))
        closed = (Issuance.created_at < before, Issuance.next_at.is_(None))
        left = exists().where(IssuedCredential.issuance == Issuance.id)
        self._session.execute(delete(Issuance).where(*closed, ~left))
