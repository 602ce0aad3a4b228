"""Literals beside dimensions: whatever a question compares a dimension with, no row decides whether there is an answer.

Two tables that differ in one person, whose value is at an end of its type. Under noise an error of the engine would be
exact; on the grid it would tell of a cell that is withheld.
"""

from __future__ import annotations

import datetime
import operator
import random
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

import duckdb
import pytest
from sqlglot import exp

from policies.enforce.gate import PreparedQuery
from policies.errors import QueryRefused
from policies.sql import literals
from tests.support import gate
from tests.support.gate import atom

# type -> an ordinary value, and one at the end of the type
VALUES = {
    "TINYINT": ("1", "127"),
    "INTEGER": ("50", "123456"),
    "BIGINT": ("50", "-9223372036854775808"),
    "HUGEINT": ("50", "170141183460469231731687303715884105727"),
    "UBIGINT": ("50", "18446744073709551615"),
    "UHUGEINT": ("50", "340282366920938463463374607431768211455"),
    "DECIMAL(4,1)": ("5.5", "999.9"),
    "DECIMAL(18,2)": ("5", "9999999999999999.99"),
    "DECIMAL(38,0)": ("1", "99999999999999999999999999999999999999"),
    "DECIMAL(38,20)": ("1", "999999999999999999.99999999999999999999"),
    "FLOAT": ("1", "'inf'"),
    "DOUBLE": ("1", "'nan'"),
    "DATE": ("DATE '2020-01-01'", "DATE '5881580-07-10'"),
    "TIMESTAMP": ("TIMESTAMP '2020-01-01'", "TIMESTAMP '294247-01-10 04:00:54'"),
    "TIMESTAMP_S": ("'2020-01-01'", "'294247-01-10 04:00:54'"),
    "TIMESTAMP_MS": ("'2020-01-01'", "'294247-01-10 04:00:54'"),
    "TIMESTAMP_NS": ("'2020-01-01'", "'2262-04-11 23:47:16'"),
    "TIMESTAMPTZ": ("'2020-01-01'", "'294247-01-10 04:00:54+00'"),
    "VARCHAR": ("'a'", "'not a number'"),
    "UUID": ("'00000000-0000-0000-0000-000000000000'", "'ffffffff-ffff-ffff-ffff-ffffffffffff'"),
    "BOOLEAN": ("true", "false"),
    "ENUM('a', 'b')": ("'a'", "'b'"),
}
NUMBERS = [
    "0", "-1", "0.5", "1.0000000000", "128", "1e300", "1e-300", "1e400", "-1e30", "9" * 38,
    *(f"0.{'0' * digits}1" for digits in (5, 19, 30, 31, 32, 33, 34, 35, 36, 37, 60)),
]  # fmt: skip
TEXTS = ["'2021-01-01'", "'2021-01-01 00:00:00.5'", "'2021-01-01 00:00:00+02'", "'x'", "''", "'0.5'", "'infinity'"]
TEXTS += ["'00000000-0000-0000-0000-000000000001'", "'b'", "'1e300'", "'290000-01-01'"]
TIMES = [f"{kind} '{text}'" for kind in ("DATE", "TIMESTAMP", "TIMESTAMPTZ") for text in ("2021-01-01", "0001-01-01")]
LITERALS = [*NUMBERS, *TEXTS, *TIMES, "TIMESTAMPTZ '2021-01-01 00:00:00+00'", "true", "DATE 'x'"]
CONDITIONS = [
    "{d} > {l}", "{d} <> {l}", "{l} >= {d}", "{d} IN ({l})", "{d} BETWEEN {l} AND {l}", "town = 'Ulm' AND {d} <= {l}",
]  # fmt: skip
NOISE = (atom("ds:epsilonBudget", "lteq", "1"),)
CELLS = (atom("ds:minGroupSize", "gteq", "10"),)


def prepared(bench: gate.Bench, sql: str) -> PreparedQuery | str:
    """As the gate wrote it for these columns, whatever is in them; or why it is refused."""
    bench.restart()
    try:
        found = bench.prepare(sql)
        if found.private is None:
            bench.recheck(found)
    except QueryRefused as refused:
        return refused.code
    return found


