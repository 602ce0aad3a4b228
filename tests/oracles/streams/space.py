"""A provider that is served, with one random dataset after the other: its rows, and which ways reads take."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import ssl
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any
from unittest import mock

import duckdb
import httpx2
import numpy as np
import obstore
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from connector.dataplane import read_source
from connector.dataplane.cache import stream_cache
from connector.dataplane.cache.mixed_stream import MixedStream
from connector.dataplane.cache.stream_cache import PreparedStreams
from connector.dataplane.flight import flight_queries
from connector.dataplane.flight.listener import FlightServer
from connector.datasets import block_layout
from connector.datasets.external import Outside
from connector.datasets.sources import postgres as sources_postgres
from connector.datasets.sources import read_options, s3, source
from connector.engine.pool.protocol import Job, Relation
from connector.errors import ConnectorError
from connector.events import AgreementRevoked
from connector.store import Transaction
from tests.oracles.streams import files as sources
from tests.oracles.streams.answers import Different
from tests.oracles.streams.files import Files
from tests.oracles.streams.terms import PLACE, Seen, Terms, quoted
from tests.support import data, objectstore, postgres, provider
from tests.support.certificates import self_signed
from tests.support.flying import flying
from tests.support.provider import Provider

_DATABASE = "registry"
_ROWS = (40, 200)  # of a block
_BYTES = 2**20
REASON = "enough"
_LIMITS = httpx2.Limits(keepalive_expiry=1)  # well before the server closes what is idle: a request may meet that
_SHELVES = (2**28, 2**28, 2**28, 2**20, 2**17)  # bytes that may be kept prepared: in the latter few of a dataset's


@dataclass
class World:
    """A dataset that is registered, and the same rows in plain DuckDB, each with its place."""

    files: Files
    relation: Relation
    name: str
    columns: tuple[Seen, ...]
    con: duckdb.DuckDBPyConnection
    profile: dict[str, Any]

    @property
    def reserved(self) -> bool:
        """Whether a column has the name that the engine has for a row's place."""
        return self.files.kind != "arrow_ipc" and any(one.name.lower() == "file_row_number" for one in self.columns)

    @cached_property
    def blocks(self) -> list[range]:
        """The places of the rows of each block: rows of one file, of whole row groups unless these are large."""
        sizes = list(map(_batches if self.files.kind == "arrow_ipc" else _groups, self.files.paths))
        before = np.cumsum([0, *(sum(rows for rows, _ in one) for one in sizes)]).tolist()
        found = ((before[one.file] + one.first, one.rows) for one in block_layout.cut(sizes))
        return [range(first, first + rows) for first, rows in found]


def _groups(path: str) -> list[tuple[int, int]]:
    """Rows and bytes of each row group."""
    found = pq.read_metadata(path)
    groups = (found.row_group(number) for number in range(found.num_row_groups))
    return [(one.num_rows, one.total_byte_size) for one in groups]


def _batches(path: str) -> list[tuple[int, int]]:
    """Rows of each batch of an Arrow file, and its share of the bytes."""
    found = pa.ipc.open_file(path)
    rows = [found.get_batch(number).num_rows for number in range(found.num_record_batches)]
    return [(one, int(one * (Path(path).stat().st_size / max(1, sum(rows))))) for one in rows]


