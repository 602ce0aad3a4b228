"""The wire format of Protocol Buffers, as much of it as Flight SQL's few messages need. Pure.

A message is read into {field number: its values in order}: whole numbers and bytes; whoever reads it says which field
is what. Anything that is not a well-formed message raises `Garbled`. Unknown fields are kept, as the format wants.
"""

from __future__ import annotations

from collections.abc import Iterable

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_FIELDS_MAX = 256  # of one message: a megabyte of the smallest holds everybody up for most of a second

Message = dict[int, list[int | bytes]]


class Garbled(ValueError):
    """What came is not a Protocol Buffers message."""


def read(data: bytes) -> Message:
    """The fields of one message."""
    found: Message = {}
    at = count = 0
    while at < len(data):
        key, at = _varint(data, at)
        count += 1
        if key >> 3 == 0:
            raise Garbled("expected a protobuf message, came something else")
        if count > _FIELDS_MAX:
            raise Garbled(f"expected a protobuf message of at most {_FIELDS_MAX} fields, came one of more")
        value, at = _value(data, at, key & 7)
        found.setdefault(key >> 3, []).append(value)
    return found


def text(message: Message, field: int) -> str | None:
    """The last value of a string field, None where it is not there."""
    raw = octets(message, field)
    if raw is None:
        return None
    try:
        return raw.decode()
    except UnicodeDecodeError:
        raise Garbled(f"expected UTF-8 in field {field}") from None


def octets(message: Message, field: int) -> bytes | None:
    """The last value of a field of bytes, None where it is not there."""
    values = message.get(field)
    if not values:
        return None
    if not isinstance(values[-1], bytes):
        raise Garbled(f"expected bytes in field {field}, came a number")
    return values[-1]


def texts(message: Message, field: int) -> list[str]:
    """All values of a repeated string field."""
    return [found for value in message.get(field, ()) if (found := text({field: [value]}, field)) is not None]


def number(message: Message, field: int) -> int:
    """The last value of a number or flag, 0 where it is not there."""
    values = message.get(field)
    if not values:
        return 0
    if not isinstance(values[-1], int):
        raise Garbled(f"expected a number in field {field}, came bytes")
    return values[-1]


def numbers(message: Message, field: int) -> list[int]:
    """All values of a repeated number, each by itself or all of them together (packed). Garbled for more than a message
    has fields."""
    found: list[int] = []
    for value in message.get(field, ()):
        at = 0
        while isinstance(value, bytes) and at < len(value):
            one, at = _varint(value, at)
            found.append(one)
            if len(found) > _FIELDS_MAX:
                raise Garbled(f"expected at most {_FIELDS_MAX} numbers in field {field}, came more")
        if isinstance(value, int):
            found.append(value)
    return found


def write(fields: Iterable[tuple[int, int | bytes | str]]) -> bytes:
    """A message of these fields. Zeros and empty values are left out, as the format's third version does."""
    out = bytearray()
    for field, value in fields:
        if isinstance(value, int):
            if value:
                out += varint(field << 3 | _VARINT) + varint(value)
        elif value:
            raw = value.encode() if isinstance(value, str) else value
            out += varint(field << 3 | _BYTES) + varint(len(raw)) + raw
    return bytes(out)


def _value(data: bytes, at: int, kind: int) -> tuple[int | bytes, int]:
    if kind == _VARINT:
        return _varint(data, at)
    if kind == _BYTES:
        size, at = _varint(data, at)
    elif kind in (_FIXED64, _FIXED32):
        size = 8 if kind == _FIXED64 else 4
    else:
        raise Garbled("expected a protobuf message, came something else")
    if at + size > len(data):
        raise Garbled("expected a whole protobuf message, came one that is cut off")
    raw = data[at : at + size]
    return (raw if kind == _BYTES else int.from_bytes(raw, "little")), at + size


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            raise Garbled("expected a whole protobuf message, came one that is cut off")
        value |= (data[at] & 0x7F) << shift
        at += 1
        if data[at - 1] < 0x80:
            return value & (2**64 - 1), at
    raise Garbled("expected a number of at most ten bytes")


def varint(value: int) -> bytes:
    """A whole number from zero as the format writes it."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
