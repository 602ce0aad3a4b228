"""Queue for the gate's work on consumers' text: a few threads, and consumers take turns.

Hostile text can take a second of a processor. Without this queue, one consumer's texts would fill the threads that the
watch over revocations needs.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial
from typing import TypeVar

from connector.infra.concurrency.turn_queue import TurnQueue

_AT_ONCE = 2  # threads: more would share one interpreter
_WAITING, _SECONDS = 256, 30.0  # waiting texts, and how long one waits
_T = TypeVar("_T")


class GateQueue:
    """Runs work on consumers' text in threads, a few at a time, with turns between consumers."""

    def __init__(self) -> None:
        self._turns = TurnQueue(_AT_ONCE, waiting=_WAITING, wait_seconds=_SECONDS)

    async def run_in_turn(self, consumer: str, work: Callable[[], _T]) -> _T:
        """Return the result of `work`, run in a thread at the consumer's turn.

        Raises: Unavailable where too many wait, or for too long.
        """
        await self._turns.take(consumer)
        running = asyncio.ensure_future(asyncio.to_thread(work))
        running.add_done_callback(partial(self._on_done, consumer))
        try:  # a cancelled caller leaves its thread running, and the place stays taken until that ends
            return await asyncio.shield(running)
        finally:
            del running  # its error refers to this frame, and would keep the request alive until garbage collection

    def _on_done(self, consumer: str, running: asyncio.Future[_T]) -> None:
        self._turns.give_back(consumer)
        if not running.cancelled():
            running.exception()  # read the error: the caller may have left
