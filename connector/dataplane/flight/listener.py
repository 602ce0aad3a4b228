"""Where Flight listens: its port, its certificate, and the connections that come in."""

from __future__ import annotations

import asyncio
import socket
import ssl
from contextlib import suppress
from dataclasses import dataclass

from connector.dataplane.flight.catalogue_client import Tables
from connector.dataplane.flight.flight_queries import Desk
from connector.dataplane.flight.http2.http2_connection import Connection, Connections
from connector.dataplane.flight.rpc_methods import Service
from connector.errors import Conflict
from connector.infra.http.http_limits import connections_max
from connector.infra.http.tls_server import HandshakeListener

_STOP_SECONDS = 3.0
_BACKLOG = 128


@dataclass(frozen=True, slots=True)
class Listen:
    """Where Flight listens, what proves who we are there (empty: no TLS), and how many connections it has at most."""

    host: str
    port: int
    certificate: str = ""
    key: str = ""
    connections: int = 512


class Front:
    """One listener and all connections of it."""

    def __init__(self, desk: Desk, listen: Listen) -> None:
        self._desk = desk
        self._listen = listen
        self.connections_max = min(listen.connections, connections_max())  # their descriptors are this process's, too
        self._connections = Connections(self.connections_max)
        self._tables = Tables()
        self._socket: socket.socket | None = None
        self._door: HandshakeListener | None = None
        self._context: ssl.SSLContext | None = None
        self.port = listen.port

    async def start(self) -> None:
        """Back when it listens. Conflict where it cannot, with the reason."""
        listen = self._listen
        try:
            self._context = _context(listen)
            self._socket = socket.create_server(
                (listen.host, listen.port),
                family=socket.AF_INET6 if ":" in listen.host else socket.AF_INET,
                backlog=_BACKLOG,
                dualstack_ipv6=listen.host == "::" and socket.has_dualstack_ipv6(),  # as HTTP's listener
            )
        except (OSError, ssl.SSLError) as error:
            raise Conflict(
                f"Flight cannot listen on {listen.host}:{listen.port} ({error}); look at HANSE_FLIGHT_PORT and the "
                "certificate"
            ) from error
        self.port = self._socket.getsockname()[1]
        service = Service(self._desk, self._tables)
        self._door = HandshakeListener(
            self._socket, lambda: Connection(service.answer, self._connections), self._context
        )

    def renew(self) -> None:
        """Read the certificate anew, for connections from now on."""
        if self._context is not None:
            self._context.load_cert_chain(self._listen.certificate, self._listen.key or None)

    async def stop(self) -> None:
        """End it; call it when no read runs any more."""
        door, self._door = self._door, None
        if door is None or self._socket is None:
            return
        door.close()
        self._socket.close()
        for connection in self._connections:
            connection.close()
        with suppress(TimeoutError):
            async with asyncio.timeout(_STOP_SECONDS):
                await self._connections.none.wait()
        for connection in self._connections:
            connection.hang_up()
        await door.wait_closed()
        await self._tables.close()


def _context(listen: Listen) -> ssl.SSLContext | None:
    if not listen.certificate:
        return None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(listen.certificate, listen.key or None)
    context.set_alpn_protocols(["h2"])
    return context
