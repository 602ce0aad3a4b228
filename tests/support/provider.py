"""A provider with one dataset under one agreement, its data plane served by a real uvicorn on loopback."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI
from joserfc.jwk import ECKey

from connector.dataplane import tickets
from connector.dataplane.admission import Reads
from connector.dataplane.cache.stream_cache import PreparedStreams
from connector.dataplane.data_address import Addresses
from connector.dataplane.http import routes
from connector.dataplane.http.file_spans import Span
from connector.dataplane.http.vectored_body import Protocol
from connector.dataplane.tickets import Ticket
from connector.engine.pool.pool import Pool
from connector.engine.pool.protocol import Job, Relation
from connector.events import DatasetVersioned, Event
from connector.store import Store, Transaction
from connector.store.tables import Agreement, DatasetVersion, GrantState, RegisteredDataset, Transfer
from connector.usage.fact_collector import party_facts
from connector.usage.grants import Grants
from connector.usage.held_agreement import GrantRequest
from policies.evaluation.evaluate import Facts
from policies.model import Policy
from policies.odrl import reader
from policies.vocabulary import expand
from tests.support import data, gate, migrated

PROVIDER, CONSUMER = "did:web:clinic.example", "did:web:lab.example"
OWNER, DATASET = "clinic", "numbers"
OPEN = gate.agreement(action="odrl:use")


@dataclass
class Provider:
    """Handles on a running provider. `events` holds what was published, in order."""

    store: Store
    grants: Grants
    reads: Reads
    pool: Pool
    addresses: Addresses
    key: ECKey
    url: str
    events: list[Event]
    path: Path
    secure_url: str = ""  # over TLS

    async def agree(
        self, policy: Policy = OPEN, *, name: str = DATASET, path: Path | None = None, kind: str = "parquet"
    ) -> str:
        """Register a dataset (once), sign an agreement on it, start a transfer; the agreement's id."""
        number = os.urandom(4).hex()
        path = path or self.path
        relation = data.relation(kind, path, path.parent)
        known = await self.store.read(lambda tx: tx.datasets.find(name))
        profile = {} if known else await self.profile(relation)  # a second, of a thousand columns
        await self.store.write(lambda tx: insert(tx, policy, number, name=name, relation=relation, profile=profile))
        return f"urn:agreement:{number}"

    async def profile(self, relation: Relation) -> dict[str, Any]:
        found: dict[str, Any] = await self.pool.ask(Job(kind="profile", relations={"t": relation}))
        return found

    async def revoke(self, agreement: str, reason: str) -> None:
        """As the owner does: nothing new, and running reads end."""

        def work(tx: Transaction) -> None:
            row = tx.agreements.get_grant(agreement)
            assert row is not None
            row.revoked_at, row.reason = tx.now, reason

        await self.store.write(work)
        self.grants.stop(agreement_id=agreement, reason=reason)

    def ticket(self, agreement: str, *, purpose: str = "", seconds: float = 600, consumer: str = CONSUMER) -> str:
        number = agreement.rsplit(":", 1)[-1]
        ticket = Ticket(
            provider=PROVIDER,
            consumer=consumer,
            agreement=agreement,
            transfer=f"urn:transfer:{number}",
            generation=0,
            purpose=purpose,
            expires=time.time() + seconds,
        )
        return tickets.issue(ticket, self.key, now=time.time())

    def later(self, seconds: float) -> None:
        """For every read that runs, it is this many seconds later than it is: what has to begin before an end has all
        the time it needs, on the slowest machine."""
        for stream in self.reads.live.values():
            for grant in stream.grants:
                grant.lease.clock = lambda: time.monotonic() + seconds

    def of_kind(self, kind: str) -> list[Event]:
        return [event for event in self.events if event.kind == kind]


async def member(participant: str) -> Facts:
    """What is known of a party that is a member."""
    return party_facts(participant, {"status": "active"})


def wanted(number: int | str) -> GrantRequest:
    """A read under an agreement that `insert` has signed."""
    return GrantRequest(
        agreement_id=f"urn:agreement:{number}",
        consumer=CONSUMER,
        transfer_id=f"urn:transfer:{number}",
        generation=0,
        action=expand("odrl:use"),
        purpose="",
        longest=600,
    )


