"""Estimates the memory of an Arrow batch as Python values, before the values are made.

In Arrow many values may share one piece of memory: views, dictionaries, runs and list views refer to it repeatedly, and
values without a width take none. In Python each value is an object: a kilobyte from a hostile owner becomes a terabyte.
An honest batch has a few megabytes, and concatenated batches are as large as the caller asked. A batch that grows by
gigabytes is refused. Without NumPy (pyarrow loads it by itself) columns that could grow are walked value by value.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pyarrow as pa
from pyarrow import types

from hanse.errors import BadInput, Broken

np: Any = None
with suppress(ImportError):
    import numpy as np

_GROWTH_MAX = 2 << 30  # bytes more than were received: fifty million numbers in lists, 40 bytes each
_NAME = 8  # bytes of a reference: all that a boolean, a null or a small number takes
_NUMBER = 40  # bytes of a number with its reference
_OBJECT = 64  # bytes of any other object, about
_PLAIN = 32  # factor for a value that shares no bytes: an empty text takes 64 for 4, a struct of one number 104

_Sizes = Any  # bytes of each value: one number if all are the same, else an array of floats


def refuse_oversized(
    columns: Iterable[pa.Array], *, arrays: bool = False, extra: int = 0, together: bool = False
) -> None:
    """Refuse columns whose values, each made by itself, take far more memory than was received.

    `arrays`: each list of numbers becomes a NumPy array, which keeps the numbers as received: an image or a volume.
    `extra`: bytes that each value takes beyond Python's own objects.
    `together`: the columns span many batches, as many as the caller asked for: values with bytes of their own may grow.

    Raises:
        Broken: the values take too much memory.
    """
    columns = list(columns)
    if (more := extra * sum(map(len, columns))) > _GROWTH_MAX:
        raise _too_much(more, _GROWTH_MAX)
    most = _GROWTH_MAX + sum(_allowed_growth(column, together) for column in columns)
    if np is None:
        _walk(columns, most)
    elif (size := sum(_sum(_sizes(column, most, arrays), len(column)) for column in columns)) > most:
        raise _too_much(size, most)


def _allowed_growth(column: pa.Array, together: bool) -> int:
    """Return the bytes that the values of a received column may take."""
    came = int(column.get_total_buffer_size())
    if not together:
        return came
    if column.type in _VIEWS:  # each value has its own entry, but may share its letters
        return came + _OBJECT * len(column)
    return came if any(map(_is_shared, nested_types(column.type))) else _PLAIN * came


def _is_shared(kind: pa.DataType) -> bool:
    """Return whether many values of a type may share bytes, or take none."""
    return (
        any(is_one(kind) for is_one in _SHARED)
        or kind in _VIEWS
        or (types.is_struct(kind) and not kind.num_fields)
        or (types.is_fixed_size_list(kind) and not kind.list_size)
        or (types.is_fixed_size_binary(kind) and not kind.byte_width)
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


def type_names(kind: pa.DataType) -> str:
    """Return the names of a type and its nested types: some extension types do not name their storage type."""
    return " ".join(map(str, nested_types(kind)))


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


def _walk(columns: list[pa.Array], most: int) -> None:
    """Estimate without NumPy, and without making the values."""
    size = 0
    todo = [iter(column) for column in columns if any(word in type_names(column.type) for word in _REPEATING)]
    while todo:
        if (one := next(todo[-1], None)) is None:
            todo.pop()
            continue
        size += _OBJECT
        while one.is_valid and isinstance(one, _NAMES):
            one = one.value
        if one.is_valid and types.is_struct(one.type):
            todo.append(iter([one[place] for place in range(one.type.num_fields)]))
        elif one.is_valid and types.is_nested(one.type):
            todo.append(iter(one.values))
        elif one.is_valid and one.type in _TEXTS:
            size += one.as_buffer().size
        if size > most:
            raise _too_much(size, most)


def _too_much(size: float, most: int) -> Broken:
    return Broken(
        f"expected a batch whose values take at most {most} bytes in Python, got one of about {size:.3g}: it "
        "refers to the same values repeatedly; ask for fewer rows at a time, or read it as Arrow"
    )


def _sum(sizes: _Sizes, count: int) -> float:
    return float(sizes.sum() if isinstance(sizes, np.ndarray) else sizes * count)


def _sizes(column: pa.Array, most: int, arrays: bool) -> _Sizes:
    """Return the bytes that each value takes, about."""
    kind = column.type
    if not len(column):  # Arrow 26 reads the type codes of an empty received union from a missing buffer
        return _OBJECT
    if isinstance(column, pa.ExtensionArray):
        return _sizes(column.storage, most, arrays)
    if types.is_null(kind) or types.is_boolean(kind) or types.is_uint8(kind):
        return _NAME
    if types.is_fixed_size_binary(kind):
        return _OBJECT + kind.byte_width
    if types.is_integer(kind) or types.is_floating(kind):
        return _NUMBER
    if not (types.is_nested(kind) or kind in _TEXTS or types.is_dictionary(kind) or types.is_run_end_encoded(kind)):
        return _OBJECT
    shared = types.is_dictionary(kind) or types.is_run_end_encoded(kind) or types.is_union(kind)
    if (least := len(column) * (_NAME if shared else _OBJECT)) > most:  # before an array of that length is allocated
        raise _too_much(least, most)
    if kind in _TEXTS:
        return _OBJECT + _lengths(column)
    if types.is_dictionary(kind):
        return _take_sizes(_sizes(column.dictionary, most, arrays), _zero_nulls(column, _numbers(column.indices)))
    if types.is_run_end_encoded(kind):
        return _run_sizes(column, _sizes(column.values, most, arrays))
    if types.is_struct(kind):
        return _OBJECT + sum(_sizes(column.field(place), most, arrays) for place in range(kind.num_fields))
    if types.is_union(kind):
        return _union_sizes(column, lambda part: _sizes(part, most, arrays))
    values = column.values
    return _list_sizes(column, _width(values) if arrays and _is_number(values.type) else _sizes(values, most, arrays))


def widths(column: pa.Array) -> _Sizes:
    """Return the bytes that each value takes in Arrow, about. It depends on the values alone: not on how batches were
    cut or joined, on what lies under a null, or on the order of a dictionary."""
    kind = column.type
    if isinstance(column, pa.ExtensionArray):
        return widths(column.storage)
    if not len(column) or types.is_null(kind) or types.is_dictionary(kind):
        return _NAME
    if kind in _TEXTS:
        return _NAME + _zero_nulls(column, _lengths(column))
    if types.is_run_end_encoded(kind):
        return _run_sizes(column, widths(column.values))
    if types.is_struct(kind):
        return _NAME + _zero_nulls(column, sum(widths(column.field(place)) for place in range(kind.num_fields)))
    if types.is_union(kind):
        return _union_sizes(column, widths)
    if types.is_nested(kind):
        return _zero_nulls(column, _list_sizes(column, widths(column.values)))
    return max(1, kind.bit_width // 8)


def _is_number(kind: pa.DataType) -> bool:
    return bool(types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind))


def _width(numbers: pa.Array) -> int:
    """Return the bytes of each number in an array; with nulls NumPy widens them to 8."""
    return 8 if numbers.null_count else max(1, numbers.type.bit_width // 8)


def _lengths(column: pa.Array) -> Any:
    """Return the bytes of each text."""
    if column.type in _VIEWS:
        views = np.frombuffer(column.buffers()[1], np.int32, 4 * len(column), 16 * column.offset)
        return _zero_nulls(column, views[::4])
    return np.diff(borders(column)).astype(np.float64)


def borders(column: pa.Array) -> Any:
    """Return the offsets of a column's texts or lists, from the first to the last end. The column is not empty."""
    wide = types.is_large_string(column.type) or types.is_large_binary(column.type)
    kind = np.dtype(np.int64 if wide or types.is_large_list(column.type) else np.int32)
    return np.frombuffer(column.buffers()[1], kind, len(column) + 1, column.offset * kind.itemsize)


