"""Catalogue tables for Flight, and parameters from clients, in Arrow. Runs inside `catalogue_process`.

MAKES holds a handler for each question, by name.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import pyarrow as pa

from connector.dataplane.flight import catalogue_process, protobuf, sqlinfo
from connector.dataplane.flight.flightsql import KEYS, table_schema_wanted
from connector.dataplane.flight.parameters import MOST
from connector.dataplane.flight.protobuf import MalformedMessage, Message
from connector.infra.formats import flatbuffers

_TEXT_MAX = 300
_TABLE_TYPES = ("TABLE",)
_ROW_TEXT_MAX = 64 * 2**10
_DECOMPRESSED_MAX = 2**20  # bytes of a row of parameters: as many as one that is not compressed can have
_VERSION_5 = 4  # Schema.fbs, MetadataVersion: those before say elsewhere that they are compressed

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
_NO_COLUMNS = pa.schema([]).serialize().to_pybytes()  # of a dataset that cannot be read: clients fail without a schema
TABLES_WITH_SCHEMA = TABLES.append(pa.field("table_schema", pa.binary(), nullable=False))
PRIMARY_KEYS = pa.schema(
    [
        pa.field("catalog_name", pa.string()),
        pa.field("db_schema_name", pa.string()),
        pa.field("table_name", pa.string(), nullable=False),
        pa.field("column_name", pa.string(), nullable=False),
        pa.field("key_name", pa.string()),
        pa.field("key_sequence", pa.int32(), nullable=False),
    ]
)
FOREIGN_KEYS = pa.schema(
    [
        *(
            pa.field(f"{side}_{name}", pa.string(), nullable=name in ("catalog_name", "db_schema_name"))
            for side in ("pk", "fk")
            for name in ("catalog_name", "db_schema_name", "table_name", "column_name")
        ),
        pa.field("key_sequence", pa.int32(), nullable=False),
        pa.field("fk_key_name", pa.string()),
        pa.field("pk_key_name", pa.string()),
        pa.field("update_rule", pa.uint8(), nullable=False),
        pa.field("delete_rule", pa.uint8(), nullable=False),
    ]
)
_SCHEMAS = {
    "CommandGetCatalogs": CATALOGS,
    "CommandGetDbSchemas": SCHEMAS,
    "CommandGetTables": TABLES,
    "CommandGetTableTypes": TYPES,
    "CommandGetSqlInfo": sqlinfo.SCHEMA,
    **dict.fromkeys(KEYS, FOREIGN_KEYS),
    "CommandGetPrimaryKeys": PRIMARY_KEYS,
}


def answer(question: Sequence[Any], parts: Sequence[bytes]) -> bytes:
    """Returns the answer to a question as a frame: {"made": value} with its parts, {"garbled": reason} for a malformed
    request of a client, {"failed": error type} for a failure of this process."""
    name, *told = question
    try:
        made, found = MAKES[name](parts, *told)
    except MalformedMessage as error:
        return catalogue_process.frame({"garbled": str(error)[:_TEXT_MAX]})
    except Exception as error:  # noqa: BLE001  the next question is not affected
        return catalogue_process.frame({"failed": type(error).__name__})
    return catalogue_process.frame({"made": made}, found)


def schema_of(name: str, command: Message) -> pa.Schema:
    """Returns the schema of a catalogue table."""
    return TABLES_WITH_SCHEMA if table_schema_wanted(name, command) else _SCHEMAS[name]


def constant(name: str, value: int) -> pa.Table:
    """Returns one row of one integer."""
    return pa.table({name: pa.array([value], pa.int32())})


def parameters(kinds: Sequence[str]) -> pa.Schema:
    """Returns the schema of parameters of these kinds (see `parameters.kinds`)."""
    return pa.schema([pa.field(str(number), _PARAMETERS.get(kind, pa.null())) for number, kind in enumerate(kinds)])


# Timestamps in milliseconds: JDBC writes those, whatever the unit is.
_PARAMETERS = {
    "int": pa.int64(),
    "float": pa.float64(),
    "text": pa.string(),
    "date": pa.date32(),
    "time": pa.time32("ms"),
    "timestamp": pa.timestamp("ms"),
    "timestamptz": pa.timestamp("ms", "UTC"),
    "bool": pa.bool_(),
}


def catalogue(name: str, command: Message, tables: Sequence[Mapping[str, Any]]) -> pa.Table:
    """Returns a catalogue table about these datasets ({owner, name, schema}). The one catalogue has no name, and no
    dataset has keys."""
    if name == "CommandGetCatalogs":
        return pa.Table.from_pylist([{"catalog_name": ""}], CATALOGS)
    if name == "CommandGetTableTypes":
        return pa.Table.from_pylist([{"table_type": one} for one in _TABLE_TYPES], TYPES)
    if name == "CommandGetSqlInfo":
        return sqlinfo.table(protobuf.numbers(command, 1))
    if name in KEYS:
        return schema_of(name, command).empty_table()
    if protobuf.text(command, 1):  # catalog: only the one without a name has tables
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
            "table_schema": one["schema"] or _NO_COLUMNS,
        }
        for one in sorted(tables, key=lambda one: str(one["name"]))
        if named.fullmatch(one["name"]) and (not kinds or "TABLE" in kinds)
    ]
    return pa.Table.from_pylist(rows, schema_of("CommandGetTables", command))


def _like(pattern: str | None) -> re.Pattern[str]:
    """Returns a pattern of SQL's LIKE; None matches any name. The text between two `%` matches at its first place only:
    a plain regular expression would try every other way to divide the name, too."""
    text = "%" if pattern is None else pattern[:1024]
    first, *more = ["".join("." if one == "_" else re.escape(one) for one in part) for part in text.split("%")]
    sought = "".join(f"(?>.*?{part})" for part in more[:-1])
    return re.compile(first + sought + "".join(f".*{part}" for part in more[-1:]), re.DOTALL)


def values_of(batches: Iterable[pa.RecordBatch]) -> list[list[str]]:
    """Returns the one row of parameters in these batches as [type, text]. Raises MalformedMessage for other counts."""
    row: list[list[str]] | None = None
    for batch in batches:
        _check_kinds(batch.schema)
        if batch.num_rows > 1 or (batch.num_rows and row is not None):
            raise _several()
        batch.validate()
        if batch.num_rows:
            row = [_value_at(number, column) for number, column in enumerate(batch.columns, 1)]
    if row is None:
        raise MalformedMessage("expected one row of parameters, got none")
    if sum(len(text) for _, text in row) > _ROW_TEXT_MAX:
        raise MalformedMessage(f"expected at most {_ROW_TEXT_MAX} characters of parameters, got more")
    return row


def _value_at(number: int, column: pa.Array) -> list[str]:
    """Returns the value of a parameter; an error names its number."""
    try:
        column.validate(full=True)
        return _value(column)
    except (pa.ArrowInvalid, ValueError, OverflowError) as error:
        if isinstance(error, MalformedMessage):
            raise MalformedMessage(f"parameter {number}: {error}") from None
        raise MalformedMessage(
            f"expected parameter {number} as a {_name_of(column.type)} that exists (years from 1 to 9999, dates of "
            "whole days, text in UTF-8), got another"
        ) from None


def _value(column: pa.Array) -> list[str]:
    kind = column.type
    name = _name_of(kind)
    if column.null_count or name == "null":
        return ["null", ""]
    if name in ("time", "timestamp", "timestamptz"):
        return [name, _moment(name, column)]
    value = column[0].as_py()
    if name == "decimal":
        return [name, format(value, "f")]  # not 4E-11
    return [name, str(value).lower() if name == "bool" else str(value)]


def _moment(name: str, column: pa.Array) -> str:
    """Returns a time of day or a timestamp. Raises MalformedMessage for nanoseconds, which no literal can have."""
    kind = column.type
    if kind.unit == "ns":
        whole, rest = divmod(column[0].value, 1000)
        if rest:
            raise MalformedMessage(
                f"expected a {name} of whole microseconds, got one with nanoseconds; round it, or bind a text"
            )
        column = pa.array([whole], pa.time64("us") if name == "time" else pa.timestamp("us", kind.tz))
    return str(column[0].as_py())


def _name_of(kind: pa.DataType) -> str:
    """Returns the type of a parameter, as in `parameters.Value`."""
    for name, fits in _KINDS:
        if fits(kind):
            return name
    raise MalformedMessage(f"expected a parameter that is a number, text, date, time or flag, got {kind}")


def _several() -> MalformedMessage:
    return MalformedMessage("expected one row of parameters for a query, got more")


def _zoned(kind: pa.DataType) -> bool:
    return pa.types.is_timestamp(kind) and kind.tz is not None


_KINDS: tuple[tuple[str, Any], ...] = (
    ("null", pa.types.is_null),
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


def values_in(stream: bytes) -> list[list[str]]:
    """Returns the one row of parameters in a client's stream. Raises MalformedMessage for anything else."""
    options = pa.ipc.IpcReadOptions(use_threads=False)  # without memory for a thread, waiting for it never ends
    try:
        with pa.ipc.open_stream(pa.BufferReader(_small(stream)), options=options) as reader:
            return values_of(reader)
    except MalformedMessage:
        raise
    except MemoryError:  # also Arrow's own
        raise MalformedMessage("expected parameters of a size that fits into memory, got more") from None
    except Exception as error:
        raise MalformedMessage("expected parameters as a whole Arrow stream, got one that is damaged") from error


