"""What we hold as a consumer: our agreements, the tickets of their transfers, and the tables a query may name.

What an agreement shows is asked of its provider and kept for a minute; tickets are renewed before they end. Which
transfer is started under an agreement is looked up with the tables of a question, for all of its fragments.
"""

from __future__ import annotations

import asyncio
import json
import math
import re
import time
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from connector.errors import (
    Busy,
    HanseError,
    Limited,
    NotFound,
    PeerNonsense,
    PeerRefused,
    QueryInvalid,
    Refused,
    internal_error,
)
from connector.events import AgreementConcluded, AgreementRevoked, Event, TransferAdvanced
from connector.federation.contract_summary import Contract, Grid, Summary, summary_of
from connector.federation.planner.model import (
    ALL,
    Bearer,
    GridInfo,
    KnownTables,
    TableColumn,
    TableInfo,
    UnreachableOwner,
    shared_name,
)
from connector.identity.identity_service import Identity
from connector.infra.net.http_client import HttpClient, Reply, fits_header, origin
from connector.peer_codes import UNKNOWN, read_code
from connector.setting_types import NAME
from connector.store import Store, Transaction
from connector.store.queries.agreements import ConsumerAgreement, ReadableAgreement, StartedTransfer
from connector.telemetry import logger
from policies.contracts.columns import fold
from policies.contracts.contract import Dimension
from policies.enforce.withheld import WithheldShare
from policies.evaluation.values import is_below
from policies.vocabulary import expand

_log = logger("query")
_KEPT_SECONDS = 60.0
_KEPT_MAX = 1024
_LOOKED_SECONDS = 1.0  # what another process has changed is known this late; the owner knows it anyway
_RENEW_BEFORE = 60.0
_AT_ONCE = 8
_QUERY = "https://w3id.org/hanse/policy/1/query"
_USE = "http://www.w3.org/ns/odrl/2/use"
_AGREEMENTS_MAX = 1000
_OURS = "urn:hanse:"  # how the ids of our own connectors begin: urn:hanse:<owner>:<dataset>
_NAME = re.compile(NAME)
_NOT_KEPT = frozenset({"contract_undecided", "agreement_unreadable"})  # its owner cannot keep one that stands

Names = Callable[[], Awaitable[Mapping[str, str]]]  # participants' identifiers by their names


@dataclass(frozen=True, slots=True)
class Access:
    """Where a transfer reads from, its ticket, and when the ticket ends (UTC seconds)."""

    endpoint: str
    ticket: str
    expires: float


