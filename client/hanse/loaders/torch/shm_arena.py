"""Shared memory between a training loop and its DataLoader workers: batches are received where the loop reads them.

PyTorch creates a file for each batch, requests it over a socket, and has the kernel clear and map its pages. Here the
pages stay: a slot is reused when neither worker nor loop uses its content. A process that is forked from the loop
shares the loop's batches, so their slots wait for it too (`_lend_all`). Linux only; elsewhere, or if no slot is free or
large enough, `room` returns None and the caller takes another path.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import struct
import threading
import weakref
from collections.abc import Callable
from contextlib import suppress
from typing import Any, TypeVar

import pyarrow as pa

from hanse._transport.http_stream import TOGETHER_MAX
from hanse.errors import Broken

_REGIONS = 256  # one for each worker process of all loaders that live at once
_SLOTS = 32  # in each region; unused slots take no memory
_SLOT = TOGETHER_MAX
_SPARE = 8  # slots that are reserved for joined batches
_LEAST = 2**18  # bytes: smaller buffers do not use a slot
_HEAD = 2**16  # bytes of a region's head, a page on every system: a record for each slot
_RECORD = 32  # bytes of a record: counters that one side writes and the other reads
_FILLED, _RETURNED, _IN_USE = 0, 8, 16  # written by workers: fills; by loops: parts released, in use
_UNKNOWN = -2  # region: not requested yet
_NUMBER = struct.Struct("<Q")
_REGION = _HEAD + _SLOTS * _SLOT
_Whole = ctypes.c_ubyte * _SLOT
# An open file description lock (fcntl F_OFD_SETLK): forked processes share it.
_LOCK = struct.Struct("hhqqi4x")
_T = TypeVar("_T")
SlotPlace = tuple[int, int, int]  # region, slot, and the slot's number of fills


class Arena:
    """The shared memory of one dataset, created before its workers."""

    def __init__(self, file: int = -1) -> None:
        """`file`: the descriptor of an arena of another process."""
        self._file = _create_file() if file < 0 else file
        # By process, created by its first thread. A forked process keeps its parent's entries: closing their maps
        # would release its own lock on a region, as POSIX file locks do.
        self._filling: dict[int, _WorkerSlots] = {}
        self._reading: dict[int, _LoopSlots] = {}
        if self._file >= 0:
            weakref.finalize(self, os.close, self._file)

    # In a worker.

    def memory(self, nbytes: int) -> pa.Buffer:
        """Return memory to receive `nbytes` bytes: a slot, or Arrow's own memory."""
        slot = self._own_slots().room(nbytes, spare=_SPARE) if nbytes >= _LEAST else None
        return pa.allocate_buffer(nbytes) if slot is None else slot

    def room(self, nbytes: int) -> pa.Buffer | None:
        """Return a slot for a joined batch; None if none is free."""
        return self._own_slots().room(nbytes)

    def place(self, start: int, stop: int) -> tuple[SlotPlace, int] | None:
        """Return the slot, and the place in it, of memory that this process holds; None if it lies elsewhere."""
        return self._own_slots().place(start, stop)

    def count_sent(self, place: SlotPlace) -> None:
        """Count a part of a slot that is sent: the loop takes each part by itself."""
        self._own_slots().count_sent(place)

    # In the loop.

    def take(self, place: SlotPlace) -> Any:
        """Return what a worker stored there, as an object with a buffer; the worker may reuse it once it is released.

        Raises:
            Broken: something else lies there, because the worker has ended.
        """
        return _for_this_process(self._reading, lambda: _LoopSlots(self._file)).take(place)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pass the memory to a worker that is being started; any other copy has its own memory."""
        from multiprocessing.context import get_spawning_popen
        from multiprocessing.reduction import DupFd

        if get_spawning_popen() is None or self._file < 0:
            return Arena, ()
        return _rebuild_arena, (DupFd(self._file),)

    def _own_slots(self) -> _WorkerSlots:
        return _for_this_process(self._filling, lambda: _WorkerSlots(self._file))


def _for_this_process(kept: dict[int, _T], make: Callable[[], _T]) -> _T:
    """Return the same object to all threads of this process."""
    if (here := kept.get(os.getpid())) is None:
        here = kept.setdefault(os.getpid(), make())
    return here


class _WorkerSlots:
    """The region that this process fills; no other process does while it lives. One thread receives, another sends."""

    def __init__(self, file: int) -> None:
        self._file = file
        self._lock = threading.RLock()  # a buffer may be released in any thread, also in one that holds the lock
        self._had: dict[int, weakref.ref[Any]] = {}  # slots that are in use in this process
        self._sent: dict[int, int] = {}  # parts sent to the loop, by slot that this process filled
        self._region = _UNKNOWN

    def room(self, nbytes: int, *, spare: int = 0) -> pa.Buffer | None:
        """Return memory of the lowest free slot, if more than `spare` are free: so that few are used."""
        if nbytes > _SLOT:
            return None
        with self._lock:
            if self._region == _UNKNOWN:
                self._begin()
            if self._region < 0:
                return None
            free = [slot for slot in range(_SLOTS) if self._is_free(slot)]
            for slot in free[: len(free) - spare]:
                if _is_locked(self._file, self._region, slot):
                    continue
                _write(self._memory, slot, _FILLED, _read(self._memory, slot, _FILLED) + 1)
                if slot in self._sent or not _read(self._memory, slot, _IN_USE):  # else a loop has just taken it
                    return self._fill_slot(slot, nbytes)
        return None

    def _begin(self) -> None:
        """Reserve this process's region; without one there is no room."""
        if (region := _lock_region(self._file)) >= 0:
            try:
                self._memory = _map_region(self._file, region)
            except OSError:  # addresses or descriptors may be exhausted
                region = -1
            else:
                self._first = ctypes.addressof(_Whole.from_buffer(self._memory, _HEAD))
        self._region = region

    def _is_free(self, slot: int) -> bool:
        if slot in self._had:
            return False
        if _read(self._memory, slot, _IN_USE):
            return False
        # Another worker, which has ended, filled it: its other parts will not be taken.
        return slot not in self._sent or self._sent[slot] == _read(self._memory, slot, _RETURNED)

    def _fill_slot(self, slot: int, nbytes: int) -> pa.Buffer:
        _write(self._memory, slot, _RETURNED, 0)
        self._sent[slot] = 0
        start = _HEAD + slot * _SLOT
        whole = memoryview(self._memory)[start : start + nbytes]  # a ctypes array would create a type for each size
        had = self._had

        def let_go(_: object) -> None:
            had.pop(slot, None)

        had[slot] = weakref.ref(whole, let_go)
        return pa.py_buffer(whole)

    def place(self, start: int, stop: int) -> tuple[SlotPlace, int] | None:
        if not self._had:
            return None
        slot, at = divmod(start - self._first, _SLOT)
        if slot not in self._had or at + stop - start > _SLOT:
            return None
        return (self._region, slot, _read(self._memory, slot, _FILLED)), at

    def count_sent(self, place: SlotPlace) -> None:
        with self._lock:
            self._sent[place[1]] += 1


