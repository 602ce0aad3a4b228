"""Values in CSV, JSON and tables of the command line: each is said, also those that Arrow's writers and Python lack."""

from __future__ import annotations

import csv
import io
import json
import math
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hanse.cli import cell_text, query

SAID: dict[pa.DataType, dict[Any, Any]] = {  # what is stored, and what is said of it
    pa.date32(): {0: "1970-01-01", -719_529: "-0001-12-31", -100_000: "1696-03-17", 2**30: "2941775-04-07",
                  2**31 - 1: "infinity", 1 - 2**31: "-infinity"},
    pa.timestamp("us"): {1: "1970-01-01 00:00:00.000001", 2**62: "148108-07-06 14:00:27.387904"},
    pa.timestamp("ms", "UTC"): {-1: "1969-12-31 23:59:59.999Z", 2**62 // 10**3: "148108-07-06 14:00:27.387Z",
                                1 - 2**63: "-infinity"},
    pa.timestamp("ns"): {1: "1970-01-01 00:00:00.000000001", 2**63 - 1: "infinity"},
    pa.time64("ns"): {1: "00:00:00.000000001", 86_400 * 10**9: "24:00:00.000000000"},
    pa.time32("s"): {0: "00:00:00", 86_400: "24:00:00"},
    pa.binary(): {b"\x00\xff": "AP8=", b"": ""},
    pa.decimal128(5, 2): {-110: "-1.10"},
    pa.month_day_nano_interval(): {(1, -2, 1_500_000_000): "P1M-2DT1.5S", (0, 0, 0): "P0M0DT0S"},
    pa.float64(): {math.nan: "NaN", math.inf: "Infinity", -math.inf: "-Infinity", 1.5: 1.5},
    pa.bool_(): {True: True},
}  # fmt: skip


def stored(kind: pa.DataType) -> pa.Array:
    values = list(SAID[kind])
    if pa.types.is_decimal(kind):
        return pa.array(
            [pa.scalar(one, pa.int64()).cast(pa.decimal128(38, 0)).as_py().scaleb(-2) for one in values], kind
        )
    if pa.types.is_temporal(kind) and not pa.types.is_interval(kind):
        return pa.array(values, pa.int32() if kind.bit_width == 32 else pa.int64()).cast(kind)
    return pa.array(values, kind)


@pytest.mark.parametrize("kind", list(SAID), ids=str)
def test_every_value_is_said_alone_and_in_what_is_nested(kind: pa.DataType) -> None:
    values, told = stored(kind), list(SAID[kind].values())
    nested = pa.array([[{"a": one}, None] for one in values], pa.list_(pa.struct([("a", kind)])))
    maps = pa.array([[("k", one)] for one in values], pa.map_(pa.string(), kind))
    rows = list(cell_text.rows(pa.record_batch({"x": values, "n": nested, "m": maps})))
    wanted = [[one, [{"a": one}, None], [["k", one]]] for one in told]
    assert json.loads(json.dumps(rows, allow_nan=False)) == wanted


@pytest.mark.parametrize("kind", [one for one in SAID if not cell_text.is_plain(one)], ids=str)
def test_csv_says_the_same(kind: pa.DataType) -> None:
    table = pa.table({"x": stored(kind), "n": pa.array([[one] for one in stored(kind)], pa.list_(kind))})
    told = list(SAID[kind].values())
    assert written(table) == [[one, json.dumps([one])] for one in told]


def test_lists_of_nothing_are_said() -> None:
    rows = cell_text.rows(pa.record_batch({"x": pa.array([[None] * 3, None], pa.list_(pa.null()))}))
    assert list(rows) == [([None] * 3,), (None,)]


@pytest.mark.parametrize("values", [[1, None, 3], ["a", None, ""], [[1], None, []]], ids=str)
def test_a_missing_value_of_one_column_is_no_empty_line(values: list[Any]) -> None:
    assert [row for row in written(pa.table({"x": values})) if not row] == []


def written(table: pa.Table) -> list[list[str]]:
    sink = io.BytesIO()
    query._csv(table.schema, iter(table.to_batches()), sink)
    return list(csv.reader(io.StringIO(sink.getvalue().decode())))[1:]


def test_parquet_has_seconds_as_milliseconds_and_infinity_too() -> None:
    numbers = pa.array([1, None, 2**63 - 1, 1 - 2**63])
    table = pa.table({"x": numbers.cast(pa.timestamp("s")), "z": numbers.cast(pa.timestamp("s", "UTC")), "n": [1] * 4})
    sink = io.BytesIO()
    query._parquet(table.schema, iter(table.to_batches()), sink)
    found = pq.read_table(io.BytesIO(sink.getvalue()))
    assert found.schema.types == [pa.timestamp("ms"), pa.timestamp("ms", "UTC"), pa.int64()]
    assert found["x"].cast(pa.int64()).to_pylist() == [1000, None, 2**63 - 1, 1 - 2**63]
