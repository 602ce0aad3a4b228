"""Computes expressions over one fragment's columns at the owner, if that moves fewer or narrower columns.

`l_extendedprice * (1 - l_discount)` is one column instead of two. A test of a text, like `p_type LIKE 'PROMO%'`, is a
BOOLEAN instead of the text. In a block with groups, only expressions inside aggregates move: elsewhere they may be part
of a key.
"""

from __future__ import annotations

from collections.abc import Iterator

from sqlglot import exp

from connector.federation.planner.select_block import SourceGroup
from policies.sql import syntax_tree as trees
from policies.sql.allowed_syntax import QUERIES

_TESTS = (exp.EQ, exp.NEQ, exp.GT, exp.GTE, exp.LT, exp.LTE, exp.Like, exp.ILike, exp.In, exp.Between, exp.Not, exp.And,
          exp.Or, exp.Is)  # fmt: skip
_NEVER = (exp.Column, exp.Alias, exp.Paren, exp.Ordered, exp.Star, exp.Distinct, exp.Tuple, exp.Filter, exp.Where)
Key = tuple[str, str]


def apply(select: exp.Select, group: SourceGroup) -> list[tuple[str, exp.Expr]]:
    """Named expressions for the fragment. The block reads them by these names afterwards."""
    first = group.sources[0]
    if first.nullable or (first.join is not None and not trees.is_inner(first.join)):
        return []
    candidates = _candidates(select, group)
    wide = group.types if candidates else {}
    found = [node for node in candidates if _fits(node, wide)]
    while found:
        alone = _columns_read_only_in(select, group, found)
        paying = [node for node in found if _pays(node, alone, wide)]
        if len(paying) == len(found):
            break
        found = paying  # expressions that do not move still need their columns, so check the others again
    return _name_values(found, select, group) if found else []


def _candidates(select: exp.Select, group: SourceGroup) -> list[exp.Expr]:
    """The largest expressions over the group's columns only."""
    found: list[exp.Expr] = []
    stack, aliases = list(_places(select)), group.aliases
    while stack:
        node = stack.pop()
        if isinstance(node, QUERIES):
            continue
        tables = trees.column_tables(node)
        if not tables & aliases:
            continue  # no column of the group below
        branch = isinstance(node, exp.If) and isinstance(node.parent, exp.Case)  # a branch is no value
        whole = tables <= aliases and not branch and not isinstance(node, _NEVER)
        if (
            whole and not _is_not_plain(node) and not trees.may_fail(node)
        ):  # there may be rows that a join or CASE leaves out
            found.append(node)
        else:
            stack.extend(node.iter_expressions())
    return found


_PARTS = (exp.AggFunc, exp.Window, exp.Subquery, exp.Order, exp.Group, *QUERIES)


def _is_not_plain(node: exp.Expr) -> bool:
    """Whether a node is anything but a plain computation over values of one row."""
    plain = isinstance(node, exp.Binary | exp.Unary | exp.Func | exp.Between | exp.In)
    return not plain or any(isinstance(one, _PARTS) for one in node.walk())


def _places(select: exp.Select) -> Iterator[exp.Expr]:
    aggregates = trees.aggregates(select)
    if select.args.get("group") is not None or aggregates:
        for node in aggregates:
            function = node.this if isinstance(node, exp.Filter) else node
            yield from function.iter_expressions()
            if isinstance(node, exp.Filter):
                yield node.expression
        return
    for name, values in select.args.items():
        if name not in ("from_", "with_", "joins"):
            yield from (one for one in (values if isinstance(values, list) else [values]) if isinstance(one, exp.Expr))


def _fits(node: exp.Expr, types: dict[Key, str]) -> bool:
    """Whether Arrow carries the result unchanged."""
    kinds = [types.get((column.table, column.name), "") for column in trees.columns(node)]
    return all(kind and kind != "HUGEINT" for kind in kinds)


def _columns_read_only_in(select: exp.Select, group: SourceGroup, found: list[exp.Expr]) -> set[Key]:
    """Columns of the group that only these expressions read."""
    inside = {id(column) for node in found for column in trees.columns(node)}
    taken = {id(source.join) for source in group.outer}
    elsewhere: set[Key] = set()
    for name, values in select.args.items():
        for node in values if isinstance(values, list) else [values]:
            if isinstance(node, exp.Expr) and name not in ("from_", "with_") and id(node) not in taken:
                elsewhere |= {(c.table, c.name) for c in trees.columns(node) if id(c) not in inside}
    return {(c.table, c.name) for node in found for c in trees.columns(node)} - elsewhere


def _pays(node: exp.Expr, alone: set[Key], types: dict[Key, str]) -> bool:
    saved = {(column.table, column.name) for column in trees.columns(node)} & alone
    return len(saved) > 1 or (isinstance(node, _TESTS) and any(types.get(key) == "VARCHAR" for key in saved))


def _name_values(found: list[exp.Expr], select: exp.Select, group: SourceGroup) -> list[tuple[str, exp.Expr]]:
    names: dict[exp.Expr, str] = {}  # trees compare by content
    taken = group.used_names(select)
    for node in found:
        if node not in names:
            names[node.copy()] = trees.free_name(f"x{len(names)}", taken)
        node.replace(trees.column(names[node], group.name))
    return [(name, value) for value, name in names.items()]