class Elsewhere:
    """An object store and a database, each started for the first dataset that is put there."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.outside = Outside(folder / "connections.yaml", folder / "outside")
        self._folder, self._stack = folder, stack
        self._server: objectstore.Server | None = None
        self._database = ""

    async def put(self, files: Files) -> tuple[Files, Relation]:
        """The same files as objects, in their order."""
        if self._server is None:
            self._server = self._stack.enter_context(objectstore.server())
            self._connect()
        below = files.folder.name
        for path in files.paths:
            obstore.put(self._server.bucket(), f"{below}/{Path(path).relative_to(files.folder)}", Path(path))
        found = await self._brought("s3", s3, f"{objectstore.BUCKET}/{below}/")
        return replace(files, paths=tuple(f"{files.folder}/{one['name']}" for one in found.files)), found

    async def fill(self, files: Files) -> Relation:
        """The rows as a table of the database, and what a snapshot of it is converted from."""
        if not self._database:
            url = self._stack.enter_context(postgres.cluster()).create(_DATABASE)
            self._database = url.replace("postgresql+psycopg", "postgresql")
            self._connect()
        table = f"t{random.getrandbits(64):016x}"
        await asyncio.to_thread(sources.fill, self._database, table, files)
        return await self._brought("postgres", sources_postgres, f"{_DATABASE}/{table}")

    async def _brought(self, kind: str, by: Any, place: str) -> Relation:
        options, refs = await by.bring(f"{kind}://{place}", options=read_options(kind, {}), from_=self.outside)
        return Relation(kind, tuple(one.to_json() for one in refs), options)

    def _connect(self) -> None:
        """Both as the operator names them."""
        databases = {_DATABASE: {"url": self._database}} if self._database else {}
        if self._server is not None:
            self._server.connections(self._folder, databases=databases)
        else:
            path = self._folder / "connections.yaml"
            path.touch(mode=0o600)
            path.write_text(yaml.safe_dump({"databases": databases}))


@dataclass
class Ways:
    """Which ways through the product reads have taken."""

    jobs: list[Job] = field(default_factory=list)
    served: int = 0
    mixed: set[str] = field(default_factory=set)

    @contextmanager
    def seen(self, running: Provider, streams: PreparedStreams) -> Iterator[None]:
        """While the block runs."""
        run, serve = running.pool.run, streams.serve

        def asked(job: Job, **more: Any) -> Any:
            self.jobs.append(job)
            return run(job, **more)

        def served(*given: Any, **more: Any) -> Any:
            self.served += 1
            return serve(*given, **more)

        def mixed(ranges: Any, known: Any, result: Any, *given: Any, **more: Any) -> MixedStream:
            if known:
                self.mixed.add("prepared blocks and others" if result else "prepared blocks")
            return MixedStream(ranges, known, result, *given, **more)

        with (
            mock.patch.object(running.pool, "run", asked),
            mock.patch.object(streams, "serve", served),
            mock.patch.object(read_source, "MixedStream", mixed),
        ):
            yield

    def words(self) -> Iterator[str]:
        """What the reads of the last seed were."""
        for job in self.jobs:
            yield "rows as they are" if job.scan else "rows by the engine"
        yield from ["prepared"] if self.served else []
        yield from self.mixed
        self.jobs, self.served, self.mixed = [], 0, set()


@dataclass(frozen=True, slots=True)
class Door:
    """Where a provider is reached."""

    url: str
    client: httpx2.AsyncClient
    front: FlightServer


class Space:
    """A provider that is served, and its datasets one after the other. `secure`: the way in over TLS."""

    def __init__(
        self, running: Provider, prepared: PreparedStreams, plain: Door, secure: Door, folder: Path,
        elsewhere: Elsewhere, kind: str,
    ) -> None:  # fmt: skip
        self.running, self.prepared, self.plain, self.secure, self.folder = running, prepared, plain, secure, folder
        self.door = plain  # of this seed
        self.elsewhere, self._kind = elsewhere, kind
        self.ways = Ways()
        self._last: tuple[int, World | None] = (-1, None)

    async def world(self, number: int) -> World | None:
        """The dataset of some seeds; None where there is none: its files are refused, or it needs a server that is
        not installed."""
        if self._last[0] != number:
            self.close()
            self._last = number, None
            self._last = number, await self._made(number)
            self.prepared.quota = random.Random(f"shelf {number}").choice(_SHELVES)
        return self._last[1]

    def close(self) -> None:
        """Remove the dataset's files."""
        number, world = self._last
        if world is not None:
            world.con.close()
        shutil.rmtree(self.folder / str(number), ignore_errors=True)

    @asynccontextmanager
    async def another(self, world: World, name: str, change: str = "same") -> AsyncIterator[World]:
        """Copies of the files as a dataset of this name, until the block ends. They may be `more`, `fewer`, or in
        another `order`, where that leaves the columns as they are."""
        folder = self.folder / f"{name}-{change}-{random.getrandbits(64):016x}"
        found = await self._world(sources.changed(world.files, folder, change), name)
        try:
            if _shape(found) != _shape(world):
                async with self.another(world, name) as same:
                    yield same
            else:
                yield found
        finally:
            found.con.close()
            shutil.rmtree(folder)

    async def _made(self, number: int) -> World | None:
        folder = self.folder / str(number)
        folder.mkdir()
        files = sources.write(number, folder, self._kind)
        if files.kind == "postgres" and postgres.binaries() is None:
            return None
        try:
            found = await self._world(files, f"d{number}")
        except duckdb.Error:
            return None
        except ConnectorError:
            if not files.refused:
                raise
            return None
        if files.refused:
            raise Different("names that differ in case only were registered")
        return found

    async def _world(self, files: Files, name: str) -> World:
        con = duckdb.connect(config={"threads": 1})
        con.execute("SET TimeZone = 'UTC'")
        files, relation = await self._relation(files)
        profile = await self.running.profile(relation)
        _fill(con, files)
        types = con.execute("SELECT column_name, column_type FROM (DESCRIBE raw)").fetchall()[1:]
        columns = tuple(Seen(name, kind, one) for (name, kind), one in zip(types, files.columns, strict=True))
        return World(files, relation, name, columns, con, profile)

    async def _relation(self, files: Files) -> tuple[Files, Relation]:
        """As the files would be registered, in that order: text becomes Parquet."""
        if files.kind == "s3":
            return await self.elsewhere.put(files)
        if files.kind == "postgres":
            return await self._converted(files, await self.elsewhere.fill(files))
        found = data.relation(files.kind, files.folder, files.folder, **files.options)
        if not source(files.kind).CONVERTED:
            return replace(files, paths=tuple(one["path"] for one in found.files)), found
        return await self._converted(files, found)

    async def _converted(self, files: Files, found: Relation) -> tuple[Files, Relation]:
        target = files.folder / "converted.parquet"
        await self.running.pool.ask(Job(kind="convert", relations={"t": found}, arguments={"target": str(target)}))
        return replace(files, paths=(str(target),)), data.relation("parquet", target, files.folder)

    async def renew(self, world: World, version: str, *, told: bool) -> None:
        """These are the rows of the dataset of that name from now on. `told`: here, not in another process."""
        await self.running.store.write(
            lambda tx: provider.renew(tx, world.name, version, world.relation, world.profile, told=told)
        )

    async def end(self, agreement: str, *, told: bool) -> None:
        """Revoke an agreement, here or in another process."""

        def work(tx: Transaction) -> None:
            row = tx.agreements.get_grant(agreement)
            assert row is not None
            row.revoked_at, row.reason = tx.now, REASON
            if told:
                tx.publish(AgreementRevoked(actor="owner", agreement=agreement, reason=REASON))

        await self.running.store.write(work)
        if told:
            self.running.grants.stop(agreement_id=agreement, reason=REASON)

    async def agree(self, world: World, found: Terms, consumer: str) -> str:
        """Sign an agreement; its id."""
        number = f"{random.getrandbits(64):016x}"
        policy = replace(found.policy, assignee=consumer)
        of = {"name": world.name, "relation": world.relation, "profile": world.profile, "consumer": consumer}
        await self.running.store.write(lambda tx: provider.insert(tx, policy, number, **of))
        return f"urn:agreement:{number}"


