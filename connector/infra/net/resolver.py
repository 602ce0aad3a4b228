"""Resolves host names as the machine does (hosts file, search domains, container DNS), with a fair limit on look-ups.

Look-ups run in threads of their own: the event loop has few, and a name server that does not answer would block them
all. A look-up cannot be cancelled, so each keeps its place until it ends. Places belong to a group of parties (known
participants, partners, strangers), so that strangers cannot use up the places of members. Without a free place, a
caller waits. A caller that asks for a name that its group is already looking up waits for the same result.
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

from connector.errors import Unavailable
from connector.infra.concurrency.fair_semaphore import FairSemaphore

OWN_GROUP = "ours"  # the group of look-ups for our own users
_PLACES, _EACH = 32, 8  # look-ups at once of a group, and of a party or host in it
_SECONDS = 10.0  # to wait for a place and a result: a resolver tries its second server after five
Addresses: TypeAlias = asyncio.Future[list[str]]
_group: ContextVar[tuple[str, str]] = ContextVar("resolving_for", default=(OWN_GROUP, ""))


@contextmanager
def use_group(group: str, party: str) -> Iterator[None]:
    """Let look-ups in this block, and in tasks that it starts, use the places of this group and party."""
    token = _group.set((group, party))
    try:
        yield
    finally:
        _group.reset(token)


class NameResolver:
    """The look-ups of a process. A look-up that hangs does not keep the process from ending."""

    def __init__(self) -> None:
        self._places: dict[str, FairSemaphore] = {}
        self._lookups: dict[tuple[str, str], tuple[float, Addresses]] = {}  # by group and host: start time and result

    async def addresses(self, host: str, port: int) -> list[str]:
        """The addresses of a host, in the order to try them.

        Raises: Unavailable without a place or a result in time, OSError if the name does not resolve, UnicodeError if
        it cannot be a name.
        """
        group, party = _group.get()
        found: Addresses | None = None
        try:
            async with asyncio.timeout(_SECONDS):
                found = await self._join_or_begin(group, party or host, host, port)
                return await asyncio.shield(found)
        except TimeoutError:
            why = "no name server answered in time" if found else "too many names are looked up now"
            raise Unavailable(f"{host[:255]} cannot be looked up: {why}; try again in a moment") from None

    async def _join_or_begin(self, group: str, party: str, host: str, port: int) -> Addresses:
        """Join a running look-up of the host, or begin one once there is a place."""
        if (found := self._under_way(group, host)) is not None:
            return found
        places = self._places.setdefault(group, FairSemaphore(_PLACES, each=_EACH))
        await places.take(party)
        if (found := self._under_way(group, host)) is not None:  # another caller began it while this one waited
            places.give_back(party)
            return found
        return self._begin(group, party, host, port)

    def _under_way(self, group: str, host: str) -> Addresses | None:
        """A running look-up to join; None without one, or if it hangs, as a new one may succeed."""
        began, found = self._lookups.get((group, host), (0.0, None))
        return found if found is not None and time.monotonic() - began < _SECONDS else None

    def _begin(self, group: str, party: str, host: str, port: int) -> Addresses:
        loop = asyncio.get_running_loop()
        found: Addresses = loop.create_future()

        def ended(value: list[str], error: Exception | None) -> None:
            self._places[group].give_back(party)
            if self._lookups.get((group, host), (0.0, None))[1] is found:
                del self._lookups[group, host]
            if error is None:
                found.set_result(value)
            else:
                found.set_exception(error)
                found.exception()  # mark it as retrieved: perhaps no caller waits any more

        try:
            args = (host, port, loop, ended)
            threading.Thread(target=_look_up, args=args, name="name look-up", daemon=True).start()
        except RuntimeError:  # the system has no more threads
            self._places[group].give_back(party)
            raise Unavailable(f"no thread is free to look up {host[:255]}; try again in a moment") from None
        self._lookups[group, host] = time.monotonic(), found
        return found


def _look_up(
    host: str, port: int, loop: asyncio.AbstractEventLoop, ended: Callable[[list[str], Exception | None], None]
) -> None:
    value: list[str] = []
    error: Exception | None = None
    try:
        value = [str(entry[4][0]) for entry in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
    except Exception as raised:  # noqa: BLE001  # passed on to the caller
        error = raised
    with suppress(RuntimeError):  # the loop has ended
        loop.call_soon_threadsafe(ended, value, error)
