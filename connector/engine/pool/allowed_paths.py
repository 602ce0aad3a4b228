"""The directories that workers are shut into, looked at while the connector runs.

A process that is shut in (`sandbox`) stays with the directories of its start: what is moved into the place of one, or
what a link leads to later, is closed to it. So a worker is of use only while they are the same. One that is deleted and
made again is another: as long as the process is there, the kernel gives its inode to no other.
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
    """Which directories these paths are `now`, at the last look."""

    def __init__(self, paths: Sequence[str]) -> None:
        self.now: Seen = ()
        self._paths = paths
        self._eyes = ThreadPoolExecutor(1, thread_name_prefix="roots")  # nobody else's: it hangs with a disk
        self._looking: asyncio.Future[Seen] | None = None
        self._ends = 0.0
        self._closed = False

    async def look(self) -> None:
        """See which they are. On a disk that hangs they count as what they were before, and hold nobody up."""
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
        """Those that are not there."""
        return [path for path, found in zip(self._paths, self.now, strict=False) if not any(found)]

    def close(self) -> None:
        """Look no more."""
        self._closed = True
        self._eyes.shutdown(wait=False)


def directories(paths: Sequence[str]) -> Seen:
    """Which directories these paths are."""
    return tuple(map(_directory, paths))


def _directory(path: str) -> tuple[int, int, int]:
    try:
        found = os.stat(path)
    except OSError:
        return 0, 0, 0
    return found.st_dev, found.st_ino, _mount(path)


def _mount(path: str) -> int:
    """The number of its mount: a disk that was mounted again is the same, and as closed. 0 where nobody knows; before
    Linux 6.8 another mount may get it later."""
    told = ctypes.create_string_buffer(256)
    if _STATX is None or _STATX(_HERE, os.fsencode(path), 0, _MOUNT, told):
        return 0
    (number,) = struct.unpack_from("=Q", told, _MOUNT_AT)
    return int(number)
