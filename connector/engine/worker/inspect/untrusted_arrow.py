"""Validates Arrow data from other parties in full before anything reads it. Runs in a worker only.

A few per cent of mutated IPC inputs crash the parser where batches are not validated (evidence-and-hardening, section
0): a crash here costs one job.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from connector.datasets.sources.arrow_ipc import size_of
from connector.datasets.sources.extension_types import cast_batch, trusted_schema
from connector.engine.pool import protocol as wire
from connector.engine.pool.error_codes import Coded
from connector.engine.pool.protocol import Job
from connector.engine.worker.inspect.answer_types import AnswerTypeCheck
from connector.errors import harmless
from connector.infra.formats.digests import NAMES, is_intact, new_digest
from policies.contracts.columns import fold

_BLOB_MAX = 256 * 2**20
_BLOB_ROWS_MAX = 2**24  # of a table of keys: five times what a coordinator of ours sends
_PIECE = 4 * 2**20
_HELD_MAX = 16 * 2**20  # bytes of rows of answers that came small: a megabyte may unfold to a thousand
_END_FIELDS, _END_TEXT = 32, 1000  # of an end record
_BATCH_ROWS_MAX = 2**31 - 1  # as many as Arrow's writers put into one; rows without bytes could be any number
_DISTINCT_MAX = 48 * 10**6  # bytes of values as they come; half of it when they are joined: three million numbers


def read_blob(blob: bytes, *, columns: Sequence[str] = ()) -> pa.Table:
    """Return a small stream (keys of a semi-join) as a table.

    `columns`: exactly these columns are expected, because the gate has checked the query with them; empty: any.
    The engine writes each value out, so rows and values are limited as well as bytes.
    """
    if len(blob) > _BLOB_MAX:
        raise Coded("arrow_too_large", most=_BLOB_MAX)
    with _map_parser_errors(), pa.ipc.open_stream(pa.BufferReader(blob)) as reader:
        if columns and sorted(reader.schema.names) != sorted(columns):
            raise Coded("arrow_columns")
        schema = trusted_schema(reader.schema)
        if any(map(_can_repeat_values, schema.types)):
            raise Coded("arrow_repeats")
        return pa.Table.from_batches([cast_batch(batch, schema) for batch in _limit_batches(reader)], schema)


def _limit_batches(reader: Any) -> Iterator[pa.RecordBatch]:
    """Yield valid batches, while all of them together have few rows, and few bytes with every value written out."""
    rows = size = 0
    for batch in reader:
        rows += batch.num_rows  # before anything looks at each of them
        if rows > _BLOB_ROWS_MAX:
            raise Coded("arrow_too_large", most=_BLOB_ROWS_MAX)
        _validate(batch)
        size += sum(map(_expanded_bytes, batch.columns))
        if size > _BLOB_MAX:
            raise Coded("arrow_too_large", most=_BLOB_MAX)
        yield batch


def _can_repeat_values(kind: pa.DataType) -> bool:
    """Whether few bytes of a type can stand for many values.

    True for run-end encoding, views, and dictionaries of these or nested in another type: their size is not counted
    here.
    """
    if isinstance(kind, pa.BaseExtensionType):
        return _can_repeat_values(kind.storage_type)
    if pa.types.is_dictionary(kind):
        value = kind.value_type
        return not (pa.types.is_primitive(value) or _is_text(value) or pa.types.is_fixed_size_binary(value))
    if pa.types.is_run_end_encoded(kind) or any(is_one(kind) for is_one in _VIEWS):
        return True
    below = [kind.field(number).type for number in range(kind.num_fields)]
    return any(pa.types.is_dictionary(one) or _can_repeat_values(one) for one in below)


_VIEWS = (pa.types.is_string_view, pa.types.is_binary_view, pa.types.is_list_view, pa.types.is_large_list_view)


def _is_text(kind: pa.DataType) -> bool:
    """Whether values of this type have lengths of their own."""
    texts = (pa.types.is_string, pa.types.is_large_string, pa.types.is_binary, pa.types.is_large_binary)
    return any(is_one(kind) for is_one in texts)


def _expanded_bytes(column: pa.Array) -> int:
    """Return the bytes of a column with each value written out."""
    if not pa.types.is_dictionary(column.type):
        return size_of(column)
    if not _is_text(column.type.value_type):
        return len(column) * max(1, int(column.type.value_type.bit_width) // 8)
    lengths = pc.binary_length(column.dictionary).cast(pa.int64())
    return int(pc.sum(lengths.take(column.indices)).as_py() or 0)


def check(job: Job, *, check: Callable[[], None]) -> dict[str, Any]:
    """Read a stream from `arguments.path` or blob 0 to its end and return its columns, totals and end record.

    `bytes` counts the rows in memory, independent of the codec. `end` is None for a stream without an end record: it is
    incomplete.
    `arguments.once`: the engine reads the stream next, from the path; a blob is written there.
    `arguments.keys`: numbers of columns, and files for their distinct values, sorted, as a stream of one column `k`.
    The answer's `keys` are the files that were written.
    `arguments.digest`: return the digest of the bytes before the end record, in the algorithm that the record names.
    `arguments.shape` of the columns `arguments.names`: return in `wrong` what does not fit (see `answer_types`).
    """
    keys, judge = _Keys(job), AnswerTypeCheck(job.arguments.get("shape"), job.arguments.get("names") or ())
    with _map_parser_errors(), _open_source(job) as opened:
        seen = _read_stream(opened, keys.add, check, judge, most=job.limits.rows)
        columns = [{"name": one.name, "type": str(one.type), "nullable": one.nullable} for one in seen.schema]
        if job.arguments.get("once"):
            seen.refuse_dictionary_changes()
            if job.blobs:
                _save_blob(job.arguments["path"], job.blobs[0])
        if job.arguments.get("digest"):
            seen.digest = _compute_digest(opened, seen.end, seen.before, check)
    return {**seen.to_json(), "columns": columns, "wrong": judge.wrong, "keys": keys.save()}


def read(job: Job, *, check: Callable[[], None]) -> dict[str, Any]:
    """Read answers of owners, a blob each, of `arguments.columns` and `arguments.shapes`.

    `arguments.keys`: as for `check`, over all of them. An incomplete answer, or one of another shape, fails all.
    """
    keys, found, size = _Keys(job), [], 0
    for number, (blob, columns) in enumerate(zip(job.blobs, job.arguments["columns"], strict=True)):
        with _map_parser_errors():
            seen = _read_complete(blob, AnswerTypeCheck(_expected_shape(job, number), columns), keys.add, check)
        size += seen.size
        found.append(seen.to_json())
    if size > _HELD_MAX:  # they would not be held by the job that joins them
        raise Coded("arrow_too_large", most=_HELD_MAX)
    return {"answers": found, "keys": keys.save()}


def _expected_shape(job: Job, number: int) -> Any:
    """Return the expected shape of a blob's answer, if one was given."""
    shapes = job.arguments.get("shapes")
    return None if shapes is None else shapes[number]


