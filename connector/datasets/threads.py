"""Threads for what touches owners' files. A disk behind a network may hang, and whoever asks it anything with it:
that takes the threads of its own device, and nobody else's."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

from connector.datasets.sources.files import FileRef, unchanged

_AT_ONCE = 8  # of one device
_NEW = -1  # the device of files that nobody has looked at yet
_T = TypeVar("_T")


async def at_files(refs: Sequence[FileRef], work: Callable[[], _T]) -> _T:
    """What `work` gives, in a thread for the device that these files lie on; none for files that are not known yet."""
    return await _on(refs[0].dev if refs else _NEW, work)


async def still_unchanged(files: Sequence[Mapping[str, Any]]) -> bool:
    """As `files.unchanged`, in such a thread."""
    return await _on(files[0].get("dev", _NEW) if files else _NEW, partial(unchanged, files))


async def _on(device: int, work: Callable[[], _T]) -> _T:
    return await asyncio.get_running_loop().run_in_executor(_threads(device), work)


@functools.cache
def _threads(device: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="files")
