"""The pure parts of Flight: protobuf, Flight SQL's messages, parameters, sealed tickets. Hostile input included."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import replace
from decimal import Decimal

import duckdb
import pytest
from hypothesis import given
from hypothesis import strategies as st

from connector.dataplane.flight import flight_ticket, flightsql, parameters, protobuf
from connector.dataplane.flight.flight_ticket import FlightTicket
from connector.dataplane.flight.protobuf import MalformedMessage
from connector.errors import ConnectorError, Denied, Invalid, QueryInvalid, Unproven
from policies.errors import PolicyError
from policies.sql import parse, token_check
from tests.support.own_name import changed

KEY = b"k" * 32
ONE = FlightTicket("1", "did:web:a", ("urn:1",), 1000.0, {"sql": "SELECT 1"})


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
    with pytest.raises(MalformedMessage):
        protobuf.read(BROKEN[name])


NO_CONSTANTS = {
    "spaces, and more": ("SELECT 123456789", "x"),
    "an end, and spaces": ("SELECT 1;", "x"),
    "a name, and spaces": ("SELECT 1 AS x", "y"),
}


def test_packed_numbers_are_as_many_as_fields_may_be() -> None:
    """A megabyte of them held up whoever asked after it for more than a second."""
    assert protobuf.numbers(protobuf.read(protobuf.write([(1, b"\x01" * 255), (1, 300)])), 1) == [1] * 255 + [300]
    for raw in ([(1, b"\x01" * 257)], [(1, b"\x01" * 200)] * 2):
        with pytest.raises(MalformedMessage, match="at most 256 numbers"):
            protobuf.numbers(protobuf.read(protobuf.write(raw)), 1)


@pytest.mark.parametrize("name", NO_CONSTANTS)
def test_a_long_statement_that_is_no_constant_is_told_at_once(name: str) -> None:
    """It is looked at before it is known who asks. Eight times the spaces take about eight times as long."""
    begins, ends = NO_CONSTANTS[name]

    def taken(spaces: int) -> float:
        before = time.thread_time()
        assert flightsql.constant(begins + " " * spaces + ends) is None
        return time.thread_time() - before

    short, long = (min(taken(spaces) for _ in range(5)) for spaces in (30_000, 240_000))
    assert long < 24 * short + 0.001


@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b'{"sql": 1, "values": []}', b'{"sql": ""}', b"[" * 100_000, None])
def test_a_handle_that_was_never_given_out_is_garbled(raw: bytes | None) -> None:
    with pytest.raises(MalformedMessage):
        flightsql.unhandle(raw)


def test_values_become_literals_in_their_places_only() -> None:
    sql = "SELECT '?', \"?\", ? AS a -- ?\n FROM t WHERE b = ? AND c = ? /* ? */"
    literals = ["(-1)", "'x'' OR 1=1 --'", "CAST('2026-01-01' AS DATE)"]
    expected = "SELECT '?', \"?\", {} AS a -- ?\n FROM t WHERE b = {} AND c = {} /* ? */".format(*literals)
    assert parameters.bound(sql, [("int", "-1"), ("text", "x' OR 1=1 --"), ("date", "2026-01-01")]) == expected
    assert (len(parameters.kinds(sql, {})), parameters.kinds("SELECT 1", {})) == (3, [])


BESIDE = {
    "SELECT ?1": [("int", "5")],
    "SELECT ?.5": [("int", "5")],
    "SELECT ?e5": [("int", "5")],
    "SELECT 1?": [("int", "5")],
    "SELECT n?": [("int", "5")],
    "SELECT ?'b'": [("text", "a")],
    "SELECT 'b'?": [("text", "a")],
}


@pytest.mark.parametrize("sql", BESIDE)
def test_a_value_is_one_word_whatever_stands_beside_it(sql: str) -> None:
    """`?1` was 51 where the value was 5."""

    def words(text: str) -> list[str]:
        return [one.text for one in token_check.read(text, parse.DEFAULT) if one.text not in ("?", "a", "b", "5")]

    assert words(parameters.bound(sql, BESIDE[sql])) == words(sql.replace("?", " ? "))


def test_a_parameter_may_be_cast_by_colons() -> None:
    assert parameters.bound("SELECT ?::DATE, ? ::INT", [("text", "a"), ("int", "-5")]) == "SELECT 'a'::DATE, (-5) ::INT"


COLUMNS = {"n": "BIGINT", "x": "DOUBLE", "price": "DECIMAL(15,2)", "name": "VARCHAR", "day": "DATE",
           "at": "TIMESTAMP", "key": "UBIGINT", "zoned": "TIMESTAMP WITH TIME ZONE", "yes": "BOOLEAN"}  # fmt: skip
KINDS = {
    "n < ?": ["int"],
    "? >= N": ["int"],
    "x = (?)": ["float"],
    "price BETWEEN ? AND ?": ["float", "float"],
    "name IN (?, 'a', ?)": ["text", "text"],
    "name LIKE ? OR name ILIKE ?": ["text", "text"],
    "day >= ? AND at < ? AND zoned = ?": ["date", "timestamp", "timestamptz"],
    "yes = ?": ["bool"],
    "n + ? > -?": ["float", ""],
    "day + ? < at": [""],
    "name || ? = 'a'": ["text"],
    "? > 5 AND 'a' <> ?": ["float", "text"],
    "abs(sum(n)) < ? AND avg(n) < ?": ["int", "float"],
    "length(name) < ? AND year(day) = ? AND upper(name) = ?": ["int", "int", "text"],
    "CAST(? AS DATE) < day": ["date"],
    "sqrt(x) = ?": [""],
    "? = ?": ["", ""],
    "missing = ? AND n = ?": ["", "int"],
    "t.n = ?": ["int"],
    "(SELECT count(*) FROM t) > ?": [""],
    "n = 8200000000000 AND name = ?": ["text"],
    "n = ? AND": [""],
    "key = ? AND n = CAST(? AS HUGEINT)": ["int", "int"],
    "CAST(? AS TIMESTAMP) < at AND CAST(day AS TIMESTAMP) < ?": ["timestamp", "timestamp"],
    "CAST(? AS TIMESTAMPTZ) < at AND CAST(? AS UINTEGER) = n": ["timestamptz", "int"],
    "CAST(at AS TIME) > ?": ["time"],
    "n = ? OR min() < ? OR round((max((n)))) < ?": ["int", "", "int"],
}


@pytest.mark.parametrize("where", KINDS)
def test_a_parameter_is_of_the_kind_of_what_it_is_compared_with(where: str) -> None:
    assert parameters.kinds(f"SELECT * FROM t WHERE {where}", COLUMNS) == KINDS[where]


RENAMED = {
    "SELECT * FROM (SELECT n * 0.5 AS n FROM t) AS h WHERE n < ?": [""],
    "WITH h AS (SELECT x AS n FROM t) SELECT * FROM h WHERE N < ?": [""],
    "WITH h(n) AS (SELECT x FROM t WHERE n = ?) SELECT * FROM h WHERE n < ?": ["", ""],
    "SELECT coalesce(name, 'a') AS name FROM t WHERE name = ?": ["text"],
    "SELECT sqrt(n) AS n FROM t WHERE n = ?": [""],  # the column: a type that is not told is no wrong one
    "SELECT * FROM (SELECT upper(name) AS name, n AS n FROM t) AS h WHERE name = ? AND n < ?": ["text", "int"],
}


@pytest.mark.parametrize("sql", RENAMED)
def test_what_has_the_name_of_a_column_but_another_kind_is_of_none(sql: str) -> None:
    """JDBC would set 3 for 3.5."""
    assert parameters.kinds(sql, COLUMNS) == RENAMED[sql]


WORDS = ["?", "n", "name", "(", ")", ",", "=", "<", "IN", "LIKE", "BETWEEN", "AND", "NOT", "CAST(", "AS", "DATE", "+",
         "||", "SELECT", "FROM t", "WHERE", "GROUP BY", "sum(", "CASE", "WHEN", "THEN", "END", "LIMIT", "1", "'a'", "-",
         "INTERVAL", "[", "]", "::", "x.y", "*", "OVER (", "IS", "NULL", "UNION", "JOIN", "ON", "AS n", "max(",
         "8200000000001"]  # fmt: skip


@given(st.lists(st.sampled_from(WORDS), max_size=20))
def test_whatever_is_prepared_is_looked_at_or_refused(words: list[str]) -> None:
    sql = f"SELECT {' '.join(words)} FROM t WHERE n = ?"
    try:
        found = parameters.kinds(sql, COLUMNS)
    except PolicyError:
        return
    assert len(found) == words.count("?") + 1


def test_the_number_of_rows_is_a_whole_number() -> None:
    assert parameters.kinds("SELECT ? AS it FROM t LIMIT ? OFFSET ?", COLUMNS) == ["", "int", "int"]
    assert parameters.kinds("SELECT n FROM t HAVING count(n) > ?", COLUMNS) == ["int"]
    assert parameters.kinds("SELECT '?'", COLUMNS) == []


UNFIT: dict[str, list[tuple[str, str]]] = {
    "too few": [],
    "too many": [("int", "1"), ("int", "2")],
    "a number that is SQL": [("int", "1 OR 1=1")],
    "a long number": [("int", "1" * 40)],
    "a type of nobody's": [("list", "[]")],
    "a decimal of too many digits": [("decimal", "1" + "0" * 38)],
    "a decimal with a comma": [("decimal", "1,5")],
    "a decimal with an exponent": [("decimal", "1E5")],
    "other digits": [("decimal", "\u0661")],
    "a float that is SQL": [("float", "1' AS DOUBLE), CAST('1")],
    "a float beyond all": [("float", "1e400")],
    "a flag that is none": [("bool", "yes")],
    "a date that is none": [("date", "2026-02-30")],
    "a date in other words": [("date", "20260228")],
    "a time beyond the day": [("time", "25:00:00")],
    "a moment with a zone": [("timestamp", "2026-01-01 00:00:00+00:00")],
    "a moment without one": [("timestamptz", "2026-01-01 00:00:00")],
}
WRITTEN = {
    ("decimal", "12345678901234567890123456789"): "DECIMAL(29, 0)",
    ("decimal", "0.00000000004"): "DECIMAL(11, 11)",
    ("decimal", "-0.50"): "DECIMAL(2, 2)",
    ("decimal", "0"): "DECIMAL(1, 0)",
    ("decimal", "1" * 38): "DECIMAL(38, 0)",
    ("float", "-inf"): "DOUBLE",
    ("float", "nan"): "DOUBLE",
    ("float", "5e-324"): "DOUBLE",
    ("date", "0001-01-01"): "DATE",
    ("time", "23:59:59.999999"): "TIME",
    ("timestamp", "2026-01-01 00:00:00.500000"): "TIMESTAMP",
    ("timestamptz", "1890-01-01 00:00:00+00:49:56"): "TIMESTAMPTZ",
}


@pytest.mark.parametrize("value", WRITTEN, ids=str)
def test_a_value_is_a_literal_of_its_own_type_and_no_digit_is_lost(value: tuple[str, str]) -> None:
    """Decimals were all of ten digits behind the point: what did not fit was rounded, or NULL."""
    sql = parameters.bound("SELECT ?", [value])
    assert sql == f"SELECT CAST('{value[1]}' AS {WRITTEN[value]})"
    with duckdb.connect() as engine:
        ((found,),) = engine.execute(f"SELECT CAST(({sql}) AS VARCHAR)").fetchall()
        assert found is not None
        if value[0] == "decimal":
            assert Decimal(found) == Decimal(value[1])
        if value[0] in ("date", "time"):
            assert found == value[1]


@pytest.mark.parametrize("name", UNFIT)
def test_values_that_do_not_fit_are_refused(name: str) -> None:
    with pytest.raises(QueryInvalid):
        parameters.bound("SELECT a FROM t WHERE a = ?", UNFIT[name])


@pytest.mark.parametrize("letter", ["\0", "\x01", "\x1f", "\x7f"])
def test_a_text_with_a_control_character_is_refused_as_the_parameter_that_it_is(letter: str) -> None:
    """Not as if the statement held it: there the gate lets none through."""
    with pytest.raises(QueryInvalid, match=rf"as parameter 2, got one with U\+{ord(letter):04X}") as told:
        parameters.bound("SELECT ?, ?", [("text", "a"), ("text", f"a{letter}b")])
    assert told.value.code == "parameter_type"


@pytest.mark.parametrize("letter", ["\t", "\n", "\r", "\x85", "\u200b", "\u2028", "'", "\\", "\U0001f600"])
def test_any_other_text_is_the_literal_that_it_is(letter: str) -> None:
    with duckdb.connect() as engine:
        sql = parameters.bound("SELECT ?", [("text", f"a{letter}b")])
        assert token_check.read(sql, parse.DEFAULT)
        assert engine.execute(sql).fetchall() == [(f"a{letter}b",)]


def test_a_statement_that_cannot_be_cut_into_words_is_refused() -> None:
    with pytest.raises((PolicyError, ConnectorError)):
        parameters.bound("SELECT '?", [])


@pytest.mark.parametrize("work", [lambda sql: parameters.kinds(sql, {}), lambda sql: parameters.bound(sql, [])])
def test_a_statement_has_as_many_parameters_as_can_be_bound(work: Callable[[str], object]) -> None:
    with pytest.raises(QueryInvalid, match="at most 1000 parameters, got 1001"):
        work(f"SELECT {'?, ' * 1000} ?")


NO_HANDLES = {
    "more values than there are": json.dumps({"sql": "SELECT ?", "values": [["int", "1"]] * 1001}),
    "empty values": '{"sql":"SELECT ?","values":[' + "[]," * 330_000 + "[]]}",
    "half a letter": '{"sql":"SELECT ?","values":[["text","\\ud800"]]}',
    "half a letter of SQL": '{"sql":"SELECT \\ud800","values":[]}',
}


@pytest.mark.parametrize("name", NO_HANDLES)
def test_a_handle_that_holds_too_much_is_garbled(name: str) -> None:
    with pytest.raises(MalformedMessage):
        flightsql.unhandle(NO_HANDLES[name].encode())


def test_the_largest_handles_that_are_given_out_are_read() -> None:
    sql, values = "SELECT '" + "," * 60_000 + "', ?", [["text", "[" * 60_000], *[["int", "-1"]] * 999]
    assert flightsql.unhandle(flightsql.handle(sql, values)) == (sql, values)


def test_a_handle_that_was_never_given_out_is_told_without_reading_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """To read a megabyte of empty values took a quarter of a second, in which nothing else ran."""
    read: list[bytes] = []
    monkeypatch.setattr(flightsql, "json", changed(json, loads=read.append))
    with pytest.raises(MalformedMessage):
        flightsql.unhandle(NO_HANDLES["empty values"].encode())
    assert not read


def test_a_pass_comes_back_until_it_ends() -> None:
    raw = flight_ticket.seal(ONE, KEY)
    assert flight_ticket.unseal(raw, KEY, now=999.0) == ONE
    with pytest.raises(Unproven):
        flight_ticket.unseal(raw, KEY, now=1000.0)


def test_a_pass_holds_whatever_may_be_asked_and_none_is_given_out_that_opens_nothing() -> None:
    text = "\u4e2d" * 2900
    bound = {"sql": "SELECT ?", "values": [["text", text]] * 16}
    envelope = {"envelope": json.dumps({"sql": "\u4e2d" * 65_536, "tickets": ["t" * 2000] * 16})}
    for wanted in (bound, envelope):
        one = replace(ONE, wanted=wanted)
        assert flight_ticket.unseal(flight_ticket.seal(one, KEY), KEY, now=0.0) == one
    with pytest.raises(Invalid, match="of at most 786432 bytes over Flight"):
        flight_ticket.seal(replace(ONE, wanted={"envelope": " " * 800_000}), KEY)


def test_a_pass_that_is_changed_anywhere_is_refused() -> None:
    raw = flight_ticket.seal(ONE, KEY)
    for at in range(len(raw)):
        changed = bytearray(raw)
        changed[at] ^= 1
        with pytest.raises(Denied):
            flight_ticket.unseal(bytes(changed), KEY, now=0.0)
    for cut in (raw[:-1], raw + b" ", b"", raw * 10_000, flight_ticket.seal(replace(ONE, consumer="b"), b"x" * 32)):
        with pytest.raises(Denied):
            flight_ticket.unseal(cut, KEY, now=0.0)
