"""The fast way gives what the engine gives, row for row, and is taken only where it is faster."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from connector.engine.pool.error_codes import Coded
from connector.engine.pool.pool import Pool
from connector.engine.pool.protocol import Job, Relation
from connector.engine.worker.read import duckdb_engine, parquet_scan
from tests.support import data
from tests.support.own_name import changed

ROWS = 20_000
NUMBERS = np.random.default_rng(1).random((20, ROWS), np.float32)
FLOATS = pa.table({"id": np.arange(ROWS)} | {f"f{number}": column for number, column in enumerate(NUMBERS)})
IMAGES = pa.table(
    {
        "name": [f"image-{n}" for n in range(300)],
        "image": pa.array([bytes([n % 256]) * (20_000 + 97 * n) for n in range(300)], pa.binary()),
    }
)
TEXT = data.table(1000)
SOME = np.random.default_rng(2)
NUMBERS_OF_ALL_KINDS = pa.table(
    {
        str(kind): pa.array(SOME.integers(0, 100, ROWS), pa.int64(), mask=SOME.random(ROWS) < 0.1).cast(kind)
        for kind in (pa.int8(), pa.uint16(), pa.int32(), pa.uint64(), pa.float32(), pa.float64())
    }
    | {"date": pa.array(SOME.integers(0, 20_000, ROWS), pa.int32(), mask=SOME.random(ROWS) < 0.5).cast(pa.date32())}
    | {"special": pa.array([float("nan"), float("inf"), -0.0, None] * (ROWS // 4))}
)
NEVER_NULL = pa.table({"n": pa.array(range(ROWS))}, schema=pa.schema([pa.field("n", pa.int64(), nullable=False)]))
WIDE = pa.table({f"w{number}": np.arange(600, dtype=np.float64) for number in range(2000)})
FEW = pa.table({"n": pa.array([number % 3 for number in range(ROWS)]).dictionary_encode()})


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize(
    "table",
    [FLOATS, IMAGES, TEXT, NUMBERS_OF_ALL_KINDS, NEVER_NULL, FEW, WIDE],
    ids=["floats", "images", "text", "numbers", "never null", "few", "wide"],
)
async def test_both_ways_give_the_same_rows_and_schema(pool: Pool, tmp_path: Path, table: pa.Table) -> None:
    pq.write_table(table, tmp_path / "t.parquet", row_group_size=5000)
    relation: Relation = data.relation("parquet", tmp_path / "t.parquet", tmp_path)
    columns = ", ".join(reversed(table.column_names))
    found = []
    for way in ("", "t"):
        job = Job(relations={"t": relation}, sql=f"SELECT {columns} FROM t", scan=way, batch_bytes=2**20)
        async with pool.run(job) as result:
            parts = [bytes(frame.payload) async for frame in result]
        assert max(map(len, parts)) < 2 * 2**20 + 2**16
        with pa.ipc.open_stream(b"".join((result.schema, *parts))) as reader:
            found.append(reader.read_all())
    assert found[0].schema.equals(found[1].schema)
    assert bits(found[0]).equals(bits(found[1]))
    assert found[0].num_rows == table.num_rows


def bits(table: pa.Table) -> pa.Table:
    """The same with whole numbers of their bits for floats: what is no number equals nothing."""
    whole = {pa.float32(): pa.int32(), pa.float64(): pa.int64()}
    columns = [column.combine_chunks() for column in table.columns]
    return pa.table([one.view(whole.get(one.type, one.type)) for one in columns], names=table.column_names)


@pytest.mark.parametrize(
    ("table", "expected"),
    [
        (IMAGES, True),
        (IMAGES.select(["image"]), True),
        (FLOATS, True),
        (NUMBERS_OF_ALL_KINDS, True),
        (FLOATS.append_column("more", TEXT["id"].cast(pa.string()).take([0] * ROWS)), False),
        (pa.table({"d": pa.array([1, 2]).cast(pa.decimal128(30, 2))}), False),
        (TEXT, False),
        (IMAGES.select(["name"]), False),
        (pa.table({}), False),
    ],
    ids=["images with names", "images", "floats", "numbers", "with a text", "decimals", "text", "names", "nothing"],
)
def test_the_fast_way_is_for_blobs_and_for_numbers(tmp_path: Path, table: pa.Table, expected: bool) -> None:
    path = tmp_path / "t.parquet"
    pq.write_table(table, path)
    assert parquet_scan.is_faster(table.schema, [str(path)], "parquet") is expected


def test_other_types_names_or_kinds_go_through_the_engine(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    pq.write_table(IMAGES, path)
    for schema, paths, kind in (
        (pa.schema([("image", pa.large_binary())]), [str(path)], "parquet"),
        (pa.schema([("IMAGE", pa.binary())]), [str(path)], "parquet"),
        (IMAGES.schema, [str(path)], "hive"),
        (IMAGES.schema, [], "parquet"),
    ):
        assert not parquet_scan.is_faster(schema, paths, kind)


def test_numbers_of_row_groups_that_are_large_or_among_many_readers_go_through_the_engine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, width = tmp_path / "t.parquet", 8 + 20 * 4
    pq.write_table(FLOATS, path, row_group_size=5000)
    assert parquet_scan.is_faster(FLOATS.schema, [str(path)], "parquet")
    assert not parquet_scan.is_faster(FLOATS.schema, [str(path)], "parquet", crowded=True)
    monkeypatch.setattr(parquet_scan, "_MADE_MAX", 5000 * width + 21 * parquet_scan._COLUMN - 1)
    parquet_scan._KNOWN.clear()
    assert not parquet_scan.is_faster(FLOATS.schema, [str(path)], "parquet")


@pytest.mark.parametrize(
    ("kind", "rows", "expected"),
    [
        (pa.float64(), 2**20, True),
        (pa.float64(), 2**20 + 1, False),
        (pa.int8(), 2**20, True),
    ],
    ids=["a block", "two blocks, which would make it twice", "small numbers"],
)
def test_a_row_group_of_several_blocks_goes_through_the_engine(
    tmp_path: Path, kind: pa.DataType, rows: int, expected: bool
) -> None:
    path = tmp_path / "t.parquet"
    pq.write_table(pa.table({"n": pa.repeat(pa.scalar(1, kind), rows)}), path, row_group_size=2**30)
    assert parquet_scan.is_faster(pa.schema([("n", kind)]), [str(path)], "parquet") is expected


@pytest.mark.parametrize("kind", [pa.int8(), pa.uint16()])
def test_small_numbers_count_with_what_they_are_made_of(
    tmp_path: Path, kind: pa.DataType, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, made = tmp_path / "t.parquet", 100 * (4 + kind.bit_width // 8) + parquet_scan._COLUMN
    pq.write_table(pa.table({"n": pa.repeat(pa.scalar(1, kind), 100)}), path)
    for most in (made, made - 1):
        parquet_scan._KNOWN.clear()
        monkeypatch.setattr(parquet_scan, "_MADE_MAX", most)
        assert parquet_scan.is_faster(pa.schema([("n", kind)]), [str(path)], "parquet") is (most == made)


@pytest.mark.parametrize(("columns", "expected"), [(1000, True), (5000, False)])
def test_rows_of_thousands_of_numbers_go_through_the_engine(tmp_path: Path, columns: int, expected: bool) -> None:
    """However few rows a row group has, Arrow takes some kilobytes for each column."""
    path, table = tmp_path / "t.parquet", pa.table({f"c{number}": [1.5] for number in range(columns)})
    pq.write_table(table, path)
    assert parquet_scan.is_faster(table.schema, [str(path)], "parquet") is expected


def test_what_a_file_has_beside_is_not_read_and_need_not_be_known(tmp_path: Path) -> None:
    """A column of another name that a name and a dot begin would be read with it; metadata may be of another writer."""
    path, schema = tmp_path / "t.parquet", pa.schema([("n", pa.int64())])
    table = pa.table({"n": [1, 2], "n.x": ["a", "b"]})
    pq.write_table(table, path)
    assert not parquet_scan.is_faster(schema, [str(path)], "parquet")
    pq.write_table(table.select(["n"]), path)
    assert parquet_scan.is_faster(schema, [str(path)], "parquet")
    whole = path.read_bytes()
    at = whole.index(b"/////", whole.index(b"ARROW:schema"))  # the length of a message in Base64
    path.write_bytes(whole[:at] + b"@@@@@" + whole[at + 5 :])
    assert not parquet_scan.is_faster(schema, [str(path)], "parquet")


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("beside", [[], [b"x" * 1000] * 7], ids=["alone", "beside blobs"])
async def test_differences_that_the_engine_has_written_are_read_by_it(
    pool: Pool, tmp_path: Path, beside: list[bytes]
) -> None:
    """Those of 32 bits can be wider than that, which Arrow does not read."""
    path, numbers = tmp_path / "t.parquet", [-(2**31), 2**31 - 1, -(2**31), 7, 2**31 - 1, 0, -(2**31)]
    table = pa.table({"n": pa.array(numbers, pa.int32())} | ({"blob": beside} if beside else {}))
    with duckdb_engine.connect() as con:
        con.register("given", table)
        con.execute(f"COPY given TO '{path}' (FORMAT parquet, PARQUET_VERSION v2)")
    assert "DELTA_BINARY_PACKED" in pq.read_metadata(path).row_group(0).column(0).encodings
    relation: Relation = data.relation("parquet", path, tmp_path)
    async with pool.run(Job(relations={"t": relation}, sql="SELECT * FROM t", scan="t")) as result:
        parts = [bytes(frame.payload) async for frame in result]
    with pa.ipc.open_stream(b"".join((result.schema, *parts))) as reader:
        assert reader.read_all().equals(table)


async def as_the_engine_has(pool: Pool, path: Path, copied: str, *, fast: bool) -> None:
    """Compare the rows of a file that the engine has written, read by whichever way is chosen, with its own."""
    with duckdb_engine.connect() as con:
        con.execute(f"COPY ({copied}) TO '{path}' (FORMAT parquet, PARQUET_VERSION v2)")
        told = con.sql(f"FROM '{path}'").to_arrow_table()
    assert parquet_scan.is_faster(told.schema, [str(path)], "parquet") is fast
    relation: Relation = data.relation("parquet", path, path.parent)
    async with pool.run(Job(relations={"t": relation}, sql="SELECT * FROM t", scan="t")) as result:
        parts = [bytes(frame.payload) async for frame in result]
    with pa.ipc.open_stream(b"".join((result.schema, *parts))) as reader:
        assert reader.read_all().equals(told)


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize(
    ("value", "fast"),
    [
        ("CASE WHEN i <> 5 THEN [i, i + 1, i + 2]::FLOAT[3] END", False),
        ("{'a': CASE WHEN i <> 5 THEN [i, i + 1]::FLOAT[2] END}", False),
        ("CASE WHEN i <> 5 THEN {'a': [i, i + 1]::FLOAT[2]} END", False),
        ("[[i, i]::FLOAT[2], NULL]", False),
        ("CASE WHEN i <> 5 THEN [[i, 1], [2, 3]]::FLOAT[2][2] END", False),
        ("MAP {i: CASE WHEN i <> 5 THEN [i, i]::FLOAT[2] END}", False),
        ("[-2147483648, 2147483647, -2147483648, i]::INTEGER[]", False),
        ("[i, i + 1, i + 2]::FLOAT[3]", True),
        ("[i, i + 1, i + 2]::FLOAT[]", True),
        ("CASE WHEN i <> 5 THEN [i, i + 1, i + 2]::FLOAT[] END", True),
        ("[[i, i + 1]::FLOAT[2], [1, 2]::FLOAT[2]]", True),
    ],
)
async def test_arrays_and_lists_that_the_engine_has_written_are_read_by_who_can(
    pool: Pool, tmp_path: Path, value: str, fast: bool
) -> None:
    """For an array of fixed size that is NULL it writes so many, of which Arrow expects one."""
    copied = f"SELECT encode('blob ' || i) AS blob, {value} AS e FROM range(10) t(i)"
    await as_the_engine_has(pool, tmp_path / "t.parquet", copied, fast=fast)


def lying(path: Path, number: int) -> None:
    """A file whose footer says in one place of several that there are 999 rows: they are 1000."""
    pq.write_table(pa.table({"n": range(1000)}), path, use_dictionary=False, write_statistics=False)
    whole, told, other = path.read_bytes(), b"\xd0\x0f", b"\xce\x0f"
    at = len(whole) - 8 - int.from_bytes(whole[-8:-4], "little")
    for _ in range(number + 1):
        at = whole.index(told, at + 1)
    path.write_bytes(whole[:at] + other + whole[at + len(told) :])


@pytest.mark.parametrize("number", range(3))
def test_a_footer_that_contradicts_itself_is_the_engines(tmp_path: Path, number: int) -> None:
    """It says that the file is corrupt, where Arrow gives as many rows as there seem to be."""
    path = tmp_path / "t.parquet"
    lying(path, number)
    group = pq.read_metadata(path).row_group(0)
    alike = group.num_rows == group.column(0).num_values
    assert parquet_scan.is_faster(pa.schema([("n", pa.int64())]), [str(path)], "parquet") is alike


def test_a_row_group_without_all_of_its_rows_ends_the_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cursor counts them: what follows would be taken for others."""
    path = str(tmp_path / "t.parquet")
    pq.write_table(FLOATS, path, row_group_size=5000)

    class Short(pq.ParquetFile):  # type: ignore[misc]  # the library has no types
        def read_row_group(self, *given: Any, **more: Any) -> pa.Table:
            return super().read_row_group(*given, **more).slice(1)

    monkeypatch.setattr(parquet_scan, "pq", changed(pq, ParquetFile=Short))
    spans = parquet_scan.spans([(path, 0, ROWS)], FLOATS.schema, rows=1000, target=2**20, threads=False)
    with pytest.raises(Coded, match="engine_failed"):
        list(next(spans))


