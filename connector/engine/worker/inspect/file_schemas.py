"""Checks the schemas of an owner's files: unique names, supported types, and types that fit each other."""

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
    """Raises: SourceUnreadable for columns whose type contains, at any depth, a type that is not read."""
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
    """Check that there are columns, and that their names differ in more than case.

    `like`: name and schema of the first file, whose columns they must have. Raises: SourceUnreadable.
    """
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
    """Whether the engine unites both types without changing a value."""
    parts = dict(_named_parts((), one))
    return all(family(kind) == family(parts.get(path, kind)) for path, kind in _named_parts((), other))


def _check_fields(column: pa.Field, name: str) -> None:
    """Check that fields of structs and unions, at any depth, have unique names, and those of structs are named.

    In Parquet the engine renames such fields; in Arrow one name returns another field. Raises: SourceUnreadable.
    """
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
    """Check that parts of columns have the same family as `before`, and add the parts of this file to it.

    `before`: the file and type of each part where it came first. Raises: SourceUnreadable.
    """
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
    """Yield each type nested in a type, with its case-folded path; null types are left out, as they fit any type."""
    plain = kind.value_type if pa.types.is_dictionary(kind) else kind
    if not pa.types.is_null(plain):
        yield path, plain
    for part in map(plain.field, range(plain.num_fields)):
        yield from _named_parts((*path, part.name.casefold() if pa.types.is_struct(plain) else "[]"), part.type)


def unzoned(kind: pa.DataType) -> pa.DataType:
    """Return a timestamp type without its zone; any other type unchanged."""
    return pa.timestamp(kind.unit) if pa.types.is_timestamp(kind) else kind


def family(kind: pa.DataType) -> str:
    """Return the family of a type. The engine unites types of one family without changing a value."""
    if pa.types.is_decimal(kind):
        return f"decimal of scale {kind.scale}"
    if pa.types.is_timestamp(kind):
        return "moment" if kind.tz else "timestamp"
    return next((name for name, checks in _FAMILIES.items() if any(check(kind) for check in checks)), str(kind))
