"""Values of Parquet that go from the file straight to where they are sent from: large ones that lie there as they are.

An uncompressed page of blobs in PLAIN encoding is its values one after the other, each with its length before it. So
such a column need not be decoded: where its values lie is found by their lengths, and the kernel copies them into the
memory that leaves (data-plane, section 3.1). Until then an Arrow array stands for them whose offsets are true and
whose bytes are not there: its memory may not even be read, and a batch with it is for `frames` alone. Nothing in a file
is believed: a column that is not exactly as it is described here is read by Arrow, with all of its group. Runs in a
worker.
"""

from __future__ import annotations

import mmap
import os
import threading
import weakref
from array import array
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from connector.errors import VersionChanged

_VALUE_MIN = 16 * 2**10  # bytes on average: for each value we ask the kernel twice, and small ones are faster decoded
_CHUNK_MAX = 2**28
PIECE = 2**18  # bytes that stay in a processor's cache from their copy to their digest
_HEADER_MAX = 2**13  # of a page, with its levels
_DATA_PAGE, _DATA_PAGE_V2 = 0, 3
_PLAIN, _RLE = 0, 3
_TRUE, _FALSE, _BYTE, _I16, _I32, _I64, _BINARY, _STRUCT = 1, 2, 3, 4, 5, 6, 8, 12  # Thrift's compact types

Fields = dict[tuple[int, int], Any]  # of a Thrift struct, by number and type


class Stored:
    """The columns of one answer that are still in their files. Some threads add, another asks."""

    def __init__(self) -> None:
        self._columns: list[weakref.ref[_Column]] = []
        self._adding = threading.Lock()

    def columns(self, file: File, metadata: Any, group: int, names: Sequence[str], *, at_least: int) -> dict[str, Any]:
        """Arrays that stand for those columns of a row group that can be left in the file, by name; none where they are
        not so many bytes together."""
        found = lying(file, metadata, group, names)
        if sum(places.nbytes for places in found.values()) < at_least:
            return {}
        return {name: self.stand_in(file, places) for name, places in found.items()}

    def stand_in(self, file: File, places: Places) -> pa.Array:
        """An array that stands for the values at these places of a file."""
        if not places.nbytes:
            return pa.array([b""] * len(places), pa.binary())
        column = _Column(file, places)
        with self._adding:  # a new list, without those that no batch refers to: whoever asks may have the old one
            self._columns = [*(one for one in self._columns if one() is not None), weakref.ref(column)]
        return column.stand_in()

    def find(self, part: Any) -> Values | None:
        """What a buffer stands for; None for one that is what it is."""
        if isinstance(part, pa.Buffer):
            for one in self._columns:
                column = one()
                if column is not None and 0 <= (first := part.address - column.address) < column.size:
                    return Values(column, first, part.size)
        return None


@dataclass(slots=True)
class Places:
    """Values in a file: where each begins there, and where it ends among them all."""

    starts: array[int] = field(default_factory=lambda: array("q"))
    ends: array[int] = field(default_factory=lambda: array("i"))

    def __len__(self) -> int:
        return len(self.starts)

    @property
    def nbytes(self) -> int:
        return self.ends[-1] if self.ends else 0

    def size(self, number: int) -> int:
        """Bytes of one of them."""
        return self.ends[number] - (self.ends[number - 1] if number else 0)

    def add(self, start: int, size: int) -> None:
        """Add a value after the others."""
        self.starts.append(start)
        self.ends.append(self.nbytes + size)


