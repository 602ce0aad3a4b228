"""What a worker keeps for its next job: shared memory, and an engine opened for what is asked again and again."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from pathlib import Path

import pyarrow as pa
import pytest
import pytest_asyncio

from connector.errors import QueryInvalid, VersionChanged
from connector.query.job import Job, Limits, Relation
from connector.query.pool import Frame, Pool, Worker
from tests.support import data

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def pool(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Pool]:
    """One worker, so that each job meets what the last one left."""
    roots = [tmp_path_factory.getbasetemp()]
    async with Pool(tmp_path_factory.mktemp("work"), size=1, warm=1, readable=[], writable=roots) as started:
        await at_rest(started)
        yield started


async def rows(pool: Pool, job: Job) -> list[dict[str, object]]:
    async with pool.run(job) as result:
        parts = [bytes(frame.payload) async for frame in result]
    with pa.ipc.open_stream(b"".join((result.schema, *parts))) as reader:
        return reader.read_all().to_pylist()


async def at_rest(pool: Pool) -> Worker:
    """The worker, once it has cleaned up after its last job."""
    async with asyncio.timeout(20):
        while not pool._idle:
            await asyncio.sleep(0.01)
    return pool._idle[0]


async def opened_ahead(pool: Pool, *, expected: int) -> list[Path]:
    """The folders of engines that are opened ahead, once there are as many as expected."""
    worker = await at_rest(pool)
    async with asyncio.timeout(20):
        while len(found := list(worker.folder.glob("ahead-*"))) != expected:
            await asyncio.sleep(0.01)
    return found


async def test_the_second_of_its_kind_opens_an_engine_for_the_third(pool: Pool, numbers: Relation) -> None:
    job = Job(relations={"t": numbers}, sql="SELECT count(*) AS n FROM t")
    for expected in (0, 1):
        assert await rows(pool, job) == [{"n": data.ROWS}]
        await opened_ahead(pool, expected=expected)
    (first,) = await opened_ahead(pool, expected=1)
    assert await rows(pool, job) == [{"n": data.ROWS}]
    while (await opened_ahead(pool, expected=1)) == [first]:
        await asyncio.sleep(0.01)  # used, and replaced by the next


@pytest.mark.parametrize("change", ["times", "replaced", "gone"])
async def test_a_file_that_changes_under_an_engine_opened_ahead_is_refused(
    pool: Pool, tmp_path: Path, change: str
) -> None:
    path = data.parquet(tmp_path / "moving.parquet", 1000)
    job = Job(relations={"t": data.relation("parquet", path, tmp_path)}, sql="SELECT count(*) AS n FROM t")
    for _ in range(2):
        await rows(pool, job)
    await opened_ahead(pool, expected=1)
    match change:
        case "times":
            os.utime(path, ns=(1, 1))
        case "replaced":
            data.parquet(tmp_path / "other.parquet", 1000).replace(path)
        case "gone":
            path.unlink()
    with pytest.raises(VersionChanged):
        await rows(pool, job)


async def test_an_engine_opened_ahead_is_for_the_same_data_and_limits_only(
    pool: Pool, numbers: Relation, tmp_path: Path
) -> None:
    other = data.relation("parquet", data.parquet(tmp_path / "other.parquet", 7), tmp_path)
    job = Job(relations={"t": numbers}, sql="SELECT count(*) AS n FROM t")
    for asked, found in (
        (Job(relations={"t": other}, sql=job.sql), 7),
        (Job(relations={"t": numbers}, sql=job.sql, limits=Limits(memory_mb=100)), data.ROWS),
        (Job(relations={"t": numbers, "u": other}, sql="SELECT count(*) AS n FROM u"), 7),
    ):
        for _ in range(2):
            await rows(pool, job)
        await opened_ahead(pool, expected=1)
        assert await rows(pool, asked) == [{"n": found}]
    for _ in range(2):
        await rows(pool, job)
    await opened_ahead(pool, expected=1)
    with pytest.raises(QueryInvalid):
        await rows(pool, Job(relations={"u": other}, sql="SELECT count(*) FROM t"))


async def test_jobs_with_keys_of_their_own_share_what_was_opened(pool: Pool, numbers: Relation) -> None:
    for key in (3, 5, 8):
        sink = pa.BufferOutputStream()
        keys = pa.table({"id": [key]})
        with pa.ipc.new_stream(sink, keys.schema) as writer:
            writer.write_table(keys)
        job = Job(
            relations={"t": numbers, "k": Relation("", blob=0)},
            sql="SELECT t.id FROM t JOIN k USING (id)",
            blobs=(sink.getvalue().to_pybytes(),),
        )
        assert await rows(pool, job) == [{"id": key}]


async def test_memory_is_shared_again_once_no_reader_holds_it(pool: Pool, numbers: Relation) -> None:
    job = Job(relations={"t": numbers}, sql="SELECT * FROM t")
    rings, held = [], []
    for keep in (False, True, False):
        async with pool.run(job) as result:
            frames: list[Frame] = [frame async for frame in result]
            rings.append(result.ring)
        if keep:
            held = [(frames[0], bytes(frames[0].payload))]
        del frames
        await at_rest(pool)
    assert rings[0] is rings[1] is not rings[2]
    for frame, was in held:
        assert bytes(frame.payload) == was  # nobody has written over it
