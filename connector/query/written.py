"""Answers for people: rows as CSV or as a Parquet file, in frames like those of an Arrow stream. Runs in a worker.

The first frame is the header line or the magic; each batch gives its lines or one row group; the last frame has no
rows and is the footer. Nothing is held but one batch and, for Parquet, what its footer says of each row group.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable, Mapping
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
        self._writer = pq.ParquetWriter(pa.PythonFile(sink, mode="w"), schema, compression="zstd")

    def write_batch(self, batch: pa.RecordBatch, custom_metadata: Mapping[str, str] | None = None) -> None:
        self._writer.write_batch(batch)

    def close(self) -> None:
        self._writer.close()


class _Csv:
    """Lines with the names first. Missing values are empty, empty text is `""`; nested ones are JSON, bytes base64."""

    def __init__(self, sink: ListSink, schema: pa.Schema, *, guarded: bool = False) -> None:
        names = [f"'{name}" if guarded and re.match(_FORMULA, name) else name for name in schema.names]
        self._schema = pa.schema(list(zip(names, map(_shown, schema.types), strict=True)))
        self._guarded = guarded
        self._writer = pyarrow.csv.CSVWriter(pa.PythonFile(sink, mode="w"), self._schema)

    def write_batch(self, batch: pa.RecordBatch, custom_metadata: Mapping[str, str] | None = None) -> None:
        columns = [self._column(batch.column(number), field) for number, field in enumerate(self._schema)]
        self._writer.write_batch(pa.RecordBatch.from_arrays(columns, schema=self._schema))

    def close(self) -> None:
        self._writer.close()

    def _column(self, values: pa.Array, field: pa.Field) -> pa.Array:
        found = values if values.type == field.type else _text(values)
        if self._guarded and found.type == pa.string():
            formula = pc.fill_null(pc.match_substring_regex(found, _FORMULA), False)
            found = pc.if_else(formula, pc.binary_join_element_wise("'", found, ""), found)
        return found


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
        return pa.array([None if one is None else _json(one) for one in values.to_pylist()], pa.string())
    if pa.types.is_interval(kind) or pa.types.is_null(kind):
        return pa.array([None if one is None else str(one) for one in values.to_pylist()], pa.string())
    return values.cast(pa.string())


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=_plain)


def _plain(value: Any) -> Any:
    return base64.b64encode(value).decode() if isinstance(value, bytes) else str(value)


_WRITERS: dict[str, Callable[[ListSink, pa.Schema], Any]] = {
    "parquet": _Parquet,
    "csv": _Csv,
    "csv_guarded": _guarded,
}
