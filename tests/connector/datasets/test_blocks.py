"""The cache of blocks: where it lives, and what it finds there."""

from __future__ import annotations

import asyncio
import fcntl
import os
import threading
from pathlib import Path

import pytest

from connector.datasets.blocks import Blocks
from connector.datasets.sources.files import FileRef

REF = FileRef("s3://b/k", 0, 0, 3, 0, etag="e")


async def abc(ref: FileRef, store: str, start: int, stop: int) -> bytes:
    return b"abc"[start:stop]


async def first(blocks: Blocks) -> bytes:
    async for descriptor in blocks.read(REF, store="s", first=0, count=1):
        with os.fdopen(descriptor, "rb") as file:
            return file.read()
    raise AssertionError


def held(lock: Path, *, seconds: float) -> threading.Timer:
    descriptor = os.open(lock, os.O_WRONLY | os.O_CREAT)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    over = threading.Timer(seconds, os.close, (descriptor,))
    over.start()
    return over


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
    blocks, over = Blocks(tmp_path, abc, quota=0), held(tmp_path / ".lock", seconds=2)
    left = asyncio.ensure_future(first(blocks))
    reading = [asyncio.ensure_future(first(blocks)) for _ in range(2)]
    await asyncio.sleep(0.05)
    assert over.is_alive()
    left.cancel()
    assert await asyncio.gather(*reading) == [b"abc"] * 2
    over.join()
    (folder,) = folders(tmp_path)
    assert [path.name.endswith("-0") for path in folder.iterdir()] == [True]
    blocks.close()
    assert not folders(tmp_path)


async def test_where_the_folder_cannot_be_made_the_next_reader_tries_again(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    blocks = Blocks(tmp_path / "file", abc, quota=0)
    for _ in range(2):
        with pytest.raises(OSError, match="exists"):
            await first(blocks)
    (tmp_path / "file").unlink()
    assert await first(blocks) == b"abc"
    blocks.close()


async def test_a_cache_that_is_closed_while_its_folder_is_made_leaves_none(tmp_path: Path) -> None:
    blocks, over = Blocks(tmp_path, abc, quota=0), held(tmp_path / ".lock", seconds=2)
    reading = asyncio.ensure_future(first(blocks))
    await asyncio.sleep(0.05)
    assert over.is_alive()
    blocks.close()
    with pytest.raises(OSError, match="closed"):
        await reading
    assert not folders(tmp_path)
    assert not open_in(tmp_path)
    assert await first(blocks) == b"abc"  # it may be read anew
    blocks.close()
    assert not folders(tmp_path)
