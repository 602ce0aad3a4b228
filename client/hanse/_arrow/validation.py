"""Whether a batch that was made elsewhere is what it says: as `RecordBatch.validate(full=True)`, in less time.

Arrow looks for broken UTF-8 and for decimals that are too large value by value, which costs more than receiving the
values did. A column whose bytes are all ASCII has no broken UTF-8, wherever its values begin: only their borders are
left to check. Decimals whose upper halves are all zero are compared by the largest of their lower halves. Any other
column is Arrow's; all of them are where there is no NumPy (pyarrow loads it by itself where there is).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pyarrow as pa

from hanse._arrow.value_limits import named
from hanse.errors import Broken

np: Any = None
with suppress(ImportError):
    import numpy as np

_BINARY = {pa.string(): pa.binary(), pa.large_string(): pa.large_binary()}
_LOOKED_AT = 64
_NAMED_MAX = 1 << 30  # bytes of texts that are views: as much as a message may have


class Validator:
    """For the batches of one schema."""

    def __init__(self, schema: pa.Schema) -> None:
        checks = {place: _check_of(kind) for place, kind in enumerate(schema.types)}
        self._checks = {place: check for place, check in checks.items() if check is not None}

    def check(self, batch: pa.RecordBatch) -> None:
        """ArrowInvalid where something in the batch is not as it says, Broken where to look would take for ever."""
        if not self._checks:
            batch.validate(full=True)
            return
        batch.validate()
        for place, column in enumerate(batch.columns):
            self._checks.get(place, _fully)(column)


def _check_of(kind: pa.DataType) -> Callable[[pa.Array], None] | None:
    if "string_view" in named(kind):
        return _views
    if np is None:
        return None
    if kind in _BINARY:
        return _text
    return _decimal if pa.types.is_decimal128(kind) else None


def _fully(column: pa.Array) -> None:
    column.validate(full=True)


def _views(column: pa.Array) -> None:
    column.validate()  # before its buffers are looked at
    if (size := sum(map(_viewed, _parts(column)))) > _NAMED_MAX:
        raise Broken(
            f"expected texts of at most {_NAMED_MAX} bytes in a batch, came {size}: the same ones again and again"
        )
    _fully(column)


def _parts(column: pa.Array) -> Iterator[pa.Array]:
    """The columns that a column is made of, and itself."""
    yield column
    kind = column.type
    if isinstance(column, pa.ExtensionArray):
        yield from _parts(column.storage)
    elif pa.types.is_dictionary(kind):
        yield from _parts(column.dictionary)
    elif pa.types.is_struct(kind) or pa.types.is_union(kind):
        for place in range(kind.num_fields):
            yield from _parts(column.field(place))
    elif pa.types.is_nested(kind) or pa.types.is_run_end_encoded(kind):
        yield from _parts(column.values)


def _viewed(column: pa.Array) -> int:
    """Bytes of the texts of views, each counted where it is named."""
    if column.type != pa.string_view() or not len(column):
        return 0
    views = memoryview(column.buffers()[1]).cast("B")[16 * column.offset :][: 16 * len(column)]
    lengths = views.cast("i")[::4]
    if np is None:
        return sum(one for one in lengths if one > 0)
    return int(np.maximum(lengths, 0).sum(dtype=np.int64))


def _text(column: pa.Array) -> None:
    data = column.buffers()[2]
    plain = not data or np.frombuffer(data, np.int8).min() >= 0
    _fully(column.view(_BINARY[column.type]) if plain else column)


def _decimal(column: pa.Array) -> None:
    missing, data = column.buffers()
    if missing is None and len(column):  # else Arrow counts what is missing
        halves = np.frombuffer(data, "<u8", 2 * len(column), 16 * column.offset)
        lower, upper = halves[::2], halves[1::2]
        # A negative one has an upper half: where the first have one, the rest is not looked at.
        if not upper[:_LOOKED_AT].max() and not upper.max() and int(lower.max()) < 10**column.type.precision:
            return
    _fully(column)