class Holdings:
    """Our side of agreements as a consumer. `names`: whose each name is, by the data space's register
    (`MemberRegister.names`)."""

    def __init__(self, store: Store, net: HttpClient, identity: Identity, *, names: Names | None = None) -> None:
        self._store = store
        self._net = net
        self._identity = identity
        self._names = names
        self._renewed: dict[str, Access] = {}
        self._shown: dict[str, tuple[float, Mapping[str, Any]]] = {}
        self._locks: dict[str, asyncio.Lock] = {}
        self._looked: dict[str, tuple[float, ReadableAgreement]] = {}
        self._changes = 0  # heard of so far
        self._looked_for: set[str] = set()  # agreements, until we look
        self._look: asyncio.Future[dict[str, ReadableAgreement]]
        store.bus.subscribe(self._heard)

    async def ticket(self, agreement_id: str, purpose: str = "") -> Bearer:
        """What a started transfer under one of our agreements is read with, for a purpose; NotFound says what is
        missing."""
        transfer = _fitting(await self._transfers(agreement_id), expand(purpose))
        access = await self.access(transfer)
        return Bearer(access.endpoint, access.ticket, transfer.counterparty)

    async def _transfers(self, agreement_id: str) -> Sequence[StartedTransfer]:
        """Started transfers, one at least. A question's fragments ask for theirs at once: one look at the database is
        for all."""
        looked, found = self._looked.get(agreement_id, (float("-inf"), None))
        if time.monotonic() - looked > _LOOKED_SECONDS:
            if not self._looked_for:
                self._look = asyncio.ensure_future(self._look_for_all())
            self._looked_for.add(agreement_id)
            found = (await asyncio.shield(self._look)).get(agreement_id)
        return _started(agreement_id, found)

    async def _look_for_all(self) -> dict[str, ReadableAgreement]:
        wanted, self._looked_for = self._looked_for, set()
        changes = self._changes
        readable = await self._store.read(lambda tx: tx.agreements.read_transfers_by_agreement(wanted))
        self._keep(readable, changes)
        return readable

    def _keep(self, readable: Mapping[str, ReadableAgreement], changes: int) -> None:
        """What can be read, for a moment: what cannot may in the next. Nothing that changed while we looked."""
        if changes != self._changes:
            return
        if len(self._looked) + len(readable) > _KEPT_MAX:
            self._looked.clear()
        now = time.monotonic()
        for agreement_id, found in readable.items():
            if found.transfers and found.ended_at is None:
                self._looked[agreement_id] = now, found

    def _heard(self, event: Event) -> None:
        if isinstance(event, AgreementConcluded | AgreementRevoked | TransferAdvanced):
            self._changes += 1
            self._looked.clear()

    async def access(self, transfer: StartedTransfer) -> Access:
        """The data address of a started transfer of ours, its ticket renewed where it is near its end."""
        held = address_of(transfer.data_address)
        newer = self._renewed.get(transfer.id)
        if newer is not None and newer.expires > held.expires:
            held = newer
        if held.expires - time.time() > _RENEW_BEFORE or not transfer.peer_pid:
            return held
        lock = self._locks.setdefault(transfer.id, asyncio.Lock())
        async with lock:
            newer = self._renewed.get(transfer.id)
            if newer is not None and newer.expires - time.time() > _RENEW_BEFORE:
                return newer
            return await self._renew(transfer, held)

    async def tables(
        self, names: Collection[tuple[str, str]] | None, purpose: str, *, fresh: bool = False
    ) -> KnownTables:
        """The datasets that a query for `purpose` may name, by (owner, dataset), and those whose owners do not answer.

        `names` None: all that we hold. `fresh`: nothing of what was said before counts. The dataset of an agreement
        that has ended is not there; an owner that refuses another one is told with its refusal. QueryInvalid for an
        owner's name that several participants have and the register gives to none: their datasets go by their
        identifiers.
        """

        def look(
            tx: Transaction,
        ) -> tuple[list[ConsumerAgreement], list[ConsumerAgreement], Mapping[str, ReadableAgreement]]:
            agreements = tx.agreements.list_readable(limit=_AGREEMENTS_MAX)
            if names is None:
                return agreements, agreements, {}
            named = [agreement for agreement in agreements if _may_be(agreement, names)]
            return agreements, named, tx.agreements.read_transfers_by_agreement({agreement.id for agreement in named})

        changes = self._changes
        held, wanted, readable = await self._store.read(look)
        self._keep(readable, changes)
        gate = asyncio.Semaphore(_AT_ONCE)

        async def shown(agreement: ConsumerAgreement) -> TableInfo | UnreachableOwner | None:
            async with gate:
                try:
                    return table_of(await self.contract(agreement.id, fresh=fresh), agreement, purpose)
                except HanseError as error:
                    return None if _is_gone(error) else self._silent(agreement, error)
                except Exception as error:  # noqa: BLE001  what one owner says must not end questions to the others
                    _log.exception("unforeseen", agreement=agreement.id, owner=agreement.provider, exc_info=error)
                    return self._silent(agreement, internal_error())

        told = [one for one in await asyncio.gather(*map(shown, wanted)) if one is not None]
        registered = {} if self._names is None else await self._names()
        owners = _Owners.of(held, told, names or (), registered=registered)
        found: dict[tuple[str, str], TableInfo] = {}
        silent: list[UnreachableOwner] = []
        for one in told:
            owner = owners.written(one.owner, one.participant)
            if isinstance(one, UnreachableOwner):
                silent.append(replace(one, owner=owner))
            else:
                found.setdefault((owner, one.dataset), one if owner == one.owner else replace(one, owner=owner))
        return KnownTables(found, tuple(one for one in silent if (one.owner, one.dataset) not in found))

    def _silent(self, agreement: ConsumerAgreement, error: HanseError) -> UnreachableOwner:
        """An agreement whose owner does not answer, by its dataset's id, or by what it said before."""
        owner, dataset = _names_of(agreement.dataset_id)
        if not owner:
            _, before = self._shown.get(agreement.id, (0.0, {}))
            owner, dataset = str(before.get("owner") or ""), str(before.get("name") or "")
        return UnreachableOwner(owner, dataset, agreement.provider, agreement.id, error)

    async def contract(self, agreement_id: str, *, fresh: bool = False) -> Mapping[str, Any]:
        """What one of our agreements shows, as its owner says it (`GET /data/v1/contract`)."""
        asked, summary = self._shown.get(agreement_id, (float("-inf"), {}))
        if not fresh and time.monotonic() - asked < _KEPT_SECONDS:
            return summary
        endpoint, ticket, _ = await self.ticket(agreement_id)
        reply = await self._net.call("GET", f"{endpoint}/contract", headers={"authorization": f"Bearer {ticket}"})
        summary = _json(reply, f"{endpoint}/contract")
        if len(self._shown) >= _KEPT_MAX:
            self._shown.clear()
        self._shown[agreement_id] = (time.monotonic(), summary)
        return summary

    async def _renew(self, transfer: StartedTransfer, held: Access) -> Access:
        header = self._identity.mint(transfer.counterparty)
        reply = await self._net.call(
            "POST",
            f"{held.endpoint}/tickets",
            headers={"authorization": header, "content-type": "application/json"},
            body=json.dumps({"transfer": transfer.peer_pid}).encode(),
        )
        access = address_of(_json(reply, f"{held.endpoint}/tickets"))
        if len(self._renewed) >= _KEPT_MAX:
            self._renewed.clear()
            self._locks.clear()
        self._renewed[transfer.id] = access
        return access


