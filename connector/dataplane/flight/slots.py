"""The connector's end of the shared memory that batches pass through on their way to the Flight process."""

from __future__ import annotations

import asyncio
import fcntl
import mmap
import os
import socket
from collections.abc import Callable

from connector.dataplane.flight import link
from connector.query.spans import InFiles

_PAGE = mmap.PAGESIZE


class Slots:
    """The slots of one stream on its channel. `listen` runs beside `put`; both end when the reader has gone."""

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel
        self._loop = asyncio.get_running_loop()
        self._memory: list[mmap.mmap | None] = [None] * link.SLOTS
        self._free: asyncio.Queue[int] = asyncio.Queue()
        for slot in range(link.SLOTS):
            self._free.put_nowait(slot)

    async def listen(self) -> None:
        """Take slots back; returns when the reader has closed its end."""
        while True:
            try:
                found = await self._loop.sock_recv(self._channel, 64)
            except OSError:
                return
            if not found:
                return
            for slot in found:
                if slot < link.SLOTS:
                    self._free.put_nowait(slot)

    async def put(self, payload: memoryview | bytes | InFiles) -> None:
        """Hand over a batch, once a slot is free for it; a part of a file is read to there, and nowhere else."""
        await self._place(await self._free.get(), payload)

    async def put_next(self, more: Callable[[], InFiles | None]) -> bool:
        """As `put`, of the part that `more` gives in a thread once a slot is free, and not before. Whether it did."""
        slot = await self._free.get()
        span, is_read = await asyncio.to_thread(_read_next, more, self._memory[slot])
        if span is None:
            self._free.put_nowait(slot)
        elif is_read:
            await self._send(link.HEADER.pack(link.BATCH, slot, False, span.nbytes), None)
        else:
            await self._place(slot, span)
        return span is not None

    async def _place(self, slot: int, payload: memoryview | bytes | InFiles) -> None:
        size = payload.nbytes if isinstance(payload, InFiles) else memoryview(payload).nbytes
        memory = self._memory[slot]
        descriptor = None
        if memory is None or len(memory) < size:
            descriptor, memory = _made(size)
            self._memory[slot] = memory
        try:
            if isinstance(payload, InFiles):
                await asyncio.to_thread(_read, payload, memory)
            else:
                memory[:size] = memoryview(payload).cast("B")
            header = link.HEADER.pack(link.BATCH, slot, descriptor is not None, size)
            await self._send(header, descriptor)
        finally:
            if descriptor is not None:
                os.close(descriptor)

    async def _send(self, header: bytes, descriptor: int | None) -> None:
        if descriptor is None:
            await self._loop.sock_sendall(self._channel, header)
            return
        while True:
            try:
                socket.send_fds(self._channel, [header], [descriptor])
                return
            except BlockingIOError:  # a few bytes, so a full buffer is next to impossible; and then short
                await asyncio.sleep(0.01)


def _read(span: InFiles, memory: mmap.mmap) -> None:
    span.check()
    span.read_into(memoryview(memory))


def _read_next(more: Callable[[], InFiles | None], memory: mmap.mmap | None) -> tuple[InFiles | None, bool]:
    """The next part, and whether it is in `memory` already: it is not where there is no room for it."""
    span = more()
    fits = span is not None and memory is not None and len(memory) >= span.nbytes
    if span is not None and memory is not None and fits:
        _read(span, memory)
    return span, fits


def _made(size: int) -> tuple[int, mmap.mmap]:
    """Memory for a batch of `size` and a little more, which nobody can make smaller."""
    room = -(-(size + size // 8) // _PAGE) * _PAGE
    descriptor = os.memfd_create("hanse-flight", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(descriptor, room)
    fcntl.fcntl(descriptor, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
    return descriptor, mmap.mmap(descriptor, room)
