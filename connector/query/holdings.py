"""What we hold as a consumer: our agreements, the tickets of their transfers, and the tables a query may name.

What an agreement shows is asked of its provider and kept for a minute; tickets are renewed before they end. Which
transfer is started under an agreement is looked up with the tables of a question, for all of its fragments.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from connector.errors import Busy, HanseError, NotFound, PeerNonsense, Refused
from connector.events import AgreementConcluded, AgreementRevoked, Event, TransferAdvanced
from connector.identity.service import Identity
from connector.net import Net, Reply, origin
from connector.query.federation import Column, GridInfo, Known, Silent, TableInfo
from connector.store import Store, Transaction
from connector.store.agreements import Holding, Readable, Started
from policies.values import is_below
from policies.vocabulary import expand

_KEPT_SECONDS = 60.0
_KEPT_MAX = 1024
_LOOKED_SECONDS = 1.0  # what another process has changed is known this late; the owner knows it anyway
_RENEW_BEFORE = 60.0
_AT_ONCE = 8
_QUERY = "https://w3id.org/hanse/policy/1/query"
_USE = "http://www.w3.org/ns/odrl/2/use"
_AGREEMENTS_MAX = 1000
_OURS = "urn:hanse:"  # how the ids of our own connectors begin: urn:hanse:<owner>:<dataset>


@dataclass(frozen=True, slots=True)
class Access:
    """Where a transfer reads from, its ticket, and when the ticket ends (UTC seconds)."""

    endpoint: str
    ticket: str
    expires: float


class Holdings:
    """Our side of agreements as a consumer."""

    def __init__(self, store: Store, net: Net, identity: Identity) -> None:
        self._store = store
        self._net = net
        self._identity = identity
        self._renewed: dict[str, Access] = {}
        self._shown: dict[str, tuple[float, Mapping[str, Any]]] = {}
        self._locks: dict[str, asyncio.Lock] = {}
        self._looked: dict[str, tuple[float, Readable]] = {}
        self._changes = 0  # heard of so far
        self._looked_for: set[str] = set()  # agreements, until we look
        self._look: asyncio.Future[dict[str, Readable]]
        store.bus.subscribe(self._heard)

    async def ticket(self, agreement_id: str) -> tuple[str, str]:
        """(endpoint, ticket) of a started transfer under one of our agreements; NotFound says what is missing."""
        access = await self.access(await self._transfer(agreement_id))
        return access.endpoint, access.ticket

    async def _transfer(self, agreement_id: str) -> Started:
        """A started transfer. A question's fragments ask for theirs at once: one look at the database is for all."""
        looked, found = self._looked.get(agreement_id, (float("-inf"), None))
        if time.monotonic() - looked > _LOOKED_SECONDS:
            if not self._looked_for:
                self._look = asyncio.ensure_future(self._look_for_all())
            self._looked_for.add(agreement_id)
            found = (await asyncio.shield(self._look)).get(agreement_id)
        return _started(agreement_id, found)

    async def _look_for_all(self) -> dict[str, Readable]:
        wanted, self._looked_for = self._looked_for, set()
        changes = self._changes
        readable = await self._store.read(lambda tx: tx.agreements.readable(wanted))
        self._keep(readable, changes)
        return readable

    def _keep(self, readable: Mapping[str, Readable], changes: int) -> None:
        """What can be read, for a moment: what cannot may in the next. Nothing that changed while we looked."""
        if changes != self._changes:
            return
        if len(self._looked) + len(readable) > _KEPT_MAX:
            self._looked.clear()
        now = time.monotonic()
        for agreement_id, found in readable.items():
            if found.transfer is not None and found.ended_at is None:
                self._looked[agreement_id] = now, found

    def _heard(self, event: Event) -> None:
        if isinstance(event, AgreementConcluded | AgreementRevoked | TransferAdvanced):
            self._changes += 1
            self._looked.clear()

    async def access(self, transfer: Started) -> Access:
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

    async def tables(self, names: Collection[tuple[str, str]] | None, purpose: str, *, fresh: bool = False) -> Known:
        """The datasets that a query for `purpose` may name, by (owner, dataset), and those whose owners do not answer.

        `names` None: all that we hold. `fresh`: nothing of what was said before counts. An owner that says no has
        ended the agreement, or does not serve it now: its dataset is not there.
        """

        def look(tx: Transaction) -> tuple[list[Holding], Mapping[str, Readable]]:
            agreements = tx.agreements.holdings(limit=_AGREEMENTS_MAX)
            if names is None:
                return agreements, {}
            named = [agreement for agreement in agreements if _may_be(agreement.dataset_id, names)]
            return named, tx.agreements.readable({agreement.id for agreement in named})

        changes = self._changes
        wanted, readable = await self._store.read(look)
        self._keep(readable, changes)
        gate = asyncio.Semaphore(_AT_ONCE)

        async def shown(agreement: Holding) -> Mapping[str, Any] | HanseError:
            async with gate:
                try:
                    return await self.contract(agreement.id, fresh=fresh)
                except HanseError as error:
                    return error

        found: dict[tuple[str, str], TableInfo] = {}
        silent: list[Silent] = []
        for agreement, said in zip(wanted, await asyncio.gather(*map(shown, wanted)), strict=True):
            if not isinstance(said, HanseError):
                table = table_of(said, agreement, purpose)
                found.setdefault((table.owner, table.dataset), table)
            elif not isinstance(said, Refused | NotFound):
                silent.append(self._silent(agreement, said))
        return Known(found, tuple(one for one in silent if (one.owner, one.dataset) not in found))

    def _silent(self, agreement: Holding, error: HanseError) -> Silent:
        """An agreement whose owner does not answer, by what it said before, or by its dataset's id."""
        _, before = self._shown.get(agreement.id, (0.0, {}))
        owner, _, dataset = agreement.dataset_id.removeprefix(_OURS).partition(":")
        ours = agreement.dataset_id.startswith(_OURS)
        return Silent(
            str(before.get("owner") or (owner if ours else "")),
            str(before.get("name") or (dataset if ours else "")),
            agreement.provider,
            agreement.id,
            error,
        )

    async def contract(self, agreement_id: str, *, fresh: bool = False) -> Mapping[str, Any]:
        """What one of our agreements shows, as its owner says it (`GET /data/v1/contract`)."""
        asked, summary = self._shown.get(agreement_id, (float("-inf"), {}))
        if not fresh and time.monotonic() - asked < _KEPT_SECONDS:
            return summary
        endpoint, ticket = await self.ticket(agreement_id)
        reply = await self._net.call("GET", f"{endpoint}/contract", headers={"authorization": f"Bearer {ticket}"})
        summary = _json(reply, f"{endpoint}/contract")
        if len(self._shown) >= _KEPT_MAX:
            self._shown.clear()
        self._shown[agreement_id] = (time.monotonic(), summary)
        return summary

    async def _renew(self, transfer: Started, held: Access) -> Access:
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
    except (KeyError, TypeError, ValueError) as error:
        raise PeerNonsense("expected a data address with endpoint and authorization, came another form") from error
    return Access(endpoint, ticket, expires)


