"""Bounds and cleans the metadata of a received Arrow stream before Arrow allocates memory for it.

A compressed buffer states its own length, and Arrow allocates that much: sixty kilobytes from a hostile owner become
gigabytes. Buffers may refer to the same bytes repeatedly, and code that concatenates rows copies them each time.
Metadata may refer to one field or text many times, and Arrow builds each anew: a megabyte becomes a terabyte. Arrow
reads all of these (Message.fbs and Schema.fbs, flatbuffers) and limits none of them.

The owner's notes on the schema and its columns are dropped, because libraries act on them: DuckDB reads an extension
type by its name, whatever the bytes are; pandas makes an index of a column; `datasets` opens the files and addresses
that a column names.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, TypeAlias

from hanse._digests import Digest
from hanse.errors import Broken

METADATA_MAX = 4 * 2**20  # bytes; a schema of thousands of columns takes a tenth of it
_EXPANDED_MAX = 4 * METADATA_MAX  # bytes, each part counted per reference: an honest writer refers to a part once
_FIELD_BYTES = 64  # of one field without its texts: fewer than any writer uses
_DECOMPRESSED_MAX = 1 << 30  # bytes: as many as an uncompressed message may have
_CONTINUATION = b"\xff\xff\xff\xff"
_V5 = 4
_SCHEMA, _DICTIONARY, _BATCH = 1, 2, 3
_UNION, _TIMESTAMP = 14, 10  # types with a list or a text of their own

_State: TypeAlias = "Callable[[CheckedBody, Any], _State]"


class _Body(NamedTuple):
    """What a message's metadata says of its body: the number of values, and the place and length of each buffer."""

    values: int
    buffers: list[tuple[int, int]]
    compressed: bool


class CheckedBody:
    """File for `pa.ipc.open_stream` that checks each message of a body before Arrow reads it.

    Arrow reads each part of a message by itself: four marker bytes, the length of the metadata, the metadata, the body.

    Raises:
        Broken: a message is malformed, or would expand to more than the limits.
    """

    closed = False

    def __init__(self, body: Any) -> None:
        self._body = body
        self.taken = 0  # bytes read so far
        self.digest = Digest()  # of all bytes read, as they were received
        # An unbound method: a bound one is a cycle, which keeps the connection open until the garbage collector runs.
        self._state: _State = CheckedBody._read_marker
        self._dictionaries: dict[int, int] = {}  # bytes of each dictionary, which Arrow keeps

    def read(self, size: int = -1) -> Any:
        data = self._body.read(size)
        self.taken += len(data)
        self.digest.update(data)
        if len(data) == size > 0:  # a shorter read is the end of the body: Arrow checks that
            try:
                if self._state is CheckedBody._read_metadata:
                    data = _strip_notes(data)
                self._state = self._state(self, data)
            except (struct.error, UnicodeDecodeError):
                raise Broken("expected an Arrow stream, got metadata that cannot be read") from None
        return data

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        self._body.close()
        self.closed = True

    def _read_marker(self, data: Any) -> _State:
        if bytes(data) != _CONTINUATION:
            raise Broken("expected an Arrow message, got bytes without its marker")
        return CheckedBody._read_length

    def _read_length(self, data: Any) -> _State:
        (length,) = struct.unpack("<i", data)
        if not 0 <= length <= METADATA_MAX:
            raise Broken(f"expected Arrow metadata of at most {METADATA_MAX} bytes, got {length}")
        return CheckedBody._read_metadata if length else CheckedBody._read_marker

    def _read_metadata(self, data: Any) -> _State:
        message = _follow(data, 0)
        kind, follows = _read_number(data, message, 1, "<B"), _read_number(data, message, 3, "<q")
        _expand_fields(data, message, kind)
        if kind not in (_DICTIONARY, _BATCH):
            return CheckedBody._skip_body if follows else CheckedBody._read_marker
        table, number, more = _follow(data, _field_place(data, message, 2)), None, False
        if kind == _DICTIONARY:
            number, more = _read_number(data, table, 0, "<q"), bool(_read_number(data, table, 2, "<B"))
            table = _follow(data, _field_place(data, table, 1))
        if _read_number(data, message, 0, "<h") < _V5:  # older versions mark compression elsewhere
            raise Broken("expected a stream in version 5 of Arrow's format, got an older one")
        body = _Body(_count_values(data, table), _read_pairs(data, table, 2), bool(_field_place(data, table, 3)))
        look = partial(CheckedBody._check_body, layout=body, number=number, more=more)
        return look if follows else look(self, b"")

    def _skip_body(self, _: Any) -> _State:
        return CheckedBody._read_marker

    def _check_body(self, data: Any, *, layout: _Body, number: int | None, more: bool) -> _State:
        """Check a message's body; `number` is the dictionary's, `more` marks a delta that is added to it."""
        if (lengths := sum(max(0, length) for _, length in layout.buffers)) > len(data):
            raise Broken(
                f"expected separate buffers in a message of {len(data)} bytes, got buffers of {lengths} bytes: "
                "they refer to the same bytes repeatedly"
            )
        size = sum(_decompressed_size(data, *buffer) for buffer in layout.buffers) if layout.compressed else len(data)
        if layout.values > 8 * size + _DECOMPRESSED_MAX // 8:  # a value has at least a bit, and takes more once read
            raise Broken(f"expected at most 8 values a byte, got {layout.values} values in a message of {size} bytes")
        if number is not None:
            self._dictionaries[number] = size + (self._dictionaries.get(number, 0) if more else 0)
            size = sum(self._dictionaries.values())
        if size > _DECOMPRESSED_MAX:
            what = "a message" if number is None else "dictionaries"
            raise Broken(f"expected {what} of at most {_DECOMPRESSED_MAX} bytes, got {size} bytes after decompression")
        return CheckedBody._read_marker


