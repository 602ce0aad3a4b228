"""Every kind of source gives the rows of its files, is pinned to them, and refuses what it must not read."""

from __future__ import annotations

import base64
import codecs
import datetime as dt
import errno
import gzip
import json
import math
import os
import resource
import socket
import struct
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import replace
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import polars
import pyarrow as pa
import pyarrow.dataset
import pyarrow.parquet as pq
import pyarrow.parquet.encryption as encryption
import pytest
import pytest_asyncio

from connector.dataplane import job_builder
from connector.datasets.sources import (
    SOURCES,
    RowRange,
    arrow_dataset,
    arrow_ipc,
    check_options,
    divisible_source,
    guess_kind,
    read_options,
    remote_source,
    source,
    source_files,
)
from connector.engine.pool.error_codes import error_of
from connector.engine.pool.pool import Pool
from connector.engine.pool.protocol import Job, Relation
from connector.errors import ConnectorError, Invalid, PathRefused, SourceUnreadable, Unavailable, VersionChanged
from connector.store.tables import DatasetVersion
from tests.suites import sources as suite
from tests.support import data
from tests.support.own_name import changed

worker = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def pool(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Pool]:
    roots = [tmp_path_factory.getbasetemp()]
    async with Pool(tmp_path_factory.mktemp("work"), size=1, warm=1, writable=roots, readable=[]) as started:
        yield started


async def registered(pool: Pool, kind: str, path: Path, root: Path, **options: Any) -> Relation:
    """The relation after registration: text has become Parquet."""
    relation = data.relation(kind, path, root, **options)
    if not source(kind).CONVERTED:
        return relation
    target = root / "converted.parquet"
    await pool.ask(Job(kind="convert", relations={"t": relation}, arguments={"target": str(target)}))
    return data.relation("parquet", target, root)


async def rows_of(pool: Pool, relation: Relation, sql: str = "SELECT * FROM t") -> pa.Table:
    async with pool.run(Job(relations={"t": relation}, sql=sql)) as result:
        parts = [bytes(frame.payload) async for frame in result]
    with pa.ipc.open_stream(b"".join((result.schema, *parts))) as reader:
        return reader.read_all()


@worker
@pytest.mark.parametrize("case", suite.CASES, ids=lambda case: f"{case.kind}-{case.write.__name__}")
async def test_rows_are_those_of_the_files(pool: Pool, tmp_path: Path, case: suite.Case) -> None:
    relation = await registered(pool, case.kind, case.write(tmp_path), tmp_path, **case.options)
    table = await rows_of(pool, relation)
    assert table.select(list(case.columns)).to_pylist() == suite.expected(case.columns)


@pytest.mark.parametrize("sql", ["FROM t", "FROM t WHERE n % 2 = 0"])
def test_an_arrow_file_is_read_as_fast_as_its_reader_is(tmp_path: Path, sql: str) -> None:
    batches = [
        pa.record_batch({"n": pa.array(range(start, start + 100_000))}) for start in range(0, 2_000_000, 100_000)
    ]
    path = tmp_path / "rows.arrow"
    with pa.ipc.new_file(path, batches[0].schema) as writer:
        for batch in batches:
            writer.write_batch(batch)
    held, before = [], pa.total_allocated_bytes()
    with duckdb.connect(":memory:", config={"threads": 1}) as con:
        arrow_ipc.attach(con, "t", [str(path)], {})
        for _ in con.sql(sql).to_arrow_reader(50_000):
            time.sleep(0.001)
            held.append(pa.total_allocated_bytes() - before)
    assert max(held) < 4 * batches[0].nbytes


@pytest.fixture(scope="module", params=["blobs", "numbers"])
def large(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, pa.RecordBatch]:
    """A file of three large batches, and the first of them."""
    rows = 64 if request.param == "blobs" else 2**20
    values = [os.urandom(2**19)] * rows if request.param == "blobs" else np.arange(4 * rows)[:rows]
    batches = [
        pa.record_batch({"n": np.arange(start, start + rows), "x": values, "y": values})
        for start in range(0, 3 * rows, rows)
    ]
    path = tmp_path_factory.mktemp("large") / "rows.arrow"
    with pa.ipc.new_file(path, batches[0].schema) as writer:
        for batch in batches:
            writer.write_batch(batch)
    return path, batches[0]


