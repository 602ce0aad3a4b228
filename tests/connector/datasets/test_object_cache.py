"""The cache of blocks: where it lives, and what it finds there."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import os
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from connector.datasets import object_cache as cache
from connector.datasets.external import Outside
from connector.datasets.object_cache import BLOCK, BlockCache
from connector.datasets.sources.source_files import FileRef
from tests.support.own_name import changed

REF = FileRef("s3://b/k", 0, 0, 3, 0, etag="e")


async def abc(ref: FileRef, store: str, start: int, stop: int) -> bytes:
    return b"abc"[start:stop]


async def first(blocks: BlockCache) -> bytes:
    async for descriptor in blocks.read(REF, store="s", first=0, count=1):
        with os.fdopen(descriptor, "rb") as file:
            return file.read()
    raise AssertionError


def held(lock: Path) -> Callable[[], None]:
    """Hold the lock as another process would, until the call that comes back."""
    descriptor = os.open(lock, os.O_WRONLY | os.O_CREAT)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    return partial(os.close, descriptor)


def folders(parent: Path) -> list[Path]:
    return list(parent.glob("cache-*"))


def open_in(parent: Path) -> list[str]:
    """What this process has open of the folders there, removed or not."""
    names = [os.path.realpath(f"/proc/self/fd/{number}") for number in os.listdir("/proc/self/fd")]
    return [name for name in names if name.startswith(f"{parent}/cache-")]


async def test_readers_have_one_folder_and_nobody_waits_while_it_is_made(tmp_path: Path) -> None:
    """Another process holds the lock for a moment, as it removes what a third has left."""
    (tmp_path / "cache-old").mkdir()
    (tmp_path / "cache-old" / "block").write_bytes(b"old")
    blocks, let_go = BlockCache(tmp_path, abc, quota=0), held(tmp_path / ".lock")
    left = asyncio.ensure_future(first(blocks))
    reading = [asyncio.ensure_future(first(blocks)) for _ in range(2)]
    await asyncio.sleep(0.05)
    left.cancel()
    let_go()
    assert await asyncio.gather(*reading) == [b"abc"] * 2
    (folder,) = folders(tmp_path)
    assert [path.name.endswith("-0") for path in folder.iterdir()] == [True]
    blocks.close()
    assert not folders(tmp_path)


async def test_where_the_folder_cannot_be_made_the_next_reader_tries_again(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    blocks = BlockCache(tmp_path / "file", abc, quota=0)
    for _ in range(2):
        with pytest.raises(OSError, match="exists"):
            await first(blocks)
    (tmp_path / "file").unlink()
    assert await first(blocks) == b"abc"
    blocks.close()


async def test_a_cache_that_is_closed_while_its_folder_is_made_leaves_none(tmp_path: Path) -> None:
    blocks, let_go = BlockCache(tmp_path, abc, quota=0), held(tmp_path / ".lock")
    reading = asyncio.ensure_future(first(blocks))
    await asyncio.sleep(0.05)
    blocks.close()
    let_go()
    with pytest.raises(OSError, match="closed"):
        await reading
    assert not folders(tmp_path)
    assert not open_in(tmp_path)
    assert await first(blocks) == b"abc"  # it may be read anew
    blocks.close()
    assert not folders(tmp_path)


async def test_what_a_killed_process_has_left_goes_with_the_next_start(tmp_path: Path) -> None:
    await Outside(None, tmp_path).start()  # where there is nothing
    of_a_living_one = BlockCache(tmp_path / "blocks", abc, quota=0)
    assert await first(of_a_living_one) == b"abc"
    left = tmp_path / "blocks" / "cache-old"
    left.mkdir()
    (left / "block").write_bytes(b"old")
    await Outside(None, tmp_path).start()
    assert not left.exists()
    assert await first(of_a_living_one) == b"abc"
    of_a_living_one.close()


async def zeros(ref: FileRef, store: str, start: int, stop: int) -> bytes:
    return bytes(stop - start)


async def read_all(blocks: BlockCache, key: str, count: int = 8) -> None:
    ref = FileRef(f"s3://b/{key}", 0, 0, count * BLOCK, 0, etag=key)
    async for descriptor in blocks.read(ref, store="s", first=0, count=count):
        os.close(descriptor)


def on_disk(parent: Path) -> int:
    found = 0
    for path in parent.rglob("*"):
        with suppress(FileNotFoundError):  # others make and remove some meanwhile
            found += path.stat().st_size if path.is_file() else 0
    return found


@pytest.fixture
def disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Have the disk hold so many bytes below the folder from then on. The write that is too much leaves what fits."""
    room = [2**62]

    class Written:
        def __init__(self, number: int, mode: str) -> None:
            self._file = open(number, mode, buffering=0)  # noqa: SIM115

        def __enter__(self) -> Written:
            return self

        def __exit__(self, *_: object) -> None:
            self._file.close()

        def write(self, piece: memoryview) -> None:
            fits = max(0, room[0] - on_disk(tmp_path))
            self._file.write(piece[:fits])
            if fits < len(piece):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    real: Any = os.fdopen
    opening = changed(os, fdopen=lambda one, mode: (Written if mode == "wb" else real)(one, mode))
    monkeypatch.setattr(cache, "os", opening)
    return lambda nbytes: room.__setitem__(0, nbytes)


async def test_on_a_disk_that_is_full_the_oldest_make_room(tmp_path: Path, disk: Callable[[int], None]) -> None:
    blocks = BlockCache(tmp_path, zeros, quota=2**31)
    disk(20 * BLOCK + 5)
    for number in range(6):
        await read_all(blocks, str(number))
        assert blocks.used == on_disk(tmp_path) <= 20 * BLOCK
    before = blocks.misses
    await read_all(blocks, "5")
    assert blocks.misses == before
    blocks.close()


async def test_what_was_written_before_a_disk_was_full_counts_and_the_rest_leaves_nothing(
    tmp_path: Path, disk: Callable[[int], None]
) -> None:
    blocks = BlockCache(tmp_path, zeros, quota=16 * BLOCK)
    for number in range(4):
        disk(0)  # something else has all of it
        with pytest.raises(OSError, match="No space"):
            await read_all(blocks, f"refused {number}")
        disk(2**62)
        assert (blocks.used, on_disk(tmp_path)) == (0, 0)
        disk(3 * BLOCK)
        await read_all(blocks, f"in little {number}")
        assert blocks.used == on_disk(tmp_path) <= 3 * BLOCK
        disk(2**62)
        await read_all(blocks, str(number), count=40)
        assert blocks.used == on_disk(tmp_path) == 16 * BLOCK
        blocks._make_room(2**62)
    blocks.close()
