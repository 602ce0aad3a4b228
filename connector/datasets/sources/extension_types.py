"""Arrow types as the engine may be told them.

It believes the name of an extension type, and not what the type lies in: of a HUGEINT it takes 16 bytes a value from
buffers that have one, and gives on what lies behind them. So whoever wrote the data does not say what it is called: it
is what it lies in, unless Arrow itself has checked that.
"""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from connector.errors import SourceUnreadable

_CHECKED = (pa.UuidType, pa.JsonType, pa.Bool8Type, pa.FixedShapeTensorType)
_TOLD_MAX = 5


def trusted(schema: pa.Schema) -> pa.Schema:
    """The schema without what somebody has noted beside it, and without names of types that Arrow does not check."""
    return pa.schema([_field(one) for one in schema])


def of_types(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    """The same values in this schema, whose types are those of `trusted`."""
    columns = [
        column if column.type == one.type else column.cast(one.type)
        for column, one in zip(batch.columns, schema, strict=True)
    ]
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def owned(schema: pa.Schema) -> pa.Schema:
    """`trusted` of an owner's file; SourceUnreadable where an engine has named a column's type: connectors of before
    registered such files, and what the values lie in is not what was agreed."""
    if named := [f"{one.name} ({one.type})" for one in schema if _is_within(one.type)]:
        raise SourceUnreadable(
            f"expected columns of types that can be given on as they are, came {', '.join(named[:_TOLD_MAX])}; their "
            "owner must write them as another type, such as a decimal of at most 38 digits, or text, and register that "
            "under a new name",
            code="type_unread",
        )
    return trusted(schema)


def is_of_engine(kind: pa.DataType) -> bool:
    """Whether an engine like ours gave this type its name: what it lies in says nothing to anybody else."""
    return isinstance(kind, pa.OpaqueType) and kind.vendor_name == "DuckDB"


def _is_within(kind: pa.DataType) -> bool:
    """Whether an engine gave its name to this type, or to one that it is made of."""
    if is_of_engine(kind):
        return True
    if isinstance(kind, pa.BaseExtensionType):
        return _is_within(kind.storage_type)
    if pa.types.is_dictionary(kind) or pa.types.is_run_end_encoded(kind):
        return _is_within(kind.value_type)
    return any(_is_within(kind.field(number).type) for number in range(kind.num_fields))


def _field(field: pa.Field) -> pa.Field:
    return pa.field(field.name, _type(field.type), field.nullable)


def _type(kind: pa.DataType) -> pa.DataType:
    if isinstance(kind, pa.BaseExtensionType):
        return kind if isinstance(kind, _CHECKED) else _type(kind.storage_type)
    if pa.types.is_dictionary(kind):
        return pa.dictionary(kind.index_type, _unnamed(kind.value_type), kind.ordered)
    if pa.types.is_run_end_encoded(kind):
        return pa.run_end_encoded(kind.run_end_type, _unnamed(kind.value_type))
    return _nested(kind, [_field(kind.field(number)) for number in range(kind.num_fields)])


def _unnamed(kind: pa.DataType) -> pa.DataType:
    """Without a name: of words and runs the engine takes it for that of the numbers that stand for them."""
    return _unnamed(kind.storage_type) if isinstance(kind, pa.BaseExtensionType) else _type(kind)


def _nested(kind: pa.DataType, fields: list[pa.Field]) -> pa.DataType:
    """A type of the same form over other fields."""
    if pa.types.is_struct(kind):
        return pa.struct(fields)
    if pa.types.is_union(kind):
        return pa.union(fields, kind.mode, kind.type_codes)
    if pa.types.is_map(kind):
        return pa.map_(*(_field(one) for one in (kind.key_field, kind.item_field)), keys_sorted=kind.keys_sorted)
    if pa.types.is_fixed_size_list(kind):
        return pa.list_(fields[0], kind.list_size)
    made = next((make for is_one, make in _LISTS if is_one(kind)), None)
    return kind if made is None else made(fields[0])


_LISTS: tuple[tuple[Any, Any], ...] = (
    (pa.types.is_list, pa.list_),
    (pa.types.is_large_list, pa.large_list),
    (pa.types.is_list_view, pa.list_view),
    (pa.types.is_large_list_view, pa.large_list_view),
)
