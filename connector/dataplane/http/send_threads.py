"""The threads that send parts of files: few, so each goes on with another stream when its turn is over. A disk that
hangs takes those of its own device, and nobody else's, and a read does not wait for it for ever.

Knows neither sockets nor streams; `vectored_body` sends to its sockets there.
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

TURN = 0.05  # seconds after which a thread goes on with another stream, if one waits
_SENDERS = 8  # of one device
_SECONDS = 30.0  # a disk that has not given a turn its bytes by then hangs
OURS = 0  # the device of files of our own
_T = TypeVar("_T")


async def in_thread(
    work: Callable[[], _T], *, stop: Callable[[], None], device: int = OURS, out: socket.socket | None = None
) -> _T:
    """What `work` gives, in a thread for files on that device; `stop` has it end soon.

    Who is cancelled waits for its end, too, however often: descriptors that it uses must not be closed under it, as the
    next connection or file to be opened would have the same numbers.

    Busy where the disk does not answer. The thread is lost until it does, and keeps what it uses: files by what `work`
    refers to, and `out`, where it sends to, which is detached and closed when it ends.
    """
    job, ends = _senders(device).submit(work), time.monotonic() + _SECONDS
    running = asyncio.wrap_future(job)
    gone: asyncio.CancelledError | None = None
    running.add_done_callback(lambda done: done.cancelled() or done.exception())  # it may be that nobody asks any more
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
def _senders(device: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(_SENDERS, thread_name_prefix="sender")
