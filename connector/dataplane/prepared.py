"""Prepared streams: what one contract lets out of one version, kept as Arrow IPC, so that later passes decode nothing.

The first complete pass of a plain read is written beside its delivery (`Keeping`); later ones are sent from a memory
map (`Mapped`) under the same admission, gate, accounting and log. Fail closed, any doubt means "read it anew":
- only where nothing but version, contract and request makes the bytes: a plain scan of one dataset, of a contract
  without aggregates and quantities, and, unless the operator allows it, without masks and duties;
- the key holds the version's digest, the contract, the reader, the request; the files must be those registered;
- it goes when the agreement is revoked or ends, when the version or the contract is another, or when room is needed.
The files have no names: nobody else can open them, and a process that ends, however it ends, leaves none behind.
Knows frames and their index, and nothing of Arrow.
"""

from __future__ import annotations

import asyncio
import hashlib
import mmap
import os
import shutil
import tempfile
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any, Protocol, Self

from connector.dataplane.asked import Asked
from connector.datasets.sources.files import FileRef, open_pinned
from connector.errors import HanseError
from connector.events import AgreementRevoked, DatasetRemoved, DatasetVersioned, Event
from connector.query.pool import Frame
from connector.usage.grants import Grant
from policies.contract import DataContract, to_json

_ENTRIES_MAX = 256
_SLOW_SECONDS = 2.0  # a disk that takes this long for one batch is no place to keep a stream
_DAY = 86_400.0
_AHEAD = 8 * 2**20


class Source(Protocol):
    """What gives a stream's bytes: a worker's result, or a prepared file."""

    schema: bytes
    trailer: bytes
    digest: bytes

    def __aiter__(self) -> AsyncIterator[Frame]: ...

    async def __anext__(self) -> Frame: ...


@dataclass(frozen=True, slots=True)
class Block:
    """One batch in the file, and the digest of the stream up to its end."""

    at: int
    nbytes: int
    rows: int
    digest: bytes


@dataclass(slots=True, eq=False)
class Entry:
    """One prepared stream. The file closes with its last reader."""

    key: str
    agreement: str
    dataset: str
    version: str
    ends: float | None  # of the contract, UTC seconds
    file: IO[bytes]
    schema: bytes
    trailer: bytes
    first_digest: bytes
    blocks: list[Block] = field(default_factory=list)
    nbytes: int = 0


class Mapped:
    """A prepared stream being read, batch by batch, each mapped while somebody holds it."""

    def __init__(self, entry: Entry) -> None:
        self.schema, self.trailer, self.digest = entry.schema, entry.trailer, entry.first_digest
        self._entry = entry
        self._blocks = iter(entry.blocks)
        self._next: asyncio.Future[Frame | None] | None = None

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Frame:
        waiting = self._next or self._begin()
        frame = await waiting
        if frame is None:
            raise StopAsyncIteration
        self._next = self._begin()  # it is mapped while this one is sent
        return frame

    def _begin(self) -> asyncio.Future[Frame | None]:
        # In a thread: pages that are on the disk only would hold up everybody's streams.
        return asyncio.ensure_future(asyncio.to_thread(self._map))

    def _map(self) -> Frame | None:
        if (block := next(self._blocks, None)) is None:
            return None
        start = block.at - block.at % mmap.ALLOCATIONGRANULARITY
        number = self._entry.file.fileno()
        os.posix_fadvise(number, block.at + block.nbytes, _AHEAD, os.POSIX_FADV_WILLNEED)
        flags = mmap.MAP_SHARED | mmap.MAP_POPULATE
        held = mmap.mmap(number, block.at + block.nbytes - start, flags=flags, prot=mmap.PROT_READ, offset=start)
        return Frame(block.rows, block.nbytes, memoryview(held)[block.at - start :], block.digest)

    async def settle(self) -> None:
        """Wait for what still runs in a thread."""
        if self._next is not None:
            await asyncio.wait((self._next,))


class Keeping:
    """A worker's result on its way out, written down beside it. A stream that is not kept is not disturbed."""

    def __init__(self, source: Source, entry: Entry, room: int) -> None:
        self.schema, self.trailer, self.digest = source.schema, source.trailer, source.digest
        entry.schema, entry.trailer, entry.first_digest = source.schema, source.trailer, source.digest
        self._source, self._entry, self._room = source, entry, room
        self._writing: asyncio.Future[float] | None = None
        self.whole = False
        self.given_up = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Frame:
        try:
            frame = await anext(self._source)
        except StopAsyncIteration:
            self.whole = await self._written()
            raise
        if await self._written():
            self._keep(frame)
        return frame

    def _keep(self, frame: Frame) -> None:
        entry = self._entry
        if entry.nbytes + frame.nbytes > self._room:
            self.given_up = True
            return
        entry.blocks.append(Block(entry.nbytes, frame.nbytes, frame.rows, frame.digest))
        entry.nbytes += frame.nbytes
        self._writing = asyncio.ensure_future(asyncio.to_thread(_write, entry.file, frame.payload))

    async def _written(self) -> bool:
        """Whether everything so far is in the file."""
        writing, self._writing = self._writing, None
        if writing is not None:
            try:
                self.given_up = self.given_up or await writing > _SLOW_SECONDS
            except OSError:  # no room on the disk
                self.given_up = True
        return not self.given_up


