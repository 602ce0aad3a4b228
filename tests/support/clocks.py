"""The clock of the event loop in the hands of a test: what waits for a time is over when the test says so.

For a test that would have to wait for a time limit, or to be sooner than one: however slow the machine is, nothing
ends by itself meanwhile. What other processes and threads measure goes on as it does.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager


class Hands:
    """Seconds of this loop: real ones and those that a test has added, or with `stands` the added ones alone."""

    def __init__(self, loop: asyncio.AbstractEventLoop, *, stands: bool) -> None:
        self._real, self._stands, self._begun, self._added = loop.time, stands, loop.time(), 0.0

    def __call__(self) -> float:
        return (self._begun if self._stands else self._real()) + self._added

    async def go_on(self, seconds: float) -> None:
        """Let this time pass at once; what waited for its end has had its turn when this returns."""
        self._added += seconds
        for _ in range(5):
            await asyncio.sleep(0)


@contextmanager
def hands(*, stands: bool = False) -> Iterator[Hands]:
    """Take the clock of the running loop, and give it back."""
    loop = asyncio.get_running_loop()
    made, real = Hands(loop, stands=stands), loop.time
    loop.time = made  # type: ignore[method-assign]  # every timer of this loop asks it
    try:
        yield made
    finally:
        loop.time = real  # type: ignore[method-assign]
