"""The policy view: a contract as the SELECT that replaces its dataset (step 5 of the gate).

Row filter, masks and grid become a subquery over the physical relation; every policy value is a bound parameter. In a
hidden row every column is NULL (`select_permitted`), whatever order the engine evaluates in, so the consumer's
expressions cannot see it. Must not know the consumer's query.
"""

from __future__ import annotations

import hashlib
import hmac
import sys
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from fractions import Fraction
from functools import lru_cache, reduce
from typing import Any

from sqlglot import exp

from policies.contracts import columns
from policies.contracts.contract import Comparison, Connected, DataContract, Mask, MaskKind, RowFilter, Scalar
from policies.contracts.masks import MASKS
from policies.evaluation.values import format_decimal
from policies.sql.rewrite import hide_bounds


@dataclass(slots=True)
class Parameters:
    """Values bound to the statement as `$p0`, `$p1`, ...; equal values share one."""

    values: dict[str, Scalar] = field(default_factory=dict)
    _seen: dict[tuple[type, Scalar], str] = field(default_factory=dict)

    def add(self, value: Scalar) -> exp.Expr:
        """Return a placeholder for `value`."""
        key = (type(value), value)
        name = self._seen.get(key)
        if name is None:
            name = self._seen[key] = f"p{len(self.values)}"
            self.values[name] = value
        return exp.Placeholder(this=name)


@dataclass(frozen=True, slots=True)
class StatementBuilder:
    """The context of one statement: its parameters, a source of random names, and the key of hash masks."""

    parameters: Parameters
    token: Callable[[], str]
    mask_key: bytes


def wrap_rows(
    contract: DataContract,
    relation: str,
    shown: Sequence[str],
    maker: StatementBuilder,
    *,
    passed_through: Collection[str] = (),
    equal_time: bool = False,
) -> exp.Select:
    """Return the rows of `relation` that the contract permits, with the columns `shown`, masked.

    `passed_through`, `equal_time`: see `select_permitted`.
    """
    source = maker.token()
    outputs = [_visible_output(contract, name, source, maker) for name in shown]
    condition = filter_condition(contract, source, maker)
    return select_permitted(
        outputs, relation, source, condition, maker, passed_through=passed_through, equal_time=equal_time
    )


def select_permitted(
    outputs: Sequence[exp.Expr],
    relation: str,
    source: str,
    condition: exp.Expr | None,
    maker: StatementBuilder,
    *,
    passed_through: Collection[str] = (),
    equal_time: bool = False,
) -> exp.Select:
    """Return `outputs` of the rows of `relation` (alias `source`) that fulfil `condition`, if any.

    In other rows the outputs are NULL, except columns in `passed_through`, which the statement only passes on: the
    engine may evaluate an output before it removes the row, and its time or an error would reveal the row. Values do
    not come as positions in a file's dictionary either, unless all uses take equal time (`equal_time`): the engine
    computes a function once for each dictionary value, including values of hidden rows only, and skips a CASE whose
    condition is true for all rows at hand. TRY yields plain values (decision 45).
    """
    looked_at = {output.alias_or_name for output in outputs}.difference(passed_through)
    if condition is None or not looked_at:
        outputs = outputs or [_named_output(exp.Literal.number(1), source)]
        where = None if condition is None else exp.Where(this=condition)
        return exp.Select(expressions=outputs, from_=exp.From(this=aliased_relation(relation, source)), where=where)
    around, kept = maker.token(), maker.token()
    inner = exp.Select(
        expressions=[*outputs, _named_output(condition, kept)], from_=exp.From(this=aliased_relation(relation, source))
    )
    shown = [
        _hide_if_filtered(kept, output.alias_or_name, around, equal_time=equal_time)
        if output.alias_or_name in looked_at
        else stored_column(output.alias_or_name, around)
        for output in outputs
    ]
    return exp.Select(
        expressions=shown,
        from_=exp.From(this=exp.Subquery(this=inner, alias=exp.TableAlias(this=_quoted_name(around)))),
        where=exp.Where(this=stored_column(kept, around)),
    )


def _hide_if_filtered(kept: str, name: str, source: str, *, equal_time: bool) -> exp.Expr:
    value = stored_column(name, source)
    plain = value if equal_time else exp.Try(this=value)
    return _named_output(exp.Case(ifs=[exp.If(this=stored_column(kept, source), true=plain)]), name)


def _visible_output(contract: DataContract, name: str, source: str, maker: StatementBuilder) -> exp.Expr:
    value = masked_column(contract, name, source, maker)
    return value if type(value) is exp.Column else _named_output(value, name)  # a stored column has its name


def _named_output(value: exp.Expr, name: str) -> exp.Expr:
    return exp.Alias(this=value, alias=_quoted_name(name))


