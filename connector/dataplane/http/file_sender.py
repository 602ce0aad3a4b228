"""Sends parts of files and buffers to a socket without copying: vectored writes of what the kernel takes now.

Must not know HTTP or the reader; `vectored_body` sends HTTP/1.1 chunks with it.
"""

from __future__ import annotations

import asyncio
import errno
import mmap
import os
import select
import socket
import time
from collections import deque
from collections.abc import Iterable, Sequence
from contextlib import suppress
from itertools import islice

from connector.dataplane.http.send_threads import TURN

_WINDOW = 8 * 2**20  # bytes of a file that are mapped at a time: whole huge pages, where the cache has them
_PATIENCE = 0.02  # seconds that a thread waits for its reader: threads are few, and other streams wait
_AT_ONCE = 512  # parts in one call: half of IOV_MAX

OutgoingPart = tuple[int, int, int] | bytes | memoryview  # part of a file: descriptor, offset, bytes
OutgoingParts = Sequence[OutgoingPart]


class SendTurn:
    """One turn of a sending thread, and how long it may wait for its reader."""

    def __init__(self, out: socket.socket) -> None:
        self._poll = select.poll()
        self._poll.register(out, select.POLLOUT)
        self._ends = time.monotonic() + TURN

    @property
    def remaining_s(self) -> float:
        """Seconds that it may wait now."""
        return min(_PATIENCE, self._ends - time.monotonic())

    @property
    def over(self) -> bool:
        return time.monotonic() >= self._ends

    def writable(self) -> bool:
        """Wait until the reader takes more. Returns False where that takes too long."""
        left = self.remaining_s
        return left > 0 and bool(self._poll.poll(left * 1000))


class Window:
    """A mapped part of a file, from which a thread sends. Only the kernel reads it.

    If the file was cut short meanwhile, the kernel returns EFAULT, and this process gets no bus error. Windows begin at
    multiples of their size, so that huge pages of the page cache are mapped by one entry each.
    """

    def __init__(self) -> None:
        self._number, self._start = -1, 0
        self._data = memoryview(b"")

    def of(self, number: int, at: int, most: int) -> memoryview:
        """Return between one and `most` bytes of the file. Raises: EOFError where it has none there."""
        if number != self._number or not self._start <= at < self._start + len(self._data):
            self._number, self._start = number, at - at % _WINDOW
            self._data = _map_window(number, self._start)
        if not (found := self._data[at - self._start :][:most]):
            raise file_cut_error()
        return found


def _map_window(number: int, start: int) -> memoryview:
    """Map a window of a file, unmapped with its last view. This process must not read it."""
    size = min(_WINDOW, os.fstat(number).st_size - start)
    if size <= 0:
        raise file_cut_error()
    try:
        held = mmap.mmap(number, size, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ, offset=start)
    except ValueError:  # the file has become shorter
        raise file_cut_error() from None
    with suppress(OSError):  # not on every kernel
        held.madvise(mmap.MADV_HUGEPAGE)  # reads ahead in huge pages
    return memoryview(held)


def file_cut_error() -> EOFError:
    return EOFError("expected a file as long as before, got a shorter one")


class Outgoing:
    """Parts of files, and buffers, in order: what is still to be sent."""

    def __init__(self, parts: Iterable[OutgoingPart] = ()) -> None:
        self.left: deque[OutgoingPart] = deque(parts)

    def push(self, out: socket.socket, window: Window, wait: SendTurn | None = None) -> bool:
        """Send until everything was sent (True), or the reader blocks or the turn is over (False).

        Raises: ConnectionAbortedError where the client has left. EOFError where a file was cut short. OSError (EFAULT)
        where the file is long enough and cannot be read.
        """
        while self.left or self._refill():
            try:
                self._drop(out.sendmsg(self._take_parts(window)))
                if self.left and wait is not None and wait.over:
                    return False
            except BlockingIOError:
                if wait is None or not wait.writable():
                    return False
            except OSError as error:
                if error.errno != errno.EFAULT:  # any other error is the connection's
                    raise ConnectionAbortedError("the client has left") from error
                check_lengths(self.left)
                raise  # long enough, and cannot be read
        return True

    def _refill(self) -> bool:
        """Return whether there is more to send."""
        return False

    def _take_parts(self, window: Window) -> list[bytes | memoryview]:
        """Return the parts for one call; the last one ends where the window of its file does."""
        found: list[bytes | memoryview] = []
        for part in islice(self.left, _AT_ONCE):
            if not isinstance(part, tuple):
                found.append(part)
                continue
            found.append(window.of(*part))
            if len(found[-1]) < part[2]:
                break
        return found

    def _drop(self, sent: int) -> None:
        """Remove what was sent."""
        while self.left and sent >= (size := size_of(self.left[0])):
            self.left.popleft()
            sent -= size
        if sent:
            part = self.left[0]
            rest = (part[0], part[1] + sent, part[2] - sent) if isinstance(part, tuple) else memoryview(part)[sent:]
            self.left[0] = rest


def check_lengths(parts: Iterable[OutgoingPart]) -> None:
    """Raises: EOFError where a file does not reach as far as its parts: the rest of its last page would be zeros."""
    ends: dict[int, int] = {}
    for part in parts:
        if isinstance(part, tuple):
            number, at, size = part
            ends[number] = max(ends.get(number, 0), at + size)
    if any(os.fstat(number).st_size < end for number, end in ends.items()):
        raise file_cut_error()


def size_of(part: OutgoingPart) -> int:
    """Return the bytes of a part."""
    return part[2] if isinstance(part, tuple) else len(part)


async def wait_writable(out: socket.socket) -> None:
    """Wait until the socket, which has no transport, takes more."""
    loop = asyncio.get_running_loop()
    free = asyncio.Event()
    loop.add_writer(out.fileno(), free.set)
    try:
        await free.wait()
    finally:
        loop.remove_writer(out.fileno())
