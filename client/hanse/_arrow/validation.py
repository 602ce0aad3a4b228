"""Validates a received batch as `RecordBatch.validate(full=True)` does, in less time.

Arrow checks UTF-8 and the range of decimals value by value, which costs more than receiving the values. A column whose
bytes are all ASCII has no broken UTF-8, wherever its values begin: only the offsets remain to be checked. Decimals
whose upper halves are all zero are compared by the largest lower half. Arrow checks any other column, and every column
if NumPy is absent (pyarrow loads NumPy by itself).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pyarrow as pa

from hanse._arrow.value_limits import type_names
from hanse.errors import Broken

np: Any = None
with suppress(ImportError):
    import numpy as np

_BINARY = {pa.string(): pa.binary(), pa.large_string(): pa.large_binary()}
_SAMPLE = 64
_VIEWED_MAX = 1 << 30  # bytes of texts in views: as many as a message may have


class Validator:
    """Validates the batches of one schema."""

    def __init__(self, schema: pa.Schema) -> None:
        checks = {place: _choose_check(kind) for place, kind in enumerate(schema.types)}
        self._checks = {place: check for place, check in checks.items() if check is not None}

    def check(self, batch: pa.RecordBatch) -> None:
        """Validate a batch.

        Raises:
            pa.ArrowInvalid: a value contradicts its type or its offsets.
            Broken: views of text expand to more than a message may have.
        """
        if not self._checks:
            batch.validate(full=True)
            return
        batch.validate()
        for place, column in enumerate(batch.columns):
            self._checks.get(place, _check_fully)(column)


def _choose_check(kind: pa.DataType) -> Callable[[pa.Array], None] | None:
    if "string_view" in type_names(kind):
        return _check_views
    if np is None:
        return None
    if kind in _BINARY:
        return _check_text
    return _check_decimal if pa.types.is_decimal128(kind) else None


def _check_fully(column: pa.Array) -> None:
    column.validate(full=True)


def _check_views(column: pa.Array) -> None:
    column.validate()  # before its buffers are read
    if (size := sum(map(_viewed_bytes, _nested_columns(column)))) > _VIEWED_MAX:
        raise Broken(
            f"expected texts of at most {_VIEWED_MAX} bytes in a batch, got {size}: views repeat the same bytes"
        )
    _check_fully(column)


def _nested_columns(column: pa.Array) -> Iterator[pa.Array]:
    """Yield a column and the columns that it consists of."""
    yield column
    kind = column.type
    if isinstance(column, pa.ExtensionArray):
        yield from _nested_columns(column.storage)
    elif pa.types.is_dictionary(kind):
        yield from _nested_columns(column.dictionary)
    elif pa.types.is_struct(kind) or pa.types.is_union(kind):
        for place in range(kind.num_fields):
            yield from _nested_columns(column.field(place))
    elif pa.types.is_nested(kind) or pa.types.is_run_end_encoded(kind):
        yield from _nested_columns(column.values)


def _viewed_bytes(column: pa.Array) -> int:
    """Return the bytes of the texts in views, counted per reference."""
    if column.type != pa.string_view() or not len(column):
        return 0
    views = memoryview(column.buffers()[1]).cast("B")[16 * column.offset :][: 16 * len(column)]
    lengths = views.cast("i")[::4]
    if np is None:
        return sum(length for length in lengths if length > 0)
    return int(np.maximum(lengths, 0).sum(dtype=np.int64))


def _check_text(column: pa.Array) -> None:
    data = column.buffers()[2]
    plain = not data or np.frombuffer(data, np.int8).min() >= 0
    _check_fully(column.view(_BINARY[column.type]) if plain else column)


def _check_decimal(column: pa.Array) -> None:
    missing, data = column.buffers()
    if missing is None and len(column):  # with nulls Arrow has to tell which values count
        halves = np.frombuffer(data, "<u8", 2 * len(column), 16 * column.offset)
        lower, upper = halves[::2], halves[1::2]
        # A negative value has an upper half. If the first values have one, do not read the rest.
        if not upper[:_SAMPLE].max() and not upper.max() and int(lower.max()) < 10**column.type.precision:
            return
    _check_fully(column)
