"""EXISTS asks for no column: with its `*` written out it would move every one of them."""

from __future__ import annotations

from sqlglot import exp

from connector.query import tree as trees
from connector.query.planning import Planning


def apply(tree: exp.Expr, planning: Planning) -> exp.Expr:
    """The tree with `SELECT 1` in every EXISTS that only asks whether there is a row. Names are bound by now: a
    condition may have named an output."""
    for node in [one for one in trees.nodes(tree) if type(one) is exp.Exists]:
        query = trees.unwrapped(node.this)
        if isinstance(query, exp.Select) and not _asks_more(query):
            query.set("expressions", [trees.named(exp.Literal.number(1), "one")])
            query.set("order", None)
    return tree


def _asks_more(query: exp.Select) -> bool:
    """Whether its outputs decide how many rows there are, or other clauses may name them."""
    return any(query.args.get(name) for name in ("distinct", "group", "having", "qualify")) or bool(
        trees.aggregates(query)
    )
