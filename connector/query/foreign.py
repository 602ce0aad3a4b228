"""Arrow that somebody else wrote: validated fully, in this process only, before anything looks into it.

A few per cent of mutated IPC inputs crash the parser where batches are not validated (evidence-and-hardening,
section 0): a crash here costs one job. Runs in a worker.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from connector.query import job as wire
from connector.query.codes import Coded
from connector.query.frames import new_digest
from connector.query.job import Job

_BLOB_MAX = 256 * 2**20
_PIECE = 4 * 2**20
_DISTINCT_MAX = 48 * 10**6  # bytes of values as they come; half of it when they are joined: three million numbers


def read_blob(blob: bytes, *, columns: Sequence[str] = ()) -> pa.Table:
    """A small stream (keys of a semi-join) as a table, of exactly these columns where any are named: the gate has
    read the query by them."""
    if len(blob) > _BLOB_MAX:
        raise Coded("arrow_too_large", most=_BLOB_MAX)
    try:
        with pa.ipc.open_stream(pa.BufferReader(blob)) as reader:
            if columns and sorted(reader.schema.names) != sorted(columns):
                raise Coded("arrow_columns")
            return pa.Table.from_batches(list(_valid(reader)), schema=reader.schema)
    except (pa.ArrowException, OSError):
        raise Coded("arrow_invalid") from None


def check(job: Job, *, check: Callable[[], None]) -> dict[str, Any]:
    """Read a stream from `arguments.path` or blob 0 to its end; its columns, totals and end record. `bytes` are those
    of its rows in memory, whatever the codec.

    With `arguments.once` the engine reads the stream next, from the path: a blob is kept there.
    `arguments.keys` are numbers of columns and files: there go their distinct values, sorted, as a stream of one column
    `k`; `keys` of the answer are the files that were written.
    `end` is None where the stream has no end record: such a stream is not complete, whatever it holds.
    With `arguments.digest`, `digest` is that of the bytes before the end record, in the algorithm that it names.
    """
    rows = batches = before = size = 0
    keys = [(number, path, Distinct()) for number, path in job.arguments.get("keys") or ()]
    end: dict[str, Any] | None = None
    try:
        with _source(job) as opened, pa.ipc.open_stream(opened) as reader:
            schema, before = reader.schema, opened.tell()
            for batch, metadata in _with_metadata(reader):
                check()
                if end is not None:
                    raise Coded("arrow_invalid")  # nothing may follow the end record
                end = _end(metadata)
                if end is not None and batch.num_rows:
                    raise Coded("arrow_invalid")  # rows that nobody counts
                if end is None:
                    rows, batches, before = rows + batch.num_rows, batches + 1, opened.tell()
                    size += batch.nbytes
                    _within(job, rows)
                    for number, _, distinct in keys:
                        distinct.add(batch.column(number))
            if opened.read(1):
                raise Coded("arrow_invalid")  # bytes that nobody has looked at
            if job.arguments.get("once"):
                _keep(job, reader.stats)
            digest = _digest(opened, end, before, check) if job.arguments.get("digest") else ""
    except (pa.ArrowException, OSError, ValueError, IndexError):
        raise Coded("arrow_invalid") from None
    columns = [{"name": field.name, "type": str(field.type), "nullable": field.nullable} for field in schema]
    written = [path for _, path, distinct in keys if distinct.save(path)]
    return {
        "columns": columns, "rows": rows, "batches": batches, "bytes": size, "end": end, "digest": digest,
        "keys": written,
    }  # fmt: skip


def _digest(opened: Any, end: dict[str, Any] | None, before: int, check: Callable[[], None]) -> str:
    """The digest of the first `before` bytes, as an end record writes it; empty where it names none that we know."""
    name = str((end or {}).get("digest", "")).partition(":")[0]
    if name not in ("xxh3", "sha256"):
        return ""
    digest = new_digest(name)
    opened.seek(0)
    while before:
        check()
        piece = opened.read(min(before, _PIECE))
        digest.update(piece)
        before -= len(piece)
    return f"{name}:{digest.hexdigest()}"


class Distinct:
    """The distinct values of a column, as far as they are numbers, dates or texts and not too many."""

    def __init__(self) -> None:
        self.found: list[pa.Array] = []
        self.nbytes = 0
        self._there = True

    def add(self, column: pa.Array) -> None:
        """The values of one more batch."""
        kind = column.type
        simple = pa.types.is_integer(kind) or pa.types.is_string(kind) or pa.types.is_date(kind)
        if not (self._there and (simple or pa.types.is_decimal128(kind))):
            self._there = False
            return
        self.found.append(column.drop_null() if pa.types.is_integer(kind) else column.drop_null().unique())
        self.nbytes += self.found[-1].nbytes
        if self.nbytes > _DISTINCT_MAX:
            self.found = [_distinct(self.found)]
            self.nbytes = self.found[0].nbytes
            self._there = self.nbytes <= _DISTINCT_MAX // 2

    def save(self, path: str) -> bool:
        """Write them as a stream; whether there is anything to write."""
        if not self._there or not self.found:
            return False
        values = _distinct(self.found)
        options = pa.ipc.IpcWriteOptions(compression="zstd")
        with _writing(), pa.ipc.new_stream(path, pa.schema({"k": values.type}), options=options) as writer:
            writer.write_batch(pa.record_batch({"k": values}))
        return True


def unite(job: Job, *, check: Callable[[], None]) -> bool:
    """The values of the files of `Distinct.save` at `arguments.paths` as one, at `arguments.save`; whether that could
    be: values of several types are not compared here."""
    distinct = Distinct()
    try:
        for path in job.arguments["paths"]:
            check()
            with pa.OSFile(str(path), "rb") as file, pa.ipc.open_stream(file) as reader:
                for batch in _valid(reader):
                    distinct.add(batch.column(0))
        alike = len({values.type for values in distinct.found}) == 1
        return alike and distinct.save(str(job.arguments["save"]))
    except (pa.ArrowException, OSError):
        return False


def _distinct(parts: list[pa.Array]) -> pa.Array:
    """Each value once, sorted."""
    values = parts[0] if len(parts) == 1 else pa.concat_arrays(parts)
    if pa.types.is_integer(values.type) and len(values):
        numbers = values.to_numpy()
        ordered = numbers if (numbers[1:] >= numbers[:-1]).all() else np.sort(numbers)  # no hashes: thirty times faster
        return pa.array(ordered[np.concatenate(([True], ordered[1:] != ordered[:-1]))], values.type)
    values = values.unique()
    return values.take(pc.sort_indices(values))


def _keep(job: Job, stats: Any) -> None:
    """What the engine can read; it may take one dictionary of a column for another that came after it."""
    if stats.num_replaced_dictionaries or stats.num_dictionary_deltas:
        raise Coded("arrow_invalid")
    if job.blobs:
        with _writing():
            Path(job.arguments["path"]).write_bytes(job.blobs[0])


@contextmanager
def _writing() -> Iterator[None]:
    """What goes wrong with a file of ours is no fault of the stream."""
    try:
        yield
    except OSError:
        raise Coded("disk_full") from None


def _valid(reader: Any) -> Iterator[pa.RecordBatch]:
    for batch in reader:
        batch.validate(full=True)
        yield batch


def _with_metadata(reader: Any) -> Iterator[tuple[pa.RecordBatch, Any]]:
    while True:
        try:
            batch, metadata = reader.read_next_batch_with_custom_metadata()
        except StopIteration:
            return
        batch.validate(full=True)
        yield batch, metadata


def _end(metadata: Any) -> dict[str, Any] | None:
    if metadata is None or (text := metadata.get(wire.TRAILER_KEY)) is None:
        return None
    found = json.loads(text)
    if not isinstance(found, dict):
        raise Coded("arrow_invalid")
    return found


def _source(job: Job) -> Any:
    return pa.BufferReader(job.blobs[0]) if job.blobs else pa.OSFile(str(job.arguments["path"]), "rb")


def _within(job: Job, rows: int) -> None:
    if job.limits.rows is not None and rows > job.limits.rows:
        raise Coded("rows_limit")
