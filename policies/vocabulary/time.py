"""Terms about time: start, end, duration.

Decided by the owner's clock, which is an argument of evaluation.
"""

from __future__ import annotations

from policies.vocabulary.terms import (
    DUTY,
    EQ,
    GT,
    GTEQ,
    LT,
    LTEQ,
    NEQ,
    RULE,
    Counting,
    Operand,
    Phase,
    Tier,
    ValueType,
    odrl,
)

OPERANDS: tuple[Operand, ...] = (
    Operand(
        name=odrl("dateTime"),
        type=ValueType.INSTANT,
        ops=frozenset({EQ, NEQ, LT, LTEQ, GT, GTEQ}),
        phase=Phase.TRANSFER,
        tier=Tier.TECHNICAL,
        enforced_by="clock",
        counting=Counting.CLOCK,
        sources=("clock",),
        where=frozenset({RULE, DUTY}),
        help="The moment of use: an instant with its zone, or a day (xsd:date, taken in UTC).",
        sentence="the time of use {op} {value}",
    ),
    Operand(
        name=odrl("elapsedTime"),
        type=ValueType.DURATION,
        # A budget: eq means the same as lteq.
        ops=frozenset({EQ, LT, LTEQ, GT, GTEQ}),
        phase=Phase.TRANSFER,
        tier=Tier.TECHNICAL,
        fact="ds:start",
        enforced_by="clock",
        counting=Counting.ELAPSED,
        sources=("clock",),
        help="Time since the agreement's timestamp, as a duration such as P90D or PT12H.",
        sentence="the time since the agreement {op} {value}",
    ),
)
