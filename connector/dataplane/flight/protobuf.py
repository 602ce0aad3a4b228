"""The wire format of Protocol Buffers, as far as Flight and Flight SQL need it. Pure, without imports.

A message is read into {field number: its values in order}, integers and bytes. The caller knows the fields. Anything
but a well-formed message raises `MalformedMessage`. Unknown fields are kept, as the format requires.
"""

from __future__ import annotations

from collections.abc import Iterable

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_FIELDS_MAX = 256  # of one message: a megabyte of the smallest would block the event loop for most of a second

Message = dict[int, list[int | bytes]]


class MalformedMessage(ValueError):
    """The bytes are not a Protocol Buffers message."""


def read(data: bytes) -> Message:
    """Returns the fields of one message."""
    found: Message = {}
    at = count = 0
    while at < len(data):
        key, at = _varint(data, at)
        count += 1
        if key >> 3 == 0:
            raise MalformedMessage("expected a protobuf message, got something else")
        if count > _FIELDS_MAX:
            raise MalformedMessage(f"expected a protobuf message of at most {_FIELDS_MAX} fields, got one of more")
        value, at = _value(data, at, key & 7)
        found.setdefault(key >> 3, []).append(value)
    return found


def text(message: Message, field: int) -> str | None:
    """Returns the last value of a string field, None without one."""
    raw = octets(message, field)
    if raw is None:
        return None
    try:
        return raw.decode()
    except UnicodeDecodeError:
        raise MalformedMessage(f"expected UTF-8 in field {field}") from None


def octets(message: Message, field: int) -> bytes | None:
    """Returns the last value of a field of bytes, None without one."""
    values = message.get(field)
    if not values:
        return None
    if not isinstance(values[-1], bytes):
        raise MalformedMessage(f"expected bytes in field {field}, got a number")
    return values[-1]


def texts(message: Message, field: int) -> list[str]:
    """Returns all values of a repeated string field."""
    return [found for value in message.get(field, ()) if (found := text({field: [value]}, field)) is not None]


def number(message: Message, field: int) -> int:
    """Returns the last value of a number or flag, 0 without one."""
    values = message.get(field)
    if not values:
        return 0
    if not isinstance(values[-1], int):
        raise MalformedMessage(f"expected a number in field {field}, got bytes")
    return values[-1]


def numbers(message: Message, field: int) -> list[int]:
    """Returns all values of a repeated number, packed or not. Raises MalformedMessage for more than 256."""
    found: list[int] = []
    for value in message.get(field, ()):
        at = 0
        while isinstance(value, bytes) and at < len(value):
            one, at = _varint(value, at)
            found.append(one)
            if len(found) > _FIELDS_MAX:
                raise MalformedMessage(f"expected at most {_FIELDS_MAX} numbers in field {field}, got more")
        if isinstance(value, int):
            found.append(value)
    return found


def write(fields: Iterable[tuple[int, int | bytes | str]]) -> bytes:
    """Returns a message of these fields. Zeros and empty values are left out, as in proto3."""
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
        raise MalformedMessage("expected a protobuf message, got something else")
    if at + size > len(data):
        raise MalformedMessage("expected a whole protobuf message, got one that is cut off")
    raw = data[at : at + size]
    return (raw if kind == _BYTES else int.from_bytes(raw, "little")), at + size


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            raise MalformedMessage("expected a whole protobuf message, got one that is cut off")
        value |= (data[at] & 0x7F) << shift
        at += 1
        if data[at - 1] < 0x80:
            return value & (2**64 - 1), at
    raise MalformedMessage("expected a number of at most ten bytes")


def varint(value: int) -> bytes:
    """Returns a non-negative integer as a varint."""
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