def test_a_file_is_judged_once_and_one_that_is_another_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, judged, fits = tmp_path / "t.parquet", [], parquet_scan._fits
    monkeypatch.setattr(parquet_scan, "_KNOWN_MAX", 3)
    monkeypatch.setattr(parquet_scan, "_fits", lambda *given, **more: judged.append(given) or fits(*given, **more))
    schema = pa.schema([("n", pa.int64())])
    for number in range(6):
        pq.write_table(pa.table({"n": range(number + 1)} if number != 4 else {"n": ["a"]}), path)
        assert [parquet_scan.is_faster(schema, [str(path)], "parquet") for _ in range(3)] == [number != 4] * 3
        assert len(judged) == number + 1
    assert len(parquet_scan._KNOWN) == 3


SPANS = {
    "none": [],
    "the whole": [(0, ROWS)],
    "more than there is": [(0, 2**62)],
    "a row": [(4999, 5000)],
    "over a border": [(4990, 5010)],
    "again and back": [(15_000, 20_000), (100, 9_000), (0, 5_000), (100, 101)],
    "with one of nothing between": [(0, 10), (7, 7), (10, 20)],
    "beyond the end": [(ROWS, ROWS + 5), (3, 5)],
}


@pytest.mark.parametrize("threads", [False, True])
@pytest.mark.parametrize("wanted", SPANS.values(), ids=SPANS)
def test_spans_of_numbers_have_their_rows_and_no_others(
    tmp_path: Path, wanted: list[tuple[int, int]], threads: bool
) -> None:
    path = str(tmp_path / "t.parquet")
    pq.write_table(FLOATS, path, row_group_size=5000)
    schema = pa.schema([FLOATS.schema.field("f3"), FLOATS.schema.field("id")])  # in another order
    given = [(path, first, stop) for first, stop in wanted]
    found = [list(batches) for batches in parquet_scan.spans(given, schema, rows=1024, target=2**20, threads=threads)]
    assert len(found) == len(wanted)
    for batches, (first, stop) in zip(found, wanted, strict=True):
        expected = FLOATS.select(["f3", "id"]).slice(first, max(0, min(stop, ROWS) - first))
        assert pa.Table.from_batches(batches, schema).equals(expected)


