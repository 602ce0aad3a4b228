"""Readers that are slow: one that goes on is served, of batches of any size; a byte now and then is as nothing."""

from __future__ import annotations

import asyncio
import socket
import ssl
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.flight as fl
import pyarrow.parquet as pq
import pytest
import pytest_asyncio
import uvicorn
from fastapi import FastAPI

from connector.dataplane.flight.listener import FlightServer
from connector.dataplane.http import routes
from connector.dataplane.http.vectored_body import Protocol
from connector.infra.http.tls_server import TlsServer
from tests.support import flying, provider
from tests.support.certificates import self_signed
from tests.support.provider import Provider
from tests.support.stalls import in_real_time
from tests.support.waiting import until

pytestmark = pytest.mark.asyncio(loop_scope="module")

STALL = 0.8  # seconds
ROW = 32 * 2**20  # bytes of a batch
ROWS = 4
ENOUGH = 80 * 2**20  # bytes, after which a reader has taken two batches and is in a third
PAUSE = 0.1  # seconds between two helpings
FAST = 2 * 2**20  # bytes of a helping: a batch takes twice the time in which nothing may be taken


@dataclass(slots=True)
class Taker:
    """The reader's end of a connection: so many bytes at a time, and a pause."""

    port: int = 0
    taken: int = 0


@contextmanager
def taking(port: int, helping: int) -> Iterator[Taker]:
    """A way to that port on which answers are taken slowly, and thrown away where nobody takes them."""
    with socket.create_server(("127.0.0.1", 0)) as door, socket.socket() as there:
        taker, over = Taker(door.getsockname()[1]), threading.Event()
        there.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2**16)
        there.connect(("127.0.0.1", port))

        def carry() -> None:
            here, _ = door.accept()
            with here:
                threading.Thread(target=_carry_on, args=(here, there), daemon=True).start()
                with suppress(OSError):
                    while not over.is_set() and (data := _helping(there, helping if taker.taken > 2**17 else 2**14)):
                        here.sendall(data)
                        taker.taken += len(data)
                        if taker.taken > 2**17:  # handshake and head are there by then
                            over.wait(PAUSE)
                with suppress(OSError):
                    here.shutdown(socket.SHUT_RDWR)  # the other thread still has it

        thread = threading.Thread(target=carry, daemon=True)
        thread.start()
        try:
            yield taker
        finally:
            over.set()
            with suppress(OSError):
                there.shutdown(socket.SHUT_RDWR)
            thread.join(10)


def _helping(there: socket.socket, size: int) -> bytes:
    """At most `size` bytes; all that is there of it, as a reader's kernel has room for less."""
    if size < FAST:
        return there.recv(size)
    parts = []
    while size and (part := there.recv(size)):
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def _carry_on(here: socket.socket, there: socket.socket) -> None:
    with suppress(OSError):
        while data := here.recv(2**16):
            there.sendall(data)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Provider]:
    async with provider.running(tmp_path_factory.mktemp("provider"), rows=10, stall_seconds=STALL) as started:
        yield started


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def front(running: Provider) -> AsyncIterator[FlightServer]:
    async with flying.flying(running, stall_seconds=STALL) as started:
        yield started


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows that are a batch each."""
    path = tmp_path_factory.mktemp("data") / "large.parquet"
    with pq.ParquetWriter(path, pa.schema([("image", pa.large_binary())]), compression="zstd") as writer:
        for number in range(ROWS):
            writer.write_table(pa.table({"image": pa.array([bytes([number]) * ROW], pa.large_binary())}))
    return path


@asynccontextmanager
async def over_tls(running: Provider, folder: Path) -> AsyncIterator[int]:
    """The provider's data over TLS."""
    app = FastAPI(routes=routes.routes(running.reads, running.addresses, owner=provider.OWNER, stall_seconds=STALL))
    with socket.create_server(("127.0.0.1", 0)) as door:
        config = uvicorn.Config(
            app, http=Protocol, log_level="critical", lifespan="off", loop="uvloop",
            ssl_certfile=self_signed(folder / "owner.pem"),
        )  # fmt: skip
        server = TlsServer(config)
        task = asyncio.ensure_future(server.serve(sockets=[door]))
        while not server.started:
            await asyncio.sleep(0.01)
        try:
            yield door.getsockname()[1]
        finally:
            server.should_exit = server.force_exit = True
            await task


def _by_http(port: int, ticket: str, *, tls: bool) -> None:
    lines = "GET /data/v1/datasets/large/rows HTTP/1.1", "host: a", f"authorization: Bearer {ticket}"
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    with (
        suppress(OSError),
        socket.create_connection(("127.0.0.1", port)) as plain,
        context.wrap_socket(plain) if tls else plain as asking,
    ):
        asking.sendall("\r\n".join([*lines, "", ""]).encode())
        while asking.recv(2**18):
            pass


def _by_flight(port: int, ticket: str) -> None:
    options = fl.FlightCallOptions(headers=[(b"authorization", f"Bearer {ticket}".encode())])
    with suppress(fl.FlightError, pa.ArrowException), fl.connect(f"grpc+tcp://127.0.0.1:{port}") as client:
        info = client.get_flight_info(fl.FlightDescriptor.for_path("clinic", "large"), options)
        for _ in client.do_get(info.endpoints[0].ticket, options):
            pass


@pytest.mark.parametrize("way", ["plain", "tls", "flight"])
@pytest.mark.parametrize("helping", [FAST, 1], ids=["slow", "next to nothing"])
@in_real_time
async def test_who_goes_on_has_all_and_a_byte_now_and_then_is_as_nothing(
    running: Provider, front: FlightServer, path: Path, tmp_path: Path, way: str, helping: int
) -> None:
    ticket = running.ticket(await running.agree(name="large", path=path))
    async with over_tls(running, tmp_path) as secure:
        ports = {"plain": int(running.url.rsplit(":", 1)[-1]), "tls": secure, "flight": front.port}
        with taking(ports[way], helping) as taker:
            ask: Callable[[], None] = (
                (lambda: _by_flight(taker.port, ticket))
                if way == "flight"
                else (lambda: _by_http(taker.port, ticket, tls=way == "tls"))
            )
            before = len(running.of_kind("ReadEnded"))
            asking = asyncio.create_task(asyncio.to_thread(ask))
            await until(lambda: taker.taken > ENOUGH or len(running.of_kind("ReadEnded")) > before)
            ended = [(one.outcome, one.code) for one in running.of_kind("ReadEnded")[before:]]
        await asyncio.wait_for(asking, 30)  # its way has ended, so does it
        assert ended == ([] if helping == FAST else [("broken", "client_stalled")])
        await until(lambda: not running.reads.live)
