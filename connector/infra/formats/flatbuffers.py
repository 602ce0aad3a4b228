"""A minimal FlatBuffers reader, enough for Arrow's Message.fbs and File.fbs. Pure.

Callers know tables and their fields by number. Offsets are bytes from the start of `data`. struct.error means that the
data is cut off; no other check is made, so callers must not trust the values.
"""

from __future__ import annotations

import struct


def read_root(data: memoryview) -> int:
    """The offset of the outermost table."""
    return int(struct.unpack_from("<I", data)[0])


def find_field(data: memoryview, table: int, which: int) -> int:
    """The offset of a field inside its table; 0 if the field is left out."""
    (back,) = struct.unpack_from("<i", data, table)
    (size,) = struct.unpack_from("<H", data, table - back)
    place = 4 + 2 * which
    return int(struct.unpack_from("<H", data, table - back + place)[0]) if place < size else 0


def read_number(data: memoryview, table: int, which: int, form: str) -> int:
    """The value of a field in `struct` format `form`; 0 if the field is left out."""
    place = find_field(data, table, which)
    return int(struct.unpack_from(form, data, table + place)[0]) if place else 0


def follow_offset(data: memoryview, table: int, which: int) -> int:
    """The offset of the table or vector that a field points to."""
    at = table + find_field(data, table, which)
    return at + int(struct.unpack_from("<I", data, at)[0])
