"""Splits and merges record batches to a target size in bytes. Knows Arrow's batches and no engine."""

from __future__ import annotations

from bisect import bisect_right
from collections import deque
from collections.abc import Iterator
from typing import Any

import pyarrow as pa

ROWS_MIN, _ROWS_MAX = 256, 262_144
_LEAST_BYTES = 16 * 2**20  # unless _ROWS_MIN rows have fewer
_VECTOR = 2048
_LIST_LENGTH = 4
# Bytes of one value where the type fixes them; text and blobs are guessed unless the profile knows better.
_WIDTHS = {
    "boolean": 1, "tinyint": 1, "utinyint": 1, "smallint": 2, "usmallint": 2, "integer": 4, "uinteger": 4,
    "bigint": 8, "ubigint": 8, "float": 4, "double": 8, "date": 4, "time": 8, "timestamp": 8,
    "timestamp with time zone": 8, "uuid": 40, "varchar": 24, "blob": 4096, "enum": 24,
}  # fmt: skip


def rows_for(width: float, target: int) -> int:
    """Return how many rows of `width` bytes make about `target` bytes, in whole engine vectors where they fit."""
    least = max(1, min(ROWS_MIN, int(_LEAST_BYTES / max(width, 1.0))))  # a few large values take much memory
    rows = max(least, min(_ROWS_MAX, int(target / max(width, 1.0))))
    return rows - rows % _VECTOR if rows > _VECTOR else rows


def width_of(kind: Any) -> float:
    """Return the bytes of one value of an engine's type, guessed where values vary; `cut` and `gather` correct it."""
    name = str(kind.id)
    if name in ("list", "map"):
        return 4 + _LIST_LENGTH * sum(width_of(child) for _, child in kind.children)
    if name == "array":
        (_, child), (_, size) = kind.children
        return float(width_of(child) * size)
    if name in ("struct", "union"):
        return float(sum(width_of(child) for _, child in kind.children))
    return float(_WIDTHS.get(name, 16))


def measured(guess: float, known: float | None) -> float:
    """Return the measured width in place of a guess. The profile measures encoded values, so it is rather small."""
    return guess if known is None or guess <= 16 else max(8.0, known)


def gather(batches: Iterator[pa.RecordBatch], *, at_least: int, width: float = 0.0) -> Iterator[pa.RecordBatch]:
    """Yield the batches, small ones joined up to `at_least` bytes; the first leaves at once.

    `width`: bytes of a row where known.
    """
    kept: list[pa.RecordBatch] = []
    size = at_least
    for batch in batches:
        kept.append(batch)
        size += _nbytes(batch, width)
        if size >= at_least:
            yield kept[0] if len(kept) == 1 else pa.concat_batches(kept)
            kept, size = [], 0
    if kept:
        yield pa.concat_batches(kept)


def plain_schema(schema: pa.Schema) -> pa.Schema:
    """Return the schema with views and dictionaries, which some readers do not know, written out."""
    return pa.schema([field.with_type(_plain_type(field.type)) for field in schema])


def plain(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    """Return the batch in the plain schema; unchanged where it has it."""
    return batch if batch.schema == schema else batch.cast(schema)


def evenly(
    batches: Iterator[pa.RecordBatch], target: int, *, rows: int = 0, width: float = 0.0
) -> Iterator[pa.RecordBatch]:
    """Yield the rows in batches whose ends depend on these rows only.

    The engine ends a batch with each row group, which would reveal how many rows of a group a policy hides.
    `rows`: rows of each batch, which is copied (see `cut`); else about `target` bytes, estimated from the previous
    batch. `width`: as in `cut`.
    """
    kept: deque[pa.RecordBatch] = deque()
    count, size, step = 0, 0, rows or ROWS_MIN
    for batch in batches:
        kept.append(batch)
        count, size = count + batch.num_rows, size + _nbytes(batch, width)
        while count >= step or size > 2 * target:
            first = _take(kept, step)
            large = _nbytes(first, width) > 2 * target
            if large:
                fits = _most(first, target, width)
                kept.appendleft(first.slice(fits))
                first = first.slice(0, fits)
            elif first.num_rows < step:  # together they are smaller than their sum
                kept.appendleft(first)
                break
            yield pa.concat_batches([first, first.slice(0, 0)]) if rows else first
            count, size = count - first.num_rows, sum(_nbytes(one, width) for one in kept)
            if not rows:
                step = rows_for(_nbytes(first, width) / first.num_rows, target)
    if count:
        yield pa.concat_batches(kept)


def _take(kept: deque[pa.RecordBatch], rows: int) -> pa.RecordBatch:
    """Remove the first `rows` rows, or all if there are fewer; return them as one batch. The rest is not copied."""
    taken, missing = [], rows
    while kept and missing:
        batch = kept.popleft()
        taken.append(batch.slice(0, missing))
        if batch.num_rows > missing:
            kept.appendleft(batch.slice(missing))
        missing -= taken[-1].num_rows
    return taken[0] if len(taken) == 1 else pa.concat_batches(taken)


def _most(batch: pa.RecordBatch, target: int, width: float) -> int:
    """Return how many of the first rows fit into `target` bytes; at least one."""
    return max(
        1, bisect_right(range(1, batch.num_rows + 1), target, key=lambda some: _nbytes(batch.slice(0, some), width))
    )


def _nbytes(batch: pa.RecordBatch, width: float) -> int:
    return int(batch.num_rows * width) or int(batch.nbytes)


def fixed_width(schema: pa.Schema) -> float:
    """Return the bytes of a row where the types fix them, else 0.0. Summing over a batch of many columns is slow."""
    fixed = all(pa.types.is_primitive(kind) or pa.types.is_decimal(kind) for kind in schema.types)
    return sum(kind.bit_width for kind in schema.types) / 8 if fixed else 0.0


def cut(batch: pa.RecordBatch, target: int, *, apart: bool = False, width: float = 0.0) -> Iterator[pa.RecordBatch]:
    """Yield a batch that is far too large in pieces. `width`: bytes of a row where known.

    `apart`: as copies. Otherwise a writer pads a piece with the first bytes of the next, which a quota may withhold.
    """
    size = _nbytes(batch, width)
    pieces = min(batch.num_rows, -(-size // target)) if size > 2 * target else 1
    if pieces <= 1:
        yield batch
        return
    step = -(-batch.num_rows // pieces)
    if apart:
        yield from of_rows(batch, step)
        return
    for start in range(0, batch.num_rows, step):
        yield batch.slice(start, step)


def of_rows(batch: pa.RecordBatch, rows: int) -> Iterator[pa.RecordBatch]:
    """Yield a batch in copies of at most so many rows."""
    if batch.num_rows <= rows:
        yield batch
        return
    for start in range(0, batch.num_rows, rows):
        piece = batch.slice(start, rows)
        yield pa.concat_batches([piece, piece.slice(0, 0)])


def _plain_type(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_dictionary(kind):
        return _plain_type(kind.value_type)
    if kind == pa.string_view():
        return pa.string()
    if kind == pa.binary_view():
        return pa.binary()
    return kind
