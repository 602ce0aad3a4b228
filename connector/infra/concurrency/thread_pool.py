"""Threads that work for many requests. What waits for one is bounded in number and in time: more is refused.

Where what they ask is away or slow, each unit takes seconds to find out; nobody waits for all that are ahead.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from connector.errors import Busy

T = TypeVar("T")

WAITING_MAX = 4096  # units of work that may wait; more is refused, not queued
WAIT_SECONDS = 15.0  # and how long, for a thread: as long as one may wait for PostgreSQL's answer


class Threads:
    """`size` threads that ask `whom`, as the sentences of refusals call it."""

    def __init__(self, size: int, name: str, *, whom: str = "the database") -> None:
        self._threads = ThreadPoolExecutor(size, thread_name_prefix=name)
        self._free = threading.Semaphore(WAITING_MAX)
        self._whom = whom
        self._closed = False

    def submit(self, work: Callable[[], T]) -> Future[T]:
        """Run `work` in one of them. Busy, here or from the future, where that would take too long."""
        if self._closed:
            raise Busy("this service is shutting down; try again in a moment")
        if not self._free.acquire(blocking=False):
            raise Busy(f"more than {WAITING_MAX} units of work wait for {self._whom}; try again in a moment")
        future: Future[T] = Future()
        self._threads.submit(self._run, work, future, time.monotonic())
        return future

    def close(self) -> None:
        """Finish what was submitted."""
        self._closed = True
        self._threads.shutdown()

    def _run(self, work: Callable[[], T], future: Future[T], since: float) -> None:
        self._free.release()
        if not future.set_running_or_notify_cancel():
            return  # whoever asked has gone away before it began; from here on it cannot be cancelled
        try:
            if time.monotonic() - since > WAIT_SECONDS:
                raise Busy(
                    f"{self._whom} has not come to this in time, and nothing of it was done; try again in a moment"
                )
            future.set_result(work())
        except BaseException as error:  # noqa: BLE001  # whoever asked has it, as from any call
            future.set_exception(error)
