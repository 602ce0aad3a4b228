"""Where the columns of rows lie in memory that two processes have: found there as they came from the network,
or put together there; and made tensors and lists of, by whoever is told where.

Columns of one type often lie at the same distance from each other: one array stands for all of them.
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
_WIDTHS = (np.dtype("i4"), np.dtype("i4"), np.dtype("i8"), np.dtype("i8"))  # of the places where their values begin
_DAYS = {pa.date32(): np.dtype("i4"), pa.date64(): np.dtype("i8")}

_FindPlace: TypeAlias = "Callable[[int, int], tuple[SlotPlace, int] | None]"  # as `Arena.place`


class ColumnGroup(NamedTuple):
    """Columns of one type, whose numbers lie at the same distance from one column to the next."""

    kind: Any  # of NumPy
    shape: tuple[int, ...]  # of a row's
    names: tuple[str, ...]
    at: int
    stride: int


class TextColumn(NamedTuple):
    """A column of texts or bytes: of which of the kinds, where the places of its values lie, and where these do."""

    kind: int
    name: str
    at: int
    values_at: int
    nbytes: int


class StoredRows(NamedTuple):
    """Where in a piece of memory the columns of so many rows lie."""

    rows: int
    groups: tuple[ColumnGroup, ...]
    texts: tuple[TextColumn, ...]


class ColumnKinds:
    """The columns of a schema. `certain`: whether each has a form that is the same in a worker as in the loop, where
    nothing is null."""

    def __init__(self, schema: pa.Schema) -> None:
        self.schema, self.names = schema, tuple(schema.names)
        self.numbers: list[tuple[int, Any]] = []  # the place of a column, and its type as an array
        self.texts: list[tuple[int, int]] = []
        self.others: list[int] = []  # truths, vectors
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
    """A batch as it came. `certain`: whether nothing of it is null. `place` and `lying` say where all of
    it lies, if that is in one piece that `find` knows."""

    def __init__(self, batch: pa.RecordBatch, kinds: ColumnKinds, find: _FindPlace) -> None:
        self.batch, self.kinds = batch, kinds
        self._columns: list[pa.Array] = batch.columns
        self._arrays: dict[int, Any] = {}
        self.certain = kinds.certain and not any(map(_has_nulls, self._columns))
        self.place: SlotPlace | None = None
        if self.certain:
            self._find_slot(find)

    def numbers(self, column: int) -> Any:
        """A column as an array of rows."""
        if column not in self._arrays:
            self._arrays[column] = to_array("", self._columns[column])
        return self._arrays[column]

    def text(self, column: int, kind: int, start: int, stop: int) -> _TextValues:
        """Texts of some rows."""
        return _TextValues(self._columns[column].slice(start, stop - start), _WIDTHS[kind])

    def nbytes(self, rows: int) -> int:
        """Bytes that the numbers of so many rows have."""
        others = sum(self.numbers(column)[:1].nbytes for column in self.kinds.others)
        return rows * int(others + sum(kind.itemsize for _, kind in self.kinds.numbers))

    def has_layout_of(self, other: ReceivedBatch) -> bool:
        """Whether another one lies as this one does, the places aside."""
        return [group[:3] for group in self.stored.groups] == [group[:3] for group in other.stored.groups]

    def _find_slot(self, find: _FindPlace) -> None:
        pieces = list(self._pieces())
        texts = [_text_extent(self._columns[column], _WIDTHS[kind].itemsize) for column, kind in self.kinds.texts]
        every = [(at, size) for _, _, _, at, size in pieces] + [one for both in texts for one in both]
        if not every or any(not size for _, size in every):
            return
        first = min(at for at, _ in every)
        if (found := find(first, max(at + size for at, size in every))) is not None:
            self.place, start = found[0], first - found[1]
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
        """Each column of numbers: its place, type and shape, where in our memory it lies, and its bytes."""
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
    """Where the places of a column of texts lie, and where its values do, with their bytes."""
    _, places, data = column.buffers()
    own = places.address + column.offset * width, (len(column) + 1) * width
    return own, (own if not data else (data.address, data.size))  # none of them has any value


@dataclass(slots=True)
class _GroupRun:
    names: list[str]
    at: int
    stride: int = 0  # of one column alone there is none

    def takes(self, name: str, at: int) -> bool:
        """Whether this column goes on where the others point to; then it is one of them."""
        if at <= self.at or (self.stride and at != self.at + self.stride * len(self.names)):
            return False
        self.stride = self.stride or at - self.at
        self.names.append(name)
        return True


def _group_columns(columns: Iterable[tuple[Any, tuple[int, ...], str, int]]) -> tuple[ColumnGroup, ...]:
    """Columns of a type that lie at the same distance from each other, as one."""
    runs: dict[tuple[Any, tuple[int, ...]], list[_GroupRun]] = {}
    for kind, shape, name, at in columns:
        found = runs.setdefault((kind, shape), [])
        if not found or not found[-1].takes(name, at):
            found.append(_GroupRun([name], at))
    return tuple(ColumnGroup(*of, tuple(run.names), run.at, run.stride) for of, found in runs.items() for run in found)


BatchPart = tuple[ReceivedBatch, int, int]  # rows of what came, from one number to another


def count_rows(parts: Sequence[BatchPart]) -> int:
    return sum(stop - start for _, start, stop in parts)


class _TextValues:
    """Texts, and where in their bytes each begins."""

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
    """How rows of what came shall lie in a piece of `nbytes` bytes: the numbers of a type one column after the other,
    and each column of texts. OverflowError where texts are more than their type can say."""

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
                raise OverflowError(f"expected texts of less bytes in {names[column]}, got {size}")
            at = self._reserve((rows + 1) * _WIDTHS[kind].itemsize)
            texts.append(TextColumn(kind, names[column], at, self._reserve(size), size))
        self.stored = StoredRows(rows, tuple(groups), tuple(texts))

    def _reserve(self, nbytes: int) -> int:
        at = self.nbytes
        self.nbytes += -(-nbytes // ALIGNED) * ALIGNED
        return at

    def write(self, memory: memoryview) -> None:
        """Copy the columns there."""
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
                told, done = came.text(column, kind, start, stop), int(places[row])
                np.add(told.places[1:], done - told.places[0], out=places[row + 1 : row + 1 + stop - start])
                memory[text.values_at + done : text.values_at + done + told.nbytes] = told.values
                row += stop - start


StoredPiece = tuple[Any, StoredRows, int, int]  # memory, what lies there, and rows of it from one number to another


def read_columns(names: Sequence[str], pieces: Sequence[StoredPiece], blobs: str = "bytes") -> dict[str, Any]:
    """The columns again: tensors, over the memory where all of a batch lies in one piece, and lists. `blobs`: as of
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
    """Rows of the columns of a group, a column after the other."""
    width, count = math.prod(group.shape), len(group.names)
    whole = np.ndarray((count, rows * width), group.kind, memory, group.at, (group.stride, group.kind.itemsize))
    return whole[:, start * width : stop * width].reshape(count, stop - start, *group.shape)


def _read_text(text: TextColumn, memory: Any, rows: int, start: int, stop: int) -> pa.Array:
    whole = pa.py_buffer(memory)
    places = whole.slice(text.at, (rows + 1) * _WIDTHS[text.kind].itemsize)
    data = whole.slice(text.values_at, text.nbytes)
    return pa.Array.from_buffers(_TEXTS[text.kind], rows, [None, places, data]).slice(start, stop - start)


__all__ = ["ALIGNED", "BatchPart", "ColumnKinds", "Layout", "ReceivedBatch", "StoredRows", "count_rows", "read_columns"]
