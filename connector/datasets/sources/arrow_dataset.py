"""Arrow files as the engine scans them: a batch at a time, as its reader asks. Imported where one is attached only.

Arrow's own scans read up to a gigabyte ahead of a slow reader, in memory that the engine's limit knows nothing of. And
a batch is as large as its writer made it: the engine, whose threads each hold what they had last while they ask for
more, gets it in small pieces that hold nothing of it, so that it is gone before the next one is read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds

from connector.datasets.sources import Rows
from connector.datasets.sources.arrow_ipc import size_of
from connector.datasets.sources.extension_types import of_types, owned, trusted

_WHOLE = 32 * 2**20  # bytes of a batch that need not be cut
_PIECE = 8 * 2**20


class Files(ds.FileSystemDataset):  # type: ignore[misc]  # pyarrow has no types
    """A dataset, which is what the engine hands projections and simple filters to; its scans hold one batch."""

    @classmethod
    def at(cls, paths: Sequence[str]) -> Files:
        found = ds.dataset(list(paths), format="ipc")
        return cls(list(found.get_fragments()), owned(found.schema), found.format, found.filesystem)

    def scanner(self, columns: Sequence[str] | None = None, filter: Any = None, **_: Any) -> _Scan:
        """As the engine asks for one."""
        return _Scan(partial(_files, tuple(self.files)), self.schema, columns, filter)


class Within(ds.InMemoryDataset):  # type: ignore[misc]  # pyarrow has no types
    """Some rows of one of several files, in the first one's order of columns, with their numbers where these have a
    name. Batches without one of the rows are not read."""

    read: Callable[[pa.Schema], Iterator[pa.RecordBatch]]

    @classmethod
    def at(cls, paths: Sequence[str], rows: Rows, counts: Sequence[int]) -> Within:
        """`counts`: the rows of each batch of the file."""
        there = _schema_of(paths[rows.file])
        schema = pa.schema([there.field(name) for name in _schema_of(paths[0]).names])
        if rows.position:
            schema = schema.append(pa.field(rows.position, pa.int64()))
        found = cls(pa.Table.from_batches([], schema))  # also of unions
        found.read = partial(_within, paths[rows.file], rows, tuple(counts))
        return found

    def scanner(self, columns: Sequence[str] | None = None, filter: Any = None, **_: Any) -> _Scan:
        """As the engine asks for one."""
        return _Scan(self.read, self.schema, columns, filter)


class Stream(ds.InMemoryDataset):  # type: ignore[misc]  # pyarrow has no types
    """A file in the stream form, which is read from its beginning by each scan."""

    path: str

    @classmethod
    def at(cls, path: str) -> Stream:
        with pa.OSFile(path) as file:
            found = cls(pa.Table.from_batches([], trusted(pa.ipc.open_stream(file).schema)))  # also of unions
        found.path = path
        return found

    def scanner(self, columns: Sequence[str] | None = None, filter: Any = None, **_: Any) -> _Scan:
        """As the engine asks for one."""
        return _Scan(partial(_stream, self.path, self.schema.names), self.schema, columns, filter)


@dataclass(frozen=True, slots=True)
class _Scan:
    """What the engine takes a scanner's rows from. `read` gives the batches, with these columns."""

    read: Callable[[pa.Schema], Iterator[pa.RecordBatch]]
    schema: pa.Schema
    columns: Sequence[str] | None
    condition: Any

    @property
    def names(self) -> tuple[str, ...]:
        """Of the columns that are shown: all where the engine names none."""
        return tuple(self.schema.names if self.columns is None else self.columns)

    def to_reader(self) -> pa.RecordBatchReader:
        """The rows, to be read once."""
        return pa.RecordBatchReader.from_batches(self._schema(self.names), self._batches())

    def _schema(self, names: Sequence[str]) -> pa.Schema:
        return pa.schema([self.schema.field(name) for name in names])

    def _batches(self) -> Iterator[pa.RecordBatch]:
        for piece in _pieces(self.read(self._schema(self._needed()))):
            for kept in [piece] if self.condition is None else self._kept(piece):
                yield kept.select(self.names)

    def _kept(self, batch: pa.RecordBatch) -> Sequence[pa.RecordBatch]:
        """In the pieces that they come in: Arrow cannot join those of a union."""
        kept: Sequence[pa.RecordBatch] = pa.Table.from_batches([batch]).filter(self.condition).to_batches()
        return kept

    def _needed(self) -> Sequence[str]:
        """The columns to read: all where the condition looks at one that is not shown."""
        if self.condition is None:
            return self.names
        try:
            pa.Table.from_batches([], self._schema(self.names)).filter(self.condition)
        except pa.ArrowInvalid:
            return tuple(self.schema.names)
        return self.names


