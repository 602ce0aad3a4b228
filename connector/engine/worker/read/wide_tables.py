"""Reads tables with thousands of columns in groups of columns, through files on disk. Runs in a worker.

The engine holds a page for each column that it reads, which for thousands of columns exceeds the memory of a scan. Each
group is read by a scan of its own and written to disk; row n of every group is row n of the answer. Only for answers in
stored order (`Job.ordered`).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from connector.datasets.sources.source_files import quote_name
from connector.engine.pool.error_codes import Coded
from connector.engine.pool.protocol import Job, is_wide
from policies.contracts.columns import fold

_COLUMN = 2**19  # bytes that the engine holds for a column: a page, and as much again


class Aside(NamedTuple):
    """Folder for groups of columns, with the limits of disk and memory in bytes."""

    folder: Path
    disk: int
    memory: int


def aside(job: Job, folder: Path | None, names: list[str]) -> Aside | None:
    """Return the place for the groups, or None where a plain scan can read these columns."""
    if folder is None or not job.ordered or not job.limits.temp_mb or not is_wide(len(names), job.limits.memory_mb):
        return None
    if len({fold(name) for name in names}) < len(names):
        return None
    return Aside(folder, job.limits.temp_mb * 2**20, job.limits.memory_mb * 2**20)


def reader(relation: Any, rows: int, place: Aside) -> pa.RecordBatchReader:
    """Return a reader of the relation in batches of `rows` rows. All rows are on disk when it returns."""
    place.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    names, at_once = list(map(quote_name, relation.columns)), max(1, place.memory // _COLUMN)
    parts: list[pa.RecordBatchReader] = []
    left = place.disk
    for start in range(0, len(names), at_once):
        some = relation.project(", ".join(names[start : start + at_once]))
        part, size = _write_aside(some.to_arrow_reader(rows), place.folder / "part", left)
        parts.append(part)
        left -= size
    schema = pa.schema([field for part in parts for field in part.schema])
    return pa.RecordBatchReader.from_batches(schema, _together(parts, schema))


def _write_aside(coming: pa.RecordBatchReader, path: Path, most: int) -> tuple[pa.RecordBatchReader, int]:
    """Write the rows to a file; return a reader of it, and its size. The file goes with its reader.

    Raises: Coded("memory_limit") beyond `most` bytes.
    """
    try:
        with pa.OSFile(str(path), "wb") as out, pa.ipc.new_stream(out, coming.schema) as written:
            for batch in coming:
                if out.tell() + batch.nbytes > most:
                    raise Coded("memory_limit")
                written.write_batch(batch)
        return pa.ipc.open_stream(pa.OSFile(str(path))), path.stat().st_size
    finally:
        path.unlink(missing_ok=True)


def _together(parts: list[pa.RecordBatchReader], schema: pa.Schema) -> Iterator[pa.RecordBatch]:
    for row in zip(*parts, strict=True):
        yield pa.RecordBatch.from_arrays([column for part in row for column in part.columns], schema=schema)
