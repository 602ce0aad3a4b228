"""Writes a tree as SQL with the parentheses that it needs.

sqlglot's generator adds no parentheses, so a tree that was assembled rather than parsed (an expression substituted for
a column, a UNION under EXCEPT) could be read back as another tree. Every tree of this project becomes SQL here. Must
not know contracts.
"""

from __future__ import annotations

from sqlglot import exp
from sqlglot.dialects.duckdb import DuckDB

from policies.sql.allowed_syntax import QUERIES, SETS

_DIALECT = DuckDB()
_LEAVES = frozenset({exp.Column, exp.Literal, exp.Identifier, exp.Table, exp.DataType})  # names only below them

# Operator precedence where both parsers agree; operands that bind no tighter get parentheses.
_UNKNOWN, _OR, _AND, _NOT, _IS, _COMPARISON, _RANGE, _JOINED, _SUM, _PRODUCT, _SIGN, _ATOM = range(12)
_LEVELS: dict[type[exp.Expr], int] = {
    exp.Or: _OR,
    exp.And: _AND,
    exp.Not: _NOT,
    exp.Is: _IS,
    **dict.fromkeys((exp.EQ, exp.NEQ, exp.LT, exp.LTE, exp.GT, exp.GTE, exp.NullSafeEQ, exp.NullSafeNEQ), _COMPARISON),
    **dict.fromkeys((exp.Between, exp.In, exp.Like, exp.ILike, exp.Escape), _RANGE),
    exp.DPipe: _JOINED,
    **dict.fromkeys((exp.Add, exp.Sub), _SUM),
    **dict.fromkeys((exp.Mul, exp.Div, exp.IntDiv, exp.Mod), _PRODUCT),
    exp.Neg: _SIGN,
}
# The lowest level at which an operand needs no parentheses, by its argument.
_TRUTH = {"this": _JOINED, "expression": _JOINED}  # none of these is inside another without parentheses
_OPERANDS: dict[type[exp.Expr], dict[str, int]] = {
    exp.Or: {"this": _OR, "expression": _OR},
    exp.And: {"this": _AND, "expression": _AND},
    exp.Not: {"this": _NOT},
    exp.Is: _TRUTH,
    **{kind: _TRUTH for kind, level in _LEVELS.items() if level == _COMPARISON},
    exp.Between: {"this": _JOINED, "low": _JOINED, "high": _JOINED},
    exp.In: {"this": _JOINED},
    exp.Like: _TRUTH,
    exp.ILike: _TRUTH,
    exp.Escape: {"this": _RANGE, "expression": _ATOM},
    exp.DPipe: {"this": _JOINED, "expression": _SUM},
    **{kind: {"this": _SUM, "expression": _PRODUCT} for kind, level in _LEVELS.items() if level == _SUM},
    **{kind: {"this": _PRODUCT, "expression": _SIGN} for kind, level in _LEVELS.items() if level == _PRODUCT},
    exp.Neg: {"this": _SIGN},
}
_ARITHMETIC = (exp.Add, exp.Sub, exp.Mul, exp.Div, exp.IntDiv, exp.Mod, exp.Neg)
_HOLDERS = (*SETS, exp.CTE, exp.Subquery, exp.Exists)  # these write a query's parentheses themselves, or need none
_ENDINGS = ("with_", "order", "limit", "offset")


def write(tree: exp.Expr, *, identify: bool = True, spend: bool = False) -> str:
    """Return DuckDB's SQL for a tree, without comments, which parsers read differently.

    `identify`: quote every name. `spend`: the tree is not used again and may be changed.
    """
    tree = add_brackets(tree if spend else tree.copy())
    return _DIALECT.generate(tree, identify=identify, comments=False, copy=False)


def add_brackets(tree: exp.Expr) -> exp.Expr:
    """Add parentheses, in place, around every operand and query that would otherwise be read differently."""
    found = [tree]
    for node in found:  # grows while iterating
        kind = type(node)
        if kind in _LEAVES:
            continue
        if (operands := _OPERANDS.get(kind)) is not None:
            for name, least in operands.items():
                if _level(value := node.args[name]) < least:
                    node.set(name, exp.Paren(this=value))
            if kind is exp.Add and _ends_in_interval(node.this):
                node.set("this", exp.Paren(this=node.this))
        elif kind in SETS:
            _bracket_sides(node)
        elif isinstance(node, exp.Binary | exp.Unary) and not isinstance(node, exp.Func | exp.Paren):
            for name, value in node.args.items():
                if isinstance(value, exp.Expr) and _level(value) < _ATOM:
                    node.set(name, exp.Paren(this=value))
        for value in node.args.values():
            if isinstance(value, exp.Expr):
                found.append(_bracket_query(value, kind))
            elif type(value) is list:
                found.extend([_bracket_query(one, kind) for one in value if isinstance(one, exp.Expr)])
    return tree


def is_atom(node: exp.Expr) -> bool:
    """Return whether a node needs no parentheses anywhere: a column, literal, call, CASE, or parenthesised query."""
    return _level(node) == _ATOM


def _level(node: exp.Expr) -> int:
    level = _LEVELS.get(type(node))
    if level is not None:
        return level
    if isinstance(node, exp.Binary | exp.Unary) and not isinstance(node, exp.Func | exp.Paren):
        return _UNKNOWN
    return _ATOM


def _ends_in_interval(node: exp.Expr) -> bool:
    """Whether it ends in an interval: `INTERVAL '3' DAY + 1` is read as an interval of two parts."""
    while type(node) in _ARITHMETIC:
        node = node.args.get("expression") or node.this
    return type(node) is exp.Interval


def _bracket_query(value: exp.Expr, holder: type[exp.Expr]) -> exp.Expr:
    """A query used as a value, in parentheses."""
    if type(value) in QUERIES and holder not in _HOLDERS:
        place = exp.Subquery()
        value.replace(place)
        place.set("this", value)
        return place
    return value


def _bracket_sides(node: exp.Expr) -> None:
    """Set operations are read from left to right, INTERSECT first; any other order needs parentheses."""
    left, right = node.args["this"], node.args["expression"]
    if type(left) in QUERIES and (_has_end_clause(left) or (type(left) in SETS and type(left) is not type(node))):
        node.set("this", exp.Subquery(this=left))
    if type(right) in QUERIES and (_has_end_clause(right) or type(right) in SETS):
        node.set("expression", exp.Subquery(this=right))


def _has_end_clause(query: exp.Expr) -> bool:
    return any(query.args.get(name) for name in _ENDINGS)
