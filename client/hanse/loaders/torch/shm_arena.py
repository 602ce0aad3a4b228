"""Memory that a process shares with the workers that it starts: what they receive lies where it reads it.

PyTorch's own way makes a file for each batch, asks for it over a socket, and has the kernel clear and map its pages
anew. Here the pages stay: a slot is filled again when nothing of what lay in it is in use, in the worker or the loop.
A process that is forked from the loop has what the loop had: its slots wait for that process too (`_lend_all`).
Linux only; elsewhere, or where no slot is free or large enough, `room` says so and the caller goes another way.
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

_REGIONS = 256  # a worker fills one: loaders, times their workers, that live at once
_SLOTS = 32  # in each: what waits or is held, as it came over the network; untouched ones take no memory
_SLOT = TOGETHER_MAX
_SPARE = 8  # slots that nothing is received into, so that what is put together anew finds room
_LEAST = 2**18  # bytes that are worth a slot
_HEAD = 2**16  # of a region, a page on every system: a record for each slot,
_RECORD = 32  # of numbers that one side writes and the other reads:
_FILLED, _RETURNED, _IN_USE = 0, 8, 16  # by workers how often; by loops how many parts came back; whether they have any
_UNKNOWN = -2  # region: nobody has asked for room
_NUMBER = struct.Struct("<Q")
_REGION = _HEAD + _SLOTS * _SLOT
_Whole = ctypes.c_ubyte * _SLOT
# A record of a lock that belongs to an open file, not to a process, and so to those that are forked too.
_LOCK = struct.Struct("hhqqi4x")
_T = TypeVar("_T")
SlotPlace = tuple[int, int, int]  # region, slot, and how often the slot had been filled


class Arena:
    """One per dataset, made before its workers are."""

    def __init__(self, file: int = -1) -> None:
        """`file`: the descriptor of one that was made elsewhere."""
        self._file = _create_file() if file < 0 else file
        # By process, and begun by whichever of its threads comes first. Those that a process was forked with stay:
        # to close what they have mapped would take its own lock on a region from it, as locks of files go.
        self._filling: dict[int, _WorkerSlots] = {}
        self._reading: dict[int, _LoopSlots] = {}
        if self._file >= 0:
            weakref.finalize(self, os.close, self._file)

    # In a worker.

    def memory(self, nbytes: int) -> pa.Buffer:
        """Where to receive so many bytes: a slot, or Arrow's own memory where there is none."""
        found = self._own_slots().room(nbytes, spare=_SPARE) if nbytes >= _LEAST else None
        return pa.allocate_buffer(nbytes) if found is None else found

    def room(self, nbytes: int) -> pa.Buffer | None:
        """A slot to put something together in; None where there is none."""
        return self._own_slots().room(nbytes)

    def place(self, start: int, stop: int) -> tuple[SlotPlace, int] | None:
        """In which slot memory from one address to another lies, and where; None where it lies elsewhere. Somebody here
        must have it."""
        return self._own_slots().place(start, stop)

    def count_sent(self, place: SlotPlace) -> None:
        """A part of what lies there is on its way: the loop takes each by itself."""
        self._own_slots().count_sent(place)

    # In the loop.

    def take(self, place: SlotPlace) -> Any:
        """What a worker has put there, as an object with a buffer; it is the worker's again when nobody has any of it.
        Broken where something else lies there by now: the worker is gone."""
        return _for_this_process(self._reading, lambda: _LoopSlots(self._file)).take(place)

    def __reduce__(self) -> tuple[Any, ...]:
        """To a worker that is being started; a copy that goes anywhere else has memory of its own."""
        from multiprocessing.context import get_spawning_popen
        from multiprocessing.reduction import DupFd

        if get_spawning_popen() is None or self._file < 0:
            return Arena, ()
        return _rebuild_arena, (DupFd(self._file),)

    def _own_slots(self) -> _WorkerSlots:
        return _for_this_process(self._filling, lambda: _WorkerSlots(self._file))


def _for_this_process(kept: dict[int, _T], make: Callable[[], _T]) -> _T:
    """The same for all threads, whichever asks first."""
    if (here := kept.get(os.getpid())) is None:
        here = kept.setdefault(os.getpid(), make())
    return here


