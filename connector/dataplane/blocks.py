"""Streams that lie in files already: their index, and a pass over them. Knows frames, and nothing of Arrow."""

from __future__ import annotations

import asyncio
import ctypes
import mmap
import os
import weakref
from collections import deque
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from functools import cached_property
from typing import IO, Protocol, Self

from connector.datasets.sources.files import FileRef, check_unchanged
from connector.errors import VersionChanged
from connector.query.running import Frame


@dataclass(frozen=True, slots=True)
class Span:
    """A part of an open file, for a transport that can send one without reading it, or reads it to where it sends from.

    `ref`: what an owner's file is registered as; none for a copy of ours.
    """

    file: IO[bytes]
    at: int
    nbytes: int
    ref: FileRef | None = None

    def check(self) -> None:
        """VersionChanged where the owner's file is not what was registered any more."""
        if self.ref is not None:
            check_unchanged(self.file.fileno(), self.ref)

    def read_into(self, memory: memoryview) -> None:
        """Fill the start of `memory`; VersionChanged where the file is shorter. In a thread: it may be on disk only."""
        got = 0
        while got < self.nbytes:
            more = os.preadv(self.file.fileno(), [memory[got : self.nbytes]], self.at + got)
            if not more:
                raise VersionChanged("a file of this version has been cut short; register a new version")
            got += more


@dataclass(frozen=True, slots=True)
class Part:
    """As `query.pool.Frame`, from a file."""

    rows: int
    nbytes: int
    payload: memoryview | Span
    digest: bytes


class Source(Protocol):
    """What gives a stream's bytes: a worker's result, or files."""

    schema: bytes
    trailer: bytes
    digest: bytes

    def __aiter__(self) -> AsyncIterator[Frame | Part]: ...

    async def __anext__(self) -> Frame | Part: ...


@dataclass(frozen=True, slots=True)
class Block:
    """One batch in a file, and the digest of the stream up to its end."""

    at: int
    nbytes: int
    rows: int
    digest: bytes
    file: int = 0


@dataclass(slots=True, eq=False)
class Entry:
    """One stream in files: a copy of ours, or the owner's own as `refs` pin them. They close with their last reader."""

    key: str
    agreement: str
    dataset: str
    version: str
    ends: float | None  # of the contract, UTC seconds
    files: tuple[IO[bytes], ...]
    refs: tuple[FileRef, ...] = ()
    schema: bytes = b""
    trailer: bytes = b""
    first_digest: bytes = b""
    blocks: list[Block] = field(default_factory=list)
    nbytes: int = 0  # of disk that it takes

    def span(self, block: Block) -> Span:
        """Where a block lies."""
        ref = self.refs[block.file] if self.refs else None
        return Span(self.files[block.file], block.at, block.nbytes, ref)

    def check(self) -> None:
        """VersionChanged where one of the owner's files is not what was registered any more."""
        for file, ref in zip(self.files, self.refs, strict=False):
            check_unchanged(file.fileno(), ref)


class Passed:
    """An entry being read, batch by batch: as spans for those who can take them, else as memory.

    Memory is filled while the batch before it is sent, in a thread: disks, and networks behind them, take their time.
    """

    def __init__(self, entry: Entry, *, spans: bool) -> None:
        self.schema, self.trailer, self.digest = entry.schema, entry.trailer, entry.first_digest
        self._entry = entry
        self._spans = spans
        self._left = deque(entry.blocks)
        self._next: asyncio.Future[Part | None] | None = None

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Part:
        if self._spans:
            # Of a copy of ours there is nothing to compare, and nothing to wait for.
            part = await asyncio.to_thread(self._part) if self._entry.refs else self._part()
        else:
            part = await (self._next or self._begin())
            self._next = None if part is None else self._begin()
        if part is None:
            raise StopAsyncIteration
        return part

    def at_once(self) -> Part | None:
        """The next one, for a thread that sends spans; None where there is none, and whoever waits for it is told."""
        return self._part() if self._spans and self._left else None

    async def settle(self) -> None:
        """Wait for what still runs in a thread."""
        if self._next is not None:
            await asyncio.wait((self._next,))

    def _begin(self) -> asyncio.Future[Part | None]:
        return asyncio.ensure_future(asyncio.to_thread(self._part))

    def _part(self) -> Part | None:
        if not self._left:
            self._entry.check()
            return None
        block = self._left.popleft()
        span = self._entry.span(block)
        span.check()
        return Part(block.rows, block.nbytes, span if self._spans else self._memory(span), block.digest)

    @cached_property
    def _pieces(self) -> _Pieces:
        """Asked for where an owner's file is read into memory only."""
        return _Pieces(max(block.nbytes for block in self._entry.blocks))

    def _memory(self, span: Span) -> memoryview:
        """The bytes of a span. Only our own are mapped: one of the owner's that is cut short would end this process."""
        if span.ref is None:
            return _mapped(span)
        memory = self._pieces.take()
        span.read_into(memory)
        return memory[: span.nbytes].toreadonly()


class _Pieces:
    """Memory for one batch after the other. A piece is taken again when its last view is gone, which is when the
    transport has sent it: new memory for each batch costs the kernel more than reading it."""

    def __init__(self, size: int) -> None:
        self._kind = ctypes.c_ubyte * size
        self._free: list[mmap.mmap] = []
        self._taken: dict[int, weakref.ref[ctypes.Array[ctypes.c_ubyte]]] = {}

    def take(self) -> memoryview:
        """A piece that nobody else has."""
        piece = self._free.pop() if self._free else mmap.mmap(-1, ctypes.sizeof(self._kind))
        whole = self._kind.from_buffer(piece)
        self._taken[id(piece)] = weakref.ref(whole, lambda _: self._let_go(piece))
        return memoryview(whole).cast("B")

    def _let_go(self, piece: mmap.mmap) -> None:
        del self._taken[id(piece)]
        self._free.append(piece)


def _mapped(span: Span) -> memoryview:
    start = span.at - span.at % mmap.ALLOCATIONGRANULARITY
    flags = mmap.MAP_SHARED | mmap.MAP_POPULATE
    length = span.at + span.nbytes - start
    held = mmap.mmap(span.file.fileno(), length, flags=flags, prot=mmap.PROT_READ, offset=start)
    return memoryview(held)[span.at - start :]