def _small(stream: bytes) -> bytes:
    """Returns the stream without batches of no rows: 6 kB of those decompress to 200 MB.

    Raises MalformedMessage, before anything is decompressed, for streams that are not one row of parameters."""
    first, *others = pa.ipc.MessageReader.open_stream(pa.BufferReader(stream))
    _check_kinds(pa.ipc.read_schema(first))
    rows = [_rows(one) for one in others]
    if sum(rows) > 1 or min(rows, default=0) < 0:
        raise _several()
    batches = [one for one, has in zip(others, rows, strict=True) if has]
    return b"".join(one.serialize().to_pybytes() for one in (first, *batches))


def _check_kinds(schema: pa.Schema) -> None:
    if len(schema) > MOST:
        raise MalformedMessage(f"expected at most {MOST} parameters, got {len(schema)}")
    for kind in schema.types:
        _name_of(kind)


def _rows(message: pa.ipc.Message) -> int:
    """Returns the rows that the message of a batch states (Message.fbs).

    Raises MalformedMessage where more bytes would be decompressed than one row can have."""
    if message.type != "record batch":
        raise ValueError(f"expected a batch, got a {message.type}")
    data = memoryview(message.metadata)
    table = flatbuffers.read_root(data)
    if flatbuffers.read_number(data, table, 0, "<h") < _VERSION_5:
        raise MalformedMessage(
            "expected parameters in Arrow's format of version 1.0 or later, got those of an older one"
        )
    batch = flatbuffers.follow_offset(data, table, 2)
    rows = flatbuffers.read_number(data, batch, 0, "<q")
    if (
        rows
        and flatbuffers.find_field(data, batch, 3)
        and (size := _decompressed_size(data, batch, message.body)) > _DECOMPRESSED_MAX
    ):
        raise MalformedMessage(f"expected at most {_DECOMPRESSED_MAX} bytes of parameters, got {size}")
    return rows


