"""Arrow batches as tensors: the same memory where the type allows it, Python values where no tensor fits.

| Arrow | becomes |
|---|---|
| integers, floats | a tensor over the batch's own memory; with nulls: floats get NaN, integers are refused |
| booleans | a tensor, unpacked |
| fixed-size lists and fixed-shape tensors of numbers | a tensor of rows x shape, over the batch's own memory |
| lists of numbers or booleans, given `shapes={"vector": (6,)}` | the same; another length is refused |
| dates, times, timestamps, durations | a tensor of their whole numbers |
| bytes, given `blobs="tensors"` | a list of tensors, each over the batch's own memory; None for null |
| anything else (text, bytes, nested lists, decimals) | a list of Python values |

Memory of a batch is shared: write to a tensor only after `clone()`.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cache
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa

from hanse._arrow.value_limits import borders, name_failing_column, refuse_oversized
from hanse.errors import BadInput
from hanse.loaders.row_slices import join_batches

BLOBS = ("bytes", "tensors")
_TENSOR = 512  # bytes of one, beside those that it is over


def tensors(
    *batches: pa.RecordBatch, shapes: Mapping[str, tuple[int, ...]] | None = None, blobs: str = "bytes"
) -> dict[str, Any]:
    """Each column of the rows of batches of one schema, by its name; numbers of several are copied together. `shapes`:
    of columns whose lists all have one length, without the rows. `blobs`: what bytes become, one of `BLOBS`."""
    if not any(map(_is_blob, batches[0].schema.types)):  # numbers are put together sooner as Arrow
        with suppress(BadInput):  # too much text for one
            batches = (join_batches(batches),)
    given, names = shapes or {}, batches[0].schema.names
    columns = dict(zip(names, zip(*(batch.columns for batch in batches), strict=True), strict=True))
    made = {name: _to_tensor(name, parts, given.get(name)) for name, parts in columns.items()}
    _check_sizes([columns[name] for name, one in made.items() if one is None], blobs)
    return {name: _list_column(name, columns[name], blobs) if one is None else one for name, one in made.items()}


def _to_tensor(name: str, parts: Sequence[pa.Array], shape: tuple[int, ...] | None) -> Any:
    """The tensor of a column that came in parts; None where no tensor fits."""
    found = [to_array(name, part, shape) for part in parts]
    if any(one is None for one in found):  # of lists of one length, where some is null
        return None
    return wrap_array(found[0] if len(found) == 1 else np.concatenate(found))


def list_values(parts: Sequence[pa.Array], blobs: str) -> list[Any]:
    """The values of a column that came in parts, which no tensor fits. Broken where they would take far more memory
    than what came."""
    _check_sizes([parts], blobs)
    return _list_parts(parts, blobs)


def _check_sizes(columns: Sequence[Sequence[pa.Array]], blobs: str) -> None:
    """Broken where the values of all these columns, each in parts, would take far more memory than what came."""
    parts = [part for column in columns for part in column]
    if blobs == "tensors":
        refuse_oversized((part for part in parts if _is_blob(part.type)), extra=_TENSOR)
    refuse_oversized(parts)


def _list_column(name: str, parts: Sequence[pa.Array], blobs: str) -> list[Any]:
    with name_failing_column((name, part) for part in parts):
        return _list_parts(parts, blobs)


def _list_parts(parts: Sequence[pa.Array], blobs: str) -> list[Any]:
    if blobs == "tensors" and _is_blob(parts[0].type):
        return [one for part in parts for one in _blob_tensors(part)]
    return [one for part in parts for one in part.to_pylist()]


def _blob_tensors(column: pa.Array) -> Iterator[Any]:
    """Of each value of a column of bytes a tensor over its memory, None where it is null."""
    if not len(column):
        return
    if not (pa.types.is_binary(column.type) or pa.types.is_large_binary(column.type)):
        column = column.cast(pa.large_binary())
    every = np.frombuffer(column.buffers()[2] or b"", np.uint8)
    there = _valid_mask(column).tolist() if column.null_count else [True] * len(column)
    for (start, stop), is_there in zip(pairwise(borders(column).tolist()), there, strict=True):
        yield wrap_array(every[start:stop]) if is_there else None


def wrap_array(array: Any) -> Any:
    """The tensor over an array's memory."""
    import torch

    _silence_warning()
    return torch.from_numpy(array)