def _pieces(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """The same rows: of a large batch in small copies, and nothing of it is held while the next one is read."""
    for batch in batches:
        size = size_of(*batch.columns)
        if max(size, _message_bytes(batch)) <= _WHOLE:
            yield batch
        else:
            step = max(1, batch.num_rows * _PIECE // max(1, size))
            yield from (_copied(batch.slice(start, step)) for start in range(0, batch.num_rows, step))
        del batch


def _message_bytes(batch: pa.RecordBatch) -> int:
    """What a batch that is not compressed holds: Arrow makes room for the whole message, whichever columns it reads."""
    found = next((one for column in batch.columns for one in column.buffers() if one is not None), None)
    while found is not None and found.parent is not None:
        found = found.parent
    return 0 if found is None else int(found.size)


def _copied(piece: pa.RecordBatch) -> pa.RecordBatch:
    """A piece that holds nothing of what it was cut from; as it is where it has a union, which Arrow cannot copy."""
    try:
        return pa.concat_batches([piece, piece.slice(0, 0)])
    except pa.ArrowNotImplementedError:
        return piece


def _files(paths: Sequence[str], needed: pa.Schema) -> Iterator[pa.RecordBatch]:
    """The batches of files in this schema, whatever the order of their columns: each cast where it is of another type,
    and NULL where it is not there."""
    for path in paths:
        with pa.OSFile(path) as file:
            reader = _reader(file, needed)
            for number in range(reader.num_record_batches):
                yield _fitted(reader.get_batch(number), needed)


def _fitted(batch: pa.RecordBatch, needed: pa.Schema) -> pa.RecordBatch:
    columns = [
        batch.column(field.name).cast(field.type)
        if field.name in batch.schema.names
        else pa.nulls(len(batch), field.type)
        for field in needed
    ]
    return pa.RecordBatch.from_arrays(columns, schema=needed)


def _within(path: str, rows: Rows, counts: Sequence[int], needed: pa.Schema) -> Iterator[pa.RecordBatch]:
    """Rows of a file with these columns, each batch of the file on its own."""
    start = 0
    with pa.OSFile(path) as file:
        reader = _reader(file, needed)
        for number, count in enumerate(counts):
            first, stop = max(rows.first, start), min(rows.stop, start + count)
            if first < stop:
                yield _numbered(reader.get_batch(number).slice(first - start, stop - first), first, rows, needed)
            start += count


def _numbered(batch: pa.RecordBatch, first: int, rows: Rows, needed: pa.Schema) -> pa.RecordBatch:
    numbers = np.arange(first, first + len(batch))
    columns = [pa.array(numbers) if name and name == rows.position else batch.column(name) for name in needed.names]
    return of_types(pa.RecordBatch.from_arrays(columns, needed.names), needed)


def _stream(path: str, there: Sequence[str], needed: pa.Schema) -> Iterator[pa.RecordBatch]:
    """The batches of a stream with these of its columns."""
    with pa.OSFile(path) as file:
        for batch in pa.ipc.open_stream(file, options=_only(there, needed)):
            yield of_types(batch.select(needed.names), needed)


def _schema_of(path: str) -> pa.Schema:
    with pa.OSFile(path) as file:
        return owned(pa.ipc.open_file(file).schema)


def _reader(file: pa.NativeFile, needed: pa.Schema) -> pa.RecordBatchFileReader:
    return pa.ipc.open_file(file, options=_only(pa.ipc.open_file(file).schema.names, needed))


def _only(there: Sequence[str], needed: pa.Schema) -> pa.ipc.IpcReadOptions:
    return pa.ipc.IpcReadOptions(included_fields=[there.index(name) for name in needed.names if name in there])
