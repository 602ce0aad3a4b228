"""A LEFT join whose NULL rows WHERE throws away is an inner join, and may be planned like one.

WHERE throws them away where a condition cannot be true for a NULL: a comparison with a plain column of the joined
source, or IS NOT NULL of one.
"""

from __future__ import annotations

from sqlglot import exp

from connector.federation.planner.context import Planning
from policies.sql import syntax_tree as trees

_STRICT = (exp.EQ, exp.NEQ, exp.GT, exp.GTE, exp.LT, exp.LTE, exp.Like, exp.ILike, exp.Between)


def apply(tree: exp.Expr, planning: Planning) -> exp.Expr:
    """The tree with such joins turned into inner ones."""
    for select in trees.selects(tree):
        joins = select.args.get("joins") or []
        if any(trees.side(join) in ("RIGHT", "FULL") for join in joins):
            continue
        needed = {table for condition in trees.where_of(select) for table in _needs(condition)}
        for join in reversed(joins):
            if trees.side(join) == "LEFT" and join.this.alias_or_name in needed:
                join.set("side", None)
                # What its own condition needs of sources before it is needed now, too.
                needed |= {table for one in trees.conjuncts(join.args.get("on")) for table in _needs(one)}
    return tree


def _needs(condition: exp.Expr) -> set[str]:
    """Sources of which a row must have been found for the condition to be true."""
    if isinstance(condition, exp.Not):
        inner = condition.this
        while isinstance(inner, exp.Paren):
            inner = inner.this
        if isinstance(inner, exp.Is) and isinstance(inner.expression, exp.Null):
            return _column(inner.this)
        return set()
    if isinstance(condition, exp.In):
        return _column(condition.this)
    if isinstance(condition, _STRICT):
        found = _column(condition.this)
        return found if isinstance(condition, exp.Between) else found | _column(condition.expression)
    return set()


def _column(node: exp.Expr) -> set[str]:
    return {node.table} if isinstance(node, exp.Column) and node.table else set()
