"""Threads for access to owners' files, separate for each device.

A disk behind a network may hang. It then blocks only the threads of its own device, and a read does not wait for ever.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

from connector.datasets.sources.source_files import FileRef, are_unchanged
from connector.errors import Unavailable

_AT_ONCE = 8  # of one device
_SECONDS = 30.0  # a disk that takes longer is taken as hung;
_SECONDS_EACH = 0.01  # it has this much more for each file
_NEW = -1  # stands for files whose device is not known yet
_T = TypeVar("_T")


async def run_at_files(refs: Sequence[FileRef], work: Callable[[], _T]) -> _T:
    """Run `work` in a thread for the device of these files and return its result; without files, for unknown devices.

    The thread goes on after a timeout, so its result must close itself with its last reference. Raises: Unavailable
    where the device of known files does not answer.
    """
    if not refs:
        return await _run_on_device(_NEW, work)
    return await _run_in_time(refs[0].dev, work, files=len(refs))


async def check_files_unchanged(files: Sequence[Mapping[str, Any]]) -> bool:
    """Return `source_files.are_unchanged` of these files, in such a thread.

    Raises: Unavailable as `run_at_files`.
    """
    return await _run_in_time(
        files[0].get("dev", _NEW) if files else _NEW, partial(are_unchanged, files), files=len(files)
    )


async def _run_in_time(device: int, work: Callable[[], _T], *, files: int) -> _T:
    try:
        async with asyncio.timeout(_SECONDS + files * _SECONDS_EACH):
            return await _run_on_device(device, work)
    except TimeoutError as error:  # also a timeout that the disk reports
        raise silent_disk_error() from error


def silent_disk_error() -> Unavailable:
    """Return the refusal of a read whose disk hangs."""
    return Unavailable("the disk of this version's files does not answer; try again", code="file_unavailable")


async def _run_on_device(device: int, work: Callable[[], _T]) -> _T:
    return await asyncio.get_running_loop().run_in_executor(_threads(device), work)


@functools.cache
def _threads(device: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="files")
