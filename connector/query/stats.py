"""Estimates from the little that owners tell: rounded row counts, and distinct values where the policy lets them.

Only order and choice of plan depend on them, never an answer. A fixed share for each kind of condition is enough
(federated-query, section 6, measured with 0.25 for all).
"""

from __future__ import annotations

from collections.abc import Iterable

from sqlglot import exp

from connector.query import tree as trees
from connector.query.federation import TableInfo
from connector.query.planning import Draft, Planning

UNKNOWN = 1_000_000
_SHARE, _EQUAL, _SUBQUERY, _MOST = 0.25, 0.1, 0.05, 0.9


def rows(draft: Draft, planning: Planning) -> float:
    """How many rows a draft may give, over all its shares."""
    return sum(_of_statement(one.statement, planning) for one in draft.shares)


def share(draft: Draft, planning: Planning) -> float:
    """Which share of its datasets' rows a draft's conditions leave."""
    first = draft.shares[0].statement
    return _left(first) if isinstance(first, exp.Select) else 1.0


def _of_statement(statement: exp.Expr, planning: Planning) -> float:
    sizes = [float(size(planning.info(table))) for table in trees.base_tables(statement)]
    found = max(sizes, default=1.0)
    if isinstance(statement, exp.Select):
        if statement.args.get("group") is None and trees.aggregates(statement):
            return 1.0
        found *= _left(statement)
        if statement.args.get("limit") is not None:
            found = min(found, float(statement.args["limit"].expression.this))
    return max(found, 1.0)


def _left(statement: exp.Select) -> float:
    found = 1.0
    for condition in trees.where_of(statement):
        found *= _selectivity(condition)
    return found * (_SUBQUERY if statement.args.get("having") is not None else 1.0)


def _selectivity(condition: exp.Expr) -> float:
    if trees.has_query(condition):
        return _SUBQUERY
    if len(trees.column_tables(condition)) > 1:  # a join: its rows are those of its largest table
        return 1.0
    if isinstance(condition, exp.EQ | exp.Like | exp.ILike):
        return _EQUAL
    if isinstance(condition, exp.Not | exp.NEQ):
        return _MOST
    return _SHARE


def size(info: TableInfo) -> int:
    return UNKNOWN if info.rows is None else info.rows


def distinct(infos: Iterable[TableInfo], column: str) -> int | None:
    """Distinct values of a column, where every share says so."""
    found = [info.ndv.get(column) for info in infos]
    return sum(one for one in found if one is not None) if found and None not in found else None
