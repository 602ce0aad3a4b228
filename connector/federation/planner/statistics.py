"""Estimates from the little that owners tell: rounded row counts, and distinct values where the policy lets them.

Only order and choice of plan depend on them, never an answer. A fixed share for each kind of condition is enough
(federated-query, section 6, measured with 0.25 for all).
"""

from __future__ import annotations

import math
from collections.abc import Iterable

from sqlglot import exp

from connector.federation.planner.context import Draft, Planning
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


def rows(draft: Draft) -> float:
    """How many rows a draft may give, over all its shares."""
    return sum(_of_shares(draft))


def unfiltered(draft: Draft) -> float:
    """The rows of each share's largest dataset together; infinite where one is not known."""
    sizes = [max((math.inf if info.rows is None else info.rows for info in infos), default=0) for infos in draft.read]
    return sum(sizes)


def is_narrow(draft: Draft, planning: Planning) -> bool:
    """Whether the types of a draft's outputs say how wide they are: of texts, lists and blobs nobody knows."""
    return all(_is_fixed(output.unalias(), draft, planning) for output in _selected(draft.shares[0].statement))


def _is_fixed(value: exp.Expr, draft: Draft, planning: Planning) -> bool:
    if isinstance(value, exp.Predicate | exp.Connector | exp.Not):
        return True
    if value.find(exp.Func) is not None:
        return False
    types = [_type(column, draft, planning) for column in value.find_all(exp.Column)]
    return all(kind.startswith("DECIMAL") or kind in _FIXED for kind in types)


def expected(draft: Draft, planning: Planning) -> list[tuple[int, int] | None]:
    """Rows and bytes that each share may give; None where a dataset's size is not known."""
    found: list[tuple[int, int] | None] = []
    wide = width(draft, planning)
    for infos, count in zip(draft.read, _of_shares(draft), strict=True):
        known = all(info.rows is not None for info in infos)
        found.append((round(count), round(count * wide)) if known else None)
    return found


def width(draft: Draft, planning: Planning) -> int:
    """Bytes of a row that a draft gives."""
    return sum(_width(output.unalias(), draft, planning) for output in _selected(draft.shares[0].statement))


def _type(column: exp.Column, draft: Draft, planning: Planning) -> str:
    """The type of a dataset's column; empty for one of a derived table."""
    info = draft.sources[0].get(column.table)
    return "" if info is None else planning.types(info.columns).get(fold(column.name), "")


def _selected(statement: exp.Expr) -> list[exp.Expr]:
    while not isinstance(statement, exp.Select):
        statement = statement.this
    return list(statement.selects)


def _width(value: exp.Expr, draft: Draft, planning: Planning) -> int:
    kind = _type(value, draft, planning) if isinstance(value, exp.Column) else ""
    if kind.startswith("DECIMAL"):
        return 16
    return _WIDTHS.get(kind, 8)


def share(draft: Draft) -> float:
    """Which share of its datasets' rows a draft's conditions leave."""
    first = draft.shares[0].statement
    return _left(first) if isinstance(first, exp.Select) else 1.0


def _of_shares(draft: Draft) -> list[float]:
    """The rows of each share: its largest dataset's, less what the conditions take away."""
    once = {id(share.statement): share.statement for share in draft.shares}
    taken = {tree: _taken(statement) for tree, statement in once.items()}
    found = []
    for share, infos in zip(draft.shares, draft.read, strict=True):
        left, most = taken[id(share.statement)]
        found.append(max(1.0, min(max(map(size, infos), default=1) * left, most)))
    return found


def _taken(statement: exp.Expr) -> tuple[float, float]:
    """Which share of the rows a statement leaves, and how many it gives at most."""
    if not isinstance(statement, exp.Select):
        return 1.0, math.inf
    if statement.args.get("group") is None and trees.aggregates(statement):
        return 1.0, 1.0
    limit = statement.args.get("limit")
    return _left(statement), math.inf if limit is None else float(limit.expression.this)


def _left(statement: exp.Select) -> float:
    clause = statement.args.get("where")
    found = 1.0 if clause is None else _all(clause.this)
    return found * (_SUBQUERY if statement.args.get("having") is not None else 1.0)


def _selectivity(condition: exp.Expr) -> float:
    nodes = trees.nodes(condition)
    kinds = set(map(type, nodes))
    if not kinds.isdisjoint(QUERIES):
        return _EXISTS if exp.Exists in kinds else _SUBQUERY
    if len(trees.tables_read(nodes)) > 1:  # a join: its rows are those of its largest table
        return 1.0
    if isinstance(condition, exp.EQ | exp.Like | exp.ILike):
        return _EQUAL
    if isinstance(condition, exp.Not | exp.NEQ):
        return _MOST
    return _SHARE


def _all(condition: exp.Expr, known: frozenset[exp.Expr] = frozenset()) -> float:
    """Of an AND; what is `known` to hold around it takes nothing away any more."""
    found, here = 1.0, [one for one in trees.conjuncts(condition) if not known or one not in known]
    for one in here:
        if isinstance(one, exp.Or):
            around = known.union(other for other in here if other is not one)
            found *= min(_MOST, sum(_all(branch, around) for branch in trees.disjuncts(one)))
        else:
            found *= _selectivity(one)
    return found


def size(info: TableInfo) -> int:
    return UNKNOWN if info.rows is None else info.rows


def distinct(infos: Iterable[TableInfo], column: str) -> int | None:
    """Distinct values of a column, where every share says so."""
    found = [info.ndv.get(column) for info in infos]
    return sum(one for one in found if one is not None) if found and None not in found else None