def _list_sizes(column: pa.Array, values: _Sizes) -> _Sizes:
    kind = column.type
    if types.is_fixed_size_list(kind):
        starts = (column.offset + np.arange(len(column))) * kind.list_size
        stops = starts + kind.list_size
    elif types.is_list_view(kind) or types.is_large_list_view(kind):
        starts, sizes = (
            _zero_nulls(column, _numbers(part)).astype(np.int64) for part in (column.offsets, column.sizes)
        )
        stops = starts + sizes
    else:
        places = borders(column).astype(np.int64)
        starts, stops = places[:-1], places[1:]
    if not isinstance(values, np.ndarray):
        return _OBJECT + (stops - starts) * float(values)
    until = np.concatenate([[0.0], np.cumsum(values)])
    return _OBJECT + until[stops] - until[starts]


def _run_sizes(column: pa.Array, values: _Sizes) -> _Sizes:
    if not isinstance(values, np.ndarray):
        return values
    ends = np.clip(_numbers(column.run_ends).astype(np.int64) - column.offset, 0, len(column))
    return np.repeat(values, np.diff(ends, prepend=0))


def _union_sizes(column: pa.Array, sized: Callable[[pa.Array], _Sizes]) -> _Sizes:
    _, code_bytes, *where = column.buffers()[:3]  # `type_codes` and `offsets` of a slice are those of the whole array
    codes = np.frombuffer(code_bytes, np.int8, len(column), column.offset)
    dense = column.type.mode == "dense"
    places = np.frombuffer(where[0], np.int32, len(column), 4 * column.offset) if dense else np.arange(len(column))
    sizes = np.zeros(len(column))
    for place, code in enumerate(column.type.type_codes):
        mine = codes == code
        sizes[mine] = _take_sizes(sized(column.field(place)), places[mine])
    return sizes


def _take_sizes(sizes: _Sizes, places: Any) -> _Sizes:
    """Return the sizes at the given places."""
    if not isinstance(sizes, np.ndarray):
        return sizes
    return sizes[places] if len(sizes) else np.zeros(len(places))


def _numbers(column: pa.Array) -> Any:
    """Return whole numbers as a NumPy array; Arrow's `to_numpy` would load pandas."""
    kind = np.dtype(f"{'u' if types.is_unsigned_integer(column.type) else 'i'}{column.type.bit_width // 8}")
    return np.frombuffer(column.buffers()[1] or b"", kind, len(column), column.offset * kind.itemsize)


def _zero_nulls(column: pa.Array, numbers: Any) -> Any:
    """Replace nulls by zero: the buffer may hold anything there."""
    if not column.null_count:
        return numbers
    bits = np.frombuffer(column.buffers()[0], np.uint8)
    return np.where(np.unpackbits(bits, bitorder="little")[column.offset :][: len(column)], numbers, 0)


_VIEWS = frozenset((pa.string_view(), pa.binary_view()))
_TEXTS = _VIEWS | {pa.string(), pa.large_string(), pa.binary(), pa.large_binary()}
_NAMES = (pa.DictionaryScalar, pa.UnionScalar, pa.ExtensionScalar, pa.RunEndEncodedScalar)
_SHARED = (
    types.is_null,
    types.is_dictionary,
    types.is_run_end_encoded,
    types.is_union,
    types.is_list_view,
    types.is_large_list_view,
)
_REPEATING = ("view", "dictionary<", "run_end_encoded<", "union<", "struct<>", "[0]")  # in the name of a type