class _HeldSlot:
    """A slot that the loop holds, and the number of its parts that have arrived."""

    def __init__(self, whole: Any, came: int, let_go: Callable[[object], None]) -> None:
        self.whole = weakref.ref(whole, let_go)
        self.came = came


class _LoopSlots:
    """The slots that a loop holds, in any of its threads."""

    def __init__(self, file: int) -> None:
        self.process = os.getpid()
        self._file = file
        self._lock = threading.RLock()  # as above
        self._maps: dict[int, mmap.mmap] = {}
        self._held: dict[SlotPlace, _HeldSlot] = {}
        self._lent: list[int] = []  # descriptors, during a fork
        self._kept: list[Any] = []
        _LOOPS.add(self)

    def take(self, place: SlotPlace) -> Any:
        region, slot, filled = place
        with self._lock:
            if region not in self._maps:
                self._maps[region] = _map_region(self._file, region)
            memory, held = self._maps[region], self._held.get(place)
            if held is not None and (whole := held.whole()) is not None:
                held.came += 1
                return whole
            before = _read(memory, slot, _IN_USE)
            _write(memory, slot, _IN_USE, 1)  # before the check: a new worker writes first and checks after
            if _read(memory, slot, _FILLED) != filled:
                _write(memory, slot, _IN_USE, before)
                raise Broken(
                    "the worker that read this batch has ended, and its memory is reused; begin the epoch anew"
                )
            whole = _Whole.from_buffer(memory, _HEAD + slot * _SLOT)
            # A release in another thread, which waits for the lock, has not written its count yet.
            came = 1 + (_read(memory, slot, _RETURNED) if held is None else held.came)
            self._held[place] = _HeldSlot(whole, came, self._on_release(place, memory))
            return whole

    def lend(self) -> None:
        """Before a fork: keep the held slots in use as long as the new process, or one forked from it, lives."""
        if self.process != os.getpid():
            return
        with self._lock:
            held = {place: whole for place, slot in self._held.items() if (whole := slot.whole()) is not None}
            if held:
                try:
                    self._lent.append(_lock_slots(self._file, [place[:2] for place in held]))
                except OSError:  # no /proc, or no such locks: the end of that process cannot be seen
                    self._kept += held.values()

    def unlock(self) -> None:
        """After a fork: leave the locks to the other process alone."""
        while self._lent:
            os.close(self._lent.pop())

    def _on_release(self, place: SlotPlace, memory: mmap.mmap) -> Callable[[object], None]:
        """Return the callback for a slot that is no longer used. It binds its own names, because the module's may be
        gone at interpreter exit."""
        process, lock, held, write = self.process, self._lock, self._held, _NUMBER.pack_into
        returned, in_use = (place[1] * _RECORD + what for what in (_RETURNED, _IN_USE))

        def let_go(ended: object, pid: Callable[[], int] = os.getpid) -> None:
            if pid() != process:  # released in a forked process; this one still holds it
                return
            with lock:
                if (slot := held.get(place)) is not None and slot.whole is ended:  # else it was taken again
                    del held[place]
                    write(memory, returned, slot.came)
                    write(memory, in_use, 0)

        return let_go


