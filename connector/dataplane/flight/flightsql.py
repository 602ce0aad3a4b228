"""Flight SQL's messages, as much of the standard as is answered here. Pure; the tables about them are of `making`.

Messages are those of the published FlightSql.proto; field numbers stand beside their names. What is not here is
unimplemented, and said so: clients ask for some things only to see. Knows no socket, no server and no Arrow.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from itertools import chain

from connector.dataplane.flight import protobuf
from connector.dataplane.flight.parameters import MOST
from connector.dataplane.flight.protobuf import Garbled, Message

_URL = "type.googleapis.com/arrow.flight.protocol.sql."
KEYS = ("CommandGetPrimaryKeys", "CommandGetExportedKeys", "CommandGetImportedKeys", "CommandGetCrossReference")
CATALOGUE = (
    "CommandGetCatalogs", "CommandGetDbSchemas", "CommandGetTables", "CommandGetTableTypes", "CommandGetSqlInfo", *KEYS,
)  # fmt: skip


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


def table_schema_wanted(name: str, command: Message) -> bool:
    """Whether it is a CommandGetTables that asks for the tables' schemas (5, include_schema)."""
    return name == "CommandGetTables" and bool(protobuf.number(command, 5))


def constant(sql: str) -> tuple[str, int] | None:
    """The name and the value of what `SELECT 1` gives, or any other whole number under any name; None for other
    statements. Clients ask such to see whether a connection lives; no dataset is read, so it is no read, and nothing
    runs it."""
    found = _CONSTANT.fullmatch(sql)
    if found is None:
        return None
    value, quoted, plain = found.groups()
    return quoted or plain or value, int(value)


# Nothing is given back once it is taken: a long run of spaces would be looked at from each of them.
_CONSTANT = re.compile(
    r'\s*+SELECT\s++(0|[1-9]\d{0,8}+)(?:\s++AS\s++(?:"([^"\0]{1,100}+)"|([A-Z_]\w{0,99}+)))?+\s*+;?+\s*+',
    re.ASCII | re.IGNORECASE,
)


def handle(sql: str, values: Sequence[Sequence[str]]) -> bytes:
    """A prepared statement as its handle: all of it, so that there is nothing to keep and nothing to lose."""
    return json.dumps({"sql": sql, "values": list(values)}, separators=(",", ":")).encode()


def is_value(one: object) -> bool:
    """Whether it is the value of a parameter, as [type, text]."""
    return isinstance(one, list) and len(one) == 2 and all(isinstance(text, str) for text in one)


def unhandle(raw: bytes | None) -> tuple[str, list[list[str]]]:
    """Statement and values of a handle. Garbled for what `handle` never made."""
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


_PARTS_MAX = 140_000  # of JSON: all values that there may be, and a comma for each letter of the longest statement
_HALVES = re.compile("[\ud800-\udfff]")  # of letters: they are none


def _no_handle() -> Garbled:
    return Garbled("expected the handle of a prepared statement as it was given out")