class _WorkerSlots:
    """The region that a process fills: nobody else does while it lives. One thread receives, another sends."""

    def __init__(self, file: int) -> None:
        self._file = file
        self._lock = threading.RLock()  # the end of a buffer comes in any thread, also in one that has the lock
        self._had: dict[int, weakref.ref[Any]] = {}  # slots that somebody here has
        self._sent: dict[int, int] = {}  # of those that we have filled: parts that went to the loop
        self._region = _UNKNOWN

    def room(self, nbytes: int, *, spare: int = 0) -> pa.Buffer | None:
        """Memory of a slot, where more than `spare` are free: the lowest, so that few are touched."""
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
                if slot in self._sent or not _read(self._memory, slot, _IN_USE):  # else a loop came to it right now
                    return self._fill_slot(slot, nbytes)
        return None

    def _begin(self) -> None:
        """Once, as there is one region for a process; where it cannot be had, there is no room."""
        if (region := _lock_region(self._file)) >= 0:
            try:
                self._memory = _map_region(self._file, region)
            except OSError:  # of addresses or descriptors there may be no more
                region = -1
            else:
                self._first = ctypes.addressof(_Whole.from_buffer(self._memory, _HEAD))
        self._region = region

    def _is_free(self, slot: int) -> bool:
        if slot in self._had:
            return False
        if _read(self._memory, slot, _IN_USE):
            return False
        # One that we have not filled is of a worker that is gone: the rest of it will not be asked for.
        return slot not in self._sent or self._sent[slot] == _read(self._memory, slot, _RETURNED)

    def _fill_slot(self, slot: int, nbytes: int) -> pa.Buffer:
        _write(self._memory, slot, _RETURNED, 0)
        self._sent[slot] = 0
        start = _HEAD + slot * _SLOT
        whole = memoryview(self._memory)[start : start + nbytes]  # an array of ctypes would leave a type for each size
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
    """What a loop has of a slot, and how many parts of it have come."""

    def __init__(self, whole: Any, came: int, let_go: Callable[[object], None]) -> None:
        self.whole = weakref.ref(whole, let_go)
        self.came = came


class _LoopSlots:
    """What a loop has of its workers' slots, in whichever of its threads."""

    def __init__(self, file: int) -> None:
        self.process = os.getpid()
        self._file = file
        self._lock = threading.RLock()  # as above
        self._maps: dict[int, mmap.mmap] = {}
        self._held: dict[SlotPlace, _HeldSlot] = {}
        self._lent: list[int] = []  # descriptors, while we fork
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
            _write(memory, slot, _IN_USE, 1)  # before we look: a new worker looks after it has written
            if _read(memory, slot, _FILLED) != filled:
                _write(memory, slot, _IN_USE, before)
                raise Broken("the worker that read this is gone, and its memory is another's; begin the epoch anew")
            whole = _Whole.from_buffer(memory, _HEAD + slot * _SLOT)
            # One that has ended in another thread, which waits for us, has not said yet how many came.
            came = 1 + (_read(memory, slot, _RETURNED) if held is None else held.came)
            self._held[place] = _HeldSlot(whole, came, self._on_release(place, memory))
            return whole

    def lend(self) -> None:
        """Before we fork: what is held here is in use as long as the new process, or one forked from it, lives."""
        if self.process != os.getpid():
            return
        with self._lock:
            held = {place: whole for place, one in self._held.items() if (whole := one.whole()) is not None}
            if held:
                try:
                    self._lent.append(_lock_slots(self._file, [place[:2] for place in held]))
                except OSError:  # no /proc, or no such locks: nobody can say when that process ends
                    self._kept += held.values()

    def unlock(self) -> None:
        """After we forked: the locks are the other process's alone."""
        while self._lent:
            os.close(self._lent.pop())

    def _on_release(self, place: SlotPlace, memory: mmap.mmap) -> Callable[[object], None]:
        """What is to be done when nobody has anything of a slot. With its own names for what it needs: when the
        interpreter ends, ours are gone before the last batch is."""
        process, lock, held, write = self.process, self._lock, self._held, _NUMBER.pack_into
        returned, in_use = (place[1] * _RECORD + what for what in (_RETURNED, _IN_USE))

        def let_go(ended: object, pid: Callable[[], int] = os.getpid) -> None:
            if pid() != process:  # what a process forked from us forgets, we have
                return
            with lock:
                if (one := held.get(place)) is not None and one.whole is ended:  # else it was taken again meanwhile
                    del held[place]
                    write(memory, returned, one.came)
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
    """A descriptor of its own with a lock for each slot. OSError where there is none."""
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
    """Whether a process that was forked from a loop has something of a slot."""
    import fcntl

    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, _lock_offset(region, slot))
    except OSError:
        return True
    fcntl.lockf(file, fcntl.LOCK_UN, 1, _lock_offset(region, slot))
    return False


def _lock_offset(region: int, slot: int) -> int:
    """The byte of the file whose lock is for a slot; those before are for regions."""
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
    except OSError:  # a limit on the size of files, or on their number
        if file >= 0:
            os.close(file)
        return -1
    return file


def _rebuild_arena(file: Any) -> Arena:
    return Arena(file.detach())


def _lock_region(file: int) -> int:
    """The first region that no living process fills; -1 where there is none. A lock goes with its process."""
    if file < 0:
        return -1
    import fcntl

    for region in range(_REGIONS):
        with suppress(OSError):
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, region)
            return region
    return -1
