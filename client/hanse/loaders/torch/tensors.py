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

from hanse._arrow.value_limits import name_failing_column, refuse_oversized
from hanse.errors import BadInput
from hanse.loaders.row_slices import join_batches

BLOBS = ("bytes", "tensors")
_TENSOR = 512  # bytes of a tensor object without its data


def tensors(
    *batches: pa.RecordBatch, shapes: Mapping[str, tuple[int, ...]] | None = None, blobs: str = "bytes"
) -> dict[str, Any]:
    """Return each column of batches of one schema by name; numbers of several batches are joined by a copy.

    `shapes`: for columns whose lists all have one length, without the rows. `blobs`: what bytes become, one of `BLOBS`.

    Raises:
        BadInput: a value has no tensor form.
        Broken: values would take far more memory than was received.
    """
    if not any(map(_is_blob, batches[0].schema.types)):  # joining as Arrow is faster for numbers
        with suppress(BadInput):  # too much text for one batch
            batches = (join_batches(batches),)
    given, names = shapes or {}, batches[0].schema.names
    columns = dict(zip(names, zip(*(batch.columns for batch in batches), strict=True), strict=True))
    made = {name: _to_tensor(name, parts, given.get(name)) for name, parts in columns.items()}
    _check_sizes([columns[name] for name, value in made.items() if value is None], blobs)
    return {name: _list_column(name, columns[name], blobs) if value is None else value for name, value in made.items()}


def _to_tensor(name: str, parts: Sequence[pa.Array], shape: tuple[int, ...] | None) -> Any:
    """Return the tensor of a column in parts; None if no tensor fits."""
    arrays = [to_array(name, part, shape) for part in parts]
    if any(array is None for array in arrays):  # fixed-size lists with nulls
        return None
    return wrap_array(arrays[0] if len(arrays) == 1 else np.concatenate(arrays))


def _check_sizes(columns: Sequence[Sequence[pa.Array]], blobs: str) -> None:
    """Raises: Broken if the values of all these columns would take far more memory than was received."""
    parts = [part for column in columns for part in column]
    if blobs == "tensors":
        refuse_oversized((part for part in parts if _is_blob(part.type)), extra=_TENSOR)
    refuse_oversized(parts)


def _list_column(name: str, parts: Sequence[pa.Array], blobs: str) -> list[Any]:
    with name_failing_column((name, part) for part in parts):
        return _list_parts(parts, blobs)


def _list_parts(parts: Sequence[pa.Array], blobs: str) -> list[Any]:
    if blobs == "tensors" and _is_blob(parts[0].type):
        return [blob for part in parts for blob in _blob_tensors(part)]
    return [value for part in parts for value in part.to_pylist()]


def _blob_tensors(column: pa.Array) -> Iterator[Any]:
    """Yield a tensor over the memory of each value of a column of bytes, None for null."""
    if not len(column):
        return
    column = column.cast(pa.large_binary())
    _, offsets, data = column.buffers()
    every = np.frombuffer(data or b"", np.uint8)
    ends = np.frombuffer(offsets, np.int64, len(column) + 1, 8 * column.offset).tolist()
    there = _valid_mask(column).tolist() if column.null_count else [True] * len(column)
    for (start, stop), is_there in zip(pairwise(ends), there, strict=True):
        yield wrap_array(every[start:stop]) if is_there else None


def wrap_array(array: Any) -> Any:
    """Return the tensor over an array's memory."""
    import torch

    _silence_warning()
    return torch.from_numpy(array)


def to_array(name: str, column: pa.Array, given: tuple[int, ...] | None = None) -> Any:
    """Return a column as an array of numbers for a tensor; None if no tensor fits."""
    if given is None and _is_number(column.type):
        return _numbers(name, column)
    shape: tuple[int, ...] = (len(column),)
    if given is not None:
        return _numbers(name, _flatten_lists(name, column, given)).reshape((len(column), *given))
    if isinstance(column, pa.FixedShapeTensorArray):
        shape = (len(column), *column.type.shape)
        column = column.storage
    if pa.types.is_fixed_size_list(column.type) and _is_number(column.type.value_type) and not column.null_count:
        shape = shape if len(shape) > 1 else (len(column), column.type.list_size)
        return _numbers(name, column.flatten()).reshape(shape)
    if pa.types.is_temporal(column.type) and not pa.types.is_interval(column.type):
        _refuse_nulls(name, column)
        column = column.cast(pa.int32() if column.type.bit_width == 32 else pa.int64())
    if _is_number(column.type) or pa.types.is_boolean(column.type):  # after the conversions above
        return _numbers(name, column)
    return None


def _flatten_lists(name: str, column: pa.Array, shape: tuple[int, ...]) -> pa.Array:
    """Return the numbers of a column of lists; each list must have as many as the shape."""
    import pyarrow.compute as pc

    kind = column.type
    listed = pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    if not listed or not (_is_number(kind.value_type) or pa.types.is_boolean(kind.value_type)):
        raise BadInput(f"expected lists of numbers in column {name} for the shape {shape}, got {kind}")
    size = math.prod(shape)
    lengths = pc.unique(pc.list_value_length(column)).to_pylist()
    if any(length != size for length in lengths):  # a null list has no length
        raise BadInput(
            f"expected every list of column {name} to have {size} numbers for the shape {shape}, got {lengths[:5]}"
        )
    return column.flatten()


def _numbers(name: str, column: pa.Array) -> Any:
    if not pa.types.is_floating(column.type):
        _refuse_nulls(name, column)
    # Arrow's `to_numpy` would load pandas, which takes longer than the first batch.
    if pa.types.is_boolean(column.type):
        bits = np.frombuffer(_data(column), np.uint8)
        return np.unpackbits(bits, bitorder="little")[column.offset :][: len(column)].view(np.bool_)
    kind = _NUMBERS[column.type.id]
    numbers = np.frombuffer(_data(column), kind, len(column), column.offset * kind.itemsize)
    return numbers if not column.null_count else np.where(_valid_mask(column), numbers, kind.type(math.nan))


def _refuse_nulls(name: str, column: pa.Array) -> None:
    if column.null_count:
        raise BadInput(
            f"expected column {name} without nulls, which {column.type} cannot hold in a tensor, got some; select rows "
            "where it is not null, leave it out, or fill them in your own function (form=)"
        )


def _data(column: pa.Array) -> Any:
    return column.buffers()[1] or b""


def _valid_mask(column: pa.Array) -> Any:
    """Return which values are not null."""
    return _numbers("", column.is_valid())


@cache
def _silence_warning() -> None:
    """Trigger PyTorch's one-time warning about read-only memory now, unseen. This module's docstring states the
    rule."""
    import torch

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        torch.from_numpy(np.frombuffer(bytes(1), np.uint8))


def _is_number(kind: pa.DataType) -> bool:
    """Return whether values of this type are whole numbers or floats."""
    return kind.id in _NUMBERS


def _is_blob(kind: pa.DataType) -> bool:
    return any(is_one(kind) for is_one in _BLOBS)


_BLOBS = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_fixed_size_binary)
_NUMBERS = {  # looked up for each column of each batch
    kind.id: np.dtype(f"{letter}{kind.bit_width // 8}")
    for letter, kinds in (
        ("i", (pa.int8(), pa.int16(), pa.int32(), pa.int64())),
        ("u", (pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64())),
        ("f", (pa.float16(), pa.float32(), pa.float64())),
    )
    for kind in kinds
}
