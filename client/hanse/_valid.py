"""Whether a batch that was made elsewhere is what it says: as `RecordBatch.validate(full=True)`, in less time.

Arrow looks for broken UTF-8 and for decimals that are too large value by value, which costs more than receiving the
values did. A column whose bytes are all ASCII has no broken UTF-8, wherever its values begin: only their borders are
left to check. Decimals whose upper halves are all zero are compared by the largest of their lower halves. Any other
column is Arrow's; all of them are where there is no NumPy (pyarrow loads it by itself where there is).
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

import pyarrow as pa

np: Any = None
with suppress(ImportError):
    import numpy as np

_BINARY = {pa.string(): pa.binary(), pa.large_string(): pa.large_binary()}
_LOOKED_AT = 64


class Validator:
    """For the batches of one schema."""

    def __init__(self, schema: pa.Schema) -> None:
        checks = {place: _check_of(kind) for place, kind in enumerate(schema.types)}
        self._checks = {place: check for place, check in checks.items() if check is not None}

    def check(self, batch: pa.RecordBatch) -> None:
        """ArrowInvalid where something in the batch is not as it says."""
        if not self._checks:
            batch.validate(full=True)
            return
        batch.validate()
        for place, column in enumerate(batch.columns):
            self._checks.get(place, _fully)(column)


def _check_of(kind: pa.DataType) -> Callable[[pa.Array], None] | None:
    if np is None:
        return None
    if kind in _BINARY:
        return _text
    return _decimal if pa.types.is_decimal128(kind) else None


def _fully(column: pa.Array) -> None:
    column.validate(full=True)


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
