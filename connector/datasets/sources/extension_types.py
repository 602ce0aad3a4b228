"""Arrow types that are safe to give to the engine.

The engine trusts the name of an extension type and ignores its storage type. For a HUGEINT it reads 16 bytes per value
from buffers that may hold one, and returns memory behind the buffer. An extension type is therefore replaced by its
storage type, unless Arrow itself checks it.
"""

from __future__ import annotations

from typing import Any

import pyarrow as pa

from connector.errors import SourceUnreadable

_CHECKED = (pa.UuidType, pa.JsonType, pa.Bool8Type, pa.FixedShapeTensorType)
_TOLD_MAX = 5


def trusted_schema(schema: pa.Schema) -> pa.Schema:
    """Return the schema without metadata, and without extension types that Arrow does not check."""
    return pa.schema([_field(one) for one in schema])


def cast_batch(batch: pa.RecordBatch, schema: pa.Schema) -> pa.RecordBatch:
    """Return the same values in this schema, whose types come from `trusted_schema`."""
    columns = [
        column if column.type == one.type else column.cast(one.type)
        for column, one in zip(batch.columns, schema, strict=True)
    ]
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def owner_schema(schema: pa.Schema) -> pa.Schema:
    """Return `trusted_schema` of an owner's file.

    Earlier versions registered files with types that an engine named; their storage is not what was agreed. Raises:
    SourceUnreadable for such a column.
    """
    if named := [f"{one.name} ({one.type})" for one in schema if _has_engine_type(one.type)]:
        raise SourceUnreadable(
            f"expected columns of types that can be given on as they are, came {', '.join(named[:_TOLD_MAX])}; their "
            "owner must write them as another type, such as a decimal of at most 38 digits, or text, and register that "
            "under a new name",
            code="type_unread",
        )
    return trusted_schema(schema)


def is_of_engine(kind: pa.DataType) -> bool:
    """Return whether DuckDB named this type: its storage type has no meaning for other programs."""
    return isinstance(kind, pa.OpaqueType) and kind.vendor_name == "DuckDB"


def _has_engine_type(kind: pa.DataType) -> bool:
    """Return whether an engine named this type, or a type that it contains."""
    if is_of_engine(kind):
        return True
    if isinstance(kind, pa.BaseExtensionType):
        return _has_engine_type(kind.storage_type)
    if pa.types.is_dictionary(kind) or pa.types.is_run_end_encoded(kind):
        return _has_engine_type(kind.value_type)
    return any(_has_engine_type(kind.field(number).type) for number in range(kind.num_fields))


def _field(field: pa.Field) -> pa.Field:
    return pa.field(field.name, _type(field.type), field.nullable)


def _type(kind: pa.DataType) -> pa.DataType:
    if isinstance(kind, pa.BaseExtensionType):
        return kind if isinstance(kind, _CHECKED) else _type(kind.storage_type)
    if pa.types.is_dictionary(kind):
        return pa.dictionary(kind.index_type, _strip_name(kind.value_type), kind.ordered)
    if pa.types.is_run_end_encoded(kind):
        return pa.run_end_encoded(kind.run_end_type, _strip_name(kind.value_type))
    return _rebuild_type(kind, [_field(kind.field(number)) for number in range(kind.num_fields)])


def _strip_name(kind: pa.DataType) -> pa.DataType:
    """Return the type without a name: the engine would read a name of values as the name of their indices."""
    return _strip_name(kind.storage_type) if isinstance(kind, pa.BaseExtensionType) else _type(kind)


def _rebuild_type(kind: pa.DataType, fields: list[pa.Field]) -> pa.DataType:
    """Return a type of the same form with other fields."""
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
