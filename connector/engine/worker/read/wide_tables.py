"""Rows of thousands of columns: some columns after the others to the disk, and from there side by side.

For each column that it reads the engine holds a page, and of thousands these are more than a scan may have. So the
columns are read in parts, each by a scan of its own, and row n of every part is row n of the answer: only for answers
whose rows come in the order in which they are stored (`Job.ordered`). Runs in a worker.
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
    """Where parts of wide rows lie meanwhile, and bytes that they and the engine may take."""

    folder: Path
    disk: int
    memory: int


def aside(job: Job, folder: Path | None, names: list[str]) -> Aside | None:
    """Where there is a place for rows of these columns; None where they are to be read as they are."""
    if folder is None or not job.ordered or not job.limits.temp_mb or not is_wide(len(names), job.limits.memory_mb):
        return None
    if len({fold(name) for name in names}) < len(names):
        return None
    return Aside(folder, job.limits.temp_mb * 2**20, job.limits.memory_mb * 2**20)


def reader(relation: Any, rows: int, place: Aside) -> pa.RecordBatchReader:
    """As the relation's own, in batches of `rows` rows. All of them are read by the time it is there."""
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
    """The same from a file, which goes with its reader, and the file's size."""
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
