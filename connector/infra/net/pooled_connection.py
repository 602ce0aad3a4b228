"""A connection of `http_client`'s pool, built on asyncio transports: bytes, time limits, TLS.

Received bytes are buffered until they are read, at most 64 KB plus one read of the event loop; then the peer must wait.
A cancelled read or write leaves no task behind, and the pool then closes the connection.

The HTTP parser needs time for each line of a head or of trailers, and blocks the event loop meanwhile. So the size and
the lines of a head are limited, interim responses included, and a body is passed on in small pieces at first, which
limits the trailers that the parser gets at once.
"""

from __future__ import annotations

import asyncio
import select
import ssl
from collections import deque
from typing import Any, cast

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

_HELD = 2**16  # received bytes in the buffer; beyond it, reading pauses
_TOGETHER = 2**16  # sent bytes that are collected, for one round of the event loop at most
_HEAD_MAX, _LINES_MAX = 2**16, 512  # bytes and lines before a response's body; an interim response has two lines
_HEAD_PIECE = 2**12  # bytes that are passed on at once while the head is read
_BODY_PIECE = 2**14  # and while the body is read; it grows with the body
_NAMES = {"client_addr": "sockname", "server_addr": "peername"}  # the pool's and the loop's; the others are the same


class HeadTooLong(RemoteProtocolError):
    """The head of a response, with its interim responses, is over the limit."""


async def connect(address: str, port: int, seconds: float | None) -> PooledConnection:
    """Open a connection to exactly this address. Raises: ConnectTimeout, ConnectError."""
    try:
        async with asyncio.timeout(seconds):
            _, stream = await asyncio.get_running_loop().create_connection(PooledConnection, address, port)
    except TimeoutError as error:
        raise ConnectTimeout(str(error)) from error
    except OSError as error:
        raise ConnectError(str(error)) from error
    return stream


class PooledConnection(asyncio.Protocol, AsyncNetworkStream):
    """A connection that a single task reads or writes at a time, as in HTTP/1.1."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._poll = select.poll()
        self._held: deque[bytes] = deque()
        self._size = 0  # bytes in `_held`
        self._came = self._lines = 0  # bytes passed on since the request, and line ends in the head
        self._head_read = True  # no head is expected
        self._unsent: list[bytes] = []
        self._waiting = 0  # bytes in `_unsent`
        self._full = False  # the transport takes no more for now
        self._ended = False  # nothing more will come
        self._error: Exception | None = None
        self._reader: asyncio.Future[None] | None = None
        self._writer: asyncio.Future[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._poll.register(transport.get_extra_info("socket").fileno(), select.POLLIN)

    def data_received(self, data: bytes) -> None:
        self._held.append(data)
        self._size += len(data)
        if self._size > _HELD:
            self._transport.pause_reading()
        _wake(self._reader)

    def eof_received(self) -> None:
        """Note the end; the transport closes itself after this, even if the connection is not used again."""
        self._ended = True
        _wake(self._reader)

    def connection_lost(self, exc: Exception | None) -> None:
        self._ended = True
        self._error = self._error or exc
        _wake(self._reader)
        _wake(self._writer)

    def pause_writing(self) -> None:
        self._full = True

    def resume_writing(self) -> None:
        self._full = False
        _wake(self._writer)

    def begin_body(self) -> None:
        """Note that the head of the response is read and its body follows."""
        self._head_read = True

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ASYNC109  # the pool's interface
        if not self._head_read and (self._came > _HEAD_MAX or self._lines > _LINES_MAX):
            raise HeadTooLong(f"expected a head of at most {_HEAD_MAX} bytes and {_LINES_MAX} lines, got more")
        if not self._held and not self._ended:
            self._reader = self._loop.create_future()
            await self._within(timeout, self._reader, ReadTimeout)
        if self._held:
            return self._read_buffered(max_bytes)
        if self._error is not None:
            raise ReadError(str(self._error)) from self._error
        return b""

    def _read_buffered(self, most: int) -> bytes:
        data = self._take(min(most, _BODY_PIECE + self._came // 4 if self._head_read else _HEAD_PIECE))
        self._came += len(data)
        if not self._head_read:
            self._lines += data.count(b"\n")
        return data

    def _take(self, most: int) -> bytes:
        data = self._held.popleft()
        if len(data) > most:
            self._held.appendleft(data[most:])
            data = data[:most]
        self._size -= len(data)
        if self._size <= _HELD < self._size + len(data):
            self._transport.resume_reading()
        return data

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ASYNC109
        if not buffer:
            return
        self._came, self._lines, self._head_read = 0, 0, False
        if not self._unsent:
            self._loop.call_soon(self._send)
        self._unsent.append(buffer)
        self._waiting += len(buffer)
        if self._waiting > _TOGETHER:
            self._send()
        if self._full:
            self._writer = self._loop.create_future()
            await self._within(timeout, self._writer, WriteTimeout)
        if self._ended:
            raise WriteError(str(self._error or "the peer has closed the connection")) from self._error

    def _send(self) -> None:
        """Send head and body in a single system call."""
        if self._unsent and not self._ended:
            self._transport.writelines(self._unsent)
        self._unsent.clear()
        self._waiting = 0

    async def _within(self, seconds: float | None, done: asyncio.Future[None], late: type[Exception]) -> None:
        timer = None if seconds is None else self._loop.call_later(seconds, _fail, done, late)
        try:
            await done
        finally:
            if timer is not None:
                timer.cancel()

    async def aclose(self) -> None:
        self._send()  # the peer has the head of the request: let it see the end, too
        self._error = self._error or ConnectionAbortedError("closed on this side")
        self._transport.close()  # sends a close notification over TLS
        self._transport.abort()
        await asyncio.sleep(0)  # the socket is closed in the loop's next round

    async def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,  # noqa: ASYNC109
    ) -> AsyncNetworkStream:
        plain = self._transport
        try:
            async with asyncio.timeout(timeout):
                secure = await self._loop.start_tls(plain, self, ssl_context, server_hostname=server_hostname)
        except BaseException as error:
            plain.abort()
            await asyncio.sleep(0)  # as above
            if isinstance(error, TimeoutError):
                raise ConnectTimeout(str(error)) from error
            if isinstance(error, OSError):
                raise ConnectError(str(error)) from error
            raise
        self._transport = cast("asyncio.Transport", secure)
        return self

    def get_extra_info(self, info: str) -> Any:
        if info == "is_readable":  # the pool asks this of idle connections: whether one is unusable
            return bool(self._ended or self._held or self._poll.poll(0))
        return self._transport.get_extra_info(_NAMES.get(info, info))


def _wake(future: asyncio.Future[None] | None) -> None:
    if future is not None and not future.done():
        future.set_result(None)


def _fail(future: asyncio.Future[None], late: type[Exception]) -> None:
    if not future.done():
        future.set_exception(late())