class File:
    """A file to read from, closed when nothing is in it any more that somebody needs."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        weakref.finalize(self, os.close, self.descriptor)
        self.size = os.fstat(self.descriptor).st_size


class Values:
    """Some bytes of a column that is still in its file."""

    def __init__(self, column: _Column, first: int, size: int) -> None:
        self.size = size
        self._column, self._first = column, first

    def into(self, memory: memoryview, *, over: bool = False) -> Iterator[memoryview]:
        """Read them; each piece of `memory` as soon as it is filled. VersionChanged where the file has become shorter:
        they were there. `over`: one piece over the other, for whoever only has to have seen them."""
        done = 0
        for _, at, size in self.places():
            for start in range(0, size, PIECE):
                piece = memory[done : done + min(PIECE, size - start)]
                _fill(self._column.file.descriptor, piece, at + start)
                done += 0 if over else len(piece)
                yield piece

    def places(self) -> Iterator[tuple[str, int, int]]:
        """Where each value lies: a file's path, an offset, and bytes."""
        for at, size in self._column.places(self._first, self._first + self.size):
            yield self._column.file.path, at, size

    def read(self) -> bytearray:
        """They, in memory of their own."""
        memory = bytearray(self.size)
        for _ in self.into(memoryview(memory)):
            pass
        return memory


class _Column:
    """Values of one column, all of one file."""

    def __init__(self, file: File, places: Places) -> None:
        self.file, self._starts, self._ends = file, places.starts, places.ends
        self.size = places.nbytes
        # Addresses that are nobody else's while we live. Whoever reads there has not been told, and must not go on.
        self._memory = pa.py_buffer(mmap.mmap(-1, self.size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, prot=0))
        self.address = self._memory.address

    def stand_in(self) -> pa.Array:
        """What stands for the values; we live as long as any part of it does."""
        offsets = pa.py_buffer(array("i", [0]) + self._ends)
        values = pa.foreign_buffer(self.address, self.size, base=self)
        return pa.Array.from_buffers(pa.binary(), len(self._ends), [None, offsets, values], 0)

    def places(self, first: int, stop: int) -> Iterator[tuple[int, int]]:
        """Place in the file and size of each value, or part of one, from `first` to `stop` of them all."""
        number = bisect_right(self._ends, first)
        while first < stop:
            end = self._ends[number]
            begin = self._ends[number - 1] if number else 0
            if first < (until := min(end, stop)):
                yield self._starts[number] + first - begin, until - first
                first = until
            number += 1


def _fill(descriptor: int, memory: memoryview, at: int) -> None:
    while memory:
        if not (got := os.preadv(descriptor, [memory], at)):
            raise VersionChanged.of("a file of this version has changed since it was registered")
        memory, at = memory[got:], at + got


class _OtherwiseError(Exception):
    """It is not as it would have to be."""


def lying(file: File, metadata: Any, group: int, names: Sequence[str]) -> dict[str, Places]:
    """Where the values of these columns of a row group lie, by name; those that Arrow must read are left out."""
    found = {}
    for number in range(metadata.num_columns):
        column = metadata.schema.column(number)
        if (
            column.path in names
            and may_lie(metadata, group, number)
            and (places := _places(file, metadata, group, number))
        ):
            found[column.path] = places
    return found


def may_lie(metadata: Any, group: int, number: int) -> bool:
    """Whether a column of a row group is, by the footer, of large values that lie there as they are."""
    column, rows = metadata.schema.column(number), metadata.row_group(group).num_rows
    chunk = metadata.row_group(group).column(number)
    flat = column.physical_type == "BYTE_ARRAY" and not column.max_repetition_level and column.max_definition_level <= 1
    stored = chunk.compression == "UNCOMPRESSED" and not chunk.has_dictionary_page and not chunk.file_path
    fits = 0 < rows * _VALUE_MIN <= chunk.total_compressed_size <= _CHUNK_MAX
    return bool(flat and stored and fits and chunk.num_values == rows)


def _places(file: File, metadata: Any, group: int, number: int) -> Places | None:
    """Where the values lie of a column of a row group that is, by the footer, as we can read it; None where not."""
    chunk, optional = metadata.row_group(group).column(number), metadata.schema.column(number).max_definition_level == 1
    at = chunk.data_page_offset
    stop = at + chunk.total_compressed_size
    if not 0 < at < stop <= file.size:
        return None
    try:
        return _walk(file.descriptor, at, stop, metadata.row_group(group).num_rows, optional=optional)
    except (_OtherwiseError, LookupError, OSError):
        return None


