"""Layout of columns in memory that a worker shares with the loop: where received or joined columns lie, and how to read
them as tensors and lists.

Columns of one type often lie at the same distance from each other: then one array describes all of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import pyarrow as pa
import torch

from hanse.loaders.torch.shm_arena import SlotPlace
from hanse.loaders.torch.tensors import array_type, is_number, list_values, to_array

ALIGNED = 64
_TEXTS = (pa.string(), pa.binary(), pa.large_string(), pa.large_binary())
_WIDTHS = (np.dtype("i4"), np.dtype("i4"), np.dtype("i8"), np.dtype("i8"))  # of the offsets of each type
_DAYS = {pa.date32(): np.dtype("i4"), pa.date64(): np.dtype("i8")}

_FindPlace: TypeAlias = "Callable[[int, int], tuple[SlotPlace, int] | None]"  # the type of `Arena.place`


class ColumnGroup(NamedTuple):
    """Columns of one type that lie at equal distances."""

    kind: Any  # a NumPy dtype
    shape: tuple[int, ...]  # of one row
    names: tuple[str, ...]
    at: int
    stride: int


class TextColumn(NamedTuple):
    """A column of text or bytes: its kind, and where its offsets and its values lie."""

    kind: int
    name: str
    at: int
    values_at: int
    nbytes: int


class StoredRows(NamedTuple):
    """Where the columns of `rows` rows lie in a piece of memory."""

    rows: int
    groups: tuple[ColumnGroup, ...]
    texts: tuple[TextColumn, ...]


class ColumnKinds:
    """The columns of a schema. `certain`: without nulls, each column converts the same way in worker and loop."""

    def __init__(self, schema: pa.Schema) -> None:
        self.schema, self.names = schema, tuple(schema.names)
        self.numbers: list[tuple[int, Any]] = []  # index and array type of a column
        self.texts: list[tuple[int, int]] = []
        self.others: list[int] = []  # booleans, vectors
        self.certain = len(set(self.names)) == len(self.names)
        for column, kind in enumerate(schema.types):
            if is_number(kind) or kind in _DAYS:
                self.numbers.append((column, _DAYS.get(kind) or array_type(kind)))
            elif kind in _TEXTS:
                self.texts.append((column, _TEXTS.index(kind)))
            elif kind == pa.bool_() or is_number(getattr(_vectors(kind), "value_type", pa.null())):
                self.others.append(column)
            else:
                self.certain = False


def _vectors(kind: pa.DataType) -> pa.DataType | None:
    kind = kind.storage_type if isinstance(kind, pa.FixedShapeTensorType) else kind
    return kind if pa.types.is_fixed_size_list(kind) else None


class ReceivedBatch:
    """A received batch. `certain`: it has no nulls. `place` and `stored` describe where it lies, if that is one piece
    that `find` knows."""

    def __init__(self, batch: pa.RecordBatch, kinds: ColumnKinds, find: _FindPlace) -> None:
        self.batch, self.kinds = batch, kinds
        self._columns: list[pa.Array] = batch.columns
        self._arrays: dict[int, Any] = {}
        self.certain = kinds.certain and not any(map(_has_nulls, self._columns))
        self.place: SlotPlace | None = None
        if self.certain:
            self._find_slot(find)

    def numbers(self, column: int) -> Any:
        """Return a column as an array of rows."""
        if column not in self._arrays:
            self._arrays[column] = to_array("", self._columns[column])
        return self._arrays[column]

    def text(self, column: int, kind: int, start: int, stop: int) -> _TextValues:
        """Return the texts of some rows."""
        return _TextValues(self._columns[column].slice(start, stop - start), _WIDTHS[kind])

    def nbytes(self, rows: int) -> int:
        """Return the bytes of the numbers of `rows` rows."""
        others = sum(self.numbers(column)[:1].nbytes for column in self.kinds.others)
        return rows * int(others + sum(kind.itemsize for _, kind in self.kinds.numbers))

    def has_layout_of(self, other: ReceivedBatch) -> bool:
        """Return whether both batches lie alike, apart from the places."""
        return [group[:3] for group in self.stored.groups] == [group[:3] for group in other.stored.groups]

    def _find_slot(self, find: _FindPlace) -> None:
        pieces = list(self._pieces())
        texts = [_text_extent(self._columns[column], _WIDTHS[kind].itemsize) for column, kind in self.kinds.texts]
        every = [(at, size) for _, _, _, at, size in pieces] + [extent for both in texts for extent in both]
        if not every or any(not size for _, size in every):
            return
        first = min(at for at, _ in every)
        if (slot := find(first, max(at + size for at, size in every))) is not None:
            self.place, start = slot[0], first - slot[1]
            names = self.kinds.names
            self.stored = StoredRows(
                self.batch.num_rows,
                _group_columns((kind, shape, names[column], at - start) for column, kind, shape, at, _ in pieces),
                tuple(
                    TextColumn(kind, names[column], at - start, values_at - start, nbytes)
                    for (column, kind), ((at, _), (values_at, nbytes)) in zip(self.kinds.texts, texts, strict=True)
                ),
            )

    def _pieces(self) -> Iterator[tuple[int, Any, tuple[int, ...], int, int]]:
        """Yield for each column of numbers: index, type, shape, address and bytes."""
        rows = self.batch.num_rows
        for column, kind in self.kinds.numbers:
            array = self._columns[column]
            yield column, kind, (), array.buffers()[1].address + array.offset * kind.itemsize, rows * kind.itemsize
        for column in self.kinds.others:
            array = self.numbers(column)
            yield column, array.dtype, array.shape[1:], array.__array_interface__["data"][0], array.nbytes


def _has_nulls(column: pa.Array) -> bool:
    if column.null_count:
        return True
    vectors = column.storage if isinstance(column, pa.FixedShapeTensorArray) else column
    return isinstance(vectors, pa.FixedSizeListArray) and bool(vectors.flatten().null_count)


def _text_extent(column: pa.Array, width: int) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return address and bytes of a text column's offsets, and of its values."""
    _, places, data = column.buffers()
    own = places.address + column.offset * width, (len(column) + 1) * width
    return own, (own if not data else (data.address, data.size))  # all texts are empty


