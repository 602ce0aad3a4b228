"""Conditions of inner joins stand in WHERE, so that each can be looked at by itself.

Not where a RIGHT or FULL join follows: there the condition must hold before, not after.
"""

from __future__ import annotations

from sqlglot import exp

from connector.federation.planner.context import Planning
from policies.sql import syntax_tree as trees


def apply(tree: exp.Expr, planning: Planning) -> exp.Expr:
    """The tree with ON of inner joins moved, and RIGHT joins of two sources turned round."""
    for select in reversed(trees.selects(tree)):  # innermost first: turning copies what is inside
        _turn(select)
        _move(select)
    return tree


def _turn(select: exp.Select) -> None:
    """`a RIGHT JOIN b` as the first join is `b LEFT JOIN a`."""
    joins = select.args.get("joins") or []
    if joins and trees.side(joins[0]) == "RIGHT":
        first, second = select.args["from_"].this, joins[0].this
        left, right = first.copy(), second.copy()
        first.replace(right)
        second.replace(left)
        joins[0].set("side", "LEFT")


def _move(select: exp.Select) -> None:
    joins = select.args.get("joins") or []
    if any(trees.side(join) in ("RIGHT", "FULL") for join in joins):
        return
    moved = []
    for join in joins:
        if trees.is_inner(join):
            if join.args.get("on") is not None:
                moved += trees.conjuncts(join.args["on"])
                join.set("on", None)
            join.set("kind", "CROSS")
    if moved:
        trees.set_where(select, [*moved, *trees.where_of(select)])
