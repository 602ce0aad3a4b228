"""Values of a prepared statement, written into its SQL as literals. Pure.

The statement is cut at its `?` by the gate's own tokenizer and a literal of the value's type stands in each place; the
gate then reads the whole as any other query, so a value can say no more than its sender could have written itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from connector.errors import QueryInvalid

MOST = 1_000

Value = Sequence[str]  # a type of ours and the value as text: ("int", "5"), ("text", "a"), ("null", "")


def count(sql: str) -> int:
    """How many `?` a statement has. QueryRefused where it cannot be cut into words."""
    return len(_places(sql))


def bound(sql: str, values: Sequence[Value]) -> str:
    """The SQL with its values in place of the `?`, in order. QueryInvalid where they do not fit."""
    places = _places(sql)
    if len(places) != len(values):
        raise QueryInvalid(
            f"expected values for {len(places)} parameters, came {len(values)}; bind one row of them, then execute",
            code="parameters_unbound",
        )
    parts, at = [], 0
    for place, value in zip(places, values, strict=True):
        parts += [sql[at:place], _literal(*value)]
        at = place + 1
    return "".join((*parts, sql[at:]))


def _places(sql: str) -> list[int]:
    if "?" not in sql:
        return []
    from sqlglot.tokenizer_core import TokenType

    from policies.enforce import statement, tokens

    return [word.start for word in tokens.read(sql, statement.DEFAULT) if word.token_type is TokenType.PLACEHOLDER]


def _literal(kind: str, text: str) -> str:
    if kind == "null":
        return "NULL"
    if kind == "bool":
        return "TRUE" if text == "true" else "FALSE"
    if kind == "int":
        return _digits(text)
    if kind not in _TYPES:
        raise QueryInvalid(
            f"expected a parameter that is a number, text, date, time or flag, came {kind[:40]}", code="parameter_type"
        )
    quoted = "'" + text.replace("'", "''") + "'"
    return quoted if kind == "text" else f"CAST({quoted} AS {_TYPES[kind]})"


def _digits(text: str) -> str:
    plain = text.removeprefix("-")
    if not plain.isascii() or not plain.isdigit() or len(plain) > 39:
        raise QueryInvalid(f"expected a whole number as the parameter, came {text[:40]!r}", code="parameter_type")
    return f"({text})" if text != plain else text


_TYPES: dict[str, Any] = {
    "text": "VARCHAR",
    "float": "DOUBLE",
    "decimal": "DECIMAL(38, 10)",
    "date": "DATE",
    "time": "TIME",
    "timestamp": "TIMESTAMP",
    "timestamptz": "TIMESTAMPTZ",
}
