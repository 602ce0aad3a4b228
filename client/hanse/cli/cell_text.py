"""Values as people's formats say them, where Arrow's own writers fail or say another thing: for CSV, JSON and tables.

As in an owner's CSV (docs/data-plane.md): moments in ISO 8601 and UTC, or `infinity`; intervals so, too; bytes in
base64; "NaN" and "Infinity", which JSON has no numbers for. Knows nothing of files.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Iterator
from decimal import Decimal
from functools import lru_cache
from typing import Any

import pyarrow as pa

from hanse._arrow.value_limits import refuse_oversized

_LAST = 2**63 - 1
_CYCLE = 146_097  # days of 400 years, after which the calendar is the same again
_SECOND = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}


def rows(batch: pa.RecordBatch) -> Iterator[tuple[Any, ...]]:
    """The rows, of what JSON knows: a value each column, as names may repeat."""
    return zip(*map(_values, batch.columns), strict=True)


def fields(values: pa.Array) -> pa.Array:
    """A column of CSV: numbers and truth as they are, all else as text."""
    if is_plain(values.type):
        return values
    texts = [one if one is None or isinstance(one, str) else json.dumps(one, ensure_ascii=False)
             for one in _values(values)]  # fmt: skip
    return pa.array(texts, pa.string())


def is_plain(kind: pa.DataType) -> bool:
    """Whether CSV has such values as they are."""
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind))


def in_seconds(kind: pa.DataType) -> bool:
    """Whether these are moments in seconds, which Parquet has not."""
    return bool(pa.types.is_timestamp(kind) and kind.unit == "s")


def milliseconds(values: pa.Array) -> pa.Array:
    """Moments in seconds in milliseconds: Arrow does not make them of infinity, which is the last number there is."""
    import pyarrow.compute as pc

    numbers = values.cast(pa.int64())
    ends = pc.is_in(numbers, pa.array([_LAST, -_LAST]))
    told = pc.if_else(ends, numbers, pc.multiply_checked(pc.if_else(ends, 0, numbers), 1000))
    return told.cast(pa.timestamp("ms", values.type.tz))


def _values(values: pa.Array) -> list[Any]:
    refuse_oversized([values])
    kind = _numbered(values.type)
    # Arrow 26 fails to cast lists of nulls, also to what they are.
    found: list[Any] = (values if kind == values.type else values.cast(kind)).to_pylist()
    if pa.types.is_integer(values.type) or pa.types.is_string(values.type):
        return found
    return [_said(one, values.type) for one in found]


def _is_moment(kind: pa.DataType) -> bool:
    return bool(pa.types.is_date(kind) or pa.types.is_timestamp(kind) or pa.types.is_time(kind))


def _numbered(kind: pa.DataType) -> pa.DataType:
    """With the numbers that moments are stored as: those of Python have few years and no nanoseconds."""
    if pa.types.is_struct(kind):
        return pa.struct([field.with_type(_numbered(field.type)) for field in kind])
    if pa.types.is_map(kind):
        return pa.map_(_numbered(kind.key_type), _numbered(kind.item_type))
    if pa.types.is_fixed_size_list(kind):
        return pa.list_(_numbered(kind.value_type), kind.list_size)
    if pa.types.is_list(kind):
        return pa.list_(_numbered(kind.value_type))
    if _is_moment(kind):
        return pa.int32() if kind.bit_width == 32 else pa.int64()
    return kind


def _said(value: Any, kind: pa.DataType) -> Any:
    """A value, moments as numbers, as JSON can say it."""
    if value is None:
        return None
    if pa.types.is_struct(kind):
        return {field.name: _said(value[field.name], field.type) for field in kind}
    if pa.types.is_map(kind):
        return [[_said(key, kind.key_type), _said(one, kind.item_type)] for key, one in value]
    if pa.types.is_nested(kind):
        return [_said(one, kind.value_type) for one in value]
    if _is_moment(kind):
        return _moment(value, kind)
    if pa.types.is_interval(kind):
        months, days, nanoseconds = value
        return f"P{months}M{days}DT{Decimal(nanoseconds).scaleb(-9).normalize():f}S"
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value if isinstance(value, str | int | float) else str(value)


@lru_cache(maxsize=4096)
def _moment(number: int, kind: pa.DataType) -> str:
    """Arrow knows no years beyond 32767, and wraps those that have a zone: so each is taken to our 400 years first."""
    if pa.types.is_time(kind):
        if number == 86_400 * _SECOND[kind.unit]:  # the end of a day, which Arrow does not know
            return f"24{_arrows(0, kind)[2:]}"
        return _arrows(number, kind)
    if abs(number) == 2 ** (kind.bit_width - 1) - 1:
        return "infinity" if number > 0 else "-infinity"
    zoned = pa.types.is_timestamp(kind) and kind.tz is not None
    day = 1 if pa.types.is_date32(kind) else 86_400 * _SECOND["ms" if pa.types.is_date64(kind) else kind.unit]
    cycles, rest = divmod(number, _CYCLE * day)
    text = _arrows(rest, pa.timestamp(kind.unit) if zoned else kind)
    year = int(text[:4]) + 400 * cycles
    return f"{year:0{5 if year < 0 else 4}}{text[4:]}{'Z' if zoned else ''}"


def _arrows(number: int, kind: pa.DataType) -> str:
    return str(pa.scalar(number, _numbered(kind)).cast(kind).cast(pa.string()))
