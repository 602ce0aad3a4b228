"""Real worker processes over real files: what they give, what stops them, and what never comes out."""

from __future__ import annotations

import asyncio
import hashlib
import os
import select
import signal
import socket
import threading
import time
from contextlib import AsyncExitStack, suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple, cast

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import xxhash

from connector.dataplane.job_builder import _choose_scan_mb
from connector.engine.pool import pool as pools
from connector.engine.pool import protocol as wire
from connector.engine.pool import shared_memory
from connector.engine.pool.pool import Pool
from connector.engine.pool.protocol import HELD, IN_PLACE, LOADED, Job, Limits, Range, Ranges, Recheck, Relation
from connector.engine.pool.worker_process import Result, WorkerProcess
from connector.engine.worker.read.job_files import readers
from connector.errors import ConnectorError, EngineFailed, Limited, QueryInvalid, Unavailable, VersionChanged
from tests.support import data
from tests.support.clocks import hands
from tests.support.own_name import changed
from tests.support.waiting import removed_by, until

pytestmark = pytest.mark.asyncio(loop_scope="module")

RUNAWAY = "SELECT count(*) FROM t a, t b, t c WHERE a.x < b.x AND b.x < c.x"


async def read(pool: Pool, job: Job) -> tuple[pa.Table, Result]:
    """The answer as a plain reader sees it."""
    parts = []
    async with pool.run(job) as result:
        async for frame in result:
            assert frame.nbytes == len(frame.payload)
            parts.append(bytes(frame.payload))
    with pa.ipc.open_stream(b"".join((result.schema, *parts))) as reader:
        return reader.read_all(), result


async def test_stream_equals_the_file_and_its_totals(pool: Pool, numbers: Relation) -> None:
    table, result = await read(pool, Job(relations={"t": numbers}, sql="SELECT * FROM t"))
    assert table.equals(data.table().cast(table.schema))
    assert result.totals["rows"] == data.ROWS
    assert result.totals["batches"] > 1


async def test_of_a_relation_that_is_taken_in_the_engine_knows_the_rows(pool: Pool, folder: Path) -> None:
    table = data.table(20_000)
    for taken in (IN_PLACE, HELD, LOADED):
        relations = {"f0.a": data.once(folder / "taken", table, taken=taken)}
        found, _ = await read(pool, Job(relations=relations, sql='SELECT * FROM "f0.a"', once=True))
        assert found.equals(table.cast(found.schema))
        explained = Job(kind="report", relations=relations, sql='EXPLAIN SELECT * FROM "f0.a"', once=True)
        plan = await pool.ask(explained)
        assert ("20,000 rows" in plan["rows"][0][1]) is (taken != IN_PLACE)


async def test_a_stream_that_is_read_in_place_is_read_by_each_scan_with_what_it_needs(pool: Pool, folder: Path) -> None:
    table = data.table(20_000)
    relations = {"f0": data.once(folder / "scanned", table)}
    sql = """SELECT a.x, (SELECT max(b.name) FROM f0 b WHERE b.day < DATE '1970-02-01') AS name
             FROM f0 a WHERE a.gap = 3 AND a.id >= 19000 ORDER BY a.id DESC"""
    found, _ = await read(pool, Job(relations=relations, sql=sql, once=True))
    expected = duckdb.connect().sql(sql.replace("f0", '"table"')).to_arrow_table()
    assert len(found) > 10
    assert found.equals(expected.cast(found.schema))


@pytest.mark.parametrize("taken", [IN_PLACE, HELD])
async def test_columns_of_several_types_are_read_from_arrow(pool: Pool, folder: Path, taken: str) -> None:
    sql = "SELECT i AS k, i::UNION(n BIGINT, s VARCHAR) AS u, [i::UNION(n BIGINT, s VARCHAR)] AS l FROM range(10) r(i)"
    relations = {"f0": data.once(folder / "unions", duckdb.connect().sql(sql).to_arrow_table(), taken=taken)}
    found, _ = await read(pool, Job(relations=relations, sql="SELECT k, u FROM f0 WHERE k > 6", once=True))
    assert found["u"].to_pylist() == [7, 8, 9]


async def test_a_worker_that_cleans_up_after_its_job_is_waited_for(tmp_path: Path, numbers: Relation) -> None:
    async with Pool(tmp_path, size=2, warm=1) as pool:
        await until(lambda: pool._idle)
        for _ in range(5):  # the next job comes while the worker has not closed the socket of the one before
            await pool.ask(Job(kind="report", relations={"t": numbers}, sql="SELECT count(*) FROM t"))
            await read(pool, Job(relations={"t": numbers}, sql="SELECT id FROM t WHERE id < 5"))
        assert pool.processes == 1


