"""Query text to a checked tree and its datasets, and a tree back to SQL.

The text passes the statement gate that owners use too (`policies.sql.parse`), and is not used again: all SQL that runs
here or at an owner is generated from the tree. Knows no agreements.
"""

from __future__ import annotations

from collections.abc import Iterator

from sqlglot import exp

from connector.errors import QueryInvalid
from connector.federation.planner.model import ALL
from policies.contracts.columns import fold
from policies.errors import QueryRefused
from policies.sql import parentheses, parse
from policies.sql.rewrite import list_nodes


def read(sql: str) -> exp.Expr:
    """Parse one SELECT into a checked tree, with the checks of the owner's gate.

    Raises:
        QueryInvalid: it is no allowed SELECT; names what to write instead.
    """
    try:
        tree = parse.parse(sql)
    except QueryRefused as error:
        raise QueryInvalid(str(error), code=error.code, rule=error.rule) from None
    for node in list_nodes(tree):
        # At an owner a cast never fails, as its error would show a value. The same must hold here.
        if type(node) is exp.Cast:
            node.replace(exp.TryCast(this=node.this, to=node.args["to"], safe=True))
    return tree


def datasets(tree: exp.Expr) -> tuple[tuple[str, str], ...]:
    """Every (owner, dataset) in the tree, folded and in order. QueryInvalid for a dataset without its owner."""
    found: dict[tuple[str, str], None] = {}
    for table in [node for node in list_nodes(tree) if type(node) is exp.Table]:
        if table.db:
            found[(fold(table.db), fold(table.name))] = None
        elif not any(fold(table.name) == name for name in _with_names(table)):
            raise QueryInvalid(
                f"expected a dataset with its owner, got {table.name}; "
                f'write "<participant>".{table.name}, or "{ALL}".{table.name} for every owner of it',
                code="owner_missing",
            )
    if not found:
        raise QueryInvalid('expected a dataset, got none; write FROM "<participant>".<dataset>', code="dataset_missing")
    return tuple(found)


def _with_names(node: exp.Expr) -> Iterator[str]:
    above: exp.Expr | None = node
    while above is not None:
        clause = above.args.get("with_")
        if clause is not None:
            yield from (fold(cte.alias) for cte in clause.expressions)
        above = above.parent


def write(tree: exp.Expr, *, spend: bool = False) -> str:
    """DuckDB's SQL for a tree: every name quoted, no comments. `spend`: the tree may be changed."""
    return parentheses.write(tree, spend=spend)


def write_readable(tree: exp.Expr, *, spend: bool = False) -> str:
    """SQL for people: names quoted only where necessary. `spend`: the tree may be changed."""
    return parentheses.write(tree, identify=False, spend=spend)
