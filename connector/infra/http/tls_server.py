"""uvicorn's server with connection limits that include TLS handshakes.

uvicorn learns of a TLS connection after its handshake. Clients that connect and send nothing would not count as
connections and could take every file descriptor of the process. So this module accepts them itself. It knows nothing
about the application, and depends on uvicorn's internals, whose version range is pinned.
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

_AT_ONCE = 16  # connections accepted before the event loop continues
_PAUSE = 0.5  # seconds without accepting, after the system ran out of descriptors or memory


class TlsServer(uvicorn.Server):
    """uvicorn's server for a `Config` whose `http` is a `LimitedHttpProtocol`. With TLS it takes only open sockets."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start as uvicorn does; with TLS, accept connections here."""
        context = self.config.ssl
        if context is None:
            await super().startup(sockets)
            return
        await self.lifespan.startup()
        protocol_class: Any = self.config.http_protocol_class
        new_protocol = partial(
            protocol_class, config=self.config, server_state=self.server_state, app_state=self.lifespan.state
        )
        listeners: Any = [HandshakeListener(listening, new_protocol, context) for listening in sockets or ()]
        self.servers = listeners
        self.started = True


class HandshakeListener:
    """Accepts connections of one socket and counts them before the TLS handshake. Has the methods uvicorn calls."""

    def __init__(
        self, listening: socket.socket, new_protocol: Callable[[], Any], context: ssl.SSLContext | None
    ) -> None:
        self._listening, self._new_protocol, self._context = listening, new_protocol, context
        self._loop = asyncio.get_running_loop()
        self._handshakes: set[asyncio.Task[None]] = set()
        self._pause: asyncio.TimerHandle | None = None
        listening.setblocking(False)
        self._open()

    def close(self) -> None:
        """Stop accepting. uvicorn ends connections, including those in a handshake."""
        self._loop.remove_reader(self._listening.fileno())
        if self._pause is not None:
            self._pause.cancel()

    async def wait_closed(self) -> None:
        """Wait until every handshake has ended."""
        await asyncio.gather(*self._handshakes)

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
            protocol = self._new_protocol()
            if not protocol.begin_handshake(client):
                client.close()
                continue
            task = self._loop.create_task(self._shake_hands(protocol, client))
            self._handshakes.add(task)
            task.add_done_callback(self._handshakes.discard)

    async def _shake_hands(self, protocol: Any, client: socket.socket) -> None:
        try:
            with suppress(OSError):  # the client or TLS failed, or was too slow: only this connection is affected
                await self._loop.connect_accepted_socket(
                    lambda: protocol,
                    client,
                    ssl=self._context,
                    ssl_handshake_timeout=HEAD_SECONDS if self._context is not None else None,
                )
        finally:
            protocol.end_handshake()