def _walk(descriptor: int, at: int, stop: int, rows: int, *, optional: bool) -> Places:
    """Where each value of a column chunk lies. OSError where the kernel has not got
    all of it in memory: who jumps from length to length waits for each, and Arrow reads one piece behind the other."""
    found = Places()
    head, prefix = bytearray(_HEADER_MAX), bytearray(4)
    while len(found) < rows:
        got = os.preadv(descriptor, [head], at, os.RWF_NOWAIT)
        at, page_stop, count = _page(bytes(head[: min(got, stop - at)]), at, stop, optional=optional)
        _expect(0 < count <= rows - len(found))
        for _ in range(count):
            _expect(os.preadv(descriptor, [prefix], at, os.RWF_NOWAIT) == len(prefix))
            length = int.from_bytes(prefix, "little")
            at += len(prefix)
            _expect(at + length <= page_stop)
            found.add(at, length)
            at += length
        _expect(at == page_stop)
    _expect(at == stop)
    return found


def _page(head: bytes, at: int, stop: int, *, optional: bool) -> tuple[int, int, int]:
    """Where the values of the page at `at` begin and end, and how many there are; `head` are its first bytes."""
    header, used = _struct(head, 0)
    size, kind = header[3, _I32], header[1, _I32]
    _expect(size == header[2, _I32])
    end = at + used + size
    if kind == _DATA_PAGE:
        told: Fields = header[5, _STRUCT]
        count = told[1, _I32]
        _expect(told[2, _I32] == _PLAIN)
        if optional:
            _expect(told[3, _I32] == _RLE)
            length = int.from_bytes(head[used : used + 4], "little")
            used += 4
            _expect_ones(head, used, length, count)
            used += length
    else:
        _expect(kind == _DATA_PAGE_V2)
        told = header[8, _STRUCT]
        count, length = told[1, _I32], told[5, _I32]
        _expect(told[4, _I32] == _PLAIN and told[2, _I32] == 0 and told[3, _I32] == count and told[6, _I32] == 0)
        _expect(length >= 0)
        if optional:
            _expect_ones(head, used, length, count)
        used += length
    _expect(at + used <= end <= stop)
    return at + used, end, count


def _expect_ones(head: bytes, at: int, length: int, count: int) -> None:
    """That so many definition levels are all 1 (Parquet's encodings, "RLE/bit-packing hybrid", one bit wide)."""
    levels, at = head[at : at + length], 0
    while count > 0:
        run, at = _varint(levels, at)
        if run & 1:
            size = run >> 1
            _expect(0 < size <= len(levels) - at)
            bits = (1 << min(count, 8 * size)) - 1
            _expect(int.from_bytes(levels[at : at + size], "little") & bits == bits)
            at, count = at + size, count - 8 * size
        else:
            _expect(run > 0 and levels[at] == 1)
            at, count = at + 1, count - (run >> 1)


def _struct(data: bytes, at: int, *, within: int = 2) -> tuple[Fields, int]:
    """A struct in Thrift's compact protocol, of those types that page headers have, and where it ends."""
    found: Fields = {}
    number = 0
    while field := data[at]:
        kind, step, at = field & 15, field >> 4, at + 1
        _expect(step > 0)
        number += step
        value: Any = kind == _TRUE
        if kind == _STRUCT:
            _expect(within > 0)
            value, at = _struct(data, at, within=within - 1)
        elif kind == _BINARY:
            size, at = _varint(data, at)
            at += size
        elif kind in (_I16, _I32, _I64):
            value, at = _varint(data, at)
            value = value >> 1 ^ -(value & 1)
        elif kind == _BYTE:
            at += 1
        else:
            _expect(kind in (_TRUE, _FALSE))
        found[number, kind] = value
    return found, at + 1


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        byte = data[at]
        value, at = value | (byte & 127) << shift, at + 1
        if byte < 128:
            return value, at
    raise _OtherwiseError


def _expect(fact: bool) -> None:
    if not fact:
        raise _OtherwiseError
