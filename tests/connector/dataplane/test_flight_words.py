"""The pure parts of Flight: protobuf, Flight SQL's messages, parameters, sealed tickets. Hostile input included."""

from __future__ import annotations

import datetime
import random
import time
from dataclasses import replace
from decimal import Decimal
from typing import Any

import duckdb
import pyarrow as pa
import pytest

from connector.dataplane.flight import commands, parameters, passes, protobuf
from connector.dataplane.flight.passes import Pass
from connector.dataplane.flight.protobuf import Garbled
from connector.errors import HanseError, QueryInvalid, Refused, Unauthenticated
from policies.errors import PolicyError

KEY = b"k" * 32
ONE = Pass("1", "did:web:a", ("urn:1",), 1000.0, {"sql": "SELECT 1"})


def test_a_message_comes_back_as_it_was_written() -> None:
    raw = protobuf.write([(1, "text"), (2, 300), (3, b"\x00\xff"), (1, "more"), (9, 0)])
    read = protobuf.read(raw)
    assert (protobuf.texts(read, 1), protobuf.number(read, 2), protobuf.octets(read, 3)) == (
        ["text", "more"],
        300,
        b"\x00\xff",
    )
    assert (protobuf.text(read, 1), protobuf.text(read, 9), protobuf.number(read, 9)) == ("more", None, 0)


BROKEN = {
    "cut off": b"\x0a\x05abc",
    "no field": b"\x00\x00",
    "an endless number": b"\x08" + b"\xff" * 11,
    "an unknown wire type": b"\x0b",
    "a length beyond all": b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\x7f",
    "a number cut off": b"\x08\x80",
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_no_message_is_garbled(name: str) -> None:
    with pytest.raises(Garbled):
        protobuf.read(BROKEN[name])


def test_any_bytes_are_read_or_garbled_and_nothing_else() -> None:
    dice = random.Random(5)
    whole = commands.pack("CommandGetTables", [(1, ""), (2, "%"), (3, "n_m%"), (4, "TABLE"), (5, 1)])
    for _ in range(5_000):
        raw = bytearray(whole if dice.random() < 0.8 else dice.randbytes(dice.randrange(60)))
        for _ in range(dice.randrange(4)):
            if raw:
                raw[dice.randrange(len(raw))] = dice.randrange(256)
        try:
            name, command = commands.unpack(bytes(raw[: dice.randrange(len(raw) + 1)]))
            if name == "CommandGetTables":
                commands.catalogue(name, command, [{"owner": "clinic", "name": "numbers", "schema": b""}])
        except Garbled:
            continue


NO_CONSTANTS = {
    "spaces, and more": ("SELECT 123456789", "x"),
    "an end, and spaces": ("SELECT 1;", "x"),
    "a name, and spaces": ("SELECT 1 AS x", "y"),
}


@pytest.mark.parametrize("name", NO_CONSTANTS)
def test_a_long_statement_that_is_no_constant_is_told_at_once(name: str) -> None:
    """It is looked at before it is known who asks. Eight times the spaces take about eight times as long."""
    begins, ends = NO_CONSTANTS[name]

    def taken(spaces: int) -> float:
        before = time.thread_time()
        assert commands.constant(begins + " " * spaces + ends) is None
        return time.thread_time() - before

    short, long = (min(taken(spaces) for _ in range(5)) for spaces in (30_000, 240_000))
    assert long < 24 * short + 0.001


@pytest.mark.parametrize("pattern", ["%_" * 500, "%" * 1000 + "x", "%a" * 500, "%a%_" * 200 + "b"])
def test_a_pattern_of_many_wildcards_is_looked_for_to_its_end(pattern: str) -> None:
    """Where each wildcard is tried at each place, this does not end in a lifetime."""
    table = {"owner": "clinic", "name": "a" * 60, "schema": b""}
    _, command = commands.unpack(commands.pack("CommandGetTables", [(3, pattern)]))
    assert commands.catalogue("CommandGetTables", command, [table]).num_rows == 0


def test_patterns_mean_what_they_mean_in_sql() -> None:
    dice = random.Random(7)
    with duckdb.connect() as con:
        for _ in range(300):
            pattern = "".join(dice.choices("ab%_.", k=dice.randrange(1, 7)))
            names = {"".join(dice.choices("ab.", k=dice.randrange(9))) for _ in range(20)}
            expected = sorted(one for one in names if con.execute("SELECT ? LIKE ?", [one, pattern]).fetchall()[0][0])
            tables = [{"owner": "clinic", "name": one, "schema": b""} for one in names]
            _, command = commands.unpack(commands.pack("CommandGetTables", [(3, pattern)]))
            assert commands.catalogue("CommandGetTables", command, tables)["table_name"].to_pylist() == expected


@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b'{"sql": 1, "values": []}', b'{"sql": ""}', b"[" * 100_000, None])
def test_a_handle_that_was_never_given_out_is_garbled(raw: bytes | None) -> None:
    with pytest.raises(Garbled):
        commands.unhandle(raw)


