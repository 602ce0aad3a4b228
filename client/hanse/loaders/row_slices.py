"""Rows put together from what came: slices of batches, and the memory that they keep."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

import pyarrow as pa

from hanse.errors import BadInput

_LOOSE = 64 * 2**20  # bytes that may be held beside rows that are put together, before they are copied apart from them
Slice = tuple[pa.RecordBatch, int, int]  # rows from one number to another


class Run:
    """Rows that are put together. They keep little more memory than they need, whatever came with them."""

    def __init__(self) -> None:
        self.slices: list[Slice] = []
        self.rows = 0
        self._held, self._most = 0, _LOOSE

    def add(self, batch: pa.RecordBatch, start: int, stop: int, *, keeps: int) -> None:
        """Rows of a batch that keeps so much."""
        self.slices.append((batch, start, stop))
        self.rows += stop - start
        self._held += keeps * (stop - start) // batch.num_rows
        if self._held > self._most:
            self._copy_what_is_loose()

    def _copy_what_is_loose(self) -> None:
        batches = [batch.slice(start, stop - start) for batch, start, stop in self.slices]
        if sum(map(exactly, batches)) < self._held // 4:
            with suppress(pa.ArrowInvalid):  # too many bytes for one: whoever needs them as one is told
                copied = pa.concat_batches([*batches, batches[0].slice(0, 0)])  # one alone would not be copied
                self.slices = [(copied, 0, self.rows)]
                self._held = held(copied) + beside(copied)
        self._most = 2 * self._held + _LOOSE  # so that looking costs little


def one(slices: Sequence[Slice]) -> pa.RecordBatch:
    """The batch that slices make: without a copy where it is a single one."""
    return whole([batch.slice(start, stop - start) for batch, start, stop in slices])


def whole(batches: Sequence[pa.RecordBatch]) -> pa.RecordBatch:
    """The rows of batches as one: without a copy where it is a single one. BadInput where the type of a column cannot
    have that many."""
    if len(batches) == 1:
        return batches[0]
    try:
        return pa.concat_batches(batches)
    except pa.ArrowInvalid as error:
        raise _too_many(batches, error) from error


def _too_many(batches: Sequence[pa.RecordBatch], error: pa.ArrowInvalid) -> BadInput:
    """Which column it was."""
    rows = sum(batch.num_rows for batch in batches)
    for number, column in enumerate(batches[0].schema):
        if pa.types.is_primitive(column.type):  # numbers always can, and would be copied for nothing
            continue
        try:
            pa.concat_arrays([batch.column(number) for batch in batches])
        except pa.ArrowInvalid:
            return BadInput(
                f"expected no more in column {column.name} of a batch than {column.type} can hold (bytes and text have "
                f"2 GiB); got {rows} rows that are more ({error}): use a smaller batch_size or window"
            )
    return BadInput(f"expected rows that can be one batch, got {rows} that cannot: {error}; use a smaller batch_size")


def held(batch: pa.RecordBatch) -> int:
    """Bytes of memory that a batch as it came keeps; `nbytes` looks at every column for its exact ones."""
    return int(batch.get_total_buffer_size())


def exactly(batch: pa.RecordBatch) -> int:
    """Bytes of a batch's values. Arrow 26 looks for those of a union that came and is empty, also in lists that all
    are, where there is nothing, and the process ends: then what it keeps."""
    union = any("union<" in str(kind) for kind in batch.schema.types)
    return held(batch) if union else int(batch.nbytes)


def beside(batch: pa.RecordBatch) -> int:
    """About the bytes that a batch takes beside its buffers: of one of few rows that is most."""
    return 2048 + 512 * int(batch.num_columns)
