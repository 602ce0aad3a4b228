"""What an Arrow batch becomes as values of Python, looked at before they are made.

In Arrow many values may be one piece of memory: views, dictionaries, runs and views of lists name it again and again,
values without a width have none. In Python each is an object of its own: a kilobyte from a hostile owner becomes a
terabyte. A batch of ours has a few megabytes, and what is put together of them is as large as it was asked for; what
becomes gigabytes more than it was is refused. Without NumPy (pyarrow loads it by itself where there is) columns that
could become so are looked at value by value.
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

_BEYOND_MAX = 2 << 30  # bytes beside what came: numbers in lists, 40 bytes each, may be fifty million
_NAME = 8  # bytes of a reference to a value, which is all that a truth, a null or a small number takes,
_NUMBER = 40  # those of a number with it,
_OBJECT = 64  # and about those of anything else
_PLAIN = 32  # times its own bytes a value that shares none may take: an empty text 64 for 4, a part of one number 104

_Sizes = Any  # bytes of each value: one number where all have the same, else an array of floats


def bounded(columns: Iterable[pa.Array], *, arrays: bool = False, beside: int = 0, together: bool = False) -> None:
    """Broken where the values of these columns, each made by itself, take far more memory than what came.

    `arrays`: each list of numbers becomes an array of NumPy, which has them as they came: an image or a volume.
    `beside`: bytes that each value takes more, where it becomes something larger than Python's own objects.
    `together`: they are of many batches, and as many as were asked for: what has bytes of its own is no burden then.
    """
    columns = list(columns)
    if (more := beside * sum(map(len, columns))) > _BEYOND_MAX:
        raise _too_much(more, _BEYOND_MAX)
    most = _BEYOND_MAX + sum(_due(column, together) for column in columns)
    if np is None:
        _walked(columns, most)
    elif (size := sum(_sum(_sizes(column, most, arrays), len(column)) for column in columns)) > most:
        raise _too_much(size, most)


def _due(column: pa.Array, together: bool) -> int:
    """Bytes that the values of a column may take for what came."""
    came = int(column.get_total_buffer_size())
    if not together:
        return came
    if column.type in _VIEWS:  # each has its place, but its letters may be those of others
        return came + _OBJECT * len(column)
    return came if any(map(_is_shared, kinds(column.type))) else _PLAIN * came


def _is_shared(kind: pa.DataType) -> bool:
    """Whether many values of a type may lie in the same bytes, or in none."""
    return (
        any(is_one(kind) for is_one in _SHARED)
        or kind in _VIEWS
        or (types.is_struct(kind) and not kind.num_fields)
        or (types.is_fixed_size_list(kind) and not kind.list_size)
        or (types.is_fixed_size_binary(kind) and not kind.byte_width)
    )


@contextmanager
def told_by_column(
    columns: Iterable[tuple[str, Any]], make: Callable[[Any], Any] = lambda column: column.to_pylist()
) -> Iterator[None]:
    """BadInput, with its column, for a value that Python has no form for: days and moments after the year 9999.

    `make`: what is done with the columns, to find out which one it was.
    """
    try:
        yield
    except (OverflowError, ValueError):
        for name, column in columns:
            _check_made(name, column, make)
        raise


def _check_made(name: str, column: Any, make: Callable[[Any], Any]) -> None:
    try:
        make(column)
    except (OverflowError, ValueError) as error:
        raise BadInput(
            f"expected values in column {name} that Python has a form for, came {column.type} with others ({error}): "
            "ask for rows without them (where=), leave the column out (columns=), or read it as Arrow (loader())"
        ) from error


def named(kind: pa.DataType) -> str:
    """A type by its name, with those that it is made of: what some extension types lie in is not in theirs."""
    return " ".join(map(str, kinds(kind)))


def kinds(kind: pa.DataType) -> Iterator[pa.DataType]:
    """A type and those that it is made of."""
    yield kind
    if isinstance(kind, pa.BaseExtensionType):
        yield from kinds(kind.storage_type)
    elif types.is_dictionary(kind):
        yield from kinds(kind.value_type)
    else:
        for place in range(kind.num_fields):
            yield from kinds(kind.field(place).type)


def _walked(columns: list[pa.Array], most: int) -> None:
    """The same without NumPy, and without making the values."""
    size = 0
    todo = [iter(column) for column in columns if any(word in named(column.type) for word in _REPEATING)]
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
        f"expected a batch whose values take at most {most} bytes in Python, came one of about {size:.3g}: it says the "
        "same values again and again; ask for fewer rows at a time, or read it as Arrow"
    )


def _sum(sizes: _Sizes, count: int) -> float:
    return float(sizes.sum() if isinstance(sizes, np.ndarray) else sizes * count)


def _sizes(column: pa.Array, most: int, arrays: bool) -> _Sizes:
    """About how many bytes each value takes."""
    kind = column.type
    if not len(column):  # of a union that came and is empty, Arrow 26 looks for its codes where there is nothing
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
    if (least := len(column) * (_NAME if shared else _OBJECT)) > most:  # before as much is taken to look at each
        raise _too_much(least, most)
    if kind in _TEXTS:
        return _OBJECT + _lengths(column)
    if types.is_dictionary(kind):
        return _named(_sizes(column.dictionary, most, arrays), _there(column, _numbers(column.indices)))
    if types.is_run_end_encoded(kind):
        return _of_runs(column, _sizes(column.values, most, arrays))
    if types.is_struct(kind):
        return _OBJECT + sum(_sizes(column.field(place), most, arrays) for place in range(kind.num_fields))
    if types.is_union(kind):
        return _of_union(column, lambda part: _sizes(part, most, arrays))
    values = column.values
    return _of_lists(column, _width(values) if arrays and _is_number(values.type) else _sizes(values, most, arrays))


def widths(column: pa.Array) -> _Sizes:
    """About how many bytes each value takes in Arrow, as follows from the values alone: the same however they were cut
    and put together, whatever lies where one is missing, and in which order a dictionary has them."""
    kind = column.type
    if isinstance(column, pa.ExtensionArray):
        return widths(column.storage)
    if not len(column) or types.is_null(kind) or types.is_dictionary(kind):
        return _NAME
    if kind in _TEXTS:
        return _NAME + _there(column, _lengths(column))
    if types.is_run_end_encoded(kind):
        return _of_runs(column, widths(column.values))
    if types.is_struct(kind):
        return _NAME + _there(column, sum(widths(column.field(place)) for place in range(kind.num_fields)))
    if types.is_union(kind):
        return _of_union(column, widths)
    if types.is_nested(kind):
        return _there(column, _of_lists(column, widths(column.values)))
    return max(1, kind.bit_width // 8)


def _is_number(kind: pa.DataType) -> bool:
    return bool(types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind))


def _width(numbers: pa.Array) -> int:
    """Bytes of each in an array; of those with gaps NumPy has wide ones."""
    return 8 if numbers.null_count else max(1, numbers.type.bit_width // 8)


def _lengths(column: pa.Array) -> Any:
    """Bytes of each text."""
    if column.type in _VIEWS:
        views = np.frombuffer(column.buffers()[1], np.int32, 4 * len(column), 16 * column.offset)
        return _there(column, views[::4])
    return np.diff(borders(column)).astype(np.float64)


def borders(column: pa.Array) -> Any:
    """Where each text or list of a column begins, and the last ends; it has some."""
    wide = types.is_large_string(column.type) or types.is_large_binary(column.type)
    kind = np.dtype(np.int64 if wide or types.is_large_list(column.type) else np.int32)
    return np.frombuffer(column.buffers()[1], kind, len(column) + 1, column.offset * kind.itemsize)


def _of_lists(column: pa.Array, values: _Sizes) -> _Sizes:
    kind = column.type
    if types.is_fixed_size_list(kind):
        starts = (column.offset + np.arange(len(column))) * kind.list_size
        stops = starts + kind.list_size
    elif types.is_list_view(kind) or types.is_large_list_view(kind):
        starts, sizes = (_there(column, _numbers(one)).astype(np.int64) for one in (column.offsets, column.sizes))
        stops = starts + sizes
    else:
        places = borders(column).astype(np.int64)
        starts, stops = places[:-1], places[1:]
    if not isinstance(values, np.ndarray):
        return _OBJECT + (stops - starts) * float(values)
    until = np.concatenate([[0.0], np.cumsum(values)])
    return _OBJECT + until[stops] - until[starts]


def _of_runs(column: pa.Array, values: _Sizes) -> _Sizes:
    if not isinstance(values, np.ndarray):
        return values
    ends = np.clip(_numbers(column.run_ends).astype(np.int64) - column.offset, 0, len(column))
    return np.repeat(values, np.diff(ends, prepend=0))


def _of_union(column: pa.Array, sized: Callable[[pa.Array], _Sizes]) -> _Sizes:
    _, kept, *where = column.buffers()[:3]  # `type_codes` and `offsets` of a slice are those of where it was cut from
    codes = np.frombuffer(kept, np.int8, len(column), column.offset)
    dense = column.type.mode == "dense"
    places = np.frombuffer(where[0], np.int32, len(column), 4 * column.offset) if dense else np.arange(len(column))
    found = np.zeros(len(column))
    for place, code in enumerate(column.type.type_codes):
        mine = codes == code
        found[mine] = _named(sized(column.field(place)), places[mine])
    return found


def _named(sizes: _Sizes, places: Any) -> _Sizes:
    """Sizes of values that are named by their places."""
    if not isinstance(sizes, np.ndarray):
        return sizes
    return sizes[places] if len(sizes) else np.zeros(len(places))


def _numbers(column: pa.Array) -> Any:
    """Whole numbers, where there are; Arrow's `to_numpy` would load pandas."""
    kind = np.dtype(f"{'u' if types.is_unsigned_integer(column.type) else 'i'}{column.type.bit_width // 8}")
    return np.frombuffer(column.buffers()[1] or b"", kind, len(column), column.offset * kind.itemsize)


def _there(column: pa.Array, numbers: Any) -> Any:
    """Zero in place of what is missing: there may be anything."""
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
