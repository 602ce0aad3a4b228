"""Threads for what touches owners' files. A disk behind a network may hang, and whoever asks it anything with it:
that takes the threads of its own device, and nobody else's, and a read does not wait for ever."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

from connector.datasets.sources.source_files import FileRef, are_unchanged
from connector.errors import Busy

_AT_ONCE = 8  # of one device
_SECONDS = 30.0  # a disk that has not answered a read by then hangs;
_SECONDS_EACH = 0.01  # it has this much more for each file
_NEW = -1  # the device of files that nobody has looked at yet
_T = TypeVar("_T")


async def run_at_files(refs: Sequence[FileRef], work: Callable[[], _T]) -> _T:
    """What `work` gives, in a thread for the device that these files lie on; none for files that are not known yet.

    Busy where known ones do not answer. The thread goes on by itself then: what it gives is to close with the last that
    refers to it.
    """
    if not refs:
        return await _run_on_device(_NEW, work)
    return await _run_in_time(refs[0].dev, work, files=len(refs))


async def check_files_unchanged(files: Sequence[Mapping[str, Any]]) -> bool:
    """As `files.unchanged`, in such a thread; Busy as of `at_files`."""
    return await _run_in_time(
        files[0].get("dev", _NEW) if files else _NEW, partial(are_unchanged, files), files=len(files)
    )


async def _run_in_time(device: int, work: Callable[[], _T], *, files: int) -> _T:
    try:
        async with asyncio.timeout(_SECONDS + files * _SECONDS_EACH):
            return await _run_on_device(device, work)
    except TimeoutError as error:  # or the disk's own
        raise silent_disk_error() from error


def silent_disk_error() -> Busy:
    """The refusal of a read whose disk hangs."""
    return Busy("the disk of this version's files does not answer; try again", code="file_unavailable")


async def _run_on_device(device: int, work: Callable[[], _T]) -> _T:
    return await asyncio.get_running_loop().run_in_executor(_threads(device), work)


@functools.cache
def _threads(device: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="files")
