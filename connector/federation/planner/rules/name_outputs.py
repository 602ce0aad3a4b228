"""Gives every output of a query a unique name, and replaces places in ORDER BY by output names.

Later rules then identify an output by its name. `planner.plan` restores the caller's names at the end.
"""

from __future__ import annotations

from sqlglot import exp

from connector.errors import QueryInvalid
from connector.federation.planner.context import PlanningContext
from policies.contracts.columns import make_distinct
from policies.sql import syntax_tree as trees
from policies.sql.allowed_syntax import QUERIES

_ORDERED = (*QUERIES, exp.Subquery)


def apply(tree: exp.Expr, planning: PlanningContext) -> exp.Expr:
    """The tree with unique output names in each query. The first output of a name keeps it."""
    nodes = trees.nodes(tree)
    for node in nodes:
        if isinstance(node, _ORDERED) and (order := node.args.get("order")) is not None:
            _name_order_keys(order, trees.output_names(node))
    for select in [node for node in nodes if isinstance(node, exp.Select)]:
        names = trees.output_names(select)
        for output, name, own in zip(select.expressions, names, make_distinct(names), strict=True):
            if own != name:
                output.set("alias", exp.to_identifier(own))
    return tree


def _name_order_keys(order: exp.Expr, names: list[str]) -> None:
    """Replace places and repeated names in ORDER BY by the outputs' new names."""
    own = make_distinct(names)
    for ordered in order.expressions:
        key = ordered.this
        if trees.is_place(key):
            if not 0 < int(key.this) <= len(names):
                raise QueryInvalid(
                    f"expected a place from 1 to {len(names)} in ORDER BY, got {key.this}", code="column_unknown"
                )
            ordered.set("this", trees.column(own[int(key.this) - 1]))
        elif isinstance(key, exp.Column) and not key.table and key.name in names:
            ordered.set("this", trees.column(own[names.index(key.name)]))
