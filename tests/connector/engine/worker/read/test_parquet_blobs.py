"""Large values in Parquet files leave a worker as they are stored, in batches that are not too large."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from connector.engine.pool.pool import Pool
from connector.engine.pool.protocol import Job, Limits, Range, Ranges, Relation
from connector.engine.worker.read import parquet_scan
from connector.errors import VersionChanged
from tests.support import data
from tests.support.digested import messages
from tests.support.images import POOL, blobs, images, write

TARGET = 2**20
CONDITIONS = ["id % 3 = 1", "id >= 0", "id < 0", "id = 61", "note IS NULL AND name LIKE '%7'", "id % 40 IN (0, 39)"]


def test_files_groups_without_rows_and_columns_in_any_order(tmp_path: Path) -> None:
    table = images(90)
    with pq.ParquetWriter(tmp_path / "gaps.parquet", table.schema, compression="none", use_dictionary=["id"]) as out:
        for part in (table.slice(0, 0), table.slice(0, 40), table.slice(0, 0), table.slice(40)):
            out.write_table(part)
    paths = [write(tmp_path / "a.parquet", table), str(tmp_path / "gaps.parquet"), write(tmp_path / "b", table)]
    for names in (["image"], ["name", "image", "note"], ["note", "id", "image", "name"]):
        schema = table.select(names).schema
        found = pa.Table.from_batches(parquet_scan.batches(paths, schema, rows=256, target=TARGET), schema)
        assert found.equals(pa.concat_tables([table.select(names)] * 3))


def test_groups_far_smaller_than_a_batch_are_joined(tmp_path: Path) -> None:
    table = images(60)
    path = write(tmp_path / "t.parquet", table, row_group_size=2)
    found = list(parquet_scan.batches([path], table.schema, rows=256, target=TARGET))
    assert pa.Table.from_batches(found).equals(table)
    assert len(found) < 20


@pytest.mark.parametrize(("first", "stop"), [(0, 150), (17, 140), (59, 61), (70, 71), (60, 120)])
def test_rows_between(tmp_path: Path, first: int, stop: int) -> None:
    table = images(150)
    path = write(tmp_path / "t.parquet", table)
    found = list(parquet_scan.rows_between(path, table.schema, first, stop, rows=256, target=TARGET))
    assert pa.Table.from_batches(found).equals(table.slice(first, stop - first))
    assert all(batch.nbytes < 2 * TARGET for batch in found)


# What follows goes through a worker.


async def frames(pool: Pool, path: Path, table: pa.Table, **more: Any) -> tuple[pa.Table, list[int]]:
    """The rows of a scan, after a look at the digest of each batch; and the batches' sizes."""
    names = ", ".join(table.column_names)
    return await rows(pool, job_of(path, f"SELECT {names} FROM t", scan="t", **more))


async def rows(pool: Pool, job: Job) -> tuple[pa.Table, list[int]]:
    parts = await messages(pool, job)
    with pa.ipc.open_stream(b"".join(parts)) as reader:
        return reader.read_all(), list(map(len, parts[1:]))


def job_of(path: Path, sql: str, **more: Any) -> Job:
    relation: Relation = data.relation("parquet", path, path if path.is_dir() else path.parent)
    return Job(relations={"t": relation}, sql=sql, batch_bytes=TARGET, **more)


async def whole_file(pool: Pool, job: Job) -> pa.Table:
    """The rows of a job that writes a Parquet file or a stream."""
    async with pool.run(job) as result:
        whole = b"".join([bytes(result.schema), *[bytes(frame.payload) async for frame in result]])
    form = pq.read_table if job.format == "parquet" else lambda source: pa.ipc.open_stream(source).read_all()
    return form(pa.BufferReader(whole))


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("version", ["1.0", "2.0"])
@pytest.mark.parametrize("nullable", [True, False], ids=["optional", "required"])
@pytest.mark.parametrize(
    ("values", "how"),
    [
        (blobs(130), {}),
        (blobs(130), {"data_page_size": 2**16, "write_batch_size": 3}),
        (blobs(130), {"row_group_size": 400}),
        (blobs(130), {"compression": "snappy"}),
        (blobs(130), {"use_dictionary": True}),
        (blobs(130), {"use_dictionary": False, "column_encoding": {"image": "DELTA_LENGTH_BYTE_ARRAY"}}),
        (blobs(130, empty=3), {}),
        ([b""] * 130, {}),
    ],
    ids=["one page", "many pages", "one group", "compressed", "dictionary", "other encoding", "some empty", "empty"],
)
async def test_values_leave_as_they_are_stored(
    pool: Pool, tmp_path: Path, version: str, nullable: bool, values: list[bytes], how: dict[str, Any]
) -> None:
    table = images(130, values=values, nullable=nullable)
    path = Path(write(tmp_path / "t.parquet", table, data_page_version=version, **how))
    found, sizes = await frames(pool, path, table)
    assert found.to_pylist() == table.to_pylist()
    assert max(sizes) < 2 * TARGET + 2**17


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("where", [0, 70, 129])
async def test_a_null_among_them_leaves_as_one(pool: Pool, tmp_path: Path, where: int) -> None:
    values: list[bytes | None] = [*blobs(130)]
    values[where] = None
    table = images(130, values=values)
    assert (await frames(pool, Path(write(tmp_path / "t.parquet", table)), table))[0].equals(table)


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("codec", ["lz4", "zstd"])
async def test_compressed_and_other_formats(pool: Pool, tmp_path: Path, codec: str) -> None:
    table = images(90)
    path = Path(write(tmp_path / "t.parquet", table))
    assert (await frames(pool, path, table, codec=codec))[0].equals(table)
    assert (await whole_file(pool, job_of(path, "SELECT * FROM t", scan="t", format="parquet"))).equals(table)


