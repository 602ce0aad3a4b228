"""A read of blocks of which some are prepared: those come from their files, the others from a worker, which reads
nothing else. Nobody has seen such a stream before, so its digest is taken as it goes.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Self

from connector.dataplane.cache.cache_writer import Shelf
from connector.dataplane.cache.cached_stream import Block, Entry, Part, mapped
from connector.engine.pool.protocol import Range
from connector.engine.pool.worker_process import Frame, Result
from connector.errors import EngineFailed
from connector.infra.formats.digests import RunningDigest


class Mixed:
    """The parts of some blocks in the order asked for. Those in files are spans for who can take them, else memory."""

    def __init__(
        self,
        ranges: Sequence[Range],
        known: Mapping[int, Entry],
        result: Result | None,
        shelf: Shelf | None,
        *,
        digest: str,
        spans: bool,
    ) -> None:
        """`result` gives those that are not `known`, none where all are; they go on the shelf."""
        source = result or next(iter(known.values()))
        self.schema, self.trailer = source.schema, source.trailer
        self._went = RunningDigest(digest, self.schema)
        self.digest = self._went if known or result is None else result.digest
        self._todo = deque((one.block, known.get(one.block)) for one in ranges)
        self._left: deque[Block] = deque()  # of the first of those, where it is known
        self._result, self._shelf, self._spans = result, shelf, spans
        self._next: Frame | None = None  # of the worker's
        self._begin()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Frame | Part:
        while self._todo:
            block, entry = self._todo[0]
            if entry is not None and self._left:
                return self._part(entry) if self._spans else await asyncio.to_thread(self._part, entry)
            if entry is None and (frame := await self._of(block)) is not None:
                return frame
            self._over()
        await self._end()
        raise StopAsyncIteration

    def at_once(self) -> Part | None:
        """As of `Passed`: the next one where it lies in a file."""
        while self._spans and self._todo and (entry := self._todo[0][1]) is not None:
            if self._left:
                return self._part(entry)
            self._over()
        return None

    def _begin(self) -> None:
        if self._todo and (entry := self._todo[0][1]) is not None:
            self._left = deque(entry.blocks)

    def _over(self) -> None:
        self._todo.popleft()
        self._begin()

    def _part(self, entry: Entry) -> Part:
        block = self._left.popleft()
        span = replace(entry.span(block), seen=self._went.update)
        return Part(block.rows, block.nbytes, span if self._spans else mapped(span), self._went)

    async def _of(self, block: int) -> Frame | Part | None:
        """The worker's next message, if it is of this block."""
        frame = await self._ahead()
        if frame is None or frame.block != block:
            return None
        self._next = None
        if self._shelf is not None:
            await self._shelf.put(frame)
        return Part(frame.rows, frame.nbytes, frame.payload, self._went) if self.digest is self._went else frame

    async def _ahead(self) -> Frame | None:
        if self._next is None and self._result is not None:
            self._next = await anext(self._result, None)
        return self._next

    async def _end(self) -> None:
        if await self._ahead() is not None:
            raise EngineFailed("rows came of a block that was not asked for, or not now", code="engine_failed")
        if self._shelf is not None:
            await self._shelf.end()