def address_of(wire: Mapping[str, Any]) -> Access:
    """A data address as the protocol carries it. PeerNonsense where it is none that we can read from."""
    try:
        properties = {entry["name"]: entry["value"] for entry in wire["endpointProperties"]}
        # An address of Flight says where the owner speaks HTTP.
        endpoint = str(properties.get("http") or wire["endpoint"]).rstrip("/")
        ticket = str(properties["authorization"])
        expires = float(properties.get("expires", "inf"))
        if math.isnan(expires) or not fits_header(ticket):
            raise ValueError("no header can carry that ticket, or it never ends")
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise PeerNonsense("expected a data address with endpoint and authorization, came another form") from error
    return Access(endpoint, ticket, expires)


def table_of(summary: Mapping[str, Any], agreement: ConsumerAgreement, purpose: str) -> TableInfo:
    """A provider's summary of an agreement as the planner sees it: of the contract that serves queries for `purpose`.

    Where none does, the first one is shown: the owner will refuse, and record it, with the rule. PeerNonsense for what
    is no summary.
    """
    try:
        told = summary_of(summary)
    except ValueError as error:
        raise PeerNonsense(
            f"{agreement.provider} describes its agreement {agreement.id} in a form that is not ours ({error})"
        ) from error
    contracts = [one for one in told.contracts if {_QUERY, _USE} & set(one.actions)] or told.contracts
    wanted = expand(purpose)
    fitting = [one for one in contracts if not one.purposes or any(is_below(wanted, above) for above in one.purposes)]
    contract = (fitting or contracts)[0]
    _check_names(told, agreement)
    return TableInfo(
        owner=told.owner,
        dataset=told.name,
        columns=_columns(contract),
        agreement=agreement.id,
        participant=agreement.provider,
        dataset_id=agreement.dataset_id,
        version=told.version,
        rows=told.rows,
        # Which of them serves the question its owner decides when it is asked.
        shares_keys=bool(fitting) and all(one.shares_keys is True for one in fitting),
        takes_keys=told.takes_keys and contract.joins is None,
        joins=contract.joins,
        rationed=any(contract.limits.get(name) is not None for name in ("rows", "bytes", "share")),
        grid=None if contract.aggregate is None else _grid(contract.aggregate),
    )


def _columns(contract: Contract) -> tuple[TableColumn, ...]:
    """The columns that are shown. Those in bins are numbers, whatever else is done to their values: owners of before
    call them texts where a mask makes texts of them first."""
    axes = contract.aggregate.dimensions if contract.aggregate is not None else ()
    binned = {one.column for one in axes if one.width is not None}
    return tuple(
        TableColumn(one.name, "DOUBLE" if one.name in binned and one.type == "VARCHAR" else one.type)
        for one in contract.columns
    )


def _grid(told: Grid) -> GridInfo:
    return GridInfo(
        dimensions=tuple(one.column for one in told.dimensions),
        measures=tuple(one.column for one in told.measures),
        min_group=told.min_group,
        entity=told.entity,
        epsilon=told.epsilon,
        share=None if told.left_out is None else WithheldShare(told.left_out.rows, told.left_out.groups),
        bins=tuple(Dimension(one.column, one.width) for one in told.dimensions if one.width is not None),
    )


def _fitting(transfers: Sequence[StartedTransfer], purpose: str) -> StartedTransfer:
    """The transfer whose ticket is good for a purpose: its own, else one of none, as it is declared with the request.
    Without a purpose, the newest that has one: nothing would be declared under one of none.

    Where none fits it is the newest: its owner refuses what it is not for, and says what it is for.
    """
    wanted = [one for one in transfers if (expand(one.purpose) == purpose if purpose else one.purpose)]
    return (wanted or [one for one in transfers if not one.purpose] or transfers)[0]