def test_values_become_literals_in_their_places_only() -> None:
    sql = "SELECT '?', \"?\", ? AS a -- ?\n FROM t WHERE b = ? AND c = ? /* ? */"
    literals = ["(-1)", "'x'' OR 1=1 --'", "CAST('2026-01-01' AS DATE)"]
    expected = "SELECT '?', \"?\", {} AS a -- ?\n FROM t WHERE b = {} AND c = {} /* ? */".format(*literals)
    assert parameters.bound(sql, [("int", "-1"), ("text", "x' OR 1=1 --"), ("date", "2026-01-01")]) == expected
    assert (parameters.count(sql), parameters.count("SELECT 1")) == (3, 0)


UNFIT: dict[str, list[tuple[str, str]]] = {
    "too few": [],
    "too many": [("int", "1"), ("int", "2")],
    "a number that is SQL": [("int", "1 OR 1=1")],
    "a long number": [("int", "1" * 40)],
    "a type of nobody's": [("list", "[]")],
}


@pytest.mark.parametrize("name", UNFIT)
def test_values_that_do_not_fit_are_refused(name: str) -> None:
    with pytest.raises(QueryInvalid):
        parameters.bound("SELECT a FROM t WHERE a = ?", UNFIT[name])


def test_a_statement_that_cannot_be_cut_into_words_is_refused() -> None:
    with pytest.raises((PolicyError, HanseError)):
        parameters.count("SELECT '?")


VALUES: list[tuple[Any, pa.DataType, list[str]]] = [
    (1, pa.int8(), ["int", "1"]),
    (True, pa.bool_(), ["bool", "true"]),
    (None, pa.string(), ["null", ""]),
    ("a", pa.large_string(), ["text", "a"]),
    (Decimal("1.50"), pa.decimal128(5, 2), ["decimal", "1.50"]),
    (datetime.date(2026, 1, 2), pa.date64(), ["date", "2026-01-02"]),
    (datetime.datetime(2026, 1, 2, 3), pa.timestamp("ns"), ["timestamp", "2026-01-02 03:00:00"]),
    (datetime.time(1, 2), pa.time32("s"), ["time", "01:02:00"]),
]


@pytest.mark.parametrize(("value", "kind", "expected"), VALUES, ids=lambda one: str(one))
def test_arrow_values_are_taken_as_type_and_text(value: Any, kind: pa.DataType, expected: list[str]) -> None:
    batch = pa.RecordBatch.from_arrays([pa.array([value], kind)], names=["0"])
    assert commands.values_of([batch]) == [expected]


@pytest.mark.parametrize(
    "batches",
    [
        [],
        [pa.RecordBatch.from_pydict({"a": [1, 2]})],
        [pa.RecordBatch.from_pydict({"a": [1]})] * 2,
        [pa.RecordBatch.from_pydict({"a": [[1]]})],
        [pa.RecordBatch.from_pydict({"a": ["x" * 70_000]})],
    ],
    ids=["no row", "two rows", "two batches", "a list", "long text"],
)
def test_parameters_that_are_not_one_row_of_plain_values_are_garbled(batches: list[pa.RecordBatch]) -> None:
    with pytest.raises(Garbled):
        commands.values_of(batches)


def test_a_pass_comes_back_until_it_ends() -> None:
    raw = passes.seal(ONE, KEY)
    assert passes.unseal(raw, KEY, now=999.0) == ONE
    with pytest.raises(Unauthenticated):
        passes.unseal(raw, KEY, now=1000.0)


def test_a_pass_that_is_changed_anywhere_is_refused() -> None:
    raw = passes.seal(ONE, KEY)
    for at in range(len(raw)):
        changed = bytearray(raw)
        changed[at] ^= 1
        with pytest.raises(Refused):
            passes.unseal(bytes(changed), KEY, now=0.0)
    for cut in (raw[:-1], raw + b" ", b"", raw * 10_000, passes.seal(replace(ONE, consumer="b"), b"x" * 32)):
        with pytest.raises(Refused):
            passes.unseal(cut, KEY, now=0.0)
