"""Queries for agreements and their grants. Counters move in one conditional update, so nobody can overspend."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import NamedTuple

from sqlalchemy import BigInteger, Integer, Select, Text, and_, bindparam, case, cast, exists, func, or_, select, update

from connector.errors import NotFound
from connector.store.compiled_statements import Prepared
from connector.store.tables import Agreement, Dataset, DatasetVersion, Grant, Json, Negotiation, Transfer, bare
from connector.store.unit_of_work import Unit

_AGREEMENT, _GRANT, _TRANSFER = bare(Agreement), bare(Grant), bare(Transfer)
_DATASET, _VERSION = bare(Dataset), bare(DatasetVersion)
_OTHERS_MAX = 100
_FINAL_OR_COMING = or_(
    Agreement.finalized.is_(True),
    exists().where(Negotiation.id == Agreement.negotiation_id, Negotiation.state != "TERMINATED"),
)
_UNLIMITED = 2**63 - 1  # more than is ever counted


class TransferState(NamedTuple):
    """Of a transfer, what its tickets depend on, and the reason that stands in it."""

    agreement_id: str
    state: str
    pending: str
    suspended_by: str
    generation: int
    reason: str


class Looked(NamedTuple):
    """What every read under one of our agreements looks at; None where there is no such row."""

    consumer: str
    finalized: bool
    ended_at: float | None
    end_reason: str
    granted: str | None
    revoked_at: float | None
    reason: str | None
    queries: int
    day: int
    queries_today: int
    rows: int
    bytes: int
    version: str | None  # the current one of the dataset
    source: str | None  # and where its files are, as it is stored: to be compared, not to be read
    transfer: TransferState | None


class Holding(NamedTuple):
    """An agreement of ours as a consumer: whose dataset it is on."""

    id: str
    provider: str
    dataset_id: str


class Started(NamedTuple):
    """A started transfer of ours as a consumer: where it reads from."""

    id: str
    peer_pid: str
    counterparty: str
    data_address: Json
    purpose: str = ""  # what its tickets are for; none: it is declared with each request


class Readable(NamedTuple):
    """An agreement of ours as a consumer, and of each purpose the newest started transfer with an address, the newest
    first."""

    ended_at: float | None
    end_reason: str
    transfers: tuple[Started, ...]


_LOOK = Prepared(
    select(  # in the order of `Looked`
        *(_AGREEMENT.c[name] for name in ("consumer", "finalized", "ended_at", "end_reason")),
        *(_GRANT.c[name] for name in ("agreement_id", "revoked_at", "reason")),
        *(_GRANT.c[name] for name in ("queries", "day", "queries_today", "rows", "bytes")),
        _VERSION.c.digest,
        cast(_VERSION.c.source, Text),
        *(_TRANSFER.c[name] for name in TransferState._fields),
    )
    .select_from(_AGREEMENT)
    .outerjoin(_GRANT, _GRANT.c.agreement_id == _AGREEMENT.c.id)
    .outerjoin(_DATASET, _DATASET.c.id == _AGREEMENT.c.dataset_id)
    .outerjoin(_VERSION, and_(_VERSION.c.dataset_id == _DATASET.c.id, _VERSION.c.digest == _DATASET.c.version))
    .outerjoin(_TRANSFER, _TRANSFER.c.id == bindparam("transfer"))
    .where(_AGREEMENT.c.id == bindparam("agreement"), _AGREEMENT.c.role == "provider")
)
_OF_GRANT = and_(_AGREEMENT.c.id == _GRANT.c.agreement_id, _AGREEMENT.c.role == "provider")
_ENDS = Prepared(
    select(_GRANT.c.agreement_id, _GRANT.c.revoked_at, _GRANT.c.reason, _AGREEMENT.c.ended_at, _AGREEMENT.c.end_reason)
    .select_from(_GRANT.outerjoin(_AGREEMENT, _OF_GRANT))
    .where(_GRANT.c.agreement_id.in_(bindparam("agreements", expanding=True)))
)
_STATES = Prepared(
    select(_TRANSFER.c.id, *(_TRANSFER.c[name] for name in TransferState._fields)).where(
        _TRANSFER.c.id.in_(bindparam("transfers", expanding=True))
    )
)
_HOLDINGS = Prepared(
    select(*(_AGREEMENT.c[name] for name in (*Holding._fields, "finalized", "ended_at")))
    .where(_AGREEMENT.c.role == "consumer")
    .order_by(_AGREEMENT.c.signed_at.desc(), _AGREEMENT.c.id)
    .limit(bindparam("most", type_=Integer))
)
_OF_OURS = and_(
    _TRANSFER.c.agreement_id == _AGREEMENT.c.id, _TRANSFER.c.role == "consumer", _TRANSFER.c.state == "STARTED"
)
_READABLE = Prepared(
    select(
        *(_AGREEMENT.c[name] for name in ("id", "ended_at", "end_reason")),
        *(_TRANSFER.c[name] for name in Started._fields),
    )
    .select_from(_AGREEMENT.outerjoin(_TRANSFER, _OF_OURS))
    .where(_AGREEMENT.c.role == "consumer", _AGREEMENT.c.id.in_(bindparam("agreements", expanding=True)))
    .order_by(_TRANSFER.c.created_at.desc(), _TRANSFER.c.id)
)

_THIS = _GRANT.c.agreement_id == bindparam("agreement")
_HOLDS = and_(_THIS, _GRANT.c.revoked_at.is_(None))
# An agreement of ours ends in one transaction and its grant in a later one: no read begins in between.
_IN_FORCE = and_(_HOLDS, ~exists().where(_OF_GRANT, _AGREEMENT.c.ended_at.is_not(None)))
_SAME_DAY = _GRANT.c.day.between(bindparam("today"), bindparam("today") + 1)
_TODAY = case((_SAME_DAY, _GRANT.c.queries_today), else_=0)
_COUNT_USE = Prepared(
    update(_GRANT)
    .where(_IN_FORCE, _GRANT.c.queries < bindparam("most"), bindparam("most_today", type_=BigInteger) > _TODAY)
    .values(
        queries=_GRANT.c.queries + 1,
        queries_today=_TODAY + 1,
        day=case((_SAME_DAY, _GRANT.c.day), else_=bindparam("today")),
    )
)
_UNCOUNT_USE = Prepared(
    update(_GRANT)
    .where(_THIS, _GRANT.c.queries > 0)
    .values(
        queries=_GRANT.c.queries - 1,
        queries_today=case(
            (and_(_GRANT.c.day == bindparam("today"), _GRANT.c.queries_today > 0), _GRANT.c.queries_today - 1),
            else_=_GRANT.c.queries_today,
        ),
    )
)
_MORE = {name: _GRANT.c[name] + bindparam(f"more_{name}") for name in ("rows", "bytes")}
_ADD = Prepared(update(_GRANT).where(_THIS).values(_MORE))
_RESERVE = Prepared(
    update(_GRANT).where(_HOLDS, *(more <= bindparam(f"most_{name}") for name, more in _MORE.items())).values(_MORE)
)


def used_today(row: Grant | Looked, *, day: int) -> int:
    """Queries that are counted for a day (days since the epoch, UTC) by a clock that may be a little behind."""
    return row.queries_today if row.day in (day, day + 1) else 0


class Agreements:
    def __init__(self, unit: Unit) -> None:
        self._unit = unit

    def add(self, row: Agreement | Grant) -> None:
        self._unit.session.add(row)

    def get(self, agreement_id: str, *, role: str) -> Agreement | None:
        return self._unit.session.get(Agreement, (agreement_id, role))

    def of(self, agreement_id: str, *, role: str) -> Agreement:
        if (found := self.get(agreement_id, role=role)) is None:
            raise NotFound(f"no agreement {agreement_id!r} with this participant as {role}")
        return found

    def dataset_of(self, agreement_id: str) -> str:
        """The id of the dataset that an agreement is on; empty where there is no such agreement."""
        return (
            self._unit.session.scalar(select(Agreement.dataset_id).where(Agreement.id == agreement_id).limit(1)) or ""
        )

    def page(
        self, *, role: str = "", dataset_id: str = "", counterparty: str = "", limit: int = 100, offset: int = 0
    ) -> Sequence[Agreement]:
        query = select(Agreement).order_by(Agreement.signed_at.desc(), Agreement.id).limit(limit).offset(offset)
        if role:
            query = query.where(Agreement.role == role)
        if dataset_id:
            query = query.where(Agreement.dataset_id == dataset_id)
        if counterparty:
            theirs = case((Agreement.role == "provider", Agreement.consumer), else_=Agreement.provider)
            query = query.where(theirs == counterparty)
        return self._unit.session.scalars(query).all()

    def in_force(self, *, role: str) -> int:
        """How many agreements hold in this role of ours."""
        held = (Agreement.role == role, Agreement.finalized, Agreement.ended_at.is_(None))
        return self._unit.session.scalar(select(func.count()).select_from(Agreement).where(*held)) or 0

    def not_ended(self, *, role: str) -> Sequence[str]:
        """Ids of what holds in this role of ours, or is about to."""
        held = (Agreement.role == role, _FINAL_OR_COMING, Agreement.ended_at.is_(None))
        return self._unit.session.scalars(select(Agreement.id).where(*held)).all()

    def signed_as(self) -> dict[str, int]:
        """How many hold, in either role, by the participant that we were as we signed them."""
        ours = case((Agreement.role == "provider", Agreement.provider), else_=Agreement.consumer)
        held = (_FINAL_OR_COMING, Agreement.ended_at.is_(None))
        rows = self._unit.session.execute(select(ours, func.count()).where(*held).group_by(ours))
        return {str(name): int(count) for name, count in rows}

    def datasets(self, agreement_ids: Collection[str]) -> dict[str, str]:
        """What each of these agreements is about."""
        about = select(Agreement.id, Agreement.dataset_id).where(Agreement.id.in_(agreement_ids))
        return {row.id: row.dataset_id for row in self._unit.session.execute(about)}

    def on(self, dataset_id: str) -> Iterator[tuple[Agreement, int]]:
        """Every agreement that we signed as provider of a dataset, with how many reads were counted under it; none
        that came to nothing before it was final."""
        query = (
            select(Agreement, func.coalesce(Grant.queries, 0))
            .outerjoin(Grant, Grant.agreement_id == Agreement.id)
            .outerjoin(Negotiation, Negotiation.id == Agreement.negotiation_id)
            .where(Agreement.role == "provider", Agreement.dataset_id == dataset_id)
            .where(or_(Agreement.finalized.is_(True), Negotiation.state != "TERMINATED"))
            .order_by(Agreement.signed_at.desc(), Agreement.id)
        )
        page = query.execution_options(yield_per=500)
        with self._unit.session.execute(page) as found:  # closed where the first will do
            for row, reads in found:
                yield row, int(reads)

    def after(self, agreement_id: str, *, limit: int) -> Sequence[Agreement]:
        """Final agreements in order of their id, after that one; both sides of one with oneself come together."""
        query = select(Agreement).where(Agreement.finalized.is_(True), Agreement.id > agreement_id)
        ids = select(Agreement.id).where(Agreement.finalized.is_(True), Agreement.id > agreement_id).distinct()
        return self._unit.session.scalars(
            query.where(Agreement.id.in_(ids.order_by(Agreement.id).limit(limit))).order_by(Agreement.id)
        ).all()

    def taken_back(self, offer_id: str, *, consumer: str, lapsed: Collection[str], since: float = 0.0) -> bool:
        """Whether this provider has ended an agreement with that consumer under an offer after `since`, final or not,
        for another reason than one of `lapsed`."""
        ended = (Agreement.ended_at > since, Agreement.end_reason.not_in(lapsed))
        return self._unit.session.scalar(self._under(offer_id, consumer).where(*ended)) is not None

    def held_under(self, offer_id: str, *, consumer: str, ended: bool = False) -> bool:
        """Whether that consumer has an agreement under an offer that is final or may become so; `ended`: or had one."""
        query = self._under(offer_id, consumer)
        if not ended:
            query = query.where(Agreement.ended_at.is_(None))
        return self._unit.session.scalar(query.where(_FINAL_OR_COMING)) is not None

    def others(self, row: Agreement) -> Sequence[str]:
        """What else the consumer of this agreement of ours as provider holds under its offer, final or soon perhaps."""
        query = self._under(row.offer_id, row.consumer, most=_OTHERS_MAX)
        query = query.where(Agreement.id != row.id, Agreement.ended_at.is_(None), _FINAL_OR_COMING)
        return self._unit.session.scalars(query.order_by(Agreement.signed_at.desc(), Agreement.id)).all()

    @staticmethod
    def _under(offer_id: str, consumer: str, most: int = 1) -> Select[str]:
        ours = (Agreement.role == "provider", Agreement.offer_id == offer_id, Agreement.consumer == consumer)
        return select(Agreement.id).where(*ours).limit(most)

    def fresh(self, row: Agreement) -> Agreement:
        """The row as it is now: for whoever has just waited for a lock."""
        self._unit.session.flush()  # what this transaction changed stays
        self._unit.session.refresh(row)
        return row

    def held(self, row: Agreement) -> Agreement:
        """As `fresh`, and nobody changes it before this transaction ends."""
        self._unit.session.flush()
        self._unit.session.refresh(row, with_for_update=True)
        return row

    def unfollowed(self) -> Sequence[str]:
        """Ids of what we have ended as provider, and whose grant does not say so yet."""
        query = select(Agreement.id).join(Grant, Grant.agreement_id == Agreement.id)
        ended = (Agreement.role == "provider", Agreement.ended_at.is_not(None), Grant.revoked_at.is_(None))
        return self._unit.session.scalars(query.where(*ended)).all()

    def look(self, agreement_id: str, *, transfer_id: str = "") -> Looked | None:
        """What a read looks at under an agreement that we signed as provider, and of one transfer."""
        found = self._unit.rows(_LOOK, agreement=agreement_id, transfer=transfer_id)
        if not found:
            return None
        row = found[0]
        about, transfer = row[: -len(TransferState._fields)], TransferState(*row[-len(TransferState._fields) :])
        return Looked(*(*about, None if transfer.agreement_id is None else transfer))

    def ended(self, agreement_ids: Collection[str]) -> dict[str, str]:
        """Those of these agreements that hold no more, or whose grant does not, and the reason where one was given."""
        ends = dict.fromkeys(agreement_ids, "")  # where there is no grant, nothing holds
        for name, revoked_at, reason, ended_at, end_reason in self._unit.rows(_ENDS, agreements=list(agreement_ids)):
            if revoked_at is None and ended_at is None:
                del ends[name]
            else:
                ends[name] = end_reason or reason
        return ends

    def transfers(self, transfer_ids: Collection[str]) -> dict[str, TransferState]:
        """The state of those of these transfers that there are."""
        rows = self._unit.rows(_STATES, transfers=list(transfer_ids))
        return {name: TransferState(*state) for name, *state in rows}

    def holdings(self, *, limit: int) -> list[Holding]:
        """What we may read as consumer: of our newest agreements those that are in force."""
        rows = self._unit.rows(_HOLDINGS, most=limit)
        return [Holding(*about) for *about, finalized, ended_at in rows if finalized and ended_at is None]

    def readable(self, agreement_ids: Collection[str]) -> dict[str, Readable]:
        """Those of these agreements that are ours as a consumer, each with what it is read through."""
        found: dict[str, Readable] = {}
        rows = self._unit.rows(_READABLE, agreements=list(agreement_ids))
        for name, ended_at, reason, *transfer in rows:
            started, known = Started(*transfer), found.get(name, Readable(ended_at, reason, ()))
            if started.data_address and all(one.purpose != started.purpose for one in known.transfers):
                known = known._replace(transfers=(*known.transfers, started))
            found[name] = known
        return found

    def grant(self, agreement_id: str) -> Grant | None:
        return self._unit.session.get(Grant, agreement_id)

    def grant_held(self, agreement_id: str, *, to_change: bool = False) -> Grant | None:
        """The grant, which nobody revokes before this transaction ends."""
        return self._unit.session.get(Grant, agreement_id, with_for_update=True if to_change else {"read": True})

    def count_use(self, agreement_id: str, *, day: int, most: int | None, most_today: int | None) -> bool:
        """Count one more query, if agreement and grant hold and there is room. Whether it did.

        Where another process's clock has begun the next day, that day goes on: begun anew by each in turn, a day would
        have no end of queries as long as their clocks differ.
        """
        room = {"most": _or_unlimited(most), "most_today": _or_unlimited(most_today)}
        return self._unit.change(_COUNT_USE, agreement=agreement_id, today=day, **room) > 0

    def give_back_use(self, agreement_id: str, *, day: int) -> None:
        """Return a use that was counted on that day, and of which nothing was had."""
        self._unit.change(_UNCOUNT_USE, agreement=agreement_id, today=day)

    def reserve(
        self, agreement_id: str, *, rows: int, nbytes: int, most_rows: int | None, most_bytes: int | None
    ) -> bool:
        """Take rows and bytes from what is left, whole or not at all. Whether it was there."""
        room = {"most_rows": _or_unlimited(most_rows), "most_bytes": _or_unlimited(most_bytes)}
        more = {"agreement": agreement_id, "more_rows": rows, "more_bytes": nbytes}
        return self._unit.change(_RESERVE, **more, **room) > 0

    def give_back(self, agreement_id: str, *, rows: int, nbytes: int) -> None:
        """Return what was reserved and not used."""
        self._unit.change(_ADD, agreement=agreement_id, more_rows=-rows, more_bytes=-nbytes)


def _or_unlimited(most: int | None) -> int:
    return _UNLIMITED if most is None else most
