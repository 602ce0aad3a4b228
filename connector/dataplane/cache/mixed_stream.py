"""A read of blocks where some come from the cache and the others from a worker, which reads nothing else.

The combination is new, so the digest of the stream is computed while it is sent.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Self

from connector.dataplane.cache.cache_writer import BlockWriter
from connector.dataplane.cache.cached_stream import CachedBlock, CacheEntry, StreamPart, map_span
from connector.engine.pool.protocol import Range
from connector.engine.pool.worker_process import Frame, Result
from connector.errors import EngineFailed
from connector.infra.formats.digests import RunningDigest


class MixedStream:
    """Parts of blocks in the requested order. Cached blocks are spans for transports that send files, else memory."""

    def __init__(
        self,
        ranges: Sequence[Range],
        known: Mapping[int, CacheEntry],
        result: Result | None,
        writer: BlockWriter | None,
        *,
        digest: str,
        spans: bool,
    ) -> None:
        """`result` has the blocks that are not in `known`; without such blocks there is no result. `writer` copies
        them."""
        source = result or next(iter(known.values()))
        self.schema, self.trailer = source.schema, source.trailer
        self._went = RunningDigest(digest, self.schema)
        self.digest = self._went if known or result is None else result.digest
        self._todo = deque((one.block, known.get(one.block)) for one in ranges)
        self._left: deque[CachedBlock] = deque()  # what is left of the first of those, if it is cached
        self._result, self._writer, self._spans = result, writer, spans
        self._next: Frame | None = None  # read ahead from the worker
        self._begin()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Frame | StreamPart:
        while self._todo:
            block, entry = self._todo[0]
            if entry is not None and self._left:
                return self._take_part(entry) if self._spans else await asyncio.to_thread(self._take_part, entry)
            if entry is None and (frame := await self._take_frame(block)) is not None:
                return frame
            self._advance()
        await self._check_end()
        raise StopAsyncIteration

    def at_once(self) -> StreamPart | None:
        """Return the next part if it is in a file, else None. See `CachedReader.at_once`."""
        while self._spans and self._todo and (entry := self._todo[0][1]) is not None:
            if self._left:
                return self._take_part(entry)
            self._advance()
        return None

    def _begin(self) -> None:
        if self._todo and (entry := self._todo[0][1]) is not None:
            self._left = deque(entry.blocks)

    def _advance(self) -> None:
        self._todo.popleft()
        self._begin()

    def _take_part(self, entry: CacheEntry) -> StreamPart:
        block = self._left.popleft()
        span = replace(entry.span(block), seen=self._went.update)
        return StreamPart(block.rows, block.nbytes, span if self._spans else map_span(span), self._went)

    async def _take_frame(self, block: int) -> Frame | StreamPart | None:
        """Return the worker's next message if it belongs to this block, else None."""
        frame = await self._peek_frame()
        if frame is None or frame.block != block:
            return None
        self._next = None
        if self._writer is not None:
            await self._writer.write(frame)
        return StreamPart(frame.rows, frame.nbytes, frame.payload, self._went) if self.digest is self._went else frame

    async def _peek_frame(self) -> Frame | None:
        if self._next is None and self._result is not None:
            self._next = await anext(self._result, None)
        return self._next

    async def _check_end(self) -> None:
        if await self._peek_frame() is not None:
            raise EngineFailed(
                "expected rows of the requested blocks in order, got rows of another block", code="engine_failed"
            )
        if self._writer is not None:
            await self._writer.end()
