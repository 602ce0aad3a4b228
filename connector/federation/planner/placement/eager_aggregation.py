"""Eager aggregation: groups one fragment before a join, and weighs the aggregates of other sources.

A fragment is grouped by all of its columns that the block still needs. Each group then joins like its rows, and stands
for many of them: counts and sums of other sources are multiplied by that number, MIN and MAX do not change. It pays if
there are fewer groups than rows. A column that is compared with another table's key has at most as many values as that
table has rows.
"""

from __future__ import annotations

from collections.abc import Callable

from sqlglot import exp

from connector.federation.planner import select_block as blocks
from connector.federation.planner import statistics
from connector.federation.planner.select_block import BlockSource, SourceGroup
from policies.sql import syntax_tree as trees

_GAIN = 0.7
_CARELESS = (exp.Min, exp.Max, exp.LogicalAnd, exp.LogicalOr, exp.BitwiseAndAgg, exp.BitwiseOrAgg, exp.ApproxDistinct)
_WHOLE = ("TINYINT", "SMALLINT", "INTEGER", "BIGINT", "UTINYINT", "USMALLINT", "UINTEGER")


def choose(select: exp.Select, groups: list[SourceGroup], sources: list[BlockSource]) -> SourceGroup | None:
    """The group to aggregate first; None if none can be, or none is worth it."""
    joins = select.args.get("joins") or ()
    if any(trees.side(join) in ("RIGHT", "FULL") for join in joins):
        return None
    work = _BlockAggregates(select, sources)
    fitting = [group for group in groups if _can_aggregate(work, group) and _pays(work, group)]
    return max(fitting, key=lambda group: (group.rows or statistics.UNKNOWN, group.name), default=None)


def weigh_aggregate(function: exp.Expr, condition: exp.Expr | None, weight: Callable[[], exp.Expr]) -> exp.Expr | None:
    """An aggregate of another source where each row stands for `weight()` rows; None if it does not change."""
    if isinstance(function, _CARELESS) or isinstance(function.this, exp.Distinct):
        return None

    def summed(value: exp.Expr) -> exp.Expr:
        total: exp.Expr = exp.Sum(this=value)
        return total if condition is None else exp.Filter(this=total, expression=exp.Where(this=condition.copy()))

    inner = function.this
    if isinstance(inner, exp.Star):
        return _zero_if_null(summed(weight()))
    there = exp.Case(
        ifs=[exp.If(this=exp.Is(this=inner.copy(), expression=exp.Null()), true=exp.Literal.number(0))],
        default=weight(),
    )
    if isinstance(function, exp.Count):
        return _zero_if_null(summed(there))
    product = exp.Mul(this=_as_hugeint(inner.copy(), function), expression=weight())
    if isinstance(function, exp.Sum):
        return summed(product)
    divisor = exp.Nullif(this=summed(there), expression=exp.Literal.number(0))
    total = trees.cast(summed(product), exp.DType.DOUBLE)
    return exp.Paren(this=exp.Div(this=total, expression=divisor, typed=False, safe=False))


def _zero_if_null(total: exp.Expr) -> exp.Expr:
    return trees.cast(exp.Coalesce(this=total, expressions=[exp.Literal.number(0)]), exp.DType.BIGINT)


def _as_hugeint(value: exp.Expr, function: exp.Expr) -> exp.Expr:
    """Cast whole numbers to HUGEINT, the type of their sum, so that a product does not overflow."""
    return trees.cast(value, exp.DType.INT128) if function.meta.get("whole") else value


class _BlockAggregates:
    """One block's aggregates, inspected once for all groups."""

    def __init__(self, select: exp.Select, sources: list[BlockSource]) -> None:
        self.select, self.sources = select, sources
        self.nodes = trees.aggregates(select)
        self.tables = [trees.column_tables(node) for node in self.nodes]
        self.nested = any(trees.has_query(node) for node in self.nodes)
        self.types = blocks.types_of(sources)
        inside = {id(column) for node in self.nodes for column in trees.columns(node)}
        # Columns read outside of aggregates: a fragment that is grouped first keeps them.
        self.outside = {(column.table, column.name) for column in trees.columns(select) if id(column) not in inside}


def _can_aggregate(work: _BlockAggregates, group: SourceGroup) -> bool:
    """Whether every aggregate of the block belongs to this group, or can be weighed."""
    first, aliases = group.sources[0], group.aliases
    if work.nested or group.aggregate_only or (first.join is not None and trees.kind(first.join) in ("SEMI", "ANTI")):
        return False
    mine = False
    for node, tables in zip(work.nodes, work.tables, strict=True):
        function = node.this if isinstance(node, exp.Filter) else node
        if tables & aliases:
            mine = True
            if not tables <= aliases or trees.may_fail(function):
                return False
            if first.nullable and not (node is function and isinstance(function.this, exp.Column)):
                return False  # it might count a NULL row of an outer join
        elif not _can_be_weighed(function, work.types):
            return False
    return mine


def _can_be_weighed(function: exp.Expr, types: dict[tuple[str, str], str]) -> bool:
    inner = function.this
    if isinstance(function, _CARELESS) or isinstance(inner, exp.Distinct):
        return True
    if isinstance(function, exp.Count):
        return not function.expressions
    if not isinstance(function, exp.Sum | exp.Avg) or not isinstance(inner, exp.Column):
        return False
    kind = types.get((inner.table, inner.name), "")
    function.meta["whole"] = kind in _WHOLE
    return kind in (*_WHOLE, "DOUBLE") or (kind.startswith("DECIMAL(") and int(kind[8:].split(",")[0]) <= 18)


def _pays(work: _BlockAggregates, group: SourceGroup) -> bool:
    """Whether estimates give far fewer groups than rows."""
    rows, groups, aliases = float(group.rows or statistics.UNKNOWN), 1.0, group.aliases
    for key in [one for one in work.outside if one[0] in aliases]:
        bound = _bound_distinct(key, work.select, group, work.sources)
        if bound is None:
            return False
        groups *= bound
    return groups < _GAIN * rows


def _bound_distinct(
    key: tuple[str, str], select: exp.Select, group: SourceGroup, sources: list[BlockSource]
) -> float | None:
    """An upper bound of a column's distinct values: published, or the rows of a table with which it is compared."""
    source = next(source for source in group.members if source.alias == key[0])
    known = statistics.distinct(source.infos, key[1])
    if known is not None:
        return float(known)
    others = {source.alias: source for source in sources if source not in group.members and source.infos}
    conditions = trees.where_of(select)
    for join in select.args.get("joins") or ():
        conditions += trees.conjuncts(join.args.get("on"))
    for condition in conditions:
        if not isinstance(condition, exp.EQ):
            continue
        sides = [side for side in (condition.this, condition.expression) if isinstance(side, exp.Column)]
        met = [others[side.table] for side in sides if side.table in others]
        if len(sides) == 2 and len(met) == 1 and key in [(side.table, side.name) for side in sides]:
            return float(sum(statistics.size(info) for info in met[0].infos))
    return None
