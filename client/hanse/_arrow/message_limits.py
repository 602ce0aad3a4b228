"""What a message of an Arrow stream takes of memory and says of its columns, looked at before Arrow takes it.

A compressed buffer says how long it will be, and Arrow takes that much: sixty kilobytes from a hostile owner become
gigabytes. Buffers may name the same bytes again and again, and whoever puts rows together copies them for each.
Metadata may name one field or text many times, and Arrow makes each anew: a megabyte becomes a terabyte. The library
reads all of these (Arrow's Message.fbs and Schema.fbs, flatbuffers) and has no limit for any.

What an owner notes beside columns goes no further. Libraries believe it: an extension type of a name that DuckDB knows
is read by that name, whatever its bytes are; pandas makes an index of a column; `datasets` opens the files and
addresses that a column is said to be of.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple, TypeAlias

from hanse._digests import Digest
from hanse.errors import Broken

METADATA_MAX = 4 * 2**20  # a schema of thousands of columns is a tenth of it
_SPREAD_MAX = 4 * METADATA_MAX  # what it says, counted where it is named: of an honest writer no more than its size
_FIELD = 64  # bytes of one, beside its texts: fewer than any writer takes
_UNFOLDED_MAX = 1 << 30  # as much as a message may have that is not compressed
_GOES_ON = b"\xff\xff\xff\xff"
_V5 = 4
_SCHEMA, _DICTIONARY, _BATCH = 1, 2, 3
_UNION, _TIMESTAMP = 14, 10  # types that have a list or a text of their own

_Look: TypeAlias = "Callable[[Messages, Any], _Look]"


class _Body(NamedTuple):
    """What the metadata of a message says of its body: how many values it has, and where in it each buffer begins and
    how long it is there."""

    values: int
    buffers: list[tuple[int, int]]
    compressed: bool


class Messages:
    """A body as a file for `pa.ipc.open_stream`. Broken before a message that would unfold to too much.

    Arrow asks for each part of a message by itself: four bytes, the length of the metadata, these, and what they say
    follows.
    """

    closed = False

    def __init__(self, body: Any) -> None:
        self._body = body
        self.taken = 0  # bytes so far
        self.digest = Digest()  # of all that was read, as it came
        # Not bound: we would hold ourselves, and the connection, until the collector of cycles comes.
        self._look: _Look = Messages._prefix
        self._dictionaries: dict[int, int] = {}  # bytes of each, which Arrow keeps

    def read(self, size: int = -1) -> Any:
        data = self._body.read(size)
        self.taken += len(data)
        self.digest.update(data)
        if len(data) == size > 0:  # else it is the end of the body, and Arrow's to judge
            try:
                if self._look is Messages._metadata:
                    data = _plain(data)
                self._look = self._look(self, data)
            except (struct.error, UnicodeDecodeError):
                raise Broken("the stream is not Arrow as expected: its metadata cannot be read") from None
        return data

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        self._body.close()
        self.closed = True

    def _prefix(self, data: Any) -> _Look:
        if bytes(data) != _GOES_ON:
            raise Broken("the stream is not Arrow as expected: no message begins where one should")
        return Messages._length

    def _length(self, data: Any) -> _Look:
        (length,) = struct.unpack("<i", data)
        if not 0 <= length <= METADATA_MAX:
            raise Broken(f"the stream is not Arrow as expected: a message of {length} bytes, more than {METADATA_MAX}")
        return Messages._metadata if length else Messages._prefix

    def _metadata(self, data: Any) -> _Look:
        message = _follow(data, 0)
        kind, follows = _number(data, message, 1, "<B"), _number(data, message, 3, "<q")
        _spread(data, message, kind)
        if kind not in (_DICTIONARY, _BATCH):
            return Messages._passed_over if follows else Messages._prefix
        table, number, more = _follow(data, _field(data, message, 2)), None, False
        if kind == _DICTIONARY:
            number, more = _number(data, table, 0, "<q"), bool(_number(data, table, 2, "<B"))
            table = _follow(data, _field(data, table, 1))
        if _number(data, message, 0, "<h") < _V5:  # some of those say elsewhere that they are compressed
            raise Broken("expected a stream in version 5 of Arrow's format, came an older one")
        body = _Body(_values(data, table), _pairs(data, table, 2), bool(_field(data, table, 3)))
        look = partial(Messages._unfolded, said=body, number=number, more=more)
        return look if follows else look(self, b"")

    def _passed_over(self, _: Any) -> _Look:
        return Messages._prefix

    def _unfolded(self, data: Any, *, said: _Body, number: int | None, more: bool) -> _Look:
        """The body of a message; `number` is that of a dictionary, `more` says that it is added to."""
        if (lengths := sum(max(0, length) for _, length in said.buffers)) > len(data):
            raise Broken(
                f"expected buffers that lie beside each other in a message of {len(data)} bytes, came some of "
                f"{lengths}: they name the same bytes again and again"
            )
        size = sum(_told(data, *one) for one in said.buffers) if said.compressed else len(data)
        if said.values > 8 * size + _UNFOLDED_MAX // 8:  # a value has a bit at least, and is more for whoever looks
            raise Broken(f"expected values that take room, came {said.values} in a message of {size} bytes")
        if number is not None:
            self._dictionaries[number] = size + (self._dictionaries.get(number, 0) if more else 0)
            size = sum(self._dictionaries.values())
        if size > _UNFOLDED_MAX:
            what = "a message" if number is None else "dictionaries"
            raise Broken(f"expected {what} of at most {_UNFOLDED_MAX} bytes, came some that unfold to {size}")
        return Messages._prefix


def _plain(data: Any) -> Any:
    """A message's metadata; of a schema without what somebody has noted beside it and its columns.

    Tables say where their parts are in lists that they may share: in these, the notes are left out.
    """
    message = _follow(data, 0)
    if _number(data, message, 1, "<B") != _SCHEMA:
        return data
    plain = bytearray(data)
    for table, number in _noted(data, message):
        struct.pack_into("<H", plain, _slot(plain, table, number), 0)
    if _noted(plain, message):  # such a list was something else, too
        raise Broken("the stream is not Arrow as expected: its metadata cannot be read")
    return bytes(plain)


def _noted(data: Any, message: int) -> list[tuple[int, int]]:
    """The tables of a schema that have notes, each with the number of that field. Broken as `_spread` is."""
    schema = _follow(data, _field(data, message, 2))
    found = [(schema, 2), *((field, 6) for field in _spread(data, message, _SCHEMA))]
    return [(table, number) for table, number in found if _field(data, table, number)]


def _spread(data: Any, message: int, kind: int) -> list[int]:
    """The fields of a schema, and those below them. Broken where metadata becomes much more than it is, because it
    names the same things again and again."""
    size, fields, found, dictionaries = _of_pairs(data, message, 4), [], [], set()
    if kind == _SCHEMA:
        schema = _follow(data, _field(data, message, 2))
        size, fields = size + _of_pairs(data, schema, 2), _named(data, schema, 1)
    while fields:
        found.append(field := fields.pop())
        below = _named(data, field, 5)
        size += _FIELD * (1 + len(below)) + _text(data, field, 0) + _of_pairs(data, field, 6)
        if (of := _number(data, field, 2, "<B")) in (_UNION, _TIMESTAMP):
            own = _follow(data, _field(data, field, 3))
            size += 4 * _length_of(data, own, 1) if of == _UNION else _text(data, own, 1)
        if size > _SPREAD_MAX:
            raise _again_and_again()
        if coded := _field(data, field, 4):
            if (own := _number(data, _follow(data, coded), 0, "<q")) in dictionaries:
                raise Broken("expected a dictionary for each column of its own, came one of several columns")
            dictionaries.add(own)
        fields += below
    return found


def _again_and_again() -> Broken:
    return Broken(f"expected metadata that says {_SPREAD_MAX} bytes at most, came some that says one thing many times")


def _of_pairs(data: Any, table: int, number: int) -> int:
    """Bytes of what somebody has added to a table: keys and values."""
    size = 0
    for pair in _named(data, table, number):
        size += _FIELD + _length_of(data, pair, 0) + _length_of(data, pair, 1)
        if size > _SPREAD_MAX:
            raise _again_and_again()
    return size


def _named(data: Any, table: int, number: int) -> list[int]:
    """The places of the tables that a field lists; none where it is left out."""
    if not (count := _length_of(data, table, number)):
        return []
    if count > _SPREAD_MAX // _FIELD:
        raise _again_and_again()
    first = _follow(data, _field(data, table, number)) + 4
    return [_follow(data, first + 4 * one) for one in range(count)]


def _text(data: Any, table: int, number: int) -> int:
    """How long a text is. UnicodeDecodeError where it is none: Arrow does not look, and Python stumbles later."""
    if length := _length_of(data, table, number):
        start = _follow(data, _field(data, table, number)) + 4
        str(memoryview(data)[start : start + length], "utf-8")
    return length


def _length_of(data: Any, table: int, number: int) -> int:
    """How long the text or list is that a field leads to."""
    place = _field(data, table, number)
    return int(struct.unpack_from("<I", data, _follow(data, place))[0]) if place else 0


def _values(data: Any, batch: int) -> int:
    """How many values it says that it has: rows, and those of every column and what is in it."""
    return _number(data, batch, 0, "<q") + sum(max(0, length) for length, _ in _pairs(data, batch, 1))


def _pairs(data: Any, batch: int, number: int) -> list[tuple[int, int]]:
    """The list of pairs of numbers that a field of a batch leads to."""
    if not (count := _length_of(data, batch, number)):
        return []
    first = _follow(data, _field(data, batch, number)) + 4
    return list(struct.iter_unpack("<qq", memoryview(data)[first : first + 16 * count]))


def _told(data: Any, at: int, length: int) -> int:
    """Bytes that a buffer of a compressed body says it will have; it may lie there as it is."""
    if not length:
        return 0
    (size,) = struct.unpack_from("<q", data, at)
    return max(size, 0) if size != -1 else length


def _follow(data: Any, place: int) -> int:
    """Where the offset at this place leads."""
    (offset,) = struct.unpack_from("<I", data, place)
    return place + int(offset)


def _field(data: Any, table: int, number: int) -> int:
    """The place of a field of a table; 0 where it is left out."""
    if not (slot := _slot(data, table, number)):
        return 0
    (offset,) = struct.unpack_from("<H", data, slot)
    return table + offset if offset else 0


def _slot(data: Any, table: int, number: int) -> int:
    """Where it stands how far into the table a field is; 0 where no such place is."""
    (back,) = struct.unpack_from("<i", data, table)
    (size,) = struct.unpack_from("<H", data, table - back)
    return table - back + 4 + 2 * number if size >= 6 + 2 * number else 0


def _number(data: Any, table: int, number: int, kind: str) -> int:
    place = _field(data, table, number)
    return int(struct.unpack_from(kind, data, place)[0]) if place else 0
