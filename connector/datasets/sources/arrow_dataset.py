"""Arrow datasets that the engine scans one batch at a time. Imported only where one is attached.

Arrow's own scans read up to a gigabyte ahead of a slow reader, in memory that the engine's limit does not count.
Batches can also be of any size, and each engine thread holds its last batch while it asks for the next. Large batches
are therefore copied in small pieces, so that the large batch is freed before the next one is read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds

from connector.datasets.sources import RowRange
from connector.datasets.sources.arrow_ipc import size_of
from connector.datasets.sources.extension_types import cast_batch, owner_schema, trusted_schema

_WHOLE = 32 * 2**20  # bytes of a batch that need not be cut
_PIECE = 8 * 2**20


class ArrowFiles(ds.FileSystemDataset):  # type: ignore[misc]  # pyarrow has no types
    """Arrow IPC files as one dataset. The engine passes projections and filters to it; a scan holds one batch."""

    @classmethod
    def at(cls, paths: Sequence[str]) -> ArrowFiles:
        found = ds.dataset(list(paths), format="ipc")
        return cls(list(found.get_fragments()), owner_schema(found.schema), found.format, found.filesystem)

    def scanner(self, columns: Sequence[str] | None = None, filter: Any = None, **_: Any) -> _Scan:
        """Return the scan that the engine asks for."""
        return _Scan(partial(_read_files, tuple(self.files)), self.schema, columns, filter)


class ArrowRowRange(ds.InMemoryDataset):  # type: ignore[misc]  # pyarrow has no types
    """A range of rows of one of several files, with the columns in the order of the first file.

    Has a column with the row numbers if the range names one. Batches outside the range are not read.
    """

    read: Callable[[pa.Schema], Iterator[pa.RecordBatch]]

    @classmethod
    def at(cls, paths: Sequence[str], rows: RowRange, counts: Sequence[int]) -> ArrowRowRange:
        """Return the dataset. `counts`: the number of rows of each batch of the file."""
        there = _schema_of(paths[rows.file])
        schema = pa.schema([there.field(name) for name in _schema_of(paths[0]).names])
        if rows.position:
            schema = schema.append(pa.field(rows.position, pa.int64()))
        found = cls(pa.Table.from_batches([], schema))  # also of unions
        found.read = partial(_read_range, paths[rows.file], rows, tuple(counts))
        return found

    def scanner(self, columns: Sequence[str] | None = None, filter: Any = None, **_: Any) -> _Scan:
        """Return the scan that the engine asks for."""
        return _Scan(self.read, self.schema, columns, filter)


class ArrowStream(ds.InMemoryDataset):  # type: ignore[misc]  # pyarrow has no types
    """A file in the Arrow stream format. Each scan reads it from its beginning."""

    path: str

    @classmethod
    def at(cls, path: str) -> ArrowStream:
        with pa.OSFile(path) as file:
            found = cls(pa.Table.from_batches([], trusted_schema(pa.ipc.open_stream(file).schema)))  # also of unions
        found.path = path
        return found

    def scanner(self, columns: Sequence[str] | None = None, filter: Any = None, **_: Any) -> _Scan:
        """Return the scan that the engine asks for."""
        return _Scan(partial(_read_stream, self.path, self.schema.names), self.schema, columns, filter)


@dataclass(frozen=True, slots=True)
class _Scan:
    """A scan whose rows the engine reads. `read` returns the batches with the columns that it is asked for."""

    read: Callable[[pa.Schema], Iterator[pa.RecordBatch]]
    schema: pa.Schema
    columns: Sequence[str] | None
    condition: Any

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the selected columns: all if the engine names none."""
        return tuple(self.schema.names if self.columns is None else self.columns)

    def to_reader(self) -> pa.RecordBatchReader:
        """Return a reader of the rows, for one pass."""
        return pa.RecordBatchReader.from_batches(self._schema(self.names), self._batches())

    def _schema(self, names: Sequence[str]) -> pa.Schema:
        return pa.schema([self.schema.field(name) for name in names])

    def _batches(self) -> Iterator[pa.RecordBatch]:
        for piece in _cut_batches(self.read(self._schema(self._needed()))):
            for part in [piece] if self.condition is None else self._filter_batch(piece):
                yield part.select(self.names)

    def _filter_batch(self, batch: pa.RecordBatch) -> Sequence[pa.RecordBatch]:
        """Return the matching rows in the batches that Arrow makes: Arrow cannot join batches of a union type."""
        batches: Sequence[pa.RecordBatch] = pa.Table.from_batches([batch]).filter(self.condition).to_batches()
        return batches

    def _needed(self) -> Sequence[str]:
        """Return the columns to read: all if the condition uses a column that is not selected."""
        if self.condition is None:
            return self.names
        try:
            pa.Table.from_batches([], self._schema(self.names)).filter(self.condition)
        except pa.ArrowInvalid:
            return tuple(self.schema.names)
        return self.names


