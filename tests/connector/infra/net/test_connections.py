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

import pytest

from connector.errors import PeerUnreachable
from connector.infra.net.http_client import AddressGuard, HttpClient
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
        assert not [told for told in complaints if "never retrieved" in repr(told)]

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


async def big_pieces() -> AsyncIterator[bytes]:
    """More than two sockets hold, at least: an end of it is for a peer that takes everything."""
    for _ in range(10):
        yield BIG


@pytest.mark.parametrize("size", [0, 2_000, 2**16 + 1, len(BIG)])
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


async def test_a_write_that_waits_ends_with_its_connection(serve: Serve) -> None:
    async def go(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.transport.pause_reading()
        await asyncio.sleep(0.2)

    async with serve(go) as peer:
        net = peer.net()
        with pytest.raises(PeerUnreachable):
            await net.call("POST", peer.url, body=BIG * 2)
        await net.close()


async def test_what_a_reader_does_not_take_waits_at_its_peer(serve: Serve) -> None:
    sent = 0

    async def endless(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        await asked(reader)
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
        while True:
            writer.write(BIG[: 2**16])
            await writer.drain()
            sent += 2**16

    async with serve(endless) as peer:
        net, taken = peer.net(), 0
        async with net.stream("GET", peer.url) as answer:
            pieces = answer.pieces()
            while taken < len(BIG):
                taken += len(await anext(pieces))
            before = sent
            await asyncio.sleep(0.5)
            assert sent < before + len(BIG)  # what two sockets hold
        await net.close()


async def test_an_answer_that_does_not_come_is_waited_for_as_long_as_was_said(serve: Serve) -> None:
    async with serve(silent) as peer:
        net = peer.net()
        with pytest.raises(PeerUnreachable):
            async with net.stream("GET", peer.url, seconds=0.05):
                pass
        await net.close()


async def test_a_peer_that_does_not_read_is_waited_for_as_long_as_was_said(serve: Serve) -> None:
    async with serve(deaf) as peer:
        net = peer.net()
        with pytest.raises(PeerUnreachable) as caught:
            async with net.stream("POST", peer.url, body=big_pieces(), taking=0.2):
                pass
        assert caught.value.code == "client_stalled"
        await net.close()


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


async def test_a_body_whose_connection_is_cut_is_not_whole(serve: Serve) -> None:
    """A body without a length is whole at the end of its connection, and not where it is reset."""

    async def cut(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asked(reader)
        writer.write(b"HTTP/1.1 200 OK\r\n\r\nbegun")
        await asyncio.sleep(0.05)
        reset = struct.pack("ii", 1, 0)
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, reset)
        writer.transport.abort()

    async with serve(cut) as peer:
        net = peer.net()
        with pytest.raises(PeerUnreachable):
            await net.call("GET", peer.url)
        await net.close()


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


@pytest.mark.parametrize("handler", [mute, babble, leave])
async def test_no_handshake_is_no_connection_and_leaves_none(handler: Handler) -> None:
    async with plain(handler) as peer:
        net = peer.net(timeout=0.3)
        with pytest.raises(PeerUnreachable):
            await net.call("GET", peer.url)
        await until(lambda: not peer.open)
        await net.close()


async def test_whoever_is_cancelled_in_a_handshake_leaves_nothing() -> None:
    async with plain(mute) as peer:
        net = peer.net()
        task = asyncio.ensure_future(net.call("GET", peer.url))
        await until(lambda: peer.open)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await until(lambda: not peer.open)
        await net.close()


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
    peer = Peer(server.sockets[0].getsockname()[1], "https", None)
    try:
        yield peer
    finally:
        server.close()
