"""Streams that are in files: their index, and readers over them. Handles frames; must not parse Arrow."""

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

from connector.dataplane.http.file_spans import Span, check_all
from connector.datasets.file_access import run_at_files
from connector.datasets.sources.source_files import FileRef, open_pinned
from connector.engine.pool.worker_process import Frame
from connector.infra.formats.digests import RunningDigest


@dataclass(frozen=True, slots=True)
class StreamPart:
    """One batch of a stream as a part of files or as memory. Same fields as `worker_process.Frame`."""

    rows: int
    nbytes: int
    payload: memoryview | Span
    digest: bytes | RunningDigest


class StreamSource(Protocol):
    """Source of a stream's bytes: a worker's result, or files."""

    schema: bytes
    trailer: bytes

    @property
    def digest(self) -> bytes | RunningDigest: ...

    def __aiter__(self) -> AsyncIterator[Frame | StreamPart]: ...

    async def __anext__(self) -> Frame | StreamPart: ...


@dataclass(frozen=True, slots=True)
class CachedBlock:
    """One batch in a file: its place, and the digest of the stream up to its end."""

    at: int
    nbytes: int
    rows: int
    digest: bytes
    file: int = 0


@dataclass(slots=True, eq=False, weakref_slot=True)
class CacheEntry:
    """One stream in files: our own copy, or the owner's files as `refs` pin them. The files close with the last
    reader."""

    key: str
    consumer: str
    agreement: str
    dataset: str
    version: str
    ends: float | None  # end of the contract, UTC seconds
    files: tuple[IO[bytes], ...]
    refs: tuple[FileRef, ...] = ()
    schema: bytes = b""
    trailer: bytes = b""
    first_digest: bytes = b""
    blocks: list[CachedBlock] = field(default_factory=list)
    nbytes: int = 0  # bytes on disk
    readers: int = 0  # current readers
    used: float = 0.0  # UTC seconds: when it was added, or its last reader left

    def span(self, block: CachedBlock) -> Span:
        """Return the span of a block."""
        ref = self.refs[block.file] if self.refs else None
        return Span(self.files[block.file], block.at, block.nbytes, ref)

    def check(self) -> None:
        """Raises: VersionChanged where one of the owner's files is no longer the registered one."""
        check_all(zip(self.files, self.refs, strict=False))


class CachedReader:
    """Reads an entry batch by batch: as spans for transports that send files, else as memory.

    Memory is filled in a thread while the previous batch is sent, since disks and network storage are slow.
    """

    def __init__(self, entry: CacheEntry, *, spans: bool) -> None:
        self.schema, self.trailer, self.digest = entry.schema, entry.trailer, entry.first_digest
        self._entry = entry
        self._spans = spans
        self._left = deque(entry.blocks)
        self._next: asyncio.Future[StreamPart | None] | None = None

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> StreamPart:
        if self._spans:
            # Our own copy needs no comparison, and so no thread.
            part = await run_at_files(self._entry.refs, self._take_part) if self._entry.refs else self._take_part()
        else:
            part = await (self._next or self._begin())
            self._next = None if part is None else self._begin()
        if part is None:
            raise StopAsyncIteration
        return part

    def at_once(self) -> StreamPart | None:
        """Return the next part for a thread that sends spans.

        None at the end, or without spans: then the part comes by iteration, which also reports errors.
        """
        return self._take_part() if self._spans and self._left else None

    async def settle(self) -> None:
        """Wait for the work that still runs in a thread."""
        if self._next is not None:
            await asyncio.wait((self._next,))

    def _begin(self) -> asyncio.Future[StreamPart | None]:
        refs = self._entry.refs
        return asyncio.ensure_future(
            run_at_files(refs, self._take_part) if refs else asyncio.to_thread(self._take_part)
        )

    def _take_part(self) -> StreamPart | None:
        if not self._left:
            self._entry.check()
            return None
        block = self._left.popleft()
        span = self._entry.span(block)
        span.check()
        return StreamPart(block.rows, block.nbytes, span if self._spans else self._read_memory(span), block.digest)

    @cached_property
    def _pieces(self) -> _BufferPool:
        """Buffers, created only where an owner's file is read into memory."""
        return _BufferPool(max(block.nbytes for block in self._entry.blocks))

    def _read_memory(self, span: Span) -> memoryview:
        """Return the bytes of a span.

        Only our own files are mapped: an owner's file that is cut short while mapped would end this process.
        """
        if span.ref is None:
            return map_span(span)
        memory = self._pieces.take()
        span.read_into(memory)
        return memory[: span.nbytes].toreadonly()


class _BufferPool:
    """Buffers for one batch after the other.

    A buffer is reused once its last view is gone, that is, after the transport has sent it. New memory for each batch
    costs the kernel more than reading the batch.
    """

    def __init__(self, size: int) -> None:
        self._kind = ctypes.c_ubyte * size
        self._free: list[mmap.mmap] = []
        self._taken: dict[int, weakref.ref[ctypes.Array[ctypes.c_ubyte]]] = {}

    def take(self) -> memoryview:
        """Return a buffer that is not in use."""
        piece = self._free.pop() if self._free else mmap.mmap(-1, ctypes.sizeof(self._kind))
        whole = self._kind.from_buffer(piece)
        self._taken[id(piece)] = weakref.ref(whole, lambda _: self._release(piece))
        return memoryview(whole).cast("B")

    def _release(self, piece: mmap.mmap) -> None:
        del self._taken[id(piece)]
        self._free.append(piece)


def map_span(span: Span) -> memoryview:
    """Return the bytes of a span of our own file, mapped. No other process can shorten such a file."""
    start = span.at - span.at % mmap.ALLOCATIONGRANULARITY
    flags = mmap.MAP_SHARED | mmap.MAP_POPULATE
    length = span.at + span.nbytes - start
    held = mmap.mmap(span.file.fileno(), length, flags=flags, prot=mmap.PROT_READ, offset=start)
    return memoryview(held)[span.at - start :]


def open_owner_file(ref: FileRef) -> IO[bytes]:
    """Open an owner's file as it was registered. It closes with its last reference.

    Raises: VersionChanged where the file is another one now.
    """
    return os.fdopen(open_pinned(ref), "rb", buffering=0)
