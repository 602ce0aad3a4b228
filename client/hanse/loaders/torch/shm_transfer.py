"""Transfer of batches from a DataLoader's worker to the training loop, in shared memory.

PyTorch sends each tensor as a file of its own, and everything else through a pipe: a batch costs more on this path than
on the network. An unchanged batch stays where it was received, if that is shared memory (`Arena`), and the loop gets
its place; otherwise the worker joins it in such memory (`Layout`). The tensors of a dict that user code made are sent
as one piece (`TensorColumns`).
"""

from __future__ import annotations

import math
import os
import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from multiprocessing.context import get_spawning_popen
from multiprocessing.reduction import ForkingPickler
from typing import Any
from weakref import WeakValueDictionary

import pyarrow as pa
import torch
from torch.utils.data._utils import collate

from hanse.loaders.row_slices import Slice
from hanse.loaders.torch.shm_arena import Arena, SlotPlace
from hanse.loaders.torch.shm_layout import (
    ALIGNED,
    BatchPart,
    ColumnKinds,
    Layout,
    ReceivedBatch,
    StoredRows,
    count_rows,
    read_columns,
)
from hanse.loaders.torch.tensors import tensors

_JOINED_BY_LOOP_BYTES = 2 * 2**20  # bytes of numbers in several pieces that the loop joins
_PATHS: WeakValueDictionary[str, SharedPath] = WeakValueDictionary()


class SharedPath:
    """The path from the workers of a dataset to its loop: the memory that they share."""

    _last: ReceivedBatch | None
    _kinds: ColumnKinds | None

    def __init__(self, blobs: str = "bytes") -> None:
        """`blobs`: as in `tensors`."""
        self.arena = Arena()
        self._begin(secrets.token_hex(8), os.getpid(), blobs)

    def memory(self, nbytes: int) -> pa.Buffer:
        """Return memory to receive a batch in, as `pa.allocate_buffer` does."""
        return pa.allocate_buffer(nbytes) if os.getpid() == self._maker else self.arena.memory(nbytes)

    def rows(self, slices: Sequence[Slice]) -> WorkerRows | None:
        """Return a batch that may be sent as it is. None in the process that created this, and if a value may have no
        tensor form: the worker has to raise that error."""
        if os.getpid() == self._maker:
            return None
        parts = [(self._inspect(batch), start, stop) for batch, start, stop in slices]
        return WorkerRows(parts, self) if all(came.certain for came, _, _ in parts) else None

    def _inspect(self, batch: pa.RecordBatch) -> ReceivedBatch:
        """Inspect a batch once for all its consecutive slices."""
        if self._last is None or self._last.batch is not batch:
            if self._kinds is None or not self._kinds.schema.equals(batch.schema):
                self._kinds = ColumnKinds(batch.schema)
            self._last = ReceivedBatch(batch, self._kinds, self.arena.place)
        return self._last

    def __reduce__(self) -> tuple[Any, ...]:
        """Pass the memory to a worker that is being started; any other copy is a new path."""
        if get_spawning_popen() is None:
            return SharedPath, (self.blobs,)
        return _rebuild_path, (self.arena, self.name, self.blobs)

    def _begin(self, name: str, maker: int, blobs: str) -> None:
        self.name, self._maker, self.blobs = name, maker, blobs
        self._last = self._kinds = None
        _PATHS[name] = self


def _rebuild_path(arena: Arena, name: str, blobs: str) -> SharedPath:
    way = SharedPath.__new__(SharedPath)
    way.arena = arena
    way._begin(name, 0, blobs)
    return way


