"""Whether the fields of a CSV file say the values that they must, as docs/data-plane.md has them."""

from __future__ import annotations

import base64
import json
import math
import re
from collections.abc import Callable, Iterator
from decimal import Decimal
from typing import Any

import numpy as np
import pyarrow as pa

_FIELD = re.compile(r'(?:"((?:[^"]|"")*)"|([^",\n]*))([,\n])')


def unlike(text: str, expected: pa.Table) -> str:
    """What differs; empty where nothing does."""
    names, *rows = lines(text)
    if [one for one, _ in names] != expected.column_names:
        return f"names {names} for {expected.column_names}"
    if len(rows) != len(expected):
        return f"{len(rows)} rows for {len(expected)}"
    missing = ("", len(names) == 1)  # in quotes where readers would pass over the line
    for number, column in enumerate(expected.columns):
        for row, (told, value) in enumerate(zip(rows, _values(column), strict=True)):
            field = told[number]
            if field != missing if value is None else not _says(*field, value, column.type):
                return f"{column.type} in row {row}: {field} for {value!r}"
    return ""


def lines(text: str) -> Iterator[list[tuple[str, bool]]]:
    """The fields of each line, and whether they stood in quotes."""
    line, at = [], 0
    while at < len(text):
        found = _FIELD.match(text, at)
        assert found is not None, f"no CSV: {text[at : at + 80]!r}"
        quoted, plain, end = found.groups()
        line.append((plain, False) if quoted is None else (quoted.replace('""', '"'), True))
        at = found.end()
        if end == "\n":
            yield line
            line = []


def without_part(body: bytes) -> str:
    """Without the last line if it is not whole."""
    text, at, end = body.decode(errors="ignore"), 0, 0
    while (found := _FIELD.match(text, at)) is not None:
        at = found.end()
        end = at if found[3] == "\n" else end
    return text[:end]


def _values(column: pa.ChunkedArray) -> list[Any]:
    """Moments and what is nested as Arrow has them: Python knows no nanoseconds and few years."""
    kind = column.type
    plain = not (pa.types.is_nested(kind) or pa.types.is_temporal(kind))
    return column.to_pylist() if plain else [one if one.is_valid else None for one in column]


def _says(text: str, quoted: bool, value: Any, kind: pa.DataType) -> bool:
    """Whether a field says this value, which is there."""
    return bool(text or quoted) and next(says for test, says in _SAID if test(kind))(text, value, kind)


def _nested(text: str, value: pa.Scalar, kind: pa.DataType) -> bool:
    def constant(name: str) -> Any:
        raise AssertionError(f"{name} is no JSON")

    return _is(json.loads(text, parse_constant=constant), value)


def _is(told: Any, value: pa.Scalar) -> bool:
    """Whether what JSON tells is this value."""
    kind = value.type
    if not value.is_valid:
        return told is None
    if pa.types.is_struct(kind):
        return list(told) == [one.name for one in kind] and all(_is(told[one.name], value[one.name]) for one in kind)
    if pa.types.is_map(kind):  # pairs
        keys, items = (value.values.field(number) for number in (0, 1))
        return len(told) == len(value) and all(
            len(pair) == 2 and _is(pair[0], key) and _is(pair[1], item)
            for pair, key, item in zip(told, keys, items, strict=True)
        )
    if pa.types.is_nested(kind):
        return len(told) == len(value) and all(map(_is, told, value.values))
    if pa.types.is_floating(kind) and not math.isfinite(value.as_py()):
        return {"NaN": "nan", "Infinity": "inf", "-Infinity": "-inf"}[told] == str(value.as_py())
    if isinstance(told, str):
        return _says(told, True, value if pa.types.is_temporal(kind) else value.as_py(), kind)
    return bool(repr(told) == repr(value.as_py()))


def _float(text: str, value: Any, kind: pa.DataType) -> bool:
    width = np.float32 if kind == pa.float32() else np.float64
    return (math.isnan(value) and text == "nan") or width(text).tobytes() == width(value).tobytes()


def _moment(text: str, value: Any, kind: pa.DataType) -> bool:
    """`text` in ISO 8601, of a column that has a zone in UTC."""
    unit, clock = ("D", "") if pa.types.is_date(kind) else (kind.unit, "1970-01-01T" * pa.types.is_time(kind))
    zoned = pa.types.is_timestamp(kind) and kind.tz is not None
    at = np.datetime64(clock + text.removesuffix("Z"), unit)
    return text.endswith("Z") == zoned and int(at.astype(np.int64)) == value.value


_SAID: list[tuple[Callable[[pa.DataType], bool], Callable[[str, Any, pa.DataType], bool]]] = [
    (pa.types.is_boolean, lambda text, value, _: text == str(value).lower()),
    (pa.types.is_integer, lambda text, value, _: int(text) == value),
    (pa.types.is_floating, _float),
    (pa.types.is_decimal, lambda text, value, _: Decimal(text) == value),
    (pa.types.is_temporal, _moment),
    (pa.types.is_nested, _nested),
    (lambda kind: pa.types.is_binary(kind) or pa.types.is_fixed_size_binary(kind) or pa.types.is_large_binary(kind),
     lambda text, value, _: base64.b64decode(text, validate=True) == value),
    (lambda kind: True, lambda text, value, _: text == value),
]  # fmt: skip