def _cut_batches(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """Copy large batches in small pieces, and hold nothing of a batch while the next one is read."""
    for batch in batches:
        size = size_of(*batch.columns)
        if max(size, _message_bytes(batch)) <= _WHOLE:
            yield batch
        else:
            step = max(1, batch.num_rows * _PIECE // max(1, size))
            yield from (_copy_piece(batch.slice(start, step)) for start in range(0, batch.num_rows, step))
        del batch


def _message_bytes(batch: pa.RecordBatch) -> int:
    """Return the bytes that an uncompressed batch holds: Arrow allocates the whole message, for any set of columns."""
    found = next((one for column in batch.columns for one in column.buffers() if one is not None), None)
    while found is not None and found.parent is not None:
        found = found.parent
    return 0 if found is None else int(found.size)


def _copy_piece(piece: pa.RecordBatch) -> pa.RecordBatch:
    """Return a copy that holds nothing of the original batch. Returns the piece itself for a union, which Arrow cannot
    copy."""
    try:
        return pa.concat_batches([piece, piece.slice(0, 0)])
    except pa.ArrowNotImplementedError:
        return piece


def _read_files(paths: Sequence[str], needed: pa.Schema) -> Iterator[pa.RecordBatch]:
    """Yield the batches of files in this schema: columns are reordered and cast, and missing ones are NULL."""
    for path in paths:
        with pa.OSFile(path) as file:
            reader = _reader(file, needed)
            for number in range(reader.num_record_batches):
                yield _fit_batch(reader.get_batch(number), needed)


def _fit_batch(batch: pa.RecordBatch, needed: pa.Schema) -> pa.RecordBatch:
    columns = [
        batch.column(field.name).cast(field.type)
        if field.name in batch.schema.names
        else pa.nulls(len(batch), field.type)
        for field in needed
    ]
    return pa.RecordBatch.from_arrays(columns, schema=needed)


def _read_range(path: str, rows: RowRange, counts: Sequence[int], needed: pa.Schema) -> Iterator[pa.RecordBatch]:
    """Yield the rows of a range with these columns, one batch of the file at a time."""
    start = 0
    with pa.OSFile(path) as file:
        reader = _reader(file, needed)
        for number, count in enumerate(counts):
            first, stop = max(rows.first, start), min(rows.stop, start + count)
            if first < stop:
                yield _number_rows(reader.get_batch(number).slice(first - start, stop - first), first, rows, needed)
            start += count


def _number_rows(batch: pa.RecordBatch, first: int, rows: RowRange, needed: pa.Schema) -> pa.RecordBatch:
    numbers = np.arange(first, first + len(batch))
    columns = [pa.array(numbers) if name and name == rows.position else batch.column(name) for name in needed.names]
    return cast_batch(pa.RecordBatch.from_arrays(columns, needed.names), needed)


def _read_stream(path: str, there: Sequence[str], needed: pa.Schema) -> Iterator[pa.RecordBatch]:
    """Yield the batches of a stream with these columns."""
    with pa.OSFile(path) as file:
        for batch in pa.ipc.open_stream(file, options=_read_options(there, needed)):
            yield cast_batch(batch.select(needed.names), needed)


def _schema_of(path: str) -> pa.Schema:
    with pa.OSFile(path) as file:
        return owner_schema(pa.ipc.open_file(file).schema)


def _reader(file: pa.NativeFile, needed: pa.Schema) -> pa.RecordBatchFileReader:
    return pa.ipc.open_file(file, options=_read_options(pa.ipc.open_file(file).schema.names, needed))


def _read_options(there: Sequence[str], needed: pa.Schema) -> pa.ipc.IpcReadOptions:
    return pa.ipc.IpcReadOptions(included_fields=[there.index(name) for name in needed.names if name in there])
