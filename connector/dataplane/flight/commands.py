"""Flight SQL's messages, as much of the standard as is answered here, and its catalogue tables.

Messages are those of the published FlightSql.proto; field numbers stand beside their names. What is not in COMMANDS
and ACTIONS is unimplemented, and said so: clients ask for some things only to see. Knows no socket and no server.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pyarrow as pa

from connector.dataplane.flight import protobuf
from connector.dataplane.flight.protobuf import Garbled, Message

_URL = "type.googleapis.com/arrow.flight.protocol.sql."
_TABLE_TYPES = ("TABLE",)
_ROW_TEXT_MAX = 64 * 2**10

CATALOGS = pa.schema([pa.field("catalog_name", pa.string(), nullable=False)])
SCHEMAS = pa.schema([pa.field("catalog_name", pa.string()), pa.field("db_schema_name", pa.string(), nullable=False)])
TYPES = pa.schema([pa.field("table_type", pa.string(), nullable=False)])
TABLES = pa.schema(
    [
        pa.field("catalog_name", pa.string()),
        pa.field("db_schema_name", pa.string()),
        pa.field("table_name", pa.string(), nullable=False),
        pa.field("table_type", pa.string(), nullable=False),
    ]
)
TABLES_WITH_SCHEMA = TABLES.append(pa.field("table_schema", pa.binary(), nullable=False))


def unpack(raw: bytes) -> tuple[str, Message]:
    """The name and the fields of a message in a google.protobuf.Any. Garbled where it is no Flight SQL message."""
    outer = protobuf.read(raw)
    url = protobuf.text(outer, 1) or ""
    if not url.startswith(_URL):
        raise Garbled("expected a path, a JSON envelope or a Flight SQL command, came something else")
    return url.removeprefix(_URL), protobuf.read(protobuf.octets(outer, 2) or b"")


def pack(name: str, fields: Iterable[tuple[int, int | bytes | str]]) -> bytes:
    """A Flight SQL message in a google.protobuf.Any."""
    return protobuf.write([(1, _URL + name), (2, protobuf.write(fields))])


def table_schema_wanted(command: Message) -> bool:
    """Whether CommandGetTables asks for the tables' schemas (5, include_schema)."""
    return bool(protobuf.number(command, 5))


def schema_of(name: str, command: Message) -> pa.Schema:
    """The schema of a catalogue table."""
    if name == "CommandGetTables":
        return TABLES_WITH_SCHEMA if table_schema_wanted(command) else TABLES
    return {"CommandGetCatalogs": CATALOGS, "CommandGetDbSchemas": SCHEMAS, "CommandGetTableTypes": TYPES}[name]


def constant(sql: str) -> pa.Table | None:
    """What `SELECT 1` gives, or any other whole number under any name; None for other statements. Clients ask such to
    see whether a connection lives; no dataset is read, so it is no read, and nothing runs it."""
    found = _CONSTANT.fullmatch(sql)
    if found is None:
        return None
    value, quoted, plain = found.groups()
    return pa.table({quoted or plain or value: pa.array([int(value)], pa.int32())})


# Nothing is given back once it is taken: a long run of spaces would be looked at from each of them.
_CONSTANT = re.compile(
    r'\s*+SELECT\s++(0|[1-9]\d{0,8}+)(?:\s++AS\s++(?:"([^"\0]{1,100}+)"|([A-Z_]\w{0,99}+)))?+\s*+;?+\s*+',
    re.ASCII | re.IGNORECASE,
)


def catalogue(name: str, command: Message, tables: Sequence[Mapping[str, Any]]) -> pa.Table:
    """One catalogue table about these datasets ({owner, name, schema}). There is one catalogue, and it has no name."""
    if name == "CommandGetCatalogs":
        return pa.Table.from_pylist([{"catalog_name": ""}], CATALOGS)
    if name == "CommandGetTableTypes":
        return pa.Table.from_pylist([{"table_type": one} for one in _TABLE_TYPES], TYPES)
    if protobuf.text(command, 1):  # catalog: any but the one without a name has nothing
        tables = ()
    owners = _like(protobuf.text(command, 2))  # db_schema_filter_pattern
    tables = [one for one in tables if owners.fullmatch(one["owner"])]
    if name == "CommandGetDbSchemas":
        names = sorted({one["owner"] for one in tables})
        return pa.Table.from_pylist([{"catalog_name": "", "db_schema_name": one} for one in names], SCHEMAS)
    return _tables(command, tables)


