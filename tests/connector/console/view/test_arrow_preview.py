"""The beginning of an answer as texts: bounded, in order, with columns of one name kept apart."""

from __future__ import annotations

import pyarrow as pa

from connector.console.view.arrow_preview import cells


def stream(table: pa.Table, *, chunk: int = 3) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table, max_chunksize=chunk)
    return bytes(sink.getvalue())


def test_no_more_rows_are_shown_than_wanted() -> None:
    table = pa.table({"n": list(range(10)), "t": [f"row {i}" for i in range(10)]})
    shown = cells(stream(table), most=7)
    assert shown["rows"] == [[str(i), f"row {i}"] for i in range(7)]
    assert [column["number"] for column in shown["columns"]] == [True, False]


def test_missing_values_long_texts_and_columns_of_one_name_are_kept_apart() -> None:
    table = pa.Table.from_arrays([pa.array([None, 1]), pa.array(["x" * 300, "y"])], names=["a", "a"])
    first, second = cells(stream(table), most=5)["rows"]
    assert first[0] is None
    assert first[1] == "x" * 200 + "…"
    assert second == ["1", "y"]


def test_an_answer_without_rows_has_its_columns() -> None:
    table = pa.table({"n": pa.array([], pa.float64())})
    assert cells(stream(table), most=5) == {
        "columns": [{"name": "n", "type": "double", "number": True}],
        "rows": [],
    }
