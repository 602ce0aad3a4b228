"""Queries that probe and pass: the answer is that of plain DuckDB over what the policy shows, without a secret."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support import clinic, gate, oracle

_CASES = Path(__file__).parents[2] / "cases" / "sql" / "harmless.yaml"
STATEMENTS = [
    pytest.param(sql, id=f"{group['group']}: {sql[:60]}")
    for group in yaml.safe_load(_CASES.read_text())
    for sql in group["sql"]
]

# The oracle's tables: the contract carried out by hand, in plain SQL and in Python, not by the wrap.
_SHOWN = """
CREATE SCHEMA clinic; CREATE SCHEMA lab;
CREATE VIEW people AS SELECT id, hashed(name) AS name, CAST(NULL AS VARCHAR) AS phone, country, age,
    CAST(round(salary, -3) AS {salary}) AS salary, joined, note
  FROM src_people WHERE country IN ('DE', 'FR');
CREATE VIEW visits AS SELECT id, person_id, ward, remark, code FROM src_visits WHERE ward = 3 OR consent = 'broad';
CREATE VIEW clinic.people AS FROM memory.main.people;
CREATE VIEW lab.shared AS FROM main.src_shared_b; CREATE VIEW clinic.shared AS FROM main.src_shared_a;
"""


@pytest.fixture(scope="module")
def bench() -> Iterator[gate.Bench]:
    made = clinic.bench()
    made.connection.create_function("hashed", lambda text: oracle.keyed(text, gate.KEY), [str], str)  # type: ignore[arg-type]  # DuckDB reads Python types
    salary = next(c.type for c in gate.schema_of(made.connection, "src_people").columns if c.name == "salary")
    made.connection.execute(_SHOWN.format(salary=salary))
    yield made
    made.connection.close()


@pytest.mark.parametrize("sql", STATEMENTS)
def test_probing_query_gets_what_the_policy_shows_and_no_secret(bench: gate.Bench, sql: str) -> None:
    prepared = bench.prepare(sql)
    ours = bench.run(prepared)
    described = [column[0] for column in bench.connection.execute(prepared.sql, prepared.params).description]
    theirs: list[Any] = bench.connection.execute(sql).fetchall()
    assert repr(ours) == repr(theirs)
    assert len(prepared.columns) == len(described)
    assert clinic.SECRET not in repr(ours).replace("select ssn", "")
    assert str(clinic.SECRET_NUMBER) not in repr(ours)
    assert "9223372036854775000" not in repr(ours)


def test_the_bound_values_and_the_masking_key_are_not_in_the_text(bench: gate.Bench) -> None:
    prepared = bench.prepare("select * from people")
    assert "DE" not in prepared.sql
    assert all(f"'{value}'" not in prepared.sql for value in prepared.params.values())
    assert gate.KEY.hex() not in repr(prepared)
    assert repr(gate.KEY) not in repr(prepared)
