"""Joins rows of received batches by slices, and counts the memory that the slices keep."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

import pyarrow as pa

from hanse.errors import BadInput

_SLACK_BYTES = 64 * 2**20  # bytes that joined rows may keep in memory beyond their own, before they are copied
Slice = tuple[pa.RecordBatch, int, int]  # a batch, its first row and the end


class Run:
    """Rows of consecutive slices. They keep little more memory than they need, whatever was received with them."""

    def __init__(self) -> None:
        self.slices: list[Slice] = []
        self.rows = 0
        self._held, self._most = 0, _SLACK_BYTES

    def add(self, batch: pa.RecordBatch, start: int, stop: int, *, keeps: int) -> None:
        """Add rows of a batch that keeps `keeps` bytes of memory."""
        self.slices.append((batch, start, stop))
        self.rows += stop - start
        self._held += keeps * (stop - start) // batch.num_rows
        if self._held > self._most:
            self._compact()

    def _compact(self) -> None:
        batches = [batch.slice(start, stop - start) for batch, start, stop in self.slices]
        if sum(map(value_bytes, batches)) < self._held // 4:
            with suppress(pa.ArrowInvalid):  # too many bytes for one batch: joining raises the error
                copied = pa.concat_batches([*batches, batches[0].slice(0, 0)])  # a single batch would not be copied
                self.slices = [(copied, 0, self.rows)]
                self._held = kept_bytes(copied) + overhead_bytes(copied)
        self._most = 2 * self._held + _SLACK_BYTES  # so that measuring stays rare


def join_slices(slices: Sequence[Slice]) -> pa.RecordBatch:
    """Return the slices as one batch; a single slice is not copied."""
    return join_batches([batch.slice(start, stop - start) for batch, start, stop in slices])


def join_batches(batches: Sequence[pa.RecordBatch]) -> pa.RecordBatch:
    """Return the rows of batches as one batch; a single batch is not copied.

    Raises:
        BadInput: a column's type cannot hold that many bytes.
    """
    if len(batches) == 1:
        return batches[0]
    try:
        return pa.concat_batches(batches)
    except pa.ArrowInvalid as error:
        raise _too_many_error(batches, error) from error


def _too_many_error(batches: Sequence[pa.RecordBatch], error: pa.ArrowInvalid) -> BadInput:
    """Return an error that names the column."""
    rows = sum(batch.num_rows for batch in batches)
    for number, column in enumerate(batches[0].schema):
        if pa.types.is_primitive(column.type):  # numbers always fit
            continue
        try:
            pa.concat_arrays([batch.column(number) for batch in batches])
        except pa.ArrowInvalid:
            return BadInput(
                f"expected no more in column {column.name} of a batch than {column.type} can hold (bytes and text have "
                f"2 GiB); got {rows} rows with more ({error}): use a smaller batch_size or window"
            )
    return BadInput(f"expected rows that fit in one batch, got {rows} that do not: {error}; use a smaller batch_size")


def kept_bytes(batch: pa.RecordBatch) -> int:
    """Return the bytes of memory that a received batch keeps; cheaper than `nbytes`, which measures each column."""
    return int(batch.get_total_buffer_size())


def value_bytes(batch: pa.RecordBatch) -> int:
    """Return the bytes of a batch's values; for unions the kept memory, because Arrow 26 reads a missing buffer of an
    empty received union, and the process crashes."""
    union = any("union<" in str(kind) for kind in batch.schema.types)
    return kept_bytes(batch) if union else int(batch.nbytes)


def overhead_bytes(batch: pa.RecordBatch) -> int:
    """Return the bytes that a batch takes in addition to its buffers, about: most of a small batch."""
    return 2048 + 512 * int(batch.num_columns)
