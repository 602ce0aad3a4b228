"""A bounded cache of blocks of remote objects on the local disk, lent out as open descriptors.

A block's place is named by the object's ETag, so it is never older or newer than its version; a file is 0600 in a
folder of this process's own, complete when it has its name, and gone with the process; what one that was killed has
left goes with the next start. The least recently used go first when the quota is reached, or the disk is full; a
descriptor that was lent stays good. Knows nothing of stores, jobs or formats.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import hashlib
import os
import shutil
import tempfile
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from connector.datasets.sources.source_files import FileRef

BLOCK = 2**20
_TOGETHER = 8  # blocks that one request to the store brings at most
_AHEAD = 2  # requests under way for one reader beside the one it waits for
_AT_ONCE = 8  # requests under way at all: bounds the memory
_FULL = frozenset((errno.ENOSPC, errno.EDQUOT))

Fetch = Callable[[FileRef, str, int, int], Awaitable["bytes | memoryview"]]  # object, store, start, stop


class Blocks:
    """Blocks of objects. `fetch(ref, store, start, stop)` brings bytes that are not here."""

    def __init__(self, folder: Path, fetch: Fetch, *, quota: int) -> None:
        self._parent = folder
        self._fetch = fetch
        self._quota = max(quota, 2 * _TOGETHER * BLOCK)
        self._kept: OrderedDict[str, int] = OrderedDict()  # a block's file and its size, the latest used last
        self._total = 0
        self._fetching: dict[tuple[str, int], asyncio.Task[None]] = {}
        self._gate = asyncio.Semaphore(_AT_ONCE)
        self._making: asyncio.Future[tuple[Path, int]] | None = None  # the folder, and its lock
        self._folder: Path | None = None
        self.hits = self.misses = 0

    async def sweep(self) -> None:
        """Remove what processes that have gone have left."""
        await asyncio.to_thread(_sweep, self._parent)

    async def read(self, ref: FileRef, *, store: str, first: int, count: int) -> AsyncIterator[int]:
        """A descriptor for each of `count` blocks from number `first` on, in order; whoever takes one closes it."""
        if self._folder is None:
            await self._move_in()
        label = _label(ref, store)
        runs = _runs(first, count)
        tasks: list[asyncio.Task[None]] = []
        for number, run in enumerate(runs):
            while len(tasks) <= min(number + _AHEAD, len(runs) - 1):
                tasks.append(self._start(label, ref, store, runs[len(tasks)]))
            await asyncio.shield(tasks[number])
            for block in run:
                yield await self._opened(label, ref, store, block)

    @property
    def used(self) -> int:
        """Bytes that the cache takes."""
        return self._total

    def close(self) -> None:
        """Remove everything."""
        for task in self._fetching.values():
            task.cancel()
        making, self._folder, self._making = self._making, None, None
        if making is not None and making.done():
            _move_out(making)
        elif making is not None:
            making.add_done_callback(_move_out)

    async def _move_in(self) -> None:
        """Make our folder, once, in a thread: others may have left much, or be about to remove it."""
        if self._making is None:
            self._making = asyncio.ensure_future(asyncio.to_thread(_own_folder, self._parent))
        making = self._making
        try:
            folder, _ = await asyncio.shield(making)
        except OSError:
            if self._making is making:
                self._making = None
            raise
        if self._making is not making:
            raise FileNotFoundError("the cache is closed")
        self._folder = folder

    def _start(self, label: str, ref: FileRef, store: str, run: range) -> asyncio.Task[None]:
        """Bring what of a run is missing; two readers of one run share the work."""
        key = (label, run.start // _TOGETHER)
        before = self._fetching.get(key)
        task = asyncio.get_running_loop().create_task(self._bring(label, ref, store, run, before))
        self._fetching[key] = task
        task.add_done_callback(lambda done: self._done(key, done))
        return task

    def _done(self, key: tuple[str, int], task: asyncio.Task[None]) -> None:
        if self._fetching.get(key) is task:
            del self._fetching[key]
        if not task.cancelled():
            task.exception()  # whoever waits has it; nobody waits where a reader has gone

    async def _bring(self, label: str, ref: FileRef, store: str, run: range, before: asyncio.Task[None] | None) -> None:
        if before is not None:
            await asyncio.wait([before])
        missing = [block for block in run if self._path(label, block) not in self._kept]
        self.hits += len(run) - len(missing)
        self.misses += len(missing)
        if not missing:
            return
        start, stop = missing[0] * BLOCK, min((missing[-1] + 1) * BLOCK, ref.size)
        async with self._gate:
            body = memoryview(await self._fetch(ref, store, start, stop))
            pieces = {block: body[block * BLOCK - start : (block + 1) * BLOCK - start] for block in missing}
            await self._put([(self._path(label, block), piece) for block, piece in pieces.items()])

    async def _put(self, pieces: Sequence[tuple[str, memoryview]]) -> None:
        """Write them and keep them; on a disk that is full in the place of others, for as long as there are any."""
        while pieces:
            written, error = await asyncio.to_thread(_write, pieces)
            for path, piece in pieces[:written]:
                self._keep(path, len(piece))
            pieces = pieces[written:]
            if error is not None and not (error.errno in _FULL and self._make_room(sum(len(one) for _, one in pieces))):
                raise error

    def _keep(self, path: str, size: int) -> None:
        self._total += size - self._kept.pop(path, 0)
        self._kept[path] = size
        while self._total > self._quota:
            self._drop_oldest()

    def _make_room(self, size: int) -> bool:
        """Whether something could go for so many bytes."""
        before = self._total
        while self._kept and before - self._total < size:
            self._drop_oldest()
        return self._total < before

    def _drop_oldest(self) -> None:
        oldest, freed = self._kept.popitem(last=False)
        self._total -= freed
        with suppress(OSError):
            os.unlink(oldest)

    async def _opened(self, label: str, ref: FileRef, store: str, block: int) -> int:
        path = self._path(label, block)
        while True:  # a quota that is smaller than what all read at once may have taken it again
            try:
                descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
                break
            except FileNotFoundError:
                self._total -= self._kept.pop(path, 0)
                await self._start(label, ref, store, range(block, block + 1))
        with suppress(KeyError):
            self._kept.move_to_end(path)
        return descriptor

    def _path(self, label: str, block: int) -> str:
        if self._folder is None:
            raise FileNotFoundError("the cache is closed")
        return f"{self._folder}/{label}-{block}"


def _write(pieces: Sequence[tuple[str, memoryview]]) -> tuple[int, OSError | None]:
    """How many of them have their name, in their order, and why the next has not: of that one nothing is there."""
    for written, (path, piece) in enumerate(pieces):
        draft = f"{path}.new"
        try:
            descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
            with os.fdopen(descriptor, "wb") as file:
                file.write(piece)
            os.replace(draft, path)
        except OSError as error:
            with suppress(OSError):
                os.unlink(draft)
            return written, error
    return len(pieces), None


def _runs(first: int, count: int) -> list[range]:
    """The blocks in runs that one request brings, cut at the same places for everybody."""
    stop, found = first + count, []
    while first < stop:
        end = min(stop, (first // _TOGETHER + 1) * _TOGETHER)
        found.append(range(first, end))
        first = end
    return found


def _label(ref: FileRef, store: str) -> str:
    parts = "\x00".join((store, ref.path, ref.etag, ref.version, str(ref.size)))
    return hashlib.sha256(parts.encode()).hexdigest()[:40]


def _own_folder(parent: Path) -> tuple[Path, int]:
    """A new folder with a lock on it, after removing those whose process has gone."""
    parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with _turn(parent):
        _remove_left_over(parent)
        folder = Path(tempfile.mkdtemp(prefix="cache-", dir=parent))
        return folder, _locked(folder)


def _sweep(parent: Path) -> None:
    # Nothing was there; or another process is just at it; or the first read tries again.
    with suppress(OSError), _turn(parent, wait=False):
        _remove_left_over(parent)


@contextmanager
def _turn(parent: Path, *, wait: bool = True) -> Iterator[None]:
    """One process at a time: a folder that is made by somebody else has its lock by the end."""
    with open(parent / ".lock", "wb") as turn:
        fcntl.flock(turn, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield


def _remove_left_over(parent: Path) -> None:
    for old in parent.glob("cache-*"):
        if (lock := _locked(old)) >= 0:
            shutil.rmtree(old, ignore_errors=True)
            os.close(lock)


def _move_out(made: asyncio.Future[tuple[Path, int]]) -> None:
    """Remove a folder that was made, and let go of its lock."""
    if not made.cancelled() and made.exception() is None:
        folder, lock = made.result()
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def _locked(folder: Path) -> int:
    """A descriptor that holds the folder's lock; -1 where another process has it."""
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        return -1
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return -1
    return descriptor
