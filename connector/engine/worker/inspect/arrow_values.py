"""Validates every batch of Arrow files and refuses values that the engine would change.

Runs in a worker, before the engine reads the files: the engine trusts offsets and times. Knows nothing of SQL and
profiles.
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
    """Check all batches; `each` is called before each of them.

    Raises: SourceUnreadable naming the column of an invalid batch or value.
    """
    schema = pa.ipc.open_file(file).schema
    for start in range(0, len(schema), _COLUMNS_AT_ONCE):
        places = list(range(start, min(start + _COLUMNS_AT_ONCE, len(schema))))
        reader = pa.ipc.open_file(file, options=pa.ipc.IpcReadOptions(included_fields=places))
        for number in range(reader.num_record_batches):
            each()
            _check_batch(_read_batch(reader, number, name), name)


def _check_batch(batch: pa.RecordBatch, name: str) -> None:
    for column, values in zip(batch.schema.names, batch.columns, strict=True):
        _check_valid(values, column, name)
        if any(map(_may_change, parts(values.type))) and any(map(_has_changing_value, _arrays(values))):
            raise _not_exact_error(column, name)


def parts(kind: pa.DataType) -> Iterator[pa.DataType]:
    """Yield a type and all types nested in it."""
    yield kind
    if isinstance(kind, pa.BaseExtensionType):
        yield from parts(kind.storage_type)
        return
    if pa.types.is_dictionary(kind):
        yield from parts(kind.value_type)
    for number in range(kind.num_fields):
        yield from parts(kind.field(number).type)


def _read_batch(reader: pa.RecordBatchFileReader, number: int, name: str) -> pa.RecordBatch:
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


def _not_exact_error(column: str, name: str) -> SourceUnreadable:
    return SourceUnreadable(
        "expected durations and intervals of whole microseconds that are shorter than 292 years, days within 32 bits, "
        f"and timestamps within 64 bits of microseconds, came others in {column} of {name!r}; write them as whole "
        "numbers, or leave them out",
        code="value_unmappable",
        file=name,
        columns=[column],
    )


def _arrays(values: pa.Array) -> Iterator[pa.Array]:
    """Yield a column and all arrays nested in it."""
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


def _may_change(kind: pa.DataType) -> bool:
    coarse = pa.types.is_timestamp(kind) and kind.unit in ("s", "ms")
    return bool(coarse or pa.types.is_date64(kind) or pa.types.is_duration(kind) or kind in _IN_NANOSECONDS)


def _has_changing_value(values: pa.Array) -> bool:
    """Whether the engine would change one of these values: it has microseconds in 64 bits and days in 32."""
    if not _may_change(values.type) or len(values) == values.null_count:
        return False
    numbers = _read_numbers(values, words=2 if values.type == pa.month_day_nano_interval() else 1)
    if values.type in _IN_NANOSECONDS:
        return bool((numbers % 1000).any())
    return max(int(numbers.max()), -int(numbers.min())) > _largest_number(values.type)


def _read_numbers(values: pa.Array, *, words: int) -> np.ndarray:
    """Return the last 64 bits of each value that is not null. A value has `words` times 64 bits."""
    found = np.frombuffer(values.buffers()[1], "<i8", words * len(values), 8 * words * values.offset)[
        words - 1 :: words
    ]
    return found[values.is_valid().to_numpy(zero_copy_only=False)] if values.null_count else found


def _largest_number(kind: pa.DataType) -> int:
    """Return the largest number of a type that the engine keeps unchanged."""
    if pa.types.is_date64(kind):
        return (2**31 - 1) * _DAY
    # Intervals leave the engine as nanoseconds.
    given = _IN_A_SECOND["us" if pa.types.is_timestamp(kind) else "ns"]
    return _LARGEST // (given // _IN_A_SECOND[kind.unit])
