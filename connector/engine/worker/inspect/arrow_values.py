"""Whether Arrow files are what they say in every batch, and hold no value that the engine would give on as another.

Looked at before the engine sees any of it: it takes an offset or a time as it comes. Knows nothing of SQL and profiles.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
import pyarrow as pa

from connector.errors import SourceUnreadable

_COLUMNS_AT_ONCE = 16  # of a batch are in memory
_LARGEST = 2**63 - 1
_DAY = 86_400_000  # milliseconds
_IN_A_SECOND = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
_IN_NANOSECONDS = (pa.duration("ns"), pa.month_day_nano_interval())


def check_batches(file: pa.NativeFile, name: str, each: Callable[[], None]) -> None:
    """SourceUnreadable for a batch that is not valid or has such a value, with its column. `each`: before a batch."""
    schema = pa.ipc.open_file(file).schema
    for start in range(0, len(schema), _COLUMNS_AT_ONCE):
        places = list(range(start, min(start + _COLUMNS_AT_ONCE, len(schema))))
        reader = pa.ipc.open_file(file, options=pa.ipc.IpcReadOptions(included_fields=places))
        for number in range(reader.num_record_batches):
            each()
            _check(_read(reader, number, name), name)


def _check(batch: pa.RecordBatch, name: str) -> None:
    for column, values in zip(batch.schema.names, batch.columns, strict=True):
        _check_valid(values, column, name)
        if any(map(_may_be_another, parts(values.type))) and any(map(_is_another, _arrays(values))):
            raise _not_exact(column, name)


def parts(kind: pa.DataType) -> Iterator[pa.DataType]:
    """A type and all those that it is made of."""
    yield kind
    if isinstance(kind, pa.BaseExtensionType):
        yield from parts(kind.storage_type)
        return
    if pa.types.is_dictionary(kind):
        yield from parts(kind.value_type)
    for number in range(kind.num_fields):
        yield from parts(kind.field(number).type)


def _read(reader: pa.RecordBatchFileReader, number: int, name: str) -> pa.RecordBatch:
    try:
        return reader.get_batch(number)
    except MemoryError:  # Arrow's own, too
        raise
    except (pa.ArrowException, OSError) as error:
        raise SourceUnreadable(
            f"expected an Arrow file that can be read to its end, came a damaged one: {name!r}; write it again",
            file=name,
        ) from error


def _check_valid(values: pa.Array, column: str, name: str) -> None:
    try:
        values.validate(full=True)
    except pa.ArrowInvalid as error:
        raise SourceUnreadable(
            "expected Arrow data that is as its types say (times before 24:00, whole days in date64, UTF-8 in texts, "
            f"offsets within their values, run ends that rise), came other data in {column} of {name!r}; write it "
            "again",
            file=name,
            columns=[column],
        ) from error


def _not_exact(column: str, name: str) -> SourceUnreadable:
    return SourceUnreadable(
        "expected durations and intervals of whole microseconds that are shorter than 292 years, days within 32 bits, "
        f"and timestamps within 64 bits of microseconds, came others in {column} of {name!r}; write them as whole "
        "numbers, or leave them out",
        code="value_unmappable",
        file=name,
        columns=[column],
    )


def _arrays(values: pa.Array) -> Iterator[pa.Array]:
    """A column and all those that it is made of."""
    yield values
    kind = values.type
    if isinstance(values, pa.ExtensionArray):
        yield from _arrays(values.storage)
    elif pa.types.is_dictionary(kind):
        yield from _arrays(values.dictionary)
    elif pa.types.is_struct(kind):
        for part in values.flatten():  # what is null in it as a whole has no values
            yield from _arrays(part)
    elif pa.types.is_union(kind):
        for place in range(kind.num_fields):
            yield from _arrays(values.field(place))
    elif pa.types.is_map(kind):
        yield from _arrays(values.keys)
        yield from _arrays(values.items)
    elif pa.types.is_nested(kind) or pa.types.is_run_end_encoded(kind):
        yield from _arrays(values.values)


def _may_be_another(kind: pa.DataType) -> bool:
    coarse = pa.types.is_timestamp(kind) and kind.unit in ("s", "ms")
    return bool(coarse or pa.types.is_date64(kind) or pa.types.is_duration(kind) or kind in _IN_NANOSECONDS)


def _is_another(values: pa.Array) -> bool:
    """Whether the engine, which has microseconds in 64 bits and days in 32, makes another value of one of these."""
    if not _may_be_another(values.type) or len(values) == values.null_count:
        return False
    numbers = _numbers(values, words=2 if values.type == pa.month_day_nano_interval() else 1)
    if values.type in _IN_NANOSECONDS:
        return bool((numbers % 1000).any())
    return max(int(numbers.max()), -int(numbers.min())) > _most(values.type)


def _numbers(values: pa.Array, *, words: int) -> np.ndarray:
    """The last 64 bits of each value that there is; each has so many times 64."""
    found = np.frombuffer(values.buffers()[1], "<i8", words * len(values), 8 * words * values.offset)[
        words - 1 :: words
    ]
    return found[values.is_valid().to_numpy(zero_copy_only=False)] if values.null_count else found


def _most(kind: pa.DataType) -> int:
    """The largest number of such a type that stays what it is."""
    if pa.types.is_date64(kind):
        return (2**31 - 1) * _DAY
    # Intervals leave the engine as nanoseconds.
    given = _IN_A_SECOND["us" if pa.types.is_timestamp(kind) else "ns"]
    return _LARGEST // (given // _IN_A_SECOND[kind.unit])
