"""Text and JSON forms of Arrow values, for CSV, JSON lines and pages, where Arrow's own writers fail or differ.

docs/data-plane.md describes the forms; the client writes the same ones (`cell_text`). Imports only Arrow, as small
worker processes load it alone. Knows nothing of files.
"""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Callable
from decimal import Decimal
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

_LAST = 2**63 - 1
_JSON = json.JSONEncoder(ensure_ascii=False, allow_nan=False)  # made once: it costs as much as encoding ten numbers


def is_plain(kind: pa.DataType) -> bool:
    """Whether CSV can hold values of this type as they are: numbers and booleans. All other types are text there."""
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind))


def is_in_seconds(kind: pa.DataType) -> bool:
    """Whether a type is a timestamp in seconds, which Parquet does not know."""
    return bool(pa.types.is_timestamp(kind) and kind.unit == "s")


def seconds_to_milliseconds(values: pa.Array) -> pa.Array:
    """Timestamps in seconds as milliseconds. Infinity, stored as the last number there is, stays infinity."""
    numbers = values.cast(pa.int64())
    ends = pc.is_in(numbers, pa.array([_LAST, -_LAST]))
    milliseconds = pc.if_else(ends, numbers, pc.multiply_checked(pc.if_else(ends, 0, numbers), 1000))
    return milliseconds.cast(pa.timestamp("ms", values.type.tz))


def column_to_texts(values: pa.Array) -> pa.Array:
    """A column as a string array of the same length."""
    kind = values.type
    if _is_moment(kind):
        return _moment_texts(values)
    if not (pa.types.is_nested(kind) or pa.types.is_interval(kind) or _is_bytes(kind)):
        return values.cast(pa.string())
    cells = column_to_json_values(values)
    texts = [cell if cell is None or isinstance(cell, str) else value_to_json(cell) for cell in cells]
    return pa.array(texts, pa.string())


def column_to_json_values(values: pa.Array) -> list[Any]:
    """A column as a list of values that JSON can hold."""
    kind = values.type
    if _is_moment(kind):
        return _moment_texts(values).to_pylist()  # type: ignore[no-any-return]
    return list(map(_converter(kind), values.cast(_to_number_type(kind)).to_pylist()))


def value_to_json(value: Any) -> str:
    """The JSON text of a value from `column_to_json_values`."""
    return _JSON.encode(value)


def _format_interval(value: pa.MonthDayNano) -> str:
    """ISO 8601, each part with its own sign: `P2M3DT-1.5S`."""
    months, days, nanoseconds = value
    return f"P{months}M{days}DT{Decimal(nanoseconds).scaleb(-9).normalize():f}S"


def _is_bytes(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind))


def _is_moment(kind: pa.DataType) -> bool:
    return bool(pa.types.is_date(kind) or pa.types.is_timestamp(kind) or pa.types.is_time(kind))


def _moment_texts(values: pa.Array) -> pa.Array:
    """Dates, times and timestamps in ISO 8601, with DuckDB's `infinity` and years beyond 32767.

    Arrow cannot print those two: without a zone it writes an error text, with a zone it prints an earlier year.
    """
    kind = values.type
    zoned = pa.types.is_timestamp(kind) and kind.tz is not None
    texts = (values.cast(pa.timestamp(kind.unit)) if zoned else values).cast(pa.string())
    far = pc.fill_null(pc.starts_with(texts, "<"), False)  # "<value out of range: ...>"
    numbers = values.cast(_to_number_type(kind))
    if pa.types.is_timestamp(kind) and kind.unit == "ns":
        far = pc.is_in(numbers, pa.array([_LAST, -_LAST]))
    texts = pc.binary_join_element_wise(texts, "Z", "") if zoned else texts
    if not pc.any(far).as_py():
        return texts
    replacements = [_format_far_moment(number, kind) for number in numbers.filter(far).to_pylist()]
    return pc.replace_with_mask(texts, far, pa.array(replacements, pa.string()))


def _format_moment(number: int, kind: pa.DataType) -> str:
    found = _format_far_moment(number, kind)
    # Years BC have fewer digits in NumPy than in Arrow.
    return (
        str(_moment_texts(pa.array([number], _to_number_type(kind)).cast(kind))[0]) if found.startswith("-") else found
    )


def _format_far_moment(number: int, kind: pa.DataType) -> str:
    """Format a single moment with NumPy: it knows all years, and takes a hundredth of Arrow's time for one value."""
    import numpy as np  # few columns need it

    if abs(number) == 2 ** (kind.bit_width - 1) - 1:
        return "infinity" if number > 0 else "-infinity"
    unit: Any = "D" if pa.types.is_date(kind) else kind.unit
    text = str(np.datetime64(number, unit))
    if pa.types.is_time(kind):
        day, _, clock = text.partition("T")
        return clock if day == "1970-01-01" else f"24{clock[2:]}"  # the end of a day, and not its start
    return text.replace("T", " ") + ("Z" if pa.types.is_timestamp(kind) and kind.tz else "")


def _to_number_type(kind: pa.DataType) -> pa.DataType:
    """The type with moments replaced by their stored integers: Python's types lack years and nanoseconds."""
    if pa.types.is_struct(kind):
        return pa.struct([field.with_type(_to_number_type(field.type)) for field in kind])
    if pa.types.is_map(kind):
        return pa.map_(_to_number_type(kind.key_type), _to_number_type(kind.item_type))
    if pa.types.is_fixed_size_list(kind):
        return pa.list_(_to_number_type(kind.value_type), kind.list_size)
    if pa.types.is_list(kind):
        return pa.list_(_to_number_type(kind.value_type))
    if _is_moment(kind):
        return pa.int32() if kind.bit_width == 32 else pa.int64()
    return kind


def _converter(kind: pa.DataType) -> Callable[[Any], Any]:
    """A function from a Python value, moments as integers, to its JSON value. Looked up once per column."""
    convert = _choose_converter(kind)
    return convert if convert is _unchanged else lambda value: None if value is None else convert(value)


def _choose_converter(kind: pa.DataType) -> Callable[[Any], Any]:
    if pa.types.is_integer(kind) or pa.types.is_boolean(kind) or pa.types.is_string(kind):
        return _unchanged
    if pa.types.is_struct(kind):
        fields = [(field.name, _converter(field.type)) for field in kind]
        return lambda value: {name: convert(value[name]) for name, convert in fields}
    if pa.types.is_map(kind):
        key, item = _converter(kind.key_type), _converter(kind.item_type)
        return lambda value: [[key(name), item(one)] for name, one in value]
    if pa.types.is_nested(kind):
        each = _converter(kind.value_type)
        return list if each is _unchanged else lambda value: list(map(each, value))
    if _is_moment(kind):
        return lambda value: _format_moment(value, kind)
    if pa.types.is_floating(kind):
        return _json_number
    if _is_bytes(kind):
        return lambda value: base64.b64encode(value).decode()
    return _format_interval if pa.types.is_interval(kind) else str


def _unchanged(value: Any) -> Any:
    return value


def _json_number(value: float) -> float | str:
    """A finite number as it is; NaN and infinity as text, as JSON has no numbers for them."""
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
