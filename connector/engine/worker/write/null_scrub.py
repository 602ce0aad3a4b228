"""Zeroes the bytes under nulls, so that an answer's buffers hold only the answer. Runs in a worker; pure.

An Arrow array may hold any bytes where its values are null (Arrow columnar format, "Validity bitmaps"). Engines leave
there what the memory held before: possibly a value of a row that a policy has filtered out. An owner's file may still
hold a value that was set to null later. A receiver of the buffers could read both.
"""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc


def zero_nulls(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Return the batch with zeros under its nulls; the same object where there are no nulls."""
    if not any(_holds_nulls(column) for column in batch.columns):
        return batch
    columns = [_zero_array(column) if _holds_nulls(column) else column for column in batch.columns]
    return pa.RecordBatch.from_arrays(columns, schema=batch.schema)


def has_union(kind: pa.DataType) -> bool:
    """Whether a type contains a union, which has no null count of its own."""
    if isinstance(kind, pa.BaseExtensionType):
        return has_union(kind.storage_type)
    return pa.types.is_union(kind) or any(has_union(kind.field(number).type) for number in range(kind.num_fields))


def _holds_nulls(array: pa.Array) -> bool:
    kind = array.type
    if isinstance(kind, pa.BaseExtensionType):
        return _holds_nulls(array.storage)
    if pa.types.is_null(kind):
        return False
    if pa.types.is_union(kind) or array.null_count:
        return True
    if pa.types.is_struct(kind):
        return any(_holds_nulls(child) for child in array.flatten())
    return _is_list(kind) and _holds_nulls(_map_to_list(array).flatten())


def _zero_array(array: pa.Array) -> pa.Array:
    kind = array.type
    if isinstance(kind, pa.BaseExtensionType):
        return pa.ExtensionArray.from_storage(kind, _zero_array(array.storage))
    if pa.types.is_null(kind):
        return array
    if pa.types.is_struct(kind):
        children = [_zero_array(child) for child in array.flatten()]  # null where the struct is
        return pa.StructArray.from_arrays(children, fields=list(kind), mask=array.is_null())
    if pa.types.is_fixed_size_list(kind):
        return _zero_fixed_lists(array)
    if _is_list(kind):
        return _zero_lists(array)
    if pa.types.is_union(kind):
        return _zero_union(array)
    return _zero_values(array) if array.null_count else array


def _zero_values(array: pa.Array) -> pa.Array:
    """Return an array of one buffer of values, or of offsets and bytes, with zeros under its nulls."""
    kind = array.type
    if pa.types.is_boolean(kind):
        filled = pc.fill_null(array, False)
    elif _is_text(kind):
        shown = pc.sum(pc.binary_length(array)).as_py() or 0
        if shown == _referenced_bytes(array):
            return array
        filled = pc.fill_null(array, b"" if _is_bytes(kind) else "")
    else:
        width = kind.bit_width // 8
        filled = pc.fill_null(array.view(pa.binary(width)), bytes(width))
    return pa.Array.from_buffers(kind, len(array), [_make_validity(array), *filled.buffers()[1:]], array.null_count)


def _make_validity(array: pa.Array) -> pa.Buffer | None:
    return pc.is_valid(array).buffers()[1] if array.null_count else None


def _referenced_bytes(array: pa.Array) -> int:
    """Return the bytes between the first and the last offset, including those under nulls."""
    wide = pa.types.is_large_string(array.type) or pa.types.is_large_binary(array.type)
    kind = pa.int64() if wide else pa.int32()
    offsets = pa.Array.from_buffers(kind, len(array) + 1, [None, array.buffers()[1]], 0, array.offset)
    return int(offsets[-1].as_py() - offsets[0].as_py())


def _zero_lists(array: pa.Array) -> pa.Array:
    """Return lists or maps rebuilt from only the values of lists that are not null."""
    plain = _map_to_list(array)
    ends = pc.cumulative_sum(pc.fill_null(pc.list_value_length(plain), 0))
    offsets = pa.concat_arrays([pa.array([0], ends.type), ends])
    buffers = [_make_validity(array), offsets.buffers()[1]]
    values = plain.flatten()
    # Concatenation copies: a writer pads a slice with the bytes behind it.
    values = _zero_array(pa.concat_arrays([values, values.slice(0, 0)]))
    return pa.Array.from_buffers(array.type, len(array), buffers, array.null_count, children=[values])


def _zero_fixed_lists(array: pa.Array) -> pa.Array:
    size = array.type.list_size
    every = pa.arange(0, len(array) * size)
    there = pc.take(pc.is_valid(array), pc.divide(every, max(1, size)))
    values = array.values.slice(array.offset * size, len(every)).take(pc.if_else(there, every, None))
    return pa.Array.from_buffers(
        array.type, len(array), [_make_validity(array)], array.null_count, children=[_zero_array(values)]
    )


def _map_to_list(array: pa.Array) -> pa.Array:
    """Return a map as a list of pairs; a list unchanged."""
    if not pa.types.is_map(array.type):
        return array
    pair = pa.struct([array.type.key_field, array.type.item_field])
    pairs = pa.StructArray.from_arrays([array.keys, array.items], fields=list(pair))
    buffers = array.buffers()[:2]
    return pa.Array.from_buffers(pa.list_(pair), len(array), buffers, array.null_count, array.offset, children=[pairs])


def _zero_union(array: pa.Array) -> pa.Array:
    """Return a union whose sparse children hold values only where they are chosen."""
    if array.type.mode != "sparse":
        children = [_zero_array(array.field(number)) for number in range(array.type.num_fields)]
        return pa.UnionArray.from_dense(
            array.type_codes, array.offsets, children, _field_names(array), array.type.type_codes
        )
    rows = pa.arange(0, len(array))
    children = []
    for number, code in enumerate(array.type.type_codes):
        chosen = pc.if_else(pc.equal(array.type_codes, pa.scalar(code, pa.int8())), rows, None)
        children.append(_zero_array(array.field(number).take(chosen)))
    return pa.UnionArray.from_sparse(array.type_codes, children, _field_names(array), array.type.type_codes)


def _field_names(array: pa.Array) -> list[str]:
    return [array.type.field(number).name for number in range(array.type.num_fields)]


def _is_list(kind: pa.DataType) -> bool:
    lists = (pa.types.is_list, pa.types.is_large_list, pa.types.is_map, pa.types.is_fixed_size_list)
    return any(test(kind) for test in lists)


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind) or _is_bytes(kind)


def _is_bytes(kind: pa.DataType) -> bool:
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))
