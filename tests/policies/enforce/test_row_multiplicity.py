"""Finding statements in which several counted rows of a dataset may form one row of the answer."""

from __future__ import annotations

import pytest

from policies.enforce.gate import CallerTable
from tests.support import gate
from tests.support.gate import atom

GUESSES = [CallerTable("c", "c_1", ("id", "k"))]
ROW_BY_ROW = [
    "SELECT id FROM t",
    "SELECT id FROM t ORDER BY id LIMIT 10",
    "SELECT id FROM t WHERE g > 5000 LIMIT 1",
    "SELECT DISTINCT upper(CAST(id AS VARCHAR)), g + 1 FROM t WHERE g BETWEEN 1 AND 2 OR id IN (3, 4)",
    "SELECT t.id, c.k FROM t JOIN c ON t.id <= c.k ORDER BY c.k, t.id LIMIT 3",
    "(SELECT id FROM t)",
    "SELECT q.id FROM (SELECT * FROM t WHERE g > 1) AS q",
    "SELECT t.id FROM c JOIN t ON t.id <= c.k",
    "SELECT t.id FROM t, c WHERE t.id = c.k",
    "SELECT t.id, c.k FROM t LEFT JOIN c USING (id)",
    "SELECT t.id, c.k FROM c RIGHT JOIN t USING (id)",
    "SELECT id FROM t ANTI JOIN c USING (id)",
    "SELECT k FROM c SEMI JOIN t USING (id)",
    "SELECT k FROM c WHERE k IN (SELECT id FROM t) AND k > 1",
    "SELECT k FROM c WHERE (EXISTS (SELECT 1 FROM t WHERE t.id = c.k)) AND k > 1",
    "SELECT id FROM t WHERE NOT EXISTS (SELECT 1 FROM c WHERE c.k = t.id)",
]
SEVERAL = [
    "SELECT k FROM c WHERE NOT EXISTS (SELECT 1 FROM t WHERE t.id > c.k) ORDER BY k LIMIT 1",
    "SELECT k FROM c WHERE k NOT IN (SELECT id FROM t)",
    "SELECT k FROM c WHERE k IN (SELECT id FROM t) IS FALSE",
    "SELECT k FROM c WHERE (k IN (SELECT id FROM t)) = false",
    "SELECT k FROM c WHERE EXISTS (SELECT 1 FROM t WHERE t.id = c.k) OR k > 1",
    "SELECT k FROM c WHERE (SELECT id FROM t WHERE t.id = c.k LIMIT 1) IS NULL",
    "SELECT k FROM c WHERE (SELECT id FROM t WHERE t.id = c.k LIMIT 1) IN (1, 2)",
    "SELECT k, EXISTS (SELECT 1 FROM t WHERE t.id = c.k) AS x FROM c",
    "SELECT k FROM c ORDER BY EXISTS (SELECT 1 FROM t WHERE t.id = c.k)",
    "SELECT k FROM c WHERE EXISTS (SELECT 1 FROM u WHERE NOT EXISTS (SELECT 1 FROM t WHERE t.id = u.id))",
    "SELECT k FROM c LEFT JOIN t USING (id) WHERE t.id IS NULL",
    "SELECT q.k FROM (SELECT c.k, t.g FROM t RIGHT JOIN c ON t.id > c.k) AS q WHERE q.g IS NULL",
    "SELECT k FROM c FULL JOIN t ON t.id > c.k",
    "SELECT c.k FROM t JOIN u USING (id) FULL JOIN c USING (id)",
    "SELECT k FROM c ANTI JOIN t ON t.id > c.k",
    "SELECT k FROM c WHERE EXISTS (SELECT 1 FROM t WHERE t.id = c.k OFFSET 9)",
    "SELECT k FROM c JOIN (SELECT id FROM t ORDER BY id LIMIT 1 OFFSET 9) AS q ON q.id > c.k",
    "SELECT id FROM t ORDER BY id LIMIT 10 OFFSET 20",
    "SELECT id FROM t WHERE g > 5000 ORDER BY id LIMIT 1 OFFSET 141",
    "SELECT id FROM t OFFSET 141",
    "SELECT c.k FROM t JOIN c ON (c.id = 0 AND c.k < CASE t.id WHEN 0 THEN t.g WHEN 1 THEN t.g * 2 ELSE 0 END) "
    "OR (c.id = 1 AND t.id = 0) ORDER BY c.id, c.k LIMIT 1 OFFSET 262143",
    "SELECT q.k FROM (SELECT c.id, c.k FROM t JOIN c ON (c.id = 0 AND c.k < t.g) OR (c.id = 1 AND t.id = 0) "
    "ORDER BY c.id, c.k LIMIT 262144) AS q ORDER BY q.id DESC, q.k DESC LIMIT 1",
    "SELECT q.id FROM (SELECT id FROM t LIMIT 9) AS q",
    "SELECT k FROM c WHERE k IN (SELECT id FROM t ORDER BY g LIMIT 9)",
    "SELECT k FROM c WHERE EXISTS (SELECT 1 FROM t WHERE t.id = c.k LIMIT 9)",
    "SELECT max(id) FROM t",
    "SELECT g FROM t GROUP BY g",
    "SELECT row_number() OVER (ORDER BY id) FROM t",
    "SELECT id FROM t UNION ALL SELECT k FROM c",
    "WITH w AS (SELECT id FROM t) SELECT id FROM w",
    "SELECT c.k FROM c JOIN u ON EXISTS (SELECT 1 FROM t WHERE t.id = c.k)",
]


@pytest.mark.parametrize("sql", ROW_BY_ROW)
def test_a_row_that_stands_for_one_of_the_dataset_is_counted_as_it_leaves(sql: str) -> None:
    assert drawn(sql) == {}


@pytest.mark.parametrize("sql", SEVERAL)
def test_a_row_that_tells_of_what_is_not_there_counts_all(sql: str) -> None:
    assert drawn(sql) == {("clinic", "t"): 1}


def drawn(sql: str) -> dict[tuple[str, str], int]:
    made = gate.Bench()
    made.add(
        "clinic", "t", "src_t", gate.contract(gate.schema(id="BIGINT", g="BIGINT"), atom("ds:rowQuota", "lteq", "5"))
    )
    made.add("clinic", "u", "src_u", gate.contract(gate.schema(id="BIGINT")))
    return dict(made.prepare(sql, keys=GUESSES).row_multiplicity)