@dataclass(slots=True)
class _GroupRun:
    names: list[str]
    at: int
    stride: int = 0  # 0 for a single column

    def takes(self, name: str, at: int) -> bool:
        """Add a column if it continues the equal distances; return whether it does."""
        if at <= self.at or (self.stride and at != self.at + self.stride * len(self.names)):
            return False
        self.stride = self.stride or at - self.at
        self.names.append(name)
        return True


def _group_columns(columns: Iterable[tuple[Any, tuple[int, ...], str, int]]) -> tuple[ColumnGroup, ...]:
    """Group columns of a type that lie at equal distances."""
    runs: dict[tuple[Any, tuple[int, ...]], list[_GroupRun]] = {}
    for kind, shape, name, at in columns:
        found = runs.setdefault((kind, shape), [])
        if not found or not found[-1].takes(name, at):
            found.append(_GroupRun([name], at))
    return tuple(ColumnGroup(*of, tuple(run.names), run.at, run.stride) for of, found in runs.items() for run in found)


BatchPart = tuple[ReceivedBatch, int, int]  # rows of a batch from first to end


def count_rows(parts: Sequence[BatchPart]) -> int:
    return sum(stop - start for _, start, stop in parts)


class _TextValues:
    """Texts, and the offset of each."""

    def __init__(self, column: pa.Array, width: Any) -> None:
        _, places, data = column.buffers()
        self.places = np.frombuffer(places, width, len(column) + 1, column.offset * width.itemsize)
        self._data = data

    @property
    def nbytes(self) -> int:
        return int(self.places[-1]) - int(self.places[0])

    @property
    def values(self) -> memoryview:
        return memoryview(self._data or b"").cast("B")[int(self.places[0]) : int(self.places[-1])]