def _strip_notes(data: Any) -> Any:
    """Return a message's metadata; a schema's without the notes (custom metadata) on it and its columns.

    Tables store the places of their fields in lists (vtables) that they may share: the notes' entries there become 0.
    """
    message = _follow(data, 0)
    if _read_number(data, message, 1, "<B") != _SCHEMA:
        return data
    plain = bytearray(data)
    for table, number in _tables_with_notes(data, message):
        struct.pack_into("<H", plain, _slot(plain, table, number), 0)
    if _tables_with_notes(plain, message):  # a shared list served another table, too
        raise Broken("expected an Arrow stream, got metadata that cannot be read")
    return bytes(plain)


def _tables_with_notes(data: Any, message: int) -> list[tuple[int, int]]:
    """Return the tables of a schema that have notes, each with the number of that field. Raises: Broken."""
    schema = _follow(data, _field_place(data, message, 2))
    found = [(schema, 2), *((field, 6) for field in _expand_fields(data, message, _SCHEMA))]
    return [(table, number) for table, number in found if _field_place(data, table, number)]


def _expand_fields(data: Any, message: int, kind: int) -> list[int]:
    """Return the fields of a schema at every depth. Raises: Broken if metadata expands far beyond its size, because it
    refers to the same parts repeatedly."""
    size, fields, found, dictionaries = _pairs_size(data, message, 4), [], [], set()
    if kind == _SCHEMA:
        schema = _follow(data, _field_place(data, message, 2))
        size, fields = size + _pairs_size(data, schema, 2), _list_tables(data, schema, 1)
    while fields:
        found.append(field := fields.pop())
        below = _list_tables(data, field, 5)
        size += _FIELD_BYTES * (1 + len(below)) + _text_length(data, field, 0) + _pairs_size(data, field, 6)
        if (of := _read_number(data, field, 2, "<B")) in (_UNION, _TIMESTAMP):
            own = _follow(data, _field_place(data, field, 3))
            size += 4 * _list_length(data, own, 1) if of == _UNION else _text_length(data, own, 1)
        if size > _EXPANDED_MAX:
            raise _repeats()
        if coded := _field_place(data, field, 4):
            if (own := _read_number(data, _follow(data, coded), 0, "<q")) in dictionaries:
                raise Broken("expected a separate dictionary for each column, got one that several columns share")
            dictionaries.add(own)
        fields += below
    return found


