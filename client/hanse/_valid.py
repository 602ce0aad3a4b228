"""Whether a batch that was made elsewhere is what it says: as `RecordBatch.validate(full=True)`, in half the time.

Arrow looks for broken UTF-8 value by value, which costs more than receiving the values did. A column whose bytes are
all ASCII has none, wherever its values begin; only their borders are left to check. Any other column is Arrow's.
"""

from __future__ import annotations

import pyarrow as pa

_BINARY = {pa.string(): pa.binary(), pa.large_string(): pa.large_binary()}
_PIECE = 64 * 1024  # stays in the processor's cache


class Validator:
    """For the batches of one schema."""

    def __init__(self, schema: pa.Schema) -> None:
        self._texts = {place: _BINARY[kind] for place, kind in enumerate(schema.types) if kind in _BINARY}

    def check(self, batch: pa.RecordBatch) -> None:
        """ArrowInvalid where something in the batch is not as it says."""
        if not self._texts:
            batch.validate(full=True)
            return
        batch.validate()
        for place, column in enumerate(batch.columns):
            plain = place in self._texts and _ascii(column)
            (column.view(self._texts[place]) if plain else column).validate(full=True)


def _ascii(column: pa.Array) -> bool:
    data = column.buffers()[2]
    view = memoryview(b"" if data is None else data)
    return all(bytes(view[at : at + _PIECE]).isascii() for at in range(0, len(view), _PIECE))
