"""Two connectors joined in memory: real stores, real routes, real senders, and no network between them.

`Cable` stands in for the guarded client: it hands a request to the other side's application directly. It can lose
answers, hold messages back, and refuse, so that tests can play what a network does.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fastapi import FastAPI

from connector.dsp import process_limits, routes
from connector.dsp.agreements import AgreementService
from connector.dsp.catalog import Catalog
from connector.dsp.messages import DataAddress
from connector.dsp.negotiation import NegotiationService
from connector.dsp.process import ProcessContext
from connector.dsp.process_limits import ProcessLimits
from connector.dsp.protocol_client import ProtocolClient
from connector.dsp.transfer import TransferService
from connector.errors import Invalid, PeerUnreachable, Unproven
from connector.events import Event
from connector.identity.principal import Principal, VerifiedCredential
from connector.infra.net.http_client import AddressGuard, Reply
from connector.outbox.sender import Sender
from connector.store import Store, Transaction
from connector.store.tables import DatasetVersion, Offer, RegisteredDataset, Transfer
from connector.usage.held_agreement import EndReason
from policies.evaluation.evaluate import Facts
from policies.odrl import reader
from tests.support import migrated, wire_check
from tests.support.minted import minting

Json = dict[str, Any]
Tamper = Callable[["Call"], Awaitable[Reply | None]]
USE: Json = {"permission": [{"action": "use"}]}
_running: set[asyncio.Future[None]] = set()  # answers that go on after their reply, as background tasks do


@dataclass(frozen=True, slots=True)
class Call:
    """One request on the cable. `go()` lets the other side answer it."""

    method: str
    url: str
    message: Json
    go: Callable[[], Awaitable[Reply]]

    @property
    def kind(self) -> str:
        return str(self.message.get("@type", ""))


class Cable:
    """The wire of both sides. `tamper` may answer in the other side's stead, raise, or wait."""

    def __init__(self) -> None:
        self.guard = AddressGuard(allow=("203.0.113.0/24",), insecure_http=True)
        self.apps: dict[str, FastAPI] = {}
        self.calls: list[Call] = []
        self.tamper: Tamper | None = None

    async def call(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str] | None = None,
        body: bytes | None = None,
        max_bytes: int | None = None,
    ) -> Reply:
        host = url.split("/")[2]
        if host not in self.apps:
            raise PeerUnreachable(f"{host} is switched off")
        call = Call(
            method,
            url,
            json.loads(body) if body else {},
            lambda: exchange(self.apps[host], method, url, headers or {}, body or b""),
        )
        self.calls.append(call)
        if call.kind:
            wire_check.check(call.message)
        answered = await self.tamper(call) if self.tamper else None
        return await call.go() if answered is None else answered

    def sent(self, kind: str) -> list[Json]:
        """Messages of that type, in the order in which they left."""
        return [call.message for call in self.calls if call.kind == kind]


async def exchange(
    app: FastAPI, method: str, url: str, headers: Mapping[str, str], body: bytes, *, check: bool = True
) -> Reply:
    """One request to an application, without a socket. The answer is there as soon as the application sent it.

    `check` holds it against the published schemas, which takes longer than making it.
    """
    path, _, query = url.split("/", 3)[3].partition("?")
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": f"/{path}",
        "raw_path": f"/{path}".encode(),
        "query_string": query.encode(),
        "root_path": "",
        "headers": [(name.lower().encode(), value.encode()) for name, value in headers.items()],
        "server": ("test", 80),
        "client": ("test", 1),
        "state": {},
    }
    answer: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
    started: dict[str, Any] = {}
    held = bytearray()

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(event: Any) -> None:
        if event["type"] == "http.response.start":
            started.update(event)
        else:
            held.extend(event.get("body", b""))
            if not event.get("more_body") and not answer.done():
                named = {name.decode(): value.decode() for name, value in started["headers"]}
                answer.set_result(Reply(started["status"], named, bytes(held)))

    task = asyncio.ensure_future(app(scope, receive, send))
    _running.add(task)
    task.add_done_callback(_running.discard)
    done, _ = await asyncio.wait({task, answer}, return_when=asyncio.FIRST_COMPLETED)
    if task in done and not answer.done():
        task.result()
    reply = await answer
    if check and reply.body and reply.headers.get("content-type") == "application/json" and b'"@type"' in reply.body:
        wire_check.check(json.loads(reply.body))
    return reply


