"""Moves conditions of inner joins to WHERE, so that later rules see each condition by itself.

Not in a block with a RIGHT or FULL join, where the condition must hold before that join.
"""

from __future__ import annotations

from sqlglot import exp

from connector.federation.planner.context import PlanningContext
from policies.sql import syntax_tree as trees


def apply(tree: exp.Expr, planning: PlanningContext) -> exp.Expr:
    """The tree with ON of inner joins in WHERE, and a leading RIGHT join as a LEFT join."""
    for select in reversed(trees.selects(tree)):  # innermost first, as a swap copies inner queries
        _swap_right_join(select)
        _move_conditions(select)
    return tree


def _swap_right_join(select: exp.Select) -> None:
    """Turn `a RIGHT JOIN b`, as the first join, into `b LEFT JOIN a`."""
    joins = select.args.get("joins") or []
    if joins and trees.side(joins[0]) == "RIGHT":
        first, second = select.args["from_"].this, joins[0].this
        left, right = first.copy(), second.copy()
        first.replace(right)
        second.replace(left)
        joins[0].set("side", "LEFT")


def _move_conditions(select: exp.Select) -> None:
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