@pytest.mark.asyncio(loop_scope="module")
async def test_a_batch_that_no_slot_holds_goes_over_the_socket(pool: Pool, tmp_path: Path) -> None:
    table = images(40, values=[*blobs(30), POOL * 6, *blobs(9)])
    found, sizes = await frames(pool, Path(write(tmp_path / "t.parquet", table)), table)
    assert found.equals(table)
    assert max(sizes) > 6 * 2**20


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("threads", [1, 2])
async def test_ranges_of_a_file(pool: Pool, tmp_path: Path, threads: int) -> None:
    table = images(400)
    path = Path(write(tmp_path / "t.parquet", table))
    spans = [(130, 190), (5, 66), (240, 330), (60, 180), (0, 240), (330, 400)]
    only = Ranges([Range(number, 0, *one) for number, one in enumerate(spans)], "")
    found, _ = await frames(pool, path, table, only=only, limits=Limits(threads=threads))
    assert found.equals(pa.concat_tables([table.slice(first, stop - first) for first, stop in spans]))


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("threads", [1, 2])
async def test_the_rows_that_a_condition_chooses(pool: Pool, tmp_path: Path, threads: int) -> None:
    for number, table in enumerate((images(130, values=blobs(130, empty=3)), images(0), images(61))):
        write(tmp_path / f"{number}.parquet", table)
    whole = duckdb.connect().sql(f"SELECT * FROM '{tmp_path}/*.parquet'")
    for condition in CONDITIONS:
        sql = f"SELECT id, image FROM t WHERE {condition}"
        job = job_of(tmp_path, sql, consumer="one", limits=Limits(threads=threads), shared=True)
        found, sizes = await rows(pool, job)
        assert found.equals(whole.filter(condition).project("id, image").to_arrow_table())
        assert max(sizes, default=0) < 2 * TARGET + 2**17


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("more", [{"codec": "zstd"}, {"format": "parquet"}, {"batch_rows": 7}], ids=str)
async def test_chosen_rows_in_other_forms(pool: Pool, tmp_path: Path, more: dict[str, Any]) -> None:
    path = Path(write(tmp_path / "t.parquet", images(90)))
    expected = duckdb.connect().sql(f"SELECT id, image FROM '{path}' WHERE id % 3 = 1").to_arrow_table()
    job = job_of(path, "SELECT id, image FROM t WHERE id % 3 = 1", shared=True)
    assert (await whole_file(pool, replace(job, **more))).equals(expected)


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("key", ["", "00" * 32])
async def test_chosen_rows_of_ranges(pool: Pool, tmp_path: Path, threads: int, key: str) -> None:
    tables = [images(400), images(90)]
    for number, table in enumerate(tables):
        write(tmp_path / f"{number}.parquet", table)
    spans = [(0, 130, 190), (1, 5, 66), (0, 240, 330), (0, 60, 180), (1, 0, 90), (0, 330, 400)]
    only = Ranges([Range(number, *one) for number, one in enumerate(spans)], key, "position")
    sql = "SELECT id, image, position FROM t WHERE id % 3 = 1"
    found, _ = await rows(pool, job_of(tmp_path, sql, only=only, limits=Limits(threads=threads), shared=True))
    chosen = pa.concat_tables([tables[file].slice(first, stop - first) for file, first, stop in spans])
    expected = duckdb.connect().from_arrow(chosen).filter("id % 3 = 1").project("id, image").to_arrow_table()
    assert found.equals(expected)


def cut_off(path: Path) -> None:
    os.truncate(path, 3_000_000)


def write_over(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(20_000_000)
        file.write(bytes(1000))


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("condition", ["", " WHERE id % 2 = 1"], ids=["all rows", "some rows"])
@pytest.mark.parametrize("change", [cut_off, write_over])
async def test_a_file_that_changes_while_it_is_sent_ends_the_read(
    pool: Pool, tmp_path: Path, change: Callable[[Path], None], condition: str
) -> None:
    path = Path(write(tmp_path / "t.parquet", images(600)))
    job = job_of(path, f"SELECT id, image FROM t{condition}", scan="" if condition else "t", shared=True)

    async def read() -> None:
        async with pool.run(job) as result:
            async for _ in result:
                change(path)

    with pytest.raises(VersionChanged):
        await read()
