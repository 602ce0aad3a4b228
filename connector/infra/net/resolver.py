"""Names to addresses, as the machine resolves them (its hosts file, search domains, what a container brings), in
threads of our own: the event loop's are few, and a name server that does not answer would keep them from everybody.

A look-up cannot be ended, only left. So each has a place until it has ended, in the circle of those for whom it is
made: strangers take none from members. Whoever comes where none is free waits a while; who asks for a name that is
looked up for the circle already waits for the same answer.
"""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import TypeAlias

from connector.errors import Busy
from connector.infra.concurrency.fair_semaphore import Places

OURS = "ours"  # whatever is looked up for our own people
_PLACES, _EACH = 32, 8  # look-ups at once of a circle, and of one party or host in it
_SECONDS = 10.0  # that a place and an answer are waited for: a resolver asks its second server after five
Found: TypeAlias = asyncio.Future[list[str]]
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
        self._places: dict[str, Places] = {}
        self._coming: dict[tuple[str, str], tuple[float, Found]] = {}  # by circle and host: since when, and what

    async def addresses(self, host: str, port: int) -> list[str]:
        """Its addresses in the order in which they are to be tried. Busy where no place is free or no answer comes in
        time, OSError where it has none, UnicodeError where it can be no name."""
        circle, who = _for.get()
        found: Found | None = None
        try:
            async with asyncio.timeout(_SECONDS):
                found = await self._asked(circle, who or host, host, port)
                return await asyncio.shield(found)
        except TimeoutError:
            why = "no name server has said in time where it is" if found else "too many names are looked up now"
            raise Busy(f"{host[:255]} cannot be looked up: {why}; try again in a moment") from None

    async def _asked(self, circle: str, who: str, host: str, port: int) -> Found:
        """The answer that will come, of a look-up that is under way or of one that begins once there is a place."""
        if (found := self._under_way(circle, host)) is not None:
            return found
        places = self._places.setdefault(circle, Places(_PLACES, each=_EACH))
        await places.take(who)
        if (found := self._under_way(circle, host)) is not None:  # it began while we waited
            places.give_back(who)
            return found
        return self._begin(circle, who, host, port)

    def _under_way(self, circle: str, host: str) -> Found | None:
        """A look-up that may be joined: not one that hangs, beside which another may have its answer."""
        began, found = self._coming.get((circle, host), (0.0, None))
        return found if found is not None and time.monotonic() - began < _SECONDS else None

    def _begin(self, circle: str, who: str, host: str, port: int) -> Found:
        loop = asyncio.get_running_loop()
        found: Found = loop.create_future()

        def ended(value: list[str], error: Exception | None) -> None:
            self._places[circle].give_back(who)
            if self._coming.get((circle, host), (0.0, None))[1] is found:
                del self._coming[circle, host]
            if error is None:
                found.set_result(value)
            else:
                found.set_exception(error)
                found.exception()  # looked at: perhaps nobody waits for it any more

        try:
            args = (host, port, loop, ended)
            threading.Thread(target=_look_up, args=args, name="name look-up", daemon=True).start()
        except RuntimeError:  # the machine gives us no more threads
            self._places[circle].give_back(who)
            raise Busy(f"no thread is free to look up {host[:255]}; try again in a moment") from None
        self._coming[circle, host] = time.monotonic(), found
        return found


def _look_up(
    host: str, port: int, loop: asyncio.AbstractEventLoop, ended: Callable[[list[str], Exception | None], None]
) -> None:
    value: list[str] = []
    error: Exception | None = None
    try:
        value = [str(entry[4][0]) for entry in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
    except Exception as raised:  # noqa: BLE001  # told to whoever asked
        error = raised
    with suppress(RuntimeError):  # the loop has ended, and its places with it
        loop.call_soon_threadsafe(ended, value, error)