def _quoted_name(name: str) -> exp.Identifier:
    return exp.Identifier(this=name, quoted=True)


def aliased_relation(relation: str, alias: str) -> exp.Table:
    """Return the physical relation under a random alias, so that no column can be mistaken for it."""
    return exp.Table(
        this=_quoted_name(relation),
        alias=exp.TableAlias(this=_quoted_name(alias)),
    )


def filter_condition(contract: DataContract, source: str, maker: StatementBuilder) -> exp.Expr | None:
    """Return the row filter as a condition, or None."""
    if contract.row_filter is None:
        return None
    return _filter(contract.row_filter, contract, source, maker, exact=False)


def stored_column(name: str, source: str) -> exp.Expr:
    return exp.Column(this=_quoted_name(name), table=_quoted_name(source))


def masked_column(contract: DataContract, name: str, source: str, maker: StatementBuilder) -> exp.Expr:
    """Return the column as the contract shows it: unchanged or masked."""
    mask = next((one for one in contract.masks if one.column == name), None)
    raw = stored_column(name, source)
    if mask is None:
        return raw
    if (word := MASKS.get(mask.kind)) is not None:
        made: exp.Expr = word.build(raw, mask.argument, maker)
        return made
    return _MASKS[MaskKind(mask.kind)](raw, mask, column_type(contract, name), maker)


def column_type(contract: DataContract, name: str) -> str:
    """Return the declared type of a column of the contract's schema."""
    found = columns.find_column(contract.schema, name)
    if found is None:
        raise KeyError(f"the contract's schema has no column {name}")
    return found.type


# masks


def _null(raw: exp.Expr, mask: Mask, type_: str, maker: StatementBuilder) -> exp.Expr:
    return try_cast(exp.Null(), type_)


def _hash(raw: exp.Expr, mask: Mask, type_: str, maker: StatementBuilder) -> exp.Expr:
    """Nested SHA-256 with two keys derived from the owner's key, each one block long. NULL stays NULL."""
    inner, outer = (maker.parameters.add(_derive_key(maker.mask_key, label)) for label in (b"inner", b"outer"))
    text = try_cast(raw, "VARCHAR")
    return _sha256(exp.DPipe(this=outer, expression=_sha256(exp.DPipe(this=inner, expression=text))))


def _derive_key(key: bytes, label: bytes) -> str:
    return hmac.new(key, b"hanse mask " + label, hashlib.sha256).hexdigest()


def _sha256(value: exp.Expr) -> exp.Expr:
    return exp.Anonymous(this="sha256", expressions=[value])


def _truncate(raw: exp.Expr, mask: Mask, type_: str, maker: StatementBuilder) -> exp.Expr:
    return exp.Left(this=try_cast(raw, "VARCHAR"), expression=maker.parameters.add(mask.argument))


def _round(raw: exp.Expr, mask: Mask, type_: str, maker: StatementBuilder) -> exp.Expr:
    """The value rounded in its own type; NULL when it does not fit, because an error would reveal it."""
    digits = exp.Literal.number(int(mask.argument or 0))  # a parameter would hide the type's new scale
    return unsigned_zero(try_cast(_null_on_error(exp.Round(this=raw, decimals=digits)), type_), type_)


def _null_on_error(value: exp.Expr) -> exp.Expr:
    return exp.Anonymous(this="try", expressions=[value])


def _generalise(raw: exp.Expr, mask: Mask, type_: str, maker: StatementBuilder) -> exp.Expr:
    if isinstance(mask.argument, str):
        period = exp.Literal.string(mask.argument)
        raw = hide_bounds(raw) if mask.argument == "week" else raw
        return try_cast(_null_on_error(exp.Anonymous(this="date_trunc", expressions=[period, raw])), type_)
    return unsigned_zero(try_cast(bin_edge(raw, mask.argument or 1, type_, maker), type_), type_)


def bin_edge(raw: exp.Expr, width: float, type_: str, maker: StatementBuilder) -> exp.Expr:
    """Return the lower edge of the value's bin: exact for integers and decimals; for floats see `_nearest`."""
    step = Decimal(str(width))
    kind = _step_type(type_, step)
    return _exact(raw, step, kind, maker) if kind else _nearest(raw, step, type_, maker)


def edge_type(type_: str, width: float) -> str:
    """Return the type in which the edges of these bins are exact; empty for floats and when no type is precise
    enough.
    """
    step = Decimal(str(width))
    kind = _step_type(type_, step)
    return kind if kind and Fraction(step) <= _greatest(kind) else ""


