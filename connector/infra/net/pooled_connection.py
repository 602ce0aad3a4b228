"""A connection of `http_client`'s pool, built on asyncio's streams: bytes, time limits, TLS, a limit on heads.

Unlike the library's own connection it reads while it writes, so that an answer to an unfinished request is not lost
when the peer closes the connection. The HTTP parser needs time for each line of a head, and blocks the event loop
meanwhile. So the size and the lines of a head are limited, interim responses included.
"""

from __future__ import annotations

import asyncio
import select
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from httpcore2 import (
    AsyncNetworkStream,
    ConnectError,
    ConnectTimeout,
    ReadError,
    ReadTimeout,
    RemoteProtocolError,
    WriteError,
    WriteTimeout,
)

_BUFFER = 2**16  # received bytes; beyond twice as many, reading pauses
_HEAD_MAX, _LINES_MAX = 2**16, 512  # bytes and lines before a response's body; an interim response has two lines
_HEAD_PIECE = 2**12  # bytes that are passed on at once while the head is read


class HeadTooLong(RemoteProtocolError):
    """The head of a response, with its interim responses, is over the limit."""


async def connect(address: str, port: int, seconds: float | None) -> PooledConnection:
    """Open a connection to exactly this address. Raises: ConnectTimeout, ConnectError."""
    loop, reader = asyncio.get_running_loop(), _Reader(limit=_BUFFER)
    protocol = asyncio.StreamReaderProtocol(reader, loop=loop)
    with _translated(ConnectTimeout, ConnectError):
        async with asyncio.timeout(seconds):
            transport, _ = await loop.create_connection(lambda: protocol, address, port)
    return PooledConnection(reader, asyncio.StreamWriter(transport, protocol, reader, loop))


@contextmanager
def _translated(late: type[Exception], failed: type[Exception]) -> Iterator[None]:
    """Raise the pool's errors instead of the system's."""
    try:
        yield
    except TimeoutError as error:
        raise late(str(error)) from error
    except OSError as error:
        raise failed(str(error)) from error


class _Reader(asyncio.StreamReader):
    """Gives what came before the connection failed; asyncio's drops it."""

    error: Exception | None = None
    waiting = 0  # bytes that have come and are not read

    def set_exception(self, exc: Exception) -> None:
        self.error = exc
        self.feed_eof()

    def feed_data(self, data: Any) -> None:
        self.waiting += len(data)
        super().feed_data(data)


class PooledConnection(AsyncNetworkStream):
    """A connection that a single task reads or writes at a time, as in HTTP/1.1."""

    def __init__(self, reader: _Reader, writer: asyncio.StreamWriter) -> None:
        self._reader, self._writer = reader, writer
        self._came = self._lines = 0  # bytes and line ends since the request
        self._in_head = False
        self._poll = select.poll()
        self._poll.register(writer.get_extra_info("socket").fileno(), select.POLLIN)

    def begin_body(self) -> None:
        """Note that the head of the response is read and its body follows."""
        self._in_head = False

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ASYNC109  # the pool's interface
        if self._in_head and (self._came > _HEAD_MAX or self._lines > _LINES_MAX):
            raise HeadTooLong(f"expected a head of at most {_HEAD_MAX} bytes and {_LINES_MAX} lines, got more")
        with _translated(ReadTimeout, ReadError):
            async with asyncio.timeout(timeout):
                data = await self._reader.read(_HEAD_PIECE if self._in_head else max_bytes)
        if not data and self._reader.error is not None:
            raise ReadError(str(self._reader.error)) from self._reader.error
        self._reader.waiting -= len(data)
        if self._in_head:
            self._came += len(data)
            self._lines += data.count(b"\n")
        return data

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ASYNC109
        self._came, self._lines, self._in_head = 0, 0, True
        with _translated(WriteTimeout, WriteError):
            if self._writer.is_closing():
                raise ConnectionResetError("the connection is closed")
            self._writer.write(buffer)
            async with asyncio.timeout(timeout):
                await self._writer.drain()

    async def aclose(self) -> None:
        self._reader.error = self._reader.error or ConnectionAbortedError("closed on this side")
        self._writer.close()  # sends a close notification over TLS
        self._writer.transport.abort()
        await asyncio.sleep(0)  # the socket is closed in the loop's next round

    async def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,  # noqa: ASYNC109
    ) -> AsyncNetworkStream:
        plain = self._writer.transport
        try:
            with _translated(ConnectTimeout, ConnectError):
                async with asyncio.timeout(timeout):
                    await self._writer.start_tls(ssl_context, server_hostname=server_hostname)
        except BaseException:
            plain.abort()
            await asyncio.sleep(0)  # as above
            raise
        return self

    def get_extra_info(self, info: str) -> Any:
        if info == "is_readable":  # the pool asks this of idle connections: whether one is unusable
            ended = self._reader.at_eof() or self._writer.is_closing()
            return bool(ended or self._reader.waiting or self._poll.poll(0))
        return self._writer.get_extra_info(info)
