"""Checks tables of the owner "all": `"all".patients` is the union of the dataset `patients` of every owner.

Columns match by name. Columns that some owner does not show are left out. Different types of one column are an error,
as a union would silently convert one. A dataset of a single owner is that dataset. The shares of others go to their
owners when the query is cut (`select_block.parts_of`), each with the columns that are needed.
"""

from __future__ import annotations

from collections.abc import Sequence

from sqlglot import exp

from connector.errors import QueryInvalid
from connector.federation.planner.context import PlanningContext
from connector.federation.planner.model import ALL, TableInfo
from policies.contracts.columns import fold
from policies.sql import syntax_tree as trees


def apply(tree: exp.Expr, planning: PlanningContext) -> exp.Expr:
    """The tree, if every union in it is possible; QueryInvalid otherwise."""
    for table in trees.tables(tree):
        if fold(table.db) == ALL:
            _check_shares(table, planning)
    return tree


def _check_shares(table: exp.Table, planning: PlanningContext) -> None:
    shares = planning.shares(table)
    if not shares:
        name = fold(table.name)
        raise QueryInvalid(
            f'no agreement in force covers a dataset named {name}; "{ALL}".{name} needs at least one agreement',
            code="agreement_missing",
        )
    _check_columns(shares, [fold(column.name) for column in planning.columns(table)], planning)


def _check_columns(shares: Sequence[TableInfo], shown: Sequence[str], planning: PlanningContext) -> None:
    types = [{fold(column.name): column.type for column in info.columns} for info in shares]
    for name in shown:
        if len({one[name] for one in types}) > 1:
            listed = ", ".join(f"{info.owner}: {one[name]}" for info, one in zip(shares, types, strict=True))
            raise QueryInvalid(
                f"the owners of {shares[0].dataset} have different types for {name} ({listed}); "
                "write a UNION ALL with a CAST instead",
                code="schema_differs",
            )
    if not shown:
        raise QueryInvalid(f"the owners of {shares[0].dataset} show no column in common", code="schema_differs")
    for info in shares:
        left = [column.name for column in info.columns if fold(column.name) not in shown]
        if left:
            planning.note(f"{info.quoted_name}: {', '.join(left)}", "shape", "not every owner shows these columns")
