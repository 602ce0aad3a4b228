"""Which statements cannot fail over a row, whatever is in it: those need no guard against rows that the policy hides.

The engine chooses where it evaluates a condition of the user's, also before the policy's filter, and in joins it does.
One that fails over a hidden row (a sum too large, a text that is no number where one is compared with numbers) tells of
its values. An allow-list of forms, by the types of columns; what is not here may fail.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import date

from sqlglot import exp

from policies import columns
from policies.columns import fold
from policies.contract import DataContract

_DIGITS_MAX = 18  # of a whole number that is a BIGINT
_DECIMAL_MAX = 38
# What stands around columns and conditions, and computes nothing of a row.
_FRAME = frozenset({
    exp.Select, exp.From, exp.Where, exp.Table, exp.TableAlias, exp.Identifier, exp.Star, exp.Alias, exp.Paren, exp.And,
    exp.Or, exp.Not, exp.Null, exp.Boolean, exp.Group, exp.Order, exp.Ordered, exp.Limit, exp.Offset, exp.Distinct,
    exp.Subquery, exp.CTE, exp.With, exp.Join, exp.Count, exp.Min, exp.Max, exp.Column, exp.Literal,
})  # fmt: skip
_COMPARED = frozenset({exp.EQ, exp.NEQ, exp.LT, exp.LTE, exp.GT, exp.GTE})
_TRUTHS = _COMPARED | {
    exp.And, exp.Or, exp.Not, exp.Paren, exp.Boolean, exp.In, exp.Between, exp.Is, exp.Like, exp.ILike,
}  # fmt: skip
_DAYS = ("DATE", "TIMESTAMP")
_OF_TRUTHS = frozenset({exp.Where, exp.And, exp.Or, exp.Not, exp.Paren})


def quiet(nodes: Sequence[exp.Expr], contracts: Iterable[DataContract]) -> bool:
    """Whether no part of a statement, given as `every` node of it with safe casts, can fail over a row of the datasets
    with these contracts, which are all that it reads."""
    types = _types(contracts)
    return all((_frame(node, types) or _condition(node, types)) and _in_place(node, types) for node in nodes)


def _in_place(node: exp.Expr, types: Mapping[str, str]) -> bool:
    """Whether a truth stands where one must: anything else would be cast."""
    around = node.parent
    if type(around) in _OF_TRUTHS or (isinstance(around, exp.Join) and node is around.args.get("on")):
        return type(node) in _TRUTHS or columns.family(_type(node, types)) == columns.BOOLEAN
    return True


def _types(contracts: Iterable[DataContract]) -> Mapping[str, str]:
    """Of each column name, folded, its type; "" where it has several."""
    found: dict[str, str] = {}
    for contract in contracts:
        masked = {fold(mask.column) for mask in contract.masks}
        for column in contract.schema.columns:
            name, kind = fold(column.name), column.type.upper().strip()
            found[name] = kind if found.get(name, kind) == kind and name not in masked else ""
    return found


def _frame(node: exp.Expr, types: Mapping[str, str]) -> bool:
    kind = type(node)
    if kind is exp.Alias:  # a name that another column has would lend it that one's type
        value = node.this
        same = isinstance(value, exp.Column) and fold(value.name) == fold(node.alias)
        return same or fold(node.alias) not in types
    if kind is exp.TableAlias:
        return not node.args.get("columns")
    if kind is exp.Join and node.args.get("using"):
        return all(types.get(fold(one.name)) for one in node.args["using"])
    if kind in (exp.Sum, exp.Avg):  # a text would be cast
        return columns.family(_type(node.this, types)) in columns.NUMERIC
    if kind is exp.Neg:
        return isinstance(node.this, exp.Literal)
    if kind is exp.DataType:
        return isinstance(node.parent, exp.TryCast)
    if kind is exp.TryCast:
        return isinstance(node.this, exp.Literal)
    return kind in _FRAME


def _condition(node: exp.Expr, types: Mapping[str, str]) -> bool:
    kind = type(node)
    if kind in _COMPARED:
        return _alike(node.this, node.expression, types) or _alike(node.expression, node.this, types)
    if kind is exp.In:
        listed = node.args.get("expressions") or ()
        return bool(listed) and not node.args.get("query") and all(_alike(node.this, one, types) for one in listed)
    if kind is exp.Between:
        return all(_alike(node.this, node.args[end], types) for end in ("low", "high"))
    if kind is exp.Is:
        return isinstance(node.this, exp.Column) and isinstance(node.expression, exp.Null)
    if kind is exp.Like or kind is exp.ILike:
        return columns.family(_type(node.this, types)) == columns.TEXT and _is_text(node.expression)
    return False


def _alike(column: exp.Expr, value: exp.Expr, types: Mapping[str, str]) -> bool:
    """Whether a column is compared with a value as it is: none of both is cast in a way that could fail. Also where the
    value is a constant that cannot be cast the engine says so over the first row that it comes to."""
    if isinstance(column, exp.Count):
        return _is_whole(value)
    kind = _type(column, types)
    if (family := columns.family(kind)) == columns.OTHER:
        return False
    if isinstance(value, exp.Column):
        return _type(value, types) == kind
    if isinstance(value, exp.TryCast):
        return isinstance(value.this, exp.Literal) and kind in _DAYS and value.to.sql("duckdb").upper() == kind
    if _is_text(value):
        return family == columns.TEXT or (family == columns.DATE and _is_day(str(value.this)))
    if family == columns.INTEGER:
        return _is_whole(value) and kind != "UHUGEINT"  # that would be cast
    if family == columns.FLOAT:
        return 0 < _digits(value) <= _DIGITS_MAX
    if family == columns.DECIMAL:
        return 0 < _digits(value) <= _DECIMAL_MAX - columns.decimal_width(kind)
    return False


def _type(node: exp.Expr, types: Mapping[str, str]) -> str:
    """Of a column whose type is known; else empty, which is of no family."""
    return types.get(fold(node.name), "") if isinstance(node, exp.Column) else ""


def _is_text(value: exp.Expr) -> bool:
    return isinstance(value, exp.Literal) and bool(value.is_string)


def _is_day(text: str) -> bool:
    try:
        return date.fromisoformat(text).isoformat() == text
    except ValueError:
        return False


def _is_whole(value: exp.Expr) -> bool:
    number = value.this if isinstance(value, exp.Neg) else value
    return 0 < _digits(number) <= _DIGITS_MAX and str(number.this).isdecimal()


def _digits(value: exp.Expr) -> int:
    """How many a number has; 0 for what is none, or is written with an exponent."""
    number = value.this if isinstance(value, exp.Neg) else value
    if not isinstance(number, exp.Literal) or number.is_string:
        return 0
    text = str(number.this)
    return len(text) if text.replace(".", "", 1).isdecimal() else 0
