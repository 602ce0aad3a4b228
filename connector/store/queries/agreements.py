"""Queries for agreements and their usage counters.

A counter changes in one conditional update, so no limit is exceeded.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import NamedTuple

from sqlalchemy import BigInteger, Integer, Select, Text, and_, bindparam, case, cast, exists, func, or_, select, update

from connector.errors import Absent
from connector.store.compiled_statements import CompiledStatement
from connector.store.tables import (
    Agreement,
    DatasetVersion,
    GrantState,
    Json,
    Negotiation,
    RegisteredDataset,
    Transfer,
    core_table,
)
from connector.store.unit_of_work import UnitOfWork

_AGREEMENT, _GRANT, _TRANSFER = core_table(Agreement), core_table(GrantState), core_table(Transfer)
_DATASET, _VERSION = core_table(RegisteredDataset), core_table(DatasetVersion)
_OTHERS_MAX = 100
_FINAL_OR_COMING = or_(
    Agreement.finalized.is_(True),
    and_(
        Agreement.ended_at.is_(None),
        exists().where(Negotiation.id == Agreement.negotiation_id, Negotiation.state != "TERMINATED"),
    ),
)
_UNLIMITED = 2**63 - 1  # more than is ever counted


class TransferState(NamedTuple):
    """The fields of a transfer that its tickets depend on, and its reason."""

    agreement_id: str
    state: str
    pending: str
    suspended_by: str
    generation: int
    reason: str


class AgreementSnapshot(NamedTuple):
    """What each read under an agreement checks at the provider. A missing row leaves its fields None."""

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
    version: str | None  # current version of the dataset
    source: str | None  # its source as stored text: to compare, not to parse
    transfer: TransferState | None


class ConsumerAgreement(NamedTuple):
    """An agreement of this participant as consumer, with its provider and dataset."""

    id: str
    provider: str
    dataset_id: str


class StartedTransfer(NamedTuple):
    """A started transfer of this participant as consumer, with the address to read from."""

    id: str
    peer_pid: str
    counterparty: str
    data_address: Json
    purpose: str = ""  # purpose of its tickets; empty if each request declares one


class ReadableAgreement(NamedTuple):
    """An agreement of this participant as consumer, with its started transfers.

    `transfers`: for each purpose the newest with an address; newest first.
    """

    ended_at: float | None
    end_reason: str
    transfers: tuple[StartedTransfer, ...]


_SNAPSHOT = CompiledStatement(
    select(  # in the order of `AgreementSnapshot`
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
_AGREEMENT_OF_GRANT = and_(_AGREEMENT.c.id == _GRANT.c.agreement_id, _AGREEMENT.c.role == "provider")
_ENDS = CompiledStatement(
    select(_GRANT.c.agreement_id, _GRANT.c.revoked_at, _GRANT.c.reason, _AGREEMENT.c.ended_at, _AGREEMENT.c.end_reason)
    .select_from(_GRANT.outerjoin(_AGREEMENT, _AGREEMENT_OF_GRANT))
    .where(_GRANT.c.agreement_id.in_(bindparam("agreements", expanding=True)))
)
_STATES = CompiledStatement(
    select(_TRANSFER.c.id, *(_TRANSFER.c[name] for name in TransferState._fields)).where(
        _TRANSFER.c.id.in_(bindparam("transfers", expanding=True))
    )
)
_HOLDINGS = CompiledStatement(
    select(*(_AGREEMENT.c[name] for name in (*ConsumerAgreement._fields, "finalized", "ended_at")))
    .where(_AGREEMENT.c.role == "consumer")
    .order_by(_AGREEMENT.c.signed_at.desc(), _AGREEMENT.c.id)
    .limit(bindparam("most", type_=Integer))
)
_STARTED_AS_CONSUMER = and_(
    _TRANSFER.c.agreement_id == _AGREEMENT.c.id, _TRANSFER.c.role == "consumer", _TRANSFER.c.state == "STARTED"
)
_READABLE = CompiledStatement(
    select(
        *(_AGREEMENT.c[name] for name in ("id", "ended_at", "end_reason")),
        *(_TRANSFER.c[name] for name in StartedTransfer._fields),
    )
    .select_from(_AGREEMENT.outerjoin(_TRANSFER, _STARTED_AS_CONSUMER))
    .where(_AGREEMENT.c.role == "consumer", _AGREEMENT.c.id.in_(bindparam("agreements", expanding=True)))
    .order_by(_TRANSFER.c.created_at.desc(), _TRANSFER.c.id)
)

_THIS_GRANT = _GRANT.c.agreement_id == bindparam("agreement")
_NOT_REVOKED = and_(_THIS_GRANT, _GRANT.c.revoked_at.is_(None))
# An agreement ends in one transaction and its grant in a later one: no read may begin in between.
_IN_FORCE = and_(_NOT_REVOKED, ~exists().where(_AGREEMENT_OF_GRANT, _AGREEMENT.c.ended_at.is_not(None)))
_SAME_DAY = _GRANT.c.day.between(bindparam("today"), bindparam("today") + 1)
_TODAY = case((_SAME_DAY, _GRANT.c.queries_today), else_=0)
_COUNT_USE = CompiledStatement(
    update(_GRANT)
    .where(_IN_FORCE, _GRANT.c.queries < bindparam("most"), bindparam("most_today", type_=BigInteger) > _TODAY)
    .values(
        queries=_GRANT.c.queries + 1,
        queries_today=_TODAY + 1,
        day=case((_SAME_DAY, _GRANT.c.day), else_=bindparam("today")),
    )
)
_UNCOUNT_USE = CompiledStatement(
    update(_GRANT)
    .where(_THIS_GRANT, _GRANT.c.queries > 0)
    .values(
        queries=_GRANT.c.queries - 1,
        queries_today=case(
            (and_(_GRANT.c.day == bindparam("today"), _GRANT.c.queries_today > 0), _GRANT.c.queries_today - 1),
            else_=_GRANT.c.queries_today,
        ),
    )
)
_MORE = {name: _GRANT.c[name] + bindparam(f"more_{name}") for name in ("rows", "bytes")}
_ADD = CompiledStatement(update(_GRANT).where(_THIS_GRANT).values(_MORE))
_RESERVE = CompiledStatement(
    update(_GRANT)
    .where(_NOT_REVOKED, *(more <= bindparam(f"most_{name}") for name, more in _MORE.items()))
    .values(_MORE)
)


def count_today(row: GrantState | AgreementSnapshot, *, day: int) -> int:
    """Queries counted for a day (days since the epoch, UTC). The stored day may be one ahead of a slow clock."""
    return row.queries_today if row.day in (day, day + 1) else 0


class AgreementQueries:
    """Queries for agreements and grants. `role` is this participant's role: consumer or provider."""

    def __init__(self, unit: UnitOfWork) -> None:
        self._unit = unit

    def add(self, row: Agreement | GrantState) -> None:
        self._unit.session.add(row)

    def get(self, agreement_id: str, *, role: str) -> Agreement | None:
        return self._unit.session.get(Agreement, (agreement_id, role))

    def of(self, agreement_id: str, *, role: str) -> Agreement:
        """By id and role. Raises Absent if it does not exist."""
        if (row := self.get(agreement_id, role=role)) is None:
            raise Absent(f"no agreement {agreement_id!r} with this participant as {role}")
        return row

    def read_dataset_id(self, agreement_id: str) -> str:
        """The id of an agreement's dataset; empty if the agreement does not exist."""
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

    def count_in_force(self, *, role: str) -> int:
        """The number of agreements in force in a role."""
        held = (Agreement.role == role, Agreement.finalized, Agreement.ended_at.is_(None))
        return self._unit.session.scalar(select(func.count()).select_from(Agreement).where(*held)) or 0

    def list_not_ended(self, *, role: str) -> Sequence[str]:
        """Ids of agreements in a role that are in force or may still become final."""
        held = (Agreement.role == role, _FINAL_OR_COMING, Agreement.ended_at.is_(None))
        return self._unit.session.scalars(select(Agreement.id).where(*held)).all()

    def count_by_signer(self) -> dict[str, int]:
        """The number of agreements that have not ended, by the DID with which this participant signed."""
        ours = case((Agreement.role == "provider", Agreement.provider), else_=Agreement.consumer)
        held = (_FINAL_OR_COMING, Agreement.ended_at.is_(None))
        rows = self._unit.session.execute(select(ours, func.count()).where(*held).group_by(ours))
        return {str(name): int(count) for name, count in rows}

    def read_dataset_ids(self, agreement_ids: Collection[str]) -> dict[str, str]:
        """The dataset id of each of these agreements."""
        query = select(Agreement.id, Agreement.dataset_id).where(Agreement.id.in_(agreement_ids))
        return {row.id: row.dataset_id for row in self._unit.session.execute(query)}

    def iterate_by_dataset(self, dataset_id: str) -> Iterator[tuple[Agreement, int]]:
        """Agreements on a dataset as provider, with the number of counted reads; newest first.

        Agreements whose negotiation was terminated before they were final are left out.
        """
        query = (
            select(Agreement, func.coalesce(GrantState.queries, 0))
            .outerjoin(GrantState, GrantState.agreement_id == Agreement.id)
            .outerjoin(Negotiation, Negotiation.id == Agreement.negotiation_id)
            .where(Agreement.role == "provider", Agreement.dataset_id == dataset_id)
            .where(or_(Agreement.finalized.is_(True), Negotiation.state != "TERMINATED"))
            .order_by(Agreement.signed_at.desc(), Agreement.id)
        )
        page = query.execution_options(yield_per=500)
        with self._unit.session.execute(page) as results:  # closed when the caller stops early
            for row, reads in results:
                yield row, int(reads)

    def list_after(self, agreement_id: str, *, limit: int) -> Sequence[Agreement]:
        """Final agreements in order of id, after `agreement_id`.

        Both rows of an agreement with oneself come together.
        """
        query = select(Agreement).where(Agreement.finalized.is_(True), Agreement.id > agreement_id)
        ids = select(Agreement.id).where(Agreement.finalized.is_(True), Agreement.id > agreement_id).distinct()
        return self._unit.session.scalars(
            query.where(Agreement.id.in_(ids.order_by(Agreement.id).limit(limit))).order_by(Agreement.id)
        ).all()

    def has_ended_under_offer(
        self, offer_id: str, *, consumer: str, lapsed: Collection[str], since: float = 0.0
    ) -> bool:
        """Whether this provider ended an agreement with a consumer under an offer after `since` (UTC seconds).

        Agreements that ended for a reason in `lapsed` do not count.
        """
        ended = (Agreement.ended_at > since, Agreement.end_reason.not_in(lapsed))
        return self._unit.session.scalar(self._select_under_offer(offer_id, consumer).where(*ended)) is not None

    def has_under_offer(self, offer_id: str, *, consumer: str, ended: bool = False) -> bool:
        """Whether a consumer has an agreement under an offer that is final or may become final.

        `ended`: agreements that ended count too.
        """
        query = self._select_under_offer(offer_id, consumer)
        if not ended:
            query = query.where(Agreement.ended_at.is_(None))
        return self._unit.session.scalar(query.where(_FINAL_OR_COMING)) is not None

    def list_others_under_offer(self, row: Agreement) -> Sequence[str]:
        """Ids of other agreements of the same consumer under the same offer that have not ended; newest first."""
        query = self._select_under_offer(row.offer_id, row.consumer, most=_OTHERS_MAX)
        query = query.where(Agreement.id != row.id, Agreement.ended_at.is_(None), _FINAL_OR_COMING)
        return self._unit.session.scalars(query.order_by(Agreement.signed_at.desc(), Agreement.id)).all()

    @staticmethod
    def _select_under_offer(offer_id: str, consumer: str, most: int = 1) -> Select[str]:
        ours = (Agreement.role == "provider", Agreement.offer_id == offer_id, Agreement.consumer == consumer)
        return select(Agreement.id).where(*ours).limit(most)

    def refresh(self, row: Agreement) -> Agreement:
        """Read the row again, after the transaction waited for a lock."""
        self._unit.session.flush()  # keeps changes of this transaction
        self._unit.session.refresh(row)
        return row

    def lock(self, row: Agreement) -> Agreement:
        """Read the row again and lock it until the transaction ends."""
        self._unit.session.flush()
        self._unit.session.refresh(row, with_for_update=True)
        return row

    def list_unrevoked(self) -> Sequence[str]:
        """Ids of agreements that this provider ended and whose grant is not revoked yet."""
        query = select(Agreement.id).join(GrantState, GrantState.agreement_id == Agreement.id)
        ended = (Agreement.role == "provider", Agreement.ended_at.is_not(None), GrantState.revoked_at.is_(None))
        return self._unit.session.scalars(query.where(*ended)).all()

    def read_snapshot(self, agreement_id: str, *, transfer_id: str = "") -> AgreementSnapshot | None:
        """The state of an agreement as provider and of one transfer; None if the agreement does not exist."""
        rows = self._unit.fetch(_SNAPSHOT, agreement=agreement_id, transfer=transfer_id)
        if not rows:
            return None
        row = rows[0]
        fields, transfer = row[: -len(TransferState._fields)], TransferState(*row[-len(TransferState._fields) :])
        return AgreementSnapshot(*(*fields, None if transfer.agreement_id is None else transfer))

    def read_end_reasons(self, agreement_ids: Collection[str]) -> dict[str, str]:
        """The reason of each of these agreements that ended or whose grant was revoked; others are left out."""
        ends = dict.fromkeys(agreement_ids, "")  # an agreement without a grant is not in force
        for name, revoked_at, reason, ended_at, end_reason in self._unit.fetch(_ENDS, agreements=list(agreement_ids)):
            if revoked_at is None and ended_at is None:
                del ends[name]
            else:
                ends[name] = end_reason or reason
        return ends

    def read_transfer_states(self, transfer_ids: Collection[str]) -> dict[str, TransferState]:
        """The state of each of these transfers that exists."""
        rows = self._unit.fetch(_STATES, transfers=list(transfer_ids))
        return {name: TransferState(*state) for name, *state in rows}

    def list_readable(self, *, limit: int) -> list[ConsumerAgreement]:
        """Agreements in force as consumer, among the newest `limit` agreements."""
        rows = self._unit.fetch(_HOLDINGS, most=limit)
        return [ConsumerAgreement(*fields) for *fields, finalized, ended_at in rows if finalized and ended_at is None]

    def read_transfers_by_agreement(self, agreement_ids: Collection[str]) -> dict[str, ReadableAgreement]:
        """The started transfers of each of these agreements that this participant holds as consumer."""
        agreements: dict[str, ReadableAgreement] = {}
        rows = self._unit.fetch(_READABLE, agreements=list(agreement_ids))
        for name, ended_at, reason, *transfer in rows:
            started, known = StartedTransfer(*transfer), agreements.get(name, ReadableAgreement(ended_at, reason, ()))
            if started.data_address and all(other.purpose != started.purpose for other in known.transfers):
                known = known._replace(transfers=(*known.transfers, started))
            agreements[name] = known
        return agreements

    def get_grant(self, agreement_id: str) -> GrantState | None:
        return self._unit.session.get(GrantState, agreement_id)

    def lock_grant(self, agreement_id: str, *, to_change: bool = False) -> GrantState | None:
        """The grant, locked until the transaction ends. `to_change`: for update, else only against changes."""
        return self._unit.session.get(GrantState, agreement_id, with_for_update=True if to_change else {"read": True})

    def count_use(self, agreement_id: str, *, day: int, most: int | None, most_today: int | None) -> bool:
        """Count one query if agreement and grant are in force and the limits allow it. Returns whether it was counted.

        If another process's clock has already begun the next day, the query counts for that day. Otherwise processes
        with different clocks would reset the day's counter in turn.
        """
        room = {"most": _or_unlimited(most), "most_today": _or_unlimited(most_today)}
        return self._unit.execute(_COUNT_USE, agreement=agreement_id, today=day, **room) > 0

    def uncount_use(self, agreement_id: str, *, day: int) -> None:
        """Take back a query that was counted on that day and returned nothing."""
        self._unit.execute(_UNCOUNT_USE, agreement=agreement_id, today=day)

    def reserve(
        self, agreement_id: str, *, rows: int, nbytes: int, most_rows: int | None, most_bytes: int | None
    ) -> bool:
        """Reserve rows and bytes of the quota, all or nothing. Returns whether the quota allowed it."""
        room = {"most_rows": _or_unlimited(most_rows), "most_bytes": _or_unlimited(most_bytes)}
        more = {"agreement": agreement_id, "more_rows": rows, "more_bytes": nbytes}
        return self._unit.execute(_RESERVE, **more, **room) > 0

    def release(self, agreement_id: str, *, rows: int, nbytes: int) -> None:
        """Return reserved rows and bytes that were not used."""
        self._unit.execute(_ADD, agreement=agreement_id, more_rows=-rows, more_bytes=-nbytes)


def _or_unlimited(most: int | None) -> int:
    return _UNLIMITED if most is None else most
