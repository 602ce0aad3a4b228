"""Terms about quantities: uses, rows, bytes, queries per day, concurrent queries.

Counted by the grant. A counting fact states earlier use; the execution being admitted counts as one more.
"""

from __future__ import annotations

from policies.vocabulary.terms import LT, LTEQ, Counting, Operand, Phase, Tier, ValueType, ds, odrl

AT_MOST = frozenset({LT, LTEQ})

OPERANDS: tuple[Operand, ...] = (
    Operand(
        name=odrl("count"),
        type=ValueType.INTEGER,
        ops=AT_MOST,
        phase=Phase.TRANSFER,
        tier=Tier.TECHNICAL,
        fact="odrl:count",
        sources=("counter",),
        enforced_by="grant",
        counting=Counting.BEFORE,
        help="Uses under the agreement, this one included: lteq 10 allows ten.",
        sentence="the number of uses {op} {value}",
    ),
    Operand(
        name=ds("rowQuota"),
        type=ValueType.INTEGER,
        ops=AT_MOST,
        phase=Phase.BATCH,
        tier=Tier.TECHNICAL,
        fact="ds:rowQuota",
        sources=("counter",),
        enforced_by="batch",
        help="Rows that may leave under one agreement, counted before they are sent. A query that combines rows "
        "(aggregates, windows, a dataset twice), asks for what has none (NOT EXISTS, an outer join to it), or passes "
        "over rows (OFFSET, a LIMIT in a subquery), counts as all rows of the dataset, and a question as one row at "
        "least.",
        sentence="the number of rows that leave the owner {op} {value}",
    ),
    Operand(
        name=ds("byteQuota"),
        type=ValueType.INTEGER,
        ops=AT_MOST,
        phase=Phase.BATCH,
        tier=Tier.TECHNICAL,
        fact="ds:byteQuota",
        sources=("counter",),
        enforced_by="batch",
        help="Bytes that may leave under one agreement, counted before they are sent.",
        sentence="the number of bytes that leave the owner {op} {value}",
    ),
    Operand(
        name=odrl("percentage"),
        type=ValueType.DECIMAL,
        ops=frozenset({LTEQ}),
        phase=Phase.BATCH,
        tier=Tier.TECHNICAL,
        fact="odrl:percentage",
        sources=("counter",),
        enforced_by="batch",
        help="Share of the dataset's rows that may leave under one agreement, in per cent. A query that combines "
        "rows (aggregates, windows, a dataset twice), or passes over some (OFFSET, a LIMIT in a subquery), counts as "
        "all of them.",
        sentence="the share of the dataset's rows that leave, in per cent, {op} {value}",
    ),
    Operand(
        name=ds("queriesPerDay"),
        type=ValueType.INTEGER,
        ops=AT_MOST,
        phase=Phase.QUERY,
        tier=Tier.TECHNICAL,
        fact="ds:queriesPerDay",
        sources=("counter",),
        enforced_by="grant",
        counting=Counting.BEFORE,
        help="Queries in one day (UTC), this one included.",
        sentence="the number of queries per day {op} {value}",
    ),
    Operand(
        name=ds("concurrency"),
        type=ValueType.INTEGER,
        ops=AT_MOST,
        phase=Phase.QUERY,
        tier=Tier.TECHNICAL,
        fact="ds:concurrency",
        sources=("counter",),
        enforced_by="grant",
        counting=Counting.BEFORE,
        help="Queries and streams open at the same time, this one included, over all connectors on one database.",
        sentence="the number of queries and streams open at once {op} {value}",
    ),
)
