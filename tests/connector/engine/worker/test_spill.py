"""What a query writes to disk where its memory does not suffice: within a quota, out of reach of others, and not for
long."""

from __future__ import annotations

import asyncio
import os
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from connector.engine.pool.pool import Pool
from connector.engine.pool.protocol import Job, Limits, Relation
from connector.errors import ConnectorError, Limited
from tests.support import data

pytestmark = pytest.mark.asyncio(loop_scope="module")

SORTED = "SELECT a.id * b.id AS k, a.name FROM t a, (SELECT id FROM t WHERE id < 40) b ORDER BY k DESC, a.name"
SMALL = Limits(memory_mb=64, temp_mb=1024)


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("work")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def narrow(work: Path, folder: Path) -> AsyncIterator[Pool]:
    """Confined as in production: the data may be read, a worker's own folder may be written."""
    async with Pool(work, size=2, warm=1, readable=[folder]) as started:
        yield started


def spilled(work: Path) -> list[Path]:
    return [path for path in work.glob("worker-*/job-*/temp/**/*") if path.is_file()]


def jobs(work: Path) -> list[Path]:
    return list(work.glob("worker-*/job-*"))


async def gone(work: Path) -> None:
    """Wait until no query's directory is left; a worker that has ended its answer cleans up by itself."""
    async with asyncio.timeout(60):
        while jobs(work):
            await asyncio.sleep(0.02)


async def rows_of(pool: Pool, job: Job) -> int:
    async with pool.run(job) as result:
        return sum([frame.rows async for frame in result])


async def test_a_query_beyond_its_memory_goes_on_on_disk_and_leaves_nothing(
    narrow: Pool, numbers: Relation, work: Path
) -> None:
    rows = 0
    async with narrow.run(Job(relations={"t": numbers}, sql=SORTED, limits=SMALL)) as result:
        async for frame in result:
            if not rows:
                assert spilled(work)
            rows += frame.rows
    assert rows == 40 * data.ROWS
    async with asyncio.timeout(60):
        while narrow._busy:
            await asyncio.sleep(0.01)
    assert not jobs(work)  # nor is its engine kept, which had rows on the disk


async def test_a_query_that_is_left_leaves_nothing_either(narrow: Pool, numbers: Relation, work: Path) -> None:
    async with narrow.run(Job(relations={"t": numbers}, sql=SORTED, limits=SMALL)) as result:
        await anext(result)
        assert spilled(work)
    await gone(work)


@pytest.mark.parametrize("temp_mb", [0, 8], ids=["without disk", "beyond the quota"])
async def test_without_room_on_disk_the_query_ends_at_its_limit(
    narrow: Pool, numbers: Relation, work: Path, temp_mb: int
) -> None:
    limits = Limits(memory_mb=64, temp_mb=temp_mb)
    with pytest.raises(Limited) as over:
        await rows_of(narrow, Job(relations={"t": numbers}, sql=SORTED, limits=limits))
    assert over.value.code == "memory_limit"
    await gone(work)


async def test_one_workers_directory_is_out_of_reach_of_the_other(
    narrow: Pool, numbers: Relation, work: Path, folder: Path
) -> None:
    async with narrow.run(Job(relations={"t": numbers}, sql=SORTED, limits=SMALL)) as result:
        await anext(result)
        planted = spilled(work)[0].parent / "planted.parquet"
        shutil.copy(folder / "numbers.parquet", planted)
        other = data.relation("parquet", planted, work)
        with pytest.raises(ConnectorError) as closed:
            async with narrow.run(Job(relations={"t": other}, sql="SELECT id FROM t")):
                pass
    assert "may not be read" in closed.value.message


async def test_what_a_crash_has_left_is_removed_at_the_start(tmp_path: Path) -> None:
    dead = await asyncio.create_subprocess_exec("true")
    await dead.wait()
    left, alive = tmp_path / f"worker-{dead.pid}-a", tmp_path / f"worker-{os.getppid()}-b"
    for path in (left, alive):
        (path / "job-1" / "temp").mkdir(parents=True)
        (path / "job-1" / "temp" / "spill").write_text("rows")
    async with Pool(tmp_path, size=1, warm=0, readable=[]):
        assert [path.exists() for path in (left, alive)] == [False, True]
