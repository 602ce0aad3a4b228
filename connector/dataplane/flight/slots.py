"""The connector's end of the shared memory that batches pass through on their way to the Flight process."""

from __future__ import annotations

import asyncio
import fcntl
import mmap
import os
import select
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial

from connector.dataplane.flight import link
from connector.dataplane.senders import OURS, TURN, in_thread
from connector.query.spans import InFiles

_PAGE = mmap.PAGESIZE
_PATIENCE = 0.01  # seconds after which a thread does not wait for its reader: there are few, and others' streams wait
_FULL_SECONDS = 0.01  # until a full channel is tried again: frames are a few bytes, so that is next to impossible


class Slots:
    """The slots of one stream on its channel, until `close`. One `put` at a time; `left` when the reader has gone."""

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel
        self._out = channel.dup()  # for threads: one that is lost on a disk that hangs keeps it
        self._loop = asyncio.get_running_loop()
        self._memory: list[mmap.mmap | None] = [None] * link.SLOTS
        self._free = list(range(link.SLOTS))
        self._given = asyncio.Event()  # when there may be a free one again
        self._turning: asyncio.Future[bool] | None = None
        self._stopped = self._closed = False
        self.left = asyncio.Event()
        self._listen()

    @property
    def largest(self) -> int:
        """Bytes of the largest slot."""
        return max((len(memory) for memory in self._memory if memory is not None), default=0)

    async def close(self) -> None:
        """Back when nobody here uses the channel any more, however often cancelled: it may be closed then."""
        self._closed = True
        self._stop()
        while self._turning is not None and not self._turning.done():
            with suppress(asyncio.CancelledError):
                await asyncio.wait((self._turning,))
        self._loop.remove_reader(self._channel)
        self._out.close()

    async def put(self, payload: memoryview | bytes) -> None:
        """Hand over a batch, once a slot is free for it."""
        slot, size = await self._one(), memoryview(payload).nbytes
        with self._room(slot, size) as (memory, descriptor):
            memory[:size] = memoryview(payload).cast("B")
            while True:
                if self._told(slot, size, descriptor):
                    return
                await asyncio.sleep(_FULL_SECONDS)

    async def put_spans(self, more: Callable[[], InFiles | None], *, device: int = OURS) -> bool:
        """Hand over what `more` gives: asked in a thread for files on that device, once a slot is free for it and not
        before, it is read to there and nowhere else. Whether it may have more: a thread does not wait long, neither do
        others for it."""
        slot = await self._one()
        self._loop.remove_reader(self._channel)  # the thread takes slots back
        turn = in_thread(partial(self._turn, slot, more), stop=self._stop, device=device, out=self._out)
        self._turning = asyncio.ensure_future(turn)
        try:
            return await self._turning
        finally:
            self._listen()

    def _turn(self, slot: int | None, more: Callable[[], InFiles | None]) -> bool:
        poll, ends = select.poll(), time.monotonic() + TURN
        poll.register(self._out, select.POLLIN)
        while slot is not None and not self._stopped:
            if (span := more()) is None:
                self._free.append(slot)
                return False
            self._read(slot, span)
            slot = None if self._stopped else self._soon(poll, ends)
        return True

    def _read(self, slot: int, span: InFiles) -> None:
        with self._room(slot, span.nbytes) as (memory, descriptor):
            span.check()
            span.read_into(memoryview(memory))
            while not self._stopped and not self._told(slot, span.nbytes, descriptor):
                time.sleep(_FULL_SECONDS)

    def _soon(self, poll: select.poll, ends: float) -> int | None:
        """A slot for another part, where there is one soon enough."""
        left = ends - time.monotonic()
        if left > 0 and not self._free and poll.poll(min(left, _PATIENCE) * 1000):
            self._take_back(self._out)
        return self._free.pop() if left > 0 and self._free else None

    async def _one(self) -> int:
        while not self._free:
            self._given.clear()
            await self._given.wait()
        return self._free.pop()

    def _stop(self) -> None:
        self._stopped = True

    def _listen(self) -> None:
        if not self._closed:
            self._loop.add_reader(self._channel, self._heard)

    def _heard(self) -> None:
        if self._take_back(self._channel):
            self._given.set()
        else:
            self._loop.remove_reader(self._channel)
            self.left.set()

    def _take_back(self, channel: socket.socket) -> bool:
        """Slots that nobody holds any more. False where the reader has gone."""
        try:
            found = channel.recv(64)
        except BlockingIOError:
            return True
        except OSError:
            return False
        self._free += {slot for slot in found if slot < link.SLOTS and slot not in self._free}
        return bool(found)

    @contextmanager
    def _room(self, slot: int, size: int) -> Iterator[tuple[mmap.mmap, int | None]]:
        """The memory of a slot, and where it is new its descriptor, until the block ends."""
        memory, descriptor = self._memory[slot], None
        if memory is None or len(memory) < size:
            descriptor, memory = _made(size)
            self._memory[slot] = memory
        try:
            yield memory, descriptor
        finally:
            if descriptor is not None:
                os.close(descriptor)

    def _told(self, slot: int, size: int, descriptor: int | None) -> bool:
        """Tell the reader of a batch, and whether that is done: it is not where the channel is full."""
        header = link.HEADER.pack(link.BATCH, slot, descriptor is not None, size)
        try:
            if descriptor is None:
                self._out.send(header)
            else:
                socket.send_fds(self._out, [header], [descriptor])
        except BlockingIOError:
            return False
        return True


def _made(size: int) -> tuple[int, mmap.mmap]:
    """Memory for a batch of `size` and a little more, which nobody can make smaller."""
    room = -(-(size + size // 8) // _PAGE) * _PAGE
    descriptor = os.memfd_create("hanse-flight", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(descriptor, room)
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
    return descriptor, mmap.mmap(descriptor, room)
