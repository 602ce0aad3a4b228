"""Arrow's messages as Flight's: a FlightData (Flight.proto) within the prefix that gRPC gives each message.

An encapsulated message of an Arrow stream (Columnar format, "Encapsulated message format") is a marker, the length of
its metadata, the metadata (a FlatBuffers table `Message`) and a body. Flight has the metadata in one field and the body
in another, so the bytes of both stay where they lie, in memory or in files.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence

from connector.dataplane.flight.http2.message_buffers import Message
from connector.dataplane.flight.http2.protobuf import varint
from connector.dataplane.http.file_sender import Part, check_lengths, size_of
from connector.dataplane.http.file_spans import InFiles, Scattered, Span
from connector.errors import EngineFailed, VersionChanged

_MARK = b"\xff\xff\xff\xff"
_PREFIX = 8
_METADATA_MAX = 64 * 2**20  # of one message: 10,000 columns have a hundredth of it
_HEADER, _APP_METADATA, _BODY = 2 << 3 | 2, 3 << 3 | 2, 1000 << 3 | 2  # fields of FlightData, all of them bytes


def messages(part: memoryview | bytes | InFiles, *, app_metadata: bytes = b"") -> Iterator[Message]:
    """Each message in a part of an Arrow stream, as it goes out; `app_metadata` beside the first.

    VersionChanged where the file is not what was registered any more. In a thread where it is in files.
    """
    if isinstance(part, Span | Scattered):
        part.check()
        parts: Sequence[Part] = part.parts()
        try:
            check_lengths(parts)
        except EOFError:
            raise VersionChanged.of("a file of this version has been cut short") from None
        seen = part.seen if isinstance(part, Span) else None
    else:
        parts, seen = [memoryview(part).cast("B")], None
    at, size = 0, sum(map(size_of, parts))
    while at < size:
        prefix = _bytes(parts, at, _PREFIX)
        length = int.from_bytes(prefix[4:], "little")
        if prefix[:4] != _MARK or length > _METADATA_MAX:
            raise EngineFailed("expected a message of an Arrow stream, came something else")
        if not length:  # the end of the stream: Flight has its own
            return
        metadata = _bytes(parts, at + _PREFIX, length)
        body = _body_length(metadata)
        if seen is not None:
            seen(memoryview(prefix + metadata))
        yield Message([_head(metadata, app_metadata, body), *_within(parts, at + _PREFIX + length, body)], seen)
        app_metadata = b""
        at += _PREFIX + length + body


def enveloped(raw: bytes) -> Message:
    """A message of gRPC that holds this one."""
    return Message([b"\0" + len(raw).to_bytes(4, "big") + raw])


def encapsulated(header: bytes, body: bytes) -> bytes:
    """A message of an Arrow stream of what a FlightData has in its fields."""
    padding = -len(header) % 8
    return _MARK + (len(header) + padding).to_bytes(4, "little") + header + bytes(padding) + body


def _head(metadata: bytes, app_metadata: bytes, body: int) -> bytes:
    """All of a message before its body."""
    fields = varint(_HEADER) + varint(len(metadata)) + metadata
    if app_metadata:
        fields += varint(_APP_METADATA) + varint(len(app_metadata)) + app_metadata
    if body:
        fields += varint(_BODY) + varint(body)
    size = len(fields) + body
    if size >= 2**32:
        raise EngineFailed(f"expected a batch below 4 GiB, which is the most that Flight carries, came {size} bytes")
    return b"\0" + size.to_bytes(4, "big") + fields


def _body_length(metadata: bytes) -> int:
    """`bodyLength` of a Message (Message.fbs: its fourth field)."""
    table = int.from_bytes(metadata[:4], "little")
    fields = table - int.from_bytes(metadata[table : table + 4], "little", signed=True)
    if int.from_bytes(metadata[fields : fields + 2], "little") < 12:
        return 0
    place = int.from_bytes(metadata[fields + 10 : fields + 12], "little")
    return int.from_bytes(metadata[table + place : table + place + 8], "little") if place else 0


def _within(parts: Sequence[Part], at: int, size: int) -> Iterator[Part]:
    """A run of the bytes of all parts, where they lie."""
    for part in parts:
        whole = size_of(part)
        if size and at < whole:
            taken = min(size, whole - at)
            yield (part[0], part[1] + at, taken) if isinstance(part, tuple) else memoryview(part)[at : at + taken]
            size -= taken
            at = 0
        else:
            at = max(0, at - whole)
    if size:
        raise EngineFailed("expected a whole message of an Arrow stream, came one that is cut off")


def _bytes(parts: Sequence[Part], at: int, size: int) -> bytes:
    found = b"".join(
        os.pread(part[0], part[2], part[1]) if isinstance(part, tuple) else part for part in _within(parts, at, size)
    )
    if len(found) < size:
        raise VersionChanged.of("a file of this version has been cut short")
    return found
