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
    """Yield rows of JSON values: one for each column, because names may repeat."""
    return zip(*map(_json_values, batch.columns), strict=True)


def fields(values: pa.Array) -> pa.Array:
    """Return a CSV column: numbers and booleans unchanged, anything else as text."""
    if is_plain(values.type):
        return values
    texts = [one if one is None or isinstance(one, str) else json.dumps(one, ensure_ascii=False)
             for one in _json_values(values)]  # fmt: skip
    return pa.array(texts, pa.string())


def is_plain(kind: pa.DataType) -> bool:
    """Return whether CSV holds such values unchanged."""
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind))


def in_seconds(kind: pa.DataType) -> bool:
    """Return whether these are timestamps in seconds, which Parquet does not have."""
    return bool(pa.types.is_timestamp(kind) and kind.unit == "s")


def milliseconds(values: pa.Array) -> pa.Array:
    """Convert timestamps from seconds to milliseconds; Arrow cannot convert infinity, the largest number."""
    import pyarrow.compute as pc

    numbers = values.cast(pa.int64())
    ends = pc.is_in(numbers, pa.array([_LAST, -_LAST]))
    scaled = pc.if_else(ends, numbers, pc.multiply_checked(pc.if_else(ends, 0, numbers), 1000))
    return scaled.cast(pa.timestamp("ms", values.type.tz))


def _json_values(values: pa.Array) -> list[Any]:
    refuse_oversized([values])
    kind = _integer_type(values.type)
    # Arrow 26 fails to cast lists of nulls, even to their own type.
    found: list[Any] = (values if kind == values.type else values.cast(kind)).to_pylist()
    if pa.types.is_integer(values.type) or pa.types.is_string(values.type):
        return found
    return [_to_json_value(value, values.type) for value in found]


def _is_moment(kind: pa.DataType) -> bool:
    return bool(pa.types.is_date(kind) or pa.types.is_timestamp(kind) or pa.types.is_time(kind))


def _integer_type(kind: pa.DataType) -> pa.DataType:
    """Return the type with integers for times: Python's have a small range of years and no nanoseconds."""
    if pa.types.is_struct(kind):
        return pa.struct([field.with_type(_integer_type(field.type)) for field in kind])
    if pa.types.is_map(kind):
        return pa.map_(_integer_type(kind.key_type), _integer_type(kind.item_type))
    if pa.types.is_fixed_size_list(kind):
        return pa.list_(_integer_type(kind.value_type), kind.list_size)
    if pa.types.is_list(kind):
        return pa.list_(_integer_type(kind.value_type))
    if _is_moment(kind):
        return pa.int32() if kind.bit_width == 32 else pa.int64()
    return kind


def _to_json_value(value: Any, kind: pa.DataType) -> Any:
    """Convert a value, with times as integers, to JSON."""
    if value is None:
        return None
    if pa.types.is_struct(kind):
        return {field.name: _to_json_value(value[field.name], field.type) for field in kind}
    if pa.types.is_map(kind):
        return [[_to_json_value(key, kind.key_type), _to_json_value(item, kind.item_type)] for key, item in value]
    if pa.types.is_nested(kind):
        return [_to_json_value(item, kind.value_type) for item in value]
    if _is_moment(kind):
        return _format_moment(value, kind)
    if pa.types.is_interval(kind):
        months, days, nanoseconds = value
        return f"P{months}M{days}DT{Decimal(nanoseconds).scaleb(-9).normalize():f}S"
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value if isinstance(value, str | int | float) else str(value)


@lru_cache(maxsize=4096)
def _format_moment(number: int, kind: pa.DataType) -> str:
    """Format a date or time. Arrow wraps years beyond 32767 in a time zone: shift each value into one cycle of 400
    years first."""
    if pa.types.is_time(kind):
        if number == 86_400 * _SECOND[kind.unit]:  # 24:00, which Arrow does not have
            return f"24{_format_by_arrow(0, kind)[2:]}"
        return _format_by_arrow(number, kind)
    if abs(number) == 2 ** (kind.bit_width - 1) - 1:
        return "infinity" if number > 0 else "-infinity"
    zoned = pa.types.is_timestamp(kind) and kind.tz is not None
    day = 1 if pa.types.is_date32(kind) else 86_400 * _SECOND["ms" if pa.types.is_date64(kind) else kind.unit]
    cycles, rest = divmod(number, _CYCLE * day)
    text = _format_by_arrow(rest, pa.timestamp(kind.unit) if zoned else kind)
    year = int(text[:4]) + 400 * cycles
    return f"{year:0{5 if year < 0 else 4}}{text[4:]}{'Z' if zoned else ''}"


def _format_by_arrow(number: int, kind: pa.DataType) -> str:
    return str(pa.scalar(number, _integer_type(kind)).cast(kind).cast(pa.string()))
