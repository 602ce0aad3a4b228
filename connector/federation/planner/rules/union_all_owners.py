"""`"all".patients` is the union of the dataset `patients` of every owner with an agreement.

Columns go by name. Those that not every owner shows are left out; one that differs in type is an error, since a
union would quietly turn one type into the other. A dataset that only one owner has is that dataset; of others the
shares go to their owners when the question is cut (`block.parts_of`), each with the columns that are needed of it.
"""

from __future__ import annotations

from collections.abc import Sequence

from sqlglot import exp

from connector.errors import QueryInvalid
from connector.federation.planner.context import Planning
from connector.federation.planner.model import ALL, TableInfo
from policies.contracts.columns import fold
from policies.sql import syntax_tree as trees


def apply(tree: exp.Expr, planning: Planning) -> exp.Expr:
    """The tree, every union in it one that can be made."""
    for table in trees.tables(tree):
        if fold(table.db) == ALL:
            _check(table, planning)
    return tree


def _check(table: exp.Table, planning: Planning) -> None:
    shares = planning.shares(table)
    if not shares:
        name = fold(table.name)
        raise QueryInvalid(
            f'no owner has an agreement with us for a dataset named {name}; "{ALL}".{name} needs at least one',
            code="agreement_missing",
        )
    _alike(shares, [fold(column.name) for column in planning.columns(table)], planning)
    table.set("db", exp.to_identifier(ALL if len(shares) > 1 else shares[0].owner))


def _alike(shares: Sequence[TableInfo], shown: Sequence[str], planning: Planning) -> None:
    types = [{fold(column.name): column.type for column in info.columns} for info in shares]
    for name in shown:
        if len({one[name] for one in types}) > 1:
            listed = ", ".join(f"{info.owner}: {one[name]}" for info, one in zip(shares, types, strict=True))
            raise QueryInvalid(
                f"the owners of {shares[0].dataset} have different types for {name} ({listed}); "
                "write the UNION ALL yourself, with a CAST",
                code="schema_differs",
            )
    if not shown:
        raise QueryInvalid(f"the owners of {shares[0].dataset} show no column in common", code="schema_differs")
    for info in shares:
        left = [column.name for column in info.columns if fold(column.name) not in shown]
        if left:
            planning.note(f"{info.shown}: {', '.join(left)}", "shape", "not every owner shows these columns")
