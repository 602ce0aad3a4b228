"""Waiting for a process to get somewhere: a long poll that hears of changes and looks for those it cannot hear."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from connector.dsp.states import FINAL
from connector.events import Event
from connector.store import Store
from connector.store.tables import Negotiation, Transfer

Row = TypeVar("Row", Negotiation, Transfer)
LONGEST = 60.0  # seconds that one request may wait
_LOOK = 1.0  # another process on the same database may change a row without our hearing of it


async def until(store: Store, pid: str, look: Callable[[], Awaitable[Row]], *, state: str, seconds: float) -> Row:
    """The process once it is in `state` (empty: in any other than now) or final, or as it is when time is up."""
    changed = asyncio.Event()
    wanted = {state, *FINAL}

    def heard(event: Event) -> None:
        if event.process == pid and (not state or event.detail.get("state") in wanted):
            changed.set()

    leave = store.bus.subscribe(heard)
    try:
        first = row = await look()
        ends = time.monotonic() + min(seconds, LONGEST)
        while not _there(row, first, state) and (left := ends - time.monotonic()) > 0:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(left, _LOOK)):
                    await changed.wait()
            changed.clear()
            row = await look()
        return row
    finally:
        leave()


def _there(row: Row, first: Row, state: str) -> bool:
    if row.state in FINAL:
        return True
    return row.state == state if state else row.state != first.state
