"""Compares an answer's types with the expected ones (`connector.federation.expected_types`). Runs in a worker.

Two types are equal where they only encode the same values differently: a dictionary, a view, long offsets, another
time zone. Whole numbers are not equal to text, to DOUBLE or to a smaller DECIMAL.
"""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

_SHOWN = 100  # characters of a foreign type
_COUNTED_MAX = 2**48  # rows that one answer may count: no data has as many, and those of all owners still add up


class AnswerTypeCheck:
    """Checks one answer. `wrong` describes the first difference; empty while all fits."""

    def __init__(self, shape: Sequence[Any] | None, names: Sequence[str]) -> None:
        """`shape`: from `Shape.to_json`, or None where nothing is expected. `names`: the answer's columns."""
        self.wrong = ""
        self.names = names
        self._shape = shape
        self._counts: Sequence[int] = ()  # numbers of columns
        self._counted: Counter[int] = Counter()  # rows, by these
        self._finite: list[int] = []
        self._binned = False

    def check_schema(self, found: pa.Schema) -> None:
        """Check the types of the answer."""
        if self._shape is None or len(found) != len(self.names):  # the caller compares the names
            return
        schema, self._counts, self._binned = self._shape
        if schema:
            expected = pa.ipc.read_schema(pa.BufferReader(base64.b64decode(schema)))
            for number, (kind, came) in enumerate(zip(expected.types, found.types, strict=True)):
                self._check_type(number, kind, came)
        elif schema is None:
            self.wrong = "the types of its columns are too large, or too deep, to be checked; ask for other columns"
        else:
            self.wrong = "the question does not fit the types that were agreed, and was answered nonetheless"

    def _check_type(self, number: int, kind: pa.DataType, came: pa.DataType) -> None:
        binned = self._binned and number not in self._counts and _are_numbers(kind, came)
        if not (binned or _is_same_type(kind, came)):
            self.wrong = (
                self.wrong or f'expected "{self.names[number]}" as {_shorten_type(kind)}, came {_shorten_type(came)}'
            )
        elif pa.types.is_floating(came) and not pa.types.is_floating(kind):
            self._finite.append(number)

    def check_batch(self, rows: pa.RecordBatch) -> None:
        """Check some rows of the answer."""
        if self.wrong:
            return
        for number in self._counts:
            column = rows.column(number)
            if (column.null_count and not self._binned) or pc.any(pc.less(column, 0)).as_py():
                self.wrong = f'expected numbers of rows in "{self.names[number]}", came NULL or one below zero'
            self._counted[number] += pc.sum(pc.cast(column, pa.float64(), safe=False)).as_py() or 0
            if self._counted[number] > _COUNTED_MAX:
                self.wrong = f'expected numbers of rows in "{self.names[number]}", came more than any data has'
        for number in self._finite:
            if pc.all(pc.is_finite(rows.column(number))).as_py() is False:
                self.wrong = f'expected numbers in "{self.names[number]}", came one that is not finite'


def _shorten_type(kind: pa.DataType) -> str:
    return "".join(one if one.isprintable() else "?" for one in str(kind)[:_SHOWN])


def _are_numbers(*kinds: pa.DataType) -> bool:
    """Whether all are numbers that the engine reads unchanged."""
    tests = (pa.types.is_integer, pa.types.is_float32, pa.types.is_float64, pa.types.is_decimal128)
    return all(any(test(kind) for test in tests) for kind in kinds)


def _is_same_type(kind: pa.DataType, came: pa.DataType) -> bool:
    return bool(kind == came) or _canonical_type(kind) == _canonical_type(came)


def _canonical_type(kind: pa.DataType) -> pa.DataType:
    """Return the canonical form of a type."""
    if pa.types.is_dictionary(kind):
        return kind if _nests(kind.value_type) else _canonical_type(kind.value_type)
    if pa.types.is_timestamp(kind):
        return pa.timestamp(kind.unit, None if kind.tz is None else "UTC")
    if pa.types.is_map(kind):
        return pa.map_(_canonical_type(kind.key_type), _canonical_type(kind.item_type))
    if pa.types.is_fixed_size_list(kind):
        return pa.list_(_canonical_type(kind.value_type), kind.list_size)
    if any(test(kind) for test in _LISTS):
        return pa.list_(_canonical_type(kind.value_type))
    if pa.types.is_struct(kind):
        return pa.struct([pa.field(one.name, _canonical_type(one.type)) for one in kind])
    return _SHORT.get(kind, kind)


def _nests(kind: pa.DataType) -> bool:
    """Whether the engine cannot read a dictionary of such values."""
    return bool(pa.types.is_nested(kind) or pa.types.is_dictionary(kind))


_LISTS = (pa.types.is_list, pa.types.is_large_list, pa.types.is_list_view, pa.types.is_large_list_view)
_SHORT = {
    pa.large_string(): pa.string(),
    pa.string_view(): pa.string(),
    pa.large_binary(): pa.binary(),
    pa.binary_view(): pa.binary(),
}
