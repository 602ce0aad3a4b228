"""Answers with noise: both statements, and that one unit changes the private answer by at most its sensitivity."""

from __future__ import annotations

import itertools
import random
from typing import Any

import duckdb
import pyarrow as pa
import pytest

from policies.enforce.gate import GatedDataset, PreparedQuery, prepare
from policies.enforce.noised_query import PrivateQuery
from policies.errors import QueryRefused
from policies.sql import engine_recheck
from tests.support import gate
from tests.support.gate import atom

TYPES = {
    "pid": "VARCHAR",
    "age": "INTEGER",
    "sex": "VARCHAR",
    "cost": "DOUBLE",
    "stay": "INTEGER",
    "fee": "DECIMAL(10,2)",
}
TERMS = [
    atom("ds:epsilonBudget", "lteq", "1"),
    atom("ds:dimension/age", "eq", "10"),
    atom("ds:dimension/sex", "eq", "exact"),
    atom("ds:measure/cost", "eq", "0..1000"),
    atom("ds:measure/stay", "eq", "-5..30"),
    atom("ds:measure/fee", "eq", "-2.5..99.5"),
]
NAME = '"clinic".stays'


def prepared(sql: str, *more: Any) -> PreparedQuery:
    schema = gate.schema(**TYPES)
    contract = gate.compile_contract(gate.agreement(*TERMS, *more), schema, permission=0)
    counter = itertools.count()
    return prepare(
        sql, [GatedDataset(("clinic", "stays"), "rel", contract)], action=gate.QUERY, purpose=None,
        token=lambda: f"t{next(counter)}", mask_key=gate.KEY,
    )  # fmt: skip


def units(*, rows: str) -> tuple[Any, ...]:
    return atom("ds:entityKey", "eq", "pid"), atom("ds:rowsPerEntity", "lteq", rows)


def private_of(found: PreparedQuery) -> PrivateQuery:
    assert found.private is not None
    return found.private


def table(connection: duckdb.DuckDBPyConnection, rows: list[tuple[Any, ...]]) -> None:
    columns = ", ".join(f"{name} {kind}" for name, kind in TYPES.items())
    connection.execute(f"CREATE OR REPLACE TABLE rel ({columns})")
    if rows:
        connection.executemany("INSERT INTO rel VALUES (?, ?, ?, ?, ?, ?)", rows)


def patients(rng: random.Random, count: int) -> list[list[tuple[Any, ...]]]:
    """Rows by unit: some have many, values lie outside of the bounds, some are missing."""
    return [
        [
            (
                f"p{unit}", rng.choice([None, rng.randint(0, 90)]), rng.choice("fm"),
                rng.choice([None, float("nan"), rng.uniform(-500, 3000)]), rng.choice([None, rng.randint(-99, 99)]),
                rng.choice([None, round(rng.uniform(-99, 999), 2)]),
            )
            for _ in range(rng.choice([1, 1, 2, 9]))
        ]
        for unit in range(count)
    ]  # fmt: skip


def answer(connection: duckdb.DuckDBPyConnection, asked: PrivateQuery) -> dict[tuple[Any, ...], dict[str, int]]:
    found = connection.sql(asked.sql, params=asked.params)
    counted = [name for name, _ in asked.noise.columns]
    return {
        tuple(value for name, value in row.items() if name not in counted): {name: row[name] for name in counted}
        for row in found.to_arrow_table().to_pylist()
    }


ASKED = (
    f"SELECT count(*) FROM {NAME}",
    f"SELECT count(DISTINCT pid) FROM {NAME}",
    f"SELECT sum(cost), avg(stay), count(fee) FROM {NAME}",
    f"SELECT sex, count(*) AS n, sum(fee) AS s FROM {NAME} GROUP BY sex",
    f"SELECT age, sex, avg(cost) FROM {NAME} WHERE age BETWEEN 10 AND 60 GROUP BY 1, 2",
    f"SELECT sex, count(DISTINCT pid), sum(stay) FROM {NAME} WHERE age > 20 GROUP BY sex",
)


@pytest.mark.parametrize("sql", ASKED)
def test_one_unit_changes_each_column_by_at_most_its_sensitivity(sql: str) -> None:
    rng = random.Random(11)
    connection = duckdb.connect()
    for bound in (1, 3, 20):
        asked = private_of(prepared(sql, *units(rows=str(bound))))
        for _ in range(4):
            everybody = patients(rng, 12)
            # Others have one row each, so that chance decides nothing about them.
            others = [rows[:1] for rows in everybody[1:]]
            table(connection, [row for unit in others for row in unit])
            without = answer(connection, asked)
            table(connection, [row for unit in (everybody[0], *others) for row in unit])
            including = answer(connection, asked)
            keys = {*without, *including}
            for name, sensitivity in asked.noise.columns:
                change = sum(
                    abs(including.get(key, {}).get(name, 0) - without.get(key, {}).get(name, 0)) for key in keys
                )
                assert change <= sensitivity, (name, bound)
            if asked.noise.keys:
                touched = [key for key in keys if including.get(key) != without.get(key)]
                assert len(touched) <= asked.noise.rows


