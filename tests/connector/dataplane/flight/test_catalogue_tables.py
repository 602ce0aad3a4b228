"""What the process of Flight's tables makes and reads, without the process. Hostile input included."""

from __future__ import annotations

import datetime
import random
import subprocess
import sys
from decimal import Decimal
from typing import Any

import duckdb
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from connector.dataplane.flight import catalogue_client, catalogue_process, catalogue_tables, flightsql
from connector.dataplane.flight.protobuf import MalformedMessage


def test_any_bytes_are_read_or_garbled_and_nothing_else() -> None:
    dice = random.Random(5)
    whole = flightsql.pack("CommandGetTables", [(1, ""), (2, "%"), (3, "n_m%"), (4, "TABLE"), (5, 1)])
    for _ in range(5_000):
        raw = bytearray(whole if dice.random() < 0.8 else dice.randbytes(dice.randrange(60)))
        for _ in range(dice.randrange(4)):
            if raw:
                raw[dice.randrange(len(raw))] = dice.randrange(256)
        try:
            name, command = flightsql.unpack(bytes(raw[: dice.randrange(len(raw) + 1)]))
            if name == "CommandGetTables":
                catalogue_tables.catalogue(name, command, [{"owner": "clinic", "name": "numbers", "schema": b""}])
        except MalformedMessage:
            continue


@pytest.mark.parametrize("pattern", ["%_" * 500, "%" * 1000 + "x", "%a" * 500, "%a%_" * 200 + "b"])
def test_a_pattern_of_many_wildcards_is_looked_for_to_its_end(pattern: str) -> None:
    """Where each wildcard is tried at each place, this does not end in a lifetime."""
    table = {"owner": "clinic", "name": "a" * 60, "schema": b""}
    _, command = flightsql.unpack(flightsql.pack("CommandGetTables", [(3, pattern)]))
    assert catalogue_tables.catalogue("CommandGetTables", command, [table]).num_rows == 0


def test_patterns_mean_what_they_mean_in_sql() -> None:
    dice = random.Random(7)
    with duckdb.connect() as con:
        for _ in range(300):
            pattern = "".join(dice.choices("ab%_.", k=dice.randrange(1, 7)))
            names = {"".join(dice.choices("ab.", k=dice.randrange(9))) for _ in range(20)}
            expected = sorted(one for one in names if con.execute("SELECT ? LIKE ?", [one, pattern]).fetchall()[0][0])
            tables = [{"owner": "clinic", "name": one, "schema": b""} for one in names]
            _, command = flightsql.unpack(flightsql.pack("CommandGetTables", [(3, pattern)]))
            assert catalogue_tables.catalogue("CommandGetTables", command, tables)["table_name"].to_pylist() == expected


VALUES: list[tuple[Any, pa.DataType, list[str]]] = [
    (1, pa.int8(), ["int", "1"]),
    (True, pa.bool_(), ["bool", "true"]),
    (None, pa.string(), ["null", ""]),
    ("a", pa.large_string(), ["text", "a"]),
    (Decimal("1.50"), pa.decimal128(5, 2), ["decimal", "1.50"]),
    (datetime.date(2026, 1, 2), pa.date64(), ["date", "2026-01-02"]),
    (datetime.datetime(2026, 1, 2, 3), pa.timestamp("ns"), ["timestamp", "2026-01-02 03:00:00"]),
    (datetime.time(1, 2), pa.time32("s"), ["time", "01:02:00"]),
    (Decimal("4E-11"), pa.decimal128(11, 11), ["decimal", "0.00000000004"]),
    (Decimal("12300"), pa.decimal128(5, -2), ["decimal", "12300"]),
    (Decimal(10) ** 60, pa.decimal256(61, 0), ["decimal", "1" + "0" * 60]),
    (1_000, pa.timestamp("ns"), ["timestamp", "1970-01-01 00:00:00.000001"]),
    (1_000, pa.time64("ns"), ["time", "00:00:00.000001"]),
    (0, pa.timestamp("ms", "Europe/Rome"), ["timestamptz", "1970-01-01 01:00:00+01:00"]),
]


