"""Consumer-side agreements: the tickets of their transfers and the tables that a query may name.

Contract summaries are fetched from providers and cached for a minute; tickets are renewed before they expire. Started
transfers are looked up once per question, together with its tables.
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
    Absent,
    ConnectorError,
    Denied,
    Limited,
    PeerNonsense,
    PeerRefused,
    QueryInvalid,
    Unavailable,
    internal_error,
)
from connector.events import AgreementConcluded, AgreementRevoked, Event, TransferAdvanced
from connector.federation.contract_summary import Contract, ContractGrid, Summary, parse_summary
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
_LOOKED_SECONDS = 1.0  # delay until changes by another process are seen; the owner enforces them at once
_RENEW_BEFORE = 60.0
_AT_ONCE = 8
_QUERY = "https://w3id.org/hanse/policy/1/query"
_USE = "http://www.w3.org/ns/odrl/2/use"
_AGREEMENTS_MAX = 1000
_OURS = "urn:hanse:"  # prefix of Hanse dataset ids: urn:hanse:<owner>:<dataset>
_NAME = re.compile(NAME)
# The agreement stands, but its owner cannot keep it.
_NOT_KEPT = frozenset({"contract_undecided", "agreement_unreadable"})

Names = Callable[[], Awaitable[Mapping[str, str]]]  # participant identifiers (DIDs) by name


@dataclass(frozen=True, slots=True)
class OwnerAccess:
    """Endpoint and ticket of a transfer; `expires` is in UTC seconds since the epoch."""

    endpoint: str
    ticket: str
    expires: float


class Holdings:
    """The agreements held as consumer. `names`: DIDs by name from the register (`MemberRegister.names`)."""

    def __init__(self, store: Store, net: HttpClient, identity: Identity, *, names: Names | None = None) -> None:
        self._store = store
        self._net = net
        self._identity = identity
        self._names = names
        self._renewed: dict[str, OwnerAccess] = {}
        self._shown: dict[str, tuple[float, Mapping[str, Any]]] = {}
        self._locks: dict[str, asyncio.Lock] = {}
        self._looked: dict[str, tuple[float, ReadableAgreement]] = {}
        self._changes = 0  # events received so far
        self._looked_for: set[str] = set()  # agreements for the next lookup
        self._look: asyncio.Future[dict[str, ReadableAgreement]]
        store.bus.subscribe(self._on_event)

    async def ticket(self, agreement_id: str, purpose: str = "") -> Bearer:
        """Return endpoint and ticket of a started transfer for a purpose. Raises: Absent, Denied."""
        transfer = _choose_transfer(await self._transfers(agreement_id), expand(purpose))
        access = await self.access(transfer)
        return Bearer(access.endpoint, access.ticket, transfer.counterparty)

    async def _transfers(self, agreement_id: str) -> Sequence[StartedTransfer]:
        """Return the started transfers, at least one. Concurrent calls for a question's fragments share one lookup."""
        looked, found = self._looked.get(agreement_id, (float("-inf"), None))
        if time.monotonic() - looked > _LOOKED_SECONDS:
            if not self._looked_for:
                self._look = asyncio.ensure_future(self._look_for_all())
            self._looked_for.add(agreement_id)
            found = (await asyncio.shield(self._look)).get(agreement_id)
        return _require_started(agreement_id, found)

    async def _look_for_all(self) -> dict[str, ReadableAgreement]:
        wanted, self._looked_for = self._looked_for, set()
        changes = self._changes
        readable = await self._store.read(lambda tx: tx.agreements.read_transfers_by_agreement(wanted))
        self._keep(readable, changes)
        return readable

    def _keep(self, readable: Mapping[str, ReadableAgreement], changes: int) -> None:
        """Cache readable agreements briefly, unless an event arrived during the lookup."""
        if changes != self._changes:
            return
        if len(self._looked) + len(readable) > _KEPT_MAX:
            self._looked.clear()
        now = time.monotonic()
        for agreement_id, found in readable.items():
            if found.transfers and found.ended_at is None:
                self._looked[agreement_id] = now, found

    def _on_event(self, event: Event) -> None:
        if isinstance(event, AgreementConcluded | AgreementRevoked | TransferAdvanced):
            self._changes += 1
            self._looked.clear()

    async def access(self, transfer: StartedTransfer) -> OwnerAccess:
        """Return the access of a started transfer; its ticket is renewed if it expires soon."""
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
        """Return the datasets that a query for `purpose` may name, by (owner, dataset), and the unreachable ones.

        `names` None: all datasets. `fresh`: bypass the cache. Datasets of ended agreements are left out; an owner's
        refusal makes its dataset unreachable with that error.

        Raises: QueryInvalid for an owner name that several participants use and the register assigns to none of them;
        such datasets must be written with the participant's identifier.
        """

        def look(
            tx: Transaction,
        ) -> tuple[list[ConsumerAgreement], list[ConsumerAgreement], Mapping[str, ReadableAgreement]]:
            agreements = tx.agreements.list_readable(limit=_AGREEMENTS_MAX)
            if names is None:
                return agreements, agreements, {}
            named = [agreement for agreement in agreements if _may_match(agreement, names)]
            return agreements, named, tx.agreements.read_transfers_by_agreement({agreement.id for agreement in named})

        changes = self._changes
        held, wanted, readable = await self._store.read(look)
        self._keep(readable, changes)
        gate = asyncio.Semaphore(_AT_ONCE)

        async def read_table(agreement: ConsumerAgreement) -> TableInfo | UnreachableOwner | None:
            async with gate:
                try:
                    return table_of(await self.contract(agreement.id, fresh=fresh), agreement, purpose)
                except ConnectorError as error:
                    return None if _is_gone(error) else self._unreachable_owner(agreement, error)
                except Exception as error:  # noqa: BLE001  what one owner says must not end questions to others
                    _log.exception("unforeseen", agreement=agreement.id, owner=agreement.provider, exc_info=error)
                    return self._unreachable_owner(agreement, internal_error())

        told = [one for one in await asyncio.gather(*map(read_table, wanted)) if one is not None]
        registered = {} if self._names is None else await self._names()
        owners = _Owners.of(held, told, names or (), registered=registered)
        found: dict[tuple[str, str], TableInfo] = {}
        silent: list[UnreachableOwner] = []
        for one in told:
            owner = owners.choose_name(one.owner, one.participant)
            if isinstance(one, UnreachableOwner):
                silent.append(replace(one, owner=owner))
            else:
                found.setdefault((owner, one.dataset), one if owner == one.owner else replace(one, owner=owner))
        return KnownTables(found, tuple(one for one in silent if (one.owner, one.dataset) not in found))

    def _unreachable_owner(self, agreement: ConsumerAgreement, error: ConnectorError) -> UnreachableOwner:
        """Describe an agreement whose owner does not answer, from the dataset id or from an earlier summary."""
        owner, dataset = _parse_dataset_id(agreement.dataset_id)
        if not owner:
            _, before = self._shown.get(agreement.id, (0.0, {}))
            owner, dataset = str(before.get("owner") or ""), str(before.get("name") or "")
        return UnreachableOwner(owner, dataset, agreement.provider, agreement.id, error)

    async def contract(self, agreement_id: str, *, fresh: bool = False) -> Mapping[str, Any]:
        """Return the owner's contract summary of an agreement (`GET /data/v1/contract`), cached for a minute."""
        asked, summary = self._shown.get(agreement_id, (float("-inf"), {}))
        if not fresh and time.monotonic() - asked < _KEPT_SECONDS:
            return summary
        endpoint, ticket, _ = await self.ticket(agreement_id)
        reply = await self._net.call("GET", f"{endpoint}/contract", headers={"authorization": f"Bearer {ticket}"})
        summary = _read_json(reply, f"{endpoint}/contract")
        if len(self._shown) >= _KEPT_MAX:
            self._shown.clear()
        self._shown[agreement_id] = (time.monotonic(), summary)
        return summary

    async def _renew(self, transfer: StartedTransfer, held: OwnerAccess) -> OwnerAccess:
        header = await self._identity.mint(transfer.counterparty)
        reply = await self._net.call(
            "POST",
            f"{held.endpoint}/tickets",
            headers={"authorization": header, "content-type": "application/json"},
            body=json.dumps({"transfer": transfer.peer_pid}).encode(),
        )
        access = address_of(_read_json(reply, f"{held.endpoint}/tickets"))
        if len(self._renewed) >= _KEPT_MAX:
            self._renewed.clear()
            self._locks.clear()
        self._renewed[transfer.id] = access
        return access


