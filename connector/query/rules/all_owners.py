"""`"all".patients` is the union of the dataset `patients` of every owner with an agreement.

Columns go by name. Those that not every owner shows are left out; one that differs in type is an error, since a
union would quietly turn one type into the other.
"""

from __future__ import annotations

from sqlglot import exp

from connector.errors import QueryInvalid
from connector.query import tree as trees
from connector.query.federation import ALL, TableInfo
from connector.query.planning import Planning


def apply(tree: exp.Expr, planning: Planning) -> exp.Expr:
    """The tree with every virtual table written out."""
    for table in list(tree.find_all(exp.Table)):
        if table.db.lower() == ALL:
            table.replace(_union(table, planning))
    return tree


def _union(table: exp.Table, planning: Planning) -> exp.Expr:
    name = table.name.lower()
    shares = [info for (owner, dataset), info in planning.tables.items() if dataset == name and owner != ALL]
    if not shares:
        raise QueryInvalid(
            f'no owner has an agreement with us for a dataset named {name}; "{ALL}".{name} needs at least one',
            code="agreement_missing",
        )
    shown = _common(shares)
    for info in shares:
        left = [column.name for column in info.columns if column.name.lower() not in shown]
        if left:
            planning.note(f"{info.shown}: {', '.join(left)}", "shape", "not every owner shows these columns")
    query: exp.Expr = _all_of(shares[0], shown)
    for info in shares[1:]:
        query = exp.Union(this=query, expression=_all_of(info, shown), distinct=False)
    alias = table.args.get("alias") or exp.TableAlias(this=exp.to_identifier(table.name))
    return exp.Subquery(this=query, alias=alias.copy())


def _common(shares: list[TableInfo]) -> list[str]:
    types = [{column.name.lower(): column.type for column in info.columns} for info in shares]
    shown = [column.name.lower() for column in shares[0].columns if all(column.name.lower() in one for one in types)]
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
    return shown


def _all_of(info: TableInfo, shown: list[str]) -> exp.Select:
    table = exp.Table(this=exp.to_identifier(info.dataset), db=exp.to_identifier(info.owner))
    return exp.select(*(trees.column(name) for name in shown), copy=False).from_(table, copy=False)