async def test_a_worker_that_is_free_before_a_new_one_has_started_is_taken(
    tmp_path: Path, numbers: Relation, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = Job(relations={"t": numbers}, sql="SELECT id FROM t")
    async with Pool(tmp_path, size=2, warm=1) as pool:
        await until(lambda: len(pool._idle) == 1)
        only, start, started = pool._idle[0], asyncio.Event(), pool._start_worker

        async def late() -> WorkerProcess:
            await start.wait()
            return await started()

        monkeypatch.setattr(pool, "_start_worker", late)
        async with pool.run(job):
            waiting = asyncio.ensure_future(read(pool, job))
            await until(lambda: pool.processes == 2)
            assert not waiting.done()
        _, result = await asyncio.wait_for(waiting, 60)
        assert result._worker is only
        start.set()
        await until(lambda: len(pool._idle) == 2)


async def test_nobody_waits_while_what_a_worker_has_left_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Pool(tmp_path, size=1, warm=1) as pool:
        await until(lambda: pool._idle)
        folder, by = pool._idle[0].folder, removed_by(monkeypatch, pools)
    assert by
    assert threading.main_thread() not in by
    assert not folder.exists()


async def test_of_a_worker_that_does_not_start_whoever_waits_is_told_and_the_next_one_may(
    tmp_path: Path, numbers: Relation, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = Job(relations={"t": numbers}, sql="SELECT id FROM t")
    async with Pool(tmp_path, size=1, warm=0) as pool:
        monkeypatch.setattr(pool, "_allowed", "not what a worker understands")
        with pytest.raises(Unavailable, match="expected a query worker to start"):
            await read(pool, job)
        assert pool.processes == 0
        monkeypatch.setattr(pool, "_allowed", "null")
        table, _ = await read(pool, job)
        assert len(table) == data.ROWS


async def test_whoever_waits_for_one_that_starts_anyway_starts_no_other(
    tmp_path: Path, numbers: Relation, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool, start = Pool(tmp_path, size=3, warm=1), asyncio.Event()
    started = pool._start_worker

    async def late() -> WorkerProcess:
        await start.wait()
        return await started()

    monkeypatch.setattr(pool, "_start_worker", late)
    async with pool:
        await until(lambda: pool.processes == 1)
        job = Job(relations={"t": numbers}, sql="SELECT id FROM t")
        one, two = (asyncio.ensure_future(read(pool, job)) for _ in range(2))
        await until(lambda: pool.processes == 2)
        await asyncio.sleep(0)
        assert (pool.processes, len(pool._takers)) == (2, 2)
        start.set()
        await asyncio.gather(one, two)


async def cleaning(pool: Pool, job: Job, monkeypatch: pytest.MonkeyPatch) -> tuple[WorkerProcess, asyncio.Event]:
    """A worker whose job has ended by itself, and that cleans up until it is told that it has."""
    clean = asyncio.Event()
    async with pool.run(job) as result:
        assert [frame async for frame in result]
        settle = result.settle

        async def slowly() -> None:
            await clean.wait()
            await settle()

        monkeypatch.setattr(result, "settle", slowly)
    return result._worker, clean


async def test_whoever_waited_for_a_worker_that_others_go_on_with_has_another(
    tmp_path: Path, numbers: Relation, monkeypatch: pytest.MonkeyPatch
) -> None:
    scan = Job(relations={"t": numbers}, sql="SELECT * FROM t", scan="t", shared=True)
    async with Pool(tmp_path, size=2, warm=1) as pool:
        await until(lambda: pool._idle)
        worker, clean = await cleaning(pool, scan, monkeypatch)
        waiting = asyncio.ensure_future(read(pool, Job(relations={"t": numbers}, sql="SELECT id FROM t")))
        await until(lambda: pool._takers)
        assert pool.processes == 1
        async with pool.run(scan) as other:
            assert other._worker is worker
            clean.set()
            await asyncio.wait_for(waiting, 60)


async def test_whoever_waited_for_a_worker_that_is_not_fit_any_more_has_another(
    tmp_path: Path, numbers: Relation, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = Job(relations={"t": numbers}, sql="SELECT id FROM t")
    async with Pool(tmp_path, size=2, warm=0) as pool:
        worker, clean = await cleaning(pool, job, monkeypatch)
        monkeypatch.setattr(WorkerProcess, "worn", property(lambda one: one is worker))
        waiting = asyncio.ensure_future(read(pool, job))
        await until(lambda: pool._takers)
        clean.set()
        _, result = await asyncio.wait_for(waiting, 60)
        assert worker.killed
        assert result._worker is not worker


async def test_whoever_waits_for_a_worker_that_cleans_up_is_told_that_the_pool_closes(
    tmp_path: Path, numbers: Relation, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = Job(relations={"t": numbers}, sql="SELECT id FROM t")
    async with Pool(tmp_path, size=2, warm=0) as pool:
        await cleaning(pool, job, monkeypatch)
        waiting = asyncio.ensure_future(read(pool, job))
        await until(lambda: pool._takers)
    with pytest.raises(Unavailable, match="stopping"):
        await asyncio.wait_for(waiting, 60)
    assert pool.processes == 0


async def test_whoever_waits_is_told_that_the_pool_closes(
    tmp_path: Path, numbers: Relation, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = Job(relations={"t": numbers}, sql="SELECT id FROM t")
    for size, warm in ((2, 1), (2, 0), (1, 0)):
        pool = Pool(tmp_path / f"{size}{warm}", size=size, warm=warm)
        never = asyncio.Event()
        monkeypatch.setattr(pool, "_start_worker", never.wait)
        await pool.start()
        jobs = [asyncio.ensure_future(read(pool, job)) for _ in range(4)]
        await until(lambda: len(pool._takers) == pool._size)  # noqa: B023  of this round
        await pool.close()
        found = await asyncio.wait_for(asyncio.gather(*jobs, return_exceptions=True), 60)
        assert [str(one) for one in found] == ["the connector is stopping; try again later"] * 4
        assert (pool.processes, pool._takers) == (0, [])


@pytest.mark.parametrize(
    ("failure", "said"),
    [
        (OSError(24, "Too many open files", "/somewhere"), r"\(Too many open files\)$"),
        (MemoryError(), r"\(no memory\)$"),
    ],
)
async def test_a_start_that_fails_ends_nothing_else(
    tmp_path: Path, numbers: Relation, monkeypatch: pytest.MonkeyPatch, failure: Exception, said: str
) -> None:
    job = Job(relations={"t": numbers}, sql="SELECT id FROM t")
    async with Pool(tmp_path, size=2, warm=1, idle_seconds=0.2) as pool:
        await until(lambda: pool._idle)
        (watch,) = (task for task in pool._tasks if "_reap" in repr(task.get_coro()))
        tried: list[object] = []

        async def fails(*_: object, **__: object) -> None:
            tried.append(failure)
            raise failure

        with monkeypatch.context() as patched:
            patched.setattr(pools, "asyncio", changed(asyncio, create_subprocess_exec=fails))
            pool._idle[0].kill("worker_crashed")
            await until(lambda: len(tried) > 2)
            with pytest.raises(Unavailable, match=f"to start, it did not.*{said}"):
                await read(pool, job)
        assert not watch.done()
        assert len((await read(pool, job))[0]) == data.ROWS
        await until(lambda: len([*tmp_path.glob("worker-*")]) == pool.processes)


@pytest.mark.parametrize("fails", ["socketpair", "memfd_create"])
async def test_a_job_for_which_there_are_no_descriptors_costs_nobody_a_worker(
    tmp_path: Path, numbers: Relation, monkeypatch: pytest.MonkeyPatch, fails: str
) -> None:
    job = Job(relations={"t": numbers}, sql="SELECT id FROM t")

    def full(*_: object) -> None:
        raise OSError(24, "Too many open files")

    def lack(patched: pytest.MonkeyPatch) -> None:
        if fails == "socketpair":
            patched.setattr(pools, "socket", changed(socket, socketpair=full))
        else:
            patched.setattr(shared_memory, "os", changed(os, memfd_create=full))

    async with Pool(tmp_path, size=1, warm=1, wait_seconds=5) as pool:
        await until(lambda: pool._idle)
        (worker,) = pool._idle
        with monkeypatch.context() as patched:
            lack(patched)
            for _ in range(2):
                with pytest.raises(Unavailable, match=r"open more files \(Too many open files\)$"):
                    await read(pool, job)
        async with pool.run(replace(job, shared=True)) as result:
            with monkeypatch.context() as patched:
                lack(patched)
                with pytest.raises(Unavailable, match="open more files"):
                    await read(pool, replace(job, shared=True))
            assert len([frame async for frame in result]) > 0
        assert len((await read(pool, job))[0]) == data.ROWS
        await until(lambda: pool._idle == [worker])


@pytest.mark.parametrize(
    ("own", "mapped", "worn"), [(189, 0, False), (381, 352, False), (382, 0, True), (60, 353, True)]
)
async def test_a_worker_is_worn_by_more_than_what_the_next_job_takes_again(
    monkeypatch: pytest.MonkeyPatch, own: int, mapped: int, worn: bool
) -> None:
    monkeypatch.setattr(WorkerProcess, "own_mb", lambda _: own)
    monkeypatch.setattr(WorkerProcess, "mapped_mb", lambda _: mapped)
    assert WorkerProcess(*cast("Any", [None] * 3)).worn is worn


async def test_there_are_never_more_processes_than_may_be_also_where_several_end_at_once(
    tmp_path: Path, numbers: Relation
) -> None:
    async with Pool(tmp_path, size=2, warm=2) as pool:
        for _ in range(2):
            await until(lambda: len(pool._idle) >= 2)
            for worker in pool._idle:
                worker.kill("worker_crashed")
            job = Job(relations={"t": numbers}, sql="SELECT id FROM t LIMIT 1")
            jobs = [asyncio.ensure_future(read(pool, job)) for _ in range(3)]
            while not all(one.done() for one in jobs):
                assert pool.processes <= 2
                await asyncio.sleep(0.01)
            await asyncio.gather(*jobs, return_exceptions=True)
            await asyncio.gather(*(one for one in pool._tasks if "_end" in str(one.get_coro())))
            assert len(pool._idle) <= 2


async def test_parameters_are_bound_by_place_and_by_name(pool: Pool, numbers: Relation) -> None:
    for sql, params in (
        ("SELECT id FROM t WHERE id < $1 AND name = $2", [200, "name-3"]),
        ("SELECT id FROM t WHERE id < $most AND name = $name", {"most": 200, "name": "name-3"}),
    ):
        table, _ = await read(pool, Job(relations={"t": numbers}, sql=sql, params=params))
        assert table["id"].to_pylist() == [3, 100, 197]


async def test_empty_answer_has_a_schema_and_totals(pool: Pool, numbers: Relation) -> None:
    table, result = await read(pool, Job(relations={"t": numbers}, sql="SELECT id, name FROM t WHERE id < 0"))
    assert table.schema.names == ["id", "name"]
    assert result.totals == {"rows": 0, "batches": 0, "bytes": 0}


async def test_batches_are_near_the_target_size(pool: Pool, numbers: Relation) -> None:
    async with pool.run(Job(relations={"t": numbers}, sql="SELECT * FROM t", batch_bytes=2**19)) as result:
        sizes = [frame.nbytes async for frame in result]
    assert max(sizes) <= 2 * 2**19
    assert sum(sizes) / len(sizes) >= 2**17


@pytest.mark.parametrize("codec", ["lz4", "zstd"])
async def test_compressed_batches_say_the_same(pool: Pool, numbers: Relation, codec: str) -> None:
    job = Job(relations={"t": numbers}, sql="SELECT id, x FROM t", codec=codec)
    table, result = await read(pool, job)
    assert table.num_rows == data.ROWS
    assert result.totals["bytes"] < table.nbytes


@pytest.mark.parametrize("name", ["xxh3", "sha256", "none"])
async def test_digest_covers_every_message_in_order(pool: Pool, numbers: Relation, name: str) -> None:
    async with pool.run(Job(relations={"t": numbers}, sql="SELECT * FROM t", digest=name)) as result:
        seen = [result.schema, *[bytes(frame.payload) async for frame in result]]
    whole = b"".join(seen)
    expected = {"xxh3": xxhash.xxh3_128(whole).digest(), "sha256": hashlib.sha256(whole).digest(), "none": b""}
    assert result.digest == expected[name]


async def test_trailer_is_a_batch_of_no_rows_with_room_for_the_end_record(pool: Pool, numbers: Relation) -> None:
    async with pool.run(Job(relations={"t": numbers}, sql="SELECT * FROM t WHERE id < 5")) as result:
        parts = [bytes(frame.payload) async for frame in result]
    with pa.ipc.open_stream(b"".join((result.schema, *parts, result.trailer))) as reader:
        reader.read_next_batch()
        batch, metadata = reader.read_next_batch_with_custom_metadata()
    assert batch.num_rows == 0
    assert metadata["hanse.end"].isspace()


async def test_keys_travel_as_arrow(pool: Pool, numbers: Relation) -> None:
    job = Job(
        relations={"t": numbers, "keys": Relation("", blob=0)},
        sql="SELECT id FROM t WHERE id IN (SELECT k FROM keys) ORDER BY id",
        blobs=(data.stream(pa.table({"k": [5, 50, 500_000_000]})),),
    )
    table, _ = await read(pool, job)
    assert table["id"].to_pylist() == [5, 50]


async def test_damaged_keys_are_a_coded_error(pool: Pool, numbers: Relation) -> None:
    job = Job(
        relations={"t": numbers, "keys": Relation("", blob=0)}, sql="SELECT 1", blobs=(b"\xff\xff\xff\xff\x10" * 9,)
    )
    with pytest.raises(ConnectorError) as raised:
        await read(pool, job)
    assert raised.value.code == "arrow_invalid"


@pytest.mark.parametrize(
    ("sql", "code"),
    [
        ("SELECT nope FROM t", "query_invalid"),
        ("SELEC", "query_invalid"),
        ("SELECT CAST(name AS INTEGER) FROM t", "computation_failed"),
        ("SELECT CAST('2020-13-45' AS DATE), name FROM t", "computation_failed"),
        ("SELECT id * 9223372036854775807 FROM t", "computation_failed"),
        ("SELECT 1 // (id - 5) FROM t", "computation_failed"),
        ("SELECT (SELECT id FROM t) FROM t", "computation_failed"),
        ("SELECT ntile(id - 5) OVER () FROM t", "computation_failed"),
        ("SELECT count(*) FROM t WHERE name = 5", "computation_failed"),
        ("SELECT error(name) FROM t", "engine_failed"),
        ("SELECT * FROM read_text('/etc/passwd')", "query_invalid"),
        ("SELECT * FROM '/etc/passwd'", "query_invalid"),
        ("SELECT * FROM glob('/*')", "query_invalid"),
        ("COPY (SELECT 1) TO '/tmp/hanse-out.csv'", "query_invalid"),
        ("ATTACH '/tmp/hanse-out.db'", "query_invalid"),
        ("SET threads = 8", "engine_failed"),
        ("SELECT * FROM relations", "query_invalid"),
        ("INSTALL httpfs", "query_invalid"),
    ],
)
async def test_errors_leave_as_codes_without_the_engines_words(
    pool: Pool, numbers: Relation, sql: str, code: str
) -> None:
    with pytest.raises(ConnectorError) as raised:
        await read(pool, Job(relations={"t": numbers}, sql=sql))
    told = str(raised.value.problem())
    assert not any(word in told for word in ("name-", "passwd", "LINE", "Error:", "numbers.parquet", "2020-13"))
    assert raised.value.code == code


@pytest.mark.parametrize("moment", ["'9999-12-31'", "TIMESTAMP '1600-01-01 00:00:00'"])
async def test_a_time_that_its_column_cannot_hold_is_told_in_words(pool: Pool, folder: Path, moment: str) -> None:
    path = folder / "nanoseconds.parquet"
    pq.write_table(pa.table({"w": pa.array([0, None, 10**18], pa.timestamp("ns"))}), path)
    sql, relations = f"SELECT w FROM t WHERE w < {moment}", {"t": data.relation("parquet", path, folder)}
    with pytest.raises(QueryInvalid, match="its column cannot hold") as raised:
        await read(pool, Job(relations=relations, sql=sql))
    assert raised.value.code == "computation_failed"


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT CAST(name AS INTEGER) AS rows FROM t",
        "SELECT sum(id * 9223372036854775807) AS rows FROM t",
        "SELECT error(name) AS rows FROM t",
    ],
)
async def test_an_error_on_the_way_to_noise_is_like_any_other(pool: Pool, numbers: Relation, sql: str) -> None:
    noise = {"columns": {"rows": 1}, "keys": False, "rows": 1, "epsilon": 1.0, "delta": 1e-6}
    with pytest.raises(ConnectorError) as raised:
        await read(pool, Job(relations={"t": numbers}, sql=sql, noise=noise))
    assert raised.value.code == "noise_failed"


async def test_rows_and_bytes_limits_end_the_answer(pool: Pool, numbers: Relation) -> None:
    for limits, code in ((Limits(rows=1000), "rows_limit"), (Limits(bytes=10_000), "bytes_limit")):
        with pytest.raises(Limited) as raised:
            await read(pool, Job(relations={"t": numbers}, sql="SELECT * FROM t", limits=limits))
        assert raised.value.code == code


async def test_others_go_on_beside_a_runaway_which_its_limit_ends(pool: Pool, numbers: Relation) -> None:
    """How soon, and with how much memory: tests/connector/engine/test_resource_limits.py, over many of its kind."""
    runaway = asyncio.ensure_future(read(pool, Job(relations={"t": numbers}, sql=RUNAWAY, consumer="a")))
    for _ in range(5):
        table, _ = await read(pool, Job(relations={"t": numbers}, sql="SELECT count(*) AS n FROM t"))
        assert table["n"].to_pylist() == [data.ROWS]
    assert not runaway.done()
    runaway.cancel()
    with pytest.raises(asyncio.CancelledError):
        await runaway
    with pytest.raises(Limited) as raised:
        await read(pool, Job(relations={"t": numbers}, sql=RUNAWAY, limits=Limits(seconds=0.3), consumer="a"))
    assert raised.value.code == "time_limit"


async def test_crash_of_a_worker_costs_its_own_job_only(pool: Pool, numbers: Relation) -> None:
    async with pool.run(Job(relations={"t": numbers}, sql="SELECT * FROM t", batch_bytes=2**18)) as safe:
        first = await anext(safe)
        runaway = asyncio.ensure_future(read(pool, Job(relations={"t": numbers}, sql=RUNAWAY)))
        await until(lambda: len(pool._busy) >= 2)
        (other,) = pool._busy - {safe._worker}
        os.kill(other.process.pid, signal.SIGSEGV)
        with pytest.raises(EngineFailed) as raised:
            await runaway
        assert raised.value.code == "worker_crashed"
        assert first.rows + sum([frame.rows async for frame in safe]) == data.ROWS
    table, _ = await read(pool, Job(relations={"t": numbers}, sql="SELECT count(*) AS n FROM t"))
    assert table["n"].to_pylist() == [data.ROWS]


async def test_worker_killed_in_mid_stream_is_an_error_not_a_short_answer(pool: Pool, numbers: Relation) -> None:
    with pytest.raises(EngineFailed) as raised:  # noqa: PT012
        async with pool.run(Job(relations={"t": numbers}, sql="SELECT * FROM t", batch_bytes=2**17)) as result:
            await anext(result)
            os.kill(result._worker.process.pid, signal.SIGKILL)
            async for _ in result:
                pass
    assert raised.value.code == "worker_crashed"


async def test_a_reader_that_leaves_stops_the_work(
    pool: Pool, numbers: Relation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("connector.engine.pool.worker_process.GRACE", 60.0)
    async with pool.run(Job(relations={"t": numbers}, sql="SELECT a.* FROM t a, t b")) as result:
        await anext(result)
        worker = result._worker
    await until(lambda: worker not in pool._busy)
    assert worker.alive()  # it stopped by itself: what does not is killed, in this test after a minute


WAITING = {
    "a query": Job(sql="SELECT * FROM t"),
    "a scan": Job(sql="SELECT * FROM t", scan="t", shared=True),
    "ranges": Job(sql="SELECT * FROM t", scan="t", only=Ranges([Range(0, 0, 0, 1000)], "")),
}


@pytest.mark.parametrize("job", WAITING.values(), ids=WAITING.keys())
async def test_a_held_job_is_made_ready_and_gives_nothing_before_it_may(
    pool: Pool, numbers: Relation, job: Job
) -> None:
    after: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    job = replace(job, relations={"t": numbers})

    async def rows() -> int:
        async with pool.run(job, after=after) as result:
            return sum([frame.rows async for frame in result])

    await at_rest(pool)
    reading = asyncio.ensure_future(rows())
    channel = (await held(pool)).result._channel
    told = select.poll()
    told.register(channel, select.POLLIN)
    assert not await asyncio.to_thread(told.poll, 500)
    after.set_result(None)
    assert await reading == (1000 if job.only else data.ROWS)


async def test_a_held_job_that_may_not_work_never_does_and_costs_no_worker(pool: Pool, numbers: Relation) -> None:
    after: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def asked() -> None:
        async with pool.run(Job(relations={"t": numbers}, sql=RUNAWAY), after=after):
            raise AssertionError("nothing comes")

    await at_rest(pool)
    asking = asyncio.ensure_future(asked())
    worker = (await held(pool)).worker
    after.set_exception(Limited("no more", code="count_spent"))
    with pytest.raises(Limited) as raised:
        await asking
    assert raised.value.code == "count_spent"
    await until(lambda: worker not in pool._busy)
    assert worker.alive()


async def test_whoever_leaves_a_held_job_leaves_what_it_waits_for_alone(pool: Pool, numbers: Relation) -> None:
    after: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def asked() -> None:
        async with pool.run(Job(relations={"t": numbers}, sql="FROM t"), after=after):
            raise AssertionError("nothing comes")

    await at_rest(pool)
    asking = asyncio.ensure_future(asked())
    worker = (await held(pool)).worker
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    assert not after.cancelled()
    await until(lambda: worker not in pool._busy)
    assert worker.alive()


@pytest.mark.parametrize("size", range(205_000, 221_000, 2_000))
async def test_the_word_to_begin_is_not_lost_where_the_job_has_filled_its_socket(
    pool: Pool, numbers: Relation, size: int
) -> None:
    after: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    after.set_result(None)
    table = pa.table({"k": pa.array(range(size // 8), pa.int64())})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    relations = {"t": numbers, "k": Relation("", blob=0, columns=("k",))}
    job = Job(relations=relations, sql="SELECT count(*) FROM k", blobs=(sink.getvalue().to_pybytes(),))
    async with asyncio.timeout(50), pool.run(job, after=after) as result:
        assert sum([frame.rows async for frame in result]) == 1


async def test_what_is_refused_meanwhile_waits_for_no_worker(tmp_path: Path, numbers: Relation) -> None:
    """Nor is it told that all workers are busy: why it is refused is what counts."""
    after: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    after.set_exception(Limited("no more", code="count_spent"))
    async with (
        Pool(tmp_path, size=2, warm=1, wait_seconds=60.0) as small,
        small.run(Job(relations={"t": numbers}, sql="SELECT a.* FROM t a, t b")) as result,
    ):
        await anext(result)
        with pytest.raises(Limited):
            async with small.run(Job(relations={"t": numbers}, sql="FROM t"), after=after):
                raise AssertionError("nothing comes")
        assert small.processes == 1  # one is left for whoever comes next, so none was made ready


async def at_rest(pool: Pool) -> None:
    """Until more than one worker may be had: only then is a job made ready that may have to wait."""
    await until(lambda: pool._turns.has_spare)


class Holding(NamedTuple):
    worker: WorkerProcess
    result: Result


async def held(pool: Pool) -> Holding:
    """Where a held job waits, once it does; one that has ended and is not cleaned up yet is none."""
    while True:
        for worker in pool._busy:
            for result in worker.results:
                if result.job.held and not result.ended:
                    return Holding(worker, result)
        await asyncio.sleep(0.01)


async def test_a_slow_reader_slows_the_work(pool: Pool, numbers: Relation) -> None:
    async with pool.run(Job(relations={"t": numbers}, sql="SELECT a.* FROM t a, t b")) as result:
        await anext(result)
        pid = result._worker.process.pid
        ticks, before = cpu_ticks(pid), -2
        async with asyncio.timeout(60):  # work that goes on does not come to rest
            while ticks - before > 1:
                before = ticks
                await asyncio.sleep(0.3)
                ticks = cpu_ticks(pid)


async def test_waiting_readers_do_not_use_up_the_time(
    pool: Pool, numbers: Relation, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits = Limits(seconds=60.0, total_seconds=60.0)
    job = Job(relations={"t": numbers}, sql="SELECT * FROM t", limits=limits, batch_bytes=2**20)
    with hands() as clock, monkeypatch.context() as patch:
        patch.setattr("connector.engine.pool.worker_process.time", SimpleNamespace(monotonic=clock))
        async with pool.run(job) as result:
            await anext(result)
            await clock.go_on(600.0)
            assert sum([frame.rows async for frame in result]) > 0


async def test_too_many_waiting_jobs_are_turned_away(tmp_path: Path, numbers: Relation) -> None:
    async with Pool(tmp_path, size=1, warm=1, waiting=1, wait_seconds=60.0) as small:
        job = Job(relations={"t": numbers}, sql="SELECT a.* FROM t a, t b")
        async with small.run(job) as result:
            await anext(result)
            first = asyncio.ensure_future(read(small, job))
            while not small._turns.waiting:
                await asyncio.sleep(0)
            with pytest.raises(Unavailable) as raised:
                await read(small, job)
            assert raised.value.code == "queue_full"
            with hands() as clock:
                await clock.go_on(61.0)
            with pytest.raises(Unavailable) as raised:
                await first
            assert raised.value.code == "queue_timeout"


@pytest.fixture
def impatient(numbers: Relation, monkeypatch: pytest.MonkeyPatch) -> tuple[Job, Job]:
    """Jobs of one who asks for much and of another, who waits for a moment only."""
    monkeypatch.setattr("connector.engine.pool.pool._PATIENCE", 0.1)
    greedy = Job(relations={"t": numbers}, sql="SELECT a.* FROM t a, t b", consumer="greedy")
    return greedy, Job(relations={"t": numbers}, sql="SELECT 1 AS n FROM t", consumer="other")


async def asked_back(result: Result) -> None:
    """Its worker was taken from it, for another."""
    with pytest.raises(Unavailable) as raised:
        [frame async for frame in result]
    assert raised.value.code == "worker_wanted"


async def test_one_consumer_who_does_not_read_has_not_all_workers_while_another_waits(
    tmp_path: Path, impatient: tuple[Job, Job]
) -> None:
    greedy, other = impatient
    async with Pool(tmp_path, size=2, warm=2, wait_seconds=60.0) as small, AsyncExitStack() as open_:
        first = await open_.enter_async_context(small.run(greedy))
        await anext(first)
        last = await open_.enter_async_context(small.run(greedy))
        await anext(last)
        assert (await read(small, other))[0].num_rows
        await asked_back(last)
        assert (await anext(first)).rows
        assert small.processes <= 2


async def test_a_worker_that_is_asked_back_goes_to_another_however_many_of_the_same_wait(
    tmp_path: Path, impatient: tuple[Job, Job]
) -> None:
    greedy, other = impatient
    async with Pool(tmp_path, size=2, warm=2, wait_seconds=20.0) as small, AsyncExitStack() as open_:
        for _ in range(2):
            await anext(await open_.enter_async_context(small.run(greedy)))
        waiting = asyncio.ensure_future(open_.enter_async_context(small.run(greedy)))
        while not small._turns.waiting:
            await asyncio.sleep(0)
        try:
            assert (await read(small, other))[0].num_rows
        finally:
            await waiting


async def test_a_consumer_who_has_all_workers_later_is_asked_for_one_then(
    tmp_path: Path, numbers: Relation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("connector.engine.pool.pool._PATIENCE", 0.1)
    greedy, lab = (
        Job(relations={"t": numbers}, sql="SELECT a.* FROM t a, t b", consumer=name) for name in ("greedy", "lab")
    )
    other = Job(relations={"t": numbers}, sql="SELECT 1 AS n FROM t", consumer="other")
    async with Pool(tmp_path, size=2, warm=2, wait_seconds=20.0) as small, AsyncExitStack() as open_:
        await anext(await open_.enter_async_context(small.run(greedy)))
        async with small.run(lab) as result:
            await anext(result)
            waiting = asyncio.ensure_future(open_.enter_async_context(small.run(greedy)))
            while not small._turns.waiting:
                await asyncio.sleep(0)
            reading = asyncio.ensure_future(read(small, other))
            await asyncio.sleep(0.5)  # it has waited for long, and two consumers have one each
        with suppress(Unavailable):  # it is the last of theirs, and may be the one that is ended
            await waiting
        assert (await reading)[0].num_rows


async def test_what_a_worker_had_on_disk_goes_as_it_is_asked_back_whoever_still_reads(
    tmp_path: Path, impatient: tuple[Job, Job]
) -> None:
    greedy, other = impatient
    async with Pool(tmp_path, size=2, warm=2, wait_seconds=60.0) as small:
        async with AsyncExitStack() as open_:
            await anext(await open_.enter_async_context(small.run(greedy)))
            last = await open_.enter_async_context(small.run(greedy))
            await anext(last)
            assert (await read(small, other))[0].num_rows
            await until(lambda: not last._worker.folder.exists())
            assert not last.ended
        await until(lambda: len(small._tasks) == 1)  # all is cleaned up: one looks for workers that nobody needs
        assert small._turns.places.free == 2  # a place is given back once


async def test_an_answer_whose_privacy_is_paid_for_is_not_ended_for_others(
    tmp_path: Path, numbers: Relation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("connector.engine.pool.pool._PATIENCE", 0.1)
    greedy = Job(relations={"t": numbers}, sql="SELECT a.* FROM t a, t b", consumer="greedy")
    counting = "SELECT count(*) AS rows FROM t a, t b, t c WHERE a.id + b.id + c.id > 0"
    paid = Job(relations={"t": numbers}, sql=counting, consumer="greedy", noise={"columns": {"rows": 1}})
    other = Job(relations={"t": numbers}, sql="SELECT 1 AS n FROM t", consumer="other")
    async with Pool(tmp_path, size=2, warm=2, wait_seconds=60.0) as small, small.run(greedy) as first:
        await anext(first)
        paying = asyncio.ensure_future(read(small, paid))
        while len(small._busy) < 2:
            await asyncio.sleep(0)
        assert (await read(small, other))[0].num_rows
        await asked_back(first)
        assert not paying.done()
        paying.cancel()
        await asyncio.wait((paying,))


@pytest.mark.parametrize("streams", [("greedy",), ("greedy", "other"), ("other",), ("lab", "other")])
async def test_streams_of_others_do_not_hide_who_has_all_workers_for_questions(
    tmp_path: Path, numbers: Relation, impatient: tuple[Job, Job], streams: tuple[str, ...]
) -> None:
    greedy, other = impatient
    stream = Job(relations={"t": numbers}, sql="SELECT * FROM t", batch_rows=10, shared=True)
    async with Pool(tmp_path, size=2, warm=2, wait_seconds=20.0) as small, AsyncExitStack() as open_:
        shared = [await open_.enter_async_context(small.run(replace(stream, consumer=name))) for name in streams]
        slow = await open_.enter_async_context(small.run(greedy))
        await anext(slow)
        assert (await read(small, other))[0].num_rows
        await asked_back(slow)
        assert all([(await anext(one)).rows for one in shared])


@pytest.mark.parametrize("streams", [("other",), ("patient", "other"), ("patient",)])
async def test_a_long_question_beside_streams_is_not_begun_anew_for_each_who_waits(
    tmp_path: Path, numbers: Relation, impatient: tuple[Job, Job], streams: tuple[str, ...]
) -> None:
    _, other = impatient
    stream = Job(relations={"t": numbers}, sql="SELECT * FROM t", batch_rows=10, shared=True)
    long = Job(relations={"t": numbers}, sql="SELECT count(*) FROM t a, t b, t c, t d WHERE a.id + d.id > b.id")
    async with Pool(tmp_path, size=2, warm=2, wait_seconds=1.0) as small, AsyncExitStack() as open_:
        for name in streams:
            await open_.enter_async_context(small.run(replace(stream, consumer=name)))
        working = asyncio.ensure_future(read(small, replace(long, consumer="patient")))
        while len(small._busy) < 2:
            await asyncio.sleep(0)
        with pytest.raises(Unavailable) as raised:
            await read(small, other)
        assert raised.value.code == "queue_timeout"
        assert not working.done()
        working.cancel()
        await asyncio.wait((working,))


async def test_a_reader_keeps_its_worker_since_the_last_batch_and_not_in_all_its_pauses_together(
    pool: Pool, numbers: Relation, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [time.monotonic()]
    monkeypatch.setattr("connector.engine.pool.worker_process.time", changed(time, monotonic=lambda: now[0]))
    async with pool.run(Job(relations={"t": numbers}, sql="SELECT a.* FROM t a, t b", batch_rows=10)) as result:
        frame = await anext(result)
        now[0] += 0.3
        assert result.unasked == pytest.approx(0.3)
        del frame
        await anext(result)
        assert result.unasked == 0


@pytest.mark.parametrize("seconds", [1.0, 600.0], ids=["long for its size", "as long as it may"])
async def test_a_check_that_takes_too_long_for_its_size_is_ended_for_who_waits(
    tmp_path: Path, numbers: Relation, impatient: tuple[Job, Job], seconds: float
) -> None:
    _, other = impatient
    path, batch = tmp_path / "zeros.arrows", pa.record_batch({"n": np.zeros(4_000_000, dtype="i8")})
    with pa.ipc.new_stream(path, batch.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as file:
        file.write_batch(batch)
    schema, whole = batch.schema.serialize(), path.read_bytes()
    message, end = whole[schema.size : -8], whole[-8:]
    with path.open("wb") as file:  # 320 GB: no machine is through with it before somebody has waited
        file.write(schema)
        for _ in range(10_000):
            file.write(message)
        file.write(end)
    limits = Limits(seconds=seconds, total_seconds=600.0)
    check = Job(kind="check_arrow", arguments={"path": str(path), "digest": True}, limits=limits, consumer="sender")
    stream = Job(relations={"t": numbers}, sql="SELECT * FROM t", batch_rows=10, shared=True, consumer="other")
    async with Pool(tmp_path / "work", size=2, warm=2, wait_seconds=0.8) as small, small.run(stream):
        checking = asyncio.ensure_future(small.ask(check))
        while len(small._busy) < 2:
            await asyncio.sleep(0)
        if seconds < 600:
            assert (await read(small, other))[0].num_rows
            with pytest.raises(Unavailable) as raised:
                await checking
            assert raised.value.code == "worker_wanted"
        else:
            with pytest.raises(Unavailable, match="no worker became free"):
                await read(small, other)
            checking.cancel()
            await asyncio.wait((checking,))


@pytest.mark.parametrize("names", [("lab", "clinic"), ("coordinator", "coordinator"), ("other", "other")])
async def test_a_worker_is_not_taken_from_who_has_one_or_works_for_the_operator(
    tmp_path: Path, numbers: Relation, monkeypatch: pytest.MonkeyPatch, names: tuple[str, str]
) -> None:
    monkeypatch.setattr("connector.engine.pool.pool._PATIENCE", 0.1)
    other = Job(relations={"t": numbers}, sql="SELECT 1 AS n FROM t", consumer="other")
    async with Pool(tmp_path, size=2, warm=2, wait_seconds=0.5) as small, AsyncExitStack() as open_:
        running = []
        for name in names:
            job = Job(relations={"t": numbers}, sql="SELECT a.* FROM t a, t b", consumer=name)
            running.append(await open_.enter_async_context(small.run(job)))
            await anext(running[-1])
        with pytest.raises(Unavailable) as raised:
            await read(small, other)
        assert raised.value.code == "queue_timeout"
        assert [(await anext(one)).rows > 0 for one in running] == [True, True]


async def test_recheck_refuses_what_the_gate_did_not_name(pool: Pool, numbers: Relation) -> None:
    recheck = Recheck(names=("t",), functions=("sum",))
    table, _ = await read(pool, Job(relations={"t": numbers}, sql="SELECT sum(id) AS n FROM t", recheck=recheck))
    assert table.num_rows == 1
    for sql in ("SELECT max(id) FROM t", "SELECT * FROM sqlite_master", "SELECT 1; SELECT 2", "SELECT * FROM range(3)"):
        with pytest.raises(QueryInvalid):
            await read(pool, Job(relations={"t": numbers}, sql=sql, recheck=recheck))


async def test_a_file_replaced_or_changed_after_registration_is_refused(pool: Pool, tmp_path: Path) -> None:
    path = data.parquet(tmp_path / "moving.parquet", 1000)
    registered = data.relation("parquet", path, tmp_path)
    job = Job(relations={"t": registered}, sql="SELECT count(*) FROM t")
    await read(pool, job)
    os.utime(path, ns=(1, 1))
    with pytest.raises(VersionChanged):
        await read(pool, job)
    data.parquet(tmp_path / "other.parquet", 1000).replace(path)
    with pytest.raises(VersionChanged):
        await read(pool, job)
    path.unlink()
    with pytest.raises(VersionChanged):
        await read(pool, job)


async def test_report_is_a_small_json_value(pool: Pool, numbers: Relation) -> None:
    job = Job(kind="report", relations={"t": numbers}, sql="SELECT min(day) AS d, count(*) AS n FROM t")
    assert await pool.ask(job) == {"columns": ["d", "n"], "rows": [["1970-01-01", data.ROWS]]}


async def test_shared_streams_run_beside_each_other_in_one_worker(pool: Pool, numbers: Relation) -> None:
    job = Job(relations={"t": numbers}, sql="SELECT * FROM t", shared=True, limits=Limits(memory_mb=64))
    tables = await asyncio.gather(*(read(pool, job) for _ in range(6)))
    assert [table.num_rows for table, _ in tables] == [data.ROWS] * 6


async def test_a_scan_that_does_not_stop_takes_no_other_with_it(pool: Pool, numbers: Relation) -> None:
    """The worker does nothing for longer than a job has to stop, while one reader leaves and another stays."""
    job = Job(relations={"t": numbers}, sql="SELECT * FROM t", shared=True, limits=Limits(memory_mb=64))
    small = replace(job, batch_bytes=2**17)
    async with pool.run(small) as stays:
        first = await anext(stays)
        worker = stays._worker
        async with pool.run(small) as leaves:
            assert leaves._worker is worker
            await anext(leaves)
            os.kill(worker.process.pid, signal.SIGSTOP)
        async with asyncio.timeout(60):
            await until(lambda: worker.doomed)
        assert (worker.doomed, worker.alive(), pool._sharing(job)) == (True, True, None)
        os.kill(worker.process.pid, signal.SIGCONT)
        assert first.rows + sum([frame.rows async for frame in stays]) == data.ROWS
    await until(lambda: worker not in pool._busy)
    assert not worker.alive()


async def test_scans_that_take_turns_give_every_row_in_order(pool: Pool, numbers: Relation) -> None:
    """More of them than engines, each waiting for its reader while the others go on."""
    cores = max(2, os.cpu_count() or 1)
    job = Job(
        relations={"t": numbers}, sql="SELECT * FROM t", scan="t", shared=True, limits=Limits(memory_mb=64),
        batch_bytes=2**16,
    )  # fmt: skip
    key = "00" * 32
    some = replace(job, only=Ranges([Range(3, 0, 150_000, 200_000), Range(0, 0, 0, 50_000)], key))

    async def taken(one: Job, wait: float) -> pa.Table:
        async with pool.run(one) as result:
            parts = [bytes(result.schema)]
            async for frame in result:
                parts.append(bytes(frame.payload))
                if len(parts) % 50 == 3:
                    await asyncio.sleep(wait)
        return pa.ipc.open_stream(b"".join(parts)).read_all()

    found = await asyncio.gather(*(taken(one, 0.15) for _ in range(cores + 1) for one in (job, some)))
    whole = data.table()
    blocks = pa.concat_tables([whole.slice(150_000), whole.slice(0, 50_000)])
    for place, table in enumerate(found):
        assert table.equals((blocks if place % 2 else whole).cast(table.schema))


@pytest.mark.parametrize("position", ["", "place"], ids=["all rows", "some rows"])
async def test_ranges_that_are_read_at_once_are_those_that_are_read_one_by_one(
    pool: Pool, numbers: Relation, position: str
) -> None:
    ranges = [Range(n, 0, at, min(at + 30_000, data.ROWS)) for n, at in enumerate(range(0, data.ROWS, 30_000))]
    only = Ranges(ranges[::-1], "", position)  # cursors differ each time
    numbers = replace(numbers, row_bytes={"id": 8.0, "name": 7.0})
    where = " WHERE id % 3 = 0" if position else ""
    shown = f"id, name{position and ', '}{position}"
    job = Job(
        relations={"t": numbers}, sql=f"SELECT {shown} FROM t{where}", scan="" if position else "t", only=only,
        batch_bytes=2**17,
    )  # fmt: skip
    found = []
    for threads in (1, 3):
        async with pool.run(replace(job, limits=Limits(threads=threads))) as result:
            found.append([bytes(frame.payload) async for frame in result])
            assert (result.totals["rows"] > 60_000, result.totals["batches"] > 7) == (True, True)
    assert found[0] == found[1]


@pytest.mark.parametrize(
    ("rows", "widths", "kind", "expected"),
    [
        (100_000, {"a": 8.0}, "parquet", 3),
        (100_000, {f"f{n}": 4.0 for n in range(66)}, "hive", 2),
        (1_000_000, {f"f{n}": 4.0 for n in range(66)}, "parquet", 1),  # 66 columns' pages, twice: more than it may take
        (1_000_000, {f"f{n}": 9.0 for n in range(16)}, "s3", 2),
        (200, {"image": 100_000.0}, "parquet", 3),
        (1000, {"image": 100_000.0}, "parquet", 1),
        (100_000, {}, "parquet", 1),
        (100_000, {"a": 8.0}, "arrow_ipc", 1),
    ],
)
async def test_as_many_ranges_are_read_at_once_as_memory_holds(
    rows: int, widths: dict[str, float], kind: str, expected: int
) -> None:
    only = Ranges([Range(n, 0, n * rows, (n + 1) * rows) for n in range(3)], "")
    relations = {"t": Relation(kind, row_bytes=widths)}
    job = Job(relations=relations, sql="SELECT * FROM t", only=only, limits=Limits(memory_mb=128, threads=4))
    assert readers(job) == expected
    assert readers(replace(job, only=None)) == 1


@pytest.mark.parametrize(
    ("most", "threads", "expected"),
    [(512, 1, 128), (512, 2, 256), (512, 4, 512), (1024, 4, 1024), (256, 4, 256), (64, 4, 128)],
)
async def test_a_scan_has_memory_for_each_of_its_threads(most: int, threads: int, expected: int) -> None:
    assert _choose_scan_mb(most, threads) == expected


async def test_a_reader_that_leaves_stops_ranges_that_are_read_at_once(
    pool: Pool, numbers: Relation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("connector.engine.pool.worker_process.GRACE", 60.0)
    # Slow for the second range.
    pairs = "SELECT a.id, 2 - a.place AS place FROM t a, t b WHERE a.id + b.id < 0 OR a.id + b.id = 2"
    only = Ranges([Range(0, 0, 0, 5), Range(1, 0, 0, data.ROWS)], "00" * 32, "place")
    known = replace(numbers, row_bytes={"id": 8.0})
    async with pool.run(Job(relations={"t": known}, sql=pairs, only=only, limits=Limits(threads=2))) as result:
        worker = result._worker
        await anext(result)
    await until(lambda: worker not in pool._busy)
    assert worker.alive()


async def test_unknown_kinds_of_job_are_refused(pool: Pool) -> None:
    with pytest.raises(ConnectorError) as raised:
        await pool.ask(Job(kind="shell"))
    assert raised.value.code == "job_invalid"


def cpu_ticks(pid: int) -> int:
    fields: list[Any] = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return int(fields[11]) + int(fields[12])


async def test_a_worker_that_has_grown_takes_the_next_small_job(pool: Pool, numbers: Relation) -> None:
    """The limit on address space counts from where the worker stands, or its next thread would never start."""
    large = Job(
        relations={"t": numbers},
        sql="SELECT a.*, b.name AS other FROM t a, (SELECT * FROM t LIMIT 6) b ORDER BY a.x, b.id DESC, a.id",
        limits=Limits(memory_mb=512),
    )
    small = Job(relations={"t": numbers}, sql="SELECT count(*) AS n FROM t", limits=Limits(memory_mb=64))
    for _ in range(2):
        async with pool.run(large) as result:
            await anext(result)
        for _ in range(3):
            table, _ = await read(pool, small)
            assert table["n"].to_pylist() == [data.ROWS]


async def test_frames_that_come_in_pieces_are_whole() -> None:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    nobody: Any = None
    result = Result(nobody, Job(kind="report"), ours)
    frames = [wire.HEADER.pack(wire.PROGRESS, 0, 0, 0, size, -1, b"") + bytes(size) for size in (3, 100_000, 5)]
    first = asyncio.ensure_future(result.next())
    for at in range(0, len(frames[0]), 20):
        theirs.sendall(frames[0][at : at + 20])
        await asyncio.sleep(0.01)
    sending = asyncio.ensure_future(asyncio.to_thread(theirs.sendall, frames[1] + frames[2]))
    found = [await first, await result.next(), await result.next()]
    assert [bytes(payload) for _, _, payload, _ in found] == [bytes(3), bytes(100_000), bytes(5)]
    await sending
    theirs.close()
    result.close()
