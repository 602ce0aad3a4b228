"""Time limit for a reader that takes nothing of what is sent (decision 37). Must not know any transport."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress

from connector.errors import Limited

OnProgress = Callable[[], None]


async def send_in_time(
    sending: Callable[[OnProgress], Awaitable[object]], *, seconds: float, over: Callable[[], bool] = lambda: False
) -> None:
    """Run `sending` while the reader keeps taking data. `sending` calls its argument whenever the reader has taken
    some.

    Raises: Limited (`client_stalled`) where the reader takes next to nothing for `seconds`, or, once `over` is true,
    has not taken everything by then.
    """
    now = asyncio.get_running_loop().time

    def moved() -> None:
        if not over():  # once over, no more time: a reader could take the released rest for hours, byte by byte
            limit.reschedule(now() + seconds)  # noqa: F821  deleted only after the last call

    try:
        with suppress(
            TimeoutError
        ):  # leave the block before raising: a traceback would refer to the timer, and so to the task
            async with asyncio.timeout(seconds) as limit:
                await sending(moved)
                return
        took = (
            "did not finish reading within {:g} s after access ended" if over() else "read next to nothing for {:g} s"
        )
        raise Limited(f"the client {took.format(seconds)}", code="client_stalled")
    finally:
        del limit  # the task's error refers to this frame, and would keep the data alive until garbage collection
