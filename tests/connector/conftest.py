from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from connector.engine.pool.pool import Pool
from connector.engine.pool.protocol import Relation
from connector.events import Event
from connector.federation.coordinator import Coordinator
from connector.store import Store
from tests.support import data
from tests.support.asking import Asked
from tests.support.owners import Owners


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="session")
def numbers(folder: Path) -> Relation:
    return data.relation("parquet", data.parquet(folder / "numbers.parquet"), folder)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def pool(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Pool]:
    """Confined as in production: to the directory of the test run's files."""
    roots = [tmp_path_factory.getbasetemp()]
    async with Pool(tmp_path_factory.mktemp("work"), size=2, warm=1, readable=[], writable=roots) as started:
        yield started


@pytest_asyncio.fixture(loop_scope="module")
async def asked(pool: Pool, sqlite_store: Store, tmp_path: Path) -> AsyncIterator[Asked]:
    owners = Owners("north", "south", "west")
    for number, owner in enumerate(owners.of):
        owners.add(
            owner,
            "patients",
            f"SELECT range AS id, (range * 7 + {number}) % 90 AS age, 'w' || (range % 3) AS ward "
            f"FROM range({50 + number})",
        )
    owners.add("north", "wards", "SELECT 'w' || range AS ward, range * 10 AS beds FROM range(3)")
    owners.add("north", "many", "SELECT range AS id FROM range(40000)")
    owners.add("south", "lonely", "SELECT 1 AS id, 2.5 AS v")
    events: list[Event] = []
    unsubscribe = sqlite_store.bus.subscribe(events.append)
    coordinator = Coordinator(
        sqlite_store,
        owners,  # type: ignore[arg-type]  # stands in for the network
        pool,
        work_dir=tmp_path / "queries",
        tables_for=owners.tables_for,
        ticket=owners.ticket,
        seconds=60,
    )
    yield Asked(owners, coordinator, events, tmp_path / "queries")
    unsubscribe()
    for owner in owners.of.values():
        with owner.lock:  # an answer that nobody waits for any more may still be made
            owner.database.close()
