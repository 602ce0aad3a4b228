"""Parameters of prepared statements: values are written into the SQL as literals, and kinds are inferred. Pure.

The gate's own tokenizer finds each `?`, and a literal of the value's type replaces it. The gate then reads the whole
like any other query, so a value can do no more than its sender could have written. JDBC clients set no parameter
without a declared type: it has the type that it is compared with.
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
_DIGITS = 18  # of a number that may be a placeholder
_DECIMAL_MAX = 38  # digits of the engine's decimals
_MARK = 8_200_000_000_000  # and up: integers that stand for parameters while kinds are inferred

Value = Sequence[str]  # a type and the value as text: ("int", "5"), ("text", "a"), ("null", "")


def bound(sql: str, values: Sequence[Value]) -> str:
    """Returns the SQL with its values in place of the `?`, in order. Call it in a thread for long text.

    Raises QueryInvalid for values that do not fit, QueryRefused for text that cannot be cut into tokens."""
    places = _places(sql)
    return _fill_in(sql, places, values)


def _fill_in(sql: str, places: Sequence[int], values: Sequence[Value]) -> str:
    if len(places) != len(values):
        raise QueryInvalid(
            f"expected values for {len(places)} parameters, got {len(values)}; bind one row of them, then execute",
            code="parameters_unbound",
        )
    parts, at = [], 0
    for number, (place, value) in enumerate(zip(places, values, strict=True), 1):
        before, after = sql[at:place], sql[place + 1 : place + 2]
        parts += [before, " " * _joins(before[-1:]), _literal(number, *value), " " * _joins(after)]
        at = place + 1
    return "".join((*parts, sql[at:]))


def kinds(sql: str, types: dict[str, str]) -> list[str]:
    """Returns the likely kind of each `?` of a statement (see `Value`), "" where it is unknown. Call it in a thread.

    `types`: the engine's types by column name, in small letters. Raises QueryRefused for text that cannot be cut into
    tokens.
    """
    places = _places(sql)
    if not places:
        return []
    from sqlglot import exp

    from policies.sql import parse

    many = len(places)
    found = [""] * many
    try:
        tree = parse.unchecked(_fill_in(sql, places, [("int", str(_MARK + number)) for number in range(many)]))
    except PolicyError:  # the query itself is refused with the reason
        return found
    shown = ChainMap(dict.fromkeys(_renamed(tree, types), ""), types)
    for one in tree.find_all(exp.Literal):
        if 0 <= (number := _int_of(one) - _MARK) < many:
            found[number] = _infer_kind(one, shown)
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
    """Returns the integer of a literal; 0 for anything else."""
    text = str(literal.this)
    plain = not literal.is_string and len(text) < _DIGITS and text.isascii() and text.isdigit()
    return int(text) if plain else 0


def _infer_kind(literal: exp.Expr, types: Mapping[str, str]) -> str:
    """Returns the kind of the expression that a literal is compared or computed with."""
    from sqlglot import exp

    around = literal.parent
    while isinstance(around, exp.Paren | exp.Neg):
        literal, around = around, around.parent
    if isinstance(around, exp.Limit | exp.Offset):
        return "int"
    if isinstance(around, exp.Cast):
        return _cast_to(around)
    if isinstance(around, exp.Like | exp.ILike | exp.DPipe):
        return "text"
    if isinstance(around, exp.Between | exp.In):
        return _kind(around.this, types) if around.this is not literal else ""
    if not isinstance(around, exp.Binary):
        return ""
    other = _kind(around.right if around.left is literal else around.left, types)
    if isinstance(around, exp.Add | exp.Sub | exp.Mul | exp.Div | exp.Mod):
        return "float" if other in ("int", "float") else ""  # days are added to dates
    return other


def _kind(node: exp.Expr, types: Mapping[str, str]) -> str:
    """Returns the kind of an expression."""
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
    """Returns the kind of an engine's type. Decimals are floats, so that clients set any number of digits."""
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
            f"expected at most {MOST} parameters, got {len(found)}; bring a table along for long lists (over HTTP, "
            "`keys`)",
            code="parameters_too_many",
        )
    return found


def _joins(character: str) -> bool:
    """Returns whether a literal next to this character would join it: `?1` must not become 51 for the value 5."""
    return character.isalnum() or character in ("_", ".", "$", "'", '"')


def _literal(number: int, kind: str, text: str) -> str:
    if kind == "null":
        return "NULL"
    if kind == "text":
        return _text(number, text)
    if kind not in _WRITTEN:
        raise QueryInvalid(
            f"expected parameter {number} as a number, text, date, time or flag, got {kind[:40]}",
            code="parameter_type",
        )
    try:
        return _WRITTEN[kind](text)
    except (ValueError, OverflowError):
        raise QueryInvalid(
            f"expected {_NAMES[kind]} as parameter {number}, got {text[:60]!r}", code="parameter_type"
        ) from None


def _text(number: int, text: str) -> str:
    """Returns a text literal. Raises QueryInvalid for characters that the gate refuses."""
    from policies.sql import token_check

    if found := token_check.CONTROL.search(text):
        raise QueryInvalid(
            f"expected text without control characters as parameter {number}, got one with U+{ord(found[0]):04X}; "
            "bring such values along in a table (over HTTP, `keys`)",
            code="parameter_type",
        )
    return "'" + text.replace("'", "''") + "'"


# Each takes the text of a value as the reader of parameters writes it, and raises ValueError for any other: the gate
# would read a cast that fails as NULL.


def _truth(text: str) -> str:
    return {"true": "TRUE", "false": "FALSE"}.get(text) or _no()


def _digits(text: str) -> str:
    if not re.fullmatch("-?[0-9]{1,39}", text):
        raise ValueError
    return f"({text})" if text.startswith("-") else text


def _float(text: str) -> str:
    return _cast(text, "DOUBLE") if str(float(text)) == text else _no()


def _decimal(text: str) -> str:
    """Returns a decimal literal with all its digits."""
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
    columns.INTEGER: "int",  # also the largest: floats would make some of them equal
    columns.DECIMAL: "float",
    columns.FLOAT: "float",
    columns.TEXT: "text",
    columns.UUID: "text",
    columns.TIMESTAMP: "timestamp",
    columns.TIMESTAMPTZ: "timestamptz",
    columns.BOOLEAN: "bool",
    columns.DATE: "date",
}
# Types without a rule, and names that only the parser has.
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
