"""A batch that is not what it says is found, and one that is passes: as Arrow's own full validation has it."""

from __future__ import annotations

import pyarrow as pa
import pytest
from hanse._valid import Validator

TEXT = ["plain", "", None, "Grüße", "\U0001f600", "x" * 100_000]


def validate(batch: pa.RecordBatch) -> None:
    Validator(batch.schema).check(batch)


def text(data: bytes, offsets: list[int], kind: pa.DataType) -> pa.RecordBatch:
    width = pa.int32() if kind == pa.string() else pa.int64()
    buffers = [None, pa.array(offsets, width).buffers()[1], pa.py_buffer(data)]
    return pa.record_batch({"a": pa.Array.from_buffers(kind, len(offsets) - 1, buffers)})


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.string_view(), pa.list_(pa.string())])
@pytest.mark.parametrize("values", [TEXT, TEXT[:3], [None], []], ids=["mixed", "ascii", "null", "none"])
def test_what_is_whole_passes(kind: pa.DataType, values: list[str | None]) -> None:
    array = pa.array([[one] for one in values], kind) if pa.types.is_list(kind) else pa.array(values, kind)
    batch = pa.record_batch({"a": array, "b": pa.array(range(len(values)), pa.int64())})
    validate(batch)
    validate(batch.slice(1))


@pytest.mark.parametrize("kind", [pa.string(), pa.large_string()])
@pytest.mark.parametrize(
    ("data", "offsets"),
    [
        (b"ab\xffcd", [0, 2, 5]),
        ("ü".encode(), [0, 1, 2]),  # whole UTF-8, cut inside a letter
        (b"abcd", [0, 3, 2, 4]),
        (b"abcd", [0, 1 << 30, 4]),
    ],
    ids=["not UTF-8", "cut letter", "backwards", "far and back"],
)
def test_what_is_broken_is_found(kind: pa.DataType, data: bytes, offsets: list[int]) -> None:
    batch = text(data, offsets, kind)
    with pytest.raises(pa.ArrowInvalid):
        batch.validate(full=True)
    with pytest.raises(pa.ArrowInvalid):
        validate(batch)


def test_other_columns_are_validated_as_fully() -> None:
    wide = pa.array([2**100], pa.decimal128(38, 0)).buffers()
    broken = pa.Array.from_buffers(pa.decimal128(5, 2), 1, wide)
    with pytest.raises(pa.ArrowInvalid):
        validate(pa.record_batch({"a": broken}))
