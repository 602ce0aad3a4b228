"""Cache of prepared streams: what one contract releases of one version, kept as Arrow IPC files for later passes.

The first complete pass of a plain read is copied while it is sent (`cache_writer`). Later passes are sent from the file
(`CachedReader`) under the same admission, gate, accounting and log. Reads of blocks come in another order each epoch,
so each block is kept separately (`MixedStream`). Where the owner's Arrow files already hold the messages that leave, no
copy is made: the first pass leaves an index of them (`arrow_index`).

Fail closed. In case of doubt, the stream is read anew:
- A stream is kept only if version, contract and request alone decide its bytes: a plain scan of one dataset, under a
  contract without aggregates and quantities. A copy of a contract with masks or duties needs the operator's consent.
- The key covers the version's digest, the contract, the reader and the request. The files must be the registered ones.
- An entry is dropped when its agreement is revoked or ends, when version or contract change, or when room is needed.
  Each consumer has an equal share of the room, plus what the others leave. Entries unread for an hour go first.

Copies have no file names: no other process can open them, and none survives the end of this process.
Handles frames and their index; must not parse Arrow.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import shutil
import time
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import IO, Any
from weakref import WeakSet

from connector.dataplane.cache.cache_writer import BLOCKS_MAX, BlockWriter, CopyingSource, StreamCopy, open_nameless
from connector.dataplane.cache.cached_stream import CachedBlock, CachedReader, CacheEntry, StreamSource, open_owner_file
from connector.dataplane.read_request import ReadRequest, Split
from connector.datasets.file_access import check_files_unchanged, run_at_files
from connector.datasets.sources.source_files import FileRef
from connector.engine.pool.protocol import Job
from connector.engine.pool.worker_process import Result
from connector.errors import ConnectorError, Unavailable
from connector.events import AgreementRevoked, DatasetRemoved, DatasetVersioned, Event
from connector.infra.concurrency.recent_keys import put_recent
from connector.telemetry import logger
from connector.usage.held_agreement import ReadGrant
from policies.contracts.contract import DataContract, to_json

_ENTRIES_MAX = 256
_SMALL = 2**20  # bytes: smaller batches are not worth a copy of a block
_FILES_MAX = 256  # in all entries: their descriptors count against those for connections
_AWAY = 3600.0  # seconds after which an unread entry no longer counts as part of a share
_DAY = 86_400.0
_log = logger("dataplane")
_Measure = Callable[[CacheEntry], int]


class PreparedStreams:
    """The prepared streams of one connector, at most `quota` bytes.

    Room is made in this order: entries unread for an hour; then the least used entry of the consumer that holds the
    most, with entries that are being read last. An entry that is being read stays on disk until its readers end, even
    if dropped.
    """

    def __init__(
        self, folder: Path, *, quota: int, sensitive: bool = False, clock: Callable[[], float] = time.time
    ) -> None:
        """`sensitive`: also keep streams of contracts with masks and duties."""
        self.quota, self._sensitive = quota, sensitive
        self._folder = folder
        self._clock = clock
        self._entries: OrderedDict[str, CacheEntry] = OrderedDict()
        self._dropped: WeakSet[CacheEntry] = WeakSet()  # entries that still have readers
        self._made: set[str] = set()
        self._unable = False  # whether the last attempt to write failed: logged once
        self._coming: list[CacheEntry] = []  # being written
        self._under_way: set[_Preparation] = set()
        self._timer: asyncio.TimerHandle | None = None  # fires at the next end of a contract
        self._unlike: OrderedDict[str, None] = OrderedDict()  # keys of reads whose files do not hold their messages
        if quota:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    @property
    def nbytes(self) -> int:
        return sum(entry.nbytes for entry in self._entries.values())

    def __len__(self) -> int:
        return len(self._entries)

    def key(self, asked: ReadRequest, grants: Sequence[ReadGrant]) -> str:
        """Return the key of this read; empty where a repeated request may have other bytes."""
        if not asked.plain_scan or asked.brought or asked.format != "arrow" or len(grants) != 1:
            return ""
        if asked.rows is not None or asked.nbytes is not None:
            return ""
        grant = grants[0]
        version = grant.held.version
        if not is_repeatable(grant.contract) or not _is_pinned(version.source):
            return ""
        alike = replace(asked, tickets=asked.tickets[:1], query_id="", fragment="", seconds=None, transport="", to="")
        request = repr(alike)
        told = request.replace(repr(asked.tickets[0]), "")  # all fields except the ticket,
        if asked.position:
            told = told.replace(asked.position, "")  # and except the random name of the position column
        parts = (
            version.digest, repr(version.source), to_json(grant.contract), grant.agreement_id, grant.consumer,
            grant.purpose, told,
        )  # fmt: skip
        return hashlib.sha256("\x00".join(parts).encode()).hexdigest()

    async def find(self, key: str, grant: ReadGrant) -> CacheEntry | None:
        """Return the cached stream, or None without one or where the version's files have changed."""
        self.sweep()
        entry = self._entries.get(key)
        if entry is None:
            return None
        if not await check_files_unchanged(grant.held.version.source["files"]):
            self._drop(entry)
        if self._entries.get(key) is not entry:  # it may have been dropped or replaced meanwhile
            return None
        self._entries.move_to_end(key)
        return entry

    @asynccontextmanager
    async def serve(self, entry: CacheEntry, *, spans: bool) -> AsyncIterator[CachedReader]:
        """Read the stream from its files; `spans`: as parts of them."""
        passed = CachedReader(entry, spans=spans)
        with self.reading([entry]):
            try:
                yield passed
            finally:
                await passed.settle()

    @contextmanager
    def reading(self, entries: Collection[CacheEntry]) -> Iterator[None]:
        """Count a reader of these entries until the block ends."""
        for entry in entries:
            entry.readers += 1
        try:
            yield
        finally:
            for entry in entries:
                entry.readers -= 1
                entry.used = self._clock()

    def should_keep(self, key: str, grant: ReadGrant) -> bool:
        """Return whether a stream that is read now would be kept."""
        return key not in self._made and bool(self.quota) and is_keepable(grant.contract, sensitive=self._sensitive)

    @asynccontextmanager
    async def keep(self, key: str, grant: ReadGrant, source: Result) -> AsyncIterator[StreamSource]:
        """Yield the source, copied while it is read. The copy is kept if the block ends well and the copy is
        complete."""
        if not self.should_keep(key, grant):
            yield source
            return
        with self._track(grant, key) as preparing:
            copy = await self._begin_copy(key, grant, source)
            if copy is None:
                yield source
                return
            copying = CopyingSource(source, copy)
            self._coming.append(copy.entry)
            try:
                yield copying
            finally:
                self._coming.remove(copy.entry)
            if copying.is_whole and preparing.may_be_kept:
                self._add(copy.entry)

    def make_block_prefix(self, asked: ReadRequest, grants: Sequence[ReadGrant]) -> str:
        """Return the key prefix that reads with the same bytes per block share; empty where blocks are not kept."""
        split = asked.split
        if split is None or not split.only.key or any(one.block < 0 for one in split.only.ranges):
            return ""
        sql = asked.sql.replace(asked.position, "") if asked.position else asked.sql
        key = self.key(replace(asked, split=None, sql=sql), grants)
        kept = bool(key) and bool(self.quota) and is_keepable(grants[0].contract, sensitive=self._sensitive)
        return f"{key}/" if kept else ""

    async def find_blocks(self, form: str, split: Split, grant: ReadGrant) -> dict[int, CacheEntry]:
        """Return the cached blocks of a read, by number."""
        self.sweep()
        known = [one.block for one in split.only.ranges[split.resumed :]]
        found = {one: entry for one in known if (entry := self._entries.get(f"{form}{one}")) is not None}
        if found and not await check_files_unchanged(grant.held.version.source["files"]):
            self.drop(lambda entry: entry.key.startswith(form))
            return {}
        there = {one: entry for one, entry in found.items() if self._entries.get(entry.key) is entry}  # as in `find`
        for entry in there.values():
            self._entries.move_to_end(entry.key)
        return there

    @asynccontextmanager
    async def write_blocks(
        self, form: str, split: Split, grant: ReadGrant, source: Result
    ) -> AsyncIterator[BlockWriter]:
        """Yield a writer for blocks of a read. Its copies are kept if the block ends well and all frames have passed.

        Cached blocks of the same prefix stay: blocks of a dataset larger than the room would only replace each other.
        """
        made, coming = set[str](), list[CacheEntry]()
        left_out = split.only.ranges[0].block if split.resumed else -1

        async def begin(block: int) -> StreamCopy | None:
            key = f"{form}{block}"
            kept = sum(one.startswith(form) for one in self._entries)  # includes other reads
            own = kept + sum(one.consumer == grant.consumer for one in self._coming)
            full = (
                own >= self._allowed_share(grant.consumer, _count_files, _FILES_MAX) or len(self._coming) >= _FILES_MAX
            )
            full |= any(not one.files for one in coming)
            small = source.job.batch_bytes < _SMALL  # batches are small while there are many readers
            if block == left_out or full or small or key in self._made or key in self._entries:
                return None
            self._made.add(key)
            made.add(key)
            copy = await self._begin_copy(key, grant, source, form=form)
            if copy is not None:
                coming.append(copy.entry)
                self._coming.append(copy.entry)
            return copy

        writer = BlockWriter(begin)
        try:
            with self._track(grant) as preparing:
                yield writer
                if writer.ended and preparing.may_be_kept:
                    for entry in writer.entries:
                        self._add(entry)
        finally:
            self._made -= made
            for entry in coming:
                self._coming.remove(entry)

    async def _begin_copy(self, key: str, grant: ReadGrant, source: Result, *, form: str = "") -> StreamCopy | None:
        """Start a copy that shares its room with the blocks of the same prefix; None if no file can be made."""
        try:
            entry = _make_entry(key, grant, (await asyncio.to_thread(open_nameless, self._folder),))
            most = min(self.quota, shutil.disk_usage(self._folder).free // 2)
        except OSError as error:
            if not self._unable:
                _log.warning("streams are not kept for later passes", folder=str(self._folder), reason=error.strerror)
            self._unable = True
            return None
        self._unable = False
        return StreamCopy(
            source, entry, self._coming, room=min(most, self._free_bytes(grant.consumer, form)), most=most
        )

    def _free_bytes(self, consumer: str, form: str) -> int:
        """Return the bytes that a consumer may write now: its share without entries being read or of the same
        prefix."""
        stays = [
            one.nbytes
            for one in self._list_held()
            if one.consumer == consumer and (one.readers or one in self._dropped or (form and one.key.startswith(form)))
        ]
        return self._allowed_share(consumer, _count_bytes, self.quota) - sum(stays)

    def wants_index(self, key: str, job: Job) -> bool:
        """Return whether the owner's files may hold this read's messages: of a suitable kind, and not ruled out before.

        Batches that carry a cursor differ each time, so files never hold them.
        """
        plain = job.codec == "none" and job.batch_rows is None and (job.only is None or not job.only.key)
        return bool(job.scan) and plain and job.relations[job.scan].kind == "arrow_ipc" and key not in self._unlike

    async def index(self, key: str, grant: ReadGrant, job: Job, ask: Callable[[Job], Awaitable[Any]]) -> None:
        """Index the owner's files if they hold the stream. Later passes are then sent from them, without a copy."""
        if key in self._made or key in self._entries:
            return
        with self._track(grant, key) as preparing:  # the read has ended, so its lease gets no revocation
            try:
                found = await ask(replace(job, kind="verbatim", shared=False))
                refs = tuple(FileRef.from_json(dict(file)) for file in grant.held.version.source["files"])
                entry = _make_entry(key, grant, await run_at_files(refs, partial(_open_owner_files, refs)), refs)
                entry.schema, entry.trailer = base64.b64decode(found["head"]), base64.b64decode(found["trailer"])
                entry.first_digest = bytes.fromhex(found["first"])
                entry.blocks = [
                    CachedBlock(at, nbytes, rows, bytes.fromhex(digest), file)
                    for file, at, nbytes, rows, digest in found["blocks"]
                ]
                if preparing.may_be_kept:
                    self._add(entry)
            except Unavailable:
                pass  # a later pass tries again
            except ConnectorError as error:
                _log.debug("not sent from its files", code=error.code)
                put_recent(self._unlike, key, None, most=_ENTRIES_MAX)

    def on_event(self, event: Event) -> None:
        """Drop the entries of an agreement or a dataset that has ended or changed."""
        if isinstance(event, AgreementRevoked):
            self._mark_ended(event.agreement)
            self.drop(lambda entry: entry.agreement == event.agreement)
        elif isinstance(event, DatasetRemoved | DatasetVersioned):
            self._mark_ended(event.dataset)
            self.drop(lambda entry: entry.dataset == event.dataset)

    def _mark_ended(self, one: str) -> None:
        for preparing in self._under_way:
            preparing.ended |= one in (preparing.grant.agreement_id, preparing.grant.held.dataset.id)

    @contextmanager
    def _track(self, grant: ReadGrant, *keys: str) -> Iterator[_Preparation]:
        """Track work under a grant, and reserve its keys, until the block ends."""
        preparing = _Preparation(grant)
        self._under_way.add(preparing)
        self._made.update(keys)
        try:
            yield preparing
        finally:
            self._under_way.discard(preparing)
            self._made.difference_update(keys)

    def drop(self, wanted: Callable[[CacheEntry], bool]) -> None:
        """Drop matching entries. An entry that is being read stays until its readers end, which the gate ensures."""
        for entry in [entry for entry in self._entries.values() if wanted(entry)]:
            self._drop(entry)

    def sweep(self) -> None:
        """Drop the entries whose contract has ended."""
        now = self._clock()
        self.drop(lambda entry: entry.ends is not None and entry.ends <= now)

    def _sweep_on_time(self) -> None:
        """Sweep now, and again when the next contract ends, within a day at most: clocks may be set."""
        self.sweep()
        if self._timer is not None:
            self._timer.cancel()
        ends = [entry.ends for entry in self._entries.values() if entry.ends is not None]
        if ends:
            seconds = min(_DAY, max(0.0, min(ends) - self._clock()))
            self._timer = asyncio.get_running_loop().call_later(seconds, self._sweep_on_time)

    def _add(self, entry: CacheEntry) -> None:
        self.drop(lambda other: other.dataset == entry.dataset and other.version != entry.version)
        self._entries[entry.key], entry.used = entry, self._clock()
        self._sweep_on_time()
        for of, most in (
            (_count_bytes, self.quota),
            (_count_entry, _ENTRIES_MAX),
            (_count_blocks, BLOCKS_MAX),
            (_count_files, _FILES_MAX),
        ):
            while (less := self._choose_dropped(entry.consumer, of, most)) is not None:
                self._drop(less)

    def _list_held(self) -> list[CacheEntry]:
        return [*self._entries.values(), *self._dropped]

    def _allowed_share(self, consumer: str, of: _Measure, most: int) -> int:
        """Return how much a consumer may hold: an equal share, or what the others leave if that is more.

        Abandoned entries do not count for the others.
        """
        others = Counter[str]()
        for one in self._list_held():
            if one.consumer != consumer and not self._is_abandoned(one):
                others[one.consumer] += of(one)
        return max(most // (len(others) + 1), most - others.total())

    def _is_abandoned(self, one: CacheEntry) -> bool:
        """Return whether an entry is unread for so long that it no longer counts for its consumer."""
        return not one.readers and self._clock() - one.used > _AWAY

    def _choose_dropped(self, adding: str, of: _Measure, most: int) -> CacheEntry | None:
        """Return the entry to drop while a limit is exceeded, None within the limit. The least used entry goes first.

        1. An abandoned entry of any consumer.
        2. An unread entry of the consumer that has just added one, if that consumer exceeds its share. Dropping an
           entry that is being read frees nothing.
        3. An entry of the consumer that holds the most.
        """
        held = Counter[str]()
        for one in self._list_held():
            held[one.consumer] += of(one)
        if held.total() <= most:
            return None
        entries = self._entries.values()
        left = next((one for one in entries if of(one) and self._is_abandoned(one)), None)
        if left is not None:
            return left
        own = next((one for one in entries if one.consumer == adding and not one.readers), None)
        if own is not None and held[adding] > self._allowed_share(adding, of, most):
            return own
        if sum(map(of, entries)) <= most:
            return None
        whose = max((one.consumer for one in entries), key=held.__getitem__)
        return min((one for one in entries if one.consumer == whose), key=lambda one: one.readers > 0)

    def _drop(self, entry: CacheEntry) -> None:
        if self._entries.get(entry.key) is entry:
            del self._entries[entry.key]
        if entry.readers:
            self._dropped.add(entry)


@dataclass(slots=True, eq=False)
class _Preparation:
    """Work under a grant whose result is to be kept. It is in `_under_way` while it runs."""

    grant: ReadGrant
    ended: bool = False  # the agreement or the version has ended

    @property
    def may_be_kept(self) -> bool:
        return not self.ended and not self.grant.lease.revoked


def is_repeatable(contract: DataContract) -> bool:
    """Return whether a contract gives the same bytes again.

    Not with aggregates, where each answer is judged anew, nor with quantities, where the rest decides the batches.
    """
    return contract.grid is None and not contract.limits.rationed


def is_keepable(contract: DataContract, *, sensitive: bool) -> bool:
    """Return whether a contract's rows may be on the owner's disk a second time.

    Masks and duties mark personal data: with them only where the operator allows it.
    """
    return is_repeatable(contract) and (sensitive or not (contract.masks or contract.obligations))


def _count_bytes(entry: CacheEntry) -> int:
    return entry.nbytes


def _count_entry(_: CacheEntry) -> int:
    return 1


def _count_blocks(entry: CacheEntry) -> int:
    return len(entry.blocks)


def _count_files(entry: CacheEntry) -> int:
    return len(entry.files)


def _make_entry(key: str, grant: ReadGrant, files: tuple[IO[bytes], ...], refs: tuple[FileRef, ...] = ()) -> CacheEntry:
    ends, dataset = grant.contract.not_after, grant.held.dataset.id
    return CacheEntry(key, grant.consumer, grant.agreement_id, dataset, grant.held.version.digest, ends, files, refs)


def _open_owner_files(refs: Sequence[FileRef]) -> tuple[IO[bytes], ...]:
    with ExitStack() as stack:
        files = tuple(stack.enter_context(open_owner_file(ref)) for ref in refs)
        stack.pop_all()
    return files


def _is_pinned(source: Mapping[str, Any]) -> bool:
    """Return whether the version consists of files whose change can be detected."""
    files = source.get("files") or ()
    return bool(files) and all(file.get("inode") and not file.get("etag") for file in files)
