"""Arrow stream messages as Flight messages: `FlightData` (Flight.proto). Pure, and needs no Arrow library.

An encapsulated message of an Arrow stream (Columnar format, "Encapsulated message format") is a marker, the length of
its metadata, the metadata (a FlatBuffers table `Message`) and a body. Flight has the metadata in one field and the body
in another.
"""

from __future__ import annotations

from collections.abc import Iterator

from connector.dataplane.flight.protobuf import varint
from connector.errors import EngineFailed

_MARK = b"\xff\xff\xff\xff"
_PREFIX_BYTES = 8
_METADATA_MAX = 64 * 2**20  # bytes of one message: 10,000 columns have a hundredth of it
_MESSAGE_MAX = 2**32  # bytes: gRPC writes the length in four
_HEADER, _APP_METADATA, _BODY = 2 << 3 | 2, 3 << 3 | 2, 1000 << 3 | 2  # fields of FlightData, all of them bytes


def stream_to_flight_data(part: memoryview | bytes, *, app_metadata: bytes = b"") -> Iterator[bytes]:
    """Yields each message of a part of an Arrow stream as FlightData, `app_metadata` in the first.

    Raises:
        EngineFailed: the part is not whole messages of an Arrow stream, or one is too large for gRPC.
    """
    view, at = memoryview(part).cast("B"), 0
    while at < len(view):
        length = int.from_bytes(view[at + 4 : at + _PREFIX_BYTES], "little")
        if view[at : at + 4] != _MARK or length > _METADATA_MAX:
            raise EngineFailed("expected a message of an Arrow stream, got something else")
        if not length:  # the end of the stream: Flight has its own
            return
        at += _PREFIX_BYTES
        metadata = bytes(view[at : at + length])
        size = _read_body_length(metadata)
        body = view[at + length : at + length + size]
        if len(body) < size:
            raise EngineFailed("expected a whole message of an Arrow stream, got a part of one")
        yield _flight_data(metadata, app_metadata, body)
        app_metadata = b""
        at += length + size


def flight_data_to_stream(header: bytes, body: bytes) -> bytes:
    """Returns the Arrow stream message with this metadata and body."""
    padding = -len(header) % 8
    return _MARK + (len(header) + padding).to_bytes(4, "little") + header + bytes(padding) + body


def _flight_data(metadata: bytes, app_metadata: bytes, body: memoryview) -> bytes:
    fields = varint(_HEADER) + varint(len(metadata)) + metadata
    if app_metadata:
        fields += varint(_APP_METADATA) + varint(len(app_metadata)) + app_metadata
    if body:
        fields += varint(_BODY) + varint(len(body))
    if (size := len(fields) + len(body)) >= _MESSAGE_MAX:
        raise EngineFailed(f"expected a batch below 4 GiB, which is the most that gRPC carries, got {size} bytes")
    return b"".join((fields, body))


def _read_body_length(metadata: bytes) -> int:
    """Returns `bodyLength` of a Message (Message.fbs: its fourth field)."""
    table = int.from_bytes(metadata[:4], "little")
    fields = table - int.from_bytes(metadata[table : table + 4], "little", signed=True)
    if int.from_bytes(metadata[fields : fields + 2], "little") < 12:
        return 0
    place = int.from_bytes(metadata[fields + 10 : fields + 12], "little")
    return int.from_bytes(metadata[table + place : table + place + 8], "little") if place else 0
