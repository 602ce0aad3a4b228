"""A thread pool with a bounded queue: work is refused when too much waits, or when it has waited too long.

A database that is down makes each unit of work take seconds. The time limit keeps callers from waiting for all of them.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from connector.errors import Unavailable

T = TypeVar("T")

WAITING_MAX = 4096  # units of work that may wait; more are refused
WAIT_SECONDS = 15.0  # that a unit waits for a thread: as long as a statement waits for PostgreSQL


class BoundedThreadPool:
    """`size` threads that use one `resource`, whose name appears in the messages of refusals."""

    def __init__(self, size: int, name: str, *, resource: str = "the database") -> None:
        self._threads = ThreadPoolExecutor(size, thread_name_prefix=name)
        self._free = threading.Semaphore(WAITING_MAX)
        self._resource = resource
        self._closed = False

    def submit(self, work: Callable[[], T]) -> Future[T]:
        """Run `work` in a thread. Raises: Unavailable, here or from the future, if it would wait too long for a
        thread."""
        if self._closed:
            raise Unavailable("this service is shutting down; try again in a moment")
        if not self._free.acquire(blocking=False):
            raise Unavailable(f"more than {WAITING_MAX} units of work wait for {self._resource}; try again in a moment")
        future: Future[T] = Future()
        self._threads.submit(self._run, work, future, time.monotonic())
        return future

    def close(self) -> None:
        """Finish submitted work and refuse new work."""
        self._closed = True
        self._threads.shutdown()

    def _run(self, work: Callable[[], T], future: Future[T], since: float) -> None:
        self._free.release()
        if not future.set_running_or_notify_cancel():
            return  # the caller cancelled it; once it runs it can no longer be cancelled
        try:
            if time.monotonic() - since > WAIT_SECONDS:
                raise Unavailable(f"timed out waiting for {self._resource}; nothing was changed; try again in a moment")
            future.set_result(work())
        except BaseException as error:  # noqa: BLE001  # the caller gets it from the future
            future.set_exception(error)
