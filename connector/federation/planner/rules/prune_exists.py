"""Replaces the outputs of EXISTS by a constant: with `*` expanded, it would move every column."""

from __future__ import annotations

from sqlglot import exp

from connector.federation.planner.context import PlanningContext
from policies.contracts.columns import fold
from policies.sql import syntax_tree as trees


def apply(tree: exp.Expr, planning: PlanningContext) -> exp.Expr:
    """The tree with `SELECT 1` in every EXISTS that tests only for a row.

    Runs after names are bound, as a condition may have used an output's name.
    """
    for query in _plain_exists_queries(tree):
        query.set("expressions", [trees.alias_as(exp.Literal.number(1), "one")])
        query.set("order", None)
    return tree


def drop_stars(tree: exp.Expr) -> None:
    """Replace `*` by 1 in such an EXISTS, before it is expanded. An ordered one keeps it, as its keys may be places."""
    for query in _plain_exists_queries(tree):
        sources = {fold(source.alias_or_name) for source in trees.sources(query)}
        for output in query.expressions if query.args.get("order") is None else ():
            everything = isinstance(output, exp.Star) and not any(output.args.values())
            if everything or (isinstance(output, exp.Column) and output.is_star and fold(output.table) in sources):
                output.replace(exp.Literal.number(1))


def _plain_exists_queries(tree: exp.Expr) -> list[exp.Select]:
    """The queries of each EXISTS that tests only for a row."""
    queries = [trees.unwrap(node.this) for node in trees.nodes(tree) if type(node) is exp.Exists]
    return [query for query in queries if isinstance(query, exp.Select) and not _depends_on_outputs(query)]


def _depends_on_outputs(query: exp.Select) -> bool:
    """Whether its outputs decide the number of rows, or other clauses may use their names."""
    return any(query.args.get(name) for name in ("distinct", "group", "having", "qualify")) or bool(
        trees.aggregates(query)
    )
