"""The escape suite: every hostile statement of tests/cases/sql/escape.yaml is refused, with its reason."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from policies.errors import QueryRefused
from tests.support import clinic, gate

CASES = Path(__file__).parents[2] / "cases" / "sql"


def _statements() -> list[Any]:
    found = []
    for group in yaml.safe_load((CASES / "escape.yaml").read_text()):
        for entry in group["sql"]:
            sql, code = (entry, group["code"]) if isinstance(entry, str) else (entry["sql"], entry["code"])
            found.append(pytest.param(sql, code, id=f"{group['group']}: {sql[:60]}"))
    return found


STATEMENTS = _statements()


@pytest.fixture(scope="module")
def bench() -> Iterator[gate.Bench]:
    made = clinic.bench()
    yield made
    made.connection.close()


@pytest.mark.parametrize(("sql", "code"), STATEMENTS)
def test_hostile_statement_is_refused_with_its_reason(bench: gate.Bench, sql: str, code: str) -> None:
    with pytest.raises(QueryRefused) as refused:
        bench.prepare(sql)
    assert (refused.value.code, str(refused.value)) == (code, str(refused.value))
    assert refused.value.rule
    assert clinic.SECRET not in str(refused.value)
    assert "src_" not in str(refused.value) or "src_" in sql.lower()


def test_the_suite_has_at_least_250_statements_and_none_twice() -> None:
    texts = [statement.values[0] for statement in STATEMENTS]
    assert len(set(texts)) == len(texts) >= 250
