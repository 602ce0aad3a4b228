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

from connector.dataplane.http.file_spans import Scattered, Span, check_all
from connector.datasets.file_access import run_at_files
from connector.datasets.sources.source_files import FileRef, open_pinned
from connector.engine.pool import protocol as wire
from connector.engine.pool.worker_process import Frame, Result
from connector.infra.formats.digests import RunningDigest


@dataclass(frozen=True, slots=True)
class Part:
    """As `query.running.Frame`, from files."""

    rows: int
    nbytes: int
    payload: memoryview | Span | Scattered
    digest: bytes | RunningDigest


class Source(Protocol):
    """What gives a stream's bytes: a worker's result, or files."""

    schema: bytes
    trailer: bytes

    @property
    def digest(self) -> bytes | RunningDigest: ...

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


@dataclass(slots=True, eq=False, weakref_slot=True)
class Entry:
    """One stream in files: a copy of ours, or the owner's own as `refs` pin them. They close with their last reader."""

    key: str
    consumer: str
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
    readers: int = 0  # that have it now
    used: float = 0.0  # UTC seconds, when it came or the last reader let go of it

    def span(self, block: Block) -> Span:
        """Where a block lies."""
        ref = self.refs[block.file] if self.refs else None
        return Span(self.files[block.file], block.at, block.nbytes, ref)

    def check(self) -> None:
        """VersionChanged where one of the owner's files is not what was registered any more."""
        check_all(zip(self.files, self.refs, strict=False))


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
            part = await run_at_files(self._entry.refs, self._part) if self._entry.refs else self._part()
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
        refs = self._entry.refs
        return asyncio.ensure_future(run_at_files(refs, self._part) if refs else asyncio.to_thread(self._part))

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
            return mapped(span)
        memory = self._pieces.take()
        span.read_into(memory)
        return memory[: span.nbytes].toreadonly()


class Spread:
    """The result of a job with `spans`: of its messages, some have pieces in the owner's files.

    A worker has looked at the files for the last time before we send from them: so do we, when all has gone.
    """

    def __init__(self, result: Result) -> None:
        self.schema, self.trailer, self.digest = result.schema, result.trailer, result.digest
        self._result = result
        self._refs = [FileRef.from_json(dict(file)) for file in next(iter(result.job.relations.values())).files]
        self._open: dict[int, tuple[IO[bytes], FileRef]] = {}  # those that the last message was in

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Frame | Part:
        found = await self._result.next()
        if found[0] == wire.SCATTERED and not self._known():
            await run_at_files(self._refs, self._files)
        if found[0] not in (wire.BATCH, wire.SCATTERED):
            await run_at_files(self._refs, self._check)
            raise StopAsyncIteration
        return self._of(*found)

    def at_once(self) -> Frame | Part | None:
        """As of `Passed`: the next one where all of it is there."""
        found = self._result.at_once()
        if found is None:
            return None
        part = self._of(*found)
        if found[0] == wire.SCATTERED:
            self._check()
        return part

    def _of(self, kind: int, rows: int, payload: bytearray | memoryview, digest: bytes) -> Frame | Part:
        if kind != wire.SCATTERED:
            return Frame.of(rows, payload, digest)
        pieces = self._result.pieces
        size = sum(size for _, _, size in pieces)
        return Part(rows, size, Scattered(memoryview(payload), self._files(), pieces, size), digest)

    def _known(self) -> bool:
        return all(number < 0 or number in self._open for number, _, _ in self._result.pieces)

    def _files(self) -> dict[int, tuple[IO[bytes], FileRef]]:
        """The files that the message is in, opened. In a thread, unless they are."""
        if not self._known():
            self._check()  # what was sent from others has gone
            numbers = {number for number, _, _ in self._result.pieces if number >= 0}
            self._open = {
                number: self._open.get(number) or (open_owners(self._refs[number]), self._refs[number])
                for number in numbers
            }
        return self._open

    def _check(self) -> None:
        """VersionChanged where a file that the last message was in is not what was registered any more."""
        check_all(self._open.values())


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


def mapped(span: Span) -> memoryview:
    """The bytes of a span of a file of ours: nobody else can make it shorter."""
    start = span.at - span.at % mmap.ALLOCATIONGRANULARITY
    flags = mmap.MAP_SHARED | mmap.MAP_POPULATE
    length = span.at + span.nbytes - start
    held = mmap.mmap(span.file.fileno(), length, flags=flags, prot=mmap.PROT_READ, offset=start)
    return memoryview(held)[span.at - start :]


def open_owners(ref: FileRef) -> IO[bytes]:
    """An owner's file as it was registered, or VersionChanged. It closes with the last that refers to it."""
    return os.fdopen(open_pinned(ref), "rb", buffering=0)
