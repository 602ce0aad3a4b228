"""Values of a prepared statement, written into its SQL as literals; and of which kinds they will be. Pure.

The statement is cut at its `?` by the gate's own tokenizer and a literal of the value's type stands in each place; the
gate then reads the whole as any other query, so a value can say no more than its sender could have written itself.
Clients of JDBC set no parameter whose type they are not told: it is that of what it is compared with.
"""

from __future__ import annotations

import re
from collections import ChainMap
from collections.abc import Callable, Mapping, Sequence
from datetime import date, datetime, time
from typing import TYPE_CHECKING, NoReturn

from connector.errors import QueryInvalid
from policies.contracts import columns
from policies.contracts.columns import fold
from policies.errors import PolicyError

if TYPE_CHECKING:  # the SQL parser is loaded with the first statement
    from sqlglot import exp

MOST = 1_000
_DIGITS = 18  # of a number that is looked at
_DECIMAL_MAX = 38  # digits of the engine's decimals
_MARK = 8_200_000_000_000  # and up: whole numbers that stand for the parameters of a statement while it is looked at

Value = Sequence[str]  # a type of ours and the value as text: ("int", "5"), ("text", "a"), ("null", "")


def bound(sql: str, values: Sequence[Value]) -> str:
    """The SQL with its values in place of the `?`, in order. QueryInvalid where they do not fit, QueryRefused where it
    cannot be cut into words. In a thread where it is long: hostile text takes its time."""
    places = _places(sql)
    return _written(sql, places, values)


def _written(sql: str, places: Sequence[int], values: Sequence[Value]) -> str:
    if len(places) != len(values):
        raise QueryInvalid(
            f"expected values for {len(places)} parameters, came {len(values)}; bind one row of them, then execute",
            code="parameters_unbound",
        )
    parts, at = [], 0
    for number, (place, value) in enumerate(zip(places, values, strict=True), 1):
        before, after = sql[at:place], sql[place + 1 : place + 2]
        parts += [before, " " * _joins(before[-1:]), _literal(number, *value), " " * _joins(after)]
        at = place + 1
    return "".join((*parts, sql[at:]))


def kinds(sql: str, types: dict[str, str]) -> list[str]:
    """Of which kind each `?` of a statement is likely to be, as `Value` has them; "" where nobody can say. None of them
    for a statement without.

    `types`: the engine's types by the names of columns, in small letters. QueryRefused where it cannot be cut into
    words. In a thread: hostile text takes its time.
    """
    places = _places(sql)
    if not places:
        return []
    from sqlglot import exp

    from policies.sql import parse

    many = len(places)
    found = [""] * many
    try:
        tree = parse.unchecked(_written(sql, places, [("int", str(_MARK + number)) for number in range(many)]))
    except PolicyError:  # it is told when it is asked
        return found
    shown = ChainMap(dict.fromkeys(_renamed(tree, types), ""), types)
    for one in tree.find_all(exp.Literal):
        if 0 <= (number := _int_of(one) - _MARK) < many:
            found[number] = _asked_for(one, shown)
    return found


def _renamed(tree: exp.Expr, types: Mapping[str, str]) -> set[str]:
    """Names of columns that the statement gives to what is of another kind: a fraction that is compared with such must
    not lose its part behind the point, as it does in JDBC for a whole number."""
    from sqlglot import exp

    found = {
        name
        for one in tree.find_all(exp.Alias)
        if (name := fold(one.alias)) in types and _kind(one.this, types) != kind_of(types[name])
    }
    for listed in tree.find_all(exp.TableAlias):  # WITH t(a, b) AS
        found |= {fold(column.name) for column in listed.args.get("columns") or ()}
    return found


def _int_of(literal: exp.Expr) -> int:
    """The whole number that it is; 0 of anything else."""
    text = str(literal.this)
    plain = not literal.is_string and len(text) < _DIGITS and text.isascii() and text.isdigit()
    return int(text) if plain else 0


def _asked_for(one: exp.Expr, types: Mapping[str, str]) -> str:
    """The kind of what stands beside a value."""
    from sqlglot import exp

    around = one.parent
    while isinstance(around, exp.Paren | exp.Neg):
        one, around = around, around.parent
    if isinstance(around, exp.Limit | exp.Offset):
        return "int"
    if isinstance(around, exp.Cast):
        return _cast_to(around)
    if isinstance(around, exp.Like | exp.ILike | exp.DPipe):
        return "text"
    if isinstance(around, exp.Between | exp.In):
        return _kind(around.this, types) if around.this is not one else ""
    if not isinstance(around, exp.Binary):
        return ""
    beside = _kind(around.right if around.left is one else around.left, types)
    if isinstance(around, exp.Add | exp.Sub | exp.Mul | exp.Div | exp.Mod):
        return "float" if beside in ("int", "float") else ""  # days are added to dates
    return beside


def _kind(node: exp.Expr, types: Mapping[str, str]) -> str:
    """Of what some syntax gives."""
    from sqlglot import exp

    while isinstance(node, exp.Paren | exp.Sum | exp.Min | exp.Max | exp.Abs | exp.Round | exp.Coalesce):
        node = node.this  # of `min()`, nothing
    if isinstance(node, exp.Column):
        return kind_of(types.get(fold(node.name), ""))
    if isinstance(node, exp.Cast):
        return _cast_to(node)
    if isinstance(node, exp.Literal) and not node.is_string:
        return "" if _int_of(node) >= _MARK else "float"  # any number fits
    if isinstance(node, exp.Literal | exp.Lower | exp.Upper | exp.Trim | exp.Substring | exp.Left | exp.Right):
        return "text"
    if isinstance(node, exp.Count | exp.Length | exp.Extract | exp.Year | exp.Quarter | exp.Month | exp.Day):
        return "int"
    return "float" if isinstance(node, exp.Avg) else ""


