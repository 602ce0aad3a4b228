"""Parts of files and buffers on their way to a socket, as they lie: a gathered write of what the kernel takes now.

Knows neither HTTP nor who reads; `vectored_body` sends chunks of HTTP/1.1 with it.
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

_WINDOW = 8 * 2**20  # bytes of a file that are mapped while they are sent: whole huge pages, where the cache has them
_PATIENCE = 0.02  # seconds after which a thread does not wait for its reader: there are few, and others' streams wait
_AT_ONCE = 512  # parts in one call: half of IOV_MAX

OutgoingPart = tuple[int, int, int] | bytes | memoryview  # of a file: descriptor, offset, bytes
OutgoingParts = Sequence[OutgoingPart]


class SendTurn:
    """How long one turn of a thread may wait for its reader."""

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
        """Wait until the reader takes more. False where that is not soon."""
        left = self.remaining_s
        return left > 0 and bool(self._poll.poll(left * 1000))


class Window:
    """Where a thread sends from: a map of a part of a file, which only the kernel looks into.

    Where the file has been cut short meanwhile the kernel says EFAULT, and no bus error meets this process. Windows
    begin at multiples of their size: what the page cache holds in huge pages is mapped by one entry for each.
    """

    def __init__(self) -> None:
        self._number, self._start = -1, 0
        self._data = memoryview(b"")

    def of(self, number: int, at: int, most: int) -> memoryview:
        """At most that many bytes of the file, and one at least. EOFError where it has none there."""
        if number != self._number or not self._start <= at < self._start + len(self._data):
            self._number, self._start = number, at - at % _WINDOW
            self._data = _map_window(number, self._start)
        if not (found := self._data[at - self._start :][:most]):
            raise file_cut_error()
        return found


def _map_window(number: int, start: int) -> memoryview:
    """A window of a file; it is unmapped with the last view of it. Nobody here may look into it."""
    size = min(_WINDOW, os.fstat(number).st_size - start)
    if size <= 0:
        raise file_cut_error()
    try:
        held = mmap.mmap(number, size, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ, offset=start)
    except ValueError:  # said of a length that the file does not have any more
        raise file_cut_error() from None
    with suppress(OSError):  # some kernels have none
        held.madvise(mmap.MADV_HUGEPAGE)  # what is not in memory yet is read ahead in huge pages
    return memoryview(held)


def file_cut_error() -> EOFError:
    return EOFError("expected a file as long as it was, came a shorter one")


class Outgoing:
    """Parts of files, and buffers, in their order: what of them has not gone yet."""

    def __init__(self, parts: Iterable[OutgoingPart] = ()) -> None:
        self.left: deque[OutgoingPart] = deque(parts)

    def push(self, out: socket.socket, window: Window, wait: SendTurn | None = None) -> bool:
        """Send until all has gone (True), or the reader makes us wait, or the turn is over: a slow disk is none that
        hangs. ConnectionAbortedError where the client has left; EOFError where a file has been cut short; OSError
        (EFAULT) where all of it is there and cannot be read."""
        while self.left or self._refill():
            try:
                self._drop(out.sendmsg(self._take_parts(window)))
                if self.left and wait is not None and wait.over:
                    return False
            except BlockingIOError:
                if wait is None or not wait.writable():
                    return False
            except OSError as error:
                if error.errno != errno.EFAULT:  # whatever else it is, it is of the connection
                    raise ConnectionAbortedError("the client has left") from error
                check_lengths(self.left)
                raise  # all of it is there, and cannot be read
        return True

    def _refill(self) -> bool:
        """Whether there is more to send."""
        return False

    def _take_parts(self, window: Window) -> list[bytes | memoryview]:
        """The parts that go in one call, the last as far as a window of its file reaches."""
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
        """What has gone is not left."""
        while self.left and sent >= (size := size_of(self.left[0])):
            self.left.popleft()
            sent -= size
        if sent:
            part = self.left[0]
            rest = (part[0], part[1] + sent, part[2] - sent) if isinstance(part, tuple) else memoryview(part)[sent:]
            self.left[0] = rest


def check_lengths(parts: Iterable[OutgoingPart]) -> None:
    """EOFError where a file does not reach as far as its parts: the end of its last page would be zeros."""
    ends: dict[int, int] = {}
    for part in parts:
        if isinstance(part, tuple):
            number, at, size = part
            ends[number] = max(ends.get(number, 0), at + size)
    if any(os.fstat(number).st_size < end for number, end in ends.items()):
        raise file_cut_error()


def size_of(part: OutgoingPart) -> int:
    """Bytes of a part."""
    return part[2] if isinstance(part, tuple) else len(part)


async def wait_writable(out: socket.socket) -> None:
    """Back when the socket, which no transport has, takes more."""
    loop = asyncio.get_running_loop()
    free = asyncio.Event()
    loop.add_writer(out.fileno(), free.set)
    try:
        await free.wait()
    finally:
        loop.remove_writer(out.fileno())
