"""Refuses names that the engine and the binder would read differently, and what later rules do not expect of a query.

Must not change a tree.
"""

from __future__ import annotations

from sqlglot import exp

from connector.errors import QueryInvalid
from connector.federation.planner import using_rewrite
from connector.federation.planner.expansion_limit import SelectScope
from connector.federation.planner.model import ALL
from policies.contracts.columns import fold
from policies.sql import syntax_tree as trees


def refuse_owner_names(tree: exp.Expr) -> None:
    """Refuse `o.a` where FROM has the dataset `o.a` without an alias, and no source `o`: the engine reads its rows as
    structs, the binder reads the column `a` of a source `o` of an outer query.
    """
    datasets = {(owner, fold(table.name)) for table in trees.base_tables(tree) for owner in _owner_words(table)}
    for column in trees.columns(tree):
        named = fold(column.table), fold(column.name)
        if named in datasets and _is_dataset_in_from(column, *named):
            raise QueryInvalid(
                f"{column.table}.{column.name} is also a table here; give that table an alias", code="column_unknown"
            )


def _is_dataset_in_from(column: exp.Column, owner: str, name: str) -> bool:
    """Whether the nearest SELECT with a source that `owner.name` may mean has that dataset, and no source `owner`."""
    below: exp.Expr = column
    while (node := below.parent) is not None:
        if isinstance(node, exp.Select) and not isinstance(below, exp.With):  # WITH does not see the sources
            if any(fold(source.alias_or_name) == owner for source in trees.sources(node)):
                return False
            tables = [one for one in trees.sources(node) if isinstance(one, exp.Table) and one.db and not one.alias]
            if any(fold(table.name) == name and owner in _owner_words(table) for table in tables):
                return True
        below = node
    return False


def _owner_words(table: exp.Table) -> tuple[str, str]:
    """The words that may have named a dataset's owner: "all" is replaced where it has one owner only."""
    return fold(table.db), ALL


def refuse_lateral_references(tree: exp.Expr) -> None:
    """Refuse a derived table that names an earlier source in FROM: the engine looks there before outer queries."""
    for select in trees.selects(tree):
        before: set[str] = set()
        for source in trees.sources(select):
            if isinstance(source, exp.Subquery):
                for table in trees.free_tables(source):
                    if fold(table) in before:
                        raise using_rewrite.lateral_reference_error(table)
            before.add(fold(source.alias_or_name))


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
