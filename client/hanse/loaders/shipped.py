"""A batch on its way from a DataLoader's worker to the training loop, as one piece of shared memory.

PyTorch sends each tensor as a file of its own, and all else through a pipe: a batch costs more on this way than on the
network. A batch that nobody has changed is put together where the loop reads it, from the slices that it came in
(`Rows`): the numbers of all columns of a type one after the other, texts and bytes as Arrow. Of a dict that somebody
has made, the tensors go as one piece (`Columns`).
"""

from __future__ import annotations

import math
import os
import secrets
from collections.abc import Iterator, Sequence
from contextlib import suppress
from multiprocessing.context import get_spawning_popen
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
import pyarrow as pa
import torch
from torch.utils.data._utils import collate

from hanse._values import bounded
from hanse.loaders.arena import Arena, Place
from hanse.loaders.loader import Slice, one
from hanse.loaders.tensors import is_number, tensors, values

_ALIGNED = 64
_BESIDE = 2**12  # bytes of a stream that are neither its schema nor its batches
_TEXTS = frozenset((pa.string(), pa.large_string(), pa.binary(), pa.large_binary()))
_FLAT = _TEXTS | {pa.bool_(), pa.date32(), pa.date64()}
_WAYS: WeakValueDictionary[str, Way] = WeakValueDictionary()

# Columns whose numbers lie one after the other: their type, the shape of a row's, and their names.
_Group = tuple[Any, tuple[int, ...], tuple[str, ...]]


class Way:
    """From the workers of a dataset to its loop: the memory that they share."""

    _last: Came | None

    def __init__(self) -> None:
        self.arena = Arena()
        self._begin(secrets.token_hex(8), os.getpid())

    def rows(self, slices: Sequence[Slice]) -> Rows | None:
        """A batch that may go as it is; None where it may not: in the process that made us, and where some value could
        be one that has no form, which is for the worker to say."""
        if os.getpid() == self._maker:
            return None
        parts = [(self._looked_at(batch), start, stop) for batch, start, stop in slices]
        return Rows(parts, self) if all(came.certain for came, _, _ in parts) else None

    def _looked_at(self, batch: pa.RecordBatch) -> Came:
        """Once for all slices of it, which follow each other."""
        if self._last is None or self._last.batch is not batch:
            self._last = Came(batch)
        return self._last

    def __reduce__(self) -> tuple[Any, ...]:
        """To a worker that is being started; a copy that goes anywhere else is a way of its own."""
        if get_spawning_popen() is None:
            return Way, ()
        return _brought, (self.arena, self.name)

    def _begin(self, name: str, maker: int) -> None:
        self.name, self._maker = name, maker
        self._last = None
        _WAYS[name] = self


def _brought(arena: Arena, name: str) -> Way:
    way = Way.__new__(Way)
    way.arena = arena
    way._begin(name, 0)
    return way


class Came:
    """A batch as it came over the network: arrays of its numbers, and its texts and bytes."""

    def __init__(self, batch: pa.RecordBatch) -> None:
        self.batch = batch
        columns = dict(zip(batch.schema.names, batch.columns, strict=True))
        self.certain = len(columns) == batch.num_columns and all(map(_certain, columns.values()))
        texts = [name for name, column in columns.items() if column.type in _TEXTS]
        self.texts = batch.select(texts) if texts else None
        self.arrays = {}
        if self.certain:
            self.arrays = {name: values(name, column) for name, column in columns.items() if name not in texts}

    def groups(self) -> list[_Group]:
        """What can lie together, in the order of the columns."""
        found: dict[tuple[Any, tuple[int, ...]], list[str]] = {}
        for name, array in self.arrays.items():
            found.setdefault((array.dtype, array.shape[1:]), []).append(name)
        return [(kind, shape, tuple(names)) for (kind, shape), names in found.items()]