def _step_type(type_: str, step: Decimal) -> str:
    """The narrowest type that holds every value of the column and the step; empty for floats and when no type does."""
    if columns.family(type_) == columns.FLOAT:
        return ""
    least, most = columns.value_range(type_)
    whole, _, part = format_decimal(step).partition(".")
    if columns.family(type_) == columns.INTEGER and not part:
        holding = [
            one for one in _WHOLE if columns.value_range(one)[0] <= least and most <= columns.value_range(one)[1]
        ]
        return next((one for one in holding if step <= columns.value_range(one)[1]), holding[0])
    digits, scale = len(str(most)) - columns.decimal_scale(type_), max(columns.decimal_scale(type_), len(part))
    width = max(digits, len(whole)) + scale
    width = width if width <= _DECIMAL_MAX else digits + scale
    return f"DECIMAL({width}, {scale})" if width <= _DECIMAL_MAX else ""


def _greatest(kind: str) -> Fraction:
    return Fraction(columns.value_range(kind)[1], 10 ** columns.decimal_scale(kind))


_WHOLE = ("BIGINT", "UBIGINT", "HUGEINT", "UHUGEINT")
_DECIMAL_MAX = 38


def _exact(raw: exp.Expr, step: Decimal, kind: str, maker: StatementBuilder) -> exp.Expr:
    """The value minus its remainder, which has its sign; NULL when the result is below all numbers of `kind`."""
    value, zero = try_cast(raw, kind), exp.Literal.number(0)
    if Fraction(step) > _greatest(kind):  # there are two bins
        below = exp.If(this=exp.LT(this=value.copy(), expression=zero.copy()), true=maker.parameters.add(-float(step)))
        return exp.Case(ifs=[exp.If(this=exp.GTE(this=value, expression=zero), true=zero.copy()), below])
    size = try_cast(maker.parameters.add(format_decimal(step)), kind)
    rest = exp.Mod(this=value.copy(), expression=size)
    under = exp.If(this=exp.LT(this=rest.copy(), expression=zero), true=size.copy())
    lower = exp.Case(ifs=[under], default=try_cast(exp.Literal.number(0), kind))
    edge = exp.Sub(this=exp.Sub(this=value, expression=rest), expression=lower)
    return _null_on_error(edge)


def _nearest(raw: exp.Expr, step: Decimal, type_: str, maker: StatementBuilder) -> exp.Expr:
    """The greatest edge not above the value, where edges are the nearest floats to the true edges.

    So 0.3 is in the bin of 0.3 for steps of 0.1, although the binary 0.3 is less than three binary 0.1. Numbers so
    large that they are further apart than the edges are edges themselves; where a product loses its last digits, such a
    number may be assigned to the next lower edge.
    """
    type_ = type_ if columns.family(type_) == columns.FLOAT else "DOUBLE"
    times, parts = step.as_integer_ratio()
    value = try_cast(raw, "DOUBLE")
    share = exp.Div(this=value.copy(), expression=maker.parameters.add(float(step)))

    def edge(more: int) -> exp.Expr:
        count = exp.Add(this=exp.Floor(this=share.copy()), expression=exp.Literal.number(more))
        made: exp.Expr = exp.Paren(this=count)
        if times != 1:
            made = exp.Mul(this=made, expression=maker.parameters.add(float(times)))
        return made if parts == 1 else exp.Div(this=made, expression=maker.parameters.add(float(parts)))

    # A finite number must not get an infinite edge by overflow.
    bounds = {"low": maker.parameters.add(-sys.float_info.max), "high": try_cast(raw.copy(), type_)}
    fits = [
        exp.If(this=exp.Between(this=try_cast(edge(more), type_), **bounds), true=edge(more)) for more in (1, 0, -1)
    ]
    return exp.Case(ifs=fits, default=value)


def unsigned_zero(value: exp.Expr, type_: str) -> exp.Expr:
    """Return 0 for -0, whose sign would reveal what was rounded, or the first row of a cell."""
    if columns.family(type_) != columns.FLOAT:
        return value
    # The engine simplifies `x + 0`, and `CASE WHEN x = 0 THEN 0`, to x.
    is_zero = exp.EQ(this=value.copy(), expression=exp.Literal.number(0))
    return exp.Case(ifs=[exp.If(this=is_zero, true=exp.Abs(this=value.copy()))], default=value)


_MASKS = {
    MaskKind.NULL: _null,
    MaskKind.HASH: _hash,
    MaskKind.TRUNCATE: _truncate,
    MaskKind.ROUND: _round,
    MaskKind.GENERALISE: _generalise,
}


def try_cast(value: exp.Expr, type_: str) -> exp.Expr:
    """Return TRY_CAST: a value that does not fit becomes NULL; an error would quote it."""
    return exp.TryCast(this=value, to=_copy_type(_type_node(type_)), safe=True)


