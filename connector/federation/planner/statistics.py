"""Cardinality estimates from what owners publish: rounded row counts, and distinct values where the policy allows.

The choice of a plan depends on them, an answer never does. Each kind of condition has a fixed selectivity.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from sqlglot import exp

from connector.federation.planner.context import FragmentDraft, PlanningContext
from connector.federation.planner.model import TableInfo
from policies.contracts.columns import fold
from policies.sql import syntax_tree as trees
from policies.sql.allowed_syntax import QUERIES

_WIDTHS = {"VARCHAR": 24, "INTEGER": 4, "DATE": 4, "BOOLEAN": 1, "SMALLINT": 2, "TINYINT": 1, "FLOAT": 4}
_FIXED = (
    "BOOLEAN", "TINYINT", "SMALLINT", "INTEGER", "BIGINT", "UTINYINT", "USMALLINT", "UINTEGER", "UBIGINT", "FLOAT",
    "DOUBLE", "DATE", "TIME", "TIMESTAMP", "TIMESTAMP WITH TIME ZONE",
)  # fmt: skip
UNKNOWN = 1_000_000
_SHARE, _EQUAL, _SUBQUERY, _EXISTS, _MOST = 0.25, 0.1, 0.05, 0.5, 0.9


def rows(draft: FragmentDraft) -> float:
    """Estimated rows of a draft, over all its shares."""
    return sum(_rows_of_shares(draft))


def unfiltered(draft: FragmentDraft) -> float:
    """The sum of the rows of each share's largest dataset; infinite if one is unknown."""
    sizes = [max((math.inf if info.rows is None else info.rows for info in infos), default=0) for infos in draft.read]
    return sum(sizes)


def is_narrow(draft: FragmentDraft, planning: PlanningContext) -> bool:
    """Whether all outputs of a draft have types of a fixed width, unlike texts, lists and blobs."""
    return all(_is_fixed(output.unalias(), draft, planning) for output in _outputs_of(draft.shares[0].statement))


def _is_fixed(value: exp.Expr, draft: FragmentDraft, planning: PlanningContext) -> bool:
    if isinstance(value, exp.Predicate | exp.Connector | exp.Not):
        return True
    if value.find(exp.Func) is not None:
        return False
    types = [_type(column, draft, planning) for column in value.find_all(exp.Column)]
    return all(kind.startswith("DECIMAL") or kind in _FIXED for kind in types)


def expected(draft: FragmentDraft, planning: PlanningContext) -> list[tuple[int, int] | None]:
    """Estimated rows and bytes of each share; None where a dataset's size is unknown."""
    found: list[tuple[int, int] | None] = []
    wide = width(draft, planning)
    for infos, count in zip(draft.read, _rows_of_shares(draft), strict=True):
        known = all(info.rows is not None for info in infos)
        found.append((round(count), round(count * wide)) if known else None)
    return found


def width(draft: FragmentDraft, planning: PlanningContext) -> int:
    """Estimated bytes of a draft's row."""
    return sum(_width(output.unalias(), draft, planning) for output in _outputs_of(draft.shares[0].statement))


def _type(column: exp.Column, draft: FragmentDraft, planning: PlanningContext) -> str:
    """The type of a dataset's column; empty for a column of a derived table."""
    info = draft.sources[0].get(column.table)
    return "" if info is None else planning.types(info.columns).get(fold(column.name), "")


def _outputs_of(statement: exp.Expr) -> list[exp.Expr]:
    while not isinstance(statement, exp.Select):
        statement = statement.this
    return list(statement.selects)


def _width(value: exp.Expr, draft: FragmentDraft, planning: PlanningContext) -> int:
    kind = _type(value, draft, planning) if isinstance(value, exp.Column) else ""
    if kind.startswith("DECIMAL"):
        return 16
    return _WIDTHS.get(kind, 8)


def share(draft: FragmentDraft) -> float:
    """The fraction of its datasets' rows that a draft's conditions keep."""
    first = draft.shares[0].statement
    return _share_left(first) if isinstance(first, exp.Select) else 1.0


def _rows_of_shares(draft: FragmentDraft) -> list[float]:
    """Estimated rows of each share: those of its largest dataset, times the selectivity of its conditions."""
    once = {id(share.statement): share.statement for share in draft.shares}
    taken = {tree: _reduction_of(statement) for tree, statement in once.items()}
    found = []
    for share, infos in zip(draft.shares, draft.read, strict=True):
        left, most = taken[id(share.statement)]
        found.append(max(1.0, min(max(map(size, infos), default=1) * left, most)))
    return found


def _reduction_of(statement: exp.Expr) -> tuple[float, float]:
    """The fraction of rows that a statement keeps, and the most rows that it returns."""
    if not isinstance(statement, exp.Select):
        return 1.0, math.inf
    if statement.args.get("group") is None and trees.aggregates(statement):
        return 1.0, 1.0
    limit = statement.args.get("limit")
    return _share_left(statement), math.inf if limit is None else float(limit.expression.this)


def _share_left(statement: exp.Select) -> float:
    clause = statement.args.get("where")
    found = 1.0 if clause is None else _selectivity_of_and(clause.this)
    return found * (_SUBQUERY if statement.args.get("having") is not None else 1.0)


def _selectivity(condition: exp.Expr) -> float:
    nodes = trees.nodes(condition)
    kinds = set(map(type, nodes))
    if not kinds.isdisjoint(QUERIES):
        return _EXISTS if exp.Exists in kinds else _SUBQUERY
    if len(trees.tables_read(nodes)) > 1:  # a join returns about as many rows as its largest table
        return 1.0
    if isinstance(condition, exp.EQ | exp.Like | exp.ILike):
        return _EQUAL
    if isinstance(condition, exp.Not | exp.NEQ):
        return _MOST
    return _SHARE


def _selectivity_of_and(condition: exp.Expr, known: frozenset[exp.Expr] = frozenset()) -> float:
    """The selectivity of an AND. A condition in `known` holds already, so it counts as 1."""
    found, here = 1.0, [one for one in trees.conjuncts(condition) if not known or one not in known]
    for one in here:
        if isinstance(one, exp.Or):
            around = known.union(other for other in here if other is not one)
            found *= min(_MOST, sum(_selectivity_of_and(branch, around) for branch in trees.disjuncts(one)))
        else:
            found *= _selectivity(one)
    return found


def size(info: TableInfo) -> int:
    return UNKNOWN if info.rows is None else info.rows


def distinct(infos: Iterable[TableInfo], column: str) -> int | None:
    """The number of distinct values of a column; None unless every share publishes it."""
    found = [info.ndv.get(column) for info in infos]
    return sum(one for one in found if one is not None) if found and None not in found else None
