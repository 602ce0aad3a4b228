"""Values as people's formats say them, where Arrow's own writers fail or say another thing: for CSV, JSON and pages.

As docs/data-plane.md has it, and as the client says them, too (`cell_text`). Needs nothing but Arrow, and is read
by processes that load nothing else of ours. Knows nothing of files.
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
_JSON = json.JSONEncoder(ensure_ascii=False, allow_nan=False)  # to make one takes as long as a value of ten numbers


def is_plain(kind: pa.DataType) -> bool:
    """Whether CSV has such values as they are: numbers and truth. Everything else is text there."""
    return bool(pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind))


def in_seconds(kind: pa.DataType) -> bool:
    """Whether these are moments in seconds, which Parquet has not."""
    return bool(pa.types.is_timestamp(kind) and kind.unit == "s")


def milliseconds(values: pa.Array) -> pa.Array:
    """Moments in seconds in milliseconds: Arrow does not make them of infinity, which is the last number there is."""
    numbers = values.cast(pa.int64())
    ends = pc.is_in(numbers, pa.array([_LAST, -_LAST]))
    told = pc.if_else(ends, numbers, pc.multiply_checked(pc.if_else(ends, 0, numbers), 1000))
    return told.cast(pa.timestamp("ms", values.type.tz))


def texts(values: pa.Array) -> pa.Array:
    """A column as text."""
    kind = values.type
    if _is_moment(kind):
        return _moments(values)
    if not (pa.types.is_nested(kind) or pa.types.is_interval(kind) or _is_bytes(kind)):
        return values.cast(pa.string())
    told = [one if one is None or isinstance(one, str) else dumped(one) for one in plain(values)]
    return pa.array(told, pa.string())


def plain(values: pa.Array) -> list[Any]:
    """A column as values that JSON knows."""
    kind = values.type
    if _is_moment(kind):
        return _moments(values).to_pylist()  # type: ignore[no-any-return]
    return list(map(_teller(kind), values.cast(_numbered(kind)).to_pylist()))


def dumped(value: Any) -> str:
    """A value of `plain` as JSON."""
    return _JSON.encode(value)


def _interval(value: pa.MonthDayNano) -> str:
    """In ISO 8601, each part with its own sign: `P2M3DT-1.5S`."""
    months, days, nanoseconds = value
    return f"P{months}M{days}DT{Decimal(nanoseconds).scaleb(-9).normalize():f}S"


def _is_bytes(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind))


def _is_moment(kind: pa.DataType) -> bool:
    return bool(pa.types.is_date(kind) or pa.types.is_timestamp(kind) or pa.types.is_time(kind))


def _moments(values: pa.Array) -> pa.Array:
    """In ISO 8601, and the engine's infinity, which is no moment to Arrow, or one in nanoseconds. Nor are years beyond
    32767: it says so of moments without a zone, and takes others for earlier ones."""
    kind = values.type
    zoned = pa.types.is_timestamp(kind) and kind.tz is not None
    found = (values.cast(pa.timestamp(kind.unit)) if zoned else values).cast(pa.string())
    far = pc.fill_null(pc.starts_with(found, "<"), False)  # "<value out of range: ...>"
    numbers = values.cast(_numbered(kind))
    if pa.types.is_timestamp(kind) and kind.unit == "ns":
        far = pc.is_in(numbers, pa.array([_LAST, -_LAST]))
    found = pc.binary_join_element_wise(found, "Z", "") if zoned else found
    if not pc.any(far).as_py():
        return found
    told = [_far(one, kind) for one in numbers.filter(far).to_pylist()]
    return pc.replace_with_mask(found, far, pa.array(told, pa.string()))


def _moment(number: int, kind: pa.DataType) -> str:
    found = _far(number, kind)
    # Years before ours have fewer digits there.
    return str(_moments(pa.array([number], _numbered(kind)).cast(kind))[0]) if found.startswith("-") else found


def _far(number: int, kind: pa.DataType) -> str:
    """By NumPy, which knows all years, and takes a hundredth of the time for a single one."""
    import numpy as np  # where one comes

    if abs(number) == 2 ** (kind.bit_width - 1) - 1:
        return "infinity" if number > 0 else "-infinity"
    unit: Any = "D" if pa.types.is_date(kind) else kind.unit
    told = str(np.datetime64(number, unit))
    if pa.types.is_time(kind):
        day, _, clock = told.partition("T")
        return clock if day == "1970-01-01" else f"24{clock[2:]}"  # the end of a day, and not its start
    return told.replace("T", " ") + ("Z" if pa.types.is_timestamp(kind) and kind.tz else "")


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


def _teller(kind: pa.DataType) -> Callable[[Any], Any]:
    """What says a value of a type, moments as numbers, as JSON can. Looked up once: there are many values."""
    tell = _told(kind)
    return tell if tell is _itself else lambda value: None if value is None else tell(value)


def _told(kind: pa.DataType) -> Callable[[Any], Any]:
    if pa.types.is_integer(kind) or pa.types.is_boolean(kind) or pa.types.is_string(kind):
        return _itself
    if pa.types.is_struct(kind):
        fields = [(field.name, _teller(field.type)) for field in kind]
        return lambda value: {name: tell(value[name]) for name, tell in fields}
    if pa.types.is_map(kind):
        key, item = _teller(kind.key_type), _teller(kind.item_type)
        return lambda value: [[key(name), item(one)] for name, one in value]
    if pa.types.is_nested(kind):
        each = _teller(kind.value_type)
        return list if each is _itself else lambda value: list(map(each, value))
    if _is_moment(kind):
        return lambda value: _moment(value, kind)
    if pa.types.is_floating(kind):
        return _number
    if _is_bytes(kind):
        return lambda value: base64.b64encode(value).decode()
    return _interval if pa.types.is_interval(kind) else str


def _itself(value: Any) -> Any:
    return value


def _number(value: float) -> float | str:
    """JSON knows no NaN and no infinity."""
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
