"""What comes of a question over owners has the types, and so the digits, that one engine over all data gives."""

from __future__ import annotations

from collections.abc import Iterator

import duckdb
import pytest

from tests.support.asking import Asked
from tests.support.federation import Federation

OWNERS = ("north", "south", "west")
CALLS = "range % 2 AS k, DATE '2026-01-05' + CAST(range * 3 AS INTEGER) AS d, "
CALLS += "TIMESTAMP '2026-01-01 00:00:00' + INTERVAL (range * 140) MILLISECOND AS ts, range - 2 AS v"
LARGE = "range AS k, range + 1 AS v, CAST(18446744073709551600 + range AS UBIGINT) AS u, "
LARGE += "CAST(-10000000000000000000000000000000000000 + range AS HUGEINT) AS h, "
LARGE += "CAST('00000000-0000-0000-0000-00000000000' || range AS UUID) AS id"

# Over shares of three owners, and over a table of one that is joined with another's.
QUESTIONS = [
    'SELECT sum(v > 0) // 2 AS x FROM "all".calls',
    'SELECT sum(v > 0 AND k = 1) // 2 AS x, sum(d IS NULL) // 2 AS y FROM "all".calls',
    'SELECT sum(isodow(d)) // 7 AS x, sum(dayofmonth(d)) // 7 AS y, sum(weekofyear(d)) % 5 AS z FROM "all".calls',
    "SELECT sum(d - DATE '2026-02-01') // 7 AS x FROM \"all\".calls",
    'SELECT median(c) AS x FROM (SELECT k, sum(isodow(d)) AS c FROM "all".calls GROUP BY k) q',
    "SELECT k, sum(extract(epoch FROM (ts - TIMESTAMP '2026-01-01 00:00:00'))) AS x FROM \"all\".calls GROUP BY k",
    "SELECT sum(abs(extract(epoch FROM (ts - TIMESTAMP '2026-01-01 00:00:00')))) AS x FROM \"all\".calls",
    "SELECT sum(CASE WHEN v > 0 THEN extract(epoch FROM (ts - TIMESTAMP '2026-01-01')) ELSE 0 END) AS x "
    'FROM "all".calls',
    "SELECT l.k, max(l.v * l.u) // 3 AS x FROM north.large l JOIN west.names w ON w.k = l.k GROUP BY l.k",
    "SELECT max(greatest(l.v, l.u)) // 3 AS x FROM north.large l JOIN west.names w ON w.k = l.k",
    "SELECT l.h, l.h // 7 AS x, w.name FROM north.large l JOIN west.names w ON w.k = l.k",
    "SELECT q.h // 7 AS x FROM (SELECT k, max(h) AS h FROM north.large GROUP BY k) q JOIN west.names w ON w.k = q.k",
    "SELECT max(l.id) AS x FROM north.large l JOIN west.names w ON w.k = l.k",
    "SELECT q.s, w.name FROM (SELECT k, sum(v) AS s FROM north.large GROUP BY k UNION ALL "
    "SELECT 1, 'total' FROM north.large WHERE v = 2) q JOIN west.names w ON w.k = q.k",
    "SELECT k, n.name, m.v FROM north.large n0 JOIN west.names n USING (k) LEFT JOIN south.measured m USING (k)",
    "SELECT k, m.v FROM south.large9 l LEFT JOIN north.doubles m USING (k)",
    "SELECT k, m.v FROM north.doubles m RIGHT JOIN south.large9 l USING (k)",
    "SELECT k, m.v FROM south.large9 l JOIN north.doubles m USING (k)",
    "SELECT k, m.v FROM south.large9 l FULL JOIN north.doubles m USING (k)",
    "SELECT * FROM south.large9 l LEFT JOIN north.doubles m USING (k) WHERE k > 3",
    "SELECT coalesce(l.k, m.k) AS c FROM south.large9 l LEFT JOIN north.doubles m USING (k)",
]
FAILING = "range AS k, range + 2 AS v, range AS by"
ROWS = {
    **{(owner, "calls"): (CALLS, 5 + number) for number, owner in enumerate(OWNERS)},
    ("north", "large"): (LARGE, 4),
    ("north", "failing"): (FAILING, 3),
    ("west", "names"): ("CAST(range AS INTEGER) AS k, 'n' || range AS name", 3),
    ("south", "measured"): ("CAST(range AS DOUBLE) AS k, range AS v", 2),
    ("south", "large9"): ("9007199254740993 + range AS k", 3),
    ("north", "doubles"): ("CAST(9007199254740993 + range AS DOUBLE) AS k, range AS v", 2),
}

# What is an error for rows that the join, or CASE, leaves out.
OF_ROWS_LEFT_OUT = [
    "SELECT f.v // f.by, n.name FROM north.failing f JOIN west.names n ON n.k = f.k WHERE n.k > 0",
    "SELECT f.v % f.by, n.name FROM north.failing f JOIN west.names n ON n.k = f.k WHERE n.k > 0",
    "SELECT sum(f.v // f.by) FROM north.failing f JOIN west.names n ON n.k = f.k WHERE n.k > 0",
    "SELECT n.k, sum(f.v // f.by) FROM north.failing f JOIN west.names n ON n.k = f.k WHERE n.k > 0 GROUP BY n.k",
    "SELECT CASE WHEN n.k > 0 THEN f.v // f.by END FROM north.failing f JOIN west.names n ON n.k = f.k",
    "SELECT max(CASE WHEN n.k > 0 THEN f.v % f.by END) FROM north.failing f JOIN west.names n ON n.k = f.k",
]


@pytest.fixture(scope="module")
def over() -> Iterator[Federation]:
    made = Federation(*OWNERS)
    for (owner, dataset), (shown, rows) in ROWS.items():
        made.add(owner, dataset, duckdb.connect().sql(f"SELECT range FROM range({rows})").to_arrow_table(), shown=shown)
    made.unite()
    yield made
    made.close()


@pytest.mark.parametrize("sql", [*QUESTIONS, *OF_ROWS_LEFT_OUT])
def test_types_and_digits_are_those_of_one_engine(over: Federation, sql: str) -> None:
    types, rows = over.expected(sql)
    came = over.ask(sql)
    assert came.types == types
    assert sorted(came.rows, key=repr) == sorted(rows, key=repr)


@pytest.mark.parametrize("number", [0, 4, 8, 10, 11, 12, 13])
@pytest.mark.asyncio(loop_scope="module")
async def test_so_they_are_where_processes_ask_and_merge(over: Federation, asked: Asked, number: int) -> None:
    for (owner, dataset), (shown, rows) in ROWS.items():
        asked.owners.add(owner, dataset, f"SELECT {shown} FROM range({rows})")
    found, end = await asked.rows(QUESTIONS[number])
    expected = over.central.sql(QUESTIONS[number]).to_arrow_table().to_pylist()
    assert end["status"] == "complete"
    assert sorted(found, key=repr) == sorted(expected, key=repr)
