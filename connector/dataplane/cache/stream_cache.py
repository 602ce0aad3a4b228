"""Prepared streams: what one contract lets out of one version, kept as Arrow IPC, so that later passes decode nothing.

The first complete pass of a plain read is written beside its delivery (`copies`); later ones are sent from the file
(`Passed`) under the same admission, gate, accounting and log. Of reads of blocks, which come in another order in each
epoch, each block is kept by itself (`Mixed`). Where the owner's Arrow files hold the very messages that
leave, there is no copy: an index of them is made after the first pass (`query.verbatim`). Fail closed, any doubt means
"read it anew":
- only where nothing but version, contract and request makes the bytes: a plain scan of one dataset, of a contract
  without aggregates and quantities, and, for a copy, unless the operator allows it, without masks and duties;
- the key holds the version's digest, the contract, the reader, the request; the files must be those registered;
- it goes when the agreement is revoked or ends, when the version or the contract is another, or when room is needed:
  each consumer has an equal share of it, and what others leave; what nobody has read for an hour is left.
Copies have no names: nobody else can open them, and a process that ends, however it ends, leaves none behind.
Knows frames and their index, and nothing of Arrow.
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

from connector.dataplane.cache.cache_writer import BLOCKS_MAX, Copy, Keeping, Shelf, nameless
from connector.dataplane.cache.cached_stream import Block, Entry, Passed, Source, open_owners
from connector.dataplane.read_request import Asked, Split
from connector.datasets.file_access import check_files_unchanged, run_at_files
from connector.datasets.sources.source_files import FileRef
from connector.engine.pool.protocol import Job
from connector.engine.pool.worker_process import Result
from connector.errors import Busy, HanseError
from connector.events import AgreementRevoked, DatasetRemoved, DatasetVersioned, Event
from connector.infra.concurrency.recent_keys import put_recent
from connector.telemetry import logger
from connector.usage.held_agreement import ReadGrant
from policies.contracts.contract import DataContract, to_json

_ENTRIES_MAX = 256
_SMALL = 2**20  # bytes of batches that are not worth a copy of a block
_FILES_MAX = 256  # of all entries: descriptors that they hold, of those that connections need, too
_AWAY = 3600.0  # seconds after which what nobody reads is no part of a share any more
_DAY = 86_400.0
_log = logger("dataplane")
_Measure = Callable[[Entry], int]


class PreparedStreams:
    """The prepared streams of one connector, at most `quota` bytes of them. What nobody has read for an hour goes
    first, then of who has most the least used, and before those that somebody reads: these stay on the disk for as
    long, whether they are forgotten or not."""

    def __init__(
        self, folder: Path, *, quota: int, sensitive: bool = False, clock: Callable[[], float] = time.time
    ) -> None:
        """`sensitive`: keep streams of contracts with masks and duties, too."""
        self.quota, self._sensitive = quota, sensitive
        self._folder = folder
        self._clock = clock
        self._entries: OrderedDict[str, Entry] = OrderedDict()
        self._dropped: WeakSet[Entry] = WeakSet()  # that readers hold on to
        self._made: set[str] = set()
        self._unable = False  # to write any, at the last attempt: told once
        self._coming: list[Entry] = []  # being written
        self._under_way: set[_Preparing] = set()
        self._timer: asyncio.TimerHandle | None = None  # of the next end of a contract
        self._unlike: OrderedDict[str, None] = OrderedDict()  # reads whose files do not hold their messages
        if quota:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)

    @property
    def nbytes(self) -> int:
        return sum(entry.nbytes for entry in self._entries.values())

    def __len__(self) -> int:
        return len(self._entries)

    def key(self, asked: Asked, grants: Sequence[ReadGrant]) -> str:
        """The key of this read; empty where the same question may not have the same bytes for an answer."""
        if not asked.plain_scan or asked.brought or asked.format != "arrow" or len(grants) != 1:
            return ""
        if asked.rows is not None or asked.nbytes is not None:
            return ""
        grant = grants[0]
        version = grant.held.version
        if not repeatable(grant.contract) or not _pins(version.source):
            return ""
        alike = replace(asked, tickets=asked.tickets[:1], query_id="", fragment="", seconds=None, transport="", to="")
        request = repr(alike)
        told = request.replace(repr(asked.tickets[0]), "")  # every field but who shows which ticket,
        if asked.position:
            told = told.replace(asked.position, "")  # and a name that each read has for what does not leave
        parts = (
            version.digest, repr(version.source), to_json(grant.contract), grant.agreement_id, grant.consumer,
            grant.purpose, told,
        )  # fmt: skip
        return hashlib.sha256("\x00".join(parts).encode()).hexdigest()

    async def find(self, key: str, grant: ReadGrant) -> Entry | None:
        """The stream in files, if there is one and the version's files are still what was registered."""
        self.sweep()
        entry = self._entries.get(key)
        if entry is None:
            return None
        if not await check_files_unchanged(grant.held.version.source["files"]):
            self._drop(entry)
        if self._entries.get(key) is not entry:  # it may have gone, or another have come, while we looked
            return None
        self._entries.move_to_end(key)
        return entry

    @asynccontextmanager
    async def serve(self, entry: Entry, *, spans: bool) -> AsyncIterator[Passed]:
        """The stream from its files; `spans`: as parts of them."""
        passed = Passed(entry, spans=spans)
        with self.reading([entry]):
            try:
                yield passed
            finally:
                await passed.settle()

    @contextmanager
    def reading(self, entries: Collection[Entry]) -> Iterator[None]:
        """These are read until the block ends."""
        for entry in entries:
            entry.readers += 1
        try:
            yield
        finally:
            for entry in entries:
                entry.readers -= 1
                entry.used = self._clock()

    def keeps(self, key: str, grant: ReadGrant) -> bool:
        """Whether a stream that is read now would be kept."""
        return key not in self._made and bool(self.quota) and keepable(grant.contract, sensitive=self._sensitive)

    @asynccontextmanager
    async def keep(self, key: str, grant: ReadGrant, source: Result) -> AsyncIterator[Source]:
        """The source, written down on its way. It is kept if the block ends well and all of it has passed."""
        if not self.keeps(key, grant):
            yield source
            return
        with self._preparing(grant, key) as preparing:
            copy = await self._copy(key, grant, source)
            if copy is None:
                yield source
                return
            keeping = Keeping(source, copy)
            self._coming.append(copy.entry)
            try:
                yield keeping
            finally:
                self._coming.remove(copy.entry)
            if keeping.whole and preparing.may_be_kept:
                self._add(copy.entry)

    def form(self, asked: Asked, grants: Sequence[ReadGrant]) -> str:
        """What all reads of blocks have in common whose blocks have the same bytes; empty where none is kept."""
        split = asked.split
        if split is None or not split.only.key or any(one.block < 0 for one in split.only.ranges):
            return ""
        sql = asked.sql.replace(asked.position, "") if asked.position else asked.sql
        key = self.key(replace(asked, split=None, sql=sql), grants)
        kept = bool(key) and bool(self.quota) and keepable(grants[0].contract, sensitive=self._sensitive)
        return f"{key}/" if kept else ""

    async def blocks(self, form: str, split: Split, grant: ReadGrant) -> dict[int, Entry]:
        """Those blocks of a read that are kept, by number."""
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
    async def shelf(self, form: str, split: Split, grant: ReadGrant, source: Result) -> AsyncIterator[Shelf]:
        """Where blocks of a read are written down on their way. They are kept if the block ends well and all of it has
        passed. What is kept of the same form stays: blocks of a dataset that has not room enough would only take turns.
        """
        made, coming = set[str](), list[Entry]()
        left_out = split.only.ranges[0].block if split.resumed else -1

        async def begin(block: int) -> Copy | None:
            key = f"{form}{block}"
            kept = sum(one.startswith(form) for one in self._entries)  # by other reads, too
            own = kept + sum(one.consumer == grant.consumer for one in self._coming)
            full = own >= self._may_hold(grant.consumer, _files, _FILES_MAX) or len(self._coming) >= _FILES_MAX
            full |= any(not one.files for one in coming)
            small = source.job.batch_bytes < _SMALL  # as for many readers; later ones may be few
            if block == left_out or full or small or key in self._made or key in self._entries:
                return None
            self._made.add(key)
            made.add(key)
            copy = await self._copy(key, grant, source, form=form)
            if copy is not None:
                coming.append(copy.entry)
                self._coming.append(copy.entry)
            return copy

        shelf = Shelf(begin)
        try:
            with self._preparing(grant) as preparing:
                yield shelf
                if shelf.ended and preparing.may_be_kept:
                    for entry in shelf.whole:
                        self._add(entry)
        finally:
            self._made -= made
            for entry in coming:
                self._coming.remove(entry)

    async def _copy(self, key: str, grant: ReadGrant, source: Result, *, form: str = "") -> Copy | None:
        """One that may be written, beside all of this `form`; None where the system has no place for any."""
        try:
            entry = _entry(key, grant, (await asyncio.to_thread(nameless, self._folder),))
            most = min(self.quota, shutil.disk_usage(self._folder).free // 2)
        except OSError as error:
            if not self._unable:
                _log.warning("streams are not kept for later passes", folder=str(self._folder), reason=error.strerror)
            self._unable = True
            return None
        self._unable = False
        return Copy(source, entry, self._coming, room=min(most, self._room(grant.consumer, form)), most=most)

    def _room(self, consumer: str, form: str) -> int:
        """Bytes of his share that somebody may write now, beside what of it is read, and those of the form."""
        stays = [
            one.nbytes
            for one in self._held()
            if one.consumer == consumer and (one.readers or one in self._dropped or (form and one.key.startswith(form)))
        ]
        return self._may_hold(consumer, _nbytes, self.quota) - sum(stays)

    def wants_index(self, key: str, job: Job) -> bool:
        """Whether the files of this read may hold its messages: not known yet, and of the kind that can.

        Where each batch says where it ends, it says something else each time.
        """
        plain = job.codec == "none" and job.batch_rows is None and (job.only is None or not job.only.key)
        return bool(job.scan) and plain and job.relations[job.scan].kind == "arrow_ipc" and key not in self._unlike

    async def index(self, key: str, grant: ReadGrant, job: Job, ask: Callable[[Job], Awaitable[Any]]) -> None:
        """Find out whether the owner's files hold the stream; then later passes are sent from them, without a copy."""
        if key in self._made or key in self._entries:
            return
        with self._preparing(grant, key) as preparing:  # the read has ended, so its lease hears of nothing
            try:
                found = await ask(replace(job, kind="verbatim", shared=False))
                refs = tuple(FileRef.from_json(dict(file)) for file in grant.held.version.source["files"])
                entry = _entry(key, grant, await run_at_files(refs, partial(_owners, refs)), refs)
                entry.schema, entry.trailer = base64.b64decode(found["head"]), base64.b64decode(found["trailer"])
                entry.first_digest = bytes.fromhex(found["first"])
                entry.blocks = [
                    Block(at, nbytes, rows, bytes.fromhex(digest), file)
                    for file, at, nbytes, rows, digest in found["blocks"]
                ]
                if preparing.may_be_kept:
                    self._add(entry)
            except Busy:
                pass  # another pass will do
            except HanseError as error:
                _log.debug("not sent from its files", code=error.code)
                put_recent(self._unlike, key, None, most=_ENTRIES_MAX)

    def heard(self, event: Event) -> None:
        """What ends an agreement or a dataset ends what is prepared of it."""
        if isinstance(event, AgreementRevoked):
            self._end(event.agreement)
            self.drop(lambda entry: entry.agreement == event.agreement)
        elif isinstance(event, DatasetRemoved | DatasetVersioned):
            self._end(event.dataset)
            self.drop(lambda entry: entry.dataset == event.dataset)

    def _end(self, one: str) -> None:
        for preparing in self._under_way:
            preparing.ended |= one in (preparing.grant.agreement_id, preparing.grant.held.dataset.id)

    @contextmanager
    def _preparing(self, grant: ReadGrant, *keys: str) -> Iterator[_Preparing]:
        """What is prepared under a grant, by nobody else under these keys, until the block ends."""
        preparing = _Preparing(grant)
        self._under_way.add(preparing)
        self._made.update(keys)
        try:
            yield preparing
        finally:
            self._under_way.discard(preparing)
            self._made.difference_update(keys)

    def drop(self, wanted: Callable[[Entry], bool]) -> None:
        """Forget some of them now; one that is being read goes with its reader, whom the gate stops."""
        for entry in [entry for entry in self._entries.values() if wanted(entry)]:
            self._drop(entry)

    def sweep(self) -> None:
        """Forget those whose contract has ended."""
        now = self._clock()
        self.drop(lambda entry: entry.ends is not None and entry.ends <= now)

    def _sweep_on_time(self) -> None:
        """Now, and again when the next contract ends; at the latest in a day, as clocks are set."""
        self.sweep()
        if self._timer is not None:
            self._timer.cancel()
        ends = [entry.ends for entry in self._entries.values() if entry.ends is not None]
        if ends:
            seconds = min(_DAY, max(0.0, min(ends) - self._clock()))
            self._timer = asyncio.get_running_loop().call_later(seconds, self._sweep_on_time)

    def _add(self, entry: Entry) -> None:
        self.drop(lambda other: other.dataset == entry.dataset and other.version != entry.version)
        self._entries[entry.key], entry.used = entry, self._clock()
        self._sweep_on_time()
        for of, most in ((_nbytes, self.quota), (_one, _ENTRIES_MAX), (_blocks, BLOCKS_MAX), (_files, _FILES_MAX)):
            while (less := self._less(entry.consumer, of, most)) is not None:
                self._drop(less)

    def _held(self) -> list[Entry]:
        return [*self._entries.values(), *self._dropped]

    def _may_hold(self, consumer: str, of: _Measure, most: int) -> int:
        """How much one may hold: an equal share, or what others leave, of whom those who are away hold nothing."""
        others = Counter[str]()
        for one in self._held():
            if one.consumer != consumer and not self._left(one):
                others[one.consumer] += of(one)
        return max(most // (len(others) + 1), most - others.total())

    def _left(self, one: Entry) -> bool:
        """Whether it is anybody's room: its consumer may never come again."""
        return not one.readers and self._clock() - one.used > _AWAY

    def _less(self, adding: str, of: _Measure, most: int) -> Entry | None:
        """What goes where there is too much: what is left, whosever it was; then of who has just added and is over its
        share what nobody reads, which would free nothing; else of who holds most. The least used first."""
        held = Counter[str]()
        for one in self._held():
            held[one.consumer] += of(one)
        if held.total() <= most:
            return None
        entries = self._entries.values()
        left = next((one for one in entries if of(one) and self._left(one)), None)
        if left is not None:
            return left
        own = next((one for one in entries if one.consumer == adding and not one.readers), None)
        if own is not None and held[adding] > self._may_hold(adding, of, most):
            return own
        if sum(map(of, entries)) <= most:
            return None
        whose = max((one.consumer for one in entries), key=held.__getitem__)
        return min((one for one in entries if one.consumer == whose), key=lambda one: one.readers > 0)

    def _drop(self, entry: Entry) -> None:
        if self._entries.get(entry.key) is entry:
            del self._entries[entry.key]
        if entry.readers:
            self._dropped.add(entry)


@dataclass(slots=True, eq=False)
class _Preparing:
    """What is read under a grant to be kept, for as long as it is `_under_way`."""

    grant: ReadGrant
    ended: bool = False  # its agreement, or its version of the dataset

    @property
    def may_be_kept(self) -> bool:
        return not self.ended and not self.grant.lease.revoked


def repeatable(contract: DataContract) -> bool:
    """Whether a contract gives the same bytes again: not for aggregates (each answer is judged anew) and quantities
    (what is left decides the batches)."""
    return contract.grid is None and not contract.limits.rationed


def keepable(contract: DataContract, *, sensitive: bool) -> bool:
    """Whether what a contract lets out may lie on the owner's disk a second time: with masks and duties, which mark
    personal data, only where the operator says so."""
    return repeatable(contract) and (sensitive or not (contract.masks or contract.obligations))


def _nbytes(entry: Entry) -> int:
    return entry.nbytes


def _one(_: Entry) -> int:
    return 1


def _blocks(entry: Entry) -> int:
    return len(entry.blocks)


def _files(entry: Entry) -> int:
    return len(entry.files)


def _entry(key: str, grant: ReadGrant, files: tuple[IO[bytes], ...], refs: tuple[FileRef, ...] = ()) -> Entry:
    ends, dataset = grant.contract.not_after, grant.held.dataset.id
    return Entry(key, grant.consumer, grant.agreement_id, dataset, grant.held.version.digest, ends, files, refs)


def _owners(refs: Sequence[FileRef]) -> tuple[IO[bytes], ...]:
    with ExitStack() as stack:
        files = tuple(stack.enter_context(open_owners(ref)) for ref in refs)
        stack.pop_all()
    return files


def _pins(source: Mapping[str, Any]) -> bool:
    """Whether the version is made of files whose change we can see."""
    files = source.get("files") or ()
    return bool(files) and all(file.get("inode") and not file.get("etag") for file in files)
