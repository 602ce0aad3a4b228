"""What the query page makes of an answer: a chart, and files that are whole or not there."""

from __future__ import annotations

import io
import json
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from connector.errors import BadInput
from connector.management.pages import download, export
from connector.management.pages.chart import chart

TABLE = pa.table({"ward": ["a", "b", "<c>"], "n": [3, None, 5]})


def columns(**kinds: str) -> list[dict[str, Any]]:
    return [{"name": name, "type": kind, "number": kind != "string" and kind != "date32[day]"}
            for name, kind in kinds.items()]  # fmt: skip


CHARTS = [
    ("bars for few names", columns(ward="string", n="int64"), [["a", "3"], ["<b>", "-4"]], "rect", "&lt;b&gt;"),
    ("a line for days", columns(day="date32[day]", n="int64"), [["2020-02-01", "1"], ["2020-01-01", "2"]], "polyline",
     "2020-01-01"),
    ("two numbers", columns(year="int32", n="int64"), [["2020", "1"], ["2021", "2000"]], "rect", "2,000"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "shown", "rows", "kind", "text"), CHARTS, ids=[case[0] for case in CHARTS])
def test_an_answer_that_a_chart_can_show_has_one(name: str, shown: Any, rows: Any, kind: str, text: str) -> None:
    drawn = chart({"columns": shown, "rows": rows})
    assert f"<{kind}" in drawn
    assert text in drawn
    assert "<b>" not in drawn


NONE = [
    ("one row", columns(ward="string", n="int64"), [["a", "3"]]),
    ("no number", columns(ward="string", word="string"), [["a", "x"], ["b", "y"]]),
    ("too many names", columns(ward="string", n="int64"), [[str(n), "1"] for n in range(200)]),
    ("nothing but nulls", columns(ward="string", n="int64"), [["a", None], ["b", None]]),
]


@pytest.mark.parametrize(("name", "shown", "rows"), NONE, ids=[case[0] for case in NONE])
def test_an_answer_that_a_chart_says_nothing_about_has_none(name: str, shown: Any, rows: Any) -> None:
    assert chart({"columns": shown, "rows": rows}) == ""


def stream(end: dict[str, Any] | None) -> io.BytesIO:
    sink = io.BytesIO()
    with pa.ipc.new_stream(sink, TABLE.schema) as writer:
        writer.write_table(TABLE)
        if end is not None:
            writer.write_batch(TABLE.slice(0, 0).to_batches()[0] if TABLE.slice(0, 0).to_batches() else
                               pa.RecordBatch.from_pylist([], schema=TABLE.schema),
                               custom_metadata={"hanse.end": json.dumps(end)})  # fmt: skip
    return io.BytesIO(sink.getvalue())


READERS = {
    "csv": lambda data: len(data.splitlines()) - 1,
    "json": lambda data: len([json.loads(line) for line in data.splitlines()]),
    "parquet": lambda data: pq.read_table(io.BytesIO(data)).num_rows,
    "arrow": lambda data: pa.ipc.open_file(data).read_all().num_rows,
}


@pytest.mark.parametrize("kind", list(download.FORMATS))
def test_a_file_has_all_rows_and_says_whether_the_answer_was_whole(kind: str) -> None:
    written = io.BytesIO()
    assert export.export(kind, stream({"status": "complete"}), written)
    assert READERS[kind](written.getvalue()) == 3
    assert not export.export(kind, stream({"status": "error"}), io.BytesIO())
    assert not export.export(kind, stream(None), io.BytesIO())


def test_formats_and_writers_are_the_same() -> None:
    assert set(export.WRITERS) == set(download.FORMATS)
    with pytest.raises(BadInput, match="csv, json"):
        download.known("xls")
