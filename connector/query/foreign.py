"""Arrow that somebody else wrote: validated fully, in this process only, before anything looks into it.

A few per cent of mutated IPC inputs crash the parser where batches are not validated (evidence-and-hardening,
section 0): a crash here costs one job. Runs in a worker.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa

from connector.query import job as wire
from connector.query.codes import Coded
from connector.query.job import Job

_BLOB_MAX = 256 * 2**20


def read_blob(blob: bytes) -> pa.Table:
    """A small stream (keys of a semi-join) as a table."""
    if len(blob) > _BLOB_MAX:
        raise Coded("arrow_too_large", most=_BLOB_MAX)
    try:
        with pa.ipc.open_stream(pa.BufferReader(blob)) as reader:
            return pa.Table.from_batches(list(_valid(reader)), schema=reader.schema)
    except (pa.ArrowException, OSError):
        raise Coded("arrow_invalid") from None


def check(job: Job, *, check: Callable[[], None]) -> dict[str, Any]:
    """Read a stream from `arguments.path` or blob 0 to its end; its columns, totals and end record.

    With `arguments.save` the valid batches are kept as an Arrow IPC file, which the engine can read as a relation.
    `end` is None where the stream has no end record: such a stream is not complete, whatever it holds.
    """
    rows = batches = 0
    end: dict[str, Any] | None = None
    writer: Any = None
    try:
        with _source(job) as opened, pa.ipc.open_stream(opened) as reader:
            schema = reader.schema
            save = job.arguments.get("save")
            writer = pa.ipc.new_file(str(save), schema) if save else None
            for batch, metadata in _with_metadata(reader):
                check()
                if end is not None:
                    raise Coded("arrow_invalid")  # nothing may follow the end record
                end = _end(metadata)
                if end is None:
                    rows, batches = rows + batch.num_rows, batches + 1
                    _within(job, rows)
                    if writer is not None:
                        writer.write_batch(batch)
    except (pa.ArrowException, OSError, ValueError):
        raise Coded("arrow_invalid") from None
    finally:
        if writer is not None:
            writer.close()
    columns = [{"name": field.name, "type": str(field.type), "nullable": field.nullable} for field in schema]
    return {"columns": columns, "rows": rows, "batches": batches, "end": end}


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
    if path := job.arguments.get("path"):
        return pa.OSFile(str(Path(path)), "rb")
    return pa.BufferReader(job.blobs[0])


def _within(job: Job, rows: int) -> None:
    if job.limits.rows is not None and rows > job.limits.rows:
        raise Coded("rows_limit")
