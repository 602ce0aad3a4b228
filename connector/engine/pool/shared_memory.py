"""Memory that a worker and the connector share for one job: batches are written there once and sent from there.

Both ends map the same sealed memory file, cut into slots; a worker's next job gets the same one, whose pages are there
already, unless somebody still holds a slot of it. The worker fills a free slot and names it in a frame; the
connector hands it on as a memoryview. When the last holder of that view lets go (the transport, once the kernel has
the bytes), the slot goes back over the job's socket and may be filled again. So a batch is copied once by us, nothing
changes while it is being sent, and what is in flight is bounded by the slots. Standard library only: both ends load it.
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
# Rings of which somebody holds a slot. What tells us that it comes back is held by the ring alone: a collector of
# garbage that found both at once would never say so, and the memory would stay open.
_HELD: set[Ring] = set()


def slot_bytes(batch_bytes: int) -> int:
    """Room for a batch of up to twice the size aimed at, with its metadata; what is larger goes over the socket."""
    return -(-(2 * batch_bytes + 2**16) // _PAGE) * _PAGE


class Ring:
    """The connector's end. It owns the memory file; `descriptor` goes to the worker and may be closed then."""

    def __init__(self, slots: int, size: int, *, released: Callable[[int], None]) -> None:
        """`released` is told the slots that come back; one for another job hears of those taken from then on."""
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
    def held(self) -> int:
        """Slots that somebody holds. They are taken and let go of in any thread."""
        return len(self._kinds)

    def take(self, slot: int, length: int) -> memoryview:
        """The bytes in a slot that the worker has filled. ValueError where there is no such slot or it is held."""
        if self._memory is None or not 0 <= slot < self.slots or length > self.size or slot in self._kinds:
            raise ValueError("expected a free slot of the ring and a length that fits")
        whole, released = self._slot_type.from_buffer(self._memory, slot * self.size), self.released
        with self._lock:
            _HELD.add(self)
            self._kinds[slot] = weakref.ref(whole, lambda _: self._let_go(slot, released))
        self._resting = False
        return memoryview(whole).cast("B")[:length].toreadonly()

    def when_free(self, act: Callable[[], None]) -> None:
        """Call `act` once when nobody holds a slot: now, or in the thread that lets go of the last one."""
        self._then = act
        self._tell_free()

    def rest(self) -> None:
        """Give the memory back to the machine until somebody writes there again. Only while nobody holds a slot."""
        if self._memory is not None and not self._resting:
            self._memory.madvise(mmap.MADV_REMOVE)
            self._resting = True

    def close(self) -> None:
        """Close the file; the memory itself goes when the last view of it does.

        It has a descriptor of its own, and whoever holds us may be held by us: so it is let go of here, not with us,
        or both would stay until the collector of garbage comes by.
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
