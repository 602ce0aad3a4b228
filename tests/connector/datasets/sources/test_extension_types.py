"""The engine is told no name of a type that somebody else gave: it would read memory by it."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import duckdb
import pyarrow as pa
import pytest

from connector.datasets.sources import RowRange, arrow_ipc
from connector.datasets.sources.extension_types import cast_batch, trusted_schema
from connector.engine.pool.protocol import TRAILER_KEY, Job
from connector.engine.worker.inspect import untrusted_arrow
from connector.engine.worker.read import duckdb_engine
from connector.errors import SourceUnreadable
from tests.support.digested import digest_before

COUNT = 5000
NUMBER = pa.opaque(pa.binary(1), "hugeint", "DuckDB")
OF_PANDAS = {"ARROW:extension:name": "pandas.period", "ARROW:extension:metadata": '{"freq": "D"}'}
SHAPE = {"ARROW:extension:name": "geoarrow.wkb", "ARROW:extension:metadata": "{}"}


def named(count: int) -> pa.Array:
    """Numbers of 16 bytes each, as the name says, of which one has come."""
    return pa.ExtensionArray.from_storage(NUMBER, pa.array([b"\0"] * count, pa.binary(1)))


def rows() -> pa.Table:
    numbers, ends = named(COUNT), pa.array(range(COUNT + 1), pa.int32())
    columns = [
        numbers,
        pa.ListArray.from_arrays(ends, numbers),
        pa.StructArray.from_arrays([numbers], ["a"]),
        pa.array([b"no shape"] * COUNT),
        pa.ExtensionArray.from_storage(pa.uuid(), pa.array([bytes(16)] * COUNT, pa.binary(16))),
    ]
    names = ["number", "numbers", "part", "shape", "uuid"]
    fields = [pa.field(name, one.type) for name, one in zip(names, columns, strict=True)]
    fields[3] = fields[3].with_metadata(SHAPE)
    return pa.table(columns, pa.schema(fields, {"pandas": "{"}))


EXPECTED = ["BLOB", "UUID"]
OF_AN_ENGINE = ["number", "numbers", "part"]
EXPECTED_OF_THESE = ["BLOB", "BLOB[]", "STRUCT(a BLOB)"]


def in_file(con: Any, path: Path, table: pa.Table) -> None:
    with pa.ipc.new_file(path, table.schema) as out:
        out.write_table(table)
    arrow_ipc.attach(con, "t", [str(path)], {})


def rows_of_file(con: Any, path: Path, table: pa.Table) -> None:
    in_file(con, path, table)
    arrow_ipc.attach_rows(con, "t", [str(path)], {}, RowRange(0, 0, COUNT, ""))


def streamed(attach: Callable[..., None]) -> Callable[[Any, Path, pa.Table], None]:
    def way(con: Any, path: Path, table: pa.Table) -> None:
        path.write_bytes(sent(table))
        attach(con, "t", SimpleNamespace(paths=[str(path)]))

    return way


def sent(table: pa.Table, *, ended: bool = False) -> bytes:
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
        if ended:
            end = {"status": "complete", "rows": COUNT, "digest": digest_before(sink, table.schema)}
            writer.write_batch(table.to_batches()[0].slice(0, 0), custom_metadata={TRAILER_KEY: json.dumps(end)})
    return sink.getvalue()


def keys(con: Any, _: Path, table: pa.Table) -> None:
    duckdb_engine.attach_table(con, "t", untrusted_arrow.read_blob(sent(table)))


def answer(con: Any, _: Path, table: pa.Table) -> None:
    blob = sent(table, ended=True)
    unread = untrusted_arrow.UnreadAnswers(Job(kind="query", blobs=(blob,)), lambda: None)
    (found,) = unread.tables([0], table.column_names)
    duckdb_engine.take_in(con, "t", found)


OWNED = {"a file": in_file, "rows of a file": rows_of_file}
BROUGHT = {
    "a stream in place": streamed(duckdb_engine.attach_once),
    "a stream in memory": streamed(duckdb_engine.hold),
    "a stream that is loaded": streamed(duckdb_engine.load),
    "keys": keys,
    "an answer": answer,
}


@pytest.mark.parametrize("way", BROUGHT)
def test_values_are_what_they_lie_in(way: str, tmp_path: Path) -> None:
    con = duckdb.connect()
    BROUGHT[way](con, tmp_path / "t.arrow", rows())
    relation = con.sql("FROM t")
    assert [str(kind) for kind in relation.types] == EXPECTED_OF_THESE + EXPECTED
    assert con.sql("SELECT DISTINCT number, numbers, part, shape FROM t").fetchall() == [
        (b"\0", [b"\0"], {"a": b"\0"}, b"no shape")
    ]


@pytest.mark.parametrize("way", OWNED)
def test_values_of_an_owner_are_what_they_lie_in(way: str, tmp_path: Path) -> None:
    con = duckdb.connect()
    OWNED[way](con, tmp_path / "t.arrow", rows().drop_columns(OF_AN_ENGINE))
    relation = con.sql("FROM t")
    assert [str(kind) for kind in relation.types] == EXPECTED
    assert con.sql("SELECT DISTINCT shape FROM t").fetchall() == [(b"no shape",)]


@pytest.mark.parametrize("name", OF_AN_ENGINE)
def test_a_file_with_an_engines_type_is_not_read_though_it_was_registered(name: str, tmp_path: Path) -> None:
    with pytest.raises(SourceUnreadable, match=f"came {name} .*hugeint.* register that under a new name") as refused:
        in_file(duckdb.connect(), tmp_path / "t.arrow", rows().select([name, "uuid"]))
    assert refused.value.code == "type_unread"


KINDS: list[tuple[pa.DataType, pa.DataType]] = [
    (pa.list_(NUMBER, 2), pa.list_(pa.binary(1), 2)),
    (pa.large_list(NUMBER), pa.large_list(pa.binary(1))),
    (pa.list_view(NUMBER), pa.list_view(pa.binary(1))),
    (pa.large_list_view(NUMBER), pa.large_list_view(pa.binary(1))),
    (pa.map_(pa.string(), NUMBER), pa.map_(pa.string(), pa.binary(1))),
    (pa.dictionary(pa.int8(), NUMBER), pa.dictionary(pa.int8(), pa.binary(1))),
    (pa.run_end_encoded(pa.int16(), NUMBER), pa.run_end_encoded(pa.int16(), pa.binary(1))),
    (pa.run_end_encoded(pa.int16(), pa.bool8()), pa.run_end_encoded(pa.int16(), pa.int8())),
    (pa.sparse_union([pa.field("a", NUMBER)], [7]), pa.sparse_union([pa.field("a", pa.binary(1))], [7])),
    (pa.dense_union([pa.field("a", NUMBER)], [7]), pa.dense_union([pa.field("a", pa.binary(1))], [7])),
    (pa.opaque(NUMBER, "a", "b"), pa.binary(1)),
    (pa.decimal128(5, 2), pa.decimal128(5, 2)),
    (pa.fixed_shape_tensor(pa.int8(), (2,)), pa.fixed_shape_tensor(pa.int8(), (2,))),
]


@pytest.mark.parametrize(("kind", "expected"), KINDS, ids=str)
def test_a_type_has_the_names_alone_that_arrow_checks(kind: pa.DataType, expected: pa.DataType) -> None:
    noted = pa.schema([pa.field("c", kind, nullable=False, metadata={"a": "b"})], {"c": "d"})
    assert trusted_schema(noted).equals(pa.schema([pa.field("c", expected, nullable=False)]), check_metadata=True)


def test_notes_within_a_type_are_left_out() -> None:
    noted = pa.field("l", pa.list_(pa.field("item", pa.int64(), metadata=OF_PANDAS)))
    schema = trusted_schema(pa.schema([noted]))
    assert schema.field(0).type.value_field.metadata is None
    assert cast_batch(pa.record_batch([pa.array([[1]], noted.type)], ["l"]), schema).to_pydict() == {"l": [[1]]}