def outcome(bench: gate.Bench, asked: PreparedQuery | str) -> Any:
    """ok, or what came in place of an answer; the answer itself where it is of whole cells."""
    if isinstance(asked, str):
        return asked
    try:
        if asked.private is None:
            return bench.connection.execute(asked.sql, asked.params).fetchall()
        bench.connection.execute(asked.private.sql, asked.private.params).fetchall()
    except duckdb.Error as error:
        return type(error).__name__
    return "ok"


def outcomes(bench: gate.Bench, written: Sequence[PreparedQuery | str]) -> list[Any]:
    """Of each; what is written alike, as half of them are, is asked once."""
    alike = [one if isinstance(one, str) else repr((one.sql, one.params, one.private)) for one in written]
    found = {key: outcome(bench, one) for key, one in dict(zip(alike, written, strict=True)).items()}
    return [found[key] for key in alike]


@pytest.mark.parametrize("terms", [NOISE, CELLS], ids=["noise", "cells"])
@pytest.mark.parametrize("kind", VALUES)
def test_one_person_does_not_decide_whether_there_is_an_answer(kind: str, terms: tuple[Any, ...]) -> None:
    usual, extreme = VALUES[kind]
    benches = []
    for value in (usual, extreme):
        bench = gate.Bench()
        bench.connection.execute(
            f"CREATE TABLE rel AS SELECT i AS pid, CASE WHEN i = 5 THEN 'Ulm' ELSE 'Bonn' END AS town, "
            f"CASE WHEN i = 5 THEN CAST({value} AS {kind}) ELSE CAST({usual} AS {kind}) END AS d FROM range(50) r(i)"
        )
        dimensions = [atom(f"ds:dimension/{name}", "eq", "exact") for name in ("town", "d")]
        schema = gate.schema_of(bench.connection, "rel")
        bench.add("o", "t", "rel", gate.contract(schema, *terms, atom("ds:entityKey", "eq", "pid"), *dimensions))
        benches.append(bench)
    asked = [c.format(d="d", l=literal) for c in CONDITIONS for literal in LITERALS]
    assert benches[0].datasets == benches[1].datasets  # so each statement is written once for both
    written = [prepared(benches[0], f"SELECT count(*) FROM t WHERE {where}") for where in asked]
    seen = [outcomes(bench, written) for bench in benches]
    assert [(where, *pair) for where, *pair in zip(asked, *seen, strict=True) if pair[0] != pair[1]] == []
    assert [where for where, one in zip(asked, seen[1], strict=True) if str(one).endswith("Exception")] == []
    assert any(one in ("ok", [(49,)], []) for one in seen[0])  # not everything is refused


@pytest.mark.parametrize("kind", [kind for kind, (usual, _) in VALUES.items() if usual[0].isdigit()])
def test_no_value_of_a_measure_makes_a_sum_fail(kind: str) -> None:
    bench, (usual, extreme) = gate.Bench(), VALUES[kind]
    bench.connection.execute(
        f"CREATE TABLE rel AS SELECT i AS pid, CASE WHEN i < 9 THEN CAST({extreme} AS {kind}) "
        f"ELSE CAST({usual} AS {kind}) END AS m FROM range(50) r(i)"
    )
    schema = gate.schema_of(bench.connection, "rel")
    units = atom("ds:entityKey", "eq", "pid"), atom("ds:rowsPerEntity", "lteq", "5")
    bounds = "0..1000" if kind == "UHUGEINT" else "-100..1000"  # it holds no other, and a bound is of its type
    bench.add("o", "t", "rel", gate.contract(schema, *NOISE, *units, atom("ds:measure/m", "eq", bounds)))
    assert outcome(bench, prepared(bench, "SELECT sum(m), avg(m), count(m), count(*) FROM t")) == "ok"


OPERATORS = {
    exp.EQ: operator.eq, exp.NEQ: operator.ne, exp.LT: operator.lt,
    exp.LTE: operator.le, exp.GT: operator.gt, exp.GTE: operator.ge,
}  # fmt: skip
EXACT = {"TINYINT": (0, 8), "USMALLINT": (0, 0), "DECIMAL(4,1)": (1, 0), "DECIMAL(9,4)": (4, 0)}