def _shape(world: World) -> list[tuple[Any, ...]]:
    return [(one["name"], one["type"]) for one in world.profile["columns"]]


def _fill(con: duckdb.DuckDBPyConnection, files: Files) -> None:
    """The rows as a table, each with its place."""
    rows = "told"
    if files.told is None:
        rows = f"read_parquet({list(files.paths)}, hive_partitioning = {files.kind in ('hive', 's3')})"
    else:
        con.register("told", files.told)
    con.execute(f"CREATE TABLE raw AS SELECT row_number() OVER () - 1 AS {quoted(PLACE)}, * FROM {rows}")


@asynccontextmanager
async def space(folder: Path, kind: str = "") -> AsyncIterator[Space]:
    """A provider with small blocks, several endpoints of them over Flight. `kind`: of all datasets."""
    streams = PreparedStreams(folder / "streams", quota=_SHELVES[0], sensitive=True)
    (folder / "data").mkdir()
    certificate = self_signed(folder / "certificate.pem")
    with (
        ExitStack() as stack,
        mock.patch.object(block_layout, "ROWS_MIN", _ROWS[0]),
        mock.patch.object(block_layout, "ROWS_MAX", _ROWS[1]),
        mock.patch.object(block_layout, "BYTES_MIN", _BYTES),
        mock.patch.object(read_source, "BATCH_BYTES", 2**16),
        mock.patch.object(stream_cache, "_SMALL", 2**16),
        mock.patch.object(flight_queries, "_PART_BYTES", 2**16),
        mock.patch.dict(os.environ, SSL_CERT_FILE=str(certificate)),
    ):
        elsewhere = Elsewhere(folder, stack)
        # Readers over Flight wait in threads for a server that has its own among the same.
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(64))
        async with (
            provider.running(
                folder, rows=10, prepared=streams, library=elsewhere.outside, certificate=certificate
            ) as running,
            _door(running, running.url) as plain,
            _door(running, running.secure_url, certificate=str(certificate), key=str(certificate)) as secure,
        ):
            found = Space(running, streams, plain, secure, folder / "data", elsewhere, kind)
            with found.ways.seen(running, streams):
                yield found
            found.close()


@asynccontextmanager
async def _door(running: Provider, url: str, **listen: str) -> AsyncIterator[Door]:
    async with (
        httpx2.AsyncClient(base_url=url, timeout=60, limits=_LIMITS, verify=ssl.create_default_context()) as client,
        flying(running, **listen) as front,
    ):
        yield Door(url, client, front)
