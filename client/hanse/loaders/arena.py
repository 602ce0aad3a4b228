"""Memory that a process shares with the workers that it starts: they fill slots of it, it reads them where they are.

PyTorch's own way makes a file for each batch, asks for it over a socket, and has the kernel clear and map its pages
anew. Here the pages stay: a slot is filled again when nothing of its last batch is in use. Linux only; elsewhere, or
where no slot is free or large enough, `room` says so and the caller goes another way.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import struct
import weakref
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from hanse.errors import Broken

_REGIONS = 256  # a worker fills one: loaders, times their workers, that live at once
_SLOTS = 8  # in each: batches that a loop holds or that wait for it; untouched ones take no memory
_SLOT = 32 * 2**20
_HEAD = 4096  # of a region: the state of each of its slots, and how often somebody began to fill it
_BEGUN = struct.Struct("<Q")
_BEGUN_AT = 64
_REGION = _HEAD + _SLOTS * _SLOT
_FREE, _SENT, _READ = 0, 1, 2
Place = tuple[int, int, int]  # region, slot, and how often somebody had begun to fill the region


class Arena:
    """One per dataset, made before its workers are."""

    def __init__(self, file: int = -1) -> None:
        """`file`: the descriptor of one that was made elsewhere."""
        self._file = _made() if file < 0 else file
        self._maps: dict[int, mmap.mmap] = {}
        self._held: dict[Place, weakref.ref[Any]] = {}
        self._ours = (0, -1)  # a process, and the region that it fills
        if self._file >= 0:
            weakref.finalize(self, os.close, self._file)

    def room(self, nbytes: int) -> tuple[Place, memoryview] | None:
        """A slot that is ours to fill, and its memory; None where there is none."""
        if nbytes > _SLOT or (region := self._region()) < 0:
            return None
        memory = self._map(region)
        for slot in range(_SLOTS):
            if memory[slot] == _FREE:
                memory[slot] = _SENT
                start = _HEAD + slot * _SLOT
                return (region, slot, _begun(memory)), memoryview(memory)[start : start + _SLOT]
        return None

    def give_back(self, place: Place) -> None:
        """What was not sent after all."""
        region, slot, _ = place
        self._map(region)[slot] = _FREE

    def take(self, place: Place, nbytes: int) -> Any:
        """What a worker has put there, as an object with a buffer; the slot is free when nobody has any of it. Broken
        where another one fills that memory by now: the worker is gone."""
        region, slot, begun = place
        memory, taker = self._map(region), os.getpid()
        if _begun(memory) != begun:
            raise Broken("the worker that read this batch is gone, and its memory is another's; begin the epoch anew")
        memory[slot] = _READ
        whole = (ctypes.c_ubyte * nbytes).from_buffer(memory, _HEAD + slot * _SLOT)

        # Its own names for what it needs: when the interpreter ends, ours are gone before the last batch is.
        def let_go(_: object, pid: Callable[[], int] = os.getpid, free: int = _FREE) -> None:
            if pid() == taker:  # what a process forked from us forgets, we have
                del self._held[place]
                memory[slot] = free

        self._held[place] = weakref.ref(whole, let_go)
        return whole

    def __reduce__(self) -> tuple[Any, ...]:
        """To a worker that is being started; a copy that goes anywhere else has memory of its own."""
        from multiprocessing.context import get_spawning_popen
        from multiprocessing.reduction import DupFd

        if get_spawning_popen() is None or self._file < 0:
            return Arena, ()
        return _brought, (DupFd(self._file),)

    def _map(self, region: int) -> mmap.mmap:
        if region not in self._maps:
            self._maps[region] = mmap.mmap(self._file, _REGION, offset=region * _REGION)
        return self._maps[region]

    def _region(self) -> int:
        """The region that this process fills: nobody else does while it lives."""
        if self._ours[0] != os.getpid():
            self._ours = os.getpid(), _locked(self._file)
            if self._ours[1] >= 0:
                memory = self._map(self._ours[1])
                _BEGUN.pack_into(memory, _BEGUN_AT, _begun(memory) + 1)
                for slot in range(_SLOTS):
                    if memory[slot] == _SENT:  # by a worker that is gone, to a loop that did not come to it
                        memory[slot] = _FREE
        return self._ours[1]


def _begun(memory: mmap.mmap) -> int:
    return int(_BEGUN.unpack_from(memory, _BEGUN_AT)[0])


def _made() -> int:
    if not hasattr(os, "memfd_create"):
        return -1
    with suppress(OSError):
        file = os.memfd_create("hanse-batches", os.MFD_CLOEXEC)
        os.ftruncate(file, _REGIONS * _REGION)
        return file
    return -1


def _brought(file: Any) -> Arena:
    return Arena(file.detach())


def _locked(file: int) -> int:
    """The first region that no living process fills; -1 where there is none. A lock goes with its process."""
    if file < 0:
        return -1
    import fcntl

    for region in range(_REGIONS):
        with suppress(OSError):
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, region)
            return region
    return -1
