"""Runs several producers of sequences in threads and yields their sequences in turns. Runs in a worker.

Knows nothing of engines: a caller that stops early must end what the threads wait for.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any, TypeVar

_T = TypeVar("_T")
_Maker = Callable[[], Iterator[Iterator[_T]]]
_AHEAD = 3  # items that a thread has ready


def run_in_turns(makers: Sequence[_Maker[_T]], *, stop: Callable[[], None]) -> Generator[Iterator[_T]]:
    """Yield the sequences of all makers in turns: the first of each, then the second of each, until one has no more.

    Read each sequence to its end before asking for the next. `stop` is called repeatedly while threads still work after
    the caller has stopped. An error of a maker is raised where its items would be.
    """
    lines: list[_Line] = []
    try:
        lines.extend(map(_Line, makers))
        number = 0
        while lines[number].another():
            yield lines[number].items()
            number = (number + 1) % len(lines)
    finally:
        for line in lines:
            line.unwanted = True
        for line in lines:
            line.end(stop)


class _Line:
    """Queue of one thread: _BEGIN, the items of a sequence, _END, and so on; _END again at the end."""

    def __init__(self, make: _Maker[Any]) -> None:
        self.unwanted = False
        self._ready: queue.Queue[Any] = queue.Queue(_AHEAD)
        self._thread = threading.Thread(target=self._fill, args=(make,), daemon=True)
        self._thread.start()

    def another(self) -> bool:
        """Whether there is another sequence."""
        return self._next() is _BEGIN

    def items(self) -> Iterator[Any]:
        """The items of the sequence that has begun."""
        while (item := self._next()) is not _END:
            yield item

    def end(self, stop: Callable[[], None]) -> None:
        """Wait for the thread."""
        while self._thread.is_alive():
            stop()
            while not self._ready.empty():
                self._ready.get()
            self._thread.join(0.01)

    def _next(self) -> Any:
        item = self._ready.get()
        if not isinstance(item, _Raised):
            return item
        try:
            raise item.error
        finally:
            del item  # it would hold this frame, and all frames of the error

    def _fill(self, make: _Maker[Any]) -> None:
        try:
            for sequence in make():
                self._put_item(_BEGIN)
                for item in sequence:
                    self._put_item(item)
                self._put_item(_END)
            self._put_item(_END)
        except _Unwanted:
            pass
        except BaseException as error:  # noqa: BLE001  it belongs to the reader, in another thread
            self._ready.put(_Raised(error))

    def _put_item(self, item: Any) -> None:
        self._ready.put(item)
        if self.unwanted:
            raise _Unwanted


class _Raised:
    def __init__(self, error: BaseException) -> None:
        self.error = error


class _Unwanted(Exception):
    """The reader has stopped."""


_BEGIN, _END = object(), object()
