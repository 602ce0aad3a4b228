"""Arrow files as the engine scans them: a batch at a time, as its reader asks. Imported where one is attached only.

Arrow's own scans read up to a gigabyte ahead of a slow reader, in memory that the engine's limit knows nothing of.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.dataset as ds


class Files(ds.FileSystemDataset):  # type: ignore[misc]  # pyarrow has no types
    """A dataset, which is what the engine hands projections and simple filters to; its scans hold one batch."""

    @classmethod
    def at(cls, paths: Sequence[str]) -> Files:
        found = ds.dataset(list(paths), format="ipc")
        return cls(list(found.get_fragments()), found.schema, found.format, found.filesystem)

    def scanner(self, columns: Sequence[str] | None = None, filter: Any = None, **_: Any) -> _Scan:
        """As the engine asks for one."""
        return _Scan(partial(_files, tuple(self.files)), self.schema, columns, filter)


class Stream(ds.InMemoryDataset):  # type: ignore[misc]  # pyarrow has no types
    """A file in the stream form, which is read from its beginning by each scan."""

    path: str

    @classmethod
    def at(cls, path: str) -> Stream:
        with pa.OSFile(path) as file:
            found = cls(pa.Table.from_batches([], pa.ipc.open_stream(file).schema))  # also of unions
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
        for batch in self.read(self._schema(self._needed())):
            for kept in [batch] if self.condition is None else self._kept(batch):
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


def _files(paths: Sequence[str], needed: pa.Schema) -> Iterator[pa.RecordBatch]:
    """The batches of files in this schema, whatever the order of their columns: each cast where it is of another type,
    and NULL where it is not there."""
    for path in paths:
        with pa.OSFile(path) as file:
            there = pa.ipc.open_file(file).schema.names
            reader = pa.ipc.open_file(file, options=_only(there, needed))
            for number in range(reader.num_record_batches):
                batch = reader.get_batch(number)
                columns = [
                    batch.column(field.name).cast(field.type)
                    if field.name in there
                    else pa.nulls(len(batch), field.type)
                    for field in needed
                ]
                yield pa.RecordBatch.from_arrays(columns, schema=needed)


def _stream(path: str, there: Sequence[str], needed: pa.Schema) -> Iterator[pa.RecordBatch]:
    """The batches of a stream with these of its columns."""
    with pa.OSFile(path) as file:
        for batch in pa.ipc.open_stream(file, options=_only(there, needed)):
            yield batch.select(needed.names)


def _only(there: Sequence[str], needed: pa.Schema) -> pa.ipc.IpcReadOptions:
    return pa.ipc.IpcReadOptions(included_fields=[there.index(name) for name in needed.names if name in there])
