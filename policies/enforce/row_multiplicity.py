"""Which datasets a statement draws on in a way that may put several rows of them into one row of the answer.

Rows are counted as they leave only where each row of the answer stands for one row of the dataset, which is there: in
statements of an allow-list of forms. What combines rows tells of several, and so does what asks that there be none:
`NOT EXISTS` over a table of guesses that the caller brought answers, in a single row, which of a million guesses about
all rows is right. So does the place of a row among the others: the row that comes after `OFFSET`, or that is the last
of a LIMIT further in, is another one for each number of rows before it, which a join has made of all rows together.
The first rows of the answer, in whatever order, are rows that the statement might have asked for by a condition.
"""

from __future__ import annotations

from collections.abc import Collection

from sqlglot import exp

from policies.sql import rewrite
from policies.sql.allowed_functions import SCALARS
from policies.sql.allowed_syntax import OPERATORS
from policies.sql.bind import BoundQuery

# What leaves each row by itself, wherever it stands; and what orders and cuts the answer, at its top.
_EACH: frozenset[type[exp.Expr]] = frozenset({
    exp.Select, exp.From, exp.Table, exp.TableAlias, exp.Subquery, exp.Join, exp.Where, exp.Exists, exp.Distinct,
    exp.Alias, exp.Column, exp.Identifier, exp.Star, exp.Ordered, exp.Paren, exp.Tuple, exp.Literal, exp.Boolean,
    exp.Null, exp.Cast, exp.TryCast, exp.DataType, exp.DataTypeParam, exp.Interval, exp.Var, *OPERATORS, *SCALARS,
})  # fmt: skip
_AT_THE_TOP = frozenset({exp.Order, exp.Limit})


def count_multiplied(
    tree: exp.Expr, bound: BoundQuery, counted: Collection[tuple[str, str]]
) -> dict[tuple[str, str], int]:
    """Of these datasets (owner, table), those that are drawn on so, and how often each stands in the statement."""
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
    """Whether each row of the answer stands for a row of this table: one that is joined, or that EXISTS or IN finds, as
    a condition that all rows of the answer meet."""
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
    """Whether only rows for which the source has one come out of the joins of its SELECT."""
    if node.arg_key != "this" or _word(source, "side") in ("LEFT", "FULL") or _word(source, "kind") == "ANTI":
        return False
    assert source.parent is not None
    joins = source.parent.args.get("joins") or ()
    later = joins[joins.index(source) + 1 :] if isinstance(source, exp.Join) else joins
    return all(_word(join, "side") not in ("RIGHT", "FULL") for join in later)


def _word(node: exp.Expr, name: str) -> str:
    return str(node.args.get(name) or "").upper()


def _condition(node: exp.Expr) -> exp.Where | None:
    """The WHERE that has this as a condition by itself, beside others at most."""
    while isinstance(node.parent, exp.And | exp.Paren):
        node = node.parent
    return node.parent if isinstance(node.parent, exp.Where) else None
