"""Flight SQL messages (FlightSql.proto), as far as they are implemented. Pure: no socket, no server, no Arrow.

Field numbers stand next to their names. Other messages are refused as unimplemented: clients use them to detect
features. `catalogue_tables` makes the tables.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from itertools import chain

from connector.dataplane.flight import protobuf
from connector.dataplane.flight.parameters import MOST
from connector.dataplane.flight.protobuf import MalformedMessage, Message

_URL = "type.googleapis.com/arrow.flight.protocol.sql."
KEYS = ("CommandGetPrimaryKeys", "CommandGetExportedKeys", "CommandGetImportedKeys", "CommandGetCrossReference")
CATALOGUE = (
    "CommandGetCatalogs", "CommandGetDbSchemas", "CommandGetTables", "CommandGetTableTypes", "CommandGetSqlInfo", *KEYS,
)  # fmt: skip


def unpack(raw: bytes) -> tuple[str, Message]:
    """Returns name and fields of a Flight SQL message in a google.protobuf.Any. Raises MalformedMessage."""
    outer = protobuf.read(raw)
    url = protobuf.text(outer, 1) or ""
    if not url.startswith(_URL):
        raise MalformedMessage("expected a path, a JSON envelope or a Flight SQL command, got something else")
    return url.removeprefix(_URL), protobuf.read(protobuf.octets(outer, 2) or b"")


def pack(name: str, fields: Iterable[tuple[int, int | bytes | str]]) -> bytes:
    """Returns a Flight SQL message in a google.protobuf.Any."""
    return protobuf.write([(1, _URL + name), (2, protobuf.write(fields))])


def table_schema_wanted(name: str, command: Message) -> bool:
    """Returns whether a CommandGetTables asks for the tables' schemas (5, include_schema)."""
    return name == "CommandGetTables" and bool(protobuf.number(command, 5))


def constant(sql: str) -> tuple[str, int] | None:
    """Returns name and value of `SELECT 1`, or of any other integer under any name; None for other statements.

    Clients test a connection with such a statement. It reads no dataset, so it is not a read."""
    found = _CONSTANT.fullmatch(sql)
    if found is None:
        return None
    value, quoted, plain = found.groups()
    return quoted or plain or value, int(value)


# Possessive: else the expression would try a long run of spaces again from each of them.
_CONSTANT = re.compile(
    r'\s*+SELECT\s++(0|[1-9]\d{0,8}+)(?:\s++AS\s++(?:"([^"\0]{1,100}+)"|([A-Z_]\w{0,99}+)))?+\s*+;?+\s*+',
    re.ASCII | re.IGNORECASE,
)


def handle(sql: str, values: Sequence[Sequence[str]]) -> bytes:
    """Returns the handle of a prepared statement. It holds the whole statement, so the server keeps nothing."""
    return json.dumps({"sql": sql, "values": list(values)}, separators=(",", ":")).encode()


def is_value(one: object) -> bool:
    """Returns whether this is the value of a parameter, as [type, text]."""
    return isinstance(one, list) and len(one) == 2 and all(isinstance(text, str) for text in one)


def unhandle(raw: bytes | None) -> tuple[str, list[list[str]]]:
    """Returns statement and values of a handle. Raises MalformedMessage for anything that `handle` did not make."""
    raw = raw or b""
    if sum(map(raw.count, (b",", b"[", b"{"))) > _PARTS_MAX:
        raise _no_handle()
    try:
        told = json.loads(raw)
        sql, values = told["sql"], told["values"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise _no_handle() from None
    if not isinstance(sql, str) or not isinstance(values, list) or len(values) > MOST:
        raise _no_handle()
    if not all(map(is_value, values)) or any(map(_HALVES.search, chain([sql], *values))):
        raise _no_handle()
    return sql, values


_PARTS_MAX = 140_000  # of JSON: the most values, and a comma for each letter of the longest statement
_HALVES = re.compile("[\ud800-\udfff]")  # surrogates are not characters


def _no_handle() -> MalformedMessage:
    return MalformedMessage("expected the handle of a prepared statement as it was given out")