@pytest.mark.parametrize("shown", ["*", "n"])
@pytest.mark.parametrize("condition", ["", " WHERE n > 5"])
@pytest.mark.parametrize("threads", [1, 2])
def test_of_large_batches_of_an_arrow_file_one_is_held(
    large: tuple[Path, pa.RecordBatch], shown: str, condition: str, threads: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each thread of the engine holds what it had last while it asks for more, and so does each step on the way."""
    monkeypatch.setattr(arrow_dataset, "_WHOLE", 2**22)
    monkeypatch.setattr(arrow_dataset, "_PIECE", 2**20)
    path, first = large
    rows = len(first)
    with duckdb.connect(":memory:", config={"threads": threads}) as con:
        for attach in (arrow_ipc.attach, partial(arrow_ipc.attach_rows, rows=RowRange(0, 3, 3 * rows, "place"))):
            attach(con, "t", [str(path)], {})
            answer = con.sql(f"SELECT {shown} FROM t{condition}")
            found, most = _most_held(lambda answer=answer: sum(map(len, answer.to_arrow_reader(rows // 16))))
            assert found == 3 * rows - (6 if condition else 3 if attach is not arrow_ipc.attach else 0)
            assert most < 1.7 * first.nbytes


def _most_held(work: Callable[[], int]) -> tuple[int, int]:
    """What it gives, and the most bytes that Arrow held meanwhile."""
    before, held = pa.total_allocated_bytes(), [0]
    with ThreadPoolExecutor(1) as beside:
        coming = beside.submit(work)
        while not coming.done():
            held.append(pa.total_allocated_bytes() - before)
            time.sleep(0.0002)
    return coming.result(), max(held)


@pytest.mark.parametrize("kind", ["union", "view", "dictionary", "nested"])
def test_pieces_of_a_large_batch_have_its_rows(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(arrow_dataset, "_WHOLE", 100)
    monkeypatch.setattr(arrow_dataset, "_PIECE", 50)
    words = pa.array([None if number % 7 == 3 else f"a longer word {number % 11}" for number in range(100)])
    numbers = pa.array(range(100))
    column = {
        "union": lambda: pa.UnionArray.from_sparse(pa.array([n % 2 for n in range(100)], pa.int8()), [words, numbers]),
        "view": lambda: words.cast(pa.string_view()),
        "dictionary": words.dictionary_encode,
        "nested": lambda: pa.array([[{"a": word}] * (n % 3) for n, word in enumerate(words.to_pylist())]),
    }[kind]()
    batch, path = pa.record_batch({"n": numbers, "x": column}), tmp_path / "rows.arrow"
    with pa.ipc.new_file(path, batch.schema) as writer:
        writer.write_batch(batch)
    with duckdb.connect(":memory:") as con:
        arrow_ipc.attach(con, "t", [str(path)], {})
        assert con.sql("SELECT x FROM t WHERE n > 20").fetchall() == [(one,) for one in column.to_pylist()[21:]]
        arrow_ipc.attach_rows(con, "t", [str(path)], {}, RowRange(0, 30, 90, "place"))
        assert con.sql("SELECT x, place FROM t").fetchall() == list(
            zip(column.to_pylist()[30:90], range(30, 90), strict=True)
        )


def test_rows_of_an_arrow_file_are_counted_without_its_blobs(tmp_path: Path) -> None:
    """Whose column is often the first: the whole file would be read, for each range of it."""
    table, path = pa.table({"image": [os.urandom(2**20)] * 16, "id": range(16)}), tmp_path / "rows.arrow"
    with pa.ipc.new_file(path, table.schema) as out:
        out.write_table(table, max_chunksize=4)

    def read() -> int:
        return int(Path("/proc/self/io").read_text().split()[1])

    before = read()
    assert [rows for rows, _ in arrow_ipc.groups([str(path)])[0]] == [4] * 4
    assert read() - before < 2**20


_FIRST = pa.table({"x": pa.array([1, 2], pa.int64()), "y": ["a", "b"]})
_SECOND = {
    "alike": pa.table({"x": pa.array([3], pa.int64()), "y": ["c"]}),
    "another order": pa.table({"y": ["c"], "x": pa.array([3], pa.int64())}),
    "a column more": pa.table({"z": [0], "x": pa.array([3], pa.int64()), "y": ["c"]}),
    "a column less": pa.table({"x": pa.array([3], pa.int64())}),
    "a smaller type": pa.table({"x": pa.array([3], pa.int32()), "y": ["c"]}),
    "a type that does not fit": pa.table({"x": ["three"], "y": ["c"]}),
}


@pytest.mark.parametrize("second", _SECOND.values(), ids=_SECOND)
@pytest.mark.parametrize("sql", ["FROM t", "SELECT y FROM t WHERE x > 1", "SELECT x FROM t", "SELECT count(*) FROM t"])
def test_arrow_files_are_one_table_as_arrow_has_them(tmp_path: Path, second: pa.Table, sql: str) -> None:
    paths = [str(tmp_path / name) for name in ("first.arrow", "second.arrow")]
    for path, table in zip(paths, (_FIRST, second), strict=True):
        with pa.ipc.new_file(path, table.schema) as writer:
            writer.write_table(table)

    def rows(con: duckdb.DuckDBPyConnection) -> Any:
        try:
            return con.sql(sql).fetchall()
        except duckdb.InvalidInputException:
            return "refused"

    with duckdb.connect(":memory:") as ours, duckdb.connect(":memory:") as theirs:
        arrow_ipc.attach(ours, "t", paths, {})
        theirs.register("t", pa.dataset.dataset(paths, format="ipc"))
        assert rows(ours) == rows(theirs)


def test_a_condition_leaves_out_rows_of_a_union(tmp_path: Path) -> None:
    children = [pa.array([10, 11, 12]), pa.array(["a", "b", "c"])]
    table = pa.table({"n": [0, 1, 2], "either": pa.UnionArray.from_sparse(pa.array([0, 1, 0], pa.int8()), children)})
    path = tmp_path / "rows.arrow"
    with pa.ipc.new_file(path, table.schema) as writer:
        writer.write_table(table)
    with duckdb.connect(":memory:") as con:
        arrow_ipc.attach(con, "t", [str(path)], {})
        assert con.sql("SELECT either FROM t WHERE n > 0").fetchall() == [("b",), (12,)]
        assert con.sql("SELECT either FROM t WHERE n > 2").fetchall() == []


@worker
@pytest.mark.parametrize("case", suite.CASES, ids=lambda case: f"{case.kind}-{case.write.__name__}")
async def test_profile_counts_rows_and_digests_files(pool: Pool, tmp_path: Path, case: suite.Case) -> None:
    relation = await registered(pool, case.kind, case.write(tmp_path), tmp_path, **case.options)
    profile = await pool.ask(Job(kind="profile", relations={"t": relation}))
    columns = {column["name"]: column for column in profile["columns"]}
    assert profile["rows"] == suite.ROWS
    assert columns["gap"]["null_share"] == pytest.approx(0.1)
    assert (columns["id"]["min"], columns["id"]["max"]) == ("0", "2999")
    assert abs(columns["name"]["distinct"] - 97) <= 5
    assert all(len(file["sha256"]) == 64 for file in profile["files"])


@worker
@pytest.mark.parametrize("case", suite.CASES, ids=lambda case: f"{case.kind}-{case.write.__name__}")
async def test_changed_file_is_refused(pool: Pool, tmp_path: Path, case: suite.Case) -> None:
    relation = await registered(pool, case.kind, case.write(tmp_path), tmp_path, **case.options)
    path = Path(relation.files[-1]["path"])
    _append(path, b"more")
    with pytest.raises(VersionChanged) as raised:
        await rows_of(pool, relation)
    assert str(tmp_path) not in str(raised.value.problem())


@worker
async def test_partition_folders_become_columns_and_prune(pool: Pool, tmp_path: Path) -> None:
    top = next(case.write for case in suite.CASES if case.kind == "hive")(tmp_path)
    table = await rows_of(pool, data.relation("hive", top, tmp_path), "SELECT year, count(*) AS n FROM t GROUP BY 1")
    assert sorted(table.to_pylist(), key=lambda row: row["year"]) == [
        {"year": 2020 + number, "n": 1000} for number in range(3)
    ]
    table = await rows_of(pool, data.relation("hive", top, tmp_path, guess_types=False), "SELECT DISTINCT year FROM t")
    assert sorted(table["year"].to_pylist()) == ["2020", "2021", "2022"]


FOLDERS = ["x=y", "==", "a\\b", "line\nline", "a\rb", "*", "[1]", "{a,b}", "a?", "O'Brien", '"', "a b", "ü😀"]


@worker
@pytest.mark.parametrize("value", FOLDERS)
async def test_a_partition_folder_may_hold_any_text(pool: Pool, tmp_path: Path, value: str) -> None:
    for place in (f"k={value}", "k=z"):
        (tmp_path / "top" / place).mkdir(parents=True)
        pq.write_table(_FIRST, tmp_path / "top" / place / "part.parquet")
    relation = data.relation("hive", tmp_path / "top", tmp_path)
    table = await rows_of(pool, relation, "SELECT k, count(*) AS n FROM t GROUP BY k ORDER BY k = 'z'")
    assert table.to_pylist() == [{"k": value, "n": 2}, {"k": "z", "n": 2}]


_FIVE = pa.table({"n": [1], "x": pa.array([5], pa.int32())})
FOLDERS_REFUSED = {  # a folder, what its file holds, and the code
    "in place of a column": ("x=6", _FIVE, "columns_repeated"),
    "in place of one in another case": ("X=6", _FIVE, "columns_repeated"),
    "in place of one of more values": ("x=5", pa.table({"x": [5, 6]}), "columns_repeated"),
    "in place of one with nulls": ("x=5", pa.table({"x": [5, None]}), "columns_repeated"),
    "in place of a number that is none": ("x=1.0", pa.table({"x": [1.0, math.nan]}), "columns_repeated"),
    "in place of fractions, which it has as text": ("x=1.5", pa.table({"x": [1.5]}), "columns_repeated"),
    "in place of truths, which it has as text": ("x=True", pa.table({"x": [True]}), "columns_repeated"),
    "in place of text, which it has as a number": ("x=1", pa.table({"x": ["1"]}), "columns_repeated"),
    "in place of moments, which it has as text": (
        "x=2020-01-02 10%3A00%3A00",
        pa.table({"x": [dt.datetime(2020, 1, 2, 10)]}),
        "columns_repeated",
    ),
    "in place of a text with a sign that it has not": ("x=a%20b", pa.table({"x": ["a%20b"]}), "columns_repeated"),
    "in place of a struct": ("x=5", pa.table({"x": [{"y": 5}]}), "columns_repeated"),
    "beside one with its accent apart": ("e\u0301=1", pa.table({"\u00e9": [2]}), "columns_repeated"),
    "beside one in another case of its accent": ("\u00c9=1", pa.table({"\u00e9": [2]}), "columns_repeated"),
    "twice": ("a=1/a=2", _FIVE, "columns_repeated"),
    "twice in another case": ("a=1/A=2", _FIVE, "columns_repeated"),
    "twice, once with its accent apart": ("\u00e9=1/e\u0301=2", _FIVE, "columns_repeated"),
    "a word for a date": ("d=infinity", _FIVE, "value_unmappable"),
    "the first moment": ("d=epoch", _FIVE, "value_unmappable"),
    "a date before Christ": ("d=0044-03-15 (BC)", _FIVE, "value_unmappable"),
    "a number of hex": ("d=0x10", _FIVE, "value_unmappable"),
    "nanoseconds": ("d=2024-01-01 00:00:00.123456789", _FIVE, "value_unmappable"),
    "half a letter": ("d=caf%C3", _FIVE, "value_unmappable"),
    "the end of a day": ("d=2024-01-01 24:00:00", _FIVE, "value_unmappable"),
    "a pattern for a name": ("d*[1]=1", _FIVE, "partition_unnamed"),
    "a line end in a name": ("d\n=1", _FIVE, "partition_unnamed"),
    "no name": ("=1", _FIVE, "partition_unnamed"),
}


@worker
@pytest.mark.parametrize("name", list(FOLDERS_REFUSED))
async def test_a_folder_that_would_alter_a_value_is_refused_by_name(pool: Pool, tmp_path: Path, name: str) -> None:
    place, table, code = FOLDERS_REFUSED[name]
    (tmp_path / "top" / place).mkdir(parents=True)
    pq.write_table(table, tmp_path / "top" / place / "t.parquet")
    with pytest.raises(SourceUnreadable, match=place.split("/")[-1][0]) as raised:
        await profiled(pool, "hive", tmp_path / "top", tmp_path)
    assert raised.value.code == code


@worker
@pytest.mark.parametrize(
    ("held", "guess", "advised"),
    [
        ("1", True, True),
        (5, False, True),
        (dt.date(2020, 1, 2), False, True),
        (dt.datetime(2020, 1, 2, 10), False, True),
        (1.5, True, False),
        (Decimal("1.5"), True, False),
        (True, True, False),
    ],
)
async def test_an_option_is_advised_where_it_could_help(
    pool: Pool, tmp_path: Path, held: object, guess: bool, advised: bool
) -> None:
    folder = str(held)
    (tmp_path / "top" / f"x={folder}").mkdir(parents=True)
    pq.write_table(pa.table({"x": [held]}), tmp_path / "top" / f"x={folder}" / "t.parquet")
    relation = data.relation("hive", tmp_path / "top", tmp_path, guess_types=guess)
    with pytest.raises(SourceUnreadable, match="rename the folder") as raised:
        await pool.ask(Job(kind="profile", relations={"t": relation}))
    assert ("guess_types" in str(raised.value)) is advised


FOLDERS_KEPT = {
    "the value of its column": ("x=5", _FIVE, {}, 5),
    "a text of it": ("x=a b", pa.table({"x": ["a b"]}), {}, "a b"),
    "a text of it with signs as programs write them": ("x=a%20b%2Fc", pa.table({"x": ["a b/c"]}), {}, "a b/c"),
    "a text of it with a sign that stands for none": ("x=100%", pa.table({"x": ["100%"]}), {}, "100%"),
    "a text of it with digits": ("x=1", pa.table({"x": ["1"]}), {"guess_types": False}, "1"),
    "a moment of it": (
        "x=2020-01-02 10:00:00",
        pa.table({"x": [dt.datetime(2020, 1, 2, 10)]}),
        {},
        dt.datetime(2020, 1, 2, 10),
    ),
    "no row of it": ("x=5", _FIVE.slice(0, 0), {}, None),
    "no value": ("x=__HIVE_DEFAULT_PARTITION__", pa.table({"n": [1]}), {}, None),
    "a date": ("x=2020-01-02", pa.table({"n": [1]}), {}, dt.date(2020, 1, 2)),
    "a moment": ("x=2020-01-02 10:00:00.5", pa.table({"n": [1]}), {}, dt.datetime(2020, 1, 2, 10, 0, 0, 500_000)),
    "a word as text": ("x=epoch", pa.table({"n": [1]}), {"guess_types": False}, "epoch"),
}


@worker
@pytest.mark.parametrize("name", list(FOLDERS_KEPT))
async def test_a_folder_with_a_value_of_its_own_is_a_column(pool: Pool, tmp_path: Path, name: str) -> None:
    place, table, options, value = FOLDERS_KEPT[name]
    (tmp_path / "top" / place).mkdir(parents=True)
    pq.write_table(table, tmp_path / "top" / place / "t.parquet")
    relation = data.relation("hive", tmp_path / "top", tmp_path, **options)
    await pool.ask(Job(kind="profile", relations={"t": relation}))
    assert (await rows_of(pool, relation))["x"].to_pylist() == [value] * len(table)


BAD_FILES = {
    "garbage": ("parquet", lambda p: p.write_bytes(b"PAR1" + os.urandom(2000) + b"PAR1"), "not_parquet"),
    "text": ("parquet", lambda p: p.write_text("a,b\n1,2\n"), "not_parquet"),
    "empty": ("parquet", lambda p: p.write_bytes(b""), "not_parquet"),
    "cut": ("parquet", lambda p: p.write_bytes(data.parquet(p).read_bytes()[:-100]), "not_parquet"),
    "brotli": ("parquet", lambda p: pq.write_table(data.table(100), p, compression="brotli"), "codec_refused"),
    "damaged page": ("parquet", lambda p: _overwrite(data.parquet(p, codec="none"), 4, 4000), None),
    "damaged arrow": ("arrow_ipc", lambda p: p.write_bytes(b"ARROW1" + os.urandom(500)), None),
    "bad csv": ("csv", lambda p: p.write_text("a,b\n1,2\n" + "3,4\n" * 50 + "5,6,7,8\n"), "lines_unreadable"),
    "bad json": ("jsonl", lambda p: p.write_text('{"a": 1}\n{"a": \n'), "lines_unreadable"),
}


@worker
@pytest.mark.parametrize("name", list(BAD_FILES))
async def test_bad_files_are_refused_at_registration(pool: Pool, tmp_path: Path, name: str) -> None:
    kind, write, code = BAD_FILES[name]
    path = tmp_path / "bad"
    write(path)
    relation = data.relation(kind, path, tmp_path)
    job = (
        Job(kind="convert", relations={"t": relation}, arguments={"target": str(tmp_path / "out.parquet")})
        if source(kind).CONVERTED
        else Job(kind="profile", relations={"t": relation})
    )
    with pytest.raises(ConnectorError) as raised:
        await pool.ask(job)
    assert raised.value.code == code or code is None
    assert not (tmp_path / "out.parquet").exists()


@worker
@pytest.mark.parametrize(
    ("written", "told"),
    [
        (b"a,b", r"came text: 't\.txt'; write it again, or name the kind that it is of \(--kind csv or jsonl\)"),
        (b"", r"came an empty file: 't\.txt'; write it again"),
        (b"PK\x03\x04\x14", r"came an Excel workbook \(\.xlsx\) or another archive: 't\.txt'; save its table as CSV"),
        (b"ARROW1\x00", r"came an Arrow file: 't\.txt'; name its kind, as by --kind arrow_ipc"),
        (b"PAR1\x00\x00PARE", r"came a damaged or encrypted one.*: 't\.txt'; write it again"),
        (b"\x00\x01", r"came something else .*; write it again, or name the kind that it is of \(parquet, hive,"),
    ],
)
async def test_a_file_that_was_taken_for_parquet_is_told_as_what_it_is(
    pool: Pool, tmp_path: Path, written: bytes, told: str
) -> None:
    (tmp_path / "t.txt").write_bytes(written)
    with pytest.raises(SourceUnreadable, match=told):
        await profiled(pool, guess_kind(str(tmp_path / "t.txt")), tmp_path / "t.txt", tmp_path)


@pytest.mark.parametrize(
    ("names", "told"),
    [
        ([], "no files at all, or hidden ones only; name a directory with data"),
        (["a.csv", "notes.txt"], "name the kind that its files are of, as by --kind csv"),
        (["notes.txt"], "name the kind that its files are of$"),
    ],
)
def test_a_directory_without_files_of_a_kind_is_told_which_it_has(tmp_path: Path, names: list[str], told: str) -> None:
    for name in names:
        (tmp_path / name).write_text("a,b")
    with pytest.raises(PathRefused, match=told):
        source("hive").find(str(tmp_path), roots=[tmp_path], options={})


@worker
async def test_bad_csv_lines_within_the_allowance_are_reported_by_number(pool: Pool, tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("a,b\n" + "1,2\n" * 50 + "5,6,7,8\n")
    relation = data.relation("csv", path, tmp_path, skip_bad_lines=2)
    job = Job(kind="convert", relations={"t": relation}, arguments={"target": str(tmp_path / "out.parquet")})
    report = await pool.ask(job)
    assert (report["rows"], report["left_out_count"]) == (50, 1)
    assert report["left_out"][0]["line"] == 52
    with pytest.raises(ConnectorError, match=r"came 1 or more: line 52 \(too many columns\); correct"):
        await pool.ask(
            Job(
                kind="convert",
                relations={"t": data.relation("csv", path, tmp_path)},
                arguments={"target": str(tmp_path / "none.parquet")},
            )
        )


@worker
async def test_a_bad_csv_line_counts_once_whatever_is_wrong_with_it(pool: Pool, tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("a,b,c\n" + "1,2,3\n" * 50 + "1\nx,2,3,4,5\n2\n")
    relation = data.relation("csv", path, tmp_path, skip_bad_lines=3)
    job = Job(kind="convert", relations={"t": relation}, arguments={"target": str(tmp_path / "out.parquet")})
    report = await pool.ask(job)
    assert (report["rows"], report["left_out_count"]) == (50, 3)
    assert [(one["line"], one["column"]) for one in report["left_out"]] == [(52, "b"), (53, None), (54, "b")]
    few = data.relation("csv", path, tmp_path, skip_bad_lines=2)
    with pytest.raises(ConnectorError, match="at most 2 unreadable lines, came 3 or more: line 52"):
        await pool.ask(replace(job, relations={"t": few}))


@worker
async def test_csv_lines_with_more_faults_than_are_told_of_are_too_many(pool: Pool, tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("a,b\n" + "1,2\n" * 50 + "1,2" + ",3" * 500 + "\n" + "1\n" * 9)
    relation = data.relation("csv", path, tmp_path, skip_bad_lines=1)
    job = Job(kind="convert", relations={"t": relation}, arguments={"target": str(tmp_path / "out.parquet")})
    with pytest.raises(ConnectorError, match="at most 1 unreadable line, came 1 or more: line 52"):
        await pool.ask(job)


BAD_JSON = {
    "cut": (b'{"a":\n', r"line 3 \(no json at character 6\)"),
    "two on one line": (b'{"a": 1} {"a": 2}\n', r"line 3 \(no json at character 10\)"),
    "no text": (b'{"a": "\xe4"}\n', r"line 3 \(not in utf-8\)"),
    "a key twice": (b'{"a": 1, "a": 2}\n', r"line 3 \(a key twice in one object\)"),
    "half a letter": (b'{"a": ["\\ud83d"]}\n', r"line 3 \(half a letter\)"),
    "deep": (b'{"a": ' * 128 + b"1" + b"}" * 128 + b"\n", r"line 3 \(nested deeper than 127\)"),
    "deep in a text alone": (b'{"a": "\\"' + b"{" * 200 + b'"}\n{"a":\n', r"came 1 or more: line 4 \("),
    "a list": (b"[1, 2]\n", r"line 3 \(a list; write each object as a line of its own\)"),
    "two of them": (b'{"a": \n\nx\n', r"came 2 or more: line 3 \(.*\), line 5 \(.*\); correct"),
}


@worker
@pytest.mark.parametrize("name", list(BAD_JSON))
@pytest.mark.parametrize("ending", [".jsonl", ".jsonl.gz"])
async def test_bad_lines_of_json_are_refused_by_number(pool: Pool, tmp_path: Path, name: str, ending: str) -> None:
    line, told = BAD_JSON[name]
    write = gzip.compress if ending.endswith(".gz") else bytes
    path = tmp_path / f"t{ending}"
    path.write_bytes(write(b'{"a": 1}\n\n' + line + b'{"a": 3}\n' * 5000))
    job = _conversion(data.relation("jsonl", path, tmp_path), tmp_path)
    with pytest.raises(ConnectorError, match=told) as raised:
        await pool.ask(job)
    assert raised.value.code == "lines_unreadable"
    assert not (tmp_path / "out.parquet").exists()


@worker
async def test_lines_of_json_beside_the_bad_one_may_have_any_number_and_a_byte_order_mark(
    pool: Pool, tmp_path: Path
) -> None:
    (tmp_path / "t.jsonl").write_text('\ufeff{"a": 1}\n{"a": ' + "1" * 5_000 + '}\n{"a": \n')
    with pytest.raises(SourceUnreadable, match=r"came 1 or more: line 3 \(no json at character 6\)"):
        await pool.ask(_conversion(data.relation("jsonl", tmp_path / "t.jsonl", tmp_path), tmp_path))


@worker
async def test_a_bad_line_of_many_json_files_is_told_with_its_file(pool: Pool, tmp_path: Path) -> None:
    folder = tmp_path / "many"
    folder.mkdir()
    for number in range(12):
        (folder / f"{number:02}.jsonl").write_text('{"a": 1}\n' + ("x\n" if number == 10 else ""))
    with pytest.raises(ConnectorError, match=r"came 1 or more: line 2 of file 11 \(no json at character 1\); correct"):
        await pool.ask(_conversion(data.relation("jsonl", folder, tmp_path), tmp_path))


def _conversion(relation: Relation, folder: Path) -> Job:
    return Job(kind="convert", relations={"t": relation}, arguments={"target": str(folder / "out.parquet")})


@worker
async def test_bad_csv_lines_of_many_files_are_each_told_with_their_file(pool: Pool, tmp_path: Path) -> None:
    """Also the same line of two of them."""
    folder = tmp_path / "many"
    folder.mkdir()
    bad = {1: "5,6,7\n", 10: "5,6,7\n", 11: "1,2\n5,6,7\n"}
    for number in range(12):
        (folder / f"{number:02}.csv").write_text("a,b\n1,2\n" + bad.get(number, ""))
    relation = data.relation("csv", folder, tmp_path, skip_bad_lines=3)
    job = Job(kind="convert", relations={"t": relation}, arguments={"target": str(tmp_path / "out.parquet")})
    report = await pool.ask(job)
    assert [(one["file"], one["line"]) for one in report["left_out"]] == [(2, 3), (11, 3), (12, 4)]
    assert (report["rows"], report["left_out_count"]) == (13, 3)
    assert report["files"][10]["name"] == "10.csv"
    few = data.relation("csv", folder, tmp_path, skip_bad_lines=2)
    with pytest.raises(
        ConnectorError, match=r"came 3 or more: line 3 of file 2 \(too many columns\), line 3 of file 11 "
    ):
        await pool.ask(replace(job, relations={"t": few}))


LAST_OF_MANY = {
    "csv": ("csv", "n,v\n1,2\n", "n,v\n1.5,x\n", [{"n": 1.0, "v": "2"}, {"n": 1.5, "v": "x"}]),
    "jsonl": ("jsonl", '{"n": 1}\n', '{"n": 1.5, "v": "x"}\n', [{"n": 1.0, "v": None}, {"n": 1.5, "v": "x"}]),
}


@worker
@pytest.mark.parametrize("name", list(LAST_OF_MANY))
async def test_what_stands_in_the_last_of_many_text_files_counts_for_types(
    pool: Pool, tmp_path: Path, name: str
) -> None:
    kind, other, last, rows = LAST_OF_MANY[name]
    (tmp_path / "many").mkdir()
    for number in range(40):
        (tmp_path / "many" / f"{number:02d}.{kind}").write_text(last if number == 39 else other)
    relation = await registered(pool, kind, tmp_path / "many", tmp_path)
    found = (await rows_of(pool, relation)).to_pylist()
    assert (len(found), found[-2:]) == (40, rows)


EMPTY = {"empty": b"", "compressed": gzip.compress(b""), "a mark": codecs.BOM_UTF8}


@worker
@pytest.mark.parametrize("name", list(EMPTY))
@pytest.mark.parametrize("at", ["0", "2"], ids=["first", "last"])
async def test_a_csv_file_without_text_has_no_rows_and_no_other_columns(
    pool: Pool, tmp_path: Path, at: str, name: str
) -> None:
    (tmp_path / "many").mkdir()
    (tmp_path / "many" / f"{at}.csv{'.gz' * (name == 'compressed')}").write_bytes(EMPTY[name])
    (tmp_path / "many" / "1.csv").write_text("a,b\n1,2\n")
    relation = await registered(pool, "csv", tmp_path / "many", tmp_path)
    assert (await rows_of(pool, relation)).to_pylist() == [{"a": 1, "b": 2}]


UNCLEAR = {
    "lines that end in two ways": b"a,b\r\n1,2\n3,4\r\n",
    "a line of more megabytes": b"a,b\n1," + b"x" * (17 * 2**20) + b"\n",
    "names of two lines": b'"a\nb",c\r\n1,2\r\n',
    "nothing written": b"\x80\x81,\x8d\n\r\x01,\xff\n\xfe\r",
}


@worker
@pytest.mark.parametrize("name", list(UNCLEAR))
async def test_a_csv_file_of_which_no_form_is_found_is_named(pool: Pool, tmp_path: Path, name: str) -> None:
    (tmp_path / "many").mkdir()
    (tmp_path / "many" / "1.csv").write_text("a,b\n1,2\n")
    (tmp_path / "many" / "2.csv").write_bytes(UNCLEAR[name])
    with pytest.raises(SourceUnreadable, match="all lines end alike, came file 2 of 2"):
        await registered(pool, "csv", tmp_path / "many", tmp_path)


@worker
async def test_damaged_csv_is_refused_as_damaged(pool: Pool, tmp_path: Path) -> None:
    (tmp_path / "t.csv.gz").write_bytes(gzip.compress(b"a,b\n1,2\n" * 100)[:20])
    with pytest.raises(ConnectorError) as raised:
        await registered(pool, "csv", tmp_path / "t.csv.gz", tmp_path)
    assert raised.value.code == "source_unreadable"


@worker
@pytest.mark.parametrize(
    ("second", "said"),
    [
        ("b,a,c\n20,10,30\n", "file 2 of 2 .*c is there beside"),
        ("a\n10\n", "b is missing"),
        ("a,c\n1,2\n", "b is missing; c is"),
    ],
)
async def test_text_files_of_other_columns_are_refused(pool: Pool, tmp_path: Path, second: str, said: str) -> None:
    (tmp_path / "many").mkdir()
    for name, text in (("a", "a,b\n1,2\n"), ("b", second)):
        (tmp_path / "many" / f"{name}.csv").write_text(text)
    with pytest.raises(SourceUnreadable, match=said) as raised:
        await registered(pool, "csv", tmp_path / "many", tmp_path)
    assert raised.value.code == "schemas_differ"


@worker
async def test_text_files_of_the_same_columns_are_one_table(pool: Pool, tmp_path: Path) -> None:
    (tmp_path / "many").mkdir()
    for number, text in enumerate(("a,b\n1,2\n", "", "B,a\n4,3\n", "a,b\n")):
        (tmp_path / "many" / f"{number}.csv").write_text(text)
    relation = await registered(pool, "csv", tmp_path / "many", tmp_path)
    assert (await rows_of(pool, relation)).to_pylist() == [{"a": 1, "b": 2}, {"a": 3, "b": 4}]


@worker
async def test_json_lines_with_hundreds_of_keys_have_a_column_for_each(pool: Pool, tmp_path: Path) -> None:
    rows = [{f"c{number}": number * row for number in range(500)} for row in range(3)]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    relation = await registered(pool, "jsonl", tmp_path / "t.jsonl", tmp_path)
    assert (await rows_of(pool, relation)).to_pylist() == rows


LARGE = 2**64 - 1
LARGE_NUMBERS = {
    "csv": ("csv", f"id,n\n{10**22 + 1},{LARGE}\n-1,1\n", [10**22 + 1, -1], [LARGE, 1]),
    "jsonl": ("jsonl", f'{{"id": [{LARGE}], "n": {LARGE}}}\n{{"id": [-1], "n": 1}}\n', [[LARGE], [-1]], [LARGE, 1]),
}


@worker
@pytest.mark.parametrize("name", list(LARGE_NUMBERS))
async def test_whole_numbers_of_more_than_64_bits_keep_every_digit(pool: Pool, tmp_path: Path, name: str) -> None:
    kind, text, ids, others = LARGE_NUMBERS[name]
    (tmp_path / "t").write_text(text)
    table = await rows_of(pool, await registered(pool, kind, tmp_path / "t", tmp_path))
    assert (table["id"].to_pylist(), table["n"].to_pylist()) == (ids, others)


@worker
async def test_bad_csv_lines_are_told_by_number_and_kind(pool: Pool, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes("id,name\n1,Anna\n2,Jürgen\n".encode("latin-1"))
    with pytest.raises(SourceUnreadable, match=r"line 3 \(name: invalid encoding\)"):
        await registered(pool, "csv", tmp_path / "t.csv", tmp_path)


@worker
@pytest.mark.parametrize("encoding", ["latin-1", "utf-16", "utf-8"])
async def test_csv_may_have_another_encoding_that_its_owner_tells(pool: Pool, tmp_path: Path, encoding: str) -> None:
    (tmp_path / "t.csv").write_bytes("id,name\n1,Jürgen\n".encode(encoding))
    relation = await registered(pool, "csv", tmp_path / "t.csv", tmp_path, encoding=encoding)
    assert (await rows_of(pool, relation)).to_pylist() == [{"id": 1, "name": "Jürgen"}]


@worker
async def test_csv_may_have_numbers_and_moments_as_its_country_writes_them(pool: Pool, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("id;crp;cost;seen\n1;35,5;1.234,25;26.07.2024 05:46\n2;8;-2,5;01.02.2024 23:00\n")
    said = {"decimal": ",", "thousands": ".", "timestamp_format": "%d.%m.%Y %H:%M"}
    relation = await registered(pool, "csv", tmp_path / "t.csv", tmp_path, **said)
    table = await rows_of(pool, relation)
    assert table.schema.types == [pa.int64(), pa.float64(), pa.float64(), pa.timestamp("us")]
    assert [tuple(row.values())[1:3] for row in table.to_pylist()] == [(35.5, 1234.25), (8.0, -2.5)]
    assert [f"{one:%Y-%m-%d %H:%M}" for one in table["seen"].to_pylist()] == ["2024-07-26 05:46", "2024-02-01 23:00"]


@worker
async def test_what_has_the_mark_of_thousands_elsewhere_is_no_number(pool: Pool, tmp_path: Path) -> None:
    lines = ['address;version;price;c ost;n"o', "192.168.1.1;1.10;1.23;-1.234.567,5;1.234", "10.0.0.1;1.2;;,5;-7"]
    (tmp_path / "t.csv").write_text("\n".join(lines))
    relation = await registered(pool, "csv", tmp_path / "t.csv", tmp_path, decimal=",", thousands=".", delimiter=";")
    rows = (await rows_of(pool, relation)).to_pylist()
    assert list(rows[0].values()) == ["192.168.1.1", "1.10", "1.23", -1234567.5, 1234]
    assert list(rows[1].values()) == ["10.0.0.1", "1.2", None, 0.5, -7]


@worker
@pytest.mark.parametrize("name", ["date_format", "timestamp_format"])
async def test_a_format_of_csv_that_is_none_is_refused_by_its_option(pool: Pool, tmp_path: Path, name: str) -> None:
    (tmp_path / "t.csv").write_text("id,at\n1,01.02.2024\n")
    with pytest.raises(Invalid, match=f"expected {name} in the letters of strftime, .*, came '%d.%m.%Q'"):
        await registered(pool, "csv", tmp_path / "t.csv", tmp_path, **{name: "%d.%m.%Q"})


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"decimal": ";"}, r"expected decimal to be one of ',' '\.', came ';'"),
        ({"thousands": "_"}, "expected thousands to be one of .*, came '_'"),
        ({"thousands": "."}, "different characters"),
        ({"decimal": ",", "thousands": ","}, "different characters"),
        ({"delimiter": "tabulator"}, "expected a delimiter of at most 4 bytes, came 'tabulator'"),
        ({"delimiter": "\n"}, r"expected delimiter without a line end, came '\\n'"),
        ({"delimiter": '"'}, "expected quote and delimiter to have no sign in common"),
        ({"delimiter": ";", "escape": ";"}, "expected escape and delimiter to have no sign in common"),
        (
            {"delimiter": ";", "null_text": "n;a"},
            "null_text and delimiter to have no sign in common, came 'n;a' and ';'",
        ),
        ({"null_text": '"'}, "expected null_text and quote to have no sign in common"),
    ],
)
def test_marks_of_csv_that_cannot_be_are_refused(tmp_path: Path, options: dict[str, str], says: str) -> None:
    (tmp_path / "t.csv").write_text("id\n1\n")
    with pytest.raises(Invalid, match=says):
        source("csv").find(str(tmp_path / "t.csv"), roots=[tmp_path], options=options)


@worker
@pytest.mark.parametrize("option", ["quote", "escape", "null_text"])
async def test_a_mark_of_csv_that_is_the_delimiter_of_its_file_is_refused(
    pool: Pool, tmp_path: Path, option: str
) -> None:
    (tmp_path / "t.csv").write_text("a,b\n1,2\n")
    with pytest.raises(Invalid, match=f"expected {option} and delimiter to have no sign in common, came ',' and ','"):
        await registered(pool, "csv", tmp_path / "t.csv", tmp_path, **{option: ","})


@pytest.mark.parametrize(
    ("kind", "options"),
    [("csv", {"skip_bad_lines": -1}), ("csv", {"skip_lines": 10**20}), ("jsonl", {"max_depth": 10**20})],
)
def test_a_count_that_cannot_be_is_refused_by_its_option(kind: str, options: dict[str, int]) -> None:
    with pytest.raises(Invalid, match=f"expected {next(iter(options))} to be [01] to 2147483647") as raised:
        check_options(kind, options)
    assert raised.value.code == "option_invalid"


def test_an_encoding_that_is_not_known_is_refused(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("id\n1\n")
    with pytest.raises(Invalid, match="utf-8, latin-1, utf-16, came 'windows-1252'"):
        source("csv").find(str(tmp_path / "t.csv"), roots=[tmp_path], options={"encoding": "windows-1252"})


@worker
async def test_a_csv_line_may_have_megabytes(pool: Pool, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("id,text\n1," + "x" * 5_000_000 + '\n2,"' + "y,\n" * 2_000_000 + '"\n')
    relation = await registered(pool, "csv", tmp_path / "t.csv", tmp_path)
    assert (await rows_of(pool, relation, "SELECT length(text) AS n FROM t"))["n"].to_pylist() == [5_000_000, 6_000_000]


def _decimal(value: str, precision: int, scale: int) -> pa.Array:
    return pa.array([Decimal(value)], pa.decimal128(precision, scale))


_LONG = Decimal("1" * 50)
_HALF = pa.array([1.5], pa.float16())
_WORDS = pa.array(["a"]).dictionary_encode()
_RUNS = pa.RunEndEncodedArray.from_arrays
_DENSE = pa.UnionArray.from_dense(pa.array([0], pa.int8()), pa.array([0], pa.int32()), [pa.array([1]), pa.array(["x"])])
UNREAD: dict[str, tuple[str, pa.Table]] = {
    "parquet, a long decimal": ("parquet", pa.table({"n": [1], "v": pa.array([_LONG], pa.decimal256(60, 2))})),
    "parquet, in a list": ("parquet", pa.table({"v": pa.array([[_LONG]], pa.list_(pa.decimal256(60, 2)))})),
    "arrow, a long decimal": ("arrow_ipc", pa.table({"n": [1], "v": pa.array([_LONG], pa.decimal256(60, 2))})),
    "arrow, whole hundreds": (
        "arrow_ipc",
        pa.table({"v": pa.array([Decimal(100)], pa.decimal128(5, -2))}),
    ),
    "arrow, a dense union": ("arrow_ipc", pa.table({"n": [1], "v": _DENSE})),
    "arrow, half precision": ("arrow_ipc", pa.table({"n": [1], "v": _HALF})),
    "arrow, in a struct": ("arrow_ipc", pa.table({"v": pa.StructArray.from_arrays([_HALF], ["h"])})),
    "arrow, runs of words": ("arrow_ipc", pa.table({"v": _RUNS(pa.array([1]), _WORDS)})),
    "arrow, runs of words in a list": (
        "arrow_ipc",
        pa.table({"v": pa.ListArray.from_arrays([0, 1], _RUNS(pa.array([1]), _WORDS))}),
    ),
    "arrow, runs of lists": ("arrow_ipc", pa.table({"v": _RUNS(pa.array([1]), pa.array([["a"]]))})),
    "arrow, runs of nothing": ("arrow_ipc", pa.table({"v": _RUNS(pa.array([1]), pa.nulls(1))})),
    "arrow, words of structs": (
        "arrow_ipc",
        pa.table({"v": pa.DictionaryArray.from_arrays([0], pa.array([{"a": 1}]))}),
    ),
    "arrow, words of long decimals in a list": (
        "arrow_ipc",
        pa.table({"v": pa.ListArray.from_arrays([0, 1], pa.array([_LONG], pa.decimal256(60, 2)).dictionary_encode())}),
    ),
}


def _write(kind: str, table: pa.Table, path: Path) -> None:
    if kind == "parquet":
        pq.write_table(table, path)
        return
    with pa.ipc.new_file(path, table.schema) as out:
        out.write_table(table)


async def profiled(pool: Pool, kind: str, path: Path, root: Path) -> Any:
    return await pool.ask(Job(kind="profile", relations={"t": data.relation(kind, path, root)}))


@worker
@pytest.mark.parametrize("name", list(UNREAD))
async def test_columns_of_types_that_would_not_be_given_on_as_they_are_are_refused(
    pool: Pool, tmp_path: Path, name: str
) -> None:
    kind, table = UNREAD[name]
    _write(kind, table, tmp_path / "t")
    with pytest.raises(SourceUnreadable, match=r"came v \(") as raised:
        await profiled(pool, kind, tmp_path / "t", tmp_path)
    assert raised.value.code == "type_unread"


_POINT = struct.pack("<BIIdd", 1, 1 | 2**29, 4326, 1.0, 2.0)  # with its SRID
GEOMETRIES = {
    "with its SRID": _POINT,
    "of the other order of bytes": struct.pack(">BIdd", 0, 1, 1.0, 2.0),
    "a curve": struct.pack("<BIIdddd", 1, 8, 2, 0, 0, 1, 1),
    "nothing": b"",
    "with something behind it": _POINT + b"junk",
}


@worker
@pytest.mark.parametrize(
    "sql", ["SELECT * FROM t", "SELECT * FROM t WHERE n > 0", "SELECT n, min(g) AS g FROM t GROUP BY n"]
)
@pytest.mark.parametrize("name", list(GEOMETRIES))
async def test_geometries_of_geoparquet_are_the_bytes_of_their_file(
    pool: Pool, tmp_path: Path, name: str, sql: str
) -> None:
    table = pa.table({"n": [1], "g": [GEOMETRIES[name]]})
    about = {"version": "1.0.0", "primary_column": "g", "columns": {"g": {"encoding": "WKB", "geometry_types": []}}}
    pq.write_table(table.replace_schema_metadata({"geo": json.dumps(about)}), tmp_path / "t.parquet")
    relation = data.relation("parquet", tmp_path / "t.parquet", tmp_path)
    found = await pool.ask(Job(kind="profile", relations={"t": relation}))
    assert [one["type"] for one in found["columns"]] == ["BIGINT", "BLOB"]
    assert (await rows_of(pool, relation, sql)).to_pylist() == table.to_pylist()


@worker
@pytest.mark.parametrize("kind", ["GEOMETRY", "GEOMETRY[]", "STRUCT(a GEOMETRY)"])
async def test_geometries_that_parquet_itself_calls_so_are_refused(pool: Pool, tmp_path: Path, kind: str) -> None:
    with duckdb.connect() as con:
        con.execute(f"COPY (SELECT NULL::{kind} AS v) TO '{tmp_path}/t' (FORMAT parquet, GEOPARQUET_VERSION 'V2')")
    with pytest.raises(SourceUnreadable, match=r"came v \(.*as plain bytes") as raised:
        await profiled(pool, "parquet", tmp_path / "t", tmp_path)
    assert raised.value.code == "type_unread"


@pytest.mark.parametrize(
    ("kind", "refused"),
    [
        ("GEOMETRY('OGC:CRS84')", True),
        ('STRUCT("a ""b" GEOMETRY)', True),
        ('STRUCT(GEOMETRY BLOB, "a GEOMETRY" BLOB)', False),
        ('STRUCT("x GEOMETRY(" BLOB, "a ""GEOMETRY" BLOB)', False),
    ],
)
def test_a_version_with_geometries_that_were_written_anew_is_refused_to_its_readers(kind: str, refused: bool) -> None:
    version = DatasetVersion(
        schema=[{"name": "v", "type": kind}], source={"kind": "parquet", "files": [], "options": {}}, profile={}
    )
    with pytest.raises(SourceUnreadable, match="under a new name") if refused else nullcontext():
        job_builder.version_to_relation(version)


_LATE = pa.array([25 * 3600 * 10**6]).view(pa.time64("us"))
_UUID = pa.ExtensionArray.from_storage(pa.uuid(), pa.array([b"a" * 16], pa.binary(16)))
_WIDE = pa.opaque(pa.binary(1), "hugeint", "DuckDB")
_TICKS = pa.opaque(pa.duration("ns"), "ticks", "somebody")
NOT_TAKEN: dict[str, tuple[str, pa.Table, str]] = {
    "a time after a day": ("arrow_ipc", pa.table({"v": _LATE}), "times before 24:00.* came other data in v of 't'"),
    "a nanosecond": ("arrow_ipc", pa.table({"v": pa.array([1], pa.duration("ns"))}), "came others in v of 't'"),
    "a nanosecond that somebody has a word for": (
        "arrow_ipc",
        pa.table({"v": pa.ExtensionArray.from_storage(_TICKS, pa.array([1], _TICKS.storage_type))}),
        "came others in v of 't'",
    ),
    "a dictionary of uuids": (
        "arrow_ipc",
        pa.table({"v": pa.DictionaryArray.from_arrays([0], _UUID)}),
        r"an extension type \(such as uuid\) without a dictionary",
    ),
    "a number of an engine's own, in a list": (
        "arrow_ipc",
        pa.table(
            {
                "v": pa.ListArray.from_arrays(
                    [0, 1], pa.ExtensionArray.from_storage(_WIDE, pa.array([b"a"], pa.binary(1)))
                )
            }
        ),
        "types that can be given on as they are, came v .*hugeint",
    ),
    "no columns": ("arrow_ipc", pa.table({}), "expected columns, came none in 't'"),
    "none of Parquet": ("parquet", pa.table({}), "expected columns, came none in 't'"),
}


@worker
@pytest.mark.parametrize("name", list(NOT_TAKEN))
async def test_what_is_not_taken_is_refused_with_what_to_write(pool: Pool, tmp_path: Path, name: str) -> None:
    kind, table, said = NOT_TAKEN[name]
    _write(kind, table, tmp_path / "t")
    with pytest.raises(SourceUnreadable, match=said):
        await profiled(pool, kind, tmp_path / "t", tmp_path)


_FIXED = {"binary": pa.array([b"ab"], pa.binary(2)), "half": _HALF, "decimal": _decimal("1.25", 38, 2)}


@worker
@pytest.mark.parametrize("name", list(_FIXED))
async def test_an_encoding_that_the_engine_does_not_read_is_named(pool: Pool, tmp_path: Path, name: str) -> None:
    table = pa.table({"n": [0.5], "v": _FIXED[name]})
    pq.write_table(table, tmp_path / "t", use_dictionary=False, use_byte_stream_split=True)
    with pytest.raises(SourceUnreadable, match="BYTE_STREAM_SPLIT, came v in 't'; write it again without") as raised:
        await profiled(pool, "parquet", tmp_path / "t", tmp_path)
    assert raised.value.code == "codec_refused"


@worker
@pytest.mark.parametrize("codec", ["zstd", "lz4", "uncompressed"])
async def test_arrow_files_of_polars_are_read(pool: Pool, tmp_path: Path, codec: Any) -> None:
    """Their first message does not begin where others' does: what is where, a file's footer says."""
    frame = polars.DataFrame({"n": range(1000), "text": [None, "x"] * 500}, schema_overrides={"n": polars.Int64})
    for part in (frame, frame.clear()):
        part.write_ipc(tmp_path / "t.arrow", compression=codec)
        found = await profiled(pool, "arrow_ipc", tmp_path / "t.arrow", tmp_path)
        assert (found["rows"], found["columns"][1]["max"]) == (len(part), "x" if len(part) else None)


@worker
@pytest.mark.parametrize("kind", [polars.Categorical, polars.Enum(["a", "b"])])
async def test_words_of_polars_are_texts(pool: Pool, tmp_path: Path, kind: Any) -> None:
    words = polars.DataFrame({"word": polars.Series(["a", None, "b"], dtype=kind)})
    words.write_ipc(tmp_path / "t.arrow")
    found = await profiled(pool, "arrow_ipc", tmp_path / "t.arrow", tmp_path)
    assert [(one["type"], one["max"]) for one in found["columns"]] == [("VARCHAR", "b")]
    relation = data.relation("arrow_ipc", tmp_path / "t.arrow", tmp_path)
    assert (await rows_of(pool, relation))["word"].to_pylist() == ["a", None, "b"]


@worker
@pytest.mark.parametrize("codec", ["zstd", "lz4", None])
@pytest.mark.parametrize("version", ["V4", "V5"])
async def test_arrow_files_whose_compression_their_reader_does_not_see_are_refused(
    pool: Pool, tmp_path: Path, version: str, codec: str | None
) -> None:
    """Numbers that do not compress are read without an error, and are others."""
    table = pa.table(
        {"n": [hash((number, 1)) for number in range(1000)], "tag": pa.array(["a"] * 1000).dictionary_encode()}
    )
    how = pa.ipc.IpcWriteOptions(metadata_version=pa.ipc.MetadataVersion[version], compression=codec)
    with pa.ipc.new_file(tmp_path / "t.arrow", table.schema, options=how) as out:
        out.write_table(table)
    if version == "V5" or codec is None:
        found = await profiled(pool, "arrow_ipc", tmp_path / "t.arrow", tmp_path)
        assert found["columns"][0]["max"] == str(max(table["n"].to_pylist()))
        return
    with pytest.raises(SourceUnreadable, match=r"came version 4: 't\.arrow'; write it again") as raised:
        await profiled(pool, "arrow_ipc", tmp_path / "t.arrow", tmp_path)
    assert raised.value.code == "codec_refused"


@worker
@pytest.mark.parametrize(
    "value",
    ["{}", "[NULL, {}]", "{{'x y': {{'z': {}}}}}", "MAP {{'k': {}}}", "MAP {{{}: 1}}", "[{{'at': [{}]}}]"],
    ids=["plain", "list", "struct", "value", "key", "deep"],
)
async def test_a_time_that_no_reader_takes_is_refused(pool: Pool, tmp_path: Path, value: str) -> None:
    for late, end in ((False, "23:59:59.999999"), (True, "24:00:00")):
        at = value.format(f"TIME '{end}'")
        duckdb.connect().sql(f"SELECT 1 AS n, {at} AS at, '24:00' AS text").write_parquet(
            str(tmp_path / "t"), overwrite=True
        )
        relation = await registered(pool, "parquet", tmp_path / "t", tmp_path)
        profile = pool.ask(Job(kind="profile", relations={"t": relation}))
        if not late:
            await profile
            continue
        with pytest.raises(SourceUnreadable, match="24:00 in at;"):
            await profile


@worker
async def test_a_footer_that_no_read_has_the_memory_for_is_refused(pool: Pool, tmp_path: Path) -> None:
    schema = pa.schema({"a": pa.int64()}, metadata={"made": "x" * 16 * 2**20})  # which Arrow's writer adds twice
    pq.write_table(pa.table({"a": [1]}, schema=schema), tmp_path / "t.parquet")
    with pytest.raises(SourceUnreadable, match=r"at most 32 MB, came one of 37 MB: 't\.parquet'") as raised:
        await profiled(pool, "parquet", tmp_path / "t.parquet", tmp_path)
    assert raised.value.code == "footer_too_large"


_BOTH = ("parquet", "arrow_ipc")


@worker
@pytest.mark.parametrize("names", [("a", "a"), ("a", "A"), ("\u00e9", "E\u0301")], ids=str)
@pytest.mark.parametrize("kind", _BOTH)
async def test_columns_of_one_name_are_refused(pool: Pool, tmp_path: Path, kind: str, names: tuple[str, str]) -> None:
    _write(kind, pa.Table.from_arrays([pa.array([1]), pa.array([2])], names=names), tmp_path / "t")
    with pytest.raises(SourceUnreadable) as raised:
        await profiled(pool, kind, tmp_path / "t", tmp_path)
    assert raised.value.code == "columns_repeated"


ALIKE = {
    "accents apart": ("nam\u00e9", "name\u0301"),
    "case": ("\u00c4rzte", "\u00e4rzte"),
    "sharp": ("STRASSE", "stra\u00dfe"),
}


@worker
@pytest.mark.parametrize("names", list(ALIKE.values()), ids=list(ALIKE))
async def test_columns_that_people_take_for_one_are_refused_over_many_files(
    pool: Pool, tmp_path: Path, names: tuple[str, str]
) -> None:
    """Or a rule that hides the one would let the other pass."""
    (tmp_path / "top").mkdir()
    for number, name in enumerate(names):
        pq.write_table(pa.table({name: ["x"], "k": [number]}), tmp_path / "top" / f"{number}.parquet")
    relation = data.relation("hive", tmp_path / "top", tmp_path, union_by_name=True)
    with pytest.raises(SourceUnreadable, match="rename them") as raised:
        await pool.ask(Job(kind="profile", relations={"t": relation}))
    assert raised.value.code == "columns_repeated"


def _fields(*names: str) -> pa.Array:
    return pa.StructArray.from_arrays([pa.array([number]) for number in range(len(names))], names)


def _either(*names: str) -> pa.Array:
    return pa.UnionArray.from_sparse(pa.array([0], pa.int8()), [pa.array([1]), pa.array(["x"])], [*names])


_IN_LIST, _IN_MAP = partial(pa.ListArray.from_arrays, [0, 1]), partial(pa.MapArray.from_arrays, [0, 1])
FIELDS: dict[str, tuple[Sequence[str], pa.Array, str]] = {  # kinds of files, a column, and what is said of it
    "in another case": (_BOTH, _fields("a", "A", "A_1"), "in more than case, came A, a in v of 't'"),
    "twice": (_BOTH, _fields("a", "b", "a"), "in more than case, came a 2 times in v of 't'"),
    "without": (_BOTH, _fields("b", ""), "with names, came one without in v of 't'"),
    "in a list": (_BOTH, _IN_LIST(_fields("a", "A")), "came A, a in v"),
    "deep": (_BOTH, pa.StructArray.from_arrays([_IN_LIST(_fields("a", "A"))], ["a"]), "came A, a in v"),
    "of keys": (_BOTH, _IN_MAP(_fields("a", "A"), pa.array([1])), "came A, a in v"),
    "of values": (_BOTH, _IN_MAP(pa.array([1]), _fields("", "a")), "came one without in v"),
    "of a union": (["arrow_ipc"], _either("a", "A"), "came A, a in v"),
}


@worker
@pytest.mark.parametrize(("kind", "name"), [(kind, name) for name, case in FIELDS.items() for kind in case[0]])
async def test_fields_that_the_engine_would_call_otherwise_are_refused(
    pool: Pool, tmp_path: Path, kind: str, name: str
) -> None:
    """Or take one for another, as it does with those of Arrow."""
    _, column, said = FIELDS[name]
    _write(kind, pa.table({"n": [1], "v": column}), tmp_path / "t")
    with pytest.raises(SourceUnreadable, match=said):
        await profiled(pool, kind, tmp_path / "t", tmp_path)


FIELDS_KEPT = {
    "letters that the engine tells apart": (_BOTH, _fields("ä", "Ä", "ß", "ss")),
    "the same in two structs": (_BOTH, pa.StructArray.from_arrays([_fields("a", "b"), _fields("A", "c")], ["s", "a"])),
    "none in a union": (["arrow_ipc"], _either("", "")),
}


@worker
@pytest.mark.parametrize(("kind", "name"), [(kind, name) for name, case in FIELDS_KEPT.items() for kind in case[0]])
async def test_fields_that_the_engine_calls_as_they_are_called_are_kept(
    pool: Pool, tmp_path: Path, kind: str, name: str
) -> None:
    _, column = FIELDS_KEPT[name]
    _write(kind, pa.table({"v": column}), tmp_path / "t")
    assert (await profiled(pool, kind, tmp_path / "t", tmp_path))["rows"] == 1
    found = (await rows_of(pool, data.relation(kind, tmp_path / "t", tmp_path)))["v"]
    assert (found.type, found.to_pylist()) == (column.type, column.to_pylist())


@worker
@pytest.mark.parametrize("second", _SECOND.values(), ids=_SECOND)
@pytest.mark.parametrize(("kind", "suffix"), [("parquet", "parquet"), ("arrow_ipc", "arrow")])
async def test_files_of_a_directory_are_of_one_schema(
    pool: Pool, tmp_path: Path, kind: str, suffix: str, second: pa.Table
) -> None:
    (tmp_path / "many").mkdir()
    for name, table in (("first", _FIRST), ("second", second)):
        _write(kind, table, tmp_path / "many" / f"{name}.{suffix}")
    if dict(zip(second.schema.names, second.schema.types, strict=True)) == {"x": pa.int64(), "y": pa.string()}:
        assert (await profiled(pool, kind, tmp_path / "many", tmp_path))["rows"] == 3
        return
    with pytest.raises(SourceUnreadable, match=f"in 'second.{suffix}'") as raised:
        await profiled(pool, kind, tmp_path / "many", tmp_path)
    assert raised.value.code == "schemas_differ"
    assert ("union_by_name" in raised.value.message) == (second.schema.field("x").type != pa.string())  # it would help


UNITED: dict[str, tuple[pa.Array, pa.Array, list[Any]]] = {  # of two files, and what comes of them; else refused
    "decimals of two scales": (_decimal("1.25", 38, 2), _decimal("0.000000009", 38, 9), []),
    "decimals of one": (_decimal("1.25", 10, 2), _decimal("2.25", 38, 2), [Decimal("1.25"), Decimal("2.25")]),
    "a decimal and a float": (_decimal("1.25", 38, 2), pa.array([0.1]), []),
    "a number and a float": (pa.array([2**24 + 1], pa.int32()), pa.array([0.5], pa.float32()), []),
    "in lists": (pa.array([[2**53 + 1]]), pa.array([[0.5]]), []),
    "in a struct": (pa.array([{"a": 2**53 + 1, "b": 1}]), pa.array([{"A": 0.5}]), []),
    "a struct with less": (pa.array([{"a": 1, "b": 2}]), pa.array([{"b": 3}]), [{"a": 1, "b": 2}, {"a": None, "b": 3}]),
    "a number and a text": (pa.array([1]), pa.array(["a"]), []),
    "a number and a date": (pa.array([1]), pa.array([1], pa.date32()), []),
    "a truth and a number": (pa.array([True]), pa.array([2]), []),
    "of a zone and of none": (pa.array([1], pa.timestamp("us")), pa.array([1], pa.timestamp("us", "UTC")), []),
    "numbers": (pa.array([2**31 - 1], pa.int32()), pa.array([2**63 - 1]), [2**31 - 1, 2**63 - 1]),
    "with a sign and without": (pa.array([2**64 - 1], pa.uint64()), pa.array([-1]), [2**64 - 1, -1]),
    "of those in lists": (pa.array([[2**64 - 1]], pa.list_(pa.uint64())), pa.array([[-1]]), [[2**64 - 1], [-1]]),
    "floats": (pa.array([0.5], pa.float32()), pa.array([0.1]), [0.5, 0.1]),
    "texts": (pa.array(["a"]).dictionary_encode(), pa.array(["b"], pa.large_string()), ["a", "b"]),
    "no type": (pa.nulls(1), pa.array([["b"]]), [None, ["b"]]),
}


@worker
@pytest.mark.parametrize("name", list(UNITED))
@pytest.mark.parametrize("order", [1, -1])
async def test_columns_that_are_joined_by_name_keep_every_value(
    pool: Pool, tmp_path: Path, name: str, order: int
) -> None:
    *columns, values = UNITED[name]
    (tmp_path / "many").mkdir()
    for number, column in enumerate(columns[::order]):
        pq.write_table(pa.table({"vV"[number]: column}), tmp_path / "many" / f"{number}.parquet")
    relation = data.relation("hive", tmp_path / "many", tmp_path, union_by_name=True)
    if values:
        await pool.ask(Job(kind="profile", relations={"t": relation}))
        assert (await rows_of(pool, relation))["v"].to_pylist() == values[::order]
        return
    with pytest.raises(SourceUnreadable, match=r"in '1\.parquet' V.* is .* and not .* as in '0\.parquet'; ") as raised:
        await pool.ask(Job(kind="profile", relations={"t": relation}))
    assert raised.value.code == "schemas_differ"


_NESTED: dict[str, Callable[[pa.Array], pa.Array]] = {
    "v is timestamp": lambda moments: moments,
    "v is list<element: timestamp": partial(pa.ListArray.from_arrays, [0, 1]),
    "v is struct<at: timestamp": lambda moments: pa.StructArray.from_arrays([moments], ["at"]),
    "v is map<string, timestamp": partial(pa.MapArray.from_arrays, [0, 1], pa.array(["k"])),
}


@worker
@pytest.mark.parametrize("old", [0, 1])
@pytest.mark.parametrize("unit", ["us", "ns"])
@pytest.mark.parametrize("said", list(_NESTED))
async def test_nanoseconds_are_not_read_with_timestamps_of_the_old_form(
    pool: Pool, tmp_path: Path, said: str, unit: str, old: int
) -> None:
    """Which the engine has microseconds of, as it then does of all files."""
    (tmp_path / "many").mkdir()
    for number in range(2):
        moments = pa.array([2_000_000], pa.timestamp("ns" if number == old else unit))
        table = pa.table({"v": _NESTED[said](moments)})
        pq.write_table(table, tmp_path / "many" / f"{number}.parquet", use_deprecated_int96_timestamps=number == old)
    relation = data.relation("parquet", tmp_path / "many", tmp_path)
    if unit == "us":
        await pool.ask(Job(kind="profile", relations={"t": relation}))
        moments = [_NESTED[said](pa.array([at], pa.timestamp("us"))).to_pylist()[0] for at in (2_000, 2_000_000)]
        assert (await rows_of(pool, relation))["v"].to_pylist() == moments[:: -1 if old else 1]
        return
    with pytest.raises(SourceUnreadable, match=rf"{said}\[.s\].* and not .*timestamp\[.s\]"):
        await pool.ask(Job(kind="profile", relations={"t": relation}))


WHOLE = {
    "negative ones": ("jsonl", '{"a": 1}\n{"a": -5}\n{}\n', "BIGINT", [1, -5, None]),
    "large ones": ("jsonl", '{"a": 9223372036854775807}\n{"a": -1}\n', "BIGINT", [2**63 - 1, -1]),
    "larger ones": ("jsonl", '{"a": 9223372036854775808}\n{"a": -1}\n', "DECIMAL(38,0)", [Decimal(2**63), Decimal(-1)]),
    "nested ones": ("jsonl", '{"a": {"x \\"y": [1, -2]}}\n', 'STRUCT("x ""y" BIGINT[])', [{'x "y': [1, -2]}]),
    "in csv": ("csv", "a\n18446744073709551615\n", "DECIMAL(38,0)", [Decimal(2**64 - 1)]),
    "too large for all": ("csv", f"a\n{2**127 - 1}\n", "VARCHAR", [str(2**127 - 1)]),
}


@worker
@pytest.mark.parametrize("name", list(WHOLE))
async def test_whole_numbers_of_text_stay_what_they_are(pool: Pool, tmp_path: Path, name: str) -> None:
    kind, text, type_, values = WHOLE[name]
    (tmp_path / "t").write_text(text)
    target = tmp_path / "out.parquet"
    relation = data.relation(kind, tmp_path / "t", tmp_path)
    report = await pool.ask(Job(kind="convert", relations={"t": relation}, arguments={"target": str(target)}))
    assert [(column["name"], column["type"]) for column in report["columns"]] == [("a", type_)]
    assert pq.read_table(target)["a"].to_pylist() == values


def _append(path: Path, more: bytes) -> None:
    path.write_bytes(path.read_bytes() + more)


class _Keys(encryption.KmsClient):  # type: ignore[misc]  # pyarrow has no types
    """Whoever asks gets his key, as it is."""

    def wrap_key(self, key: bytes, name: str) -> bytes:
        return base64.b64encode(key)


@worker
@pytest.mark.parametrize(
    ("plain", "said"), [(True, "came one with encrypted columns: 't'"), (False, "or encrypted one")]
)
async def test_an_encrypted_file_is_told_as_that(pool: Pool, tmp_path: Path, plain: bool, said: str) -> None:
    table = pa.table({"n": [1], "secret": ["x"]})
    how = encryption.EncryptionConfiguration(footer_key="f", column_keys={"c": ["secret"]}, plaintext_footer=plain)
    keys = encryption.CryptoFactory(lambda _: _Keys())
    made = keys.file_encryption_properties(encryption.KmsConnectionConfig(), how)
    pq.write_table(table, tmp_path / "t", encryption_properties=made)
    with pytest.raises(SourceUnreadable, match=said) as raised:
        await profiled(pool, "parquet", tmp_path / "t", tmp_path)
    assert raised.value.code == "not_parquet"


_LATIN = pa.Array.from_buffers(pa.string(), 1, pa.array([b"caf\xe9"]).buffers())
NO_TEXT = {
    "text": _LATIN,
    "text in a list": pa.ListArray.from_arrays([0, 1], _LATIN),
    "JSON": pa.ExtensionArray.from_storage(pa.json_(), pa.array(["{bad"])),
}


@worker
@pytest.mark.parametrize("name", list(NO_TEXT))
async def test_a_column_of_parquet_with_text_that_is_none_is_named(pool: Pool, tmp_path: Path, name: str) -> None:
    pq.write_table(pa.table({"good": ["a"], "v": NO_TEXT[name], "n": [1]}), tmp_path / "t")
    with pytest.raises(SourceUnreadable, match="came others in v;") as raised:
        await profiled(pool, "parquet", tmp_path / "t", tmp_path)
    assert (raised.value.code, raised.value.facts["columns"]) == ("value_unmappable", ["v"])


_MS = pa.timestamp("ms")
_OVER = pa.Array.from_buffers(pa.decimal128(5, 2), 1, [None, pa.py_buffer((10**5).to_bytes(16, "little"))])
_FULL = pa.array([Decimal("-999.99"), Decimal("999.99")], pa.decimal128(5, 2))
OF_ITS_TYPE: dict[str, tuple[pa.Array, str]] = {
    "the last millisecond": (pa.array([2**63 - 1]).view(_MS), "timestamps of milliseconds .* came others in v;"),
    "the first in a zone": (pa.array([1 - 2**63]).view(pa.timestamp("ms", "UTC")), "came others in v;"),
    "one in a list": (pa.ListArray.from_arrays([0, 1], pa.array([2**63 - 1]).view(_MS)), "came others in v;"),
    "another millisecond": (pa.array([2**53, None]).view(_MS), ""),
    "the last microsecond": (pa.array([2**63 - 1, 1 - 2**63]).view(pa.timestamp("us")), ""),
    "a decimal of six digits for five": (_OVER, "decimals of no more digits than their type has, came others in v;"),
    "one in a struct": (pa.StructArray.from_arrays([_OVER], ["d"]), "came others in v;"),
    "decimals of five": (_FULL, ""),
    "a decimal of 38": (pa.array([Decimal(10**38 - 1)], pa.decimal128(38)), ""),
}


@worker
@pytest.mark.parametrize("name", list(OF_ITS_TYPE))
async def test_a_value_that_its_type_cannot_have_is_refused(pool: Pool, tmp_path: Path, name: str) -> None:
    values, said = OF_ITS_TYPE[name]
    pq.write_table(pa.table({"v": values}), tmp_path / "t")
    with pytest.raises(SourceUnreadable, match=said) if said else nullcontext() as raised:
        await profiled(pool, "parquet", tmp_path / "t", tmp_path)
    assert raised is None or raised.value.code == "value_unmappable"


def _overwrite(path: Path, start: int, size: int) -> None:
    content = bytearray(path.read_bytes())
    content[start : start + size] = b"\xff" * size
    path.write_bytes(content)


REFUSED_PATHS = {
    "missing": lambda root: root / "nothing.parquet",
    "outside": lambda root: "/etc/passwd",
    "traversal": lambda root: f"{root}/../../../../../../etc/passwd",
    "nul": lambda root: f"{root}/a\x00.parquet",
    "empty": lambda root: "",
    "long": lambda root: "a" * 5000,
    "link leading out": lambda root: _link(root / "out.parquet", "/etc/passwd"),
    "link to a folder outside": lambda root: _link(root / "folder", "/etc") / "passwd",
    "pipe": lambda root: os.mkfifo(root / "pipe") or root / "pipe",
    "socket": lambda root: _socket(root / "socket"),
    "device": lambda root: "/dev/zero",
    "name that is no UTF-8": lambda root: _written(root / os.fsdecode(b"p\xe4.parquet")),
    "folder whose name is no UTF-8": lambda root: _written(root / "t" / os.fsdecode(b"k=\xff") / "a.parquet").parents[
        1
    ],
    "folder without data": lambda root: (root / "none").mkdir() or root / "none",
    "folder holding a link out": lambda root: _folder_with_link(root, "b.parquet", "/etc/passwd"),
    "folder holding a linked folder": lambda root: _folder_with_link(root, "year=2023", "."),
}


@pytest.mark.parametrize("name", list(REFUSED_PATHS))
def test_paths_that_must_not_be_read_are_refused(tmp_path: Path, name: str) -> None:
    root = tmp_path / "root"
    root.mkdir()
    path = REFUSED_PATHS[name](root)
    with pytest.raises(PathRefused) as raised:
        source("parquet").find(str(path), roots=[root], options={})
    assert len(str(raised.value).encode()) > 20


def test_a_directory_of_other_files_than_its_kind_has_is_told_to_name_it(tmp_path: Path) -> None:
    (tmp_path / "rows").mkdir()
    (tmp_path / "rows" / "a.csv").write_text("a\n1\n")
    kind = guess_kind(str(tmp_path / "rows"))
    with pytest.raises(PathRefused, match="name the kind"):
        source(kind).find(str(tmp_path / "rows"), roots=[tmp_path], options={})


def _walk_denied(name: str) -> Callable[..., Iterator[tuple[str, list[str], list[str]]]]:
    """`os.walk` that may not look into folders of this name, as the system says it to users other than root."""

    def walk(top: Path, *, onerror: Callable[[OSError], None], **given: Any) -> Iterator[Any]:
        for directory, folders, names in os.walk(top, onerror=onerror, **given):
            yield directory, folders, names
            if name in folders:
                folders.remove(name)
                onerror(PermissionError(errno.EACCES, "Permission denied", os.path.join(directory, name)))

    return walk


@pytest.mark.parametrize("kind", ["hive", "parquet", "csv", "jsonl", "arrow_ipc"])
def test_a_folder_that_may_not_be_looked_into_is_refused_by_name(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its rows were missing without a word: a directory of three years had two."""
    for year in ("year=2023", "year=2024"):
        (tmp_path / year).mkdir()
        for ending in ("parquet", "csv", "jsonl", "arrow"):
            (tmp_path / year / f"a.{ending}").touch()
    monkeypatch.setattr(source_files, "os", changed(os, walk=_walk_denied("year=2024")))
    with pytest.raises(PathRefused, match=r"year=2024.*permissions"):
        source(kind).find(str(tmp_path), roots=[tmp_path], options=read_options(kind, {}))


@pytest.mark.parametrize("name", ["lost+found", "System Volume Information"])
def test_a_disk_is_registered_whole_although_its_own_folder_may_not_be_looked_into(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each disk has one that its administrator alone may look into: no dataset of its top could be read anew."""
    (tmp_path / name).mkdir()
    (tmp_path / "a.parquet").touch()
    monkeypatch.setattr(source_files, "os", changed(os, walk=_walk_denied(name)))
    found = source("hive").find(str(tmp_path), roots=[tmp_path], options=read_options("hive", {}))
    assert [file.name for file in found] == ["a.parquet"]


def test_a_directory_of_json_is_not_told_to_take_the_kind_that_it_was_given(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("{}\n")
    with pytest.raises(PathRefused, match="give its files one of these endings"):
        source("jsonl").find(str(tmp_path), roots=[tmp_path], options=read_options("jsonl", {}))
    with pytest.raises(PathRefused, match="--kind jsonl"):
        source("hive").find(str(tmp_path), roots=[tmp_path], options=read_options("hive", {}))


def test_a_place_of_our_own_that_is_mounted_twice_is_known_by_its_folder(tmp_path: Path) -> None:
    (tmp_path / "received" / "whole").mkdir(parents=True)
    (tmp_path / "received" / "whole" / "a.csv").touch()
    (tmp_path / "again").symlink_to("received")  # as a second mount: another path, and the same folder
    found = source_files.file_ref(str(tmp_path / "received" / "whole" / "a.csv"), roots=[tmp_path])
    for path in (found.path, str(tmp_path / "again" / "whole" / "a.csv")):
        with pytest.raises(PathRefused, match="the connector's own"):
            source_files.refuse_own_files([tmp_path / "received"], (replace(found, path=path),))
    assert source_files.refuse_own_files([tmp_path / "other", tmp_path / "received" / "wh"], (found,)) == (found,)


def test_nothing_is_read_where_no_root_is_configured(tmp_path: Path) -> None:
    with pytest.raises(PathRefused, match="HANSE_SOURCE_ROOTS"):
        source_files.file_ref(str(data.parquet(tmp_path / "t.parquet", 10)), roots=[])


def test_a_link_inside_the_root_is_followed_to_its_file(tmp_path: Path) -> None:
    path = data.parquet(tmp_path / "t.parquet", 10)
    found = source_files.file_ref(str(_link(tmp_path / "link.parquet", str(path))), roots=[tmp_path])
    assert found.path == str(path)


def test_a_file_swapped_for_a_link_after_registration_is_refused(tmp_path: Path) -> None:
    path = data.parquet(tmp_path / "t.parquet", 10)
    found = source_files.file_ref(str(path), roots=[tmp_path])
    path.rename(tmp_path / "moved.parquet")
    _link(path, str(tmp_path / "moved.parquet"))
    with pytest.raises(VersionChanged):
        source_files.open_pinned(found)


@pytest.mark.parametrize(
    ("number", "expected", "code"),
    [
        (errno.ENOENT, VersionChanged, "version_changed"),
        (errno.ESTALE, VersionChanged, "version_changed"),
        (errno.EACCES, SourceUnreadable, "source_unreadable"),
        (errno.ENFILE, Unavailable, "file_unavailable"),
        (errno.EIO, Unavailable, "file_unavailable"),
    ],
)
@pytest.mark.parametrize("call", ["open", "fstat"])
def test_only_a_file_that_is_gone_is_told_as_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, number: int, expected: type[ConnectorError], code: str
) -> None:
    found = source_files.file_ref(str(data.parquet(tmp_path / "t.parquet", 10)), roots=[tmp_path])

    def failing(*_: Any) -> Any:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patched:
        patched.setattr(source_files, "os", changed(os, **{call: failing}))
        with pytest.raises(expected) as raised:
            source_files.open_pinned(found)
    assert raised.value.code == code
    assert isinstance(error_of(code, {}), expected)  # as a worker tells it


def test_what_we_have_made_and_is_not_here_may_be_at_another_process(tmp_path: Path) -> None:
    found = replace(source_files.file_ref(str(data.parquet(tmp_path / "t.parquet", 10)), roots=[tmp_path]), ours=True)
    (tmp_path / "t.parquet").unlink()
    with pytest.raises(Unavailable, match="HANSE_CONVERTED_DIR"):
        source_files.open_pinned(found)


def test_want_of_descriptors_is_told_as_that_and_costs_none(tmp_path: Path) -> None:
    found = source_files.file_ref(str(data.parquet(tmp_path / "t.parquet", 10)), roots=[tmp_path])
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    os.close(next_one := os.open(tmp_path, os.O_RDONLY))
    resource.setrlimit(resource.RLIMIT_NOFILE, (next_one, hard))
    try:
        with pytest.raises(Unavailable, match="Too many open files"):
            source_files.open_pinned(found)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    os.close(source_files.open_pinned(found))


def test_arrow_stream_is_refused_with_what_to_do(tmp_path: Path) -> None:
    path = tmp_path / "t.arrow"
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_stream(sink, data.table(10).schema) as writer:
        writer.write_table(data.table(10))
    with pytest.raises(SourceUnreadable, match="write_feather"):
        source("arrow_ipc").find(str(path), roots=[tmp_path], options={})


def test_mixed_partitions_are_refused(tmp_path: Path) -> None:
    for place in ("year=2020", "month=1"):
        (tmp_path / "top" / place).mkdir(parents=True)
        data.parquet(tmp_path / "top" / place / "t.parquet", 10)
    with pytest.raises(SourceUnreadable, match="same partition columns"):
        source("hive").find(str(tmp_path / "top"), roots=[tmp_path], options={})


@pytest.mark.parametrize(
    ("kind", "options", "code"),
    [
        ("oracle", {}, "source_unknown"),
        ("csv", {"delimeter": ";"}, "option_unknown"),
        ("csv", {"header": "yes"}, "option_invalid"),
        ("csv", {"null_text": "n" * 300}, "option_invalid"),
        ("parquet", {"header": True}, "option_unknown"),
    ],
)
def test_bad_options_are_refused_by_name(kind: str, options: dict[str, Any], code: str) -> None:
    with pytest.raises(Invalid) as raised:
        read_options(kind, options)
    assert raised.value.code == code


def test_every_kind_has_endings_and_helped_options(tmp_path: Path) -> None:
    for kind in SOURCES:
        found = source(kind)
        assert found.SUFFIXES or remote_source(kind)
        assert all(option.help.endswith(".") for option in found.OPTIONS)
    assert guess_kind("x.arrow") == "arrow_ipc"
    assert guess_kind(str(tmp_path)) == "hive"
    assert (guess_kind("s3://bucket/some/prefix"), guess_kind("postgres://registry/t")) == ("s3", "postgres")


def _written(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    return path


def _link(link: Path, target: str) -> Path:
    link.symlink_to(target)
    return link


def _socket(path: Path) -> Path:
    with socket.socket(socket.AF_UNIX) as opened:
        opened.bind(str(path))
    return path


def _folder_with_link(root: Path, name: str, target: str) -> Path:
    (root / "data").mkdir()
    data.parquet(root / "data" / "a.parquet", 10)
    _link(root / "data" / name, target)
    return root / "data"


_ROWS_WITHOUT_A_MAP = """
import sys
import duckdb
import pyarrow as pa
from connector.datasets.sources import RowRange, arrow_ipc
path = sys.argv[1]

def memory_map(*_):
    raise AssertionError("the file was mapped")

pa.memory_map = memory_map  # this process has nothing else to do
assert arrow_ipc.groups([path])[0][0][0] == 10
with duckdb.connect(":memory:") as con:
    arrow_ipc.attach_rows(con, "t", [path], {}, RowRange(0, 5, 25))
    assert con.sql("FROM t").fetchall() == [(number,) for number in range(5, 25)]
"""


def test_rows_of_an_arrow_file_are_read_without_mapping_it(tmp_path: Path) -> None:
    """A map of the whole file counts against a worker's address space, so a large file could not be read at all."""
    table, path = pa.table({"id": range(40)}), tmp_path / "rows.arrow"
    with pa.ipc.new_file(path, table.schema) as out:
        for at in range(0, 40, 10):
            out.write_table(table.slice(at, 10))
    command = [sys.executable, "-c", _ROWS_WITHOUT_A_MAP, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_condition_on_folders_does_not_change_which_file_rows_are_of(tmp_path: Path) -> None:
    """The engine passes files over for it, and counts those that are left."""
    paths = []
    for number, part in enumerate(("part=a b", "part=b", "part=c")):
        (tmp_path / part).mkdir()
        paths.append(str(tmp_path / part / "rows.parquet"))
        pq.write_table(pa.table({"n": [10 * number, 10 * number + 1]}), paths[-1])
    with duckdb.connect(":memory:") as con:
        for number, found in enumerate(([], [(11,)], [(21,)])):
            divisible_source("hive").attach_rows(con, "t", paths, {}, RowRange(number, 1, 2))
            assert con.sql("SELECT n FROM t WHERE part IN ('b', 'c')").fetchall() == found


def test_a_column_of_arrow_files_without_a_name_is_the_same_in_each(tmp_path: Path) -> None:
    """The engine calls it by its place, which is another in a file that has its columns in another order."""
    paths = [str(tmp_path / f"{number}.arrow") for number in range(2)]
    for path, names in zip(paths, (["", "a"], ["a", ""]), strict=True):
        table = pa.table({"": [1], "a": ["x"]}).select(names)
        with pa.ipc.new_file(path, table.schema) as out:
            out.write_table(table)
    with duckdb.connect(":memory:") as con:
        arrow_ipc.attach(con, "whole", paths, {})
        whole = con.sql("FROM whole")
        arrow_ipc.attach_rows(con, "t", paths, {}, RowRange(1, 0, 1))
        rows = con.sql("FROM t")
        assert (rows.columns, rows.fetchall()) == (whole.columns, whole.fetchall()[1:])


_EMPTY_UNIONS = """
import sys, duckdb, pyarrow as pa
from connector.datasets.sources import arrow_ipc
from connector.datasets.sources.arrow_dataset import ArrowStream
from connector.engine.worker.inspect import arrow_files
from connector.engine.worker.read import duckdb_engine as engine
from pathlib import Path
from tests.support import data

path = sys.argv[1]
union = pa.UnionArray.from_sparse(pa.array([0, 1], pa.int8()), [pa.array([1, 2]), pa.array(["a", "b"])])
lists = pa.ListArray.from_arrays(pa.array([0, 0, 0], pa.int32()), union.slice(0, 0))
batch = pa.RecordBatch.from_arrays([pa.array([1, 2]), union, lists], ["n", "u", "l"])
for made in (pa.ipc.new_file, pa.ipc.new_stream):
    with made(path, batch.schema) as out:
        for one in (batch, batch.slice(0, 0)):
            out.write_batch(one)
    with duckdb.connect(":memory:") as con:
        if made is pa.ipc.new_file:
            files = engine.open_files(data.relation("arrow_ipc", Path(path), Path(path).parent), None)
            assert arrow_files.sizes_of(files) is not None
            arrow_ipc.attach(con, "t", [path], {})
        else:
            con.register("t", ArrowStream.at(path))
        print(con.sql("SELECT n, u, l FROM t WHERE n > 1").fetchall())
"""


def test_unions_that_are_empty_end_no_process(tmp_path: Path) -> None:
    """Arrow looks for what they do not have where it counts the bytes of one that was read."""
    command = [sys.executable, "-c", _EMPTY_UNIONS, str(tmp_path / "t.arrow")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["[(2, 'b', [])]"] * 2


def test_a_file_of_our_own_is_pinned_without_waiting_for_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "ours").mkdir()
    written, elsewhere = tmp_path / "ours" / "f0.arrow", tmp_path / "f1.arrow"
    written.write_bytes(b"rows")
    elsewhere.write_bytes(b"rows")
    waited: list[int] = []
    monkeypatch.setattr(source_files, "os", changed(os, fsync=waited.append))
    assert source_files.own_ref(str(written), folder=tmp_path / "ours") == (pinned := _pinned_by_hand(written))
    assert not waited
    assert source_files.file_ref(str(written), roots=[tmp_path]) == pinned
    assert waited
    for wrong in (elsewhere, tmp_path / "ours"):
        with pytest.raises(PathRefused):
            source_files.own_ref(str(wrong), folder=tmp_path / "ours")


def _pinned_by_hand(path: Path) -> source_files.FileRef:
    found = path.stat()
    times = (found.st_mtime_ns, found.st_ctime_ns)
    return source_files.FileRef(str(path), found.st_dev, found.st_ino, found.st_size, times[0], path.name, times[1])
