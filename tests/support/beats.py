"""A clock for tests that measure how soon something is over: it stands still while the machine is busy elsewhere."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

_EVERY = 0.01
_MOST = 0.05


@asynccontextmanager
async def beats() -> AsyncIterator[Callable[[], float]]:
    """Seconds since it began, told by a task of this event loop that wants to run every hundredth of a second.

    A beat that comes late, because the loop did not get the processor, counts for at most a twentieth of a second: so
    does what else runs in this loop wait meanwhile, timers of ours among it.
    """
    told = 0.0

    async def beat() -> None:
        nonlocal told
        before = time.monotonic()
        while True:
            await asyncio.sleep(_EVERY)
            now = time.monotonic()
            told += min(now - before, _MOST)
            before = now

    task = asyncio.ensure_future(beat())
    try:
        yield lambda: told
    finally:
        task.cancel()
