"""What a profile asks of the engine: few passes where columns are small, few columns at once where they are not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from connector.engine.worker.inspect import arrow_files, parquet_footers, profile
from connector.engine.worker.read import duckdb_engine
from connector.errors import SourceUnreadable
from tests.support import data

ROWS = 100
_ROOM = 64 * 2**20
# Never let go: Arrow's own threads may still give memory back to it when what they read for has long returned.
_COUNTING = pa.proxy_memory_pool(pa.system_memory_pool())


def _heard(stage: str, done: int) -> None:
    """Nobody listens."""


def asked_of(path: Path, *, room: int = _ROOM) -> tuple[dict[str, Any], list[str]]:
    """The profile of a Parquet file, and the questions that it took."""
    relation = data.relation("parquet", path, path.parent)
    files = duckdb_engine.open_files(relation, None)
    asked: list[str] = []
    with duckdb.connect() as con:
        duckdb_engine.attach(con, "t", relation, files)

        def ask(sql: str, told: Callable[[float], None]) -> Sequence[Any]:
            asked.append(sql)
            return con.sql(sql).fetchall()[0]

        sizes = parquet_footers.sizes_of(files, reached=_heard)
        return profile.profile(con, "t", files, sizes=sizes, room=room, reached=_heard, ask=ask), asked


def wide(columns: int) -> pa.Table:
    made = [
        pa.array([f"{row % 7}" if number % 2 else row * number for row in range(ROWS)]) for number in range(columns)
    ]
    return pa.table(made, names=[f"c{number}" for number in range(columns)])


def test_a_thousand_small_columns_take_four_passes(tmp_path: Path) -> None:
    pq.write_table(wide(1000), tmp_path / "t.parquet")
    found, asked = asked_of(tmp_path / "t.parquet")
    assert len(asked) == 4
    assert [one["name"] for one in found["columns"]] == [f"c{number}" for number in range(1000)]
    assert (found["rows"], found["columns"][999]["max"], found["columns"][998]["max"]) == (ROWS, "6", str(99 * 998))
    assert all(one["null_share"] == 0 and one["bytes"] for one in found["columns"])


def test_no_more_distinct_values_are_told_of_than_there_are_values(tmp_path: Path) -> None:
    pq.write_table(
        pa.table({f"c{number}": range(number, 20_000 + number) for number in range(10)}), tmp_path / "t.parquet"
    )
    found, _ = asked_of(tmp_path / "t.parquet")
    assert max(one["distinct"] for one in found["columns"]) <= found["rows"]


def test_columns_that_there_is_no_room_for_are_asked_for_a_few_at_a_time(tmp_path: Path) -> None:
    pq.write_table(wide(100), tmp_path / "t.parquet")
    assert len(asked_of(tmp_path / "t.parquet", room=2**20)[1]) == 7


@pytest.mark.parametrize("encoding", ["DELTA_BYTE_ARRAY", "DELTA_LENGTH_BYTE_ARRAY", "PLAIN"])
def test_texts_of_which_only_the_ends_or_hardly_the_lengths_are_stored_are_asked_for_a_few_at_a_time(
    tmp_path: Path, encoding: str
) -> None:
    texts = pa.table({f"c{number}": [f"{row}" for row in range(ROWS)] for number in range(40)})
    encodings = dict.fromkeys(texts.schema.names, encoding)
    pq.write_table(texts, tmp_path / "t.parquet", use_dictionary=False, column_encoding=encodings)
    assert len(asked_of(tmp_path / "t.parquet")[1]) == (1 if encoding == "PLAIN" else 3)


@pytest.mark.parametrize("kind", ["text", "number"])
def test_a_dictionary_of_texts_takes_more_memory_than_in_its_file(tmp_path: Path, kind: str) -> None:
    values = pa.array(range(20_000), pa.int32())
    dictionary = pa.table([values.cast(pa.string()) if kind == "text" else values] * 64, names=[*map(str, range(64))])
    pq.write_table(dictionary, tmp_path / "t.parquet")
    assert len(asked_of(tmp_path / "t.parquet", room=24 * 2**20)[1]) == (4 if kind == "text" else 1)


def test_a_struct_of_many_fields_counts_as_many(tmp_path: Path) -> None:
    inner = wide(64).to_struct_array()
    pq.write_table(pa.table([inner] * 40, names=[f"s{number}" for number in range(40)]), tmp_path / "t.parquet")
    assert len(asked_of(tmp_path / "t.parquet")[1]) == 3


@pytest.mark.parametrize("legacy", [False, True])
def test_an_arrow_file_of_version_4_is_looked_at_without_the_bytes_of_its_batches(tmp_path: Path, legacy: bool) -> None:
    """A batch may be larger than memory."""
    table = pa.table({"n": range(2**20), "tag": pa.array(["a", "b"] * 2**19).dictionary_encode()})
    how = pa.ipc.IpcWriteOptions(metadata_version=pa.ipc.MetadataVersion.V4, use_legacy_format=legacy)
    with pa.ipc.new_file(tmp_path / "t.arrow", table.schema, options=how) as out:
        out.write_table(table)
    files = duckdb_engine.open_files(data.relation("arrow_ipc", tmp_path / "t.arrow", tmp_path), None)
    before = pa.default_memory_pool()
    pa.set_memory_pool(_COUNTING)
    try:
        arrow_files.check(files, reached=_heard)
    finally:
        pa.set_memory_pool(before)
        files.close()
    assert (_COUNTING.max_memory() or 0) < 2**18


def test_an_arrow_file_of_version_4_whose_messages_are_damaged_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.arrow"
    how = pa.ipc.IpcWriteOptions(metadata_version=pa.ipc.MetadataVersion.V4)
    with pa.ipc.new_file(path, pa.schema({"n": pa.int64()}), options=how) as out:
        out.write(pa.table({"n": range(10)}))
    raw = bytearray(path.read_bytes())
    at = raw.rindex(b"\xff\xff\xff\xff", 0, raw.index((9).to_bytes(8, "little")))  # of the batch
    raw[at + 8 : at + 12] = b"\x00\x00\x00\x7f"  # where the message's own table lies
    path.write_bytes(raw)
    files = duckdb_engine.open_files(data.relation("arrow_ipc", path, tmp_path), None)
    with pytest.raises(SourceUnreadable, match=r"damaged one: 't\.arrow'"):
        arrow_files.check(files, reached=_heard)
    files.close()


def test_widths_of_arrow_columns_are_those_of_their_values(tmp_path: Path) -> None:
    """A file says nothing of them, and of values that are taken for small too many would be in a batch."""
    texts = pa.array([str(number % 10) * 3000 for number in range(100)])
    table = pa.table(
        {
            "n": range(100),
            "text": texts,
            "word": texts.dictionary_encode(),
            "view": texts.cast(pa.string_view()),
            "vector": pa.array([[0.5] * 700] * 100, pa.list_(pa.float32())),
            "at": pa.array([{"x": 1, "y": 2}] * 100),
        }
    )
    for number in range(20):
        with pa.ipc.new_file(tmp_path / f"{number:02}.arrow", table.schema) as out:
            out.write_table(table.slice(0, number * 5), max_chunksize=10)
    files = duckdb_engine.open_files(data.relation("arrow_ipc", tmp_path, tmp_path), None)
    found = arrow_files.sizes_of(files).widths
    files.close()
    assert {name: round(width, -2) for name, width in found.items()} == {
        "text": 3000, "word": 3000, "view": 3000, "vector": 2800, "at": 0,
    }  # fmt: skip


def test_widths_of_arrow_files_without_rows_are_not_known(tmp_path: Path) -> None:
    for number, batches in enumerate(([], [pa.record_batch({"n": pa.array([], pa.string())})])):
        with pa.ipc.new_file(tmp_path / f"{number}.arrow", pa.schema({"n": pa.string()})) as out:
            for batch in batches:
                out.write_batch(batch)
    files = duckdb_engine.open_files(data.relation("arrow_ipc", tmp_path, tmp_path), None)
    assert not arrow_files.sizes_of(files).widths
    files.close()
