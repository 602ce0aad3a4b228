"""The wire format of FlatBuffers, as much of it as is read of Arrow's messages (Message.fbs, File.fbs). Pure.

Whoever reads knows the tables and their fields by number. struct.error for what is cut off: what stands in the bytes is
believed in nothing else.
"""

from __future__ import annotations

import struct


def root(data: memoryview) -> int:
    """Where the outermost table lies."""
    return int(struct.unpack_from("<I", data)[0])


def field(data: memoryview, table: int, which: int) -> int:
    """Where a field lies in a table; 0 where it is left out."""
    (back,) = struct.unpack_from("<i", data, table)
    (size,) = struct.unpack_from("<H", data, table - back)
    place = 4 + 2 * which
    return int(struct.unpack_from("<H", data, table - back + place)[0]) if place < size else 0


def number(data: memoryview, table: int, which: int, form: str) -> int:
    """The value of a field; 0 where it is left out."""
    place = field(data, table, which)
    return int(struct.unpack_from(form, data, table + place)[0]) if place else 0


def below(data: memoryview, table: int, which: int) -> int:
    """Where the table or the vector lies that a field names."""
    at = table + field(data, table, which)
    return at + int(struct.unpack_from("<I", data, at)[0])
