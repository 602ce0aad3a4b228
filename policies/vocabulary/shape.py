"""Terms about the answer: rows, columns, granularity, group size, joins.

The compiled contract enforces these inside every query; evaluation defers them until an
answer exists.
"""

from __future__ import annotations

from policies.vocabulary.terms import (
    ANY,
    DUTY,
    EQ,
    EQUALITY,
    GTEQ,
    LTEQ,
    NONE,
    ORDER,
    Operand,
    Phase,
    Tier,
    ValueType,
    ds,
)


def _shape_operand(
    name: str,
    type_: ValueType,
    ops: frozenset[str],
    help_: str,
    sentence: str,
    *,
    parameter: bool = False,
    levels: tuple[str, ...] = (),
    where: str = "rule",
) -> Operand:
    """An operand that the gate and the contract's view enforce."""
    return Operand(
        name=ds(name),
        type=type_,
        ops=ops,
        phase=Phase.QUERY,
        tier=Tier.TECHNICAL,
        fact=f"ds:{name}",
        enforced_by="gate",
        by_engine=True,
        parameter=parameter,
        levels=levels,
        where=frozenset({where}),
        help=help_,
        sentence=sentence,
    )


OPERANDS: tuple[Operand, ...] = (
    _shape_operand(
        "row/",
        ValueType.SCALAR,
        EQUALITY | ORDER,
        "Row filter: every row that is read has this value in the column after the slash.",
        "in every row {column} {op} {value}",
        parameter=True,
    ),
    _shape_operand(
        "columnAllow",
        ValueType.TEXT,
        frozenset({EQ, ANY}),
        "The only columns that can be read.",
        "only these columns can be read: {value}",
    ),
    _shape_operand(
        "columnDeny",
        ValueType.TEXT,
        frozenset({NONE}),
        "Columns that cannot be read. Those that no rule names can.",
        "these columns cannot be read: {value}",
    ),
    _shape_operand(
        "notTogether",
        ValueType.TEXT,
        frozenset({NONE}),
        "Columns that one query must not use together, whether shown, filtered by or grouped by. The limit is for "
        "each query: rows have one order, so columns of rows that are read in separate queries can be joined by "
        "position.",
        "no query uses these columns together: {value}",
    ),
    _shape_operand(
        "resultKind",
        ValueType.CHOICE,
        frozenset({EQ}),
        "aggregate: only figures about groups leave; rows: single rows may leave.",
        "the answer consists of {value}",
        levels=("aggregate", "rows"),
    ),
    _shape_operand(
        "minGroupSize",
        ValueType.INTEGER,
        frozenset({GTEQ, "gt"}),
        "The smallest group that may appear in an aggregate answer; counts entities where ds:entityKey is given.",
        "the number of units in each group of an answer {op} {value}",
    ),
    _shape_operand(
        "entityKey",
        ValueType.TEXT,
        frozenset({EQ}),
        "The column that identifies a unit of privacy; it may be counted but not returned.",
        "groups are counted by distinct {value}, which is itself never returned",
    ),
    _shape_operand(
        "dimension/",
        ValueType.GRID,
        frozenset({EQ}),
        "A column that aggregate answers may group and filter by: exact, or a bin width. A bin is named by its "
        "lower edge, the lowest one by the smallest number of the column's type if its edge is below that. Groups "
        "combine all dimensions, and groups that are too small are left out: more and finer dimensions leave out "
        "more.",
        "answers may group by {column} ({value})",
        parameter=True,
    ),
    _shape_operand(
        "measure/",
        ValueType.RANGE,
        frozenset({EQ}),
        "A column that aggregate answers may sum and average, clamped to low..high, or free. A group is withheld, with "
        "all its figures, where fewer units than it must have add to the sum or lack a value (of 0..1: have it, or "
        "have it not), or where the sums of two measures differ by fewer.",
        "answers may sum and average {column} ({value})",
        parameter=True,
    ),
    _shape_operand(
        "joinWith",
        ValueType.IRI,
        frozenset({EQ, ANY}),
        "The only datasets it may be joined with.",
        "it is joined only with {value}",
    ),
    _shape_operand(
        "template",
        ValueType.TEXT,
        frozenset({EQ, ANY}),
        "The only queries that may run, as approved templates.",
        "only these approved queries run: {value}",
    ),
    _shape_operand(
        "epsilonBudget",
        ValueType.DECIMAL,
        frozenset({LTEQ}),
        "Differential privacy: the sum of epsilon over all answers under the agreement. Answers carry noise "
        "instead of being cut into cells.",
        "the privacy budget spent (epsilon) {op} {value}",
    ),
    _shape_operand(
        "deltaBudget",
        ValueType.DECIMAL,
        frozenset({LTEQ}),
        "Differential privacy: the probability with which the promise may fail; 0.000001 where none is given.",
        "the probability that the privacy promise fails (delta) {op} {value}",
    ),
    _shape_operand(
        "rowsPerEntity",
        ValueType.INTEGER,
        frozenset({LTEQ}),
        "Differential privacy: how many rows of one entity count in one answer; more rows need more noise.",
        "the number of rows of one unit that count in an answer {op} {value}",
    ),
    _shape_operand(
        "column",
        ValueType.TEXT,
        frozenset({EQ, ANY}),
        "In a mask: the columns to mask.",
        "the columns {value}",
        where=DUTY,
    ),
    _shape_operand(
        "method",
        ValueType.TEXT,
        frozenset({EQ}),
        "In a mask: null, hash, truncate, round or generalise.",
        "by {value}",
        where=DUTY,
    ),
    _shape_operand(
        "argument",
        ValueType.TEXT,
        frozenset({EQ}),
        "In a mask: characters to keep (truncate), digits (round), or bin width (generalise): a number is shown as the "
        "lower edge of its bin, the greatest multiple of the width that is not above it, and NULL where its type does "
        "not hold that.",
        "with {value}",
        where=DUTY,
    ),
)