def _tables(command: Message, tables: Sequence[Mapping[str, Any]]) -> pa.Table:
    named = _like(protobuf.text(command, 3))  # table_name_filter_pattern
    kinds = protobuf.texts(command, 4)  # table_types
    rows = [
        {
            "catalog_name": "",
            "db_schema_name": one["owner"],
            "table_name": one["name"],
            "table_type": "TABLE",
            "table_schema": one["schema"],
        }
        for one in sorted(tables, key=lambda one: str(one["name"]))
        if named.fullmatch(one["name"]) and (not kinds or "TABLE" in kinds)
    ]
    return pa.Table.from_pylist(rows, schema_of("CommandGetTables", command))


def _like(pattern: str | None) -> re.Pattern[str]:
    """A pattern of SQL's LIKE; None is any. What stands between two `%` is looked for once, the first place is taken:
    every other way to share a name among them would be tried as well."""
    text = "%" if pattern is None else pattern[:1024]
    first, *more = ["".join("." if one == "_" else re.escape(one) for one in part) for part in text.split("%")]
    sought = "".join(f"(?>.*?{part})" for part in more[:-1])
    return re.compile(first + sought + "".join(f".*{part}" for part in more[-1:]), re.DOTALL)


def handle(sql: str, values: Sequence[Sequence[str]]) -> bytes:
    """A prepared statement as its handle: all of it, so that there is nothing to keep and nothing to lose."""
    return json.dumps({"sql": sql, "values": list(values)}, separators=(",", ":")).encode()


def unhandle(raw: bytes | None) -> tuple[str, list[list[str]]]:
    """Statement and values of a handle. Garbled for what `handle` never made."""
    try:
        told = json.loads(raw or b"")
        sql, values = told["sql"], told["values"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise Garbled("expected the handle of a prepared statement as it was given out") from None
    if not isinstance(sql, str) or not isinstance(values, list):
        raise Garbled("expected the handle of a prepared statement as it was given out")
    return sql, values


def values_of(batches: Iterable[pa.RecordBatch]) -> list[list[str]]:
    """The one row of parameters in these batches as [type, text]; Garbled where it is another number of rows."""
    row: list[list[str]] | None = None
    for batch in batches:
        batch.validate(full=True)
        if batch.num_rows > 1 or (batch.num_rows and row is not None):
            raise Garbled("expected one row of parameters for a query, came more")
        if batch.num_rows:
            row = [_value(column) for column in batch.columns]
    if row is None:
        raise Garbled("expected one row of parameters, came none")
    if sum(len(text) for _, text in row) > _ROW_TEXT_MAX:
        raise Garbled(f"expected at most {_ROW_TEXT_MAX} characters of parameters, came more")
    return row


def _value(column: pa.Array) -> list[str]:
    kind = column.type
    if column.null_count or pa.types.is_null(kind):
        return ["null", ""]
    if pa.types.is_timestamp(kind):
        column = column.cast(pa.timestamp("us", kind.tz), safe=False)
    if pa.types.is_time(kind):
        column = column.cast(pa.time64("us"), safe=False)
    for name, fits in _KINDS:
        if fits(kind):
            value = column[0].as_py()
            return [name, str(value).lower() if name == "bool" else str(value)]
    raise Garbled(f"expected a parameter that is a number, text, date, time or flag, came {kind}")


def _zoned(kind: pa.DataType) -> bool:
    return pa.types.is_timestamp(kind) and kind.tz is not None


_KINDS: tuple[tuple[str, Any], ...] = (
    ("bool", pa.types.is_boolean),
    ("int", pa.types.is_integer),
    ("float", pa.types.is_floating),
    ("decimal", pa.types.is_decimal),
    ("text", lambda kind: pa.types.is_string(kind) or pa.types.is_large_string(kind) or kind == pa.string_view()),
    ("date", pa.types.is_date),
    ("time", pa.types.is_time),
    ("timestamptz", _zoned),
    ("timestamp", pa.types.is_timestamp),
)
