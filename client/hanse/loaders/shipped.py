"""A batch on its way from a DataLoader's worker to the training loop, as one piece of shared memory.

PyTorch sends each tensor as a file of its own, and all else through a pipe: a batch costs more on this way than on the
network. A batch that nobody has changed goes as Arrow and becomes a dict of tensors in the loop, over the memory that
it came in (`Rows`). Of a dict that somebody has made, the tensors go as one piece (`Columns`).
"""

from __future__ import annotations

import math
import os
import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from multiprocessing.context import get_spawning_popen
from typing import Any
from weakref import WeakValueDictionary

import pyarrow as pa
import torch
from torch.utils.data._utils import collate

from hanse.loaders.arena import Arena, Place
from hanse.loaders.tensors import is_number

_ALIGNED = 64
_BESIDE = 2**12  # bytes of a stream that are neither its schema nor its batch
_FLAT = frozenset(
    (pa.bool_(), pa.string(), pa.large_string(), pa.binary(), pa.large_binary(), pa.date32(), pa.date64())
)  # fmt: skip
_WAYS: WeakValueDictionary[str, Way] = WeakValueDictionary()


class Way:
    """From the workers of a dataset to its loop: the memory that they share, and what a batch becomes there."""

    def __init__(self, form: Callable[[pa.RecordBatch], Any]) -> None:
        self.form, self.arena = form, Arena()
        self._begin(secrets.token_hex(8), os.getpid())

    def carries(self, batch: pa.RecordBatch) -> bool:
        """Whether a batch may go as it is: from a process that did not make us, and where no value can be one that has
        no form, which is for the worker to say."""
        return os.getpid() != self._maker and all(map(_certain, batch.columns))

    def __reduce__(self) -> tuple[Any, ...]:
        """To a worker that is being started; a copy that goes anywhere else is a way of its own."""
        if get_spawning_popen() is None:
            return Way, (self.form,)
        return _brought, (self.form, self.arena, self.name)

    def _begin(self, name: str, maker: int) -> None:
        self.name, self._maker = name, maker
        _WAYS[name] = self


def _brought(form: Callable[[pa.RecordBatch], Any], arena: Arena, name: str) -> Way:
    way = Way.__new__(Way)
    way.form, way.arena = form, arena
    way._begin(name, 0)
    return way


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

    def __init__(self, batch: pa.RecordBatch, way: Way) -> None:
        self._batch, self._way = batch, way
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
            self._made = self._way.form(self._batch)
        return self._made

    def __reduce__(self) -> tuple[Any, ...]:
        if self._made is not None:
            return Columns(self._made).__reduce__()  # it may have been changed
        # In a thread of the queue, where an error would be printed and its batch be missing.
        with suppress(Exception):
            size = pa.ipc.get_record_batch_size(self._batch) + self._batch.schema.serialize().size + _BESIDE
            return self._sent(size) or self._packed(size)
        return Columns(self._columns).__reduce__()

    def _sent(self, size: int) -> tuple[Any, ...] | None:
        """By memory that is shared, where there is room."""
        if (room := self._way.arena.room(size)) is None:
            return None
        place, memory = room
        try:
            return _read, (self._way.name, place, _written(self._batch, memory))
        except BaseException:
            self._way.arena.give_back(place)
            raise

    def _packed(self, size: int) -> tuple[Any, ...]:
        """By a piece of memory for it alone."""
        piece = _shared(size)
        _written(self._batch, memoryview(piece.numpy()))
        return _unpacked, (self._way.name, piece)


def _collated(batches: Sequence[Rows], *, collate_fn_map: Any = None) -> Any:
    """As PyTorch puts dicts together, where a DataLoader is given a batch size too."""
    return collate.collate([dict(one.items()) for one in batches], collate_fn_map=collate_fn_map)


collate.default_collate_fn_map[Rows] = _collated


def _written(batch: pa.RecordBatch, memory: memoryview) -> int:
    sink = pa.FixedSizeBufferWriter(pa.py_buffer(memory))
    with pa.ipc.new_stream(sink, batch.schema) as out:
        out.write_batch(batch)
    return int(sink.tell())


def _read(name: str, place: Place, nbytes: int) -> Any:
    way = _WAYS[name]
    return way.form(_batch(way.arena.take(place, nbytes)))


def _unpacked(name: str, piece: Any) -> Any:
    return _WAYS[name].form(_batch(memoryview(piece.numpy())))


def _batch(memory: Any) -> pa.RecordBatch:
    return pa.ipc.open_stream(pa.py_buffer(memory)).read_next_batch()


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