class UnreadAnswers:
    """Reads answers of owners, a blob each, into memory for the job that joins them."""

    def __init__(self, job: Job, check: Callable[[], None]) -> None:
        self.summaries: dict[int, dict[str, Any]] = {}
        self._job = job
        self._check = check
        self._left = _HELD_MAX

    def tables(self, blobs: Sequence[int], columns: Sequence[str]) -> list[pa.Table]:
        """Return the rows of complete answers, as one table if their types are equal. Fills `summaries`."""
        found = [self._table(number, columns) for number in blobs]
        alike = all(one.schema == found[0].schema for one in found)
        return [pa.concat_tables(found)] if alike else found

    def _table(self, number: int, columns: Sequence[str]) -> pa.Table:
        batches: list[pa.RecordBatch] = []
        judge = AnswerTypeCheck(_expected_shape(self._job, number), columns)
        with _map_parser_errors():
            seen = _read_complete(self._job.blobs[number], judge, lambda batch: self._hold(batches, batch), self._check)
        self.summaries[number] = seen.to_json()
        # Only the types of the foreign schema are used.
        schema = trusted_schema(pa.schema(list(zip(columns, seen.schema.types, strict=True))))
        return pa.Table.from_batches([cast_batch(one, schema) for one in batches], schema)

    def _hold(self, batches: list[pa.RecordBatch], batch: pa.RecordBatch) -> None:
        self._left -= size_of(*batch.columns)
        if self._left < 0:
            raise Coded("arrow_too_large", most=_HELD_MAX)
        batches.append(batch)


