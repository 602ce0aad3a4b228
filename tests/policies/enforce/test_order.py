"""The order of groups in an answer reveals nothing about the order of rows."""

from __future__ import annotations

import pytest

from tests.support import gate
from tests.support.gate import atom

GROUPS = [
    "select g, count(*) as n from t group by g",
    "select g, count(*) as n from t group by g order by n",
    "select count(*) as n, g from t group by g order by 1 desc",
    "select g, count(*) as n from t group by g limit 1",
    "select count(*) as n from t group by g",
]


def answers(first: str) -> list[object]:
    """400 rows in eight groups of 50, but for the first row, which is in the group `first`."""
    bench = gate.Bench()
    rows = f"SELECT i AS id, CASE WHEN i = 0 THEN '{first}' ELSE 'g' || i % 8 END AS g FROM range(400) r(i)"
    bench.connection.execute(
        f"CREATE TABLE src AS SELECT * FROM ({rows}) UNION ALL SELECT 0, 'g0' UNION ALL SELECT 0, 'g1'"
    )
    if first != "g7":
        bench.connection.execute("INSERT INTO src VALUES (0, 'g7')")
    if first != "g3":
        bench.connection.execute("INSERT INTO src VALUES (0, 'g3')")
    made = (atom("ds:minGroupSize", "gteq", "10"), atom("ds:dimension/g", "eq", "exact"))
    bench.add("clinic", "t", "src", gate.contract(gate.schema_of(bench.connection, "src"), *made))
    return [bench.ask(sql) for sql in GROUPS]


def test_the_order_of_groups_is_that_of_what_they_show() -> None:
    one, other = answers("g7"), answers("g3")
    assert one == other
    assert [row[0] for row in one[0]] == [f"g{n}" for n in range(8)]


@pytest.mark.parametrize("sql", GROUPS)
def test_with_noise_it_is_too(sql: str) -> None:
    bench = gate.Bench()
    bench.connection.execute("CREATE TABLE src AS SELECT 1 AS id, 'a' AS g")
    made = (atom("ds:epsilonBudget", "lteq", "1"), atom("ds:dimension/g", "eq", "exact"))
    bench.add("clinic", "t", "src", gate.contract(gate.schema_of(bench.connection, "src"), *made))
    shown = sql.partition(" from ")[0].count(",") + 1
    ordered = bench.prepare(sql).sql.rpartition("ORDER BY ")[2].partition(" LIMIT")[0].split(", ")
    assert ordered[-shown:] == [str(place) for place in range(1, shown + 1)]
