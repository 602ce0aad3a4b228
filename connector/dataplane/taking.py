"""How long a reader may take nothing of what it is sent (decision 37). Knows no transport."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from connector.errors import Limited

Moved = Callable[[], None]


async def in_time(
    sending: Callable[[Moved], Awaitable[object]], *, seconds: float, over: Callable[[], bool] = lambda: False
) -> None:
    """Send, for as long as the reader takes something: `sending` calls what it is given whenever that is so.

    Limited (`client_stalled`) where it takes next to nothing for so long, or, once it is `over`, not all of it.
    """
    now = asyncio.get_running_loop().time

    def moved() -> None:
        if not over():  # else the rest of what has passed the gate could be taken for hours, byte by byte
            limit.reschedule(now() + seconds)

    try:
        async with asyncio.timeout(seconds) as limit:
            await sending(moved)
    except TimeoutError:
        took = "not all that it may" if over() else "next to nothing"
        raise Limited(f"the client took {took} for {seconds:g} s", code="client_stalled") from None
