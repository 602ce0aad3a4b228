"""A bounded cache of blocks of remote objects on the local disk, lent out as open descriptors.

The file name of a block contains the object's ETag, so a block always belongs to its version. Files have mode 0600 in a
folder of this process, get their name when complete, and are removed with the process. The next start removes those of
killed processes. The least recently used blocks are dropped at the quota or on a full disk; lent descriptors stay
valid. Knows nothing of stores, jobs or formats.
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
_AHEAD = 2  # further requests under way for one reader
_AT_ONCE = 8  # requests under way at all: bounds the memory
_FULL = frozenset((errno.ENOSPC, errno.EDQUOT))

Fetch = Callable[[FileRef, str, int, int], Awaitable["bytes | memoryview"]]  # object, store, start, stop


class BlockCache:
    """Blocks of objects. `fetch(ref, store, start, stop)` gets bytes that are not cached."""

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
        """Remove folders of processes that have ended."""
        await asyncio.to_thread(_sweep, self._parent)

    async def read(self, ref: FileRef, *, store: str, first: int, count: int) -> AsyncIterator[int]:
        """Yield a descriptor for each of `count` blocks from number `first` on, in order. The caller closes it."""
        if self._folder is None:
            await self._open_folder()
        label = _label(ref, store)
        runs = _runs(first, count)
        tasks: list[asyncio.Task[None]] = []
        for number, run in enumerate(runs):
            while len(tasks) <= min(number + _AHEAD, len(runs) - 1):
                tasks.append(self._start(label, ref, store, runs[len(tasks)]))
            await asyncio.shield(tasks[number])
            for block in run:
                yield await self._open_block(label, ref, store, block)

    @property
    def used(self) -> int:
        """The bytes that the cache holds."""
        return self._total

    def close(self) -> None:
        """Remove all blocks."""
        for task in self._fetching.values():
            task.cancel()
        making, self._folder, self._making = self._making, None, None
        if making is not None and making.done():
            _remove_folder(making)
        elif making is not None:
            making.add_done_callback(_remove_folder)

    async def _open_folder(self) -> None:
        """Make the folder once, in a thread: other processes may have left many files, or be removing it."""
        if self._making is None:
            self._making = asyncio.ensure_future(asyncio.to_thread(_make_folder, self._parent))
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
        """Fetch the missing blocks of a run. Two readers of one run share the work."""
        key = (label, run.start // _TOGETHER)
        before = self._fetching.get(key)
        task = asyncio.get_running_loop().create_task(self._bring(label, ref, store, run, before))
        self._fetching[key] = task
        task.add_done_callback(lambda done: self._on_done(key, done))
        return task

    def _on_done(self, key: tuple[str, int], task: asyncio.Task[None]) -> None:
        if self._fetching.get(key) is task:
            del self._fetching[key]
        if not task.cancelled():
            task.exception()  # marks the exception as retrieved, where its reader has gone

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
            await self._store_pieces([(self._path(label, block), piece) for block, piece in pieces.items()])

    async def _store_pieces(self, pieces: Sequence[tuple[str, memoryview]]) -> None:
        """Write and keep the pieces. On a full disk, older blocks are dropped for them as long as there are any."""
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
        """Drop blocks for so many bytes, and return whether any was dropped."""
        before = self._total
        while self._kept and before - self._total < size:
            self._drop_oldest()
        return self._total < before

    def _drop_oldest(self) -> None:
        oldest, freed = self._kept.popitem(last=False)
        self._total -= freed
        with suppress(OSError):
            os.unlink(oldest)

    async def _open_block(self, label: str, ref: FileRef, store: str, block: int) -> int:
        path = self._path(label, block)
        while True:  # with a quota below what is read at once, the block may be gone again
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
    """Write pieces in order. Returns how many are complete, and the error of the next piece, whose draft is removed."""
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
    """Split the blocks into runs for one request each, cut at the same places for all readers."""
    stop, found = first + count, []
    while first < stop:
        end = min(stop, (first // _TOGETHER + 1) * _TOGETHER)
        found.append(range(first, end))
        first = end
    return found


def _label(ref: FileRef, store: str) -> str:
    parts = "\x00".join((store, ref.path, ref.etag, ref.version, str(ref.size)))
    return hashlib.sha256(parts.encode()).hexdigest()[:40]


def _make_folder(parent: Path) -> tuple[Path, int]:
    """Make a new locked folder, after removing those of ended processes."""
    parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with _take_turn(parent):
        _remove_left_over(parent)
        folder = Path(tempfile.mkdtemp(prefix="cache-", dir=parent))
        return folder, _try_lock(folder)


def _sweep(parent: Path) -> None:
    # Nothing was there, another process is sweeping, or the first read tries again.
    with suppress(OSError), _take_turn(parent, wait=False):
        _remove_left_over(parent)


@contextmanager
def _take_turn(parent: Path, *, wait: bool = True) -> Iterator[None]:
    """Let one process in at a time, so that a folder has its lock before another process looks at it."""
    with open(parent / ".lock", "wb") as turn:
        fcntl.flock(turn, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield


def _remove_left_over(parent: Path) -> None:
    for old in parent.glob("cache-*"):
        if (lock := _try_lock(old)) >= 0:
            shutil.rmtree(old, ignore_errors=True)
            os.close(lock)


def _remove_folder(made: asyncio.Future[tuple[Path, int]]) -> None:
    """Remove the folder and release its lock."""
    if not made.cancelled() and made.exception() is None:
        folder, lock = made.result()
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


def _try_lock(folder: Path) -> int:
    """Return a descriptor that holds the folder's lock; -1 if another process holds it."""
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
