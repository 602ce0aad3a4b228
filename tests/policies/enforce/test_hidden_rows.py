"""A user's predicate never runs on a row that the row filter hides: no error, no difference, for any filter.

Hidden rows hold values that overflow or cannot be compared; each attack would fail on them. What it computes finds NULL
in them, wherever the engine computes it.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from connector.datasets.sources import arrow_ipc
from tests.support import gate
from tests.support.gate import atom, either, exactly_one

# Every third row is visible under each filter. `big` overflows when multiplied on a hidden row.
ROWS = """
SELECT i AS id, CASE WHEN i % 3 = 0 THEN 'DE' ELSE 'FR' END AS country, i % 3 AS grp, (i % 3)::DOUBLE AS f,
    (i % 3)::DECIMAL(9,2) AS d, DATE '2026-01-01' + (i % 3)::INTEGER AS day, i % 3 = 0 AS open,
    CASE WHEN i % 3 = 0 THEN i % 100 ELSE 9223372036854775807 - i END AS big,
    CASE WHEN i % 3 = 0 THEN (i % 100)::VARCHAR ELSE 'SECRET-' || i END AS txt,
    CASE WHEN i % 3 = 0 THEN 1.0 ELSE -1.0 END AS neg
  FROM range(30000) r(i)
"""
FILTERS: dict[str, list[Any]] = {
    "eq": [atom("ds:row/country", "eq", "DE")],
    "neq": [atom("ds:row/country", "neq", "FR")],
    "isAnyOf": [atom("ds:row/country", "isAnyOf", "DE", "XX")],
    "isNoneOf": [atom("ds:row/country", "isNoneOf", "FR", "YY")],
    "lt": [atom("ds:row/grp", "lt", "1")],
    "text order": [atom("ds:row/country", "lteq", "E")],
    "double": [atom("ds:row/f", "lt", "0.5")],
    "decimal": [atom("ds:row/d", "lteq", "0.5")],
    "date": [atom("ds:row/day", "lt", "2026-01-02")],
    "boolean": [atom("ds:row/open", "eq", "true")],
    "three": [
        atom("ds:row/grp", "lteq", "0"),
        atom("ds:row/country", "eq", "DE"),
        atom("ds:row/open", "neq", "false"),
    ],
    "or": [either(atom("ds:row/country", "eq", "DE"), atom("ds:row/grp", "lt", "1"))],
    "xone": [exactly_one(atom("ds:row/grp", "eq", "0"), atom("ds:row/grp", "eq", "9"))],
    "or beside and": [
        atom("ds:row/open", "eq", "true"),
        either(atom("ds:row/grp", "eq", "0"), atom("ds:row/f", "gt", "5")),
    ],
}
ATTACKS = [
    "select count(*) from t where big * 100000 >= 0",
    "select count(*) from t where big + 9223372036854000000 > 5 and id >= 0 and f < 100",
    "select count(*) from t where id >= 0 and sqrt(neg) = 1",
    "select sum(big * 100000) from t",
    "select max(big * 100000), min(-big * 100000) from t",
    "select big * 100000 as k, count(*) from t group by 1 order by 1 limit 3",
    "select id from t order by big * 100000, id limit 3",
    "select id, big from t order by big desc, id limit 3",
    "select distinct big * 100000 as k from t order by 1 limit 3",
    "select count(*) from t a join t b on a.big * 100000 = b.big * 100000 and a.id = b.id",
    "select count(*) from t a join t b on a.id = b.id where a.big * 100000 + b.big >= 0",
    "select count(*) from t a where exists (select 1 from t b where b.big * 100000 = a.id)",
    "select count(*) from t where big * 100000 in (select big * 100000 from t)",
    "select id % 7 as k, sum(big * 100000) from t group by 1 having sum(big * 100000) > 0 order by 1",
    "select sum(big * 100000) over (order by id) as s from t order by s limit 3",
    "select id from t qualify row_number() over (order by big * 100000, id) <= 3 order by id",
    "select count(*) from t where case when id >= 0 then big * 100000 > 1 else true end",
    "select count(*) from t where coalesce(ln(neg), 1) >= 0",
    "select count(*) from t left join (select id as i, big * 100000 as k from t) x on t.id = x.i and x.k > 5",
    "with w as (select *, big * 100000 as k from t) select count(*) from w where k > 5",
    "select count(*) from (select big * 100000 as k from t union all select id from t) x where k > 5",
    "select count(*) from t where txt = 5",
    "select count(*) from t where txt + 1 > 5",
    "select count(*) from t a full join (select id from t limit 1) b on a.id = b.id "
    "where a.id >= 0 and a.big * 100000 > -1",
    "select count(*) from t a full join (select id from t limit 1) b on a.id = b.id where a.id >= 0 and a.txt <> 99999",
    "select count(*) from t a full join (select id from t limit 1) b on a.id = b.id where a.id >= 0 and ln(a.neg) > -1",
    "select count(*) from t a left join (select id, max(big) as big from t group by id) b "
    "on a.id = b.id and a.big * 100000 + a.big > 0 right join t d on b.id = d.id where b.big * 100000 > d.id - 5",
    "with c as (select id, big from t) select count(*) from c a full join c b on a.id = b.id and b.id < 5 "
    "where a.id >= 0 and a.big * 100000 > -1 and a.id in (select id from t)",
]


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[gate.Bench]:
    made = gate.Bench()
    made.connection.execute("SET threads = 2")
    file: Path = tmp_path_factory.mktemp("rows") / "t.parquet"
    made.connection.execute(f"CREATE TABLE stored AS {ROWS}")
    made.connection.execute(f"COPY stored TO '{file}' (ROW_GROUP_SIZE 4096)")
    made.connection.execute(f"CREATE VIEW scanned AS FROM read_parquet('{file}')")
    made.connection.execute("CREATE TABLE t AS FROM stored WHERE grp = 0")
    with pa.ipc.new_file(
        file.with_suffix(".arrow"), (rows := made.connection.table("stored").to_arrow_table()).schema
    ) as out:
        out.write_table(rows, 4096)
    arrow_ipc.attach(made.connection, "handed", [str(file.with_suffix(".arrow"))], {})
    yield made
    made.connection.close()


def _result(bench: gate.Bench, sql: str, params: Any = None) -> Any:
    try:
        return bench.connection.execute(sql, params).fetchall()
    except Exception as error:  # noqa: BLE001  # the user's own mistake on visible rows is no leak, and the same
        return type(error).__name__


@pytest.mark.parametrize(("relation", "name"), list(itertools.product(("stored", "scanned", "handed"), FILTERS)))
def test_no_attack_sees_a_hidden_row(bench: gate.Bench, relation: str, name: str) -> None:
    bench.datasets.clear()
    bench.add("clinic", "t", relation, gate.contract(gate.schema_of(bench.connection, "stored"), *FILTERS[name]))
    for attack in ATTACKS:
        prepared = bench.prepare(attack)
        bench.recheck(prepared)
        ours = _result(bench, prepared.sql, prepared.params)
        assert ours == _result(bench, attack), attack


def test_the_attacks_do_fail_on_hidden_rows(bench: gate.Bench) -> None:
    failing = [attack for attack in ATTACKS if isinstance(_result(bench, attack.replace(" t", " stored")), str)]
    assert len(failing) >= 15
