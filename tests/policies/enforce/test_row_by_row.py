"""A compiled contract applied to a query shows exactly the rows that the evaluator's comparisons let through."""

from __future__ import annotations

from datetime import date, datetime
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from policies.contracts.contract import TableSchema
from policies.model import Atom, Connective, Constraint, Duty, Group, Literal
from policies.vocabulary import column_term
from tests.support import gate, oracle

ARROW = pa.schema(
    [
        ("id", pa.int64()),
        ("n", pa.int32()),
        ("d", pa.decimal128(9, 2)),
        ("f", pa.float64()),
        ("r", pa.float32()),
        ("s", pa.string()),
        ("b", pa.bool_()),
        ("day", pa.date32()),
        ("ts", pa.timestamp("us")),
    ]
)
TYPES: TableSchema = gate.schema(
    id="BIGINT",
    n="INTEGER",
    d="DECIMAL(9,2)",
    f="DOUBLE",
    r="FLOAT",
    s="VARCHAR",
    b="BOOLEAN",
    day="DATE",
    ts="TIMESTAMP",
)

DAYS = [date(2026, 1, 1), date(2026, 2, 28), date(2026, 3, 1)]
TIMES = [datetime(2026, 1, 1), datetime(2026, 1, 1, 12, 30), datetime(2026, 3, 1, 0, 0, 1)]
TEXTS = ["DE", "FR", "de", "", "it's", "ü%", "10", "9"]
VALUES: dict[str, st.SearchStrategy[Any]] = {
    "n": st.integers(-3, 12),
    "d": st.sampled_from([Decimal("0.00"), Decimal("0.10"), Decimal("-1.50"), Decimal("99.99"), Decimal("10.00")]),
    "f": st.sampled_from([0.0, -0.5, 0.1, 10.0, 1e300, float("nan"), float("inf"), float("-inf")]),
    "r": st.sampled_from([0.0, -0.5, 0.1, 0.2, 16777216.0, float("nan"), float("inf")]),
    "s": st.sampled_from(TEXTS),
    "b": st.booleans(),
    "day": st.sampled_from(DAYS),
    "ts": st.sampled_from(TIMES),
}
ORDERED = ["eq", "neq", "lt", "lteq", "gt", "gteq", "isAnyOf", "isNoneOf"]
UNORDERED = ["eq", "neq", "isAnyOf", "isNoneOf"]
LITERALS: dict[str, list[str]] = {
    "n": ["-3", "0", "5", "10.0", "12", "5000000000"],
    "d": ["0", "0.1", "0.10", "-1.5", "10", "100000000"],
    "f": ["0", "0.1", "-0.5", "10"],
    "r": ["0", "0.1", "0.20", "-0.5", "16777216"],
    "s": TEXTS,
    "b": ["true", "false", "1", "0"],
    "day": ["2026-01-01", "2026-02-28", "2026-06-30"],
    "ts": ["2026-01-01T00:00:00", "2026-01-01T12:30:00.000", "2026-03-01T00:00:01"],
}


@st.composite
def atoms(draw: st.DrawFn) -> Atom:
    column = draw(st.sampled_from(sorted(LITERALS)))
    operator = draw(st.sampled_from(UNORDERED if column == "b" else ORDERED))
    many = operator in ("isAnyOf", "isNoneOf")
    texts = draw(st.lists(st.sampled_from(LITERALS[column]), min_size=1, max_size=3 if many else 1))
    return Atom(column_term("row", column), operator, tuple(Literal(text) for text in texts), many=many)


constraints: st.SearchStrategy[Constraint] = st.recursive(
    atoms(),
    lambda inner: st.builds(
        Group, st.sampled_from(list(Connective)), st.lists(inner, min_size=1, max_size=3).map(tuple)
    ),
    max_leaves=5,
)
rows = st.lists(st.fixed_dictionaries({name: st.none() | values for name, values in VALUES.items()}), max_size=25)

# In each, hidden rows would change the answer; errors of the user's making do not occur on visible rows.
QUERIES = [
    "SELECT * FROM t ORDER BY id",
    "SELECT count(*) AS c, sum(n) AS s, min(s) AS m, max(day) AS d FROM t",
    "SELECT s, b, count(*) AS c FROM t GROUP BY s, b ORDER BY s NULLS FIRST, b NULLS FIRST",
    "SELECT id, row_number() OVER (PARTITION BY b ORDER BY n, id) AS r FROM t ORDER BY id",
    "SELECT a.id FROM t a JOIN t b ON a.n = b.n AND a.id < b.id ORDER BY a.id, b.id",
    "SELECT id FROM t WHERE n NOT IN (SELECT n FROM t WHERE n > 3) ORDER BY id",
    "WITH x AS (SELECT s, count(*) AS c FROM t GROUP BY s) SELECT c, count(*) AS k FROM x GROUP BY c ORDER BY c",
    "SELECT id FROM t x WHERE NOT EXISTS (SELECT * FROM t y WHERE y.n > x.n) ORDER BY id",
]


def _filled(bench: gate.Bench, table: str, data: list[dict[str, Any]]) -> None:
    bench.connection.register("incoming", pa.Table.from_pylist(data, schema=ARROW))
    bench.connection.execute(f"CREATE OR REPLACE TABLE {table} AS FROM incoming")
    bench.connection.unregister("incoming")


