"""A fixed piece of work: what a processor time is divided by, so that a loaded machine does not change the figure.

Planning parses, rewrites and writes trees of SQL in Python. The yardstick parses and writes one SQL text with the same
library, whatever the planner does. Measured next to a plan, it takes longer for the same reasons: a shared core, cold
caches, a slower clock.
"""

from __future__ import annotations

import time

import sqlglot

_TIMES = 10  # about 5 ms of a processor of 2026 that nothing else uses
_SQL = """
SELECT o_year, sum(CASE WHEN nation = 'BRAZIL' THEN volume ELSE 0 END) / sum(volume) AS mkt_share
FROM (
    SELECT extract(year FROM o_orderdate) AS o_year, l_extendedprice * (1 - l_discount) AS volume, n2.n_name AS nation
    FROM part, supplier, lineitem, orders, customer, nation n1, nation n2, region
    WHERE p_partkey = l_partkey AND s_suppkey = l_suppkey AND l_orderkey = o_orderkey AND o_custkey = c_custkey
        AND c_nationkey = n1.n_nationkey AND n1.n_regionkey = r_regionkey AND r_name = 'AMERICA'
        AND s_nationkey = n2.n_nationkey AND o_orderdate BETWEEN DATE '1995-01-01' AND DATE '1996-12-31'
        AND p_type = 'ECONOMY ANODIZED STEEL'
) AS all_nations
GROUP BY o_year
ORDER BY o_year
"""


def yardstick() -> float:
    """Milliseconds of this thread's processor time for the fixed piece of work."""
    begun = time.thread_time()
    for _ in range(_TIMES):
        sqlglot.parse_one(_SQL, read="duckdb").sql(dialect="duckdb")
    return (time.thread_time() - begun) * 1000