class WorkerRows:
    """A batch as it was read. In the worker it behaves as a mapping of its future columns, and may be changed.

    It is no subclass of `Mapping`, because PyTorch would convert every value of one.
    """

    def __init__(self, parts: Sequence[BatchPart], way: SharedPath) -> None:
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
            batches = (came.batch.slice(start, stop - start) for came, start, stop in self._parts)
            self._made = tensors(*batches, blobs=self._way.blobs)
        return self._made

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the columns: a copy to anywhere but the loop does not count as sent."""
        return dict, (self._columns,)

    def reduce_for_loop(self) -> tuple[Any, ...]:
        """Reduce for a queue between processes: each place is taken once."""
        if self._made is not None:
            return TensorColumns(self._made).reduce_for_loop()  # user code may have changed it
        # Runs in the queue's thread: on any failure use the next method.
        with suppress(Exception):
            return self._refer_to_slots() or self._copy_to_slot()
        return TensorColumns(self._columns).reduce_for_loop()

    def _refer_to_slots(self) -> tuple[Any, ...] | None:
        """Return the places where the batch was received, if the loop shares that memory and little has to be
        joined."""
        first = self._parts[0][0]
        if any(came.place is None for came, _, _ in self._parts):
            return None
        if len(self._parts) > 1:
            little = first.nbytes(count_rows(self._parts)) <= _JOINED_BY_LOOP_BYTES
            if not little or not all(first.has_layout_of(came) for came, _, _ in self._parts):
                return None
        return self._send_parts(
            [(came.place, came.stored, start, stop) for came, start, stop in self._parts if came.place]
        )

    def _copy_to_slot(self) -> tuple[Any, ...]:
        """Join the batch in a slot, or in a new piece of shared memory if none is free."""
        layout, arena = Layout(self._parts), self._way.arena
        if (room := arena.room(layout.nbytes)) is None:
            piece = _new_shared(layout.nbytes)
            layout.write(memoryview(piece.numpy()))
            return _load_piece, (self._names, piece, layout.stored, self._way.blobs)
        layout.write(memoryview(room).cast("B"))
        lies = arena.place(room.address, room.address)
        assert lies is not None
        return self._send_parts([(lies[0], layout.stored, 0, layout.stored.rows)])

    def _send_parts(self, pieces: list[_SentPart]) -> tuple[Any, ...]:
        for place, _, _, _ in pieces:
            self._way.arena.count_sent(place)
        return _load_rows, (self._way.name, self._names, pieces)

    @property
    def _names(self) -> Sequence[str]:
        return self._parts[0][0].kinds.names


_SentPart = tuple[SlotPlace, StoredRows, int, int]
_TensorPlace = tuple[int, Any, tuple[int, ...]]  # a tensor's start in a piece, its type and shape


def _load_rows(way: str, names: Sequence[str], parts: Sequence[_SentPart]) -> dict[str, Any]:
    arena, blobs = _PATHS[way].arena, _PATHS[way].blobs
    return read_columns(names, [(arena.take(place), lying, start, stop) for place, lying, start, stop in parts], blobs)


def _load_piece(names: Sequence[str], piece: Any, lying: StoredRows, blobs: str) -> dict[str, Any]:
    return read_columns(names, [(piece.numpy(), lying, 0, lying.rows)], blobs)


def _collate_rows(batches: Sequence[WorkerRows], *, collate_fn_map: Any = None) -> Any:
    """Collate as PyTorch collates dicts, for a DataLoader with a batch size."""
    return collate.collate([dict(rows.items()) for rows in batches], collate_fn_map=collate_fn_map)


collate.default_collate_fn_map[WorkerRows] = _collate_rows
ForkingPickler.register(WorkerRows, WorkerRows.reduce_for_loop)


class TensorColumns(dict[str, Any]):
    """The columns of a batch by name: a dict whose tensors, also those in lists, are sent to the loop as one piece.

    Other values are sent by PyTorch: see `_is_plain`.
    """

    def __copy__(self) -> TensorColumns:
        return TensorColumns(self)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle as a dict."""
        return dict, (dict(self),)

    def reduce_for_loop(self) -> tuple[Any, ...]:
        """Reduce for a queue between processes."""
        # Runs in the queue's thread: on any failure send a dict.
        with suppress(Exception):
            return self._in_one_piece()
        return self.__reduce__()

    def _in_one_piece(self) -> tuple[Any, ...]:
        tensors: list[Any] = []

        def replace_tensor(tensor: Any) -> Any:
            if not _is_plain(tensor):
                return tensor
            tensors.append(tensor)
            return _TensorNumber(len(tensors) - 1)

        rest = {name: _replace_values(value, torch.Tensor, replace_tensor) for name, value in self.items()}
        return _load_tensors, (rest, *_pack_tensors(tensors))


ForkingPickler.register(TensorColumns, TensorColumns.reduce_for_loop)


class _TensorNumber(int):
    """Stands for a tensor of the piece."""


def _is_plain(tensor: Any) -> bool:
    """Return whether numbers, type and shape describe the tensor completely."""
    if tensor.layout is not torch.strided or tensor.is_nested or tensor.is_quantized:
        return False
    return tensor.device.type == "cpu" and not tensor.requires_grad


def _replace_values(value: Any, kind: type, other: Callable[[Any], Any]) -> Any:
    """Replace values of a kind in a column: the column itself, or items of a list; not deeper."""
    if type(value) is kind:
        return other(value)
    if type(value) is list and kind in set(map(type, value)):
        return [other(item) if type(item) is kind else item for item in value]
    return value


def _pack_tensors(tensors: Sequence[Any]) -> tuple[Any, list[_TensorPlace]]:
    """Return the piece, and the place of each tensor in it."""
    places, size = [], 0
    for tensor in tensors:
        places.append((size, tensor.dtype, tuple(tensor.shape)))
        size += -(-tensor.nbytes // ALIGNED) * ALIGNED
    piece = _new_shared(size)
    memory = memoryview(piece.numpy())
    for tensor, place in zip(tensors, places, strict=True):
        _tensor_at(memory, *place).copy_(tensor)
    return piece, places


def _new_shared(size: int) -> Any:
    """Allocate shared memory as PyTorch's `default_collate` does."""
    return torch.empty(0, dtype=torch.uint8).set_(torch.UntypedStorage._new_shared(max(1, size)))


def _load_tensors(rest: dict[str, Any], piece: Any, places: Sequence[_TensorPlace]) -> dict[str, Any]:
    """Return the columns."""
    memory = memoryview(piece.numpy())
    return {
        name: _replace_values(value, _TensorNumber, lambda number: _tensor_at(memory, *places[number]))
        for name, value in rest.items()
    }


def _tensor_at(memory: memoryview, start: int, kind: Any, shape: tuple[int, ...]) -> Any:
    """Return the tensor over a place of the piece."""
    if not (count := math.prod(shape)):
        return torch.empty(shape, dtype=kind)
    tensor = torch.frombuffer(memory, dtype=kind, count=count, offset=start)
    return tensor if len(shape) == 1 else tensor.reshape(shape)
