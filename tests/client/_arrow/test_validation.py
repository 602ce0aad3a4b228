"""A batch that is not what it says is found, and one that is passes: as Arrow's own full validation has it."""

from __future__ import annotations

from collections.abc import Callable

import pyarrow as pa
import pytest
from hanse._arrow import validation
from hanse._arrow.validation import Validator
from hanse.errors import Broken

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


@pytest.mark.parametrize("numpy", [True, False], ids=["NumPy", "none"])
@pytest.mark.parametrize("nested", [lambda one: one, lambda one: pa.ListArray.from_arrays([0, len(one)], one),
                                    lambda one: pa.StructArray.from_arrays([one, one], ["a", "b"]),
                                    lambda one: pa.ExtensionArray.from_storage(pa.json_(pa.string_view()), one)],
                         ids=["alone", "in a list", "in a struct", "as JSON"])  # fmt: skip
def test_a_text_that_is_said_a_million_times_is_not_read_as_often(
    nested: Callable[[pa.Array], pa.Array], numpy: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Arrow would: of a few megabytes, for hours."""
    if not numpy:
        monkeypatch.setattr(validation, "np", None)
    size, count = 10_000_000, 100_000
    view = size.to_bytes(4, "little") + b"xxxx" + bytes(8)
    views = pa.Array.from_buffers(
        pa.string_view(), count, [None, pa.py_buffer(view * count), pa.py_buffer(b"x" * size)]
    )
    with pytest.raises(Broken, match="repeat the same bytes"):
        validate(pa.record_batch({"a": nested(views)}))
    validate(pa.record_batch({"a": nested(views.slice(5, 10))}))


HALF = 2**64
# As they lie, 16 bytes each: what a precision of 5 and one of 20 make of them.
DECIMALS = {
    "small": ([0, 99_999, 1], True, True),
    "too large by one": ([1, 100_000], False, True),
    "signed": ([-99_999, 5, 0], True, True),
    "too small by one": ([5, -100_000], False, True),
    "late sign": ([7] * 100 + [-1], True, True),
    "fills its lower half": ([HALF - 1], False, True),
    "upper half": ([3, HALF], False, True),
    "late upper half": ([3] * 100 + [HALF + 3], False, True),
    "widest": ([10**20 - 1, 1 - 10**20], False, True),
    "wider": ([10**20], False, False),
    "widest of all": ([2**127 - 1], False, False),
}


def decimals(values: list[int], precision: int, missing: pa.Buffer | None = None, nulls: int = 0) -> pa.RecordBatch:
    data = pa.py_buffer(b"".join(value.to_bytes(16, "little", signed=True) for value in values))
    kind = pa.decimal128(precision, 2)
    return pa.record_batch({"a": pa.Array.from_buffers(kind, len(values), [missing, data], null_count=nulls)})


@pytest.mark.parametrize(("values", "narrow", "wide"), DECIMALS.values(), ids=DECIMALS)
def test_a_decimal_has_no_more_digits_than_its_type(values: list[int], narrow: bool, wide: bool) -> None:
    for precision, fits in ((5, narrow), (20, wide)):
        batch = decimals(values, precision)
        for one in (batch, batch.slice(len(values) - 1)):
            if fits:
                validate(one)
                continue
            with pytest.raises(pa.ArrowInvalid):
                one.validate(full=True)
            with pytest.raises(pa.ArrowInvalid):
                validate(one)


def test_decimals_that_are_missing_are_counted() -> None:
    first_of_two = pa.py_buffer(b"\x01")
    validate(decimals([1, 2], 5, first_of_two, 1))
    with pytest.raises(pa.ArrowInvalid):
        validate(decimals([1, 2], 5, first_of_two, 2))


def test_other_columns_are_validated_as_fully() -> None:
    wide = pa.array([10**70], pa.decimal256(76, 0)).buffers()
    broken = pa.Array.from_buffers(pa.decimal256(5, 2), 1, wide)
    with pytest.raises(pa.ArrowInvalid):
        validate(pa.record_batch({"a": broken}))


@pytest.mark.parametrize("batch", [text(b"ab\xffcd", [0, 2, 5], pa.string()), decimals([10**20], 5)])
def test_without_numpy_all_columns_are_arrows(batch: pa.RecordBatch, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(validation, "np", None)
    with pytest.raises(pa.ArrowInvalid):
        validate(batch)
