"""uvicorn's server whose connections have their places from their first packet on, also where TLS is still to begin.

uvicorn hears of a connection over TLS when its handshake is done. Until then it was nobody's: clients that said nothing
took every descriptor of the process. Here they are accepted by us. It knows nothing of what is served, and rests on
uvicorn's internals, whose range is pinned.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any

import uvicorn

from connector.infra.http.http_limits import HEAD_SECONDS

_AT_ONCE = 16  # connections that are accepted before others have their turn
_PAUSE = 0.5  # seconds, where no connection can be accepted: there are no descriptors or no memory


class Server(uvicorn.Server):
    """uvicorn's, for a `Config` whose `http` is a `Bounded`; over TLS it takes listening sockets and nothing else."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """As uvicorn's."""
        context = self.config.ssl
        if context is None:
            await super().startup(sockets)
            return
        await self.lifespan.startup()
        made: Any = self.config.http_protocol_class
        guest = partial(made, config=self.config, server_state=self.server_state, app_state=self.lifespan.state)
        doors: Any = [Door(one, guest, context) for one in sockets or ()]
        self.servers = doors
        self.started = True


class Door:
    """Lets clients of one listening socket in, each with a place of its own. As much of a server as uvicorn asks of."""

    def __init__(self, listening: socket.socket, guest: Callable[[], Any], context: ssl.SSLContext | None) -> None:
        self._listening, self._guest, self._context = listening, guest, context
        self._loop = asyncio.get_running_loop()
        self._shaking: set[asyncio.Task[None]] = set()
        self._pause: asyncio.TimerHandle | None = None
        listening.setblocking(False)
        self._open()

    def close(self) -> None:
        """Nobody comes in any more. Whose handshake is under way, uvicorn tells to go, as all others."""
        self._loop.remove_reader(self._listening.fileno())
        if self._pause is not None:
            self._pause.cancel()

    async def wait_closed(self) -> None:
        """Every handshake is over."""
        await asyncio.gather(*self._shaking)

    def _open(self) -> None:
        self._pause = None
        self._loop.add_reader(self._listening.fileno(), self._accept)

    def _accept(self) -> None:
        for _ in range(_AT_ONCE):
            try:
                client, _ = self._listening.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError:
                self.close()
                self._pause = self._loop.call_later(_PAUSE, self._open)
                return
            client.setblocking(False)
            guest = self._guest()
            if not guest.knock(client):
                client.close()
                continue
            task = self._loop.create_task(self._shake_hands(guest, client))
            self._shaking.add(task)
            task.add_done_callback(self._shaking.discard)

    async def _shake_hands(self, guest: Any, client: socket.socket) -> None:
        try:
            with suppress(OSError):  # of the client or of TLS, a late one too: nothing that others need to know
                await self._loop.connect_accepted_socket(
                    lambda: guest,
                    client,
                    ssl=self._context,
                    ssl_handshake_timeout=HEAD_SECONDS if self._context is not None else None,
                )
        finally:
            guest.shaken()
