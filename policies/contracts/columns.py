"""Columns of a published schema: lookup by name, and parsing of policy texts by column type.

A text is parsed by the type of its column, never guessed; what cannot be parsed is a ValueError with the reason. Must
not know policies or SQL.
"""

from __future__ import annotations

import re
import struct
from collections import Counter
from collections.abc import Iterable
from datetime import date, datetime
from decimal import Decimal, InvalidOperation
from string import ascii_lowercase, ascii_uppercase

from policies.contracts.contract import Column, Scalar, TableSchema
from policies.evaluation.values import decimal, format_decimal

TEXT, INTEGER, DECIMAL, FLOAT = "text", "integer", "decimal", "float"
BOOLEAN, DATE, TIMESTAMP, TIMESTAMPTZ = "boolean", "date", "timestamp", "timestamptz"
UUID, ENUM, OTHER = "uuid", "enum", "other"
NUMERIC = frozenset({INTEGER, DECIMAL, FLOAT})
TEMPORAL = frozenset({DATE, TIMESTAMP, TIMESTAMPTZ})
UNORDERED = frozenset({BOOLEAN, UUID, ENUM})  # row filters may compare these for equality only

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
_UUID = re.compile(r"\{?([0-9a-f]{8})-?([0-9a-f]{4})-?([0-9a-f]{4})-?([0-9a-f]{4})-?([0-9a-f]{12})\}?", re.I | re.ASCII)
_FRACTION = re.compile(r"[.,](\d+)")
_DECIMAL_TYPE = re.compile(r"(?:DECIMAL|NUMERIC)\((\d+),\s*(\d+)\)")


_TO_LOWER = str.maketrans(ascii_uppercase, ascii_lowercase)


def fold(name: str) -> str:
    """Return a name as DuckDB compares names: A to Z without case, all other letters unchanged.

    `SSN` equals `ssn`; `Ärzte` differs from `ärzte`.
    """
    return name.lower() if name.isascii() else name.translate(_TO_LOWER)


def make_distinct(names: Iterable[str]) -> list[str]:
    """Return the names with repeated ones numbered as DuckDB does in a derived table: `v`, `v_1`."""
    found: dict[str, str] = {}
    times = Counter[str]()
    for name in names:
        own = name
        while fold(own) in found:
            times[fold(name)] += 1
            own = f"{name}_{times[fold(name)]}"
        found[fold(own)] = own
    return list(found.values())


def quote_identifier(name: str) -> str:
    """Return a name as a quoted SQL identifier."""
    return '"' + name.replace('"', '""') + '"'


def find_column(schema: TableSchema, name: str) -> Column | None:
    """Return the column of that name, or the only column whose name differs in case alone; None otherwise.

    Compares case for all letters, unlike the engine: a rule that hides `ärzte` must also hide `Ärzte`.
    """
    for alike in (str, fold, str.casefold):  # the strictest first: the last one treats strasse and straße as equal
        wanted = alike(name)
        if found := [column for column in schema.columns if alike(column.name) == wanted]:
            return found[0] if len(found) == 1 or alike is not str.casefold else None
    return None


def family(column_type: str) -> str:
    """Return the kind of a DuckDB type (`TEXT`, `INTEGER`, ... of this module); `OTHER` for nested types."""
    upper = column_type.upper().strip()
    if _DECIMAL_TYPE.fullmatch(upper):
        return DECIMAL
    if upper.startswith("ENUM(") and upper.endswith(")"):
        return ENUM
    return _FAMILIES.get(upper, OTHER)


def decimal_scale(column_type: str) -> int:
    """Return the digits after the point of a DECIMAL type; 0 for an integer type.

    Raises: ValueError for any other type.
    """
    if family(column_type) == INTEGER:
        return 0
    found = _DECIMAL_TYPE.fullmatch(column_type.upper().strip())
    if not found:
        raise ValueError(f"expected a type such as DECIMAL(15,2), got {column_type}")
    return int(found[2])


def decimal_width(column_type: str) -> int:
    """Return the digits of a DECIMAL type, before and after the point.

    Raises: ValueError for any other type.
    """
    found = _DECIMAL_TYPE.fullmatch(column_type.upper().strip())
    if not found:
        raise ValueError(f"expected a type such as DECIMAL(15,2), got {column_type}")
    return int(found[1])


_BITS = {"TINYINT": 8, "SMALLINT": 16, "INTEGER": 32, "INT": 32, "BIGINT": 64, "HUGEINT": 128}