def _cast_to(cast: exp.Expr) -> str:
    return kind_of(str(getattr(cast.args["to"].this, "name", "")))


def kind_of(name: str) -> str:
    """Of a type of the engine. Decimals are floats: clients set any number then, whatever its digits."""
    return _OF_PARSER.get(name) or _OF_FAMILY.get(columns.family(name), "")


def _places(sql: str) -> list[int]:
    if "?" not in sql:
        return []
    from sqlglot.tokenizer_core import TokenType

    from policies.sql import parse, token_check

    marks = (TokenType.PLACEHOLDER, TokenType.QDCOLON)  # the latter is `?::`, before a type
    found = [word.start for word in token_check.read(sql, parse.DEFAULT) if word.token_type in marks]
    if len(found) > MOST:
        raise QueryInvalid(
            f"expected at most {MOST} parameters, came {len(found)}; bring a table along for long lists (over HTTP, "
            "`keys`)",
            code="parameters_too_many",
        )
    return found


def _joins(character: str) -> bool:
    """Whether it would be one word, number or text with a literal beside it: `?1` is not 51 where the value is 5."""
    return character.isalnum() or character in ("_", ".", "$", "'", '"')


def _literal(number: int, kind: str, text: str) -> str:
    if kind == "null":
        return "NULL"
    if kind == "text":
        return _text(number, text)
    if kind not in _WRITTEN:
        raise QueryInvalid(
            f"expected parameter {number} as a number, text, date, time or flag, came {kind[:40]}",
            code="parameter_type",
        )
    try:
        return _WRITTEN[kind](text)
    except (ValueError, OverflowError):
        raise QueryInvalid(
            f"expected {_NAMES[kind]} as parameter {number}, came {text[:60]!r}", code="parameter_type"
        ) from None


def _text(number: int, text: str) -> str:
    """Of what the gate lets nobody write there is no literal."""
    from policies.sql import token_check

    if found := token_check.CONTROL.search(text):
        raise QueryInvalid(
            f"expected text without control characters as parameter {number}, came one with U+{ord(found[0]):04X}; "
            "bring such values along in a table (over HTTP, `keys`)",
            code="parameter_type",
        )
    return "'" + text.replace("'", "''") + "'"


# Each takes the text of a value as it is given out, and raises ValueError for any other: a cast that failed would be
# NULL to the gate, which is another question.


def _truth(text: str) -> str:
    return {"true": "TRUE", "false": "FALSE"}.get(text) or _no()


def _digits(text: str) -> str:
    if not re.fullmatch("-?[0-9]{1,39}", text):
        raise ValueError
    return f"({text})" if text.startswith("-") else text


def _float(text: str) -> str:
    return _cast(text, "DOUBLE") if str(float(text)) == text else _no()


def _decimal(text: str) -> str:
    """A decimal with as many digits as it has, so that none is lost."""
    found = re.fullmatch("-?([0-9]+)(?:[.]([0-9]+))?", text)
    if found is None:
        raise ValueError
    scale = len(found[2] or "")
    width = max(len(found[1].lstrip("0")) + scale, 1)
    if width > _DECIMAL_MAX:
        raise ValueError
    return _cast(text, f"DECIMAL({width}, {scale})")


def _date(text: str) -> str:
    return _cast(text, "DATE") if str(date.fromisoformat(text)) == text else _no()


def _time(text: str) -> str:
    one = time.fromisoformat(text)
    return _cast(text, "TIME") if str(one) == text and one.tzinfo is None else _no()


def _moment(text: str) -> str:
    one = datetime.fromisoformat(text)
    return _cast(text, "TIMESTAMP") if str(one) == text and one.tzinfo is None else _no()


def _zoned_moment(text: str) -> str:
    one = datetime.fromisoformat(text)
    return _cast(text, "TIMESTAMPTZ") if str(one) == text and one.tzinfo is not None else _no()


def _cast(text: str, kind: str) -> str:
    return f"CAST('{text}' AS {kind})"


def _no() -> NoReturn:
    raise ValueError


_OF_FAMILY = {
    columns.INTEGER: "int",  # also the largest: floats would not tell all apart
    columns.DECIMAL: "float",
    columns.FLOAT: "float",
    columns.TEXT: "text",
    columns.UUID: "text",
    columns.TIMESTAMP: "timestamp",
    columns.TIMESTAMPTZ: "timestamptz",
    columns.BOOLEAN: "bool",
    columns.DATE: "date",
}
# Types that no rule speaks of, and names that only the parser has.
_OF_PARSER = {"TIME": "time", "UINT": "int", "INT128": "int", "DECIMAL": "float", "TIMESTAMPNTZ": "timestamp"}
_WRITTEN: dict[str, Callable[[str], str]] = {
    "bool": _truth,
    "int": _digits,
    "float": _float,
    "decimal": _decimal,
    "date": _date,
    "time": _time,
    "timestamp": _moment,
    "timestamptz": _zoned_moment,
}
_NAMES = {
    "bool": "true or false",
    "int": "a whole number of at most 39 digits",
    "float": "a number",
    "decimal": f"a decimal of at most {_DECIMAL_MAX} digits",
    "date": "a date",
    "time": "a time in microseconds",
    "timestamp": "a moment without a zone",
    "timestamptz": "a moment with a zone",
}
