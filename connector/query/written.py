"""Answers for people: rows as CSV or as a Parquet file, in frames like those of an Arrow stream. Runs in a worker.

The first frame is the header line or the magic; each batch gives its lines or one row group; the last frame has no
rows and is the footer. Nothing is held but one batch and, for Parquet, what its footer says of each row group.
"""

from __future__ import annotations

import base64
import json
import math
import re
from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from connector.query.codes import Coded
from connector.query.digests import new_digest
from connector.query.frames import ListSink

if TYPE_CHECKING:
    from connector.query.job import Job

_FORMULA = "^[=+\\-@\t\r\n]"  # what a spreadsheet takes for the start of a formula


class Written:
    """An answer in the job's format."""

    trailer = b""

    def __init__(self, job: Job, schema: pa.Schema) -> None:
        if job.format not in _WRITERS:
            raise Coded("job_invalid")
        self._sink = _Copies()
        self._writer = _WRITERS[job.format](self._sink, schema)
        self.head = b"".join(self._sink.take()[0])
        self.digest = new_digest(job.digest)
        self.digest.update(self.head)
        self.first = self.digest.digest()

    def message(self, batch: pa.RecordBatch, *, at: str = "") -> tuple[list[Any], int]:
        """The lines or the row group of a batch; places have no room in them."""
        self._writer.write_batch(batch)
        return self._sink.take()

    def foot(self) -> tuple[list[Any], int]:
        """What the format has at its end."""
        self._writer.close()
        return self._sink.take()


class _Copies(ListSink):
    """Keeps copies: these writers use their memory again."""

    def write(self, part: Any) -> int:
        return super().write(bytes(part))


class _Parquet:
    """One row group a batch."""

    def __init__(self, sink: ListSink, schema: pa.Schema) -> None:
        try:
            self._writer = pq.ParquetWriter(pa.PythonFile(sink, mode="w"), schema, compression="zstd")
        except pa.ArrowNotImplementedError:
            raise Coded("format_unfit") from None

    def write_batch(self, batch: pa.RecordBatch, custom_metadata: Mapping[str, str] | None = None) -> None:
        self._writer.write_batch(batch)

    def close(self) -> None:
        self._writer.close()


class _Csv:
    """Lines with the names first. Missing values are empty, empty text is `""`; nested ones are JSON, bytes base64.

    Of one column missing values are `""`, too: most readers pass over an empty line, and the row would be lost.
    """

    def __init__(self, sink: ListSink, schema: pa.Schema, *, guarded: bool = False) -> None:
        names = [f"'{name}" if guarded and re.match(_FORMULA, name) else name for name in schema.names]
        self._alone = len(names) == 1
        shown = [pa.string()] if self._alone else map(_shown, schema.types)
        self._schema = pa.schema(list(zip(names, shown, strict=True)))
        self._guarded = guarded
        self._writer = pyarrow.csv.CSVWriter(pa.PythonFile(sink, mode="w"), self._schema)

    def write_batch(self, batch: pa.RecordBatch, custom_metadata: Mapping[str, str] | None = None) -> None:
        columns = [self._column(batch.column(number), field) for number, field in enumerate(self._schema)]
        self._writer.write_batch(pa.RecordBatch.from_arrays(columns, schema=self._schema))

    def close(self) -> None:
        self._writer.close()

    def _column(self, values: pa.Array, field: pa.Field) -> pa.Array:
        found = values if values.type == field.type else _text(values)
        if self._guarded and _shown(values.type) == pa.string() and not pa.types.is_decimal(values.type):
            formula = pc.fill_null(pc.match_substring_regex(found, _FORMULA), False)
            found = pc.if_else(formula, pc.binary_join_element_wise("'", found, ""), found)
        return pc.fill_null(found, "") if self._alone else found


def _guarded(sink: ListSink, schema: pa.Schema) -> _Csv:
    return _Csv(sink, schema, guarded=True)


def _shown(kind: pa.DataType) -> pa.DataType:
    """What the writer of CSV is given: numbers and truth as they are, everything else as text."""
    plain = pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_boolean(kind)
    return kind if plain else pa.string()


def _text(values: pa.Array) -> pa.Array:
    kind = values.type
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind) or pa.types.is_fixed_size_binary(kind):
        coded = [None if one is None else base64.b64encode(one).decode() for one in values.to_pylist()]
        return pa.array(coded, pa.string())
    if pa.types.is_nested(kind):
        found = values.cast(_numbered(kind)).to_pylist()
        return pa.array([None if one is None else _json(one, kind) for one in found], pa.string())
    if pa.types.is_interval(kind):
        return pa.array([None if one is None else _interval(one) for one in values.to_pylist()], pa.string())
    return _moments(values) if _is_moment(kind) else values.cast(pa.string())


def _interval(value: pa.MonthDayNano) -> str:
    """In ISO 8601, each part with its own sign: `P2M3DT-1.5S`."""
    months, days, nanoseconds = value
    return f"P{months}M{days}DT{Decimal(nanoseconds).scaleb(-9).normalize():f}S"


def _is_moment(kind: pa.DataType) -> bool:
    return bool(pa.types.is_date(kind) or pa.types.is_timestamp(kind) or pa.types.is_time(kind))


def _moments(values: pa.Array) -> pa.Array:
    """In ISO 8601, and the engine's infinity, which is no moment to Arrow. Nor are years beyond 32767: it says so of
    moments without a zone, and takes others for earlier ones."""
    kind = values.type
    zoned = pa.types.is_timestamp(kind) and kind.tz is not None
    found = (values.cast(pa.timestamp(kind.unit)) if zoned else values).cast(pa.string())
    far = pc.fill_null(pc.starts_with(found, "<"), False)  # "<value out of range: ...>"
    found = pc.binary_join_element_wise(found, "Z", "") if zoned else found
    if not pc.any(far).as_py():
        return found
    numbers = values.cast(_numbered(kind)).filter(far).to_pylist()
    return pc.replace_with_mask(found, far, pa.array([_far(one, kind) for one in numbers], pa.string()))


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
        return told.partition("T")[2]
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


def _json(value: Any, kind: pa.DataType) -> str:
    return json.dumps(_plain(value, kind), ensure_ascii=False, allow_nan=False)


def _plain(value: Any, kind: pa.DataType) -> Any:
    """A value, moments as numbers, as JSON can say it: which knows no NaN and no infinity."""
    if value is None:
        return None
    if pa.types.is_struct(kind):
        return {field.name: _plain(value[field.name], field.type) for field in kind}
    if pa.types.is_map(kind):
        return [[_plain(key, kind.key_type), _plain(one, kind.item_type)] for key, one in value]
    if pa.types.is_nested(kind):
        return [_plain(one, kind.value_type) for one in value]
    if _is_moment(kind):
        return _moment(value, kind)
    if pa.types.is_interval(kind):
        return _interval(value)
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value if isinstance(value, str | int | float) else str(value)


_WRITERS: dict[str, Callable[[ListSink, pa.Schema], Any]] = {
    "parquet": _Parquet,
    "csv": _Csv,
    "csv_guarded": _guarded,
}