def test_spans_of_several_files_come_in_their_order(tmp_path: Path) -> None:
    paths = [str(tmp_path / f"{number}.parquet") for number in range(3)]
    for number, path in enumerate(paths):
        pq.write_table(pa.table({"n": range(number * 100, number * 100 + 100)}), path, row_group_size=40)
    wanted = [(paths[2], 0, 50), (paths[0], 30, 90), (paths[2], 99, 100), (paths[1], 0, 1)]
    made = parquet_scan.spans(wanted, pa.schema([("n", pa.int64())]), rows=1000, target=2**20, threads=False)
    found = [[number for batch in batches for number in batch["n"].to_pylist()] for batches in made]
    assert found == [[*range(200, 250)], [*range(30, 90)], [299], [100]]


def test_row_groups_of_few_rows_come_joined(tmp_path: Path) -> None:
    path = str(tmp_path / "t.parquet")
    pq.write_table(FLOATS, path, row_group_size=100)
    ((*batches,),) = map(
        tuple, parquet_scan.spans([(path, 0, ROWS)], FLOATS.schema, rows=10_000, target=2**18, threads=False)
    )
    assert pa.Table.from_batches(batches).equals(FLOATS)
    assert len(batches) < 50, "the first goes out at once, the others are joined"


def test_whoever_stops_leaves_no_thread_and_no_row_group_is_made_for_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, made = str(tmp_path / "t.parquet"), []
    pq.write_table(FLOATS, path, row_group_size=1000)

    class Counted(pq.ParquetFile):  # type: ignore[misc]  # the library has no types
        def read_row_group(self, group: int, **given: Any) -> pa.Table:
            made.append(group)
            return super().read_row_group(group, **given)

    monkeypatch.setattr(parquet_scan, "pq", changed(pq, ParquetFile=Counted))
    before = threading.active_count()
    spans = parquet_scan.spans([(path, 0, ROWS)], FLOATS.schema, rows=500, target=2**16, threads=False)
    batches = next(spans)
    assert [next(batches).num_rows, next(batches).num_rows] == [500, 500]
    del batches
    spans.close()
    assert (threading.active_count(), len(set(made)) <= 2) == (before, True)


