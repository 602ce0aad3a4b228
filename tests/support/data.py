"""Small real data files for tests, written anew for each test session."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from connector.datasets.sources import read_options, source
from connector.datasets.sources.source_files import own_ref
from connector.engine.pool.protocol import IN_PLACE, Relation

ROWS = 200_000


@lru_cache(maxsize=4)  # making one takes longer than writing it
def table(rows: int = ROWS) -> pa.Table:
    """Numbers, text, dates, nulls and a nested column."""
    number = np.arange(rows)
    return pa.table(
        {
            "id": number,
            "x": (number * 37 % 1000) / 7.0,
            "name": pa.array([f"name-{i % 97}" for i in range(rows)]),
            "day": pa.array(number % 3650, pa.int32()).cast(pa.date32()),
            "gap": pa.array([None if i % 10 == 0 else i % 5 for i in range(rows)], pa.int8()),
            "tags": pa.array([[i % 3, i % 4] for i in range(rows)], pa.list_(pa.int16())),
        }
    )


def parquet(path: Path, rows: int = ROWS, *, codec: str = "zstd") -> Path:
    """The table as a Parquet file of several row groups."""
    pq.write_table(table(rows), path, compression=codec, row_group_size=50_000)
    return path


def stream(rows: pa.Table) -> bytes:
    """A table as a whole Arrow IPC stream."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, rows.schema) as writer:
        writer.write_table(rows)
    return bytes(sink.getvalue())


def rows_without_bytes(rows: int, *, batches: int = 1) -> bytes:
    """A stream whose batches say that they have so many rows: of a column of nulls no byte comes."""
    sink = pa.BufferOutputStream()
    batch = pa.record_batch({"n": pa.Array.from_buffers(pa.null(), rows, [None])})
    with pa.ipc.new_stream(sink, batch.schema, options=pa.ipc.IpcWriteOptions(allow_64bit=True)) as writer:
        for _ in range(batches):
            writer.write_batch(batch)
    return bytes(sink.getvalue())


def once(path: Path, rows: pa.Table, *, taken: str = IN_PLACE) -> Relation:
    """A table as an Arrow stream that one job reads, written to `path` in two batches and an empty one."""
    half = len(rows) // 2
    with pa.ipc.new_stream(path, rows.schema) as writer:
        writer.write_table(rows.slice(0, half))
        writer.write_table(rows.slice(half))
        writer.write_batch(rows.to_batches()[0].slice(0, 0))
    return Relation("", (own_ref(str(path), folder=path.parent).to_json(),), taken=taken)


def relation(kind: str, path: Path, root: Path, **options: object) -> Relation:
    """What a registered dataset at `path` would hand to the engine."""
    found = source(kind).find(str(path), roots=[root], options=options)
    return Relation(kind, tuple(file.to_json() for file in found), read_options(kind, options))