class Layout:
    """A layout of received rows in a piece of `nbytes` bytes: the numbers of a type column after column, and each text
    column.

    Raises:
        OverflowError: texts have more bytes than their type can hold.
    """

    def __init__(self, parts: Sequence[BatchPart]) -> None:
        self._parts, self.nbytes = parts, 0
        first, rows = parts[0][0], count_rows(parts)
        names = first.kinds.names
        self._columns: dict[tuple[Any, tuple[int, ...]], list[int]] = {}
        for column in [*(column for column, _ in first.kinds.numbers), *first.kinds.others]:
            array = first.numbers(column)
            self._columns.setdefault((array.dtype, array.shape[1:]), []).append(column)
        groups, texts = [], []
        for (kind, shape), columns in self._columns.items():
            stride = rows * math.prod(shape) * kind.itemsize
            own = tuple(names[column] for column in columns)
            groups.append(ColumnGroup(kind, shape, own, self._reserve(stride * len(columns)), stride))
        for column, kind in first.kinds.texts:
            size = sum(came.text(column, kind, start, stop).nbytes for came, start, stop in parts)
            if size > np.iinfo(_WIDTHS[kind]).max:
                raise OverflowError(f"expected fewer bytes of text in {names[column]}, got {size}")
            at = self._reserve((rows + 1) * _WIDTHS[kind].itemsize)
            texts.append(TextColumn(kind, names[column], at, self._reserve(size), size))
        self.stored = StoredRows(rows, tuple(groups), tuple(texts))

    def _reserve(self, nbytes: int) -> int:
        at = self.nbytes
        self.nbytes += -(-nbytes // ALIGNED) * ALIGNED
        return at

    def write(self, memory: memoryview) -> None:
        """Copy the columns to the memory."""
        parts, rows = self._parts, self.stored.rows
        for (kind, shape, _, at, _), columns in zip(self.stored.groups, self._columns.values(), strict=True):
            count = len(columns) * rows
            there = np.frombuffer(memory, kind, count * math.prod(shape), at).reshape(count, *shape)
            own = [came.numbers(column)[start:stop] for column in columns for came, start, stop in parts]
            np.concatenate(own, out=there)
        for text, (column, kind) in zip(self.stored.texts, parts[0][0].kinds.texts, strict=True):
            places = np.frombuffer(memory, _WIDTHS[kind], rows + 1, text.at)
            row = places[0] = 0
            for came, start, stop in parts:
                part, done = came.text(column, kind, start, stop), int(places[row])
                np.add(part.places[1:], done - part.places[0], out=places[row + 1 : row + 1 + stop - start])
                memory[text.values_at + done : text.values_at + done + part.nbytes] = part.values
                row += stop - start


StoredPiece = tuple[Any, StoredRows, int, int]  # memory, its layout, first row and end


def read_columns(names: Sequence[str], pieces: Sequence[StoredPiece], blobs: str = "bytes") -> dict[str, Any]:
    """Return the columns: tensors, over the memory if a batch lies in one piece, and lists. `blobs`: as in
    `tensors`."""
    made: dict[str, Any] = dict.fromkeys(names)
    first = pieces[0][1]
    for number, group in enumerate(first.groups):
        parts = [
            _read_numbers(lying.groups[number], memory, lying.rows, start, stop)
            for memory, lying, start, stop in pieces
        ]
        whole = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=1)
        made.update(zip(group.names, map(torch.from_numpy, whole), strict=True))
    for number, text in enumerate(first.texts):
        parts = [
            _read_text(lying.texts[number], memory, lying.rows, start, stop) for memory, lying, start, stop in pieces
        ]
        made[text.name] = list_values(parts, blobs)
    return made


def _read_numbers(group: ColumnGroup, memory: Any, rows: int, start: int, stop: int) -> Any:
    """Return rows of the columns of a group, column after column."""
    width, count = math.prod(group.shape), len(group.names)
    whole = np.ndarray((count, rows * width), group.kind, memory, group.at, (group.stride, group.kind.itemsize))
    return whole[:, start * width : stop * width].reshape(count, stop - start, *group.shape)


def _read_text(text: TextColumn, memory: Any, rows: int, start: int, stop: int) -> pa.Array:
    whole = pa.py_buffer(memory)
    places = whole.slice(text.at, (rows + 1) * _WIDTHS[text.kind].itemsize)
    data = whole.slice(text.values_at, text.nbytes)
    return pa.Array.from_buffers(_TEXTS[text.kind], rows, [None, places, data]).slice(start, stop - start)


__all__ = ["ALIGNED", "BatchPart", "ColumnKinds", "Layout", "ReceivedBatch", "StoredRows", "count_rows", "read_columns"]