_LOOPS: weakref.WeakSet[_LoopSlots] = weakref.WeakSet()


def _lend_all() -> None:
    for reading in list(_LOOPS):
        reading.lend()


def _return_all() -> None:
    for reading in list(_LOOPS):
        reading.unlock()


if hasattr(os, "memfd_create"):
    os.register_at_fork(before=_lend_all, after_in_parent=_return_all)


def _lock_slots(file: int, slots: list[tuple[int, int]]) -> int:
    """Return a new descriptor with a lock for each slot. Raises: OSError."""
    import fcntl

    own = os.open(f"/proc/self/fd/{file}", os.O_RDWR | os.O_CLOEXEC)
    try:
        for region, slot in slots:
            lock = _LOCK.pack(fcntl.F_RDLCK, os.SEEK_SET, _lock_offset(region, slot), 1, 0)
            fcntl.fcntl(own, fcntl.F_OFD_SETLK, lock)
    except BaseException:
        os.close(own)
        raise
    return own


def _is_locked(file: int, region: int, slot: int) -> bool:
    """Return whether a process that was forked from a loop holds the slot."""
    import fcntl

    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, _lock_offset(region, slot))
    except OSError:
        return True
    fcntl.lockf(file, fcntl.LOCK_UN, 1, _lock_offset(region, slot))
    return False


def _lock_offset(region: int, slot: int) -> int:
    """Return the byte of the file that stands for a slot's lock; regions have the bytes before."""
    return _REGIONS + region * _SLOTS + slot


def _read(memory: mmap.mmap, slot: int, what: int) -> int:
    return int(_NUMBER.unpack_from(memory, slot * _RECORD + what)[0])


def _write(memory: mmap.mmap, slot: int, what: int, number: int) -> None:
    _NUMBER.pack_into(memory, slot * _RECORD + what, number)


def _map_region(file: int, region: int) -> mmap.mmap:
    return mmap.mmap(file, _REGION, offset=region * _REGION)


def _create_file() -> int:
    if not hasattr(os, "memfd_create"):
        return -1
    file = -1
    try:
        file = os.memfd_create("hanse-batches", os.MFD_CLOEXEC)
        os.ftruncate(file, _REGIONS * _REGION)
    except OSError:  # a limit on the size or the number of files
        if file >= 0:
            os.close(file)
        return -1
    return file


def _rebuild_arena(file: Any) -> Arena:
    return Arena(file.detach())


def _lock_region(file: int) -> int:
    """Lock and return the first free region; -1 if all are locked. The lock ends with its process."""
    if file < 0:
        return -1
    import fcntl

    for region in range(_REGIONS):
        with suppress(OSError):
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, region)
            return region
    return -1