class Plane:
    """A data plane that notes what it is told."""

    def __init__(self) -> None:
        self.stopped: list[tuple[str, EndReason]] = []
        self.pushed: list[tuple[str, DataAddress]] = []
        self.push_fails: Exception | None = None
        self.receives_nothing = False

    def address(self, tx: Transaction, transfer: Transfer) -> DataAddress:
        ticket = f"ticket:{transfer.id}:{transfer.generation}:{transfer.agreement_id}"
        return DataAddress(
            "https://w3id.org/idsa/v4.1/HTTP",
            "http://203.0.113.1/data/v1",
            (("authType", "bearer"), ("authorization", ticket)),
        )

    def receives(self, transfer_id: str) -> DataAddress:
        if self.receives_nothing:
            raise Invalid("this connector receives no pushes", code="nothing_received")
        endpoint = f"http://203.0.113.2/data/v1/received/{transfer_id}"
        return DataAddress("https://w3id.org/idsa/v4.1/HTTP", endpoint, (("authorization", f"push:{transfer_id}"),))

    async def stop(self, transfer_id: str, how: EndReason) -> None:
        self.stopped.append((transfer_id, how))

    async def push(self, transfer: Transfer, data_address: DataAddress) -> None:
        if self.push_fails is not None:
            raise self.push_fails
        self.pushed.append((transfer.id, data_address))


@dataclass
class Side:
    """One connector: its parts, and what happened in it."""

    name: str
    participant: str
    host: str
    store: Store
    sender: Sender
    peer: ProtocolClient
    negotiations: NegotiationService
    transfers: TransferService
    agreements: AgreementService
    catalog: Catalog
    plane: Plane
    app: FastAPI
    facts: dict[str, Facts]
    events: list[Event] = field(default_factory=list)

    @property
    def base(self) -> str:
        return f"http://{self.host}{routes.PATH}"

    async def negotiation(self, pid: str) -> Any:
        return await self.store.read(lambda tx: tx.negotiations.peek(pid))

    async def transfer(self, pid: str) -> Any:
        return await self.store.read(lambda tx: tx.transfers.peek(pid))

    async def only(self, what: str) -> Any:
        """The one negotiation or transfer there is."""
        (row,) = await self.store.read(lambda tx: getattr(tx, what).page())
        return row

    async def publish(
        self,
        dataset: str = "urn:hanse:north:air",
        *,
        offer: str = "",
        policy: Json | None = None,
        decide: str = "auto",
    ) -> str:
        """A dataset with an offer; the offer's id."""
        offer_id = offer or f"offer:{dataset}"

        def work(tx: Transaction) -> None:
            if tx.datasets.find(dataset) is None:
                add_dataset(tx, dataset)
            tx.datasets.add(offer_row(offer_id, dataset, policy or USE, decide=decide, now=tx.now))

        await self.store.write(work)
        return offer_id

    async def outbox(self) -> int:
        return await self.store.read(lambda tx: tx.outbox.count_waiting())


SHOWN = VerifiedCredential(
    id="urn:uuid:1", issuer="did:web:issuer.example", types=("MembershipCredential",), subjects=({"name": "private"},),
    expires=None, checked_at=1_700_000_000.0, until=1_700_000_060.0, key="key-of-the-issuer",
)  # fmt: skip


def add_dataset(tx: Transaction, dataset: str) -> None:
    """A dataset with one version and two columns."""
    name = dataset.rpartition(":")[2].lower()
    version = f"sha256:{name}"
    tx.datasets.add(
        RegisteredDataset(
            id=dataset,
            name=name,
            title=f"Title of {name}",
            description="",
            keywords=["air", "noise"],
            theme="",
            license="",
            version=version,
            created_at=tx.now,
        )
    )
    tx.datasets.add(
        DatasetVersion(
            dataset_id=dataset,
            digest=version,
            source={"kind": "parquet", "files": []},
            schema=[{"name": "station", "type": "VARCHAR"}, {"name": "value", "type": "DOUBLE"}],
            profile={"rows": 3, "bytes": 100, "columns": {"value": {"max": "SECRET-STATISTIC"}}},
            created_at=tx.now,
        )
    )


def offer_row(offer_id: str, dataset: str, policy: Json, *, decide: str, now: float) -> Offer:
    read = reader.read({"@type": "Offer", "@id": offer_id, **policy})
    return Offer(
        id=offer_id,
        dataset_id=dataset,
        policy=reader.write(read, in_catalog=True),
        form="",
        digest=reader.digest(read),
        decide=decide,
        created_at=now,
        withdrawn_at=None,
    )