class PreparedStreams:
    """The prepared streams of one connector, at most `quota` bytes of them, the least used go first."""

    def __init__(
        self, folder: Path, *, quota: int, sensitive: bool = False, clock: Callable[[], float] = time.time
    ) -> None:
        """`sensitive`: keep streams of contracts with masks and duties, too."""
        self.quota, self._sensitive = quota, sensitive
        self._folder = folder
        self._clock = clock
        self._entries: OrderedDict[str, Entry] = OrderedDict()
        self._made: set[str] = set()
        if quota:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    @property
    def nbytes(self) -> int:
        return sum(entry.nbytes for entry in self._entries.values())

    def __len__(self) -> int:
        return len(self._entries)

    def key(self, asked: Asked, grants: Sequence[Grant]) -> str:
        """The key of this read; empty where its stream must not be kept or taken from what is kept."""
        if not self.quota or not asked.plain_scan or asked.brought or asked.format != "arrow" or len(grants) != 1:
            return ""
        if asked.rows is not None or asked.nbytes is not None:
            return ""
        grant = grants[0]
        version = grant.held.version
        if not keepable(grant.contract, sensitive=self._sensitive) or not _pins(version.source):
            return ""
        request = repr(replace(asked, tickets=asked.tickets[:1], query_id="", fragment="", seconds=None))
        told = request.replace(repr(asked.tickets[0]), "")  # every field but who shows which ticket
        parts = (
            version.digest, repr(version.source), to_json(grant.contract), grant.agreement_id, grant.consumer,
            grant.purpose, told,
        )  # fmt: skip
        return hashlib.sha256("\x00".join(parts).encode()).hexdigest()

    async def find(self, key: str, grant: Grant) -> Entry | None:
        """The prepared stream, if there is one and the version's files are still what was registered."""
        self.sweep()
        entry = self._entries.get(key)
        if entry is None:
            return None
        if not await asyncio.to_thread(_unchanged, grant.held.version.source["files"]):
            self._drop(entry)
            return None
        self._entries.move_to_end(key)
        return entry

    @asynccontextmanager
    async def serve(self, entry: Entry) -> AsyncIterator[Mapped]:
        """The stream from its file."""
        mapped = Mapped(entry)
        try:
            yield mapped
        finally:
            await mapped.settle()

    @asynccontextmanager
    async def keep(self, key: str, grant: Grant, source: Source) -> AsyncIterator[Source]:
        """The source, written down on its way. It is kept if the block ends well and all of it has passed."""
        if not key or key in self._made:
            yield source
            return
        version = grant.held.version
        self._made.add(key)
        try:
            file = await asyncio.to_thread(_nameless, self._folder)
            entry = Entry(
                key, grant.agreement_id, grant.held.dataset.id, version.digest, grant.contract.not_after, file,
                b"", b"", b"",
            )  # fmt: skip
            keeping = Keeping(source, entry, min(self.quota, shutil.disk_usage(self._folder).free // 2))
            yield keeping
            if keeping.whole and not grant.lease.revoked:
                self._add(entry)
        finally:
            self._made.discard(key)

    def heard(self, event: Event) -> None:
        """What ends an agreement or a dataset ends what is prepared of it."""
        if isinstance(event, AgreementRevoked):
            self.drop(lambda entry: entry.agreement == event.agreement)
        elif isinstance(event, DatasetRemoved | DatasetVersioned):
            self.drop(lambda entry: entry.dataset == event.dataset)

    def drop(self, wanted: Callable[[Entry], bool]) -> None:
        """Forget some of them now; one that is being read goes with its reader, whom the gate stops."""
        for entry in [entry for entry in self._entries.values() if wanted(entry)]:
            self._drop(entry)

    def sweep(self) -> None:
        """Forget those whose contract has ended."""
        now = self._clock()
        self.drop(lambda entry: entry.ends is not None and entry.ends <= now)

    def _add(self, entry: Entry) -> None:
        self.drop(lambda other: other.dataset == entry.dataset and other.version != entry.version)
        self._entries[entry.key] = entry
        if entry.ends is not None:
            asyncio.get_running_loop().call_later(min(_DAY, max(0.0, entry.ends - self._clock())), self.sweep)
        while self._entries and (self.nbytes > self.quota or len(self._entries) > _ENTRIES_MAX):
            self._drop(next(iter(self._entries.values())))

    def _drop(self, entry: Entry) -> None:
        self._entries.pop(entry.key, None)


def keepable(contract: DataContract, *, sensitive: bool) -> bool:
    """Whether what a contract lets out may lie on the owner's disk a second time.

    Never for aggregates (each answer is judged anew) and quantities (what is left decides the batches); for masks and
    duties only where the operator says so: they mark personal data.
    """
    limits = contract.limits
    if contract.grid is not None or limits.rows is not None or limits.bytes is not None:
        return False
    return sensitive or not (contract.masks or contract.obligations)


def _pins(source: Mapping[str, Any]) -> bool:
    """Whether the version is made of files whose change we can see."""
    files = source.get("files") or ()
    return bool(files) and all(file.get("inode") and not file.get("etag") for file in files)


def _unchanged(files: Sequence[Mapping[str, Any]]) -> bool:
    try:
        for file in files:
            os.close(open_pinned(FileRef(**{key: file[key] for key in FileRef.__slots__ if key in file})))
    except (HanseError, OSError, TypeError):
        return False
    return True


def _nameless(folder: Path) -> IO[bytes]:
    return tempfile.TemporaryFile("w+b", dir=folder)  # mode 0600 until its name goes, at once


def _write(file: IO[bytes], payload: memoryview) -> float:
    begun, number, view = time.monotonic(), file.fileno(), payload
    while len(view):
        view = view[os.write(number, view) :]
    return time.monotonic() - begun