@pytest.mark.parametrize("type_", EXACT)
def test_a_comparison_with_a_number_is_the_one_of_exact_arithmetic(type_: str) -> None:
    rng, connection = random.Random(5), duckdb.connect(config={"threads": 1})
    scale = EXACT[type_][0]
    low, high = (0, 65535) if type_ == "USMALLINT" else (-128, 127) if type_ == "TINYINT" else (-9999, 9999)
    for _ in range(400):
        near = rng.choice([low, high, 0, rng.randint(low, high)])
        whole = (Decimal(near) + rng.choice([-1, 0, 1])).scaleb(-scale)
        text = f"{whole + rng.choice([0, 0, Decimal('0.5'), Decimal('-0.00001')]):f}"
        number = exp.Literal.number(text.lstrip("-"))
        literal = exp.Neg(this=number) if text.startswith("-") else number
        asked, expected = [], []
        for node, compare in OPERATORS.items():
            made = literals.fit_comparison(exp.column("v"), node, literal, type_).sql("duckdb")
            value = Decimal(rng.choice([near if low <= near <= high else 0, low, high])).scaleb(-scale)
            of_null = f"SELECT count(*) FROM (SELECT NULL::{type_} AS v) WHERE {made}"
            asked.append(f"SELECT {made}, ({of_null}) FROM (SELECT '{value:f}'::{type_} AS v)")
            expected.append((compare(value, Decimal(text)), 0))
        assert connection.execute(" UNION ALL ".join(asked)).fetchall() == expected, asked


@pytest.mark.parametrize(
    ("kind", "literal", "value", "equal"),
    [
        ("DATE", "DATE '2021-01-31'", datetime.date(2021, 1, 31), True),
        ("TIMESTAMP", "DATE '2021-01-31'", datetime.datetime(2021, 1, 31), True),
        ("TIMESTAMP", "'2021-01-31 10:00'", datetime.datetime(2021, 1, 31, 10), True),
        ("TIMESTAMPTZ", "'2021-01-31 10:00+02'", datetime.datetime(2021, 1, 31, 8, tzinfo=datetime.UTC), True),
        ("FLOAT", "0.1", 0.1, True),
        ("DOUBLE", "-2.5e3", -2500.0, True),
        ("ENUM('a', 'b')", "'z'", "a", False),
        ("BOOLEAN", "true", True, True),
    ],
)
def test_other_literals_mean_what_they_say(kind: str, literal: str, value: Any, equal: bool) -> None:
    bench = gate.Bench()
    bench.connection.execute(f"CREATE TABLE rel (d {kind})")
    bench.connection.executemany("INSERT INTO rel VALUES (?)", [(value,)] * 20)
    schema = gate.schema_of(bench.connection, "rel")
    bench.add("o", "t", "rel", gate.contract(schema, *CELLS, atom("ds:dimension/d", "eq", "exact")))
    assert bench.ask(f"SELECT count(*) FROM t WHERE d = {literal}") == ([(20,)] if equal else [])
    assert bench.ask(f"SELECT count(*) FROM t WHERE d <> {literal}") == ([] if equal else [(20,)])


@pytest.mark.parametrize(
    ("kind", "literal", "says"),
    [
        ("DATE", "TIMESTAMPTZ '2021-01-01 00:00:00+00'", "write a literal of its type"),
        ("DATE", "'soon'", "expected a day such as '2026-01-31', came 'soon'"),
        ("FLOAT", "1e300", "expected a number that FLOAT holds, came 1e300"),
        ("TIMESTAMP", "'2021-01-01 00:00:00+02'", "expected a time without a zone"),
        ("UUID", "'x'", "expected a UUID, got 'x'"),
    ],
)
def test_a_literal_that_cannot_be_one_is_refused_in_words(kind: str, literal: str, says: str) -> None:
    bench = gate.Bench()
    bench.connection.execute(f"CREATE TABLE rel (d {kind})")
    schema = gate.schema_of(bench.connection, "rel")
    bench.add("o", "t", "rel", gate.contract(schema, *NOISE, atom("ds:dimension/d", "eq", "exact")))
    with pytest.raises(QueryRefused) as refused:
        bench.prepare(f"SELECT count(*) FROM t WHERE d = {literal}")
    assert refused.value.code == "aggregate_shape"
    assert says in str(refused.value)
