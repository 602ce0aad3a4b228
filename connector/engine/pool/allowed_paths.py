"""Identity of the directories that a confined worker may open, checked while the connector runs.

A confined process (`sandbox`) keeps the directories of its start. A directory that replaces one of them, or the new
target of a link, stays closed to it. So a worker is only usable while the directories are the same. A directory that is
deleted and created again is a different one: the kernel does not reuse its inode while the process lives.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import struct
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

Seen = tuple[tuple[int, int, int], ...]  # device, inode and mount of each; zeros for one that is not there

_SECONDS = 0.5
_STATX = getattr(ctypes.CDLL(None), "statx", None)
_HERE, _MOUNT, _MOUNT_AT = -100, 0x4000, 144  # AT_FDCWD, STATX_MNT_ID_UNIQUE, the place of stx_mnt_id


class Roots:
    """The identities of these paths at the last look, in `now`."""

    def __init__(self, paths: Sequence[str]) -> None:
        self.now: Seen = ()
        self._paths = paths
        self._eyes = ThreadPoolExecutor(1, thread_name_prefix="roots")  # of its own: it hangs with a disk
        self._looking: asyncio.Future[Seen] | None = None
        self._ends = 0.0
        self._closed = False

    async def look(self) -> None:
        """Update `now`. A disk that does not answer in time keeps its last identity, so it blocks no caller."""
        if self._closed or not self._paths:
            return
        if self._looking is None or self._looking.done():
            self._looking = asyncio.get_running_loop().run_in_executor(self._eyes, directories, self._paths)
            self._ends = time.monotonic() + _SECONDS
        looking = self._looking
        await asyncio.wait([looking], timeout=max(0.0, self._ends - time.monotonic()))
        if looking.done():
            self.now = looking.result()

    def missing(self) -> list[str]:
        """Return the paths that do not exist."""
        return [path for path, found in zip(self._paths, self.now, strict=False) if not any(found)]

    def close(self) -> None:
        """Stop looking."""
        self._closed = True
        self._eyes.shutdown(wait=False)


def directories(paths: Sequence[str]) -> Seen:
    """Return the identity of each path."""
    return tuple(map(_directory, paths))


def _directory(path: str) -> tuple[int, int, int]:
    try:
        found = os.stat(path)
    except OSError:
        return 0, 0, 0
    return found.st_dev, found.st_ino, _mount(path)


def _mount(path: str) -> int:
    """Return the number of the path's mount, or 0 where the kernel does not say.

    A disk that is mounted again has the same device and inode, but is closed to a confined process. Before Linux 6.8 a
    number may be reused by a later mount.
    """
    answer = ctypes.create_string_buffer(256)
    if _STATX is None or _STATX(_HERE, os.fsencode(path), 0, _MOUNT, answer):
        return 0
    (number,) = struct.unpack_from("=Q", answer, _MOUNT_AT)
    return int(number)
