"""What is looked at in each batch of an Arrow file before the engine sees any of it."""

from __future__ import annotations

import struct
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from connector.engine.worker.inspect import arrow_values
from connector.errors import SourceUnreadable

DAY = 86_400_000


def moments(kind: pa.DataType, *numbers: int | None) -> pa.Array:
    """Whatever the numbers are: Arrow would not make all of these."""
    return pa.array(numbers, pa.int64() if kind.bit_width == 64 else pa.int32()).view(kind)


def intervals(*values: Any) -> pa.Array:
    return pa.array(values, pa.month_day_nano_interval())


def write(path: Path, column: pa.Array, patch: tuple[int, int] | None = None) -> None:
    """A file of two batches, in the second of which a number of 32 bits may be another."""
    table = pa.table({"n": range(len(column)), "v": column})
    with pa.ipc.new_file(path, table.schema) as out:
        out.write_table(table.slice(0, 0))
        out.write_table(table)
    if patch is not None:
        before, after = (struct.pack("<i", number) for number in patch)
        raw = path.read_bytes()
        assert before in raw
        path.write_bytes(raw.replace(before, after))


def check(path: Path) -> None:
    with pa.OSFile(str(path)) as file:
        arrow_values.check_batches(file, path.name, lambda: None)


INVALID: dict[str, tuple[pa.Array, tuple[int, int] | None]] = {
    "after the end of a day": (moments(pa.time64("us"), 90_000_000_000), None),
    "the end of a day": (moments(pa.time64("ns"), DAY * 10**6), None),
    "before a day": (moments(pa.time32("s"), -1), None),
    "in a list": (pa.ListArray.from_arrays([0, 1], moments(pa.time32("ms"), DAY)), None),
    "a part of a day": (moments(pa.date64(), DAY + 7), None),
    "no text": (pa.array([b"\xff"]).view(pa.string()), None),
    "digits without room": (pa.array([Decimal(10**6)], pa.decimal128(9)).view(pa.decimal128(5)), None),
    "an offset beyond the end": (pa.array([[0] * 77_777, [1]]), (77_777, 400_000_000)),
    "runs that do not rise": (
        pa.RunEndEncodedArray.from_arrays(pa.array([11_111, 22_222, 33_333], pa.int32()), pa.array([1, 2, 3])),
        (22_222, 3),
    ),
    "a word that there is not": (
        pa.DictionaryArray.from_arrays(pa.array([33_333], pa.int32()), pa.array(["ab"] * 40_000)),
        (33_333, 44_444),
    ),
}


@pytest.mark.parametrize("name", list(INVALID))
def test_a_batch_that_is_not_what_it_says_is_refused_with_its_column(tmp_path: Path, name: str) -> None:
    write(tmp_path / "t.arrow", *INVALID[name])
    with pytest.raises(SourceUnreadable, match=r"came other data in v of 't\.arrow'; write it again"):
        check(tmp_path / "t.arrow")


ANOTHER: dict[str, pa.Array] = {  # the engine has microseconds, and days of 32 bits
    "a nanosecond": pa.array([None, 1000, 1], pa.duration("ns")),
    "less than none": pa.array([-1500], pa.duration("ns")),
    "of an interval": intervals((0, 0, 1000), None, (1, 2, -1500)),
    "three centuries": pa.array([9_223_372_037], pa.duration("s")),
    "three centuries ago": pa.array([-(2**63)], pa.duration("us")),
    "a long time": pa.array([9_223_372_036_855], pa.timestamp("s")),
    "a long time somewhere": pa.array([-9_223_372_036_854_776], pa.timestamp("ms", "UTC")),
    "many days": moments(pa.date64(), 2**31 * DAY),
    "in a struct": pa.array([{"a": 1, "b": 1}], pa.struct({"a": pa.int64(), "b": pa.duration("ns")})),
    "in a list": pa.array([[], [1]], pa.list_(pa.duration("ns"))),
    "in a map": pa.array([[("a", 1)]], pa.map_(pa.string(), pa.duration("ns"))),
    "of words": pa.array([1], pa.duration("ns")).dictionary_encode(),
    "of runs": pa.RunEndEncodedArray.from_arrays([1], pa.array([1], pa.duration("ns"))),
    "of a union": pa.UnionArray.from_sparse(
        pa.array([0], pa.int8()), [pa.array([1], pa.duration("ns")), pa.array(["x"])]
    ),
}


@pytest.mark.parametrize("name", list(ANOTHER))
def test_a_value_that_the_engine_would_give_on_as_another_is_refused(tmp_path: Path, name: str) -> None:
    write(tmp_path / "t.arrow", ANOTHER[name])
    with pytest.raises(SourceUnreadable, match=r"came others in v of 't\.arrow'; write them as whole") as raised:
        check(tmp_path / "t.arrow")
    assert (raised.value.code, raised.value.facts["columns"]) == ("value_unmappable", ["v"])


SAME = {
    "whole microseconds": pa.array([1000, None, -5000], pa.duration("ns")),
    "of intervals": intervals((1, 2, -3000), None),
    "nothing": pa.nulls(2, pa.duration("ns")),
    "no row": pa.array([], pa.duration("s")),
    "what a struct that is null has": pa.StructArray.from_arrays(
        [pa.array([1], pa.duration("ns"))], ["a"], mask=pa.array([True])
    ),
    "the longest": pa.array([9_223_372_036, -9_223_372_036], pa.duration("s")),
    "the last moment": pa.array([9_223_372_036_854], pa.timestamp("s")),
    "a moment": pa.array([1], pa.timestamp("ns", "UTC")),
    "days": moments(pa.date64(), DAY, None, -(2**31 - 1) * DAY),
    "an empty union": pa.UnionArray.from_sparse(pa.array([], pa.int8()), [pa.array([], pa.duration("ns"))]),
}


@pytest.mark.parametrize("name", list(SAME))
def test_what_stays_as_it_is_is_taken(tmp_path: Path, name: str) -> None:
    write(tmp_path / "t.arrow", SAME[name])
    check(tmp_path / "t.arrow")


def test_of_many_columns_a_few_are_read_at_once(tmp_path: Path) -> None:
    batch = pa.record_batch({f"c{number}": range(2**17) for number in range(64)})
    with pa.ipc.new_file(tmp_path / "t.arrow", batch.schema, options=pa.ipc.IpcWriteOptions(compression="zstd")) as out:
        out.write_batch(batch)
    pool = pa.proxy_memory_pool(pa.system_memory_pool())
    before = pa.default_memory_pool()
    pa.set_memory_pool(pool)
    try:
        check(tmp_path / "t.arrow")
    finally:
        pa.set_memory_pool(before)
    assert (pool.max_memory() or 0) < batch.nbytes / 2
