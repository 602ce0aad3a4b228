"""Rows in pieces that follow from the rows alone, and not from how they came."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from hanse._arrow.value_limits import widths
from hanse.errors import Broken

_BYTES = 8 * 2**20  # of a piece: it ends with the row that reaches them, or with the last of these rows
_ROWS_MAX = 2**15
_KEPT_MAX = 2**30  # bytes of what came for one piece, whose rows have less than the above


def even(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.Table]:
    """About 8 MiB by 8 MiB, of at most 32,768 rows: the same tables, to the byte, whatever batches their rows came in.

    What asks for rows again after a failure and counts what it has of them in pieces needs that: a stream that was
    reopened comes in others. Broken where what came for one piece is more than a gibibyte.
    """
    held, rows, nbytes, kept = list[pa.RecordBatch](), 0, 0.0, 0
    for batch in batches:
        until, start = _until(batch), 0
        while (stop := _end(until, start, rows, nbytes)) <= batch.num_rows:
            yield from _anew([*held, batch.slice(start, stop - start)])
            held, rows, nbytes, kept, start = [], 0, 0.0, 0, stop
        if start < batch.num_rows:
            held.append(batch.slice(start))
            rows, nbytes = rows + batch.num_rows - start, nbytes + float(until[-1] - until[start])
            kept = _bounded(held, kept + held[-1].nbytes)
    if held:
        yield from _anew(held)


def _until(batch: pa.RecordBatch) -> Any:
    """How many bytes the first rows have, for none of them to all."""
    until = np.zeros(batch.num_rows + 1)
    for column in batch.columns:
        until[1:] += widths(column)
    return np.cumsum(until)


def _end(until: Any, start: int, rows: int, nbytes: float) -> int:
    """With which row of a batch the piece ends that has these before it, and goes on at `start`; one beyond the batch
    where it does not end there."""
    reached = int(np.searchsorted(until, until[start] + _BYTES - nbytes))
    return min(reached, start + _ROWS_MAX - rows)


def _bounded(held: Sequence[pa.RecordBatch], nbytes: int) -> int:
    """About how many bytes these take, of which `nbytes` may count some again: a dictionary in each batch."""
    if nbytes > _KEPT_MAX and (nbytes := pa.Table.from_batches(held).get_total_buffer_size()) > _KEPT_MAX:
        rows = sum(batch.num_rows for batch in held)
        raise Broken(
            f"expected at most {_KEPT_MAX} bytes for {rows} rows that have less than {_BYTES}, got {nbytes}: their "
            "owner sends much that none of them names"
        )
    return nbytes


def _anew(parts: Sequence[pa.RecordBatch]) -> Iterator[pa.Table]:
    """As a writer of Arrow has them: a slice keeps the offsets of its batch, and its room for nulls where it has none.

    Several where one would have more text than 32 bits count.
    """
    for batch in pa.Table.from_batches(parts).combine_chunks().to_batches():
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, batch.schema) as writer:
            writer.write_batch(batch)
        yield pa.ipc.open_stream(sink.getvalue()).read_all()
