"""Splits a stream of rows into pieces that depend on the rows alone, not on the batches that they were received in."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from hanse._arrow.value_limits import widths
from hanse.errors import Broken

_BYTES = 8 * 2**20  # of a piece: it ends with the row that reaches them, or after _ROWS_MAX rows
_ROWS_MAX = 2**15
_KEPT_MAX = 2**30  # received bytes that one piece may keep


def split_evenly(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.Table]:
    """Yield tables of about 8 MiB and at most 32,768 rows: the same tables, to the byte, whatever batches the rows were
    received in.

    A library that re-reads rows after a failure, and counts what it has in pieces, needs that: a reopened stream has
    other batches.

    Raises:
        Broken: more than a gibibyte was received for one piece.
    """
    held, rows, nbytes, kept = list[pa.RecordBatch](), 0, 0.0, 0
    for batch in batches:
        until, start = _running_bytes(batch), 0
        while (stop := _piece_end(until, start, rows, nbytes)) <= batch.num_rows:
            yield from _rewrite([*held, batch.slice(start, stop - start)])
            held, rows, nbytes, kept, start = [], 0, 0.0, 0, stop
        if start < batch.num_rows:
            held.append(batch.slice(start))
            rows, nbytes = rows + batch.num_rows - start, nbytes + float(until[-1] - until[start])
            kept = _check_kept(held, kept + held[-1].nbytes)
    if held:
        yield from _rewrite(held)


def _running_bytes(batch: pa.RecordBatch) -> Any:
    """Return the bytes of the first n rows, for n from 0 to all."""
    until = np.zeros(batch.num_rows + 1)
    for column in batch.columns:
        until[1:] += widths(column)
    return np.cumsum(until)


def _piece_end(until: Any, start: int, rows: int, nbytes: float) -> int:
    """Return the row of a batch where the piece ends that has `rows` rows and `nbytes` bytes so far and continues at
    `start`; beyond the batch if it does not end there."""
    reached = int(np.searchsorted(until, until[start] + _BYTES - nbytes))
    return min(reached, start + _ROWS_MAX - rows)


def _check_kept(held: Sequence[pa.RecordBatch], nbytes: int) -> int:
    """Return the bytes that these batches keep, about; `nbytes` may count a shared dictionary repeatedly. Raises:
    Broken."""
    if nbytes > _KEPT_MAX and (nbytes := pa.Table.from_batches(held).get_total_buffer_size()) > _KEPT_MAX:
        rows = sum(batch.num_rows for batch in held)
        raise Broken(
            f"expected at most {_KEPT_MAX} bytes for {rows} rows with less than {_BYTES}, got {nbytes}: the owner "
            "sends data that no row refers to"
        )
    return nbytes


def _rewrite(parts: Sequence[pa.RecordBatch]) -> Iterator[pa.Table]:
    """Yield a copy as Arrow's writer produces it: a slice keeps the offsets and the validity bitmap of its batch.

    Several tables if one would have more text than 32 bits count.
    """
    for batch in pa.Table.from_batches(parts).combine_chunks().to_batches():
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, batch.schema) as writer:
            writer.write_batch(batch)
        yield pa.ipc.open_stream(sink.getvalue()).read_all()
