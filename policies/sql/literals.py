"""Compares a dimension with literals in the dimension's own type, so that no row is cast and no comparison can fail.

For two types an engine casts the column row by row to a common type; an overflow is an error that reveals a row, and
literals with more and more digits reveal its value. So the literal is converted before any row is read: exactly, or the
comparison becomes true or false for every value. Pure; must not know contracts.
"""

from __future__ import annotations

import decimal
import math
import re
import struct
from collections.abc import Callable, Sequence
from datetime import UTC, date, datetime
from decimal import Decimal

from sqlglot import exp

from policies.contracts import columns
from policies.enforce import policy_view

_Comparison = type[exp.Binary]

TURNED: dict[_Comparison, _Comparison] = {
    exp.EQ: exp.EQ, exp.NEQ: exp.NEQ, exp.LT: exp.GT, exp.LTE: exp.GTE, exp.GT: exp.LT, exp.GTE: exp.LTE,
}  # fmt: skip
_DIGITS_MAX = 60  # before the point: more than any type has
_TOO_FINE = re.compile(r"[.,]\d{7}")
_STEPS = {"TIMESTAMP_S": 1_000_000, "TIMESTAMP_MS": 1000}  # microseconds
_NS_YEARS = (1678, 2261)  # whole years that 64 bits of nanoseconds hold


def fit_comparison(column: exp.Expr, operator: _Comparison, literal: exp.Expr, type_: str) -> exp.Expr:
    """Return `column operator literal` for a column of `type_`.

    Raises: ValueError with what was expected and what came.
    """
    family = columns.family(type_)
    if family in (columns.INTEGER, columns.DECIMAL):
        return _exact(column, operator, literal, type_)
    subject = policy_view.try_cast(column.copy(), "VARCHAR") if family == columns.ENUM else column.copy()
    return operator(this=subject, expression=_READ[family](literal, type_))


def fit_membership(column: exp.Expr, literals: Sequence[exp.Expr], type_: str) -> exp.Expr:
    """Return `column IN (literals)`, without literals that no value can equal.

    Raises: ValueError as `fit_comparison`.
    """
    each = [fit_comparison(column, exp.EQ, literal, type_) for literal in literals]
    found = [one for one in each if isinstance(one, exp.EQ)]
    return exp.In(this=found[0].this, expressions=[one.expression for one in found]) if found else _never_true()


def literal_kind(value: object) -> str:
    """Return text, number, truth, the family of a typed time (DATE '2026-01-01'), or empty for anything else."""
    if isinstance(value, exp.Cast):
        return _TIMES.get(value.to.this, "") if literal_kind(value.this) == "text" else ""
    if isinstance(value, exp.Neg):
        return "number" if literal_kind(value.this) == "number" and isinstance(value.this, exp.Literal) else ""
    if isinstance(value, exp.Boolean):
        return "truth"
    if isinstance(value, exp.Literal):
        return "text" if value.is_string else "number"
    return ""


_TIMES = {
    exp.DType.DATE: columns.DATE,
    exp.DType.TIMESTAMP: columns.TIMESTAMP,
    exp.DType.TIMESTAMPNTZ: columns.TIMESTAMP,
    exp.DType.TIMESTAMPTZ: columns.TIMESTAMPTZ,
}
# A day compared with a time is its midnight; other mixed kinds could need a type that cannot hold the column's values.
FITTING: dict[str, tuple[str, ...]] = {
    **dict.fromkeys((columns.TEXT, columns.UUID, columns.ENUM), ("text",)),
    **dict.fromkeys(columns.NUMERIC, ("number",)),
    columns.DATE: ("text", columns.DATE),
    columns.TIMESTAMP: ("text", columns.DATE, columns.TIMESTAMP),
    columns.TIMESTAMPTZ: ("text", columns.DATE, columns.TIMESTAMPTZ),
    columns.BOOLEAN: ("truth",),
    columns.OTHER: (),
}


# whole numbers and decimals: the literal counted in the column's last digit


def _exact(column: exp.Expr, operator: _Comparison, literal: exp.Expr, type_: str) -> exp.Expr:
    low, high = _steps(_text(literal), columns.decimal_scale(type_))
    least, most = columns.value_range(type_)
    if operator in (exp.EQ, exp.NEQ):
        fits = low == high and least <= low <= most
        if not fits:
            return _never_true() if operator is exp.EQ else _always_true(column)
    bound = high if operator in (exp.LT, exp.GTE) else low
    if not least <= bound <= most:
        every = bound > most if operator in (exp.LT, exp.LTE) else bound < least
        return _always_true(column) if every else _never_true()
    return operator(this=column.copy(), expression=_literal(_format_steps(bound, type_), type_))