def value_range(type_: str) -> tuple[int, int]:
    """Return the smallest and largest value of an integer or DECIMAL type, in steps of its last digit."""
    if family(type_) == DECIMAL:
        most = 10 ** decimal_width(type_) - 1
        return -most, most
    name = type_.upper().strip()
    bits = _BITS.get(name)
    return (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if bits else (0, 2 ** _BITS[name.removeprefix("U")] - 1)


def parse_bin_width(type_: str, text: str, *, new: bool, digits: int | None = None) -> float:
    """Parse a bin width for a numeric type.

    Raises: ValueError when it is not above 0, or has more digits after the point than `digits` on integers. For `new`
    terms also for more digits than `digits` on other types, and for a width that is not exact as a binary fraction on
    decimals. Agreements signed earlier keep such widths: the nearest binary fraction is used.
    """
    number = decimal(text)
    if number <= 0:
        raise ValueError(f"expected a bin width above 0, got {text!r}")
    fine = digits is not None and len(format_decimal(number).partition(".")[2]) > digits
    if fine and (new or family(type_) == INTEGER):
        raise ValueError(f"expected a bin width of at most {digits} digits after the point, got {text!r}")
    if number == number.to_integral_value():
        return int(number)
    value = float(number)
    if new and family(type_) != FLOAT and Decimal(str(value)) != number:
        raise ValueError(f"expected a bin width of at most 15 digits, got {text!r}")
    return value


def parse_value(column: Column, text: str) -> Scalar:
    """Return the value that `text` means in `column`. Decimals, dates and times stay texts in one spelling.

    Raises: ValueError with what was expected and what came.
    """
    kind = family(column.type)
    if kind == OTHER:
        raise ValueError(f"a column of type {column.type} cannot be compared; choose a plain column")
    if kind in NUMERIC:
        return _parse_number(column, kind, decimal(text))
    if kind == BOOLEAN:
        return _parse_boolean(text)
    if kind in TEMPORAL:
        return _parse_time(column.type, kind, text)
    return parse_uuid(text) if kind == UUID else text


def _parse_number(column: Column, kind: str, number: Decimal) -> Scalar:
    if kind == FLOAT:
        return _parse_float(column.type, number)
    if number < 0 and column.type.upper().strip() == "UHUGEINT":  # the engine compares these in the column's type
        raise ValueError(
            f"expected a number from 0 for {column.type}, which holds no other, got {format_decimal(number)}"
        )
    digits, text = decimal_scale(column.type), format_decimal(number)
    if len(text.partition(".")[2]) > digits:
        raise ValueError(f"expected at most {digits} digits after the point for {column.type}, got {text}")
    if len(text.partition(".")[0].lstrip("-")) > 38 - digits:
        raise ValueError(f"expected a number that {column.type} can be compared with, got {text}")
    return int(number) if kind == INTEGER else text


def _parse_float(type_: str, number: Decimal) -> float:
    """The nearest number that the type holds: 0.1 in a REAL column differs from 0.1 in a DOUBLE column."""
    value, digits = float(number), len(number.normalize().as_tuple().digits)
    try:
        if type_.upper().strip() != "DOUBLE":
            (value,) = struct.unpack("f", struct.pack("f", value))
        held = Decimal(f"{value:.{digits - 1}e}") == number
    except (OverflowError, InvalidOperation):
        held = False
    if not held:
        raise ValueError(f"expected a number with no more digits than {type_} holds, got {format_decimal(number)}")
    return value


def _parse_boolean(text: str) -> bool:
    if text.lower() not in ("true", "false", "1", "0"):
        raise ValueError(f"expected true or false, got {text!r}")
    return text.lower() in ("true", "1")


def parse_uuid(text: str) -> str:
    """Return a UUID in its one spelling.

    Raises: ValueError when the text is not a UUID.
    """
    found = _UUID.fullmatch(text)
    if not found:
        raise ValueError(f"expected a UUID, got {text[:40]!r}")
    return "-".join(found.groups()).lower()


def _parse_time(type_: str, kind: str, text: str) -> str:
    try:
        moment = date.fromisoformat(text) if kind == DATE else datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(f"expected a {'day' if kind == DATE else 'time'} in ISO form, got {text!r}") from None
    if kind != DATE:
        _refuse_rounding(type_, kind, text)
    zoned = isinstance(moment, datetime) and moment.tzinfo is not None
    if zoned != (kind == TIMESTAMPTZ):
        wanted = "with its zone" if kind == TIMESTAMPTZ else "without a zone"
        raise ValueError(f"expected a time {wanted} for a {kind} column, got {text!r}")
    return moment.isoformat()


_NANOSECONDS = datetime(1677, 9, 21, 0, 12, 43, 145225), datetime(2262, 4, 11, 23, 47, 16, 854775)


def can_hold(type_: str, value: Scalar) -> bool:
    """Return whether a column of this type can hold a value from `parse_value`: TIMESTAMP_NS covers 1677 to
    2262 only.
    """
    if type_.upper().strip() != "TIMESTAMP_NS":
        return True
    first, last = _NANOSECONDS
    return first <= datetime.fromisoformat(str(value)) <= last


_DIGITS = {"TIMESTAMP_S": 0, "TIMESTAMP_MS": 3}  # fractional digits; all other types are compared to the microsecond


def _refuse_rounding(type_: str, kind: str, text: str) -> None:
    """Refuse a time that would be rounded: a day, and more fractional digits than the type has."""
    if _is_day(text):
        start = f"{text}T00:00:00" + "Z" * (kind == TIMESTAMPTZ)
        raise ValueError(f"expected a time, got the day {text!r}; write where it starts or ends, such as {start}")
    digits = _DIGITS.get(type_.upper().strip(), 6)
    fraction = _FRACTION.search(text)
    if fraction and len(fraction[1].rstrip("0")) > digits:
        raise ValueError(f"expected at most {digits} digits after the second for {type_}, got {text!r}")


def _is_day(text: str) -> bool:
    try:
        date.fromisoformat(text)
    except ValueError:
        return False
    return True