def address_of(wire: Mapping[str, Any]) -> OwnerAccess:
    """Parse a DSP data address. Raises: PeerNonsense if it has no usable endpoint and ticket."""
    try:
        properties = {entry["name"]: entry["value"] for entry in wire["endpointProperties"]}
        # A Flight address names the HTTP endpoint in a property.
        endpoint = str(properties.get("http") or wire["endpoint"]).rstrip("/")
        ticket = str(properties["authorization"])
        expires = float(properties.get("expires", "inf"))
        if math.isnan(expires) or not fits_header(ticket):
            raise ValueError("expected a ticket that fits a header and a number as its expiry")
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise PeerNonsense("expected a data address with endpoint and authorization, got another form") from error
    return OwnerAccess(endpoint, ticket, expires)


def table_of(summary: Mapping[str, Any], agreement: ConsumerAgreement, purpose: str) -> TableInfo:
    """Convert a contract summary to the planner's table, for the contract that serves queries for `purpose`.

    If none does, the first contract is used: the owner will refuse the query and record the rule.

    Raises: PeerNonsense for an invalid summary.
    """
    try:
        told = parse_summary(summary)
    except ValueError as error:
        raise PeerNonsense(
            f"expected a contract summary from {agreement.provider} for {agreement.id}, got another form ({error})"
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
        # The owner chooses the contract when it is asked, so all must permit it.
        shares_keys=bool(fitting) and all(one.shares_keys is True for one in fitting),
        takes_keys=told.takes_keys and contract.joins is None,
        joins=contract.joins,
        rationed=any(contract.limits.get(name) is not None for name in ("rows", "bytes", "share")),
        grid=None if contract.aggregate is None else _grid(contract.aggregate),
    )