def test_bounds_that_a_unit_reaches_are_reached_exactly() -> None:
    asked = private_of(prepared(f"SELECT count(*), sum(stay) FROM {NAME}", *units(rows="3")))
    connection = duckdb.connect()
    table(connection, [("p1", 30, "f", 1.0, 99, 1)] * 7)
    assert answer(connection, asked) == {(): {"rows": 3, "sum 1": 90}}
    assert dict(asked.noise.columns) == {"rows": 3, "sum 1": 90}


def test_both_statements_are_judged_by_the_engines_parser() -> None:
    connection = duckdb.connect()
    for sql in ASKED:
        found = prepared(sql, *units(rows="2"))
        asked = private_of(found)
        for text, names, functions in (
            (asked.sql, asked.names, asked.functions),
            (found.sql, found.names, found.functions),
        ):
            read = connection.execute(engine_recheck.RECHECK_SQL, [text]).fetchall()[0][0]
            engine_recheck.check(read, names=frozenset(names), functions=functions)
        read = connection.execute(engine_recheck.RECHECK_SQL, [asked.sql]).fetchall()[0][0]
        with pytest.raises(QueryRefused):
            engine_recheck.check(read, names=frozenset(found.names), functions=found.functions)


def test_the_public_statement_makes_the_asked_outputs_of_the_noised_table() -> None:
    sql = (
        "SELECT sex, count(*) AS n, count(DISTINCT pid) u, sum(cost) s, avg(cost) a, avg(fee) f, sum(stay) t "
        f"FROM {NAME} GROUP BY sex ORDER BY n DESC LIMIT 2"
    )
    found = prepared(sql, *units(rows="2"))
    step = 2.0**-20  # 1000 in 30 bits
    names = ("sex", "units", "rows", "sum 0", "count 0", "sum 2", "count 2", "sum 1")
    rows = [
        ("f", 4, 9, int(900 / step), 9, 995, 1, 7),
        ("m", -3, -2, -5, 0, -99900, -4, -7),
        ("x", 1, 12, int(9e9 / step), 1, 0, 1, 0),
    ]
    connection = duckdb.connect()
    noised = pa.Table.from_pylist([dict(zip(names, row, strict=True)) for row in rows])
    connection.register(private_of(found).relation, noised)
    shown = connection.sql(found.sql).to_arrow_table().to_pylist()
    assert [tuple(row.values()) for row in shown] == [
        ("x", 12, 1, pytest.approx(9e9), 1000.0, 0.0, 0),
        ("f", 9, 4, pytest.approx(900.0), pytest.approx(100.0), pytest.approx(9.95), 7),
    ]


def test_the_same_question_is_recognised_however_it_is_written() -> None:
    def asked(sql: str) -> str:
        return private_of(prepared(sql, *units(rows="2"))).question

    first = asked(f"SELECT sex, count(*) AS n FROM {NAME} WHERE age > 20 AND sex = 'f' GROUP BY sex")
    for same in (
        f"SELECT count(*) c, s.sex FROM {NAME} s WHERE s.sex = 'f' AND s.age > 20 GROUP BY 2 ORDER BY 1 LIMIT 3",
        f"select sex, count(*) from {NAME} as q where (q.age > 20) and q.sex = 'f' group by sex",
    ):
        assert asked(same) == first
    for other in (
        f"SELECT sex, count(*) AS n FROM {NAME} WHERE age > 30 AND sex = 'f' GROUP BY sex",
        f"SELECT sex, sum(cost) AS n FROM {NAME} WHERE age > 20 AND sex = 'f' GROUP BY sex",
        f"SELECT count(*) AS n FROM {NAME} WHERE age > 20 AND sex = 'f'",
    ):
        assert asked(other) != first


REFUSED = (
    (f"SELECT pid FROM {NAME}", "rows_not_given"),
    (f"SELECT sex, age, count(*) FROM {NAME} GROUP BY sex", "aggregate_shape"),
    (f"SELECT sex, count(*) FROM {NAME}", "aggregate_shape"),
    (f"SELECT max(cost) FROM {NAME}", "aggregate_shape"),
    (f"SELECT count(*) FROM {NAME} WHERE cost > 3", "aggregate_shape"),
    (f"SELECT count(*) FROM {NAME} GROUP BY 1", "aggregate_shape"),
    (f"SELECT sex, count(*) FROM {NAME} GROUP BY sex HAVING count(*) > 1", "aggregate_shape"),
    (f"SELECT count(*) FROM {NAME} a, {NAME} b", "aggregate_shape"),
    (f"SELECT sum(DISTINCT cost) FROM {NAME}", "aggregate_shape"),
    (f"SELECT count(*) FILTER (WHERE sex = 'f') FROM {NAME}", "aggregate_shape"),
)


@pytest.mark.parametrize(("sql", "code"), REFUSED)
def test_other_shapes_are_refused(sql: str, code: str) -> None:
    with pytest.raises(QueryRefused) as refused:
        prepared(sql, *units(rows="2"))
    assert refused.value.code == code


def test_without_an_entity_each_row_is_a_unit() -> None:
    asked = private_of(prepared(f"SELECT sex, count(*), sum(stay) FROM {NAME} GROUP BY sex"))
    assert (asked.noise.rows, dict(asked.noise.columns)) == (1, {"units": 1, "rows": 1, "sum 1": 30})
