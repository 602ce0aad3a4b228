"""Replaces the outputs of EXISTS by a constant: with `*` expanded, it would move every column."""

from __future__ import annotations

from sqlglot import exp

from connector.federation.planner.context import PlanningContext
from policies.sql import syntax_tree as trees


def apply(tree: exp.Expr, planning: PlanningContext) -> exp.Expr:
    """The tree with `SELECT 1` in every EXISTS that tests only for a row.

    Runs after names are bound, as a condition may have used an output's name.
    """
    for query in _plain_exists_queries(tree):
        query.set("expressions", [trees.alias_as(exp.Literal.number(1), "one")])
        query.set("order", None)
    return tree


def _plain_exists_queries(tree: exp.Expr) -> list[exp.Select]:
    """The queries of each EXISTS that tests only for a row."""
    queries = [trees.unwrap(node.this) for node in trees.nodes(tree) if type(node) is exp.Exists]
    return [query for query in queries if isinstance(query, exp.Select) and not _depends_on_outputs(query)]


def _depends_on_outputs(query: exp.Select) -> bool:
    """Whether its outputs decide the number of rows, or other clauses may use their names."""
    return any(query.args.get(name) for name in ("distinct", "group", "having", "qualify")) or bool(
        trees.aggregates(query)
    )
