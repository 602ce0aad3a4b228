"""Hidden rows with the extreme values of a column change no answer and cause no error, although the planner
uses them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import duckdb
import pytest
import yaml

from policies.enforce.gate import PreparedQuery
from tests.support import gate
from tests.support.gate import atom

CASES = [
    pytest.param(group, column, id=column["type"])
    for group in yaml.safe_load((Path(__file__).parents[2] / "cases" / "sql" / "extremes.yaml").read_text())
    for column in group["columns"]
]


def questions(group: dict[str, Any]) -> list[str]:
    """Each expression where it may stand."""
    values = [
        sql
        for value in group["values"]
        for sql in (
            f"select {value} as x from t",
            f"select count(*) from t where {value} is not null",
            f"select {value} as x, count(*) as n from t group by {value} order by 1",
        )
    ]
    return values + [f"select {value} as x from t" for value in group.get("aggregates", ())]


def told(bench: gate.Bench, asked: PreparedQuery) -> str:
    """The answer, or that there is none; the words of an error never leave an owner."""
    try:
        return repr(bench.connection.execute(asked.sql, asked.params).fetchall())
    except duckdb.Error as error:
        return type(error).__name__


def bench_over(path: Path, column: dict[str, Any], hidden: str | None) -> gate.Bench:
    """A file with a shown row and, where given, a hidden one that holds an end of the type."""
    made = gate.Bench()
    made.connection.execute("SET TimeZone = 'UTC'")
    made.connection.execute(f"CREATE TABLE rows (country VARCHAR, c {column['type']})")
    made.connection.execute("INSERT INTO rows VALUES ('DE', ?)", [column["shown"]])
    if hidden is not None:
        made.connection.execute("INSERT INTO rows VALUES ('XX', ?)", [hidden])
    made.connection.execute(f"COPY rows TO '{path}'")
    made.connection.execute(f"CREATE VIEW src AS FROM read_parquet('{path}')")
    schema = gate.schema_of(made.connection, "rows")
    made.add("clinic", "t", "src", gate.contract(schema, atom("ds:row/country", "eq", "DE")))
    return made


@pytest.mark.parametrize(("group", "column"), CASES)
def test_a_hidden_extreme_tells_nothing(tmp_path: Path, group: dict[str, Any], column: dict[str, Any]) -> None:
    alone = bench_over(tmp_path / "alone.parquet", column, None)
    asked = [alone.prepare(sql) for sql in questions(group)]  # as the gate writes them for these columns: once for all
    for one in asked:
        alone.recheck(one)
    expected = [told(alone, one) for one in asked]
    assert sum(not answer.endswith("Exception") for answer in expected) > len(asked) // 2
    for number, hidden in enumerate(column["hidden"]):
        bench = bench_over(tmp_path / f"{number}.parquet", column, hidden)
        assert bench.datasets == alone.datasets
        differing = [one.sql for one, answer in zip(asked, expected, strict=True) if told(bench, one) != answer]
        assert differing == [], hidden
        bench.connection.close()
    alone.connection.close()