def _certain(column: pa.Array) -> bool:
    """Whether every value has its form, and the same one in the worker as in the loop."""
    kind = column.type
    if isinstance(column, pa.FixedShapeTensorArray):
        column, kind = column.storage, column.storage.type
    if pa.types.is_fixed_size_list(kind):
        return not column.null_count and is_number(kind.value_type) and not column.flatten().null_count
    return not column.null_count and (is_number(kind) or kind in _FLAT)


class Rows:
    """A batch as it was read. For whoever looks at it in the worker it is a mapping of what it will become.

    It is no `Mapping` by type: PyTorch would look at every value of it. What is in it may be changed.
    """

    def __init__(self, parts: Sequence[tuple[Came, int, int]], way: Way) -> None:
        self._parts, self._way = parts, way
        self._made: dict[str, Any] | None = None

    def __getitem__(self, name: str) -> Any:
        return self._columns[name]

    def __setitem__(self, name: str, value: Any) -> None:
        self._columns[name] = value

    def __delitem__(self, name: str) -> None:
        del self._columns[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._columns)

    def __len__(self) -> int:
        return len(self._columns)

    def __contains__(self, name: object) -> bool:
        return name in self._columns

    def __or__(self, other: Any) -> dict[str, Any]:
        return self._columns | dict(other)

    def __ror__(self, other: Any) -> dict[str, Any]:
        return dict(other) | self._columns

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._columns, name)  # keys, values, items, get, pop

    @property
    def _columns(self) -> dict[str, Any]:
        if self._made is None:
            self._made = tensors(one([(came.batch, start, stop) for came, start, stop in self._parts]))
        return self._made

    def __reduce__(self) -> tuple[Any, ...]:
        if self._made is not None:
            return Columns(self._made).__reduce__()  # it may have been changed
        # In a thread of the queue, where an error would be printed and its batch be missing.
        with suppress(Exception):
            layout = Layout(self._parts)
            return self._sent(layout) or self._packed(layout)
        return Columns(self._columns).__reduce__()

    def _sent(self, layout: Layout) -> tuple[Any, ...] | None:
        """By memory that is shared, where there is room."""
        if (room := self._way.arena.room(layout.most)) is None:
            return None
        place, memory = room
        try:
            return _read, (self._way.name, place, layout.write(self._parts, memory), layout.told)
        except BaseException:
            self._way.arena.give_back(place)
            raise

    def _packed(self, layout: Layout) -> tuple[Any, ...]:
        """By a piece of memory for it alone."""
        piece = _shared(layout.most)
        layout.write(self._parts, memoryview(piece.numpy()))
        return _unpacked, (piece, layout.told)


class Layout:
    """Where the columns of a batch lie in a piece of memory of at most `most` bytes; `told` is enough to find them."""

    def __init__(self, parts: Sequence[tuple[Came, int, int]]) -> None:
        came = parts[0][0]
        self._rows = sum(stop - start for _, start, stop in parts)
        self._groups = came.groups()
        self._texts = [made.texts.slice(start, stop - start) for made, start, stop in parts if made.texts is not None]
        self.told = came.batch.schema.names, self._rows, self._groups, bool(self._texts)
        self.most = sum(_room(group, self._rows) for group in self._groups)
        if self._texts:
            self.most += sum(map(pa.ipc.get_record_batch_size, self._texts))
            self.most += self._texts[0].schema.serialize().size + len(self._texts) * _BESIDE

    def write(self, parts: Sequence[tuple[Came, int, int]], memory: memoryview) -> int:
        """Copy the columns there: how many bytes they take."""
        at = 0
        for kind, shape, names in self._groups:
            count = len(names) * self._rows
            there = np.frombuffer(memory, kind, count * math.prod(shape), at).reshape(count, *shape)
            np.concatenate([came.arrays[name][start:stop] for name in names for came, start, stop in parts], out=there)
            at += _room((kind, shape, names), self._rows)
        return at + (_written(self._texts, memory[at:]) if self._texts else 0)


