"""A consumer that is pushed to, its endpoint served by a real uvicorn on loopback; and streams to push."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import pyarrow as pa
import xxhash
from fastapi import FastAPI

from connector.dataplane.http.vectored_body import Protocol
from connector.dataplane.push.push_receiver import PushReceiver, ReceiveLimits
from connector.dataplane.push.received_files import make_arrival_folder
from connector.dataplane.push.routes import routes
from connector.engine.pool.pool import Pool
from connector.engine.pool.protocol import TRAILER_KEY
from connector.events import Event
from connector.infra.formats.digests import sealed
from connector.infra.http.media_type import ARROW_STREAM
from connector.store import Store
from connector.store.tables import PushedData, Transfer
from tests.support import data, migrated
from tests.support.provider import served

PROVIDER, AGREEMENT = "did:web:clinic.example", "urn:agreement:1"


@dataclass
class Receiver:
    """Handles on it."""

    store: Store
    pool: Pool
    receiving: PushReceiver
    folder: Path
    url: str = ""
    events: list[Event] = field(default_factory=list)

    async def transfer(self, pid: str, *, state: str = "STARTED", role: str = "consumer", of: str = PROVIDER) -> str:
        """A push that we ordered; its id."""
        about = {"counterparty": of, "address": "", "agreement_id": AGREEMENT, "format": "HttpData-PUSH"}

        def work(tx: Any) -> None:
            tx.transfers.add(
                Transfer(
                    id=pid, role=role, peer_pid=f"p-{pid}", state=state, created_at=tx.now, updated_at=tx.now, **about
                )
            )

        await self.store.write(work)
        return pid

    async def moved(self, pid: str, state: str, *, code: str = "") -> None:
        """The transfer is in another state now, with its event."""
        from connector.events import TransferAdvanced

        def work(tx: Any) -> None:
            row, about = tx.transfers.get(pid), {"role": "consumer", "state": state}
            row.state, row.code = state, code
            tx.publish(TransferAdvanced(actor=PROVIDER, process=pid, code=code, detail=about))

        await self.store.write(work)

    def shown(self, pid: str) -> dict[str, str]:
        """The headers of a push, as its data address has them."""
        found = {one["name"]: one["value"] for one in self.receiving.address(pid)["endpointProperties"]}
        return {"authorization": f"Bearer {found['authorization']}", "content-type": ARROW_STREAM}

    async def push(self, pid: str, body: Any, *, shown: Receiver | None = None, **headers: Any) -> httpx2.Response:
        """A whole body, or the pieces of one; with the token of `shown`, whose secret is the same."""
        async with httpx2.AsyncClient(timeout=30) as http:
            return await http.post(self.at(pid), content=body, headers=(shown or self).shown(pid) | headers)

    def at(self, pid: str) -> str:
        return f"{self.url}/data/v1/received/{pid}"

    async def known(self, pid: str) -> PushedData | None:
        return await self.store.read(lambda tx: tx.pushed_data.get(pid))

    async def row(self, pid: str) -> Any:
        return await self.store.read(lambda tx: tx.transfers.peek(pid))

    def files(self) -> list[Path]:
        return [path for path in self.folder.rglob("*") if path.is_file()]

    def told(self, pid: str) -> list[Event]:
        return [event for event in self.events if event.process == pid and event.kind.startswith("Data")]


@asynccontextmanager
async def running(folder: Path, pool: Pool | None = None, **room: Any) -> AsyncIterator[Receiver]:
    """A consumer with a store on SQLite, until the block ends; with `pool`, on its workers."""
    url = migrated.sqlite(folder / "consumer.db")
    async with AsyncExitStack() as stack:
        if pool is None:
            made = Pool(folder / "work", size=1, warm=1, readable=[make_arrival_folder(folder / "received")])
            pool = await stack.enter_async_context(made)
        yield await stack.enter_async_context(_on(folder, pool, url, room))


@asynccontextmanager
async def _on(folder: Path, pool: Pool, url: str, room: dict[str, Any]) -> AsyncIterator[Receiver]:
    store = Store(url)
    wanted = {"each": 32 * 2**20, "total": 64 * 2**20, "stall": 60.0} | room
    receiving = PushReceiver(
        store, pool, folder / "received", secret=b"s" * 32, root_url="http://127.0.0.1", room=ReceiveLimits(**wanted)
    )
    await receiving.start()
    made = Receiver(store, pool, receiving, folder / "received")
    store.bus.subscribe(made.events.append)
    async with served(_app(receiving), Protocol) as made.url:
        yield made
    store.close()


def _app(receiving: PushReceiver) -> FastAPI:
    """As the public listener has it, with nothing beside."""
    return FastAPI(routes=routes(receiving))


def stream(rows: int = 2000, *, end: dict[str, Any] | None = None, ended: bool = True) -> bytes:
    """The test table as a provider like ours sends it; `end` changes its end record, without `ended` there is none."""
    table = data.table(rows)
    batches = table.to_batches(max_chunksize=500)
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        for batch in batches:
            writer.write_batch(batch)
        if ended:
            digest = _digest(table.schema, batches)
            told = {"status": "complete", "rows": rows, "batches": len(batches), "digest": digest} | (end or {})
            empty = pa.RecordBatch.from_pylist([], schema=table.schema)
            writer.write_batch(empty, custom_metadata={TRAILER_KEY: sealed(json.dumps(told))})
    return bytes(sink.getvalue().to_pybytes())


def _digest(schema: pa.Schema, batches: list[pa.RecordBatch]) -> str:
    sink = pa.BufferOutputStream()
    writer = pa.ipc.new_stream(sink, schema)
    for batch in batches:
        writer.write_batch(batch)
    before = sink.tell()
    return f"xxh3:{xxhash.xxh3_128(sink.getvalue().to_pybytes()[:before]).hexdigest()}"
