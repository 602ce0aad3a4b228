"""Expressions over one fragment's columns are computed there, where that moves fewer or narrower columns.

`l_extendedprice * (1 - l_discount)` is one column instead of two; a test of a text, like `p_type LIKE 'PROMO%'`, is a
truth value instead of the text. In a block with groups only what stands inside aggregates is looked at: elsewhere an
expression may be part of a key.
"""

from __future__ import annotations

from collections.abc import Iterator

from sqlglot import exp

from connector.federation.planner.select_block import Group
from policies.sql import syntax_tree as trees
from policies.sql.allowed_syntax import QUERIES

_TESTS = (exp.EQ, exp.NEQ, exp.GT, exp.GTE, exp.LT, exp.LTE, exp.Like, exp.ILike, exp.In, exp.Between, exp.Not, exp.And,
          exp.Or, exp.Is)  # fmt: skip
_NEVER = (exp.Column, exp.Alias, exp.Paren, exp.Ordered, exp.Star, exp.Distinct, exp.Tuple, exp.Filter, exp.Where)
Key = tuple[str, str]


def apply(select: exp.Select, group: Group) -> list[tuple[str, exp.Expr]]:
    """Named expressions for the fragment; the block reads them by these names instead."""
    first = group.sources[0]
    if first.nullable or (first.join is not None and not trees.is_inner(first.join)):
        return []
    candidates = _candidates(select, group)
    wide = group.types if candidates else {}
    found = [node for node in candidates if _fits(node, wide)]
    while found:
        alone = _alone(select, group, found)
        paying = [node for node in found if _pays(node, alone, wide)]
        if len(paying) == len(found):
            break
        found = paying  # what is not moved reads its columns, which are then needed by themselves
    return _named(found, select, group) if found else []


def _candidates(select: exp.Select, group: Group) -> list[exp.Expr]:
    """The largest expressions over the group's columns alone."""
    found: list[exp.Expr] = []
    stack, aliases = list(_places(select)), group.aliases
    while stack:
        node = stack.pop()
        if isinstance(node, QUERIES):
            continue
        tables = trees.column_tables(node)
        if not tables & aliases:
            continue  # nothing of the group's below
        branch = isinstance(node, exp.If) and isinstance(node.parent, exp.Case)  # no value by itself
        whole = tables <= aliases and not branch and not isinstance(node, _NEVER)
        if whole and not _mixed(node) and not trees.may_fail(node):  # there may be rows that a join or CASE leaves out
            found.append(node)
        else:
            stack.extend(node.iter_expressions())
    return found


_PARTS = (exp.AggFunc, exp.Window, exp.Subquery, exp.Order, exp.Group, *QUERIES)


def _mixed(node: exp.Expr) -> bool:
    """Whether a node is no plain computation over values of one row."""
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
    """Whether Arrow carries the result as it is."""
    kinds = [types.get((column.table, column.name), "") for column in trees.columns(node)]
    return all(kind and kind != "HUGEINT" for kind in kinds)


def _alone(select: exp.Select, group: Group, found: list[exp.Expr]) -> set[Key]:
    """Columns of the group that are read by these expressions only."""
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


def _named(found: list[exp.Expr], select: exp.Select, group: Group) -> list[tuple[str, exp.Expr]]:
    names: dict[exp.Expr, str] = {}  # trees compare by what they say
    taken = group.taken(select)
    for node in found:
        if node not in names:
            names[node.copy()] = trees.free_name(f"x{len(names)}", taken)
        node.replace(trees.column(names[node], group.name))
    return [(name, value) for value, name in names.items()]