def _repeats() -> Broken:
    return Broken(
        f"expected metadata that expands to at most {_EXPANDED_MAX} bytes, got parts that are referred to many times"
    )


def _pairs_size(data: Any, table: int, number: int) -> int:
    """Return the bytes of a table's custom metadata: keys and values."""
    size = 0
    for pair in _list_tables(data, table, number):
        size += _FIELD_BYTES + _list_length(data, pair, 0) + _list_length(data, pair, 1)
        if size > _EXPANDED_MAX:
            raise _repeats()
    return size


def _list_tables(data: Any, table: int, number: int) -> list[int]:
    """Return the places of the tables that a field lists; an empty list if the field is absent."""
    if not (count := _list_length(data, table, number)):
        return []
    if count > _EXPANDED_MAX // _FIELD_BYTES:
        raise _repeats()
    first = _follow(data, _field_place(data, table, number)) + 4
    return [_follow(data, first + 4 * index) for index in range(count)]


def _text_length(data: Any, table: int, number: int) -> int:
    """Return a text's length in bytes. Raises: UnicodeDecodeError, which Arrow would not and Python would later."""
    if length := _list_length(data, table, number):
        start = _follow(data, _field_place(data, table, number)) + 4
        str(memoryview(data)[start : start + length], "utf-8")
    return length


def _list_length(data: Any, table: int, number: int) -> int:
    """Return the length of the text or list that a field refers to."""
    place = _field_place(data, table, number)
    return int(struct.unpack_from("<I", data, _follow(data, place))[0]) if place else 0


def _count_values(data: Any, batch: int) -> int:
    """Return the number of values that a batch states: rows, and the values of each column at every depth."""
    return _read_number(data, batch, 0, "<q") + sum(max(0, length) for length, _ in _read_pairs(data, batch, 1))


def _read_pairs(data: Any, batch: int, number: int) -> list[tuple[int, int]]:
    """Return the list of pairs of numbers that a field of a batch refers to."""
    if not (count := _list_length(data, batch, number)):
        return []
    first = _follow(data, _field_place(data, batch, number)) + 4
    return list(struct.iter_unpack("<qq", memoryview(data)[first : first + 16 * count]))


def _decompressed_size(data: Any, at: int, length: int) -> int:
    """Return the bytes that a buffer of a compressed body states; it may be stored uncompressed."""
    if not length:
        return 0
    (size,) = struct.unpack_from("<q", data, at)
    return max(size, 0) if size != -1 else length


def _follow(data: Any, place: int) -> int:
    """Return the place that the offset at `place` refers to."""
    (offset,) = struct.unpack_from("<I", data, place)
    return place + int(offset)


def _field_place(data: Any, table: int, number: int) -> int:
    """Return the place of a table's field; 0 if absent."""
    if not (slot := _slot(data, table, number)):
        return 0
    (offset,) = struct.unpack_from("<H", data, slot)
    return table + offset if offset else 0


def _slot(data: Any, table: int, number: int) -> int:
    """Return the place of a field's entry in the table's vtable; 0 if absent."""
    (back,) = struct.unpack_from("<i", data, table)
    (size,) = struct.unpack_from("<H", data, table - back)
    return table - back + 4 + 2 * number if size >= 6 + 2 * number else 0


def _read_number(data: Any, table: int, number: int, kind: str) -> int:
    place = _field_place(data, table, number)
    return int(struct.unpack_from(kind, data, place)[0]) if place else 0