@asynccontextmanager
async def running(
    folder: Path,
    *,
    rows: int = data.ROWS,
    stall_seconds: float = 60.0,
    protocol: Any = Protocol,
    prepared: PreparedStreams | None = None,
    library: Any = None,
    certificate: Path | None = None,
    **limits: int,
) -> AsyncIterator[Provider]:
    """A provider with a store on SQLite and a pool of two workers, until the block ends. `certificate`: it is served
    over TLS, too."""
    path = data.parquet(folder / "numbers.parquet", rows)
    store = Store(migrated.sqlite(folder / "provider.db"))

    grants = Grants(store, facts_of=member)
    key = ECKey.generate_key("P-256")
    events: list[Event] = []
    store.bus.subscribe(events.append)
    async with Pool(folder / "work", size=2, warm=1, library=library) as pool:
        reads = Reads(store, grants, pool, name=OWNER, mask_secret=b"m" * 32, prepared=prepared, **limits)
        if prepared is not None:
            store.bus.subscribe(prepared.on_event)
        addresses = Addresses(
            store, grants, key=key, participant=PROVIDER, root_url="http://127.0.0.1", ticket_seconds=600
        )
        app = FastAPI(routes=routes.routes(reads, addresses, owner=OWNER, stall_seconds=stall_seconds))
        async with AsyncExitStack() as stack:
            address = await stack.enter_async_context(served(app, protocol))
            secure = await stack.enter_async_context(served(app, protocol, certificate)) if certificate else ""
            yield Provider(store, grants, reads, pool, addresses, key, address, events, path, secure)
    store.close()


@asynccontextmanager
async def served(app: FastAPI, protocol: Any, certificate: Path | None = None) -> AsyncIterator[str]:
    listening = socket.create_server(("127.0.0.1", 0))
    listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # a loop that is not uvloop's leaves it off
    # Long: where the reader is in the same loop, and others keep it busy, a connection that has just given its answer
    # may be closed as idle under the next request, which ends in a ReadError.
    config = uvicorn.Config(
        app, log_level="critical", lifespan="off", loop="uvloop", http=protocol, timeout_keep_alive=600,
        ssl_certfile=certificate,
    )  # fmt: skip
    server = uvicorn.Server(config)
    task = asyncio.ensure_future(server.serve(sockets=[listening]))
    while not server.started:
        await asyncio.sleep(0.01)
    try:
        yield f"{'https' if certificate else 'http'}://127.0.0.1:{listening.getsockname()[1]}"
    finally:
        server.should_exit = server.force_exit = True
        await task


def insert(
    tx: Any, policy: Policy, number: str, *, name: str, relation: Relation, profile: dict[str, Any],
    consumer: str = CONSUMER,
) -> None:  # fmt: skip
    """A dataset (unless it is there), a final agreement on it and a started transfer, all named by `number`."""
    dataset_id = f"urn:hanse:{OWNER}:{name}"
    if tx.datasets.find(name) is None:
        tx.datasets.add(
            RegisteredDataset(id=dataset_id, name=name, title=name, description="", keywords=[], theme="", license="",
                    version="v1", created_at=tx.now)
        )  # fmt: skip
        tx.datasets.add(_version(tx, dataset_id, "v1", relation, profile))
    tx.agreements.add(
        Agreement(id=f"urn:agreement:{number}", role="provider", negotiation_id=number, dataset_id=dataset_id,
                  provider=PROVIDER, consumer=consumer, address="", policy=reader.write(policy), digest=number,
                  signed_at=tx.now, version="v1", finalized=True, ended_at=None)
    )  # fmt: skip
    tx.agreements.add(GrantState(agreement_id=f"urn:agreement:{number}", revoked_at=None))
    tx.transfers.add(
        Transfer(id=f"urn:transfer:{number}", role="provider", peer_pid=number, counterparty=consumer, address="",
                 state="STARTED", agreement_id=f"urn:agreement:{number}", format="HttpData-PULL", created_at=tx.now,
                 updated_at=tx.now)
    )  # fmt: skip


def renew(
    tx: Any, name: str, version: str, relation: Relation, profile: dict[str, Any], *, told: bool = True
) -> None:  # fmt: skip
    """A new version of a dataset that is there. `told`: this process hears of it."""
    row = tx.datasets.find(name)
    tx.datasets.add(_version(tx, row.id, version, relation, profile))
    row.version = version
    if told:
        tx.publish(DatasetVersioned(actor="owner", dataset=row.id, version=version))


def _version(tx: Any, dataset_id: str, digest: str, relation: Relation, profile: dict[str, Any]) -> DatasetVersion:
    return DatasetVersion(
        dataset_id=dataset_id, digest=digest, source=_source(relation), created_at=tx.now,
        schema=[{"name": c["name"], "type": c["type"]} for c in profile["columns"]],
        profile={"rows": profile["rows"], "columns": profile["columns"]},
    )  # fmt: skip


def _source(relation: Relation) -> dict[str, Any]:
    return {"kind": relation.kind, "options": dict(relation.options), "files": [dict(file) for file in relation.files]}


def columns_of(profile: Sequence[dict[str, Any]]) -> list[str]:
    return [column["name"] for column in profile]


def bytes_of(part: Any) -> bytes:
    """What a transport makes of a part of a stream: memory as it is, and what lies in files as it reads it."""
    if not isinstance(part, Span):
        return bytes(part)
    memory = memoryview(bytearray(part.nbytes))
    part.read_into(memory)
    return bytes(memory)


async def settled(running: Provider) -> None:
    """Until no read is running and everything is recorded."""
    async with asyncio.timeout(60):  # patience, not a bar
        while running.reads.live or running.reads._tasks:
            await asyncio.sleep(0.01)