def _columns(contract: Contract) -> tuple[TableColumn, ...]:
    """Return the shown columns. Binned columns are numbers even after a mask; older owners declare those as text."""
    axes = contract.aggregate.dimensions if contract.aggregate is not None else ()
    binned = {one.column for one in axes if one.width is not None}
    return tuple(
        TableColumn(one.name, "DOUBLE" if one.name in binned and one.type == "VARCHAR" else one.type)
        for one in contract.columns
    )


def _grid(told: ContractGrid) -> GridInfo:
    return GridInfo(
        dimensions=tuple(one.column for one in told.dimensions),
        measures=tuple(one.column for one in told.measures),
        min_group=told.min_group,
        entity=told.entity,
        epsilon=told.epsilon,
        share=None if told.left_out is None else WithheldShare(told.left_out.rows, told.left_out.groups),
        bins=tuple(Dimension(one.column, one.width) for one in told.dimensions if one.width is not None),
    )


def _choose_transfer(transfers: Sequence[StartedTransfer], purpose: str) -> StartedTransfer:
    """Choose the transfer for a purpose: first one with this purpose, then one without any (the request declares it).

    Without a purpose: the newest transfer that has one, because the request would declare none. If nothing fits, the
    newest: its owner refuses the request and names the permitted purpose.
    """
    wanted = [one for one in transfers if (expand(one.purpose) == purpose if purpose else one.purpose)]
    return (wanted or [one for one in transfers if not one.purpose] or transfers)[0]


def _require_started(agreement_id: str, found: ReadableAgreement | None) -> Sequence[StartedTransfer]:
    if found is None:
        raise Absent(f"no agreement {agreement_id!r} with this participant as consumer")
    if found.ended_at is not None:
        raise Denied(f"the agreement has ended: {found.end_reason or 'by its owner'}", code="agreement_ended")
    if not found.transfers:
        raise Absent(
            f"no transfer is started under the agreement {agreement_id}; start one with `hanse negotiate`",
            code="no_transfer",
        )
    return found.transfers


