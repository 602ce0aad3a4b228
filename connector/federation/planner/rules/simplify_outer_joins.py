"""Turns a LEFT join into an inner join if WHERE removes its NULL rows.

WHERE removes them if a condition cannot be true for NULL: a comparison with a plain column of the joined source, or
IS NOT NULL of such a column.
"""

from __future__ import annotations

from sqlglot import exp

from connector.federation.planner.context import PlanningContext
from policies.sql import syntax_tree as trees

_STRICT = (exp.EQ, exp.NEQ, exp.GT, exp.GTE, exp.LT, exp.LTE, exp.Like, exp.ILike, exp.Between)


def apply(tree: exp.Expr, planning: PlanningContext) -> exp.Expr:
    """The tree with such joins as inner joins."""
    for select in trees.selects(tree):
        joins = select.args.get("joins") or []
        if any(trees.side(join) in ("RIGHT", "FULL") for join in joins):
            continue
        needed = {table for condition in trees.where_of(select) for table in _sources_needed(condition)}
        for join in reversed(joins):
            if trees.side(join) == "LEFT" and join.this.alias_or_name in needed:
                join.set("side", None)
                # As an inner join, its own condition needs rows of earlier sources too.
                needed |= {table for one in trees.conjuncts(join.args.get("on")) for table in _sources_needed(one)}
    return tree


def _sources_needed(condition: exp.Expr) -> set[str]:
    """The sources that must have a matching row for the condition to be true."""
    if isinstance(condition, exp.Not):
        inner = condition.this
        while isinstance(inner, exp.Paren):
            inner = inner.this
        if isinstance(inner, exp.Is) and isinstance(inner.expression, exp.Null):
            return _source_of_column(inner.this)
        return set()
    if isinstance(condition, exp.In):
        return _source_of_column(condition.this)
    if isinstance(condition, _STRICT):
        found = _source_of_column(condition.this)
        return found if isinstance(condition, exp.Between) else found | _source_of_column(condition.expression)
    return set()


def _source_of_column(node: exp.Expr) -> set[str]:
    return {node.table} if isinstance(node, exp.Column) and node.table else set()
