"""Writes copies of streams while they are sent: whole streams, and single blocks of a read.

Handles frames; must not parse Arrow. `stream_cache` decides what is copied and how long it is kept.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import IO, Self

from connector.dataplane.cache.cached_stream import CachedBlock, CacheEntry
from connector.engine.pool.worker_process import Frame, Result

BLOCKS_MAX = 200_000  # in all entries: bounds the memory of their index
_SLOW_SECONDS = 2.0  # a disk that is slower than this for one batch is not used
_HUGE = 2 * 2**20  # bytes of a huge page
_NOTHING = memoryview(bytes(_HUGE))


class StreamCopy:
    """Writes a stream, or a block of one, to a file while it is sent. A failure gives up the copy, not the read.

    All copies in progress, `coming`, share the room on disk and in the index: readers may ask for batches of one row,
    and for many streams. The copies of one consumer have `room` bytes, all copies together `most`.
    """

    def __init__(
        self, source: Result, entry: CacheEntry, coming: Sequence[CacheEntry], *, room: int, most: int
    ) -> None:
        entry.schema, entry.trailer, entry.first_digest = source.schema, source.trailer, source.digest
        self.entry, self._coming, self._room, self._most = entry, coming, room, most
        self._writing: asyncio.Future[float] | None = None
        self.given_up = False

    async def write(self, frame: Frame) -> None:
        """Begin to write the next frame."""
        if await self._finish_write():
            self._begin_write(frame)

    async def finish(self) -> bool:
        """Return whether the copy is complete. No frame may follow."""
        return await self._finish_write() and await self._truncate()

    def _begin_write(self, frame: Frame) -> None:
        entry = self.entry
        own = sum(one.nbytes for one in self._coming if one.consumer == entry.consumer)
        full = own + frame.nbytes > self._room or sum(one.nbytes for one in self._coming) + frame.nbytes > self._most
        if full or sum(len(one.blocks) for one in self._coming) >= BLOCKS_MAX:
            self._give_up()
            return
        at = entry.nbytes
        entry.blocks.append(CachedBlock(at, frame.nbytes, frame.rows, frame.digest))
        entry.nbytes += frame.nbytes
        self._writing = asyncio.ensure_future(asyncio.to_thread(_write, entry.files[0], frame.payload, at, self._room))

    async def _finish_write(self) -> bool:
        """Wait for the write in progress. Returns whether everything so far is in the file."""
        writing, self._writing = self._writing, None
        if writing is not None:
            try:
                slow = await writing > _SLOW_SECONDS
            except OSError:  # the disk is full
                slow = True
            if slow:
                self._give_up()
        return not self.given_up

    def _give_up(self) -> None:
        """Free the file now, not at the end of the read."""
        self.given_up = True
        self.entry.files, self.entry.nbytes = (), 0
        self.entry.blocks.clear()

    async def _truncate(self) -> bool:
        """Cut the file after its last payload. Returns whether that worked."""
        try:
            await asyncio.to_thread(os.ftruncate, self.entry.files[0].fileno(), self.entry.nbytes)
        except OSError:
            return False
        return True


class CopyingSource:
    """A worker's result that is copied while it is read."""

    def __init__(self, source: Result, copy: StreamCopy) -> None:
        self.schema, self.trailer, self.digest = source.schema, source.trailer, source.digest
        self._source, self._copy = source, copy
        self.is_whole = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Frame:
        try:
            frame = await anext(self._source)
        except StopAsyncIteration:
            self.is_whole = await self._copy.finish()
            raise
        await self._copy.write(frame)
        return frame


class BlockWriter:
    """Copies the blocks of one read while it is sent. `entries` are the complete copies, `ended` is set at its end."""

    def __init__(self, begin: Callable[[int], Awaitable[StreamCopy | None]]) -> None:
        """`begin` starts the copy of a block; it returns None for a block that is not to be copied."""
        self.entries: list[CacheEntry] = []
        self.ended = False
        self._begin = begin
        self._block = -1
        self._copy: StreamCopy | None = None

    async def write(self, frame: Frame) -> None:
        """Write the next frame of the read."""
        if frame.block != self._block:
            await self._finish_block()
            self._block, self._copy = frame.block, await self._begin(frame.block)
        if self._copy is not None:
            await self._copy.write(frame)

    async def end(self) -> None:
        """Finish the last block. No frame may follow."""
        await self._finish_block()
        self.ended = True

    async def _finish_block(self) -> None:
        copy, self._copy = self._copy, None
        if copy is not None and await copy.finish():
            self.entries.append(copy.entry)


def open_nameless(folder: Path) -> IO[bytes]:
    """Open a file without a name, which disappears when it is closed."""
    return tempfile.TemporaryFile("w+b", dir=folder)  # mode 0600 until its name goes, at once


def _write(file: IO[bytes], payload: memoryview, at: int, most: int) -> float:
    """Write a payload. Returns the seconds that it took.

    The page cache holds a write to an empty part of a file in pieces as large as the write. So each huge page but the
    first is written whole, padded with zeros, and later passes are sent from huge pages. The padding does not extend
    the file beyond `most`.
    """
    begun, number, end = time.monotonic(), file.fileno(), at + len(payload)
    last = end - end % _HUGE  # start of the page that the payload ends in
    fresh = last >= max(at, 1)
    parts = [payload, _NOTHING[: max(0, min(last + _HUGE, most) - end)]] if fresh else [payload]
    written = os.pwritev(number, parts, at)
    while written < len(payload):
        written += os.pwrite(number, payload[written:], at + written)
    return time.monotonic() - begun
