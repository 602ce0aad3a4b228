"""Flight before a test's provider, and clients of it with nothing of ours in them."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import adbc_driver_flightsql
import adbc_driver_flightsql.dbapi
import pyarrow as pa
import pyarrow.flight as fl

from connector.dataplane.flight.flight_queries import FlightQueries
from connector.dataplane.flight.listener import FlightServer, ListenOptions
from tests.support import provider
from tests.support.provider import Provider


@asynccontextmanager
async def flying(running: Provider, *, stall_seconds: float = 60.0, **listen: Any) -> AsyncIterator[FlightServer]:
    """The provider's data over Flight on a free port, until the block ends."""
    queries = FlightQueries(
        running.reads, running.addresses, owner=provider.OWNER, key=b"k" * 32, stall_seconds=stall_seconds
    )
    front = FlightServer(queries, ListenOptions(**{"host": "127.0.0.1", "port": 0, **listen}))
    await front.start()
    try:
        yield front
    finally:
        await front.stop()


@dataclass
class Flyer:
    """A pyarrow.flight client with its headers."""

    client: fl.FlightClient
    options: fl.FlightCallOptions

    def info(self, *path: str, **envelope: Any) -> fl.FlightInfo:
        """The FlightInfo of a path, or of an envelope."""
        if path:
            descriptor = fl.FlightDescriptor.for_path(*path)
        else:
            descriptor = fl.FlightDescriptor.for_command(json.dumps(envelope).encode())
        return self.client.get_flight_info(descriptor, self.options)

    def get(self, ticket: fl.Ticket) -> Any:
        return self.client.do_get(ticket, self.options)

    def read(self, *path: str, **envelope: Any) -> tuple[pa.Table, dict[str, Any]]:
        """All rows of every endpoint, and the end record of the last."""
        tables, end = [], {}
        for endpoint in self.info(*path, **envelope).endpoints:
            table, end = whole(self.get(endpoint.ticket))
            tables.append(table)
        return pa.concat_tables(tables), end

    def act(self, kind: str, body: bytes) -> list[bytes]:
        return [one.body.to_pybytes() for one in self.client.do_action(fl.Action(kind, body), self.options)]


@contextmanager
def flyer(front: FlightServer, ticket: str, *, scheme: str = "", headers: Any = (), **options: Any) -> Iterator[Flyer]:
    """A client that shows this data-plane ticket. Without a `scheme`: one that knows how the front listens."""
    if not scheme:
        scheme, roots = reached(front)
        options |= {"tls_root_certs": roots} if roots else {}
    shown = [(b"authorization", f"Bearer {ticket}".encode())] if ticket else []
    with fl.connect(f"{scheme}://127.0.0.1:{front.port}", **options) as client:
        yield Flyer(client, fl.FlightCallOptions(headers=[*shown, *headers]))


def whole(reader: Any) -> tuple[pa.Table, dict[str, Any]]:
    """The rows and the end record of one stream; one without it is not an answer."""
    batches, end = [], None
    for chunk in reader:
        assert end is None
        if chunk.app_metadata is not None:
            end = json.loads(chunk.app_metadata.to_pybytes())
        else:
            batches.append(chunk.data)
    assert end is not None
    return pa.Table.from_batches(batches, schema=reader.schema), end


def connect(front: FlightServer, ticket: str, **more: str) -> Any:
    """A DBAPI connection of the ADBC driver."""
    scheme, roots = reached(front)
    known = adbc_driver_flightsql.DatabaseOptions
    options = {known.AUTHORIZATION_HEADER.value: f"Bearer {ticket}", **more}
    options |= {known.TLS_ROOT_CERTS.value: roots.decode()} if roots else {}
    return adbc_driver_flightsql.dbapi.connect(f"{scheme}://127.0.0.1:{front.port}", db_kwargs=options, autocommit=True)


def reached(front: FlightServer) -> tuple[str, bytes]:
    """The scheme of its addresses, and the certificate to believe (none without TLS)."""
    known = front._listen.certificate
    return ("grpc+tls", Path(known).read_bytes()) if known else ("grpc+tcp", b"")
