"""Connections to peers over real sockets, plain and over TLS: what a peer may do, and what stays behind."""

from __future__ import annotations

import asyncio
import gc
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpcore2
import pytest

from connector.errors import PeerUnreachable
from connector.infra.net.http_client import AddressGuard, HttpClient
from connector.infra.net.pooled_connection import PooledConnection, connect
from tests.support.certificates import self_signed
from tests.support.waiting import until

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
BIG = bytes(range(256)) * 2**16  # 16 MB: more than the kernel holds between two sockets


@dataclass
class Peer:
    """A server: what it was told, how many connections it has seen, and which of them are open."""

    port: int
    scheme: str
    trust: ssl.SSLContext | None
    seen: int = 0
    open: int = 0
    ends: list[str] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.port}/"

    async def stream(self) -> httpcore2.AsyncNetworkStream:
        plain = await connect("127.0.0.1", self.port, 30)
        return await plain.start_tls(self.trust, "127.0.0.1", 30) if self.trust else plain

    def net(self, timeout: float = 30) -> HttpClient:
        return HttpClient(
            AddressGuard(allow=["127.0.0.0/8"], insecure_http=True),
            timeout=timeout,
            max_bytes=2 * len(BIG),
            tls=self.trust,
        )


Serve = Callable[[Handler], Any]


@pytest.fixture(scope="module", autouse=True)
def _nothing_older() -> None:
    """Each test looks for what it left behind: not through what thousands before it have."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="module")
def pem(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return self_signed(tmp_path_factory.mktemp("tls") / "owner.pem")


@pytest.fixture(params=["http", "https"])
def serve(request: pytest.FixtureRequest, pem: Path) -> Serve:
    """`async with serve(handler) as peer`; it ends when every connection has, and must have no error to tell."""
    trust = ssl.create_default_context(cafile=pem) if request.param == "https" else None
    own = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER) if trust else None
    if own:
        own.load_cert_chain(pem)

    @asynccontextmanager
    async def served(handler: Handler) -> AsyncIterator[Peer]:
        complaints: list[dict[str, Any]] = []
        asyncio.get_running_loop().set_exception_handler(lambda _, told: complaints.append(told))

        async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            peer.seen += 1
            peer.open += 1
            try:
                await handler(reader, writer)
            except (OSError, asyncio.IncompleteReadError) as error:
                peer.ends.append(type(error).__name__)
            finally:
                peer.open -= 1
                writer.transport.abort()

        server = await asyncio.start_server(handle, "127.0.0.1", 0, ssl=own)
        peer = Peer(server.sockets[0].getsockname()[1], request.param, trust)
        try:
            yield peer
            await until(lambda: not peer.open)
        finally:
            server.close()
        gc.collect()
        assert not [told for told in complaints if "PooledConnection" in repr(told) or "never retrieved" in repr(told)]

    return served


async def asked(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readuntil(b"\r\n\r\n")
    length = next((int(line[15:]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length")), 0)
    return await reader.readexactly(length)


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while True:
        body = await asked(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)
        await writer.drain()


async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Reads all and says nothing, until the other side goes."""
    while await reader.read(2**16):
        pass


