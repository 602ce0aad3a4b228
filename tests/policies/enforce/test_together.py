"""Columns that one query must not use together, in any disguise."""

from __future__ import annotations

import pytest

from policies.errors import QueryRefused
from tests.support import gate

SCHEMA = gate.schema(person="VARCHAR", country="VARCHAR", value="BIGINT")


@pytest.fixture(scope="module")
def bench() -> gate.Bench:
    made = gate.Bench()
    made.connection.execute(
        "CREATE TABLE src AS SELECT 'p' || i AS person, 'DE' AS country, i AS value FROM range(9) r(i)"
    )
    made.add("clinic", "t", "src", gate.contract(SCHEMA, gate.atom("ds:notTogether", "isNoneOf", "person", "country")))
    return made


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT person FROM t",
        "SELECT count(DISTINCT person) AS n, sum(value) AS s FROM t",
        "SELECT country, count(*) AS n FROM t GROUP BY country",
        "SELECT a.person FROM t a JOIN t b ON a.value = b.value",
    ],
)
def test_each_alone_is_fine(bench: gate.Bench, sql: str) -> None:
    bench.ask(sql)


@pytest.mark.parametrize(
    "sql",
    [
        "SELECT person, country FROM t",
        "SELECT * FROM t",
        "SELECT t.* FROM t",
        "SELECT person FROM t WHERE country = 'DE'",
        "SELECT person FROM t ORDER BY COUNTRY",
        "SELECT count(DISTINCT person) AS n FROM t GROUP BY country",
        "SELECT a.person FROM t a JOIN t b USING (country)",
        "SELECT a.person, b.country FROM t a JOIN t b ON a.value = b.value",
        "SELECT x FROM (SELECT person AS x, country AS y FROM t) q WHERE y = 'DE'",
        "WITH a AS (SELECT person, value FROM t), b AS (SELECT country, value FROM t) "
        "SELECT a.person, b.country FROM a JOIN b ON a.value = b.value",
        "SELECT person FROM t UNION SELECT country FROM t",
        "SELECT a FROM t AS x(a, b, c) WHERE b = 'DE'",
        "SELECT (SELECT max(country) FROM t) AS c, person FROM t",
        'SELECT "PERSON" FROM t WHERE "Country" = \'DE\'',
    ],
)
def test_both_are_refused_by_name(bench: gate.Bench, sql: str) -> None:
    with pytest.raises(QueryRefused) as refused:
        bench.ask(sql)
    assert refused.value.code == "columns_together"
    assert refused.value.rule == "/permission/0/constraint/0"


def test_columns_renamed_by_place_keep_their_places() -> None:
    bench = gate.Bench()
    bench.connection.execute("CREATE TABLE src AS SELECT 'p' AS person, 'DE' AS country, 7 AS value")
    bench.add("clinic", "t", "src", gate.contract(SCHEMA))
    assert bench.ask("SELECT a, value FROM t AS x(a)") == [("p", 7)]
    assert bench.ask("SELECT c FROM t AS x(a, b, c) WHERE b = 'DE'") == [(7,)]


GROUPS = {
    "cells": [gate.atom("ds:minGroupSize", "gteq", "5")],
    "noise": [gate.atom("ds:epsilonBudget", "lteq", "1"), gate.atom("ds:entityKey", "eq", "person")],
}


@pytest.mark.parametrize("way", GROUPS)
@pytest.mark.parametrize(
    "sql",
    [
        "SELECT country, count(*) AS n FROM t WHERE value < 20 GROUP BY country",
        "SELECT country, value, count(*) AS n FROM t GROUP BY country, value",
    ],
)
def test_so_are_both_of_groups_and_of_noise(way: str, sql: str) -> None:
    bench = gate.Bench()
    dimensions = [gate.atom("ds:dimension/country", "eq", "exact"), gate.atom("ds:dimension/value", "eq", "10")]
    apart = gate.atom("ds:notTogether", "isNoneOf", "country", "value")
    bench.add("clinic", "t", "src", gate.contract(SCHEMA, *GROUPS[way], *dimensions, apart))
    bench.prepare("SELECT country, count(*) AS n FROM t GROUP BY country")
    with pytest.raises(QueryRefused) as refused:
        bench.prepare(sql)
    assert refused.value.code == "columns_together"
