"""Every function and operator on the allow-list is written so that the engine gives it the consumer's meaning."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from sqlglot import exp

from policies.sql import parse
from policies.sql.allowed_functions import FUNCTIONS
from policies.sql.allowed_syntax import OPERATORS
from tests.support import gate

CASES = yaml.safe_load((Path(__file__).parents[2] / "cases" / "sql" / "functions.yaml").read_text())
TABLE = """
SELECT i AS id, i, CASE WHEN i % 3 <> 1 THEN i * 7 % 5 END AS n, i * 1.7 - 3 AS x,
    ['ab', 'x', ' a% ', 'ABC', ''][1 + i % 5] AS s,
    i % 2 = 0 AS b, DATE '2026-01-28' + i::INTEGER AS d, TIMESTAMP '2026-01-28 22:58:57' + i * INTERVAL 37 MINUTE AS ts
  FROM range(12) r(i)
"""


def _query(kind: str, text: str) -> str:
    order = "" if kind == "aggregates" else " order by id"
    return f"select {text} as v from t{order}"


def _examples() -> list[tuple[str, str]]:
    return [(kind, text) for kind, texts in CASES.items() for text in texts]


@pytest.fixture(scope="module")
def bench() -> Iterator[gate.Bench]:
    made = gate.Bench()
    made.connection.execute(f"CREATE TABLE src_t AS {TABLE}")
    made.connection.execute("CREATE VIEW t AS FROM src_t")
    made.add("clinic", "t", "src_t", gate.contract(gate.schema_of(made.connection, "src_t")))
    yield made
    made.connection.close()


@pytest.mark.parametrize(("kind", "text"), _examples())
def test_function_gives_what_plain_duckdb_gives(bench: gate.Bench, kind: str, text: str) -> None:
    query = _query(kind, text)
    assert repr(bench.ask(query)) == repr(bench.connection.execute(query).fetchall())


def test_every_class_on_the_list_has_an_example() -> None:
    seen: set[type[exp.Expr]] = set()
    for kind, text in _examples():
        seen.update(type(node) for node in parse.parse(_query(kind, text)).walk())
    assert set(FUNCTIONS) - seen == set()
    assert set(OPERATORS) - seen == set()
