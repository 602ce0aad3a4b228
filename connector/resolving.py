"""Names to addresses, as the machine resolves them (its hosts file, search domains, what a container brings), in
threads of our own: the event loop's are few, and a name server that does not answer would keep them from everybody.

A look-up cannot be ended, only left. So each has a place until it has ended, in the circle of those for whom it is
made, and whoever comes where none is free is told so at once: strangers take none from members.
"""

from __future__ import annotations

import asyncio
import socket
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import Any

from connector.errors import Busy

OURS = "ours"  # whatever is looked up for our own people
_PLACES, _EACH = 32, 8  # look-ups at once of a circle, and of one party or host in it
_SECONDS = 10.0  # that an answer is waited for: a resolver asks its second server after five
_for: ContextVar[tuple[str, str]] = ContextVar("resolving_for", default=(OURS, ""))


@contextmanager
def within(circle: str, who: str) -> Iterator[None]:
    """What is looked up here, and in tasks that begin here, takes the places of this circle and party."""
    token = _for.set((circle, who))
    try:
        yield
    finally:
        _for.reset(token)


class Names:
    """The places of one process. A thread that hangs in a look-up does not keep the process from its end."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # places are given back by the threads, also when the loop has ended
        self._taken: Counter[tuple[str, str]] = Counter()

    async def addresses(self, host: str, port: int) -> list[str]:
        """Its addresses in the order in which they are to be tried. Busy where no place is free or no answer comes in
        time, OSError where it has none, UnicodeError where it can be no name."""
        place = _for.get()
        if not self._enter(place):
            raise Busy(f"too many names are looked up now to look up {host[:255]}; try again in a moment")
        loop = asyncio.get_running_loop()
        found: asyncio.Future[list[str]] = loop.create_future()
        try:
            args = (host, port, place, loop, found)
            threading.Thread(target=self._look_up, args=args, name="name look-up", daemon=True).start()
        except RuntimeError:  # the machine gives us no more threads
            self._leave(place)
            raise Busy(f"no thread is free to look up {host[:255]}; try again in a moment") from None
        try:
            async with asyncio.timeout(_SECONDS):
                return await found
        except TimeoutError:
            raise Busy(f"no name server has said in time where {host[:255]} is; try again in a moment") from None

    def _enter(self, place: tuple[str, str]) -> bool:
        circle, who = place
        with self._lock:
            if self._taken[circle, ""] >= _PLACES or (who and self._taken[place] >= _EACH):
                return False
            self._taken.update({(circle, ""), place})
            return True

    def _leave(self, place: tuple[str, str]) -> None:
        with self._lock:
            for one in {(place[0], ""), place}:
                self._taken[one] -= 1
                if not self._taken[one]:
                    del self._taken[one]

    def _look_up(
        self,
        host: str,
        port: int,
        place: tuple[str, str],
        loop: asyncio.AbstractEventLoop,
        found: asyncio.Future[list[str]],
    ) -> None:
        value: Any = None
        error: Exception | None = None
        try:
            value = [str(entry[4][0]) for entry in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
        except Exception as raised:  # noqa: BLE001  # told to whoever asked
            error = raised
        self._leave(place)
        with suppress(RuntimeError):  # the loop has ended
            loop.call_soon_threadsafe(_tell, found, value, error)


def _tell(found: asyncio.Future[list[str]], value: list[str], error: Exception | None) -> None:
    if found.done():  # nobody waits any more
        return
    if error is not None:
        found.set_exception(error)
    else:
        found.set_result(value)
