"""The threads that send parts of files: few, so each goes on with another stream when its turn is over. A disk that
hangs takes those of its own device, and nobody else's.

Knows neither sockets nor streams; `gather` sends to HTTP's sockets there, `flight.slots` to the Flight process.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TypeVar

TURN = 0.05  # seconds after which a thread goes on with another stream, if one waits
_SENDERS = 8  # of one device
OURS = 0  # the device of files of our own
_T = TypeVar("_T")


async def in_thread(work: Callable[[], _T], *, stop: Callable[[], None], device: int = OURS) -> _T:
    """What `work` gives, in a thread for files on that device; `stop` has it end soon.

    Who is cancelled waits for its end, too, however often: descriptors that it uses must not be closed under it, as the
    next connection or file to be opened would have the same numbers.
    """
    job = _senders(device).submit(work)
    running = asyncio.wrap_future(job)
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        stop()
        while not job.cancel() and not running.done():  # which is a little later than the job
            with suppress(asyncio.CancelledError):
                await asyncio.wait((running,))
        if running.done() and not running.cancelled():
            running.exception()  # nobody asks any more
        raise


@functools.cache
def _senders(device: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(_SENDERS, thread_name_prefix="sender")
