"""Range after range: what is the same for all of them is found out once."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import closing
from pathlib import Path
from unittest import mock

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from connector.datasets.sources import parquet
from connector.engine.pool.error_codes import Coded
from connector.engine.pool.protocol import Job, Limits, Range, Ranges, Relation
from connector.engine.worker.read import duckdb_engine, parquet_scan, row_ranges
from connector.engine.worker.read.job_files import Opening, limits_of


@pytest.mark.parametrize("readers", [1, 2])
@pytest.mark.parametrize("kind", ["blobs", "numbers", "texts"])
def test_the_schema_is_asked_for_once_and_each_range_has_its_rows(tmp_path: Path, kind: str, readers: int) -> None:
    make = {"blobs": lambda number: bytes([number]) * 10, "numbers": float, "texts": str}[kind]
    values = [make(number) for number in range(40)]
    table, path = pa.table({"id": range(40), "value": values}), str(tmp_path / "t.parquet")
    pq.write_table(table, path, row_group_size=10)
    con = duckdb_engine.connect()
    cons = [con, *(con.cursor() for _ in range(readers - 1))]
    job = Job(relations={"t": Relation("parquet")}, sql="SELECT * FROM t", scan="t")
    wanted = [Range(number, 0, number * 10, number * 10 + 10) for number in (3, 0, 2)]
    with (
        mock.patch.object(duckdb_engine, "schema_of", wraps=duckdb_engine.schema_of) as asked,
        mock.patch.object(parquet_scan, "is_faster", wraps=parquet_scan.is_faster) as judged,
    ):
        schema, parts = row_ranges.read(cons, job, Ranges(wanted, "00" * 32), [path])
        with closing(parts):
            found = [batch for batch, *_ in parts]
    assert schema == table.schema
    assert pa.Table.from_batches(found).column("id").to_pylist() == [*range(30, 40), *range(10), *range(20, 30)]
    assert (asked.call_count, judged.call_count) == (1, 1)


IN = 'SELECT * FROM (SELECT "a"."id" FROM "t" AS "a" WHERE "a"."id" IN ($p0, $p1)) AS "x"'


@pytest.mark.parametrize(
    ("job", "threads"),
    [
        (Job(sql=IN, ordered=True, limits=Limits(threads=2)), 1),
        (Job(sql="SELECT 1", only=Ranges([], "", "place"), limits=Limits(threads=2)), 1),
        (Job(sql="SELECT 1", only=Ranges([], ""), limits=Limits(threads=2)), 2),
        (Job(sql="SELECT 1", ordered=True, limits=Limits(threads=2)), 2),
        (Job(sql=IN, limits=Limits(threads=2)), 2),
    ],
    ids=["IN", "with places", "whole ranges", "a scan", "somebody's question"],
)
def test_rows_that_come_as_they_are_stored_come_from_one_thread_where_several_would_mix_them(
    job: Job, threads: int
) -> None:
    assert limits_of(job).threads == threads


def test_all_connections_that_ranges_are_read_with_are_set_alike(tmp_path: Path) -> None:
    """Not the time zone, either: days and hours would be others in some of the blocks."""
    opening = Opening(Limits(threads=2), tmp_path, readers=2)
    with closing(opening):
        opening.ready({}, duckdb_engine.connect)
        one, other = (con.execute("SELECT name, value FROM duckdb_settings()").fetchall() for con in opening.cons)
    assert one == other
    assert ("TimeZone", "UTC") in one


def test_what_is_no_number_is_found_whatever_a_footer_says(tmp_path: Path) -> None:
    """It is greater than any number, and no greatest value of a row group says that it is there."""
    path = str(tmp_path / "t.parquet")
    pq.write_table(pa.table({"x": [1.0, float("nan"), 9.0, 2.0, 2.0, float("nan")]}), path, row_group_size=2)
    for condition, rows in (("x > 5", 3), ("x <> 2", 4)):
        con = duckdb_engine.connect()
        parquet.attach(con, "t", [path], {})
        assert len(duckdb_engine.query(con, f"SELECT * FROM t WHERE {condition}", ()).fetchall()) == rows


def given(tmp_path: Path, batches: list[list[int]]) -> Generator[row_ranges.RangeBatch]:
    """A range whose rows the engine gives by these numbers."""
    path = str(tmp_path / "t.parquet")
    pq.write_table(pa.table({"id": range(20)}), path)
    schema = pa.schema([("id", pa.int64()), ("row", pa.int64())])
    coming = [pa.record_batch([numbers, numbers], schema=schema) for numbers in batches]
    job = Job(relations={"t": Relation("parquet")}, sql="SELECT * FROM t")
    with mock.patch.object(duckdb_engine, "batches", return_value=(schema, iter(coming))):
        return row_ranges.read([duckdb_engine.connect()], job, Ranges([Range(0, 0, 3, 10)], "00" * 32, "row"), [path])[
            1
        ]


def test_rows_in_their_order_come(tmp_path: Path) -> None:
    with closing(given(tmp_path, [[3], [], [5, 6, 8], [9]])) as parts:
        assert [batch.column(0).to_pylist() for batch, *_ in parts] == [[3], [5, 6, 8], [9]]


@pytest.mark.parametrize(
    "batches",
    [[[3, 5, 4]], [[3, 4], [4, 5]], [[5], [3, 4]], [[2, 3]], [[3, 10]], [[3, 3]]],
    ids=["in a batch", "twice", "of batches", "before the range", "after the range", "twice in a batch"],
)
def test_rows_in_another_order_end_the_read(tmp_path: Path, batches: list[list[int]]) -> None:
    """Whatever the engine does: a cursor would stand for rows that have not come."""
    with closing(given(tmp_path, batches)) as parts, pytest.raises(Coded, match="engine_failed"):
        list(parts)
