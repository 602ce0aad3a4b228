"""Prepared streams: what one contract lets out of one version, kept as Arrow IPC, so that later passes decode nothing.

The first complete pass of a plain read is written beside its delivery (`Keeping`); later ones are sent from the file
(`Passed`) under the same admission, gate, accounting and log. Where the owner's Arrow files hold the very messages that
leave, there is no copy: an index of them is made after the first pass (`query.verbatim`). Fail closed, any doubt means
"read it anew":
- only where nothing but version, contract and request makes the bytes: a plain scan of one dataset, of a contract
  without aggregates and quantities, and, for a copy, unless the operator allows it, without masks and duties;
- the key holds the version's digest, the contract, the reader, the request; the files must be those registered;
- it goes when the agreement is revoked or ends, when the version or the contract is another, or when room is needed.
Copies have no names: nobody else can open them, and a process that ends, however it ends, leaves none behind.
Knows frames and their index, and nothing of Arrow.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import os
import shutil
import tempfile
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import IO, Any, Self

from connector.dataplane.asked import Asked
from connector.dataplane.blocks import Block, Entry, Passed, Source, open_owners
from connector.datasets.sources.files import FileRef, unchanged
from connector.errors import Busy, HanseError
from connector.events import AgreementRevoked, DatasetRemoved, DatasetVersioned, Event
from connector.query.job import Job
from connector.query.running import Frame, Result
from connector.telemetry import logger
from connector.usage.held import Grant
from policies.contract import DataContract, to_json

_ENTRIES_MAX = 256
_BLOCKS_MAX = 200_000  # of all entries: what their index takes in memory
_FILES_MAX = 256  # of all entries: descriptors that they hold, of those that connections need, too
_SLOW_SECONDS = 2.0  # a disk that takes this long for one batch is no place to keep a stream
_DAY = 86_400.0
_HUGE = 2 * 2**20  # bytes of a huge page
_NOTHING = memoryview(bytes(_HUGE))
_log = logger("dataplane")


class Keeping:
    """A worker's result on its way out, written down beside it. A stream that is not kept is not disturbed.

    All that are written at once, `coming`, share the room on the disk and in the index: readers may ask for batches of
    one row, and for many streams.
    """

    def __init__(self, source: Result, entry: Entry, room: int, coming: Sequence[Entry]) -> None:
        self.schema, self.trailer, self.digest = source.schema, source.trailer, source.digest
        entry.schema, entry.trailer, entry.first_digest = source.schema, source.trailer, source.digest
        self._source, self._entry, self._room, self._coming = source, entry, room, coming
        self._writing: asyncio.Future[float] | None = None
        self.whole = False
        self.given_up = False

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Frame:
        try:
            frame = await anext(self._source)
        except StopAsyncIteration:
            self.whole = await self._written() and await self._cut()
            raise
        if await self._written():
            self._keep(frame)
        return frame

    def _keep(self, frame: Frame) -> None:
        entry = self._entry
        blocks = sum(len(one.blocks) for one in self._coming)
        if blocks >= _BLOCKS_MAX or sum(one.nbytes for one in self._coming) + frame.nbytes > self._room:
            self._give_up()
            return
        at = entry.nbytes
        entry.blocks.append(Block(at, frame.nbytes, frame.rows, frame.digest))
        entry.nbytes += frame.nbytes
        self._writing = asyncio.ensure_future(asyncio.to_thread(_write, entry.files[0], frame.payload, at, self._room))

    async def _written(self) -> bool:
        """Whether everything so far is in the file."""
        writing, self._writing = self._writing, None
        if writing is not None:
            try:
                slow = await writing > _SLOW_SECONDS
            except OSError:  # no room on the disk
                slow = True
            if slow:
                self._give_up()
        return not self.given_up

    def _give_up(self) -> None:
        """What has been written goes now, not with the read."""
        self.given_up = True
        self._entry.files, self._entry.nbytes = (), 0
        self._entry.blocks.clear()

    async def _cut(self) -> bool:
        """Whether the file ends with its last payload."""
        try:
            await asyncio.to_thread(os.ftruncate, self._entry.files[0].fileno(), self._entry.nbytes)
        except OSError:
            return False
        return True


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
        self._coming: list[Entry] = []  # being written
        self._endings = 0  # of agreements and versions, heard so far
        self._unlike: OrderedDict[str, None] = OrderedDict()  # reads whose files do not hold their messages
        if quota:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    @property
    def nbytes(self) -> int:
        return sum(entry.nbytes for entry in self._entries.values())

    def __len__(self) -> int:
        return len(self._entries)

    def key(self, asked: Asked, grants: Sequence[Grant]) -> str:
        """The key of this read; empty where the same question may not have the same bytes for an answer."""
        if not asked.plain_scan or asked.brought or asked.format != "arrow" or len(grants) != 1:
            return ""
        if asked.rows is not None or asked.nbytes is not None:
            return ""
        grant = grants[0]
        version = grant.held.version
        if not repeatable(grant.contract) or not _pins(version.source):
            return ""
        request = repr(replace(asked, tickets=asked.tickets[:1], query_id="", fragment="", seconds=None))
        told = request.replace(repr(asked.tickets[0]), "")  # every field but who shows which ticket,
        if asked.position:
            told = told.replace(asked.position, "")  # and a name that each read has for what does not leave
        parts = (
            version.digest, repr(version.source), to_json(grant.contract), grant.agreement_id, grant.consumer,
            grant.purpose, told,
        )  # fmt: skip
        return hashlib.sha256("\x00".join(parts).encode()).hexdigest()

    async def find(self, key: str, grant: Grant) -> Entry | None:
        """The stream in files, if there is one and the version's files are still what was registered."""
        self.sweep()
        entry = self._entries.get(key)
        if entry is None:
            return None
        if not await asyncio.to_thread(unchanged, grant.held.version.source["files"]):
            self._drop(entry)
            return None
        self._entries.move_to_end(key)
        return entry

    @asynccontextmanager
    async def serve(self, entry: Entry, *, spans: bool) -> AsyncIterator[Passed]:
        """The stream from its files; `spans`: as parts of them."""
        passed = Passed(entry, spans=spans)
        try:
            yield passed
        finally:
            await passed.settle()

    def keeps(self, key: str, grant: Grant) -> bool:
        """Whether a stream that is read now would be kept."""
        return key not in self._made and bool(self.quota) and keepable(grant.contract, sensitive=self._sensitive)

    @asynccontextmanager
    async def keep(self, key: str, grant: Grant, source: Result) -> AsyncIterator[Source]:
        """The source, written down on its way. It is kept if the block ends well and all of it has passed."""
        if not self.keeps(key, grant):
            yield source
            return
        self._made.add(key)
        endings = self._endings
        try:
            entry = _entry(key, grant, (await asyncio.to_thread(_nameless, self._folder),))
            keeping = Keeping(source, entry, min(self.quota, shutil.disk_usage(self._folder).free // 2), self._coming)
            self._coming.append(entry)
            try:
                yield keeping
            finally:
                self._coming.remove(entry)
            if keeping.whole and not grant.lease.revoked and endings == self._endings:
                self._add(entry)
        finally:
            self._made.discard(key)

    def wants_index(self, key: str, job: Job) -> bool:
        """Whether the files of this read may hold its messages: not known yet, and of the kind that can.

        Where each batch says where it ends, it says something else each time.
        """
        plain = job.codec == "none" and job.batch_rows is None and (job.only is None or not job.only.key)
        return bool(job.scan) and plain and job.relations[job.scan].kind == "arrow_ipc" and key not in self._unlike

    async def index(self, key: str, grant: Grant, job: Job, ask: Callable[[Job], Awaitable[Any]]) -> None:
        """Find out whether the owner's files hold the stream; then later passes are sent from them, without a copy."""
        if key in self._made or key in self._entries:
            return
        self._made.add(key)
        endings = self._endings  # the read has ended, so its lease hears of none
        try:
            found = await ask(replace(job, kind="verbatim", shared=False))
            refs = tuple(FileRef.from_json(dict(file)) for file in grant.held.version.source["files"])
            entry = _entry(key, grant, await asyncio.to_thread(_owners, refs), refs)
            entry.schema, entry.trailer = base64.b64decode(found["head"]), base64.b64decode(found["trailer"])
            entry.first_digest = bytes.fromhex(found["first"])
            entry.blocks = [
                Block(at, nbytes, rows, bytes.fromhex(digest), file)
                for file, at, nbytes, rows, digest in found["blocks"]
            ]
            if not grant.lease.revoked and endings == self._endings:
                self._add(entry)
        except Busy:
            pass  # another pass will do
        except HanseError as error:
            _log.debug("not sent from its files", code=error.code)
            self._unlike[key] = None
            while len(self._unlike) > _ENTRIES_MAX:
                self._unlike.popitem(last=False)
        finally:
            self._made.discard(key)

    def heard(self, event: Event) -> None:
        """What ends an agreement or a dataset ends what is prepared of it."""
        if isinstance(event, AgreementRevoked):
            self._endings += 1
            self.drop(lambda entry: entry.agreement == event.agreement)
        elif isinstance(event, DatasetRemoved | DatasetVersioned):
            self._endings += 1
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
        while self._entries and self._too_much():
            self._drop(next(iter(self._entries.values())))

    def _too_much(self) -> bool:
        blocks = sum(len(entry.blocks) for entry in self._entries.values())
        files = sum(len(entry.files) for entry in self._entries.values())
        many = len(self._entries) > _ENTRIES_MAX or blocks > _BLOCKS_MAX or files > _FILES_MAX
        return self.nbytes > self.quota or many

    def _drop(self, entry: Entry) -> None:
        self._entries.pop(entry.key, None)


def repeatable(contract: DataContract) -> bool:
    """Whether a contract gives the same bytes again: not for aggregates (each answer is judged anew) and quantities
    (what is left decides the batches)."""
    return contract.grid is None and not contract.limits.rationed


def keepable(contract: DataContract, *, sensitive: bool) -> bool:
    """Whether what a contract lets out may lie on the owner's disk a second time: with masks and duties, which mark
    personal data, only where the operator says so."""
    return repeatable(contract) and (sensitive or not (contract.masks or contract.obligations))


def _entry(key: str, grant: Grant, files: tuple[IO[bytes], ...], refs: tuple[FileRef, ...] = ()) -> Entry:
    ends, dataset = grant.contract.not_after, grant.held.dataset.id
    return Entry(key, grant.agreement_id, dataset, grant.held.version.digest, ends, files, refs)


def _owners(refs: Sequence[FileRef]) -> tuple[IO[bytes], ...]:
    with ExitStack() as stack:
        files = tuple(stack.enter_context(open_owners(ref)) for ref in refs)
        stack.pop_all()
    return files


def _pins(source: Mapping[str, Any]) -> bool:
    """Whether the version is made of files whose change we can see."""
    files = source.get("files") or ()
    return bool(files) and all(file.get("inode") and not file.get("etag") for file in files)


def _nameless(folder: Path) -> IO[bytes]:
    return tempfile.TemporaryFile("w+b", dir=folder)  # mode 0600 until its name goes, at once


def _write(file: IO[bytes], payload: memoryview, at: int, most: int) -> float:
    """Seconds that it took.

    What is written to an empty part of a file lies in the page cache in pieces as large as the write: so each huge page
    but the first is written whole, with nothing behind the payload, and later passes are sent from huge pages. The file
    does not become longer than `most` for that.
    """
    begun, number, end = time.monotonic(), file.fileno(), at + len(payload)
    last = end - end % _HUGE  # where the page begins that the payload ends in
    fresh = last >= max(at, 1)
    parts = [payload, _NOTHING[: max(0, min(last + _HUGE, most) - end)]] if fresh else [payload]
    written = os.pwritev(number, parts, at)
    while written < len(payload):
        written += os.pwrite(number, payload[written:], at + written)
    return time.monotonic() - begun