@dataclass(slots=True)
class _StreamSummary:
    """Content and counts of a stream."""

    schema: pa.Schema
    before: int  # bytes before its end record
    rows: int = 0
    batches: int = 0
    size: int = 0
    end: dict[str, Any] | None = None
    stats: Any = None
    digest: str = ""  # computed over these bytes, where that was asked for and the end record names one

    def refuse_dictionary_changes(self) -> None:
        """Refuse a stream that replaces or extends a dictionary: the engine might use the wrong one."""
        if self.stats.num_replaced_dictionaries or self.stats.num_dictionary_deltas:
            raise Coded("arrow_invalid")

    def to_json(self) -> dict[str, Any]:
        counts = {"rows": self.rows, "batches": self.batches, "bytes": self.size}
        return {**counts, "end": self.end, "digest": self.digest}


def _read_stream(
    opened: Any,
    each: Callable[[pa.RecordBatch], None],
    check: Callable[[], None],
    judge: AnswerTypeCheck,
    *,
    most: int | None = None,
) -> _StreamSummary:
    """Read a stream to its end and pass each batch before the end record to `each`. Nothing may follow the record."""
    with pa.ipc.open_stream(opened) as reader:
        judge.check_schema(reader.schema)
        seen = _StreamSummary(reader.schema, opened.tell())
        for batch, metadata in _read_with_metadata(reader):
            check()
            if seen.end is not None:
                raise Coded("arrow_invalid")  # nothing may follow the end record
            seen.end = _parse_end(metadata)
            if seen.end is not None and batch.num_rows:
                raise Coded("arrow_invalid")  # rows that are not counted
            if seen.end is None:
                seen.rows, seen.batches, seen.before = seen.rows + batch.num_rows, seen.batches + 1, opened.tell()
                seen.size += size_of(*batch.columns)
                if most is not None and seen.rows > most:
                    raise Coded("rows_limit")
                judge.check_batch(batch)
                each(batch)
        if opened.read(1):
            raise Coded("arrow_invalid")  # bytes that were not checked
        seen.stats = reader.stats
    return seen


def _read_complete(
    blob: bytes, judge: AnswerTypeCheck, each: Callable[[pa.RecordBatch], None], check: Callable[[], None]
) -> _StreamSummary:
    """Read an owner's answer and check that it is complete: end record, row count, digest, columns and types."""
    opened = pa.BufferReader(blob)
    seen = _read_stream(opened, each, check, judge)
    seen.refuse_dictionary_changes()
    end = seen.end or {}
    seen.digest = _compute_digest(opened, seen.end, seen.before, check)
    named = [fold(name) for name in seen.schema.names] == [fold(name) for name in judge.names]
    whole = end.get("status") == "complete" and (end.get("rows"), end.get("digest")) == (seen.rows, seen.digest)
    if not whole or not named or judge.wrong:
        raise Coded("answer_unsound")
    return seen


@contextmanager
def _map_parser_errors() -> Iterator[None]:
    """Turn any error of the parser into `arrow_invalid`, or `memory_limit` where the stream is too large."""
    try:
        yield
    except MemoryError:  # Arrow's own, too
        raise Coded("memory_limit") from None
    except (pa.ArrowException, OSError, ValueError, IndexError, RecursionError):
        raise Coded("arrow_invalid") from None


class _Keys:
    """Collects the distinct values of the columns that a job names, each for a file."""

    def __init__(self, job: Job) -> None:
        self._found = [(number, path, Distinct()) for number, path in job.arguments.get("keys") or ()]

    def add(self, batch: pa.RecordBatch) -> None:
        for number, _, distinct in self._found:
            distinct.add(batch.column(number))

    def save(self) -> list[str]:
        """Write the files and return their paths."""
        return [path for _, path, distinct in self._found if distinct.save(path)]


