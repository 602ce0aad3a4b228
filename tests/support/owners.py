"""Owners in memory for the consumer's side of a federated question: plain DuckDB behind the data plane's wire form.

`Owners` takes the place of `http_client.HttpClient`: it answers `POST <owner>/query` from each owner's own database, as
an Arrow stream with an end record, and counts what was sent. `break_` makes an owner fail in a chosen way. It checks
what a real owner's gate checks first: the statement's syntax, and that each name has its ticket.
"""

from __future__ import annotations

import asyncio
import base64
import io
import json
import threading
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import duckdb
import pyarrow as pa

from connector.errors import PeerUnreachable
from connector.federation.planner.model import Bearer, KnownTables, TableColumn, TableInfo, Tables, UnreachableOwner
from connector.infra.formats.digests import sealed
from connector.infra.net.http_client import StreamedReply
from policies.sql import parse
from tests.support.digested import digest_before

_PIECE = 16_384
NESTED = 960  # lists in lists: a worker can read them, and its caller has less of a stack


class FakeAnswer(StreamedReply):
    """What `HttpClient.stream` yields: a status and pieces."""

    def __init__(self, status: int, pieces: AsyncIterator[bytes]) -> None:
        self.status = status
        self.headers: Mapping[str, str] = {}
        self._pieces = pieces

    def pieces(self) -> AsyncIterator[bytes]:
        return self._pieces


@dataclass(slots=True)
class Owner:
    """One owner's database, what was asked of it, and how it fails: `cut`, `no_end`, `lie`, `other` (columns),
    `talkative`, `nested`, `moving`, `stopped`, `damaged`, `down`, `slow`, `changing` (its datasets' versions),
    `flip:<at>` (a bit of the byte at so many thousandths of its answer), `refuse:<code>`, `says:<end record>` (in which
    ROWS is their number and DIGEST the digest), `makes:<outputs>` (of its answer)."""

    name: str
    database: duckdb.DuckDBPyConnection = field(default_factory=lambda: duckdb.connect(":memory:"))
    asked: list[dict[str, Any]] = field(default_factory=list)
    jobs: list[str] = field(default_factory=list)  # as each request names it
    failing: str = ""
    times: int = 1_000_000
    bytes_sent: int = 0
    cancelled: int = 0
    waiting: asyncio.Event = field(default_factory=asyncio.Event)  # somebody waits for it
    crowded: asyncio.Event = field(default_factory=asyncio.Event)  # eight do
    lock: threading.Lock = field(default_factory=threading.Lock)