def _is_gone(error: ConnectorError) -> bool:
    """Whether the agreement is over, so that only a new one would help."""
    return isinstance(error, Absent) or (isinstance(error, Denied) and error.code not in _NOT_KEPT)


@dataclass(frozen=True, slots=True)
class _Owners:
    """How a question names owners. Participants choose their names, so names may collide; identifiers (DIDs) are unique
    and always accepted instead."""

    of_name: Mapping[str, set[str]] = field(default_factory=dict)  # participants by name
    identified: frozenset[str] = frozenset()  # participants that the question names by identifier

    @classmethod
    def of(
        cls,
        held: Sequence[ConsumerAgreement],
        told: Sequence[TableInfo | UnreachableOwner],
        names: Collection[tuple[str, str]],
        *,
        registered: Mapping[str, str],
    ) -> _Owners:
        """Resolve names over all held agreements, so that a name's meaning does not depend on the question's datasets.

        `registered`: the participant that the register assigns each name to; a registered name belongs only to it.

        Raises: QueryInvalid for an ambiguous name.
        """
        of_name: dict[str, set[str]] = {}
        said = [(one.owner, one.participant) for one in told]
        for name, participant in (*said, *((_parse_dataset_id(one.dataset_id)[0], one.provider) for one in held)):
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

    def choose_name(self, name: str, participant: str) -> str:
        """Return how this question names a participant: its DID if used or if the name collides, else its name."""
        others = self.of_name.get(name, set()) - {participant}
        return fold(participant) if participant in self.identified or others else name


def _is_name(name: str) -> bool:
    return name != ALL and _NAME.fullmatch(name) is not None


def _parse_dataset_id(dataset_id: str) -> tuple[str, str]:
    """Split a Hanse dataset id into owner and dataset; two empty strings for any other id."""
    if not dataset_id.startswith(_OURS):
        return "", ""
    owner, _, dataset = dataset_id.removeprefix(_OURS).partition(":")
    return owner, dataset


def _check_names(told: Summary, agreement: ConsumerAgreement) -> None:
    """Check the current owner and dataset names against the agreement. Raises: PeerNonsense if they differ."""
    if not _is_name(told.owner) or _parse_dataset_id(agreement.dataset_id) not in (("", ""), (told.owner, told.name)):
        raise PeerNonsense(
            f'{agreement.provider} now names its dataset "{told.owner}"."{told.name}", expected '
            f"{agreement.dataset_id} of the agreement {agreement.id}; negotiate a new one"
        )


def _may_match(agreement: ConsumerAgreement, names: Collection[tuple[str, str]]) -> bool:
    """Whether an agreement's dataset may match one of these names; a non-Hanse id may match any."""
    owner, dataset = _parse_dataset_id(agreement.dataset_id)
    return not owner or any(
        name == dataset and asked in (owner, ALL, fold(agreement.provider)) for asked, name in names
    )


def _read_json(reply: Reply, url: str) -> dict[str, Any]:
    """Return the JSON object of a 200 reply. Raises: the provider's refusal as an error of this process."""
    try:
        body = reply.json()
    except (ValueError, RecursionError):
        body = None
    if not isinstance(body, dict):
        raise PeerNonsense(f"expected a JSON object from {url}, got status {reply.status}")
    if reply.status >= 500:
        raise Unavailable(f"{origin(url)} failed with status {reply.status}", code="peer_failed")
    if reply.status != 200:
        code, detail = read_code(str(body.get("code", "refused")), str(body.get("detail", f"status {reply.status}")))
        if reply.status == 401:  # authentication failed, e.g. by clock skew; that ends no agreement
            raise PeerRefused(f"{origin(url)} rejected our identity: {detail}", code=code)
        if reply.status == 429:
            raise Limited(detail, code=code)
        if code == UNKNOWN:
            raise PeerNonsense(detail)
        raise Denied(detail, code=code, rule=str(body.get("rule", ""))[:500])
    return body
