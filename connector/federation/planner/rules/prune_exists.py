"""EXISTS asks for no column: with its `*` written out it would move every one of them."""

from __future__ import annotations

from sqlglot import exp

from connector.federation.planner.context import Planning
from policies.contracts.columns import fold
from policies.sql import syntax_tree as trees


def apply(tree: exp.Expr, planning: Planning) -> exp.Expr:
    """The tree with `SELECT 1` in every EXISTS that only asks whether there is a row. Names are bound by now: a
    condition may have named an output."""
    for query in _asked(tree):
        query.set("expressions", [trees.alias_as(exp.Literal.number(1), "one")])
        query.set("order", None)
    return tree


def drop_stars(tree: exp.Expr) -> None:
    """Put 1 for each `*` of such an EXISTS, before it is written out with every column. One that is ordered keeps it:
    by its places, maybe."""
    for query in _asked(tree):
        sources = {fold(source.alias_or_name) for source in trees.sources(query)}
        for output in query.expressions if query.args.get("order") is None else ():
            everything = isinstance(output, exp.Star) and not any(output.args.values())
            if everything or (isinstance(output, exp.Column) and output.is_star and fold(output.table) in sources):
                output.replace(exp.Literal.number(1))


def _asked(tree: exp.Expr) -> list[exp.Select]:
    """The queries of each EXISTS that only asks whether there is a row."""
    queries = [trees.unwrap(node.this) for node in trees.nodes(tree) if type(node) is exp.Exists]
    return [query for query in queries if isinstance(query, exp.Select) and not _asks_more(query)]


def _asks_more(query: exp.Select) -> bool:
    """Whether its outputs decide how many rows there are, or other clauses may name them."""
    return any(query.args.get(name) for name in ("distinct", "group", "having", "qualify")) or bool(
        trees.aggregates(query)
    )
