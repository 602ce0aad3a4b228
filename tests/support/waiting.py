"""Waiting for what another process will do, without a guess of how long it takes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any


def eventually(look: Callable[[], Any], seconds: float = 60.0) -> Any:
    """What `look` finds, as soon as it is true."""
    ends = time.monotonic() + seconds
    while not (found := look()):
        assert time.monotonic() < ends, "waited in vain"
        time.sleep(0.05)
    return found


async def until(look: Callable[[], Any]) -> None:
    """The same where the other side is another task."""
    async with asyncio.timeout(60):
        while not look():
            await asyncio.sleep(0.01)
