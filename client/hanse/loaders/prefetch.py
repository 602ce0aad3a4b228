"""Reads ahead in a thread, up to a limit in bytes. Knows nothing of what it reads."""

from __future__ import annotations

import atexit
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import suppress
from typing import Any, TypeVar

T = TypeVar("T")
_END_SECONDS = 5.0  # a thread that still waits for its source by then is abandoned
_RUNNING: dict[threading.Thread, _Queue] = {}


def _do_nothing() -> None: ...


def read_ahead(
    source: Iterator[T], *, nbytes: int, size: Callable[[T], int], wake: Callable[[], None] = _do_nothing
) -> Generator[T, None, None]:
    """Yield the items of `source` in order, read in a thread until `nbytes` are waiting. Closing stops the thread.

    An item that is larger than `nbytes` waits alone. An error of `source` is raised after the items before it. `wake`
    ends the source's own wait when the thread is to stop: an owner may be silent for long.
    """
    queue = _Queue(nbytes, wake)
    thread = threading.Thread(target=_fill, args=(source, queue, size), daemon=True, name="hanse-prefetch")
    _RUNNING[thread] = queue
    try:
        thread.start()
        while (pair := queue.take()) is not None:
            item, error = pair
            if error is not None:
                raise error
            yield item
    finally:
        _stop_threads({thread: queue})


def _stop_threads(running: Mapping[threading.Thread, _Queue]) -> None:
    """Close all queues first, then wait for all threads, together no longer than for one."""
    alive = [thread for thread in running if thread.is_alive()]  # not in a forked process: the threads are the parent's
    for thread in alive:
        running[thread].close()
    until = time.monotonic() + _END_SECONDS
    for thread in alive:
        if thread is threading.current_thread():  # the garbage collector closed a forgotten iterator in its own thread
            continue
        thread.join(timeout=max(0.0, until - time.monotonic()))
    for thread in running:
        _RUNNING.pop(thread, None)


@atexit.register
def _stop_all() -> None:
    """Stop reading before the interpreter ends: a thread that is still reading then aborts the process."""
    _stop_threads(dict(_RUNNING))


def _fill(source: Iterator[Any], queue: _Queue, size: Callable[[Any], int]) -> None:
    try:
        for item in source:
            if not queue.enqueue((item, None), size(item)):
                break
    except BaseException as error:  # noqa: BLE001  the reader in the other thread raises it
        queue.end((None, error))
    else:
        queue.end(None)
    finally:
        if (close := getattr(source, "close", None)) is not None:
            with suppress(Exception):
                close()


class _Queue:
    def __init__(self, most: int, wake: Callable[[], None]) -> None:
        self._most, self._held, self._closed = most, 0, False
        self._wake = wake
        self._items: deque[tuple[Any, int]] = deque()
        self._changed = threading.Condition()

    def enqueue(self, item: Any, nbytes: int) -> bool:
        """Wait for room and append; return False if the reader has closed the queue."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or not self._items or self._held + nbytes <= self._most)
            if not self._closed:
                self._items.append((item, nbytes))
                self._held += nbytes
                self._changed.notify_all()
            return not self._closed

    def end(self, last: Any) -> None:
        """Append the last item without waiting for room, so that the reader never waits in vain. Ignored after
        `close`."""
        with self._changed:
            if not self._closed:
                self._items.append((last, 0))
                self._changed.notify_all()

    def take(self) -> Any:
        with self._changed:
            self._changed.wait_for(lambda: bool(self._items))
            item, nbytes = self._items.popleft()
            self._held -= nbytes
            self._changed.notify_all()
            return item

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._wake()