class Owners:
    """The owners of one test, in place of the network."""

    def __init__(self, *names: str) -> None:
        self.of = {name: Owner(name) for name in names}
        self.tables: dict[tuple[str, str], TableInfo] = {}
        self.told: Tables = {}
        self._versions = 0
        self.silent: tuple[UnreachableOwner, ...] = ()

    def add(self, owner: str, dataset: str, sql: str, **more: Any) -> TableInfo:
        """Give an owner a dataset made by `sql`, and an agreement about it."""
        base = self.of[owner].database
        base.execute(f"CREATE OR REPLACE TABLE {dataset} AS {sql}")
        return self.publish(owner, dataset, **more)

    def publish(self, owner: str, dataset: str, **more: Any) -> TableInfo:
        """An agreement about a table that is in the owner's database."""
        base = self.of[owner].database
        shown = base.sql(f"SELECT * FROM {dataset}")
        columns = tuple(TableColumn(name, str(kind)) for name, kind in zip(shown.columns, shown.types, strict=True))
        rows = base.sql(f"SELECT count(*) FROM {dataset}").fetchall()[0][0]
        info = TableInfo(
            owner, dataset, columns, agreement=f"{owner}-{dataset}", participant=f"did:web:{owner}", rows=rows,
            dataset_id=f"urn:hanse:{owner}:{dataset}", **{"version": "v0", **more},
        )  # fmt: skip
        self.tables[owner, dataset] = info
        return info

    def version(self, owner: str, *datasets: str) -> None:
        """Give datasets a new version."""
        for name in datasets:
            self._versions += 1
            found = self.tables[owner, name]
            self.tables[owner, name] = replace(found, version=f"v{self._versions}")

    def _of(self, owner: Owner) -> dict[str, TableInfo]:
        """An owner's datasets, however questions write the owner."""
        found = self.tables.values()
        return {info.dataset: info for info in found if info.participant == f"did:web:{owner.name}"}

    def _changed(self, owner: Owner, envelope: Mapping[str, Any]) -> bool:
        now = {info.dataset_id: info.version for info in self._of(owner).values()}
        return any(now[dataset] != version for dataset, version in envelope["datasets"].items())

    async def tables_for(self, names: Any, purpose: str, *, fresh: bool = False) -> KnownTables:
        """What `fresh` finds is what the owners have now; else what they had when they were asked first."""
        if fresh or not self.told:
            self.told = dict(self.tables)
        return KnownTables(self.told, self.silent)

    async def ticket(self, agreement: str, purpose: str = "") -> Bearer:
        owner = agreement.partition("-")[0]
        return Bearer(f"http://{owner}/data/v1", f"ticket-{agreement}", f"did:web:{owner}")

    def break_(self, owner: str, how: str, *, times: int = 1_000_000) -> None:
        self.of[owner].failing, self.of[owner].times = how, times

    @property
    def bytes_sent(self) -> int:
        return sum(owner.bytes_sent for owner in self.of.values())

    @asynccontextmanager
    async def stream(
        self, method: str, url: str, *, headers: Any = None, body: bytes = b"", seconds: float | None = None
    ) -> AsyncIterator[FakeAnswer]:
        """One exchange with an owner."""
        owner = self.of[url.removeprefix("http://").partition("/")[0]]
        envelope = json.loads(body)
        owner.asked.append(envelope)
        owner.jobs.append(headers.get("hanse-job", ""))
        failing = owner.failing if owner.times > 0 else ""
        owner.times -= bool(failing)
        if failing == "down":
            raise PeerUnreachable(f"http://{owner.name} cannot be reached")
        if failing == "slow":
            owner.waiting.set()
            if len(owner.asked) >= 8:
                owner.crowded.set()
            try:
                await asyncio.get_running_loop().create_future()
            except asyncio.CancelledError:
                owner.cancelled += 1
                raise
        if failing.startswith("refuse"):
            yield FakeAnswer(403, _once(_problem(failing.partition(":")[2] or "not_permitted", owner.name)))
            return
        tickets = {headers["authorization"].removeprefix("Bearer "), *envelope["tickets"]}
        if failing == "changing":  # a new version with every look at it
            self.version(owner.name, *(name for at, name in self.tables if at == owner.name))
        if self._changed(owner, envelope):
            yield FakeAnswer(409, _once(_problem("snapshot_changed", "another version")))
            return
        data = await asyncio.to_thread(self._answer, owner, envelope, tickets, failing)
        if failing == "moving":  # its answer breaks off, and there is a new version by then
            self.version(owner.name, *(name for at, name in self.tables if at == owner.name))
        if failing.startswith("flip:") and isinstance(data, bytes):
            data = _flipped(data, len(data) * int(failing.removeprefix("flip:")) // 1000)
        if isinstance(data, str):
            yield FakeAnswer(400, _once(_problem("query_invalid", data)))
            return
        yield FakeAnswer(200, _pieces(owner, data))

    def _answer(self, owner: Owner, envelope: Mapping[str, Any], tickets: set[str], failing: str) -> bytes | str:
        missing = self._unticketed(owner, envelope, tickets)
        if missing:
            return missing
        with owner.lock, owner.database.cursor() as cursor:
            for table in envelope["keys"]:
                with pa.ipc.open_stream(base64.b64decode(table["arrow"])) as reader:
                    cursor.register(table["name"], reader.read_all())
            try:
                relation = cursor.sql(envelope["sql"])
                if failing == "other":
                    relation = relation.project("1 AS other")
                if failing.startswith("makes:"):
                    relation = relation.project(failing.removeprefix("makes:"))
                reader = relation.to_arrow_reader(10_000)
                return _framed(reader, failing)
            except duckdb.Error as error:
                return f"{error} in {envelope['sql']}"

    def _unticketed(self, owner: Owner, envelope: Mapping[str, Any], tickets: set[str]) -> str:
        from sqlglot import exp

        tree = parse.parse(envelope["sql"])  # what an owner's gate would not read fails here, loudly
        ctes = {cte.alias for cte in tree.find_all(exp.CTE)} | {table["name"] for table in envelope["keys"]}
        names = {table.name for table in tree.find_all(exp.Table)} - ctes
        wanted = {f"ticket-{self._of(owner)[name].agreement}" for name in names}
        return "" if wanted <= tickets else f"no ticket for {sorted(wanted - tickets)}"


def _framed(reader: Any, failing: str) -> bytes:
    sink = io.BytesIO()
    rows = 0
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    writer = pa.ipc.new_stream(sink, reader.schema, options=options)
    for batch in reader:
        rows += batch.num_rows
        writer.write_batch(batch)
    if failing == "cut":  # at the border of a batch: a shorter table, as far as Arrow can tell
        return sink.getvalue()
    if failing == "damaged":
        return b"not Arrow"
    if failing not in ("no_end", "moving"):
        zero = pa.RecordBatch.from_arrays([pa.nulls(0, field.type) for field in reader.schema], schema=reader.schema)
        digest = digest_before(sink, reader.schema)
        end = {"status": "complete", "rows": rows + (1 if failing == "lie" else 0), "digest": digest, "policy": []}
        if failing == "talkative":
            end["policy"] = ["\N{SNOWMAN}" * 200] * 20  # six bytes each in the end record
        if failing == "stopped":
            end |= {"status": "revoked", "code": "revoked", "reason": "the owner revoked the agreement"}
        if failing == "over":
            end |= {"status": "refused", "code": "not_in_force", "reason": "the agreement ended"}
        text = sealed(json.dumps(end)).decode()
        if failing == "nested":
            text = json.dumps(end).replace('"policy": []', f'"policy": {"[" * NESTED}{"]" * NESTED}')
        if failing.startswith("says:"):
            text = failing.removeprefix("says:").replace("ROWS", str(rows)).replace("DIGEST", digest)
        writer.write_batch(zero, custom_metadata={"hanse.end": text})
    writer.close()
    return sink.getvalue()


def _flipped(data: bytes, at: int) -> bytes:
    return data[:at] + bytes([data[at] ^ 1 << at % 8]) + data[at + 1 :]


async def _pieces(owner: Owner, data: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(data), _PIECE):
        owner.bytes_sent += len(data[start : start + _PIECE])
        yield data[start : start + _PIECE]


async def _once(body: bytes) -> AsyncIterator[bytes]:
    yield body


def _problem(code: str, detail: str) -> bytes:
    return json.dumps({"code": code, "detail": f"because of {detail}", "rule": "/permission/0"}).encode()


Maker = Callable[..., Owners]
