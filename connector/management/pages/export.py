"""Turns an answer's Arrow stream (standard input) into a file (standard output), in a process of its own.

    python export.py csv|json|parquet|arrow

Batch by batch, in constant memory. Run by its path, as rows.py is. The exit status is 0 only if the stream had its end
record and that said "complete": what comes out of any other run is not the answer.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from typing import IO, Any


class Counted:
    """A pipe that knows how much went through it: Parquet writes down where its parts begin."""

    closed = False

    def __init__(self, pipe: IO[bytes]) -> None:
        self._pipe, self._size = pipe, 0

    def write(self, data: Any) -> int:
        self._pipe.write(data)
        self._size += len(data)
        return len(data)

    def tell(self) -> int:
        return self._size

    def flush(self) -> None:
        self._pipe.flush()

    def writable(self) -> bool:
        return True

    def readable(self) -> bool:
        return False

    def seekable(self) -> bool:
        return False

    def close(self) -> None:
        self.flush()


def export(kind: str, source: IO[bytes], target: IO[bytes]) -> bool:
    """Write it; whether the answer was complete."""
    import pyarrow as pa

    ended: dict[str, Any] = {}

    def batches(reader: Any) -> Iterator[Any]:
        while True:
            try:
                batch, metadata = reader.read_next_batch_with_custom_metadata()
            except StopIteration:
                return
            if metadata is not None:
                ended.update(json.loads(metadata[b"hanse.end"]))
                return
            yield batch

    with pa.ipc.open_stream(source) as reader:
        WRITERS[kind](reader.schema, batches(reader), Counted(target))
    target.flush()
    return ended.get("status") == "complete"


def _csv(schema: Any, batches: Iterator[Any], target: Counted) -> None:
    from pyarrow import csv

    with csv.CSVWriter(target, schema) as writer:
        for batch in batches:
            writer.write_batch(batch)


def _json(schema: Any, batches: Iterator[Any], target: Counted) -> None:
    for batch in batches:
        for row in batch.to_pylist():
            target.write((json.dumps(row, ensure_ascii=False, default=str) + "\n").encode())


def _parquet(schema: Any, batches: Iterator[Any], target: Counted) -> None:
    from pyarrow import parquet

    with parquet.ParquetWriter(target, schema, compression="zstd") as writer:
        for batch in batches:
            writer.write_batch(batch)


def _arrow(schema: Any, batches: Iterator[Any], target: Counted) -> None:
    import pyarrow as pa

    with pa.ipc.new_file(target, schema) as writer:
        for batch in batches:
            writer.write_batch(batch)


WRITERS: dict[str, Callable[[Any, Iterator[Any], Counted], None]] = {
    "csv": _csv,
    "json": _json,
    "parquet": _parquet,
    "arrow": _arrow,
}

if __name__ == "__main__":
    sys.exit(0 if export(sys.argv[1], sys.stdin.buffer, sys.stdout.buffer) else 1)
