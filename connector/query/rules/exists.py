"""EXISTS asks for no column: with its `*` written out it would move every one of them."""

from __future__ import annotations

from sqlglot import exp

from connector.query import tree as trees
from connector.query.planning import Planning


def apply(tree: exp.Expr, planning: Planning) -> exp.Expr:
    """The tree with `SELECT 1` in every EXISTS that only asks whether there is a row."""
    for node in [one for one in trees.nodes(tree) if type(one) is exp.Exists]:
        query = trees.unwrapped(node.this)
        if isinstance(query, exp.Select) and not query.args.get("distinct") and not trees.aggregates(query):
            query.set("expressions", [trees.named(exp.Literal.number(1), "one")])
    return tree
