"""Read ahead in a thread, at most so many bytes. Knows nothing of what it reads."""

from __future__ import annotations

import atexit
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import suppress
from typing import Any, TypeVar

T = TypeVar("T")
_END_SECONDS = 5.0  # a thread that reads has something to read by then, or is not waited for
_RUNNING: dict[threading.Thread, _Queue] = {}


def _nothing() -> None: ...


def ahead(
    source: Iterator[T], *, nbytes: int, size: Callable[[T], int], wake: Callable[[], None] = _nothing
) -> Generator[T, None, None]:
    """The items of `source` in order, read in a thread until `nbytes` are waiting. Closing stops the thread.

    An item that is larger than `nbytes` waits alone. What `source` raises is raised after the items before it. `wake`
    ends what the thread waits for where it is to stop: an owner may say nothing for long.
    """
    queue = _Queue(nbytes, wake)
    thread = threading.Thread(target=_fill, args=(source, queue, size), daemon=True, name="hanse-prefetch")
    _RUNNING[thread] = queue
    try:
        thread.start()
        while (found := queue.take()) is not None:
            item, error = found
            if error is not None:
                raise error
            yield item
    finally:
        _end({thread: queue})


def _end(running: Mapping[threading.Thread, _Queue]) -> None:
    """All of them are told first; then they are waited for, together no longer than one would be."""
    alive = [thread for thread in running if thread.is_alive()]  # not where we were forked from whoever has them
    for thread in alive:
        running[thread].close()
    until = time.monotonic() + _END_SECONDS
    for thread in alive:
        if thread is threading.current_thread():  # the collector found a forgotten iterator in its own reading
            continue
        thread.join(timeout=max(0.0, until - time.monotonic()))
    for thread in running:
        _RUNNING.pop(thread, None)


@atexit.register
def _end_all() -> None:
    """A thread that the interpreter finds in the middle of reading when it ends takes the process down: abort."""
    _end(dict(_RUNNING))


def _fill(source: Iterator[Any], queue: _Queue, size: Callable[[Any], int]) -> None:
    try:
        for item in source:
            if not queue.put((item, None), size(item)):
                break
    except BaseException as error:  # noqa: BLE001  it belongs to the reader, on the other side
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

    def put(self, item: Any, nbytes: int) -> bool:
        """Wait for room; False where nobody takes any more."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or not self._items or self._held + nbytes <= self._most)
            if not self._closed:
                self._items.append((item, nbytes))
                self._held += nbytes
                self._changed.notify_all()
            return not self._closed

    def end(self, last: Any) -> None:
        """Let the last one follow, room or none: whatever went wrong here, its reader does not wait for ever. Where
        nobody takes any more, as at the end of the process, what was broken off by that is told to nobody."""
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
