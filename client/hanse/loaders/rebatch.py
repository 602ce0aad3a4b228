"""Splits a stream of rows into pieces that depend on the rows alone, not on the batches that they were received in."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import types

from hanse._arrow.value_limits import flatten_lists
from hanse.errors import Broken

_BYTES = 8 * 2**20  # of a piece: it ends with the row that reaches them, or after _ROWS_MAX rows
_ROWS_MAX = 2**15
_KEPT_MAX = 2**30  # received bytes that one piece may keep
_ENTRY = 8  # bytes of a value's entry


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
        until[1:] += _widths(column)
    return np.cumsum(until)


def _widths(column: pa.Array) -> Any:
    """Return the bytes that each value takes in Arrow, about. They depend on the values alone: not on how rows were
    split and joined, nor on bytes under nulls, nor on the order of a dictionary."""
    kind, count = column.type, len(column)
    if not count or types.is_null(kind) or types.is_dictionary(kind):
        return np.full(count, _ENTRY)
    if types.is_struct(kind):
        found = _ENTRY + sum(_widths(column.field(place)) for place in range(kind.num_fields))
    elif types.is_union(kind):
        codes = np.frombuffer(column.buffers()[1], np.int8, count, column.offset)
        parts = zip(kind.type_codes, range(kind.num_fields), strict=True)
        return sum(np.where(codes == code, _widths(column.field(place)), 0) for code, place in parts)
    elif types.is_nested(kind):
        found = _ENTRY + _list_widths(column)
    elif types.is_primitive(kind) or types.is_decimal(kind) or types.is_fixed_size_binary(kind):
        return np.full(count, max(1, kind.bit_width // 8))
    else:
        found = _ENTRY + _numbers(pc.fill_null(pc.binary_length(column).cast(pa.int64()), 0))
    return np.where(_numbers(column.is_valid().cast(pa.int8())), found, _ENTRY)


def _list_widths(column: pa.Array) -> Any:
    until = np.concatenate([[0], np.cumsum(_widths(flatten_lists(column)))])
    if types.is_fixed_size_list(column.type):
        places = np.arange(len(column) + 1) * column.type.list_size
    else:
        places = _numbers(column.offsets)
    return np.diff(until[places - places[0]])


def _numbers(column: pa.Array) -> Any:
    """Return the whole numbers of a column without nulls. Arrow's `to_numpy` would load pandas."""
    kind = np.dtype(f"i{column.type.bit_width // 8}")
    return np.frombuffer(column.buffers()[1], kind, len(column), column.offset * kind.itemsize)


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