def side(name: str, host: str, cable: Cable, url: str, *, limits: ProcessLimits | None = None, **timing: float) -> Side:
    """One connector on a migrated database, its sender not started yet."""
    participant = f"did:web:{name}.example"
    store = Store(url, pool_size=4)
    facts: dict[str, Facts] = {}

    async def facts_of(who: str) -> Facts:
        return facts.get(who) or Facts.of({"ds:participant": who}, source="signature")

    async def authenticate(header: str | None) -> Principal:
        scheme, _, said = (header or "").partition(" ")
        who, _, audience = said.partition(">")
        if scheme != "Bearer" or audience not in (participant, "anybody"):
            raise Unproven("expected a token for us")
        return Principal(who, (SHOWN,), key="key-of-the-caller")

    # A lease outlives a stall of the machine, and ends well before a test's patience: what a caller who left has
    # committed and handed to nobody is found when it ends.
    sender = Sender(
        store=store,
        is_partner=process_limits.is_partner,
        makes_partner=process_limits.makes_partner,
        **{"retry_first": 0.01, "retry_cap": 0.05, "retry_deadline": 600.0, "lease": 20.0, **timing},
    )
    peer = ProtocolClient(wire=cable, mint=minting(f"Bearer {participant}>{{}}"))
    base = f"http://{host}{routes.PATH}"
    parts = ProcessContext(store=store, sender=sender, peer=peer, participant=participant, base=base, facts_of=facts_of)
    negotiations, plane = NegotiationService(parts, limits=limits), Plane()
    transfers = TransferService(parts, negotiations=negotiations, data_plane=plane, limits=limits)
    agreements = AgreementService(store=store, sender=sender, negotiations=negotiations, transfers=transfers)
    catalog = Catalog(store=store, participant=participant, base=base, facts_of=facts_of)
    protocol = routes.router(
        negotiations=negotiations,
        transfers=transfers,
        catalog=catalog,
        sender=sender,
        authenticate=authenticate,
        body_max_bytes=64 * 2**10,
    )
    # Not included: each route would be made a second time, and there are hundreds of pairs.
    app = FastAPI(openapi_url=None, routes=[*protocol.routes, *routes.version_router().routes])
    cable.apps[host] = app
    made = Side(
        name, participant, host, store, sender, peer, negotiations, transfers, agreements, catalog, plane, app, facts
    )
    store.bus.subscribe(made.events.append)
    return made


@dataclass
class Pair:
    """`north` provides, `south` consumes; both could do both."""

    north: Side
    south: Side
    cable: Cable

    async def agreed(self, **offer: Any) -> tuple[str, str]:
        """An agreement between the two, made as partners make it: the consumer's negotiation, the agreement's id."""
        offer_id = await self.north.publish(**offer)
        row = await self.ask(offer_id, dataset=offer.get("dataset", "urn:hanse:north:air"))
        done = await settled(self.south, "negotiation", row.id, "FINALIZED")
        await settled(self.north, "negotiation", done.peer_pid, "FINALIZED")
        return row.id, done.agreement_id

    async def ask(self, offer_id: str, *, dataset: str = "urn:hanse:north:air", **more: Any) -> Any:
        """The consumer's first request."""
        policy = more.pop("policy", USE)
        return await self.south.negotiations.request(
            counterparty=self.north.participant,
            address=self.north.base,
            dataset_id=dataset,
            offer={"@id": offer_id, **policy},
            by="test",
            **more,
        )


@asynccontextmanager
async def pair(
    directory: Path, *, urls: tuple[str, str] | None = None, limits: ProcessLimits | None = None, **timing: float
) -> AsyncIterator[Pair]:
    """Two running connectors, on SQLite files in `directory` or on the migrated databases given."""
    cable = Cable()
    sides = []
    for index, name in enumerate(("north", "south")):
        url = urls[index] if urls else migrated.sqlite(directory / f"{name}.db")
        sides.append(side(name, f"203.0.113.{index + 1}", cable, url, limits=limits, **timing))
    for one in sides:
        await one.sender.start()
    made = Pair(sides[0], sides[1], cable)
    try:
        yield made
    finally:
        for one in (made.north, made.south):
            await one.sender.stop()
            one.store.close()


async def settled(where: Side, kind: str, pid: str, state: str, *, pending: str = "", within: float = 60.0) -> Any:
    """The process once it has reached `state` with nothing more than `pending` on its way; fails saying where it is."""
    row: Any = None
    try:
        async with asyncio.timeout(within):
            while True:
                row = await getattr(where, kind)(pid)
                if row is not None and row.state == state and row.pending == pending:
                    return row
                await asyncio.sleep(0.005)
    except TimeoutError:
        now = "nowhere" if row is None else f"in {row.state!r}, pending {row.pending!r}, reason {row.reason!r}"
        raise AssertionError(f"expected {kind} {pid} at {where.name} to be in {state}, it is {now}") from None


async def announced(where: Side, wanted: Sequence[str], within: float = 60.0) -> list[str]:
    """The states of negotiations that events told of, once there are as many as wanted: they come after the commit."""
    found: list[str] = []
    with suppress(TimeoutError):
        async with asyncio.timeout(within):
            while len(found) < len(wanted):
                await asyncio.sleep(0.005)
                found = [event.detail["state"] for event in where.events if event.kind == "NegotiationAdvanced"]
    return found


async def emptied(two: Pair, within: float = 60.0) -> None:
    """Wait until nothing is to be delivered any more, at either side."""
    async with asyncio.timeout(within):
        while await two.north.outbox() or await two.south.outbox():
            await asyncio.sleep(0.005)
