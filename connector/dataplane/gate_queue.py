"""Whose text is looked at: the gate's work, which takes a second of a processor for hostile text, in a few threads.

Everything else that waits for a thread, the watch over revocations among it, would stand behind as many texts as one
consumer likes to send. So few are looked at at once, and consumers take turns.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

from connector.infra.concurrency.turn_queue import TurnQueue

_AT_ONCE = 2  # more would share one interpreter
_WAITING, _SECONDS = 256, 30.0
_T = TypeVar("_T")


class GateQueue:
    """Work on consumers' text."""

    def __init__(self) -> None:
        self._turns = TurnQueue(_AT_ONCE, waiting=_WAITING, wait_seconds=_SECONDS)

    async def run_in_turn(self, consumer: str, work: Callable[[], _T]) -> _T:
        """What `work` gives, in a thread when it is the consumer's turn. Busy where too many wait, or for too long."""
        await self._turns.take(consumer)
        running = asyncio.ensure_future(asyncio.to_thread(work))
        running.add_done_callback(self._on_done)
        try:  # whoever leaves leaves a thread that works: its place is taken until then
            return await asyncio.shield(running)
        finally:
            del running  # its error has this frame, and would keep what was asked until the collector comes by

    def _on_done(self, running: asyncio.Future[_T]) -> None:
        self._turns.give_back()
        if not running.cancelled():
            running.exception()  # nobody may be there any more to ask