def _decompressed_size(data: memoryview, batch: int, body: pa.Buffer) -> int:
    """Returns the bytes of all buffers of a compressed batch. Each states its size first, or -1 uncompressed."""
    buffers = flatbuffers.follow_offset(data, batch, 2)
    (count,) = struct.unpack_from("<I", data, buffers)
    size = 0
    for number in range(count):
        at, length = struct.unpack_from("<qq", data, buffers + 4 + 16 * number)
        if length:
            (told,) = struct.unpack_from("<q", body, max(0, at))
            size += length if told < 0 else told
    return size


def _stream(table: pa.Table) -> tuple[None, list[bytes]]:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return None, [sink.getvalue().to_pybytes()]


def _schema(schema: pa.Schema) -> tuple[None, list[bytes]]:
    return None, [schema.serialize().to_pybytes()]


def _catalogue(parts: Sequence[bytes], name: str, tables: Sequence[Sequence[str]]) -> tuple[None, list[bytes]]:
    command, *schemas = parts
    named = [
        {"owner": owner, "name": table, "schema": schema}
        for (owner, table), schema in zip(tables, schemas, strict=True)
    ]
    return _stream(catalogue(name, protobuf.read(command), named))


MAKES: Mapping[str, Callable[..., tuple[Any, list[bytes]]]] = {
    "constant": lambda _, name, value: _stream(constant(name, value)),
    "catalogue": _catalogue,
    "catalogue_schema": lambda parts, name: _schema(schema_of(name, protobuf.read(parts[0]))),
    "parameters": lambda _, kinds: _schema(parameters(kinds)),
    "values": lambda parts: (values_in(parts[0]), []),
}
