"""Finds datasets whose rows may be combined, several into one row of the answer.

Rows are counted as they leave only when each row of the answer stands for one existing row of the dataset, which an
allow-list of query forms ensures. Aggregates and windows combine rows. `NOT EXISTS` over a caller's table of a million
guesses answers, in one row, which guess about all rows is right. A row after OFFSET, or at the end of an inner LIMIT,
depends on the number of rows before it. The first rows of the whole answer are harmless: a condition could have
selected them.
"""

from __future__ import annotations

from collections.abc import Collection

from sqlglot import exp

from policies.sql import rewrite
from policies.sql.allowed_functions import SCALARS
from policies.sql.allowed_syntax import OPERATORS
from policies.sql.bind import BoundQuery

# Nodes that keep rows separate anywhere; and those that order and cut the answer, allowed at its top.
_EACH: frozenset[type[exp.Expr]] = frozenset({
    exp.Select, exp.From, exp.Table, exp.TableAlias, exp.Subquery, exp.Join, exp.Where, exp.Exists, exp.Distinct,
    exp.Alias, exp.Column, exp.Identifier, exp.Star, exp.Ordered, exp.Paren, exp.Tuple, exp.Literal, exp.Boolean,
    exp.Null, exp.Cast, exp.TryCast, exp.DataType, exp.DataTypeParam, exp.Interval, exp.Var, *OPERATORS, *SCALARS,
})  # fmt: skip
_AT_THE_TOP = frozenset({exp.Order, exp.Limit})


def count_multiplied(
    tree: exp.Expr, bound: BoundQuery, counted: Collection[tuple[str, str]]
) -> dict[tuple[str, str], int]:
    """Return which of the `counted` datasets (owner, table) are used this way, and how often each occurs."""
    if not counted:
        return {}
    each = all(_is_row_by_row(node, tree) for node in rewrite.list_nodes(tree))
    places: dict[tuple[str, str], list[exp.Table]] = {name: [] for name in counted}
    for node, entry in bound.tables:
        if (entry.owner, entry.table) in places:
            places[entry.owner, entry.table].append(node)
    return {
        name: len(nodes)
        for name, nodes in places.items()
        if not each or len(nodes) > 1 or not all(map(_must_have_row, nodes))
    }


def _is_row_by_row(node: exp.Expr, tree: exp.Expr) -> bool:
    return type(node) in _EACH or (type(node) in _AT_THE_TOP and node.parent is tree)


def _must_have_row(table: exp.Expr) -> bool:
    """Whether each row of the answer needs a row of this table: it is joined, or EXISTS or IN over it is a condition
    that every row of the answer meets.
    """
    node: exp.Expr | None = table
    while node is not None and (parent := node.parent) is not None:
        if isinstance(parent, exp.From | exp.Join):
            if not _requires_match(parent, node):
                return False
            node = parent.parent
        elif isinstance(parent, exp.Exists) or (isinstance(parent, exp.In) and node.arg_key == "query"):
            if (where := _condition(parent)) is None:
                return False
            node = where.parent
        elif isinstance(parent, exp.Subquery):
            node = parent
        else:
            return False
    return True


def _requires_match(source: exp.From | exp.Join, node: exp.Expr) -> bool:
    """Whether only rows with a match in this source leave the joins of its SELECT."""
    if node.arg_key != "this" or _word(source, "side") in ("LEFT", "FULL") or _word(source, "kind") == "ANTI":
        return False
    assert source.parent is not None
    joins = source.parent.args.get("joins") or ()
    later = joins[joins.index(source) + 1 :] if isinstance(source, exp.Join) else joins
    return all(_word(join, "side") not in ("RIGHT", "FULL") for join in later)


def _word(node: exp.Expr, name: str) -> str:
    return str(node.args.get(name) or "").upper()


def _condition(node: exp.Expr) -> exp.Where | None:
    """The WHERE that has this as a condition on its own, perhaps among others."""
    while isinstance(node.parent, exp.And | exp.Paren):
        node = node.parent
    return node.parent if isinstance(node.parent, exp.Where) else None
