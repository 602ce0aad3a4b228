"""The recheck with the engine's own parser refuses what an error in the first gate would let through."""

from __future__ import annotations

import json

import duckdb
import pytest

from policies.errors import QueryRefused
from policies.sql import engine_recheck
from policies.sql.allowed_functions import ENGINE_FUNCTIONS

NAMES = ("src_a", "w1")


def _read(sql: str) -> str:
    found = duckdb.connect().execute(engine_recheck.RECHECK_SQL, [sql]).fetchone()
    assert found is not None
    return str(found[0])


def _check(sql: str) -> None:
    engine_recheck.check(_read(sql), names=NAMES, functions=ENGINE_FUNCTIONS)


GOOD = [
    "SELECT a FROM src_a WHERE b > 1",
    'WITH w1 AS MATERIALIZED (SELECT * FROM "src_a") SELECT count(*), sum(a) FILTER (WHERE a > 1) FROM w1 AS x',
    "SELECT a FROM src_a UNION ALL SELECT a FROM src_a ORDER BY 1 LIMIT 3 OFFSET 1",
    "SELECT DISTINCT a FROM src_a x LEFT JOIN src_a y USING (a) WHERE EXISTS (SELECT 1 FROM src_a)",
    "SELECT row_number() OVER (PARTITION BY a ORDER BY b ROWS BETWEEN 1 PRECEDING AND CURRENT ROW) FROM src_a",
    "SELECT CASE WHEN a IN (1, 2) THEN TRY_CAST(b AS INTEGER) END, a BETWEEN 1 AND 2, a IS NULL FROM src_a",
    "SELECT $p0, date_part('year', d + to_days(3)), lower(s) LIKE 'x%', (a, b) IN (SELECT (a, b) FROM src_a) FROM w1",
    "SELECT a FROM src_a GROUP BY ROLLUP (a) HAVING count(DISTINCT b) >= 5 QUALIFY rank() OVER (ORDER BY a) = 1",
]
BAD = [
    "SELECT * FROM src_b",
    "SELECT * FROM main.src_a",
    "SELECT * FROM memory.main.src_a",
    "SELECT * FROM 'file.parquet'",
    "SELECT * FROM read_csv('/etc/passwd')",
    "SELECT * FROM duckdb_tables()",
    "SELECT * FROM src_a, range(100)",
    "SELECT * FROM (VALUES (1)) x",
    "SELECT unnest([1])",
    "SELECT * FROM src_a WHERE a IN (SELECT a FROM src_b)",
    "WITH x AS (SELECT * FROM src_b) SELECT 1",
    "WITH RECURSIVE w1 AS (SELECT 1 AS a UNION ALL SELECT a + 1 FROM w1) SELECT * FROM w1",
    "SELECT getenv('HOME') FROM src_a",
    "SELECT main.lower(a) FROM src_a",
    "SELECT system.main.lower(a) FROM src_a",
    "SELECT CAST(a AS INTEGER) FROM src_a",
    "SELECT a::INTEGER FROM src_a",
    "SELECT DATE '2026-01-01' FROM src_a",
    "SELECT INTERVAL '3' DAY FROM src_a",
    "SELECT COLUMNS('a') FROM src_a",
    "SELECT * FROM src_a USING SAMPLE 3",
    "SELECT * FROM src_a TABLESAMPLE 3%",
    "SELECT * FROM src_a AT (VERSION => 1)",
    "SELECT * FROM src_a POSITIONAL JOIN src_a y",
    "SELECT * FROM src_a ASOF JOIN src_a y ON src_a.a >= y.a",
    "SELECT list_transform([1], x -> x + 1) FROM src_a",
    "SELECT {'a': 1} FROM src_a",
    "SELECT [a] FROM src_a",
    "SELECT sum(a) EXPORT_STATE FROM src_a",
    "SELECT error('x') FROM src_a",
    "SELECT repeat('x', 5) FROM src_a",
    "SELECT #1 FROM src_a",
    "SELECT 1 FROM src_a; SELECT 2 FROM src_a",
    "SELECT 1 FROM src_a; DROP TABLE src_a",
    "PIVOT src_a ON a USING count(*)",
    "COPY src_a TO '/tmp/x'",
    "CREATE TABLE x AS SELECT 1",
    "SHOW TABLES",
    "DESCRIBE src_a",
    "SET threads = 1",
    "not a query",
    "",
]


@pytest.mark.parametrize("sql", GOOD)
def test_what_the_gate_writes_passes(sql: str) -> None:
    _check(sql)


@pytest.mark.parametrize("sql", BAD)
def test_anything_else_is_refused(sql: str) -> None:
    with pytest.raises(QueryRefused) as refused:
        _check(sql)
    assert refused.value.code == "recheck_failed"
    assert refused.value.rule == "gate/recheck"


@pytest.mark.parametrize(
    "text",
    ["", "null", "[]", "{}", "nonsense", '{"error": true}', '{"error": false}', '{"error": false, "statements": []}']
    + [json.dumps({"error": False, "statements": [{"node": node}]}) for node in (None, [], {}, {"type": "X"}, 1)]
    + ['{"error": false, "statements": [1]}', "[" * 100_000],
)
def test_an_answer_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(QueryRefused):
        engine_recheck.check(text, names=NAMES, functions=ENGINE_FUNCTIONS)
