"""Every output of a query has a name of its own, and ORDER BY names outputs, not their places.

Later rules then know an output by its name. What the caller called it comes back at the end (`plan`).
"""

from __future__ import annotations

from sqlglot import exp

from connector.errors import QueryInvalid
from connector.federation.planner.context import Planning
from policies.contracts.columns import make_distinct
from policies.sql import syntax_tree as trees
from policies.sql.allowed_syntax import QUERIES

_ORDERED = (*QUERIES, exp.Subquery)


def apply(tree: exp.Expr, planning: Planning) -> exp.Expr:
    """The tree, each query's outputs called apart; of several of one name, the first keeps it."""
    nodes = trees.nodes(tree)
    for node in nodes:
        if isinstance(node, _ORDERED) and (order := node.args.get("order")) is not None:
            _keys(order, trees.output_names(node))
    for select in [node for node in nodes if isinstance(node, exp.Select)]:
        names = trees.output_names(select)
        for output, name, own in zip(select.expressions, names, make_distinct(names), strict=True):
            if own != name:
                output.set("alias", exp.to_identifier(own))
    return tree


def _keys(order: exp.Expr, names: list[str]) -> None:
    """Places as the names that the outputs there will have; a name is that of the first output called so."""
    own = make_distinct(names)
    for ordered in order.expressions:
        key = ordered.this
        if trees.is_place(key):
            if not 0 < int(key.this) <= len(names):
                raise QueryInvalid(
                    f"ORDER BY {key.this}: expected the place of an output, 1 to {len(names)}", code="column_unknown"
                )
            ordered.set("this", trees.column(own[int(key.this) - 1]))
        elif isinstance(key, exp.Column) and not key.table and key.name in names:
            ordered.set("this", trees.column(own[names.index(key.name)]))
