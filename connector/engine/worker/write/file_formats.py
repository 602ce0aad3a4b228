"""Writes answers as CSV, JSON lines, a Parquet or an Arrow file, in frames like those of an Arrow stream.

Each batch becomes lines or one row group, the first after the header; the last frame is the footer and has no rows.
Holds one batch and the entries of the footer. The text form of values is in `connector.infra.formats.text_values`.
Runs in a worker.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from connector.engine.pool.error_codes import Coded
from connector.engine.worker.write import null_scrub
from connector.engine.worker.write.arrow_stream import ListSink
from connector.infra.formats import text_values
from connector.infra.formats.digests import new_digest

if TYPE_CHECKING:
    from connector.engine.pool.protocol import Job

_LINES = 1024  # of JSON that are made at once
_FORMULA = "^[=+\\-@\t\r\n]"  # what a spreadsheet takes for the start of a formula


class FileFormatWriter:
    """Encodes an answer in the job's file format.

    The beginning of the format is sent with the first frame and counts with it: totals and quotas cover every byte.
    """

    head = trailer = b""

    def __init__(self, job: Job, schema: pa.Schema) -> None:
        if job.format not in _WRITERS:
            raise Coded("job_invalid")
        self._sink = _Copies()
        self._writer = _WRITERS[job.format](self._sink, schema)
        self.digest = new_digest(job.digest)
        self.first = self.digest.digest()

    def message(self, batch: pa.RecordBatch, *, at: str = "") -> tuple[list[Any], int]:
        """Return the lines or the row group of a batch, and their size. The formats have no room for `at`."""
        self._writer.write_batch(batch)
        return self._sink.take()

    def foot(self) -> tuple[list[Any], int]:
        """Return the end of the file, and its size."""
        self._writer.close()
        return self._sink.take()


class _Copies(ListSink):
    """Keeps copies, because these writers reuse their memory."""

    def __init__(self) -> None:
        super().__init__()
        keep = self.write
        self.write = lambda part: keep(bytes(part))


class _Parquet:
    """Writes one row group a batch. Parquet has no seconds: they become milliseconds."""

    def __init__(self, sink: ListSink, schema: pa.Schema) -> None:
        kinds = [pa.timestamp("ms", kind.tz) if text_values.is_in_seconds(kind) else kind for kind in schema.types]
        fields = [field.with_type(kind) for field, kind in zip(schema, kinds, strict=True)]
        self._schema = pa.schema(fields, metadata=schema.metadata)
        try:
            self._writer = pq.ParquetWriter(pa.PythonFile(sink, mode="w"), self._schema, compression="zstd")
        except pa.ArrowNotImplementedError:
            raise Coded("format_unfit") from None

    def write_batch(self, batch: pa.RecordBatch, custom_metadata: Mapping[str, str] | None = None) -> None:
        columns = [
            text_values.seconds_to_milliseconds(one) if text_values.is_in_seconds(one.type) else one
            for one in batch.columns
        ]
        self._writer.write_batch(pa.RecordBatch.from_arrays(columns, schema=self._schema))

    def close(self) -> None:
        self._writer.close()


class _Csv:
    """Writes lines, with a header line of names.

    A missing value is empty, empty text is `""`; nested values are JSON, bytes base64. In a table of one column a
    missing value is `""` too: most readers skip an empty line, and the row would be lost.
    """

    def __init__(self, sink: ListSink, schema: pa.Schema, *, guarded: bool = False) -> None:
        names = [f"'{name}" if guarded and re.match(_FORMULA, name) else name for name in schema.names]
        self._alone = len(names) == 1
        shown = [one if text_values.is_plain(one) and not self._alone else pa.string() for one in schema.types]
        self._schema = pa.schema(list(zip(names, shown, strict=True)))
        self._guarded = guarded
        self._writer = pyarrow.csv.CSVWriter(pa.PythonFile(sink, mode="w"), self._schema)

    def write_batch(self, batch: pa.RecordBatch, custom_metadata: Mapping[str, str] | None = None) -> None:
        columns = [self._column(batch.column(number), field) for number, field in enumerate(self._schema)]
        self._writer.write_batch(pa.RecordBatch.from_arrays(columns, schema=self._schema))

    def close(self) -> None:
        self._writer.close()

    def _column(self, values: pa.Array, field: pa.Field) -> pa.Array:
        found = values if values.type == field.type else text_values.column_to_texts(values)
        if self._guarded and not (text_values.is_plain(values.type) or pa.types.is_decimal(values.type)):
            formula = pc.fill_null(pc.match_substring_regex(found, _FORMULA), False)
            found = pc.if_else(formula, pc.binary_join_element_wise("'", found, ""), found)
        return pc.fill_null(found, "") if self._alone else found


def _guarded(sink: ListSink, schema: pa.Schema) -> _Csv:
    return _Csv(sink, schema, guarded=True)


class _Json:
    """Writes one JSON object a row: values as in CSV, but numbers, booleans and nested values as JSON."""

    def __init__(self, sink: ListSink, schema: pa.Schema) -> None:
        if len(set(schema.names)) < len(schema):
            raise Coded("format_unfit")  # of columns of one name its readers keep one
        self._sink, self._names = sink, schema.names

    def write_batch(self, batch: pa.RecordBatch, custom_metadata: Mapping[str, str] | None = None) -> None:
        for start in range(0, batch.num_rows, _LINES):
            columns = map(text_values.column_to_json_values, batch.slice(start, _LINES).columns)
            rows = (dict(zip(self._names, row, strict=True)) for row in zip(*columns, strict=True))
            self._sink.write("".join(f"{text_values.value_to_json(row)}\n" for row in rows).encode())

    def close(self) -> None:
        """Do nothing: the lines have no end."""


class _ArrowFile:
    """Return a writer of Arrow files."""

    def __init__(self, sink: ListSink, schema: pa.Schema) -> None:
        self._writer = pa.ipc.new_file(pa.PythonFile(sink, mode="w"), schema)

    def write_batch(self, batch: pa.RecordBatch, custom_metadata: Mapping[str, str] | None = None) -> None:
        self._writer.write_batch(null_scrub.zero_nulls(batch))

    def close(self) -> None:
        self._writer.close()


_WRITERS: dict[str, Callable[[ListSink, pa.Schema], Any]] = {
    "arrow_file": _ArrowFile,
    "json": _Json,
    "parquet": _Parquet,
    "csv": _Csv,
    "csv_guarded": _guarded,
}