@pytest.mark.parametrize(("value", "kind", "expected"), VALUES, ids=lambda one: str(one))
def test_arrow_values_are_taken_as_type_and_text(value: Any, kind: pa.DataType, expected: list[str]) -> None:
    batch = pa.RecordBatch.from_arrays([pa.array([value], kind)], names=["0"])
    assert catalogue_tables.values_of([batch]) == [expected]


@pytest.mark.parametrize(
    "batches",
    [
        [],
        [pa.RecordBatch.from_pydict({"a": [1, 2]})],
        [pa.RecordBatch.from_pydict({"a": [1]})] * 2,
        [pa.RecordBatch.from_pydict({"a": [[1]]})],
        [pa.RecordBatch.from_pydict({"a": ["x" * 70_000]})],
        [pa.RecordBatch.from_pydict({str(n): [1] for n in range(1001)})],
        [pa.RecordBatch.from_pydict({"a": pa.array([1_001], pa.time64("ns"))})],
        [pa.RecordBatch.from_pydict({"a": pa.array([-1_001], pa.timestamp("ns"))})],
    ],
    ids=["no row", "two rows", "two batches", "a list", "long text", "too many", "a fine time", "a fine moment"],
)
def test_parameters_that_are_not_one_row_of_plain_values_are_garbled(batches: list[pa.RecordBatch]) -> None:
    with pytest.raises(MalformedMessage):
        catalogue_tables.values_of(batches)


BEYOND = {
    "a year beyond all": pa.array([2**40], pa.timestamp("s")),
    "part of a day": pa.Array.from_buffers(pa.date64(), 1, [None, pa.py_buffer((1).to_bytes(8, "little"))]),
    "a zone of nowhere": pa.array([1], pa.timestamp("s", "No/Where")),
}


@pytest.mark.parametrize("what", BEYOND)
def test_a_value_that_there_is_not_is_told_by_its_number(what: str) -> None:
    """It was said of the whole stream that it is damaged."""
    with pytest.raises(MalformedMessage, match=r"^expected parameter 2 as a \w+ that exists"):
        catalogue_tables.values_of([pa.RecordBatch.from_arrays([pa.array([1]), BEYOND[what]], names=["0", "1"])])


def test_the_connector_loads_no_arrow_for_it() -> None:
    code = "import sys, connector.dataplane.flight.catalogue_client; sys.exit('pyarrow' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@given(st.recursive(st.none() | st.integers() | st.text() | st.booleans(), lambda one: st.lists(one)))
def test_answers_that_are_no_values_are_told_from_those_that_are(row: Any) -> None:
    """Who has read foreign bytes may say anything."""
    text, body = catalogue_process.frame(row)[catalogue_process.HEADER.size :], b""
    assert catalogue_process.unframed(text, body) == (row, [])
    fits = isinstance(row, list) and len(row) == 2 and {type(one) for one in row} == {str}
    assert flightsql.is_value(row) is fits


@pytest.mark.parametrize("text", [b"", b"1", b"[1]", b"[1,2,3]", b"[1,[2]]", b"[1,[-1]]", b'[1,["a"]]', b"[" * 10**5])
def test_a_frame_that_is_none_is_refused(text: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  whichever it is
        catalogue_process.unframed(text, b"x")


def test_what_is_kept_has_a_bound() -> None:
    kept = catalogue_client._Kept(100_000)
    for number in range(1000):
        kept.store(number, [bytes(9_000)], 9_000)
        assert kept.get(0) or number > 9
    kept.store("large", [b""], 200_000)
    assert kept.get("large") is None
    assert kept.get(999) is None
    kept.store("small", [b"x"], 1)
    assert kept.get("small") == [b"x"]


def test_grpc_is_loaded_when_flight_starts_and_arrow_never() -> None:
    code = (
        "import sys, connector.services; before = 'grpc' in sys.modules\n"
        "import connector.dataplane.flight.rpc_methods; print(before, 'grpc' in sys.modules, 'pyarrow' in sys.modules)"
    )
    assert subprocess.check_output([sys.executable, "-c", code], text=True).split() == ["False", "True", "False"]
