"""What the schemas of an owner's files must be: columns and fields of one name each, and files that go together."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import pyarrow as pa

from connector.datasets.sources.to_parquet import check_names
from connector.engine.worker.inspect import arrow_values
from connector.errors import SourceUnreadable

TOLD_MAX = 5
_FAMILIES: Mapping[str, tuple[Callable[[pa.DataType], bool], ...]] = {
    "integer": (pa.types.is_integer,),
    "float": (pa.types.is_floating,),
    "time": (pa.types.is_time,),
    "text": (pa.types.is_string, pa.types.is_large_string, pa.types.is_string_view),
    "binary": (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_binary_view, pa.types.is_fixed_size_binary),
    "list": (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list),
    "map": (pa.types.is_map,),
    "struct": (pa.types.is_struct,),
}


def check_types(schema: pa.Schema, name: str, unread: Callable[[pa.DataType], bool]) -> None:
    """SourceUnreadable for columns in whose types, however deep, there is one that is not read."""
    if strange := [
        f"{field.name} ({field.type})" for field in schema if any(map(unread, arrow_values.parts(field.type)))
    ]:
        raise SourceUnreadable(
            f"expected columns of types that can be given on as they are, came {', '.join(strange[:TOLD_MAX])} in "
            f"{name!r}; write them as another type, such as float, a decimal of at most 38 digits, or text",
            code="type_unread",
            file=name,
        )


def check_schema(schema: pa.Schema, name: str, *, like: tuple[str, pa.Schema] | None) -> None:
    """SourceUnreadable unless there are columns, of one name each, whatever its case; those of the first file (`like`:
    its name and schema), if that is asked."""
    if not schema.names:
        raise SourceUnreadable(f"expected columns, came none in {name!r}; write it with at least one", file=name)
    if "" in schema.names:  # the engine calls it by its place, and no SQL can name it
        raise SourceUnreadable(f"expected columns with names, came one without in {name!r}; name it", file=name)
    check_names(schema.names, file=name)
    for column in schema:
        _check_fields(column, name)
    if like is None or schema.equals(like[1]):
        return
    before = {field.name: field.type for field in like[1]}
    after = {field.name: field.type for field in schema}
    told = [f"{column} is {after[column]} and not {kind}" for column, kind in before.items()
            if after.get(column, kind) != kind]  # fmt: skip
    told += [f"{column} is missing" for column in before if column not in after]
    told += [f"{column} is there beside" for column in after if column not in before]
    if told:
        others = any(not _alike_types(kind, after.get(column, kind)) for column, kind in before.items())
        raise SourceUnreadable(
            f"expected files of one schema; compared with {like[0]!r}, in {name!r} {'; '.join(told[:TOLD_MAX])}; "
            f"write it again{'' if others else ', or register a directory of Parquet with the option union_by_name'}",
            code="schemas_differ",
            file=name,
        )


def _alike_types(one: pa.DataType, other: pa.DataType) -> bool:
    """Whether the engine makes one type of both, which has every value of each."""
    parts = dict(_named_parts((), one))
    return all(family(kind) == family(parts.get(path, kind)) for path, kind in _named_parts((), other))


def _check_fields(column: pa.Field, name: str) -> None:
    """SourceUnreadable for a struct or a union in this column, however deep, with fields of one name, or a struct's
    without one: of Parquet the engine renames them, of Arrow the name of one gives another."""
    for kind in filter(_has_fields, arrow_values.parts(column.type)):
        names = [part.name for part in kind]
        if "" in names and pa.types.is_struct(kind):
            raise SourceUnreadable(
                f"expected fields with names, came one without in {column.name} of {name!r}; name it", file=name
            )
        check_names(filter(None, names), file=name, column=column.name)


def _has_fields(kind: pa.DataType) -> bool:
    return bool(pa.types.is_struct(kind) or pa.types.is_union(kind))


def check_union(schema: pa.Schema, name: str, before: dict[tuple[str, ...], tuple[str, pa.DataType]]) -> None:
    """SourceUnreadable for parts of columns that are of another family than `before`: the file and the type of each
    part where it came first. Those of this file are added."""
    told = []
    for column in schema:
        for path, kind in _named_parts((column.name.casefold(),), column.type):
            file, was = before.setdefault(path, (name, kind))
            if was != kind and family(was) != family(kind):
                told.append(f"{'.'.join((column.name, *path[1:]))} is {kind} and not {was} as in {file!r}")
    if told:
        raise SourceUnreadable(
            "expected columns of one name to be of one type, or of such as become one without altering a value (whole "
            f"numbers, floats, decimals of one scale), in {name!r} {'; '.join(told[:TOLD_MAX])}; write it again with "
            "that type",
            code="schemas_differ",
            file=name,
        )


def _named_parts(path: tuple[str, ...], kind: pa.DataType) -> Iterator[tuple[tuple[str, ...], pa.DataType]]:
    """A type and all those that it is made of, each with its place, whatever the case; nulls are of any type."""
    plain = kind.value_type if pa.types.is_dictionary(kind) else kind
    if not pa.types.is_null(plain):
        yield path, plain
    for part in map(plain.field, range(plain.num_fields)):
        yield from _named_parts((*path, part.name.casefold() if pa.types.is_struct(plain) else "[]"), part.type)


def unzoned(kind: pa.DataType) -> pa.DataType:
    """A timestamp without its zone; any other type as it is."""
    return pa.timestamp(kind.unit) if pa.types.is_timestamp(kind) else kind


def family(kind: pa.DataType) -> str:
    """What those types have in common of which the engine makes one that has every value of each."""
    if pa.types.is_decimal(kind):
        return f"decimal of scale {kind.scale}"
    if pa.types.is_timestamp(kind):
        return "moment" if kind.tz else "timestamp"
    return next((name for name, checks in _FAMILIES.items() if any(check(kind) for check in checks)), str(kind))