async def deaf(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Reads nothing until the other side has gone, which only writing shows then."""
    writer.transport.pause_reading()
    while not writer.is_closing():
        await asyncio.sleep(0.01)
        writer.write(b"x")


async def endless(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while True:
        writer.write(BIG)
        await writer.drain()


async def read_for_ever(stream: httpcore2.AsyncNetworkStream) -> None:
    await stream.read(10)


async def write_for_ever(
    stream: httpcore2.AsyncNetworkStream, piece: bytes = BIG, seconds: float | None = None
) -> None:
    """More than two sockets hold, at least: an end of it is for a peer that takes everything."""
    for _ in range(10 * len(BIG) // len(piece)):
        await stream.write(piece, seconds)


@pytest.mark.parametrize("size", [0, 1, 2_000, 2**16, 2**16 + 1, 2**18, 2**20 + 7, len(BIG)])
async def test_every_byte_comes_back_over_one_connection(serve: Serve, size: int) -> None:
    async with serve(echo) as peer:
        net = peer.net()
        for _ in range(3):
            assert (await net.call("POST", peer.url, body=BIG[:size])).body == BIG[:size]
        assert peer.seen == 1
        await net.close()


async def test_a_body_that_is_made_on_the_way_is_sent_piece_by_piece(serve: Serve) -> None:
    came = asyncio.Event()

    async def look(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"first")
        came.set()
        await reader.readuntil(b"0\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        await reader.read()

    async def pieces() -> AsyncIterator[bytes]:
        yield b"first"
        await came.wait()  # nothing more is asked of the connection before the peer has seen this much
        yield b"second"

    async with serve(look) as peer:
        net = peer.net()
        async with net.stream("POST", peer.url, body=pieces()) as answer:
            assert await answer.read_up_to(10) == b"ok"
        await net.close()


async def test_head_and_body_leave_together() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        stream = await connect("127.0.0.1", listener.getsockname()[1], 30)
        accepted, _ = listener.accept()
        accepted.setblocking(False)
        for _ in range(40):  # more than may wait, altogether
            await stream.write(b"head", 30)
            with pytest.raises(BlockingIOError):
                accepted.recv(10)
            await stream.write(b"b" * 4_000, 30)
            await asyncio.sleep(0.001)
            assert len(accepted.recv(2**16)) == 4_004
        accepted.close()
        await stream.aclose()


async def test_what_was_written_leaves_before_its_connection_ends() -> None:
    complaints: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, told: complaints.append(told))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        stream = await connect("127.0.0.1", listener.getsockname()[1], 30)
        await stream.write(b"before", 30)
        await stream.aclose()
        await asyncio.sleep(0.01)
        accepted, _ = listener.accept()
        assert accepted.recv(10) == b"before"
        assert accepted.recv(10) == b""
        accepted.close()
    assert complaints == []


async def test_a_write_that_waits_ends_with_its_connection(serve: Serve) -> None:
    async def go(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.transport.pause_reading()
        await asyncio.sleep(0.2)

    async with serve(go) as peer:
        stream = await peer.stream()
        with pytest.raises(httpcore2.WriteError):
            await write_for_ever(stream, BIG, 30)
        await stream.aclose()


async def test_what_a_reader_does_not_take_waits_at_its_peer(serve: Serve) -> None:
    async with serve(endless) as peer:
        stream = await peer.stream()
        assert isinstance(stream, PooledConnection)
        await until(lambda: stream._size > 2**16)
        for _ in range(50):
            await asyncio.sleep(0.01)
            assert stream._size <= 2**16 + 2**18
        taken = b""
        while len(taken) < len(BIG):
            piece = await stream.read(100_000, 30)
            assert 0 < len(piece) <= 100_000
            taken += piece
        assert taken[: len(BIG)] == BIG
        await stream.aclose()


async def test_an_answer_that_does_not_come_is_waited_for_as_long_as_was_said(serve: Serve) -> None:
    async with serve(silent) as peer:
        stream = await peer.stream()
        with pytest.raises(httpcore2.ReadTimeout):
            await stream.read(10, 0.05)
        await stream.aclose()


@pytest.mark.parametrize("size", [len(BIG), 2_000])
async def test_a_peer_that_does_not_read_is_waited_for_as_long_as_was_said(serve: Serve, size: int) -> None:
    """Also where small pieces are handed over without a pause: they are no more than the transport takes."""
    async with serve(deaf) as peer:
        stream = await peer.stream()
        with pytest.raises(httpcore2.WriteTimeout):
            await write_for_ever(stream, BIG[:size], 0.2)
        await stream.aclose()


async def close_in_the_middle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await asked(reader)
    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\nshort")
    await writer.drain()
    writer.close()


async def test_a_peer_that_closes_in_the_middle_is_told_at_once(serve: Serve) -> None:
    async with serve(close_in_the_middle) as peer:
        net = peer.net()
        for _ in range(2):
            with pytest.raises(PeerUnreachable):
                await net.call("GET", peer.url)
        assert peer.seen == 2
        await net.close()


async def test_a_connection_that_is_cut_is_an_error_and_no_end(serve: Serve) -> None:
    async def cut(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(5)
        reset = struct.pack("ii", 1, 0)
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, reset)
        writer.transport.abort()

    async with serve(cut) as peer:
        stream = await peer.stream()
        await stream.write(b"hello", 30)
        with pytest.raises(httpcore2.ReadError):
            await stream.read(10, 30)
        with pytest.raises(httpcore2.WriteError):
            await stream.write(b"again", 30)
        await asyncio.sleep(0.01)  # nothing of it is sent later
        await stream.aclose()


async def test_a_stream_that_was_closed_here_ends_no_body(serve: Serve) -> None:
    """A body without a length is whole at the end of its connection: at the peer's, and not at ours."""
    async with serve(silent) as peer:
        stream = await peer.stream()
        reading = asyncio.ensure_future(stream.read(10, 30))
        await asyncio.sleep(0.01)
        await stream.aclose()
        with pytest.raises(httpcore2.ReadError):
            await reading


IDLE = {"says goodbye": b"", "says what nobody asked for": b"HTTP/1.1 200 OK\r\n\r\n"}


@pytest.mark.parametrize("says", IDLE)
async def test_a_connection_whose_peer_does_not_wait_is_not_used_again(serve: Serve, says: str) -> None:
    done = asyncio.Event()

    async def once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asked(reader)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        await asyncio.sleep(0.05)
        writer.write(IDLE[says])
        await writer.drain()
        if not IDLE[says]:
            writer.close()
        done.set()
        await reader.read()

    async with serve(once) as peer:
        net = peer.net()
        for seen in (1, 2, 3):
            done.clear()
            assert (await net.call("GET", peer.url)).body == b"ok"
            assert peer.seen == seen
            await done.wait()
            await asyncio.sleep(0.05)
        await net.close()


async def test_what_has_come_and_was_not_looked_at_yet_is_seen_too() -> None:
    """The loop has had no time for the socket since; a request would go to a peer that has left."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        stream = await connect("127.0.0.1", listener.getsockname()[1], 30)
        accepted, _ = listener.accept()
        assert not stream.get_extra_info("is_readable")
        accepted.close()
        assert stream.get_extra_info("is_readable")
        await until(lambda: stream.get_extra_info("socket") is None or stream.get_extra_info("socket").fileno() < 0)
        others = [socket.socketpair() for _ in range(20)]  # one of them has the number of the socket that was closed
        assert stream.get_extra_info("is_readable")
        for pair in others:
            pair[0].close()
            pair[1].close()
        await stream.aclose()


@pytest.mark.parametrize(("step", "handler"), [(read_for_ever, silent), (write_for_ever, deaf)])
async def test_whoever_is_cancelled_leaves_nothing(serve: Serve, step: Any, handler: Handler) -> None:
    async with serve(handler) as peer:
        stream = await peer.stream()
        task = asyncio.ensure_future(step(stream))
        await asyncio.sleep(0.1)
        assert not task.done()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await stream.aclose()
        assert stream.get_extra_info("is_readable")
        assert asyncio.all_tasks() - {asyncio.current_task()} == {t for t in asyncio.all_tasks() if "handle" in repr(t)}


async def test_an_exchange_that_is_cancelled_closes_its_connection(serve: Serve) -> None:
    async with serve(silent) as peer:
        net = peer.net()
        task = asyncio.ensure_future(net.call("POST", peer.url, body=b"x"))
        await until(lambda: peer.open)
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await until(lambda: not peer.open)
        await net.close()


async def mute(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await silent(reader, writer)


async def babble(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
    await silent(reader, writer)


async def leave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read(10)


@pytest.mark.parametrize(
    ("handler", "expected"),
    [(mute, httpcore2.ConnectTimeout), (babble, httpcore2.ConnectError), (leave, httpcore2.ConnectError)],
)
async def test_no_handshake_is_no_connection_and_leaves_none(handler: Handler, expected: type[Exception]) -> None:
    async with plain(handler) as peer:
        stream = await peer.stream()
        with pytest.raises(expected):
            await stream.start_tls(ssl.create_default_context(), "127.0.0.1", 0.3)
        await until(lambda: not peer.open)


async def test_whoever_is_cancelled_in_a_handshake_leaves_nothing() -> None:
    for rounds in (0, 1, 2, 5, 50):
        async with plain(mute) as peer:
            stream = await peer.stream()
            task = asyncio.ensure_future(stream.start_tls(ssl.create_default_context(), "127.0.0.1", 30))
            for _ in range(rounds):
                await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await stream.aclose()
            await until(lambda peer=peer: peer.seen and not peer.open)


async def test_a_handshake_that_ended_leaves_nothing_to_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    """The loop closes in its own time what was cancelled as it became ready."""

    async def never(*_: object, **__: object) -> None:
        await asyncio.sleep(60)

    async with plain(mute) as peer:
        stream = await peer.stream()
        monkeypatch.setattr(asyncio.get_running_loop(), "start_tls", never, raising=False)
        with pytest.raises(httpcore2.ConnectTimeout):
            await stream.start_tls(ssl.create_default_context(), "127.0.0.1", 0.05)
        assert stream.get_extra_info("socket").fileno() < 0
        await until(lambda: peer.seen and not peer.open)


async def test_a_stranger_is_refused_and_left(serve: Serve) -> None:
    async with serve(silent) as peer:
        if peer.trust is None:
            pytest.skip("a connection without TLS has no certificate to refuse")
        for context, name in ((ssl.create_default_context(), "127.0.0.1"), (peer.trust, "peer.example")):
            stream = await connect("127.0.0.1", peer.port, 30)
            with pytest.raises(httpcore2.ConnectError, match="verify failed"):
                await stream.start_tls(context, name, 30)


async def test_the_addresses_of_a_connection_are_told(serve: Serve) -> None:
    async with serve(silent) as peer:
        stream = await peer.stream()
        assert (stream.get_extra_info("ssl_object") is None) == (peer.trust is None)
        assert stream.get_extra_info("server_addr") == ("127.0.0.1", peer.port)
        await stream.aclose()


async def test_over_tls_a_peer_is_told_that_a_connection_ends(pem: Path) -> None:
    own = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    own.load_cert_chain(pem)
    own.options &= ~ssl.OP_IGNORE_UNEXPECTED_EOF

    def last() -> bytes:
        accepted, _ = listener.accept()
        with own.wrap_socket(accepted, server_side=True, suppress_ragged_eofs=False) as tls:
            return tls.recv(10)

    with socket.create_server(("127.0.0.1", 0)) as listener:
        peer = asyncio.ensure_future(asyncio.to_thread(last))
        plain = await connect("127.0.0.1", listener.getsockname()[1], 30)
        stream = await plain.start_tls(ssl.create_default_context(cafile=pem), "127.0.0.1", 30)
        await stream.aclose()
        assert await peer == b""  # without a word it is SSLEOFError


async def test_a_port_where_nobody_listens_is_an_error() -> None:
    with pytest.raises(httpcore2.ConnectError):
        await connect("127.0.0.1", 9, 30)


async def test_an_address_that_does_not_answer_is_waited_for_as_long_as_was_said(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def never(*_: object) -> None:
        await asyncio.sleep(60)

    monkeypatch.setattr(asyncio.get_running_loop(), "create_connection", never, raising=False)
    with pytest.raises(httpcore2.ConnectTimeout):
        await connect("127.0.0.1", 9, 0.05)


@asynccontextmanager
async def plain(handler: Handler) -> AsyncIterator[Peer]:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        peer.seen += 1
        peer.open += 1
        with suppress(OSError):
            await handler(reader, writer)
        writer.close()
        peer.open -= 1

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    peer = Peer(server.sockets[0].getsockname()[1], "http", None)
    try:
        yield peer
    finally:
        server.close()
