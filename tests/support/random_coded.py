"""Forms of Arrow columns that few programs write and its files may have: run ends, views of lists, small decimals,
extension types. Each tells the values of a plain array."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import pyarrow as pa
import pyarrow.compute as pc

Coder = Callable[[pa.Array], pa.Array]


def coders(rng: random.Random, schema: pa.Schema) -> list[Coder]:
    """One for each column, some of which stay as they are."""
    return [rng.choice([*_fitting(one.type), _plain]) for one in schema]


def coded(table: pa.Table, chosen: Sequence[Coder]) -> pa.Table:
    """The same values in these forms."""
    arrays = [one(column.combine_chunks()) for one, column in zip(chosen, table.columns, strict=True)]
    fields = [pa.field(one.name, array.type, one.nullable) for one, array in zip(table.schema, arrays, strict=True)]
    return pa.table(arrays, schema=pa.schema(fields))


def _fitting(kind: pa.DataType) -> list[Coder]:
    if pa.types.is_list(kind):
        return [_views(pa.ListViewArray, pa.int32()), _views(pa.LargeListViewArray, pa.int64())]
    if pa.types.is_fixed_size_list(kind):
        return [_extension(pa.fixed_shape_tensor(kind.value_type, [kind.list_size]))]
    if pa.types.is_nested(kind) or pa.types.is_dictionary(kind) or pa.types.is_null(kind):
        return []
    runs = [] if kind in (pa.string_view(), pa.binary_view()) else [pa.int16(), pa.int32(), pa.int64()]
    found = list(map(_runs, runs))
    if pa.types.is_decimal128(kind) and kind.precision <= 18:
        found += [_cast(pa.decimal64(kind.precision, kind.scale))] * 3
    if pa.types.is_decimal128(kind) and kind.precision <= 9:
        found += [_cast(pa.decimal32(kind.precision, kind.scale))] * 3
    if pa.types.is_boolean(kind):
        found += [_extension(pa.bool8(), pa.int8())] * 3
    if kind == pa.string():
        found += [_extension(pa.opaque(kind, "word", "test"))]
    if kind == pa.binary():
        found += [_extension(pa.opaque(kind, "picture", "test"))]
    return found


def _plain(array: pa.Array) -> pa.Array:
    return array


def _cast(kind: pa.DataType) -> Coder:
    return lambda array: array.cast(kind)


def _views(form: type[pa.Array], whole: pa.DataType) -> Coder:
    def made(array: pa.Array) -> pa.Array:
        starts, sizes = array.offsets[:-1], pc.fill_null(pc.list_value_length(array), 0)
        return form.from_arrays(starts.cast(whole), sizes.cast(whole), array.values, mask=array.is_null())

    return made


def _extension(kind: pa.DataType, storage: pa.DataType | None = None) -> Coder:
    return lambda array: pa.ExtensionArray.from_storage(kind, array.cast(storage) if storage else array)


def _runs(ends: pa.DataType) -> Coder:
    return lambda array: pc.run_end_encode(array, run_end_type=ends)