def table_of(summary: Mapping[str, Any], agreement: Holding, purpose: str) -> TableInfo:
    """A provider's summary of an agreement as the planner sees it: of the contract that serves queries for `purpose`.

    Where none does, the first one is shown: the owner will refuse, and record it, with the rule.
    """
    try:
        contracts = [c for c in summary["contracts"] if {_QUERY, _USE} & set(c["actions"])] or summary["contracts"]
        wanted = expand(purpose)
        fitting = [c for c in contracts if not c["purposes"] or any(is_below(wanted, one) for one in c["purposes"])]
        contract = (fitting or contracts)[0]
        aggregate = contract["aggregate"]
        return TableInfo(
            owner=str(summary["owner"]),
            dataset=str(summary["name"]),
            columns=tuple(Column(str(c["name"]), str(c["type"])) for c in contract["columns"]),
            agreement=agreement.id,
            participant=agreement.provider,
            dataset_id=agreement.dataset_id,
            version=str(summary.get("version", "")),
            rows=None if summary["rows"] is None else int(summary["rows"]),
            shares_keys=bool(summary.get("shares_keys", False)),
            takes_keys=bool(summary.get("takes_keys", False)) and contract["joins"] is None,
            joins=None if contract["joins"] is None else tuple(contract["joins"]),
            rationed=any(contract.get("limits", {}).get(name) is not None for name in ("rows", "bytes", "share")),
            grid=None
            if aggregate is None
            else GridInfo(
                dimensions=tuple(d["column"] for d in aggregate["dimensions"]),
                measures=tuple(m["column"] for m in aggregate["measures"]),
                min_group=int(aggregate["min_group"]),
                entity=aggregate["entity"],
                epsilon=aggregate.get("epsilon"),
            ),
        )
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise PeerNonsense(f"{agreement.provider} describes its agreement in a form that is not ours") from error


def _started(agreement_id: str, found: Readable | None) -> Started:
    if found is None:
        raise NotFound(f"no agreement {agreement_id!r} with this participant as consumer")
    if found.ended_at is not None:
        raise Refused(f"the agreement has ended: {found.end_reason or 'by its owner'}", code="agreement_ended")
    if found.transfer is None:
        raise NotFound(
            f"no transfer is started under the agreement {agreement_id}; start one with `hanse negotiate`",
            code="no_transfer",
        )
    return found.transfer


def _may_be(dataset_id: str, names: Collection[tuple[str, str]]) -> bool:
    """Whether a dataset id may stand for one of these names; ids of other connectors may stand for any."""
    if not dataset_id.startswith(_OURS):
        return True
    owner, _, dataset = dataset_id.removeprefix(_OURS).partition(":")
    return any(name == dataset and asked in (owner, "all") for asked, name in names)


def _json(reply: Reply, url: str) -> dict[str, Any]:
    """A 200 with a JSON object, or the provider's own refusal as ours."""
    try:
        body = json.loads(reply.body)
    except (ValueError, RecursionError):
        body = None
    if not isinstance(body, dict):
        raise PeerNonsense(f"expected a JSON object from {url}, came status {reply.status}")
    if reply.status >= 500:
        raise Busy(f"{origin(url)} failed with status {reply.status}", code="peer_failed")
    if reply.status != 200:
        raise Refused(
            str(body.get("detail", f"status {reply.status}"))[:1000],
            code=str(body.get("code", "refused"))[:100],
            rule=str(body.get("rule", ""))[:500],
        )
    return body
