"""How long a reader may take nothing of what it is sent (decision 37). Knows no transport."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress

from connector.errors import Limited

OnProgress = Callable[[], None]


async def send_in_time(
    sending: Callable[[OnProgress], Awaitable[object]], *, seconds: float, over: Callable[[], bool] = lambda: False
) -> None:
    """Send, for as long as the reader takes something: `sending` calls what it is given whenever that is so.

    Limited (`client_stalled`) where it takes next to nothing for so long, or, once it is `over`, not all of it.
    """
    now = asyncio.get_running_loop().time

    def moved() -> None:
        if not over():  # else the rest of what has passed the gate could be taken for hours, byte by byte
            limit.reschedule(now() + seconds)  # noqa: F821  it is deleted when nothing moves any more

    try:
        with suppress(TimeoutError):  # left before anything is raised: its frames have the timer, and that the task
            async with asyncio.timeout(seconds) as limit:
                await sending(moved)
                return
        took = "not all that it may" if over() else "next to nothing"
        raise Limited(f"the client took {took} for {seconds:g} s", code="client_stalled")
    finally:
        del limit  # the task's error has this frame, and would keep what was being sent until the collector comes by
