"""Values that are put in after the engine: the rows of the statement, whatever it chooses and wherever they lie."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from connector.datasets.sources import parquet
from connector.engine.pool.pool import Pool
from connector.engine.pool.protocol import Job, Limits, Range, Ranges
from connector.engine.worker.read.file_values import File, Places, Stored
from connector.engine.worker.read.late_columns import Placed
from connector.errors import HanseError, VersionChanged
from tests.support import data
from tests.support.digested import messages
from tests.support.images import POOL, blobs, images, write

TARGET = 2**20
GIVEN = ("image", "more", "id")  # more than there is, and what is not of blobs
CONDITIONS = ["id % 3 = 1", "id >= 0", "id < 0", "id = 61", "note IS NULL AND name LIKE '%7'", "id % 40 IN (0, 39)"]


def two(rows: int) -> pa.Table:
    table = images(rows, values=blobs(rows, empty=3)).append_column("filename", [["x"] * rows])
    return table.append_column("more", pa.array(blobs(rows, 60_000, empty=2), pa.binary()))


def placed(folder: Path, *tables: pa.Table, **how: Any) -> list[str]:
    return [write(folder / f"{number}.parquet", table, **how) for number, table in enumerate(tables)]


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return placed(tmp_path_factory.mktemp("placed"), two(130), two(0), two(61), two(7))


def asked(paths: Sequence[str], sql: str) -> tuple[pa.Table, list[pa.RecordBatch]]:
    """The rows by the engine alone; and in this process, by places, the batches as they would be sent."""
    with duckdb.connect() as con:
        parquet.attach(con, "t", paths, {})
        expected = con.sql(sql).to_arrow_table()
        one = Placed(paths, GIVEN, stored := Stored())
        parquet.attach_placed(con, "t", paths, one.names)
        _, batches = one.batches(con.sql(sql), rows=256, target=TARGET)
        return expected, [read(stored, batch) for batch in batches]


def read(stored: Stored, batch: pa.RecordBatch) -> pa.RecordBatch:
    """The batch with its values in memory, by the way that a frame takes."""
    columns = []
    for column in batch.columns:
        buffers = column.buffers()
        if column.type == pa.binary() and (kept := stored.find(buffers[2])) is not None:
            values = pa.py_buffer(kept.read())
            column = pa.Array.from_buffers(column.type, len(column), [None, buffers[1], values], 0, column.offset)
        columns.append(column)
    return pa.RecordBatch.from_arrays(columns, schema=batch.schema)


@pytest.mark.parametrize("shown", ["*", "note, image, id", "image", "more, name, image"])
@pytest.mark.parametrize("condition", CONDITIONS)
def test_the_rows_that_a_condition_chooses(paths: list[str], condition: str, shown: str) -> None:
    assert Placed(paths, GIVEN, Stored()).names == ("image", "more")
    expected, found = asked(paths, f"SELECT {shown} FROM t WHERE {condition}")
    assert pa.Table.from_batches(found, expected.schema).equals(expected)
    assert all(batch.nbytes < 2 * TARGET for batch in found)


def test_few_rows_of_many_groups_leave_together(tmp_path: Path) -> None:
    paths = placed(tmp_path, images(400), row_group_size=10)
    expected, found = asked(paths, "SELECT id, image FROM t WHERE id % 10 = 3")
    assert pa.Table.from_batches(found).equals(expected)
    assert 4 < len(found) < 20


@pytest.mark.parametrize("shown", ["image, image", "IMAGE, id, image", '"Image"'])
def test_a_column_that_is_asked_for_twice_or_in_other_letters(paths: list[str], shown: str) -> None:
    expected, found = asked(paths, f"SELECT {shown} FROM t WHERE id % 3 = 1")
    for at, column in enumerate(expected.columns):
        assert pa.Table.from_batches(found).column(at).to_pylist() == column.to_pylist()


def test_of_groups_that_arrow_reads_one_is_held(tmp_path: Path) -> None:
    values: list[bytes | None] = [*blobs(60)]
    values[5] = None
    paths = placed(tmp_path, *[images(60, values=values)] * 12)
    group = 60 * 50_000
    with duckdb.connect() as con:
        one = Placed(paths, ("image",), Stored())
        assert one.names
        parquet.attach_placed(con, "t", paths, one.names)
        before = pa.total_allocated_bytes()
        _, batches = one.batches(con.sql("SELECT id, image FROM t WHERE id = 7"), rows=256, target=TARGET)
        held = [pa.total_allocated_bytes() - before for _ in batches]
    assert len(held) == 12
    assert max(held) < 4 * group


def test_no_more_than_a_batch_is_gathered_at_once(tmp_path: Path) -> None:
    """However large values are beside what they are on average: together they may be more than an array can have."""
    paths = placed(tmp_path, images(190, values=[*blobs(100, 20_000), *[POOL] * 90]), row_group_size=190)
    gathered: list[int] = []

    class Counted(Stored):
        def stand_in(self, file: File, places: Places) -> pa.Array:
            gathered.append(places.nbytes)
            return super().stand_in(file, places)

    with duckdb.connect() as con:
        one = Placed(paths, GIVEN, Counted())
        parquet.attach_placed(con, "t", paths, one.names)
        _, batches = one.batches(con.sql("SELECT image FROM t WHERE id >= 0"), rows=256, target=TARGET)
        assert sum(batch.num_rows for batch in batches) == 190
    assert max(gathered) < TARGET + len(POOL)


@pytest.mark.parametrize("where", [0, 70, 129])
def test_groups_that_are_not_as_they_should_be_are_read_by_arrow(tmp_path: Path, where: int) -> None:
    values: list[bytes | None] = [*blobs(130)]
    values[where] = None
    tables = images(130, values=values), images(61)
    paths = placed(tmp_path, *(one.append_column("more", [blobs(len(one))]) for one in tables))
    assert Placed(paths, GIVEN, Stored()).names == ("image", "more")
    for condition in CONDITIONS:
        expected, found = asked(paths, f"SELECT image, id, more FROM t WHERE {condition}")
        assert pa.Table.from_batches(found, expected.schema).equals(expected)


def test_what_is_not_in_memory_is_read_by_arrow(tmp_path: Path) -> None:
    paths = placed(tmp_path, images(130))
    with open(paths[0], "rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    expected, found = asked(paths, "SELECT image, id FROM t WHERE id % 3 = 1")
    assert pa.Table.from_batches(found).equals(expected)


def other(table: pa.Table, name: str) -> pa.Table:
    return table.rename_columns({"image": name})


@pytest.mark.parametrize(
    ("tables", "how"),
    [
        ([images(60)], {"compression": "snappy"}),
        ([images(60)], {"use_dictionary": True}),
        ([images(60, values=blobs(60, 2000))], {}),
        ([images(60).set_column(1, "image", pa.array(["x" * 50_000] * 60))], {"use_dictionary": False}),
        ([images(60), other(images(60), "IMAGE")], {}),
        ([images(60).append_column("IMAGE", [blobs(60)])], {}),
        ([other(images(60), "im.age")], {}),
        ([images(60).append_column("File_Row_Number", [range(60)])], {}),
        ([images(60).append_column("file_index", [range(60)]), images(60)], {}),
    ],
    ids=[
        "compressed",
        "dictionary",
        "small",
        "text",
        "another name",
        "two names",
        "a dot",
        "a number of its own",
        "an index of its own",
    ],
)
def test_columns_that_the_engine_reads(tmp_path: Path, tables: Sequence[pa.Table], how: dict[str, Any]) -> None:
    paths = placed(tmp_path, *tables, **how)
    assert Placed(paths, ("image", "IMAGE", "im.age", "im"), Stored()).names == ()


def test_groups_that_arrow_may_not_read_are_the_engine_s(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = placed(tmp_path, images(130))
    monkeypatch.setattr("connector.engine.worker.read.late_columns.GROUP_MAX", 60 * 50_000)
    assert Placed(paths, GIVEN, Stored()).names == ()


def test_a_column_that_is_shown_as_another_type_is_an_error(tmp_path: Path) -> None:
    """Whoever says that a column is only given on, and gives another: nothing leaves that was taken for a place."""
    paths = placed(tmp_path, images(60))
    with duckdb.connect() as con:
        one = Placed(paths, ("image",), Stored())
        parquet.attach(con, "t", paths, {})
        with pytest.raises(TypeError, match="place"):
            one.batches(con.sql("SELECT image FROM t"), rows=256, target=TARGET)


# What follows goes through a worker.


async def rows(pool: Pool, job: Job) -> tuple[pa.Table, list[Any]]:
    """The rows of a job, after a look at the digest of each batch; and the places that they name."""
    parts = await messages(pool, job)
    with pa.ipc.open_stream(b"".join(parts)) as reader:
        batches = list(reader.iter_batches_with_custom_metadata())
        found = pa.Table.from_batches([one.batch for one in batches], reader.schema)
        return found, [one.custom_metadata for one in batches]


def job_of(path: Path, sql: str, **more: Any) -> Job:
    relation = data.relation("parquet", path, path)
    return Job(relations={"t": relation}, sql=sql, given_on=GIVEN, batch_bytes=TARGET, shared=True, **more)


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("threads", [1, 2])
async def test_a_worker_sends_them_and_reads_on_without_places(pool: Pool, tmp_path: Path, threads: int) -> None:
    paths = placed(tmp_path, images(130), images(61, values=[*blobs(60), POOL * 6]))
    whole = pa.concat_tables(map(pq.read_table, paths))
    limits = Limits(threads=threads)
    for condition in CONDITIONS:
        job = job_of(tmp_path, f"SELECT id, image FROM t WHERE {condition}", consumer="one", limits=limits)
        found, _ = await rows(pool, job)
        assert found.equals(duckdb.connect().sql(f"SELECT id, image FROM whole WHERE {condition}").to_arrow_table())
    looking = replace(job, sql="SELECT id, image FROM t WHERE octet_length(image) > 50500", given_on=())
    found, _ = await rows(pool, looking)  # the same engine, opened for the ones before
    assert found.equals(
        duckdb.connect().sql("SELECT id, image FROM whole WHERE octet_length(image) > 50500").to_arrow_table()
    )
    assert 0 < len(found) < len(whole)


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("key", ["", "00" * 32])
async def test_ranges_say_where_they_end(pool: Pool, tmp_path: Path, threads: int, key: str) -> None:
    placed(tmp_path, images(400), images(90))
    spans = [(0, 130, 190), (1, 5, 66), (0, 240, 330), (0, 60, 180), (1, 0, 90), (0, 330, 400)]
    only = Ranges([Range(number, *one) for number, one in enumerate(spans)], key, "position")
    sql = "SELECT id, image, position FROM t WHERE id % 3 = 1"
    job = job_of(tmp_path, sql, only=only, limits=Limits(threads=threads))
    found, told = await rows(pool, job)
    plain, expected = await rows(pool, replace(job, given_on=()))
    assert found.equals(plain)
    assert bool(key) == (told[0] is not None) == (expected[0] is not None)


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("more", [{"codec": "zstd"}, {"format": "parquet"}, {"batch_rows": 7}], ids=str)
async def test_where_somebody_looks_at_the_values_the_engine_reads_them(
    pool: Pool, tmp_path: Path, more: dict[str, Any]
) -> None:
    (path,) = placed(tmp_path, images(90))
    job = job_of(tmp_path, "SELECT id, image FROM t WHERE id % 3 = 1", **more)
    async with pool.run(job) as result:
        whole = b"".join([bytes(result.schema), *[bytes(frame.payload) async for frame in result]])
    form = pq.read_table if job.format == "parquet" else lambda source: pa.ipc.open_stream(source).read_all()
    expected = duckdb.connect().sql(f"SELECT id, image FROM '{path}' WHERE id % 3 = 1").to_arrow_table()
    assert form(pa.BufferReader(whole)).equals(expected)


@pytest.mark.asyncio(loop_scope="module")
async def test_a_file_that_changes_while_it_is_sent_ends_the_read(pool: Pool, tmp_path: Path) -> None:
    (path,) = placed(tmp_path, images(600))
    job = job_of(tmp_path, "SELECT id, image FROM t WHERE id % 2 = 1")

    async def read_on() -> None:
        async with pool.run(job) as result:
            async for _ in result:
                os.truncate(path, 3_000_000)

    with pytest.raises(HanseError) as caught:
        await read_on()
    assert isinstance(caught.value, VersionChanged)
