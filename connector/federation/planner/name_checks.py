"""Refuses names that the engine and sqlglot would read differently, and what later rules do not expect of a query.

Must not change a tree.
"""

from __future__ import annotations

from sqlglot import exp

from connector.errors import QueryInvalid
from connector.federation.planner.expansion_limit import SelectScope
from policies.contracts.columns import fold
from policies.sql import syntax_tree as trees


def refuse_named_subquery(block: SelectScope) -> None:
    """Refuse an output that uses the name of another output that is a subquery: the binder fails on it."""
    outputs = block.select.expressions
    queries = {fold(one.alias) for one in outputs if isinstance(one, exp.Alias) and trees.has_query(one)}
    for column in trees.in_block(exp.Select(expressions=[one.copy() for one in outputs])) if queries else ():
        name = fold(column.name) if isinstance(column, exp.Column) and not column.table else ""
        if name in queries and not sources_with(name, block):
            raise QueryInvalid(
                f"{name} is a subquery, so other outputs cannot use its name; compute it in a derived table",
                code="syntax_not_allowed",
            )


def sources_with(name: str, block: SelectScope) -> list[str]:
    """The sources with a column of this name, without those of SEMI and ANTI joins."""
    return [alias for alias, names in block.sources.items() if name in names and alias not in block.tested]


def refuse_outputs_in_aggregates(block: SelectScope) -> None:
    """Refuse an output's name in an aggregate of HAVING: the engine sees no outputs there. Runs after outer columns
    have their source.
    """
    having = block.select.args.get("having")
    for node in trees.in_block(having) if having is not None else ():
        if not isinstance(node, exp.Column) or node.table or not trees.is_in_aggregate(node):
            continue
        if fold(node.name) in block.called and not sources_with(fold(node.name), block):
            raise QueryInvalid(
                f"HAVING: an aggregate does not see the output {node.name}; name a column, or use a derived table",
                code="column_unknown",
            )


def refuse_outer_aggregates(select: exp.Select) -> None:
    """Refuse an aggregate over columns of outer queries only: the engine computes it there, so that query has groups.

    Later rules look for the aggregates of a query outside of its subqueries.
    """
    own = {fold(source.alias_or_name) for source in trees.sources(select)}
    for aggregate in trees.aggregates(select):
        used = {fold(table) for table in trees.free_tables(aggregate)}
        if used and not used & own:
            named = ", ".join(sorted({column.name for column in trees.columns(aggregate)}))
            raise QueryInvalid(
                f"an aggregate in a subquery reads only columns of an outer query ({named}); compute it in a derived "
                "table, and read its column",
                code="syntax_not_allowed",
            )