@lru_cache(maxsize=1024)
def _type_node(type_: str) -> exp.DataType:
    """Parse a type; cached, because the same few types occur in every query."""
    if '"NULL"' in type_:  # the type of an all-NULL column, which the parser does not accept as a name
        return exp.DataType(this=exp.DType.USERDEFINED, kind=type_)
    return exp.DataType.build(type_, dialect="duckdb")


def _copy_type(node: Any) -> Any:
    """Copy a type node; faster than `copy`, and every policy value needs a cast."""
    if isinstance(node, exp.Expr):
        return type(node)(**{name: _copy_type(value) for name, value in node.args.items()})
    return [_copy_type(one) for one in node] if type(node) is list else node


# row filters


def _filter(
    row_filter: RowFilter, contract: DataContract, source: str, maker: StatementBuilder, *, exact: bool
) -> exp.Expr:
    """The row filter as a condition. `exact`: unknown must stay NULL (inside xone); elsewhere NULL hides the row like
    false.
    """
    if isinstance(row_filter, Comparison):
        return exp.Paren(this=_comparison(row_filter, contract, source, maker, exact=exact))
    if row_filter.connective == "xone":
        return exp.Paren(this=_xone(row_filter, contract, source, maker))
    parts = [_filter(member, contract, source, maker, exact=exact) for member in row_filter.members]
    join = exp.And if row_filter.connective == "and" else exp.Or
    return exp.Paren(this=reduce(lambda left, right: join(this=left, expression=right), parts))


def _xone(group: Connected, contract: DataContract, source: str, maker: StatementBuilder) -> exp.Expr:
    """Two satisfied members: false. Otherwise an unknown member: unknown. Otherwise: whether one is satisfied."""
    zero, one = exp.Literal.number(0), exp.Literal.number(1)
    members = [_filter(member, contract, source, maker, exact=True) for member in group.members]
    satisfied: exp.Expr | None = None
    unknown: exp.Expr | None = None
    for member in members:
        counted = exp.Case(ifs=[exp.If(this=member.copy(), true=one.copy())], default=zero.copy())
        satisfied = counted if satisfied is None else exp.Add(this=satisfied, expression=counted)
        missing = exp.Is(this=member.copy(), expression=exp.Null())
        unknown = missing if unknown is None else exp.Or(this=unknown, expression=missing)
    assert satisfied is not None
    assert unknown is not None
    total = exp.Paren(this=satisfied)
    return exp.Case(
        ifs=[
            exp.If(this=exp.GT(this=total.copy(), expression=one.copy()), true=exp.Boolean(this=False)),
            exp.If(this=unknown, true=exp.Null()),
        ],
        default=exp.EQ(this=total, expression=one),
    )


def _comparison(
    comparison: Comparison, contract: DataContract, source: str, maker: StatementBuilder, *, exact: bool
) -> exp.Expr:
    type_ = column_type(contract, comparison.column)
    column, given = stored_column(comparison.column, source), comparison.values
    if held := [value for value in given if columns.can_hold(type_, value)]:
        given = tuple(held)  # of several values, it equals none of the others
    else:  # NULL in the column's type; this type holds both sides; lost digits do not matter so far away
        type_ = "TIMESTAMP"
        column = try_cast(column, type_)
    values = [_cast_parameter(maker.parameters.add(value), type_) for value in given]
    made = _OPERATORS[comparison.operator](column, values)
    if columns.family(type_) != columns.FLOAT:
        return made
    # NaN is unknown, but the engine treats it as the largest number, equal to itself.
    number = exp.LTE(this=column.copy(), expression=try_cast(exp.Literal.string("inf"), "DOUBLE"))
    if exact:
        return exp.Case(ifs=[exp.If(this=number, true=made)])
    return exp.And(this=number, expression=made)


def _cast_parameter(value: exp.Expr, type_: str) -> exp.Expr:
    """A parameter cast to the column's type, where a text or a binary fraction would compare differently."""
    kind = columns.family(type_)
    if kind == columns.DECIMAL:
        return try_cast(value, f"DECIMAL(38, {columns.decimal_scale(type_)})")
    if kind in columns.TEMPORAL or kind == columns.UUID:
        return try_cast(value, type_)
    return value


_Operator = Callable[[exp.Expr, list[exp.Expr]], exp.Expr]


def _binary(node: type[exp.Binary]) -> _Operator:
    return lambda column, values: node(this=column, expression=values[0])


_OPERATORS: dict[str, _Operator] = {
    "eq": _binary(exp.EQ),
    "neq": _binary(exp.NEQ),
    "lt": _binary(exp.LT),
    "lteq": _binary(exp.LTE),
    "gt": _binary(exp.GT),
    "gteq": _binary(exp.GTE),
    "isAnyOf": lambda column, values: exp.In(this=column, expressions=values),
    "isNoneOf": lambda column, values: exp.Not(this=exp.In(this=column, expressions=values)),
}
