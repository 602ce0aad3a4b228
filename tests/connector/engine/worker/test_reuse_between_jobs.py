"""What a worker keeps for its next job: shared memory, and the engine with its files for who asks again."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import pytest_asyncio

from connector.engine.pool.pool import Pool
from connector.engine.pool.protocol import HELD, IN_PLACE, LOADED, Job, Limits, Relation
from connector.engine.pool.worker_process import Frame, WorkerProcess
from connector.errors import QueryInvalid, VersionChanged
from tests.support import data, workers

MANY = 2 * data.ROWS
DISK = Limits(temp_mb=64)  # of an engine that reads no files, its folder is for this

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(loop_scope="module")
async def pool(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Pool]:
    """One worker, so that each job meets what the last one left, and nothing of another test."""
    roots = [tmp_path_factory.getbasetemp()]
    with workers.patient():
        async with Pool(tmp_path_factory.mktemp("work"), size=1, warm=1, readable=[], writable=roots) as started:
            await at_rest(started)
            yield started


@pytest.fixture(scope="module")
def many(folder: Path) -> Relation:
    return data.relation("parquet", data.parquet(folder / "many.parquet", MANY), folder)


async def rows(pool: Pool, job: Job) -> list[dict[str, object]]:
    async with pool.run(job) as result:
        parts = [bytes(frame.payload) async for frame in result]
    with pa.ipc.open_stream(b"".join((result.schema, *parts))) as reader:
        return reader.read_all().to_pylist()


async def at_rest(pool: Pool) -> WorkerProcess:
    """The worker, once it has cleaned up after its last job."""
    async with asyncio.timeout(60):
        while not pool._idle:
            await asyncio.sleep(0.01)
    return pool._idle[0]


async def kept(pool: Pool) -> list[str]:
    """The folders of engines that wait for their next job."""
    return sorted(path.name for path in (await at_rest(pool)).folder.glob("job-*"))


async def test_the_next_of_its_kind_finds_the_engine_of_the_last(pool: Pool, numbers: Relation) -> None:
    used = []
    for name in ("t", "r_1", "T"):
        job = Job(relations={name: numbers}, sql=f'SELECT count(*) AS n FROM "{name}"', consumer="lab")
        assert await rows(pool, job) == [{"n": data.ROWS}]
        used.append(await kept(pool))
    assert used == [used[0]] * 3
    assert len(used[0]) == 1
    with pytest.raises(QueryInvalid):  # the names of the jobs before are gone
        await rows(pool, Job(relations={"u": numbers}, sql='SELECT * FROM "T"', consumer="lab"))
    assert await kept(pool) == []  # a job that fails leaves nothing


async def test_a_worker_that_rests_lets_go_of_what_it_kept(tmp_path: Path, folder: Path, numbers: Relation) -> None:
    with workers.resting(1.0):
        async with Pool(tmp_path, size=1, warm=1, readable=[folder]) as pool:
            await rows(pool, Job(relations={"t": numbers}, sql="SELECT count(*) AS n FROM t"))
            async with asyncio.timeout(60):
                while await kept(pool):
                    await asyncio.sleep(0.05)


@pytest.mark.parametrize("change", ["times", "replaced", "gone"])
async def test_a_file_that_changes_under_a_kept_engine_is_refused(pool: Pool, tmp_path: Path, change: str) -> None:
    path = data.parquet(tmp_path / "moving.parquet", 1000)
    job = Job(relations={"t": data.relation("parquet", path, tmp_path)}, sql="SELECT count(*) AS n FROM t")
    await rows(pool, job)
    assert await kept(pool)
    match change:
        case "times":
            os.utime(path, ns=(1, 1))
        case "replaced":
            data.parquet(tmp_path / "other.parquet", 1000).replace(path)
        case "gone":
            path.unlink()
    with pytest.raises(VersionChanged):
        await rows(pool, job)


DIFFERENT: dict[str, dict[str, Any]] = {
    "consumer": {"consumer": "another"},
    "memory": {"limits": Limits(memory_mb=100)},
    "disk": {"limits": Limits(temp_mb=64)},
    "threads": {"limits": Limits(threads=2)},
}


@pytest.mark.parametrize("different", DIFFERENT)
async def test_an_engine_is_kept_for_the_same_consumer_data_and_limits_only(
    pool: Pool, numbers: Relation, different: str
) -> None:
    job = Job(relations={"t": numbers}, sql="SELECT count(*) AS n FROM t", consumer="lab")
    await rows(pool, job)
    (first,) = await kept(pool)
    assert await rows(pool, replace(job, **DIFFERENT[different])) == [{"n": data.ROWS}]
    assert first in await kept(pool)
    assert len(await kept(pool)) == 2


async def test_no_more_engines_are_kept_than_a_few(pool: Pool, numbers: Relation) -> None:
    for number in range(7):
        await rows(pool, Job(relations={"t": numbers}, sql="SELECT id FROM t LIMIT 1", consumer=f"lab {number}"))
    assert 1 <= len(await kept(pool)) <= 3


async def test_other_data_is_not_there(pool: Pool, numbers: Relation, tmp_path: Path) -> None:
    other = data.relation("parquet", data.parquet(tmp_path / "other.parquet", 7), tmp_path)
    job = Job(relations={"t": numbers}, sql="SELECT count(*) AS n FROM t")
    for asked, found in ((other, 7), (numbers, data.ROWS), (other, 7)):
        assert await rows(pool, replace(job, relations={"t": asked})) == [{"n": found}]


async def test_the_names_of_one_job_are_those_of_no_other_even_exchanged(
    pool: Pool, numbers: Relation, tmp_path: Path
) -> None:
    other = data.relation("parquet", data.parquet(tmp_path / "other.parquet", 7), tmp_path)
    for first, second in (("a", "b"), ("b", "a"), ("c", "d"), ("d", "e")):
        relations = {first: numbers, second: other}
        sql = f"SELECT (SELECT count(*) FROM {first}) AS many, (SELECT count(*) FROM {second}) AS few"
        assert await rows(pool, Job(relations=relations, sql=sql)) == [{"many": data.ROWS, "few": 7}]


async def test_an_arrow_file_is_kept_under_the_next_name(pool: Pool, tmp_path: Path) -> None:
    path = tmp_path / "numbers.arrow"
    with pa.ipc.new_file(path, data.table(50).schema) as writer:
        writer.write_table(data.table(50))
    for name in ("t", "u", "v"):
        job = Job(relations={name: data.relation("arrow_ipc", path, tmp_path)}, sql=f"SELECT count(*) AS n FROM {name}")
        assert await rows(pool, job) == [{"n": 50}]
        assert len(await kept(pool)) == 1


def answers(path: Path, rows: int, *, taken: str) -> Relation:
    """Numbers that only one job reads."""
    return data.once(path, pa.table({"id": range(rows)}), taken=taken)


@pytest.mark.parametrize("taken", [IN_PLACE, HELD, LOADED])
async def test_files_that_are_read_once_go_and_their_engine_stays(pool: Pool, tmp_path: Path, taken: str) -> None:
    used = []
    for number, names in enumerate(("ab", "bc", "a")):
        relations = {name: answers(tmp_path / f"{name}{number}", 10 + number, taken=taken) for name in names}
        sql = " UNION ALL ".join(f"SELECT count(*) AS n FROM {name}" for name in names)
        job = Job(relations=relations, sql=sql, once=True, limits=DISK)
        assert await rows(pool, job) == [{"n": 10 + number}] * len(names)
        used.append(await kept(pool))
    assert used == [used[0]] * 3
    assert len(used[0]) == 1
    with pytest.raises(QueryInvalid):
        await rows(pool, Job(relations={"a": relations["a"]}, sql="SELECT * FROM b", once=True, limits=DISK))
    assert await kept(pool) == []


@pytest.mark.parametrize(("taken", "rows_there"), [(LOADED, 5_000_000), (HELD, 3_000_000)])  # 40 MB, 24 MB
async def test_what_was_taken_in_for_one_job_takes_no_memory_from_the_next(
    pool: Pool, tmp_path: Path, taken: str, rows_there: int
) -> None:
    relation = answers(tmp_path / "many", rows_there, taken=taken)
    job = Job(relations={"t": relation}, sql="SELECT max(id) AS m FROM t", limits=Limits(memory_mb=70), once=True)
    for _ in range(6):
        assert await rows(pool, job) == [{"m": rows_there - 1}]


async def test_what_ended_early_leaves_no_engine(pool: Pool, numbers: Relation) -> None:
    sql = "SELECT a.id FROM t a, t b, t c"
    async with pool.run(Job(relations={"t": numbers}, sql=sql, consumer="leaves")) as result:
        await anext(result)
    assert await kept(pool) == []


async def test_jobs_with_keys_of_their_own_share_what_was_opened(pool: Pool, numbers: Relation) -> None:
    for key in (3, 5, 8):
        job = Job(
            relations={"t": numbers, "k": Relation("", blob=0)},
            sql="SELECT t.id FROM t JOIN k USING (id)",
            blobs=(data.stream(pa.table({"id": [key]})),),
        )
        assert await rows(pool, job) == [{"id": key}]
        assert len(await kept(pool)) == 1


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


async def test_engines_kept_for_others_take_no_memory_from_a_statement(pool: Pool, many: Relation) -> None:
    limits = Limits(memory_mb=128, threads=4, temp_mb=1024)
    for number in range(4):
        asked = Job(
            relations={"t": many}, sql="SELECT * FROM t", limits=replace(limits, temp_mb=0), consumer=f"{number}"
        )
        async with pool.run(asked) as result:
            assert sum([frame.rows async for frame in result]) == MANY
    assert await kept(pool)
    tight = (
        "SELECT a.id * 50 + b.id AS k, row_number() OVER (PARTITION BY a.name ORDER BY a.x) AS n "
        "FROM t a, (SELECT id FROM t WHERE id < 6) b"
    )
    async with pool.run(Job(relations={"t": many}, sql=tight, limits=limits, consumer="lab")) as result:
        assert sum([frame.rows async for frame in result]) == 6 * MANY
