"""Cancellation: lets one thread end what another waits for on the network. Knows nothing of what is received there."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from hanse.errors import BadInput


class Closable(Protocol):
    def close(self) -> None: ...


class Waits:
    """What one thread waits for (streams, answers, pauses between attempts), so that another can `end` it. After `end`
    each wait returns at once; only a connection that is being made is waited for."""

    def __init__(self) -> None:
        self._ended = False
        self._changed = threading.Condition()  # no Event: the garbage collector may call `end` during a pause
        self._last: Closable | None = None  # the newest connection; a stream takes it over
        self._streams = set[Closable]()

    def end(self) -> None:
        with self._changed:
            self._ended = True
            self._changed.notify_all()
        for waiting in (*self._streams.copy(), *([self._last] if self._last is not None else [])):
            waiting.close()

    def connected(self, made: Closable) -> None:
        self._last = made
        if self._ended:  # read after `_last` is set, because `end` writes the flag before it reads `_last`
            made.close()

    @contextmanager
    def reading(self, stream: Closable) -> Iterator[None]:
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
            raise BadInput(
                "the stream was closed while it waited for rows; open another stream or iterator to continue"
            )