def to_array(name: str, column: pa.Array, given: tuple[int, ...] | None = None) -> Any:
    """A column as what a tensor is made over, an array of numbers; None where no tensor fits."""
    if given is None and is_number(column.type):
        return _numbers(name, column)
    shape: tuple[int, ...] = (len(column),)
    if given is not None:
        return _numbers(name, _flatten_lists(name, column, given)).reshape((len(column), *given))
    if isinstance(column, pa.FixedShapeTensorArray):
        shape = (len(column), *column.type.shape)
        column = column.storage
    if pa.types.is_fixed_size_list(column.type) and is_number(column.type.value_type) and not column.null_count:
        shape = shape if len(shape) > 1 else (len(column), column.type.list_size)
        return _numbers(name, column.flatten()).reshape(shape)
    if pa.types.is_temporal(column.type) and not pa.types.is_interval(column.type):
        _refuse_nulls(name, column)
        column = column.cast(pa.int32() if column.type.bit_width == 32 else pa.int64())
    if is_number(column.type) or pa.types.is_boolean(column.type):  # by now
        return _numbers(name, column)
    return None


def _flatten_lists(name: str, column: pa.Array, shape: tuple[int, ...]) -> pa.Array:
    """The numbers of a column of lists, each of which must have as many as the shape."""
    import pyarrow.compute as pc

    kind = column.type
    listed = any(is_one(kind) for is_one in _LISTS)
    if not listed or not (is_number(kind.value_type) or pa.types.is_boolean(kind.value_type)):
        raise BadInput(f"expected lists of numbers in column {name} for the shape {shape}, got {kind}")
    refuse_oversized([column], arrays=True)  # of views of lists, many may be one
    size = math.prod(shape)
    lengths = pc.unique(pc.list_value_length(column)).to_pylist()
    if any(length != size for length in lengths):  # a list that is null has no length
        raise BadInput(
            f"expected every list of column {name} to have {size} numbers for the shape {shape}, got {lengths[:5]}"
        )
    return column.flatten()


def _numbers(name: str, column: pa.Array) -> Any:
    if not pa.types.is_floating(column.type):
        _refuse_nulls(name, column)
    # Arrow's `to_numpy` would load pandas where that is installed: longer than the first batch takes to come.
    if pa.types.is_boolean(column.type):
        bits = np.frombuffer(_data(column), np.uint8)
        return np.unpackbits(bits, bitorder="little")[column.offset :][: len(column)].view(np.bool_)
    kind = _NUMBERS[column.type.id]
    found = np.frombuffer(_data(column), kind, len(column), column.offset * kind.itemsize)
    return found if not column.null_count else np.where(_valid_mask(column), found, kind.type(math.nan))


def _refuse_nulls(name: str, column: pa.Array) -> None:
    if column.null_count:
        raise BadInput(
            f"column {name} holds nulls, and {column.type} has no value for them in a tensor; ask for rows where it is "
            "not null, leave it out, or fill them in a function of your own (form=)"
        )


def _data(column: pa.Array) -> Any:
    return column.buffers()[1] or b""


def _valid_mask(column: pa.Array) -> Any:
    """Which values are not null."""
    return _numbers("", column.is_valid())


@cache
def _silence_warning() -> None:
    """PyTorch warns once of memory that must not be written to: now, and nobody. What it becomes is told above."""
    import torch

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        torch.from_numpy(np.frombuffer(bytes(1), np.uint8))


def is_number(kind: pa.DataType) -> bool:
    """Whether values of this type are whole numbers or floats."""
    return kind.id in _NUMBERS


def array_type(kind: pa.DataType) -> Any:
    """The type of an array of its values. KeyError where it `is_number` not."""
    return _NUMBERS[kind.id]


def _is_blob(kind: pa.DataType) -> bool:
    return any(is_one(kind) for is_one in _BLOBS)


_BLOBS = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view, pa.types.is_fixed_size_binary)
_LISTS = (
    pa.types.is_list,
    pa.types.is_large_list,
    pa.types.is_fixed_size_list,
    pa.types.is_list_view,
    pa.types.is_large_list_view,
)
_NUMBERS = {  # asked for each column of each batch
    kind.id: np.dtype(f"{letter}{kind.bit_width // 8}")
    for letter, kinds in (
        ("i", (pa.int8(), pa.int16(), pa.int32(), pa.int64())),
        ("u", (pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64())),
        ("f", (pa.float16(), pa.float32(), pa.float64())),
    )
    for kind in kinds
}
