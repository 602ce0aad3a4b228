"""Rows of data that leave an owner are told apart from result rows: which statements give which."""

from __future__ import annotations

import pytest

from connector.federation.planner import sql_text
from connector.federation.planner.context import is_aggregated

RESULTS = [
    "SELECT count(*) AS n FROM a.t",
    "SELECT ward, count(*) AS n, avg(age) AS age FROM a.t GROUP BY ward",
    "SELECT ward, sum(age) / count(*) AS age FROM a.t GROUP BY ward ORDER BY age LIMIT 3",
    "SELECT count(*) FILTER (age > 5) AS n FROM a.t",
    "SELECT ward, n FROM (SELECT ward, count(*) AS n FROM a.t GROUP BY ward) q WHERE n > 5",
    "WITH q AS (SELECT ward, count(*) AS n FROM a.t GROUP BY ward) SELECT ward, n FROM q",
    "SELECT count(*) AS n FROM a.t UNION ALL SELECT sum(age) AS n FROM a.t",
]
ROWS = [
    "SELECT id, age FROM a.t",
    "SELECT DISTINCT ward FROM a.t",
    "SELECT ward FROM a.t GROUP BY ward",  # groups without a figure are values of rows
    "SELECT ward, count(*) AS n, any_value(name) AS name FROM a.t GROUP BY ward",
    "SELECT id, count(*) OVER (PARTITION BY ward) AS n FROM a.t",
    "SELECT id, (SELECT count(*) FROM a.t) AS n FROM a.t",
    "SELECT count(*) AS n FROM a.t UNION ALL SELECT age AS n FROM a.t",
    "SELECT q.n, u.id FROM (SELECT count(*) AS n FROM a.t) q JOIN a.t u ON u.id = q.n",
]


@pytest.mark.parametrize(("sql", "results"), [(sql, True) for sql in RESULTS] + [(sql, False) for sql in ROWS])
def test_what_leaves_is_results_only_where_every_row_is_a_figure_over_a_group(sql: str, results: bool) -> None:
    assert is_aggregated(sql_text.read(sql)) is results
