"""Ring of shared memory between a worker and the connector: batches are written there once and sent from there.

Both ends map the same sealed memory file, which is divided into slots. A worker's next job reuses the file, whose pages
exist already, unless a slot of it is still in use. The worker fills a free slot and names it in a frame; the connector
passes it on as a memoryview. When the last holder releases that view (the transport, once the kernel has the bytes),
the slot number goes back over the job's socket and the slot may be filled again. So a batch is copied once, does not
change while it is sent, and the slots bound what is in flight. Standard library only: both ends import it.
"""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import threading
import weakref
from collections.abc import Callable

_PAGE = mmap.PAGESIZE
# Rings with a slot in use. The callback for its return is held by the ring alone: a collector of
# garbage that found both at once would never say so, and the memory would stay open.
_HELD: set[Ring] = set()


def slot_bytes(batch_bytes: int) -> int:
    """Return room for a batch of twice the target size with its metadata; a larger one goes over the socket."""
    return -(-(2 * batch_bytes + 2**16) // _PAGE) * _PAGE


class Ring:
    """The connector's end. It owns the memory file; `descriptor` goes to the worker and may be closed afterwards."""

    def __init__(self, slots: int, size: int, *, released: Callable[[int], None]) -> None:
        """`released` gets the number of each slot that comes back. A new one applies to slots taken from then on."""
        self.slots, self.size = slots, size
        self.released = released
        self._lock = threading.RLock()  # a collector of garbage may let go of a slot in the middle of anything
        self._then: Callable[[], None] | None = None
        self._resting = True  # no page of it is in memory
        self._kinds: dict[int, weakref.ref[ctypes.Array[ctypes.c_ubyte]]] = {}
        self._slot_type = ctypes.c_ubyte * size
        self._memory: mmap.mmap | None = None
        self.descriptor = os.memfd_create("hanse-ring", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            os.ftruncate(self.descriptor, slots * size)
            # A worker that is not itself any more cannot cut the memory off under us.
            seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL
            fcntl.fcntl(self.descriptor, fcntl.F_ADD_SEALS, seals)
            self._memory = mmap.mmap(self.descriptor, slots * size)
        except BaseException:
            self.close()
            raise

    @property
    def in_use(self) -> int:
        """Number of slots in use. Slots are taken and released in any thread."""
        return len(self._kinds)

    def take(self, slot: int, length: int) -> memoryview:
        """Return the bytes of a slot that the worker has filled.

        Raises: ValueError where there is no such slot or it is in use.
        """
        if self._memory is None or not 0 <= slot < self.slots or length > self.size or slot in self._kinds:
            raise ValueError("expected a free slot of the ring and a length that fits")
        whole, released = self._slot_type.from_buffer(self._memory, slot * self.size), self.released
        with self._lock:
            _HELD.add(self)
            self._kinds[slot] = weakref.ref(whole, lambda _: self._let_go(slot, released))
        self._resting = False
        return memoryview(whole).cast("B")[:length].toreadonly()

    def when_free(self, act: Callable[[], None]) -> None:
        """Call `act` once when no slot is in use: now, or in the thread that releases the last one."""
        self._then = act
        self._tell_free()

    def rest(self) -> None:
        """Give the memory back to the system until it is written again. Only while no slot is in use."""
        if self._memory is not None and not self._resting:
            self._memory.madvise(mmap.MADV_REMOVE)
            self._resting = True

    def close(self) -> None:
        """Close the file; the memory itself is freed with the last view of it.

        The ring has its own descriptor. Its holder and the ring may refer to each other, so the file is closed here:
        otherwise both would stay open until the garbage collector runs.
        """
        self._memory = None
        descriptor, self.descriptor = self.descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def _let_go(self, slot: int, released: Callable[[int], None]) -> None:
        with self._lock:
            del self._kinds[slot]
            if not self._kinds:
                _HELD.discard(self)
        released(slot)
        self._tell_free()

    def _tell_free(self) -> None:
        with self._lock:
            if self._kinds or self._then is None:
                return
            then, self._then = self._then, None
        then()