def _room(group: _Group, rows: int) -> int:
    kind, shape, names = group
    size: int = len(names) * rows * math.prod(shape) * kind.itemsize
    return -(-size // _ALIGNED) * _ALIGNED


def _written(batches: Sequence[pa.RecordBatch], memory: memoryview) -> int:
    sink = pa.FixedSizeBufferWriter(pa.py_buffer(memory))
    with pa.ipc.new_stream(sink, batches[0].schema) as out:
        for batch in batches:
            out.write_batch(batch)
    return int(sink.tell())


def _read(name: str, place: Place, nbytes: int, told: Any) -> dict[str, Any]:
    return _found(_WAYS[name].arena.take(place, nbytes), *told)


def _unpacked(piece: Any, told: Any) -> dict[str, Any]:
    return _found(memoryview(piece.numpy()), *told)


def _found(memory: Any, names: Sequence[str], rows: int, groups: Sequence[_Group], texts: bool) -> dict[str, Any]:
    """The columns again: tensors over the memory, and lists."""
    made: dict[str, Any] = dict.fromkeys(names)
    at = 0
    for kind, shape, columns in groups:
        count = len(columns) * rows
        whole = np.frombuffer(memory, kind, count * math.prod(shape), at).reshape(count, *shape)
        # "Unsafe" is that one may be written to while another is used: they have nothing in common but their memory.
        made.update(zip(columns, torch.from_numpy(whole).unsafe_split(rows), strict=True))
        at += _room((kind, shape, columns), rows)
    if texts:
        made.update(_lists(pa.py_buffer(memory).slice(at)))
    return made


def _lists(stream: pa.Buffer) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {}
    for batch in pa.ipc.open_stream(stream):
        bounded(batch.columns)
        for name, column in zip(batch.schema.names, batch.columns, strict=True):
            found.setdefault(name, []).extend(column.to_pylist())
    return found


def _collated(batches: Sequence[Rows], *, collate_fn_map: Any = None) -> Any:
    """As PyTorch puts dicts together, where a DataLoader is given a batch size too."""
    return collate.collate([dict(rows.items()) for rows in batches], collate_fn_map=collate_fn_map)


collate.default_collate_fn_map[Rows] = _collated


class Columns(dict[str, Any]):
    """The columns of a batch by their names: a dict whose tensors are pickled as one."""

    def __copy__(self) -> Columns:
        return Columns(self)

    def __reduce__(self) -> tuple[Any, ...]:
        tensors = {name: value for name, value in self.items() if isinstance(value, torch.Tensor)}
        rest = {name: None if name in tensors else value for name, value in self.items()}  # with their order
        return _taken, (rest, *_put(tensors))


def _put(tensors: dict[str, Any]) -> tuple[Any, dict[str, tuple[int, Any, tuple[int, ...]]]]:
    """The piece, and where in it each tensor begins, its type and its shape."""
    places, size = {}, 0
    for name, tensor in tensors.items():
        places[name] = (size, tensor.dtype, tuple(tensor.shape))
        size += -(-tensor.nbytes // _ALIGNED) * _ALIGNED
    piece = _shared(size)
    memory = memoryview(piece.numpy())
    for name, place in places.items():
        _at(memory, *place).copy_(tensors[name])
    return piece, places


def _shared(size: int) -> Any:
    """As PyTorch's own `default_collate` makes it: in shared memory from the start."""
    return torch.empty(0, dtype=torch.uint8).set_(torch.UntypedStorage._new_shared(max(1, size)))


def _taken(rest: dict[str, Any], piece: Any, places: dict[str, tuple[int, Any, tuple[int, ...]]]) -> dict[str, Any]:
    """The columns again."""
    memory = memoryview(piece.numpy())
    for name, place in places.items():
        rest[name] = _at(memory, *place)
    return rest


def _at(memory: memoryview, start: int, kind: Any, shape: tuple[int, ...]) -> Any:
    """The tensor over a place of the piece."""
    if not (count := math.prod(shape)):
        return torch.empty(shape, dtype=kind)
    tensor = torch.frombuffer(memory, dtype=kind, count=count, offset=start)
    return tensor if len(shape) == 1 else tensor.reshape(shape)