@pytest.fixture(scope="module")
def bench() -> gate.Bench:
    return gate.Bench()


def _compare(bench: gate.Bench, data: list[dict[str, Any]], wanted: list[Constraint], duties: list[Duty]) -> None:
    """Ask through the gate, and ask plain DuckDB over the rows that the oracle leaves."""
    shown = oracle.masked(oracle.visible(data, wanted), duties, gate.KEY)
    _filled(bench, "src_t", data)
    _filled(bench, "t", shown)
    bench.datasets.clear()
    bench.add("clinic", "t", "src_t", gate.contract(TYPES, *wanted, duties=duties))
    for query in QUERIES:
        ours, theirs = bench.ask(query), bench.connection.execute(query).fetchall()
        assert repr(ours) == repr(theirs), query  # repr: NaN equals NaN there


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=rows, wanted=st.lists(constraints, max_size=3))
def test_contract_equals_filtering_row_by_row(bench: gate.Bench, data: list[Any], wanted: list[Constraint]) -> None:
    numbered = [{"id": index, **row} for index, row in enumerate(data)]
    _compare(bench, numbered, wanted, [])


MASKS = {
    "s": [("null", None), ("hash", None), ("truncate", "1"), ("truncate", "0")],
    "n": [("null", None), ("round", "-1"), ("generalise", "5")],
    "d": [("null", None), ("round", "1"), ("round", "-1"), ("generalise", "10")],
    "day": [("null", None), ("generalise", "month"), ("generalise", "year")],
}


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=rows, wanted=constraints, chosen=st.fixed_dictionaries({c: st.sampled_from(m) for c, m in MASKS.items()}))
def test_masks_replace_columns_before_any_clause_sees_them(
    bench: gate.Bench, data: list[Any], wanted: Constraint, chosen: dict[str, tuple[str, str | None]]
) -> None:
    numbered = [{"id": index, **row} for index, row in enumerate(data)]
    duties = [gate.mask(method, column, argument=argument) for column, (method, argument) in chosen.items()]
    _compare(bench, numbered, [wanted], duties)


ONE, FEW, TEXT = gate.atom("ds:row/n", "eq", "1"), gate.atom("ds:row/n", "lt", "5"), gate.atom("ds:row/s", "eq", "DE")


@pytest.mark.parametrize(
    "wanted",
    [
        *(gate.atom("ds:row/f", operator, "5") for operator in ("gt", "gteq", "neq", "isNoneOf")),
        *(gate.exactly_one(gate.atom("ds:row/f", operator, "5"), ONE) for operator in ("gt", "neq", "isNoneOf", "lt")),
        gate.either(gate.atom("ds:row/f", "gt", "5"), gate.atom("ds:row/s", "neq", "FR")),
        gate.exactly_one(gate.exactly_one(ONE, FEW, TEXT), FEW),  # two satisfied beat an unknown third
        gate.exactly_one(gate.either(TEXT, ONE), gate.atom("ds:row/f", "lteq", "5")),
    ],
)
def test_null_and_nan_are_unknown_however_they_are_combined(bench: gate.Bench, wanted: Constraint) -> None:
    blank: dict[str, Any] = {"d": None, "s": None, "b": None, "day": None, "ts": None}
    numbers = [1.0, 5.0, 9.0, float("nan"), float("inf"), None]
    data = [
        {"id": i, "n": n, "f": f, **blank} for i, (f, n) in enumerate((f, n) for f in numbers for n in (1, 7, None))
    ]
    _compare(bench, data, [wanted], [])


FAR = "9999-12-31T00:00:00"
EDGES = ["1677-09-21T00:12:43.145224", "1677-09-21T00:12:43.145225", "2262-04-11T23:47:16.854775"]


@pytest.mark.parametrize(
    "wanted",
    [
        *(
            gate.atom("ds:row/w", operator, text)
            for operator in ORDERED
            for text in (FAR, "0001-01-01T00:00:00", *EDGES, "2262-04-11T23:47:16.854776", "2026-01-01T00:00:00")
        ),
        gate.atom("ds:row/w", "isAnyOf", FAR, "2026-01-01T00:00:00"),
        gate.atom("ds:row/w", "isNoneOf", FAR, "2026-01-01T00:00:00"),
        gate.either(gate.atom("ds:row/w", "lt", FAR), gate.atom("ds:row/id", "eq", "4")),
        gate.exactly_one(gate.atom("ds:row/w", "gt", FAR), gate.atom("ds:row/id", "isAnyOf", "0", "4")),
    ],
    ids=repr,
)
def test_nanoseconds_compare_with_every_moment_as_microseconds_do(wanted: Constraint) -> None:
    """A column of nanoseconds ends in 2262, and rows that are valid until 9999 are common."""
    values = ["2026-01-01 00:00:00", *EDGES[1:], "infinity", None]
    found = []
    for type_ in ("TIMESTAMP", "TIMESTAMP_NS"):
        bench = gate.Bench()
        bench.connection.execute(
            f"CREATE TABLE src AS SELECT unnest(range(5)) AS id, unnest($1)::{type_} AS w", [values]
        )
        bench.add("clinic", "t", "src", gate.contract(gate.schema(id="BIGINT", w=type_), wanted))
        found.append(bench.ask("SELECT id FROM t ORDER BY id"))
    assert found[0] == found[1]