def _compute_digest(opened: Any, end: dict[str, Any] | None, before: int, check: Callable[[], None]) -> str:
    """Return the digest of the first `before` bytes, as an end record writes it; empty for an unknown algorithm."""
    name = str((end or {}).get("digest", "")).partition(":")[0]
    if name not in NAMES:
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
    """Collects the distinct values of a column of numbers, dates or texts, up to a limit."""

    def __init__(self) -> None:
        self.found: list[pa.Array] = []
        self.nbytes = 0
        self._there = True

    def add(self, column: pa.Array) -> None:
        """Add the values of a batch."""
        kind = column.type
        simple = pa.types.is_integer(kind) or pa.types.is_string(kind) or pa.types.is_date(kind)
        if not (self._there and (simple or pa.types.is_decimal128(kind))):
            self._there = False
            return
        self.found.append(column.drop_null() if pa.types.is_integer(kind) else column.drop_null().unique())
        self.nbytes += self.found[-1].nbytes
        if self.nbytes > _DISTINCT_MAX:
            self.found = [_sort_distinct(self.found)]
            self.nbytes = self.found[0].nbytes
            self._there = self.nbytes <= _DISTINCT_MAX // 2

    def save(self, path: str) -> bool:
        """Write them as a stream. Returns whether there was anything to write."""
        if not self._there or len({values.type for values in self.found}) != 1:  # of several types: not compared here
            return False
        values = _sort_distinct(self.found)
        options = pa.ipc.IpcWriteOptions(compression="zstd")
        with _map_disk_errors(), pa.ipc.new_stream(path, pa.schema({"k": values.type}), options=options) as writer:
            writer.write_batch(pa.record_batch({"k": values}))
        return True


def unite(job: Job, *, check: Callable[[], None]) -> bool:
    """Unite the files of `Distinct.save` at `arguments.paths` into `arguments.save`. Returns whether that worked."""
    distinct = Distinct()
    try:
        for path in job.arguments["paths"]:
            check()
            with pa.OSFile(str(path), "rb") as file, pa.ipc.open_stream(file) as reader:
                for batch in _read_valid(reader):
                    distinct.add(batch.column(0))
        return distinct.save(str(job.arguments["save"]))
    except (pa.ArrowException, OSError):
        return False


def _sort_distinct(parts: list[pa.Array]) -> pa.Array:
    """Return each value once, sorted."""
    values = parts[0] if len(parts) == 1 else pa.concat_arrays(parts)
    if pa.types.is_integer(values.type) and len(values):
        numbers = values.to_numpy()
        ordered = numbers if (numbers[1:] >= numbers[:-1]).all() else np.sort(numbers)  # no hashes: thirty times faster
        return pa.array(ordered[np.concatenate(([True], ordered[1:] != ordered[:-1]))], values.type)
    values = values.unique()
    return values.take(pc.sort_indices(values))


def _save_blob(path: str, blob: bytes) -> None:
    """Write a blob to the path that the engine reads next."""
    with _map_disk_errors():
        Path(path).write_bytes(blob)


@contextmanager
def _map_disk_errors() -> Iterator[None]:
    """Turn an error of our own file into `disk_full`: it is no fault of the stream."""
    try:
        yield
    except OSError:
        raise Coded("disk_full") from None


def _read_valid(reader: Any) -> Iterator[pa.RecordBatch]:
    for batch in reader:
        _validate(batch)
        yield batch


def _read_with_metadata(reader: Any) -> Iterator[tuple[pa.RecordBatch, Any]]:
    while True:
        try:
            batch, metadata = reader.read_next_batch_with_custom_metadata()
        except StopIteration:
            return
        _validate(batch)
        yield batch, metadata


def _validate(batch: pa.RecordBatch) -> None:
    if batch.num_rows > _BATCH_ROWS_MAX:
        raise Coded("batch_too_long")
    batch.validate(full=True)


def _parse_end(metadata: Any) -> dict[str, Any] | None:
    if metadata is None or (text := metadata.get(wire.TRAILER_KEY)) is None:
        return None
    if not is_intact(bytes(text)):
        raise Coded("digest_mismatch")
    found = json.loads(text)
    if not isinstance(found, dict):
        raise Coded("arrow_invalid")
    return {harmless(name)[:100]: _clean_value(value) for name, value in list(found.items())[:_END_FIELDS]}


def _clean_value(value: Any) -> Any:
    """Return a value of an end record as a finite number, a short text or a list of them.

    A foreign record must not choose its own nesting, or hold values that JSON cannot express: then a revocation in it
    would be lost.
    """
    if isinstance(value, list):
        return [harmless(str(one))[:_END_TEXT] for one in value[:_END_FIELDS] if isinstance(one, str | int | float)]
    if isinstance(value, str):
        return harmless(value)[:_END_TEXT]
    finite = isinstance(value, int) or (isinstance(value, float) and math.isfinite(value))
    return value if value is None or finite else ""


def _open_source(job: Job) -> Any:
    return pa.BufferReader(job.blobs[0]) if job.blobs else pa.OSFile(str(job.arguments["path"]), "rb")