def _started(agreement_id: str, found: ReadableAgreement | None) -> Sequence[StartedTransfer]:
    if found is None:
        raise NotFound(f"no agreement {agreement_id!r} with this participant as consumer")
    if found.ended_at is not None:
        raise Refused(f"the agreement has ended: {found.end_reason or 'by its owner'}", code="agreement_ended")
    if not found.transfers:
        raise NotFound(
            f"no transfer is started under the agreement {agreement_id}; start one with `hanse negotiate`",
            code="no_transfer",
        )
    return found.transfers


def _is_gone(error: HanseError) -> bool:
    """Whether nothing is left of what was agreed, so that a new agreement is what is missing."""
    return isinstance(error, NotFound) or (isinstance(error, Refused) and error.code not in _NOT_KEPT)


@dataclass(frozen=True, slots=True)
class _Owners:
    """How a question writes owners. A participant chooses its name itself, so a name may be another's too; what tells
    participants apart is their identifier (DID), and a question may always write that instead."""

    of_name: Mapping[str, set[str]] = field(default_factory=dict)  # the participants of each name
    identified: frozenset[str] = frozenset()  # those that the question writes by their identifiers

    @classmethod
    def of(
        cls,
        held: Sequence[ConsumerAgreement],
        told: Sequence[TableInfo | UnreachableOwner],
        names: Collection[tuple[str, str]],
        *,
        registered: Mapping[str, str],
    ) -> _Owners:
        """By all agreements that we hold: what a name means must not change with the datasets that stand beside it.

        `registered`: whose a name is by the register. It is nobody else's then, whoever calls itself so.
        """
        of_name: dict[str, set[str]] = {}
        said = [(one.owner, one.participant) for one in told]
        for name, participant in (*said, *((_names_of(one.dataset_id)[0], one.provider) for one in held)):
            if _is_name(name):
                of_name.setdefault(name, set()).add(registered.get(name, participant))
        identifiers = {fold(one.provider): one.provider for one in held}
        identified = frozenset(identifiers[owner] for owner, _ in names if owner in identifiers)
        for owner, dataset in names:
            found = of_name.get(owner, set())
            if len(found) > 1:
                raise shared_name(owner, found, dataset)
            if found & identified:
                (participant,) = found
                raise QueryInvalid(
                    f'the question writes one owner as "{participant}" and as "{owner}"; write one of the two',
                    code="owner_ambiguous",
                )
        return cls(of_name, identified)

    def written(self, name: str, participant: str) -> str:
        """The owner of a participant's dataset in this question."""
        others = self.of_name.get(name, set()) - {participant}
        return fold(participant) if participant in self.identified or others else name


def _is_name(name: str) -> bool:
    return name != ALL and _NAME.fullmatch(name) is not None


def _names_of(dataset_id: str) -> tuple[str, str]:
    """The owner and the dataset in an id of our own connectors; two empty texts for another."""
    if not dataset_id.startswith(_OURS):
        return "", ""
    owner, _, dataset = dataset_id.removeprefix(_OURS).partition(":")
    return owner, dataset


def _check_names(told: Summary, agreement: ConsumerAgreement) -> None:
    """PeerNonsense unless the owner and the dataset, as the provider calls them now, fit what was agreed."""
    if not _is_name(told.owner) or _names_of(agreement.dataset_id) not in (("", ""), (told.owner, told.name)):
        raise PeerNonsense(
            f'{agreement.provider} calls its dataset "{told.owner}"."{told.name}", which is not the name of '
            f"{agreement.dataset_id}, on which there is the agreement {agreement.id}; negotiate a new one"
        )


def _may_be(agreement: ConsumerAgreement, names: Collection[tuple[str, str]]) -> bool:
    """Whether an agreement's dataset may stand for one of these names; with an id of another connector for any."""
    owner, dataset = _names_of(agreement.dataset_id)
    return not owner or any(
        name == dataset and asked in (owner, ALL, fold(agreement.provider)) for asked, name in names
    )


def _json(reply: Reply, url: str) -> dict[str, Any]:
    """A 200 with a JSON object, or the provider's own refusal as ours."""
    try:
        body = reply.json()
    except (ValueError, RecursionError):
        body = None
    if not isinstance(body, dict):
        raise PeerNonsense(f"expected a JSON object from {url}, came status {reply.status}")
    if reply.status >= 500:
        raise Busy(f"{origin(url)} failed with status {reply.status}", code="peer_failed")
    if reply.status != 200:
        code, detail = read_code(str(body.get("code", "refused")), str(body.get("detail", f"status {reply.status}")))
        if reply.status == 401:  # we are not believed, as where clocks are apart: that ends no agreement
            raise PeerRefused(f"{origin(url)} does not believe who asks: {detail}", code=code)
        if reply.status == 429:
            raise Limited(detail, code=code)
        if code == UNKNOWN:
            raise PeerNonsense(detail)
        raise Refused(detail, code=code, rule=str(body.get("rule", ""))[:500])
    return body
