"""Estimates the memory of an Arrow batch as Python values, before the values are made.

In Arrow many values may share one piece of memory, or take none. In Python each value is an object: a kilobyte from a
hostile owner becomes a terabyte. So columns of types whose values share bytes or take none are refused before any row
is read (`refuse_types`), except nulls and dictionaries of plain values. Honest owners send none of the others. The
values of the rest are estimated (`refuse_oversized`): a batch that grows by gigabytes is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
from pyarrow import types

from hanse.errors import BadInput, Broken

_GROWTH_MAX = 2 << 30  # bytes more than were received: fifty million numbers in lists, 40 bytes each
_NAME = 8  # bytes of a reference: all that a boolean, a null or a small number takes
_NUMBER = 40  # bytes of a number with its reference
_OBJECT = 64  # bytes of any other object, about
_PLAIN = 32  # factor for a value that shares no bytes: an empty text takes 64 for 4, a struct of one number 104


def refuse_types(schema: pa.Schema) -> None:
    """Refuse columns of types whose values may share bytes, or take none.

    Raises:
        Broken: the schema has such a column.
    """
    refused = [field.name for field in schema if any(map(_is_refused, nested_types(field.type)))]
    if refused:
        raise Broken(
            "expected columns whose values have bytes of their own, got views, run ends, dense unions or types without "
            f"a width in {', '.join(refused)[:200]}; leave them out (columns=)"
        )


def _is_refused(kind: pa.DataType) -> bool:
    if types.is_dictionary(kind):
        return bool(types.is_nested(kind.value_type) or types.is_dictionary(kind.value_type))
    return (
        any(is_one(kind) for is_one in _VIEWS)
        or (types.is_union(kind) and kind.mode == "dense")
        or (types.is_struct(kind) and not kind.num_fields)
        or (types.is_fixed_size_list(kind) and not kind.list_size)
        or (types.is_fixed_size_binary(kind) and not kind.byte_width)
    )


def refuse_oversized(columns: Iterable[pa.Array], *, frame: bool = False, extra: int = 0) -> None:
    """Refuse columns whose values, each made by itself, take far more memory than was received.

    `frame`: the columns span many batches, as many as the caller asked for, so values with bytes of their own may grow.
    Numbers in lists become NumPy arrays there, which keep them as received.
    `extra`: bytes that each value takes beyond Python's own objects.

    Raises:
        Broken: the values take too much memory.
    """
    size, most = 0, _GROWTH_MAX
    for column in columns:
        size += _size(column, frame) + extra * len(column)
        shared = any(types.is_null(kind) or types.is_dictionary(kind) for kind in nested_types(column.type))
        most += int(column.get_total_buffer_size()) * (_PLAIN if frame and not shared else 1)
    if size > most:
        raise Broken(
            f"expected a batch whose values take at most {most} bytes in Python, got one of about {size:.3g}: it "
            "refers to the same values repeatedly; ask for fewer rows at a time, or read it as Arrow"
        )


@contextmanager
def name_failing_column(
    columns: Iterable[tuple[str, Any]], make: Callable[[Any], Any] = lambda column: column.to_pylist()
) -> Iterator[None]:
    """Name the column of a value that has no Python form, such as a date after the year 9999.

    `make`: the conversion to repeat per column, to find the failing column.

    Raises:
        BadInput: a value has no Python form.
    """
    try:
        yield
    except (OverflowError, ValueError):
        for name, column in columns:
            _check_conversion(name, column, make)
        raise


def _check_conversion(name: str, column: Any, make: Callable[[Any], Any]) -> None:
    try:
        make(column)
    except (OverflowError, ValueError) as error:
        raise BadInput(
            f"expected values in column {name} that Python can represent, got {column.type} with others ({error}): "
            "exclude those rows (where=), leave the column out (columns=), or read it as Arrow (loader())"
        ) from error


def nested_types(kind: pa.DataType) -> Iterator[pa.DataType]:
    """Yield a type and the types that it consists of."""
    yield kind
    if isinstance(kind, pa.BaseExtensionType):
        yield from nested_types(kind.storage_type)
    elif types.is_dictionary(kind):
        yield from nested_types(kind.value_type)
    else:
        for place in range(kind.num_fields):
            yield from nested_types(kind.field(place).type)


def _size(column: pa.Array, frame: bool) -> int:
    """Return the bytes that the values take, about. Bytes under nulls count too: there are rarely any."""
    kind, count = column.type, len(column)
    if not count:  # Arrow 26 reads the type codes of an empty received union from a missing buffer
        return 0
    if isinstance(column, pa.ExtensionArray):
        return _size(column.storage, frame)
    if types.is_null(kind) or types.is_boolean(kind) or types.is_uint8(kind):
        return _NAME * count
    if types.is_integer(kind) or types.is_floating(kind):
        return _NUMBER * count
    if types.is_struct(kind) or types.is_union(kind):
        return _OBJECT * count + sum(_size(column.field(place), frame) for place in range(kind.num_fields))
    if types.is_nested(kind):
        values = flatten_lists(column)
        numbers = types.is_primitive(values.type) and not types.is_temporal(values.type)
        return _OBJECT * count + (_width(values) if frame and numbers else _size(values, frame))
    return _OBJECT * count + _letters(column)


def _width(numbers: pa.Array) -> int:
    """Return the bytes of numbers in an array; NumPy widens numbers with nulls."""
    return len(numbers) * (8 if numbers.null_count else max(1, numbers.type.bit_width // 8))


def _letters(column: pa.Array) -> int:
    """Return the bytes of texts, each counted at every reference to it; 0 for other types."""
    import pyarrow.compute as pc

    words = column.dictionary if types.is_dictionary(column.type) else column
    if types.is_fixed_size_binary(words.type):
        return len(column) * int(words.type.byte_width)
    if words.type not in _TEXTS:
        return 0
    lengths = pc.binary_length(words)
    return int(pc.sum(lengths if words is column else lengths.take(column.indices)).as_py() or 0)


def flatten_lists(column: pa.Array) -> pa.Array:
    """Return the values of lists or maps in their order, with those under nulls. There is at least one list."""
    if types.is_fixed_size_list(column.type):
        size = column.type.list_size
        return column.values.slice(column.offset * size, len(column) * size)
    first, last = column.offsets[0].as_py(), column.offsets[-1].as_py()
    return column.values.slice(first, last - first)


_TEXTS = (pa.string(), pa.large_string(), pa.binary(), pa.large_binary())
_VIEWS = (
    types.is_string_view,
    types.is_binary_view,
    types.is_list_view,
    types.is_large_list_view,
    types.is_run_end_encoded,
)
