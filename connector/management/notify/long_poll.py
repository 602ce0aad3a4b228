"""Waiting for a process to change state (long poll), and for work that is cancelled when its client leaves."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from fastapi import Request

from connector.dsp.states import FINAL
from connector.errors import ConnectorError, Invalid
from connector.events import Event
from connector.store import Store
from connector.store.tables import Negotiation, Transfer

Row = TypeVar("Row", Negotiation, Transfer)
_T = TypeVar("_T")
LONGEST = 60.0  # seconds that one request may wait
_LOOK = 1.0  # another process on the same database may change a row without an event here


async def wait_until(store: Store, pid: str, look: Callable[[], Awaitable[Row]], *, state: str, seconds: float) -> Row:
    """Return the process in `state` (empty: any other than now) or a final state, or as it is after `seconds`.

    `look` is also called regularly, because a change by another process on the database may send no event here.
    """
    changed = asyncio.Event()
    wanted = {state, *FINAL}

    def on_event(event: Event) -> None:
        if event.process == pid and (not state or event.detail.get("state") in wanted):
            changed.set()

    leave = store.bus.subscribe(on_event)
    try:
        first = row = await look()
        ends = time.monotonic() + min(seconds, LONGEST)
        while not _is_reached(row, first, state) and (left := ends - time.monotonic()) > 0:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(left, _LOOK)):
                    await changed.wait()
            changed.clear()
            row = await look()
        return row
    finally:
        leave()


def _is_reached(row: Row, first: Row, state: str) -> bool:
    if row.state in FINAL:
        return True
    return row.state == state if state else row.state != first.state


async def run_unless_gone(request: Request, work: Awaitable[_T]) -> _T:
    """Return the result of the work, which is cancelled when the client leaves first.

    Raises: Invalid where the client has left.
    """
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_wait_for_disconnect(request))
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return await working
        working.cancel()
        with contextlib.suppress(asyncio.CancelledError, ConnectorError):
            await working
        raise Invalid("the client left before it was answered", code="client_gone")
    finally:
        leaving.cancel()
        if not working.done():
            working.cancel()


async def _wait_for_disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
