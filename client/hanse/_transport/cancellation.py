"""What a thread waits for on the network, so that another may end it. Knows nothing of what comes there."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from hanse.errors import BadInput


class Closing(Protocol):
    def close(self) -> None: ...


class Waits:
    """What one thread waits for, for another that `end`s it: streams, answers to come, and pauses between attempts.
    Whatever it would wait for after that is at its end at once. A connection that is not made yet is waited for."""

    def __init__(self) -> None:
        self._ended = False
        self._changed = threading.Condition()  # no Event: the collector may end it in mid-pause
        self._last: Closing | None = None  # one is asked for at a time, and then is a stream's
        self._streams = set[Closing]()

    def end(self) -> None:
        with self._changed:
            self._ended = True
            self._changed.notify_all()
        for one in (*self._streams.copy(), *([self._last] if self._last is not None else [])):
            one.close()

    def connected(self, made: Closing) -> None:
        self._last = made
        if self._ended:  # looked at after it is there, as it is set before that is looked at
            made.close()

    @contextmanager
    def reading(self, stream: Closing) -> Iterator[None]:
        self._streams.add(stream)
        if self._ended:
            stream.close()
        try:
            yield
        finally:
            self._streams.discard(stream)

    def pause(self, seconds: float) -> None:
        with self._changed:
            ended = self._changed.wait_for(lambda: self._ended, seconds)
        if ended:
            raise BadInput("the rows were not waited for any more; open another stream or iterator to go on")
