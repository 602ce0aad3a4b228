"""All 22 TPC-H queries pass the gate and give the answer of plain DuckDB over the rows that the policy shows."""

from __future__ import annotations

import math
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import pytest

from tests.support import gate, tpch
from tests.support.gate import atom, either

# Per layout: row filters as policy constraints, and the same as SQL for the oracle.
LAYOUTS: dict[str, dict[str, tuple[list[Any], str]]] = {
    "open": {},
    "filtered": {
        "lineitem": ([atom("ds:row/l_quantity", "lteq", "45"), atom("ds:row/l_shipmode", "neq", "RAIL")],
                     "l_quantity <= 45 AND l_shipmode <> 'RAIL'"),
        "orders": ([atom("ds:row/o_orderdate", "gteq", "1992-06-01")], "o_orderdate >= DATE '1992-06-01'"),
        "customer": ([atom("ds:row/c_mktsegment", "isNoneOf", "FURNITURE")], "c_mktsegment NOT IN ('FURNITURE')"),
    },
    "either": {
        "lineitem": ([either(atom("ds:row/l_quantity", "lteq", "40"), atom("ds:row/l_returnflag", "eq", "R"))],
                     "l_quantity <= 40 OR l_returnflag = 'R'"),
        "part": ([either(atom("ds:row/p_size", "gt", "2"), atom("ds:row/p_brand", "eq", "Brand#12"))],
                 "p_size > 2 OR p_brand = 'Brand#12'"),
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tpch.generate(tmp_path_factory.mktemp("tpch"))


@pytest.fixture(scope="module", params=LAYOUTS)
def layout(request: pytest.FixtureRequest, tables: Path) -> Iterator[tuple[str, gate.Bench]]:
    bench = gate.Bench()
    tpch.load(bench.connection, tables, prefix="src_")
    for table in tpch.TABLES:
        constraints, condition = LAYOUTS[request.param].get(table, ([], "true"))
        made = gate.contract(gate.schema_of(bench.connection, f"src_{table}"), *constraints)
        bench.add("clinic", table, f"src_{table}", made)
        bench.connection.execute(f"CREATE VIEW {table} AS SELECT * FROM src_{table} WHERE {condition}")
    yield request.param, bench
    bench.connection.close()


def _same(ours: Any, theirs: Any) -> bool:
    if isinstance(ours, float) and isinstance(theirs, float):
        return math.isclose(ours, theirs, rel_tol=1e-9) or (math.isnan(ours) and math.isnan(theirs))
    if isinstance(ours, Decimal) or isinstance(theirs, Decimal):
        return Decimal(ours) == Decimal(theirs)
    return bool(ours == theirs)


@pytest.mark.parametrize("name", tpch.queries())
def test_each_query_gives_the_answer_of_plain_duckdb(layout: tuple[str, gate.Bench], name: str) -> None:
    _, bench = layout
    text = tpch.queries()[name]
    ours = bench.ask(text)
    theirs = bench.connection.execute(text).fetchall()
    assert len(ours) == len(theirs)
    for mine, other in zip(ours, theirs, strict=True):
        assert all(_same(a, b) for a, b in zip(mine, other, strict=True)), (mine, other)


def test_most_queries_have_a_non_empty_answer(tables: Path) -> None:
    connection = duckdb.connect()
    tpch.load(connection, tables)
    empty = [name for name, text in tpch.queries().items() if not connection.execute(text).fetchall()]
    assert len(empty) <= 3, empty
