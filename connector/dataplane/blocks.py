"""Streams that lie in files already: their index, and a pass over them. Knows frames, and nothing of Arrow."""

from __future__ import annotations

import asyncio
import mmap
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import IO, Protocol, Self

from connector.datasets.sources.files import FileRef, check_unchanged
from connector.errors import VersionChanged
from connector.query.pool import Frame

_AHEAD = 8 * 2**20


@dataclass(frozen=True, slots=True)
class Span:
    """A part of an open file, for a transport that can send one without reading it."""

    file: IO[bytes]
    at: int
    nbytes: int


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

    def check(self, number: int) -> None:
        """VersionChanged where an owner's file is not what was registered any more."""
        if self.refs:
            check_unchanged(self.files[number].fileno(), self.refs[number])


class Passed:
    """An entry being read, batch by batch: as spans for those who can send them, else as memory."""

    def __init__(self, entry: Entry, *, spans: bool) -> None:
        self.schema, self.trailer, self.digest = entry.schema, entry.trailer, entry.first_digest
        self._entry = entry
        self._spans = spans
        self._blocks = iter(entry.blocks)
        self._next: asyncio.Future[Part | None] | None = None

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Part:
        if self._spans:
            part = self._span()
        else:
            part = await (self._next or self._begin())
        if part is None:
            for number in range(len(self._entry.refs)):
                self._entry.check(number)
            raise StopAsyncIteration
        if not self._spans:
            self._next = self._begin()  # it is there while this one is sent
        return part

    async def settle(self) -> None:
        """Wait for what still runs in a thread."""
        if self._next is not None:
            await asyncio.wait((self._next,))

    def _span(self) -> Part | None:
        if (block := next(self._blocks, None)) is None:
            return None
        self._entry.check(block.file)
        file = self._entry.files[block.file]
        os.posix_fadvise(file.fileno(), block.at + block.nbytes, _AHEAD, os.POSIX_FADV_WILLNEED)
        return Part(block.rows, block.nbytes, Span(file, block.at, block.nbytes), block.digest)

    def _begin(self) -> asyncio.Future[Part | None]:
        # In a thread: pages that are on the disk only would hold up everybody's streams.
        return asyncio.ensure_future(asyncio.to_thread(self._memory))

    def _memory(self) -> Part | None:
        if (part := self._span()) is None:
            return None
        assert isinstance(part.payload, Span)
        # Only our own are mapped: one of the owner's that is cut short would end this process.
        view = _read(part.payload) if self._entry.refs else _mapped(part.payload)
        return Part(part.rows, part.nbytes, view, part.digest)


def _mapped(span: Span) -> memoryview:
    start = span.at - span.at % mmap.ALLOCATIONGRANULARITY
    flags = mmap.MAP_SHARED | mmap.MAP_POPULATE
    length = span.at + span.nbytes - start
    held = mmap.mmap(span.file.fileno(), length, flags=flags, prot=mmap.PROT_READ, offset=start)
    return memoryview(held)[span.at - start :]


def _read(span: Span) -> memoryview:
    data, got = memoryview(bytearray(span.nbytes)), 0
    while got < span.nbytes:
        if not (more := os.preadv(span.file.fileno(), [data[got:]], span.at + got)):
            raise VersionChanged("a file of this version has been cut short; register a new version")
        got += more
    return data.toreadonly()
