"""Rounding, generalising and cutting at the ends of every type give the mask's value or NULL, and never an error.

An error would be an oracle: whether a query fails would tell that a value lies beyond what its mask can show.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import duckdb
import pytest
import yaml

from tests.support import gate

CASES = yaml.safe_load((Path(__file__).parents[2] / "cases" / "masks.yaml").read_text())
WAYS = [
    "select c from t",
    "select min(c) as a, max(c) as b, count(distinct c) as n from t",
    "select count(*) from t where c is null or c > c",
    "select id from t where c in (select c from t) order by c, id",
    "select c, count(*) as n from t group by c having max(c) is not null order by c",
    "select id, rank() over (order by c) as r, lag(c) over (partition by c order by id) as l from t order by id",
    "select id from t qualify row_number() over (partition by c order by id) = 1 order by id",
    "select count(*) from t a join t b on a.c = b.c",
    "select cast(c as int) as i, cast(c as date) as d, cast(c as double) as f from t",
    "select case when c is null then 1 else 0 end as n, coalesce(c, c) as k from t",
    "select c from t union select c from t order by c",
]

TYPES = [
    '"NULL"', '"NULL"[]', 'STRUCT(a INTEGER, "it\'s" "NULL")', "MAP(VARCHAR, FLOAT[2])", "ENUM('a', 'it''s')",
    'STRUCT("a ""b""" DECIMAL(3,1), "select" STRUCT(b UHUGEINT)[])', "UNION(n INTEGER, t VARCHAR)", "TIME_NS",
]  # fmt: skip


@pytest.fixture
def connection() -> Iterator[duckdb.DuckDBPyConnection]:
    with duckdb.connect(config={"threads": 1}) as made:
        made.execute("SET TimeZone = 'UTC'")
        yield made


def bench_of(connection: duckdb.DuckDBPyConnection, case: Mapping[str, Any]) -> gate.Bench:
    """The case's values in a table under its mask."""
    connection.execute(f"CREATE TABLE src (id INTEGER, c {case['type']})")
    for number, value in enumerate(case["shown"]):
        connection.execute(f"INSERT INTO src VALUES (?, CAST(? AS {case['type']}))", [number, value])
    made = gate.Bench()
    made.connection.close()
    made.connection = connection
    mask = gate.mask(case["mask"], "c", argument=case.get("argument"))
    made.add("clinic", "t", "src", gate.contract(gate.schema_of(connection, "src"), duties=[mask]))
    return made


def named(case: Mapping[str, Any]) -> str:
    return f"{case['type']}-{case['mask']}-{case.get('argument')}"


@pytest.mark.parametrize("case", CASES, ids=map(named, CASES))
def test_an_extreme_value_is_shown_masked_or_not_at_all(
    connection: duckdb.DuckDBPyConnection, case: Mapping[str, Any]
) -> None:
    bench = bench_of(connection, case)
    shown = bench.ask("select cast(c as varchar) as c from t order by id")
    assert [text for (text,) in shown] == list(case["shown"].values())
    for way in WAYS:
        bench.ask(way)  # DuckDB's own errors are not caught: there must be none


@pytest.mark.parametrize("kind", TYPES)
def test_a_column_that_is_masked_to_null_keeps_its_type(connection: duckdb.DuckDBPyConnection, kind: str) -> None:
    bench = bench_of(connection, {"type": kind, "mask": "null", "shown": {None: None}})
    prepared = bench.prepare("select c from t")
    assert bench.run(prepared) == [(None,)]
    assert list(map(str, connection.sql(prepared.sql, params=prepared.params).types)) == [kind]


def test_without_the_wrap_a_rounded_value_that_does_not_fit_is_an_error(connection: duckdb.DuckDBPyConnection) -> None:
    """Otherwise the cases would prove nothing."""
    told = 0
    for case in (case for case in CASES if case["mask"] == "round"):
        for value in (value for value, masked in case["shown"].items() if masked is None):
            raw = f"CAST('{value}' AS {case['type']})"
            with pytest.raises(duckdb.Error):
                connection.execute(f"SELECT CAST(round({raw}, {case['argument']}) AS {case['type']})")
            told += 1
    assert told >= 10
