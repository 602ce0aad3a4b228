"""An owner's registry over real workers and a real database, without the rest of a connector."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from connector.dataplane.job_builder import version_to_relation
from connector.datasets.external import Outside
from connector.datasets.registration import Registration
from connector.datasets.registry import Registry
from connector.engine.pool.pool import Pool
from connector.engine.pool.protocol import Job
from connector.services import Profiles
from connector.settings import Settings
from connector.store import Store
from connector.store.tables import DatasetVersion
from tests.support import migrated


@dataclass
class Owner:
    """A registry over real workers and a real database, and what is behind it."""

    registry: Registry
    outside: Outside
    pool: Pool
    store: Store
    folder: Path

    async def add(self, name: str, path: object, kind: str = "", **options: Any) -> DatasetVersion:
        asked = Registration(name=name, path=str(path), kind=kind, options=options)
        return (await self.registry.register(asked, by="test"))[1]

    def job(self, version: DatasetVersion, sql: str, **more: Any) -> Job:
        return Job(relations={"t": version_to_relation(version)}, sql=sql, **more)

    async def rows(self, version: DatasetVersion, sql: str = "SELECT * FROM t", **more: Any) -> pa.Table:
        async with self.pool.run(self.job(version, sql, **more)) as result:
            parts = [bytes(frame.payload) async for frame in result]
        with pa.ipc.open_stream(b"".join((result.schema, *parts))) as reader:
            return reader.read_all()


@asynccontextmanager
async def owning(folder: Path, connections: Path | None, *, cache_mb: int = 64) -> AsyncIterator[Owner]:
    """Workers confined as in production: `folder/data` is readable, nothing else of the test's is."""
    (folder / "data").mkdir(parents=True, exist_ok=True)
    store = Store(migrated.sqlite(folder / "owner.db"))
    outside = Outside(connections, folder / "outside", cache_bytes=cache_mb * 2**20)
    prepared = folder / "prepared"
    async with Pool(
        folder / "work", size=2, warm=1, readable=[folder / "data"], writable=[prepared, outside.drafts],
        library=outside,
    ) as pool:  # fmt: skip
        profiles = Profiles(pool, Settings(data_dir=folder))
        registry = Registry(
            store, profiles, name="clinic", roots=[folder / "data"], converted=prepared, secret=os.urandom(32),
            outside=outside,
        )  # fmt: skip
        await registry.start()
        yield Owner(registry, outside, pool, store, folder)
    registry.close()
    outside.close()
    store.close()