def test_columns_of_a_row_group_that_contradict_each_other_end_the_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One thread makes some at a time."""
    path = str(tmp_path / "t.parquet")
    pq.write_table(FLOATS, path, row_group_size=5000)

    class Uneven(pq.ParquetFile):  # type: ignore[misc]  # the library has no types
        def read_row_group(self, group: int, columns: list[str], **more: Any) -> pa.Table:
            return super().read_row_group(group, columns=columns, **more).slice(len(columns) == 5)

    monkeypatch.setattr(parquet_scan, "pq", changed(pq, ParquetFile=Uneven))
    spans = parquet_scan.spans([(path, 0, ROWS)], FLOATS.schema, rows=1000, target=2**20, threads=False)
    with pytest.raises(Coded, match="engine_failed"):
        list(next(spans))


def test_what_cannot_be_read_is_told_where_its_rows_would_be(tmp_path: Path) -> None:
    path = tmp_path / "t.parquet"
    pq.write_table(FLOATS, path, row_group_size=5000, compression="zstd")
    schema, half = FLOATS.schema, path.stat().st_size // 2
    with path.open("r+b") as file:
        file.seek(half)
        file.write(bytes(1000))
    made = parquet_scan.spans(
        [(str(path), 0, 5000), (str(path), 5000, ROWS)], schema, rows=1000, target=2**20, threads=False
    )
    assert sum(batch.num_rows for batch in next(made)) == 5000
    with pytest.raises((OSError, pa.ArrowException)):
        list(next(made))
