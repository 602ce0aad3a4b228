"""The Flight listener: its port, its certificate and its limits. grpcio is loaded when it starts, never before."""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from connector.dataplane.flight.catalogue_client import CatalogueClient
from connector.dataplane.flight.flight_queries import FlightQueries
from connector.errors import WrongState
from connector.infra.http.http_limits import HEAD_SECONDS, connections_max

_STOP_TIMEOUT_S = 3.0
_CALLS_MAX = 64  # of one connection at once
_ALL_CALLS_MAX = 4096  # of all connections at once, so that callers without a ticket cannot fill the memory
_METADATA_MAX = 64 * 2**10  # bytes of a call's metadata: sixteen tickets
_IDLE_TIMEOUT_S = 60.0  # of a connection without a call; clients connect again by themselves
_SILENCE_TIMEOUT_S = 60.0  # after which a connection is tested with a ping, and then without an answer closed
_PING_INTERVAL_S = 1.0  # a client that sends pings more often is disconnected
# Strangers could fill the log with gRPC's own messages. Its fork handlers are for programs that fork without exec.
_ENVIRONMENT = {"GRPC_VERBOSITY": "NONE", "GRPC_ENABLE_FORK_SUPPORT": "0"}


@dataclass(frozen=True, slots=True)
class ListenOptions:
    """Address, certificate (empty: no TLS) and connection limit of the Flight listener."""

    host: str
    port: int
    certificate: str = ""
    key: str = ""
    connections: int = 512


class FlightServer:
    """One Flight listener and its connections."""

    def __init__(self, queries: FlightQueries, listen: ListenOptions) -> None:
        self._queries = queries
        self._listen = listen
        self.connections_max = min(listen.connections, connections_max())  # they use this process's descriptors
        self._catalogue = CatalogueClient()
        self._certificate = _Certificate(listen) if listen.certificate else None
        self._server: Any = None
        self.port = listen.port

    async def start(self) -> None:
        """Start to listen. Raises WrongState with the reason where the port or the certificate cannot be used."""
        listen = self._listen
        for name, value in _ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        import grpc.aio

        from connector.dataplane.flight.rpc_methods import FlightService

        server = grpc.aio.server(options=self._options(), maximum_concurrent_rpcs=_ALL_CALLS_MAX)
        server.add_generic_rpc_handlers((FlightService(self._queries, self._catalogue),))
        try:
            address = _resolve(listen.host, listen.port)
            if self._certificate is None:
                self.port = server.add_insecure_port(address)
            else:
                self.port = server.add_secure_port(address, self._certificate.credentials())
        except (OSError, RuntimeError, ValueError) as error:
            raise WrongState(
                f"Flight cannot listen on {listen.host}:{listen.port} ({error}); check HANSE_FLIGHT_PORT and the "
                "certificate"
            ) from error
        await server.start()
        self._server = server

    def renew(self) -> None:
        """Read the certificate again, for new connections."""
        if self._certificate is not None:
            self._certificate.renew()

    async def stop(self) -> None:
        """Stop listening and end all calls; call it when no read runs any more."""
        server, self._server = self._server, None
        if server is not None:
            await server.stop(_STOP_TIMEOUT_S)
            await self._catalogue.close()

    def _options(self) -> list[tuple[str, int]]:
        from connector.dataplane.flight.grpc_call import BODY_MAX

        return [
            ("grpc.so_reuseport", 0),
            ("grpc.max_receive_message_length", BODY_MAX),
            ("grpc.max_send_message_length", -1),
            ("grpc.max_metadata_size", _METADATA_MAX),
            ("grpc.absolute_max_metadata_size", _METADATA_MAX),
            ("grpc.max_concurrent_streams", _CALLS_MAX),
            ("grpc.max_allowed_incoming_connections", self.connections_max),
            ("grpc.server_handshake_timeout_ms", _milliseconds(HEAD_SECONDS)),
            ("grpc.max_connection_idle_ms", _milliseconds(_IDLE_TIMEOUT_S)),
            ("grpc.keepalive_time_ms", _milliseconds(_SILENCE_TIMEOUT_S)),
            ("grpc.keepalive_timeout_ms", _milliseconds(_SILENCE_TIMEOUT_S)),
            ("grpc.keepalive_permit_without_calls", 1),
            ("grpc.http2.min_ping_interval_without_data_ms", _milliseconds(_PING_INTERVAL_S)),
        ]


class _Certificate:
    """The certificate of the listener, which gRPC asks for at each handshake, in a thread."""

    def __init__(self, listen: ListenOptions) -> None:
        self._listen = listen
        self._renewed: Any = None

    def credentials(self) -> Any:
        """Returns gRPC's credentials with this certificate. Raises OSError where it cannot be read."""
        import grpc

        return grpc.dynamic_ssl_server_credentials(self._read(), self._take_renewed)

    def renew(self) -> None:
        self._renewed = self._read()

    def _read(self) -> Any:
        import grpc

        chain = Path(self._listen.certificate).read_bytes()
        key = Path(self._listen.key).read_bytes() if self._listen.key else chain
        return grpc.ssl_server_certificate_configuration([(key, chain)])

    def _take_renewed(self) -> Any:
        renewed, self._renewed = self._renewed, None
        return renewed


def _resolve(host: str, port: int) -> str:
    """Returns the one address that a host stands for. Raises OSError for an unknown host."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    numeric = socket.getaddrinfo(host, port, family, socket.SOCK_STREAM)[0][4][0]
    return f"[{numeric}]:{port}" if family == socket.AF_INET6 else f"{numeric}:{port}"


def _milliseconds(seconds: float) -> int:
    return round(seconds * 1000)