def _steps(text: str, scale: int) -> tuple[int, int]:
    """The number in steps of its column's last digit, rounded down and rounded up."""
    exact = decimal.Context(prec=len(text) + 100, Emin=decimal.MIN_EMIN, Emax=decimal.MAX_EMAX)
    try:
        number = Decimal(text)
        if number.is_zero():
            return 0, 0
        if number.adjusted() > _DIGITS_MAX:
            beyond = 10 ** (2 * _DIGITS_MAX) * (1 if number > 0 else -1)
            return beyond, beyond
        steps = number.scaleb(scale, context=exact)
        return tuple(int(steps.to_integral_value(way)) for way in (decimal.ROUND_FLOOR, decimal.ROUND_CEILING))  # type: ignore[return-value]
    except ArithmeticError:
        raise ValueError(f"expected a number such as 10 or 2.5, came {text[:40]}") from None


def _format_steps(steps: int, type_: str) -> str:
    scale = columns.decimal_scale(type_)
    digits = str(abs(steps)).rjust(scale + 1, "0")
    whole, part = digits[: len(digits) - scale], digits[len(digits) - scale :]
    return ("-" if steps < 0 else "") + whole + (f".{part}" if part else "")


# all other types: parsed here and written in one spelling


def _float(literal: exp.Expr, type_: str) -> exp.Expr:
    text = _text(literal)
    try:
        number = float(text)
        if type_.upper().strip() != "DOUBLE":
            struct.pack("<f", number)
    except (ValueError, OverflowError):
        number = math.inf
    if not math.isfinite(number):
        raise ValueError(f"expected a number that {type_} holds, came {text[:40]}")
    return _literal(repr(number), type_)


def _day(literal: exp.Expr, type_: str) -> exp.Expr:
    try:
        return _literal(date.fromisoformat(_text(literal)).isoformat(), type_)
    except ValueError:
        raise ValueError(f"expected a day such as '2026-01-31', came {_text(literal)[:40]!r}") from None


def _moment(literal: exp.Expr, type_: str) -> exp.Expr:
    text, zoned = _text(literal), columns.family(type_) == columns.TIMESTAMPTZ
    try:
        moment = datetime.fromisoformat(text)
        if zoned:  # the engine works in UTC
            moment = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    except (ValueError, OverflowError):
        raise ValueError(f"expected a time such as '2026-01-31 12:00:00', came {text[:40]!r}") from None
    if moment.tzinfo is not None and not zoned:
        raise ValueError(f"expected a time without a zone, came {text[:40]!r}")
    name = type_.upper().strip()
    if _TOO_FINE.search(text) or moment.microsecond % _STEPS.get(name, 1):
        raise ValueError(f"expected a time as fine as {type_} and microseconds, came {text[:40]!r}")
    if name == "TIMESTAMP_NS" and not _NS_YEARS[0] <= moment.year <= _NS_YEARS[1]:
        raise ValueError(f"expected a year from {_NS_YEARS[0]} to {_NS_YEARS[1]} for {type_}, came {text[:40]!r}")
    return _literal(moment.isoformat(sep=" "), type_)


def _uuid(literal: exp.Expr, type_: str) -> exp.Expr:
    return _literal(columns.parse_uuid(_text(literal)), type_)


def _keep_literal(literal: exp.Expr, type_: str) -> exp.Expr:
    return literal.copy()


_READ: dict[str, Callable[[exp.Expr, str], exp.Expr]] = {
    columns.FLOAT: _float,
    columns.DATE: _day,
    columns.TIMESTAMP: _moment,
    columns.TIMESTAMPTZ: _moment,
    columns.UUID: _uuid,
    columns.TEXT: _keep_literal,
    columns.ENUM: _keep_literal,
    columns.BOOLEAN: _keep_literal,
}


def _text(literal: exp.Expr) -> str:
    """The text of a literal of any kind."""
    if isinstance(literal, exp.Neg):
        return f"-{_text(literal.this)}"
    return str(literal.this.this if isinstance(literal, exp.Cast) else literal.this)


def _literal(text: str, type_: str) -> exp.Expr:
    return policy_view.try_cast(exp.Literal.string(text), type_)


def _never_true() -> exp.Expr:
    return exp.Boolean(this=False)


def _always_true(column: exp.Expr) -> exp.Expr:
    return exp.Not(this=exp.Is(this=column.copy(), expression=exp.Null()))
