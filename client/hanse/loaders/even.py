"""Rows in pieces that follow from the plan alone, and not from how they came."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import pyarrow as pa

from hanse.errors import Broken
from hanse.plan import Plan

_BYTES, _BYTES_MAX = 8 * 2**20, 2**30  # of a piece: by the plan, and where its owner has understated them
_ROWS_MAX = 2**15


def rows_of(plan: Plan, blocks: Sequence[int]) -> int:
    """How many rows a piece of these blocks has, so that it is about 8 MiB before conditions, and at most 32,768."""
    rows = sum(plan.blocks[number].rows for number in blocks)
    nbytes = sum(plan.blocks[number].nbytes for number in blocks)
    return min(_ROWS_MAX, max(1, rows * _BYTES // max(1, nbytes)))


def even(batches: Iterable[pa.RecordBatch], rows: int) -> Iterator[pa.Table]:
    """`rows` by `rows`, the last with what is left: the same tables, to the byte, whatever batches their rows came in.

    What asks for rows again after a failure and counts what it has of them in pieces needs that: a stream that was
    reopened comes in others. Broken where a piece would be larger than a gibibyte.
    """
    held, had = list[pa.RecordBatch](), 0
    for batch in batches:
        start = 0
        while had + batch.num_rows - start >= rows:
            taken = rows - had
            yield from _anew([*held, batch.slice(start, taken)])
            held, had, start = [], 0, start + taken
        if start < batch.num_rows:
            held, had = [*held, batch.slice(start)], had + batch.num_rows - start
            if sum(one.nbytes for one in held) > _BYTES_MAX:
                raise Broken(
                    f"expected at most {_BYTES_MAX} bytes in {rows} rows, came more; its owner plans them anew"
                )
    if held:
        yield from _anew(held)


def _anew(parts: Sequence[pa.RecordBatch]) -> Iterator[pa.Table]:
    """As a writer of Arrow has them: a slice keeps the offsets of its batch, and its room for nulls where it has none.

    Several where one would have more text than 32 bits count.
    """
    for batch in pa.Table.from_batches(parts).combine_chunks().to_batches():
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, batch.schema) as writer:
            writer.write_batch(batch)
        yield pa.ipc.open_stream(sink.getvalue()).read_all()
