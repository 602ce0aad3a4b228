"""Which statements cannot fail over a row: their columns are as they are stored, others' are NULL in hidden rows."""

from __future__ import annotations

import pytest

from tests.support import gate
from tests.support.gate import atom, mask

ROWS = """
SELECT 1::BIGINT AS id, 2::BIGINT AS n, 1::UHUGEINT AS u, 1.5::DOUBLE AS f, 1.5::DECIMAL(9,2) AS d,
    1::DECIMAL(38,0) AS w, 'a' AS t, 'b' AS h, DATE '2026-01-01' AS day, TIMESTAMP '2026-01-01' AS at, true AS yes,
    TIMESTAMP_S '2026-01-01' AS seconds
"""
QUIET = [
    "select * from t",
    "select id, t from t",
    "select id as id, t as other from t where n = 5 and f >= 1.5 and t <> 'x' limit 3",
    "select min(t), max(day), sum(n), avg(f) from t where day >= date '2020-01-01' and at < timestamp '2021-01-01'",
    "select t, count(*) from t where id in (1, 2, -3) and t in ('a', 'b') group by t order by t",
    "select x.id from t x join t y on x.id = y.n where x.d between 1 and 2.5 or not x.t like 'a%' or x.f is not null",
    "select id from (select id, t from t where day = '2020-01-01') x where t = 'a'",
    "with c as (select id from t where yes) select count(*) from c where id > 5",
    "select distinct t from t where d < 1.25",
    "select t from t where yes and not yes or id = 3",
]
MAY_FAIL = [
    "select id + 1 from t",
    "select id from t where t",
    "select id from t where not (t)",
    "select id from t where id = 1 or h",
    "select x.id from t x join t y on y.t",
    "select id from t where -n > 5",
    "select id from t where upper(t) = 'A'",
    "select id from t where t = 5",
    "select id from t where t > 5 or id = 3",
    "select id from t where t in (5, 6)",
    "select id from t where t between 5 and 6",
    "select id from t where id = 1234567890123456789",
    "select id from t where id > 0.00000000000000000000000000000000001",
    "select id from t where w > 0.5",
    "select id from t where u > 5",
    "select id from t where day > timestamp '2020-01-01'",
    "select id from t where day = at",
    "select id from t where day = 'abc'",
    "select id from t where day in ('2020-01-01', 'zz')",
    "select id from t where day between '2020-1-1' and '2020-01-01'",
    "select id from t where yes = 'abc'",
    "select id from t where at < '2020-01-01'",
    "select id from t where at < date '1000000-01-01'",
    "select id from t where id = 1 or 'abc'",
    "select id from t where (select t from t)",
    "select id from t where f < 9999999999999999999999999999999999999999",
    "select id from t where seconds > timestamp '2020-01-01'",
    "select id from t where t = id",
    "select x.id from t x join t y on x.t = y.n",
    "select id from t where id in (select n from t)",
    "select id from t union all select t from t",
    "select t as id from t",
    "select id from (select t as id from t) x where id = 5",
    "select a from t as x(a, b, c, d, e, f, g, h, i, j, k, l) where a = 5",
    "select id from t where h = 'b'",
    "select sum(t) from t",
    "select case when id = 1 then 2 end from t",
    "select cast(t as integer) from t",
    "select row_number() over (order by id) from t",
]


@pytest.fixture(scope="module")
def bench() -> gate.Bench:
    made = gate.Bench()
    made.connection.execute(f"CREATE TABLE stored AS {ROWS}")
    return made


def _guarded(bench: gate.Bench, sql: str, *, hides: bool = True) -> bool:
    bench.datasets.clear()
    rows = [atom("ds:row/n", "isAnyOf", "1", "2")] if hides else []
    schema = gate.schema_of(bench.connection, "stored")
    bench.add("clinic", "t", "stored", gate.contract(schema, *rows, duties=[mask("hash", "h")]))
    prepared = bench.prepare(sql)
    bench.recheck(prepared)
    return " END AS " in prepared.sql


@pytest.mark.parametrize("sql", QUIET)
def test_what_cannot_fail_is_read_as_it_is_stored(bench: gate.Bench, sql: str) -> None:
    assert not _guarded(bench, sql)


@pytest.mark.parametrize("sql", MAY_FAIL)
def test_what_may_fail_finds_nothing_in_hidden_rows(bench: gate.Bench, sql: str) -> None:
    assert _guarded(bench, sql)


def test_where_no_row_is_hidden_nothing_is_guarded(bench: gate.Bench) -> None:
    assert not _guarded(bench, "select id + 1 from t", hides=False)
