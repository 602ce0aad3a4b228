"""Columns of a published schema: finding them by name, and reading policy texts by their type.

A text is read by the type of its column, never by its looks; what cannot be read is an error that says
so. Must not know policies or SQL.
"""

from __future__ import annotations

import re
from datetime import date, datetime
from decimal import Decimal

from policies.contract import Column, Scalar, TableSchema
from policies.values import decimal, plain

TEXT, INTEGER, DECIMAL, FLOAT = "text", "integer", "decimal", "float"
BOOLEAN, DATE, TIMESTAMP, TIMESTAMPTZ = "boolean", "date", "timestamp", "timestamptz"
UUID, ENUM, OTHER = "uuid", "enum", "other"
NUMERIC = frozenset({INTEGER, DECIMAL, FLOAT})
TEMPORAL = frozenset({DATE, TIMESTAMP, TIMESTAMPTZ})
UNORDERED = frozenset({BOOLEAN, UUID, ENUM})  # equality is all that a row filter may ask of these

_FAMILIES: dict[str, str] = {
    **dict.fromkeys(("VARCHAR", "TEXT", "STRING", "CHAR", "BPCHAR"), TEXT),
    **dict.fromkeys(("TINYINT", "SMALLINT", "INTEGER", "INT", "BIGINT", "HUGEINT"), INTEGER),
    **dict.fromkeys(("UTINYINT", "USMALLINT", "UINTEGER", "UBIGINT", "UHUGEINT"), INTEGER),
    **dict.fromkeys(("FLOAT", "REAL", "DOUBLE"), FLOAT),
    **dict.fromkeys(("BOOLEAN", "BOOL"), BOOLEAN),
    **dict.fromkeys(("TIMESTAMP", "DATETIME", "TIMESTAMP_S", "TIMESTAMP_MS", "TIMESTAMP_NS"), TIMESTAMP),
    **dict.fromkeys(("TIMESTAMPTZ", "TIMESTAMP WITH TIME ZONE"), TIMESTAMPTZ),
    "DATE": DATE,
    "UUID": UUID,
}
_DECIMAL_TYPE = re.compile(r"(?:DECIMAL|NUMERIC)\((\d+),\s*(\d+)\)")


def find(schema: TableSchema, name: str) -> Column | None:
    """The column of that name. Case does not matter, as in the engine: `SSN` must also mean `ssn`."""
    wanted = name.casefold()
    return next((column for column in schema.columns if column.name.casefold() == wanted), None)


def family(column_type: str) -> str:
    """The kind of type, for rules that speak of numbers, texts and times; `other` for nested types."""
    upper = column_type.upper().strip()
    if _DECIMAL_TYPE.fullmatch(upper):
        return DECIMAL
    if upper.startswith("ENUM(") and upper.endswith(")"):
        return ENUM
    return _FAMILIES.get(upper, OTHER)


def decimal_scale(column_type: str) -> int:
    """Digits after the point of a DECIMAL type."""
    found = _DECIMAL_TYPE.fullmatch(column_type.upper().strip())
    if not found:
        raise ValueError(f"expected a type such as DECIMAL(15,2), got {column_type}")
    return int(found[2])


def decimal_width(column_type: str) -> int:
    """Digits of a DECIMAL type, before and after the point."""
    found = _DECIMAL_TYPE.fullmatch(column_type.upper().strip())
    if not found:
        raise ValueError(f"expected a type such as DECIMAL(15,2), got {column_type}")
    return int(found[1])


def read(column: Column, text: str) -> Scalar:
    """The value that `text` means in `column`; ValueError says what was expected and what came.

    Decimals, dates and times stay texts in one spelling, so that no binary fraction comes between.
    """
    kind = family(column.type)
    if kind == OTHER:
        raise ValueError(f"a column of type {column.type} cannot be compared; choose a plain column")
    if kind in NUMERIC:
        return _number(column, kind, decimal(text))
    if kind == BOOLEAN:
        return _boolean(text)
    if kind in TEMPORAL:
        return _time(kind, text)
    return text


def _number(column: Column, kind: str, number: Decimal) -> Scalar:
    if kind == FLOAT:
        return float(number)
    scale = 0 if kind == INTEGER else decimal_scale(column.type)
    text = plain(number)
    if len(text.partition(".")[2]) > scale:
        raise ValueError(f"expected at most {scale} digits after the point for {column.type}, got {text}")
    if len(text.partition(".")[0].lstrip("-")) > 38 - scale:
        raise ValueError(f"expected a number that {column.type} can be compared with, got {text}")
    return int(number) if kind == INTEGER else text


def _boolean(text: str) -> bool:
    if text.lower() not in ("true", "false", "1", "0"):
        raise ValueError(f"expected true or false, got {text!r}")
    return text.lower() in ("true", "1")


def _time(kind: str, text: str) -> str:
    try:
        moment = date.fromisoformat(text) if kind == DATE else datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(f"expected a {'day' if kind == DATE else 'time'} in ISO form, got {text!r}") from None
    zoned = isinstance(moment, datetime) and moment.tzinfo is not None
    if zoned != (kind == TIMESTAMPTZ):
        wanted = "with its zone" if kind == TIMESTAMPTZ else "without a zone"
        raise ValueError(f"expected a time {wanted} for a {kind} column, got {text!r}")
    return moment.isoformat()
