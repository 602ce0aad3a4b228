"""Threads that send parts of files. There are few, so each changes to another stream when its turn is over.

Each device has its own threads: a disk that hangs does not block the others, and a read does not wait for it for ever.
Must not know sockets or streams; `vectored_body` sends to its sockets there.
"""

from __future__ import annotations

import asyncio
import functools
import os
import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from connector.datasets.file_access import silent_disk_error

TURN = 0.05  # seconds after which a thread changes to another waiting stream
_SENDERS = 8  # threads per device
_SECONDS = 30.0  # after so long without bytes, a disk counts as hanging
OURS = 0  # stands for the device of our own files
_T = TypeVar("_T")


async def run_in_send_thread(
    work: Callable[[], _T], *, stop: Callable[[], None], device: int = OURS, out: socket.socket | None = None
) -> _T:
    """Return the result of `work`, run in a thread for files on `device`. `stop` tells `work` to end soon.

    A cancelled caller still waits for the end of `work`: its descriptors must not be closed while in use, since the
    next connection or file would get the same numbers.

    Raises: Unavailable where the disk does not answer. The thread is lost until it does. It keeps the files that `work`
    refers to, and `out`, its target socket, which is detached and closed when it ends.
    """
    job, ends = _executor_of(device).submit(work), time.monotonic() + _SECONDS
    running = asyncio.wrap_future(job)
    gone: asyncio.CancelledError | None = None
    # Read the error: the caller may have left.
    running.add_done_callback(lambda done: done.cancelled() or done.exception())
    while not running.done() and (left := ends - time.monotonic()) > 0:
        try:
            await asyncio.wait((running,), timeout=left)
        except asyncio.CancelledError as error:
            gone = error
            stop()
            job.cancel()
    if running.done():
        if gone is not None:
            raise gone
        return running.result()
    stop()
    if not job.cancel() and out is not None:
        number = out.detach()
        job.add_done_callback(lambda _: os.close(number))
    raise silent_disk_error() from gone


@functools.cache
def _executor_of(device: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(_SENDERS, thread_name_prefix="sender")
