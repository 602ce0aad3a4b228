"""One connection for the pool of `http_client`, on the event loop's transports alone: bytes, time limits, TLS.

What arrives is held until it is asked for: 64 KB and one read of the loop at most, then the peer has to wait. Whoever
is cancelled in a read or a write leaves nothing running; the pool closes the connection then, and waits for nobody.

Who reads the bytes takes time for each line of a head or of trailers, and keeps the loop meanwhile. So a head ends
somewhere, whatever interim answers come before it, and of a body a little is given at first: of trailers more cannot
come at once.
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

_HELD = 2**16  # bytes that wait for their reader; at more the peer waits, too
_TOGETHER = 2**16  # bytes that wait for more to go with them, for one round of the loop at most
_HEAD_MAX, _LINES_MAX = 2**16, 512  # bytes and lines before an answer's body; interim answers have two lines each
_HEAD_PIECE = 2**12  # bytes that are given at once while the head is read, and
_BODY_PIECE = 2**14  # of the body; more of one that is large
_NAMES = {"client_addr": "sockname", "server_addr": "peername"}  # the pool's and the loop's; the others are the same


class HeadTooLong(RemoteProtocolError):
    """Nobody says so much before an answer."""


async def connect(address: str, port: int, seconds: float | None) -> Stream:
    """A connection to exactly this address."""
    try:
        async with asyncio.timeout(seconds):
            _, stream = await asyncio.get_running_loop().create_connection(Stream, address, port)
    except TimeoutError as error:
        raise ConnectTimeout(str(error)) from error
    except OSError as error:
        raise ConnectError(str(error)) from error
    return stream


class Stream(asyncio.Protocol, AsyncNetworkStream):
    """A connection. One task reads or writes at a time, as in HTTP/1.1."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._poll = select.poll()
        self._held: deque[bytes] = deque()
        self._size = 0  # of what is held
        self._came = self._lines = 0  # bytes that were given to the reader since the request, and line ends in its head
        self._answered = True  # no head is awaited
        self._unsent: list[bytes] = []
        self._waiting = 0  # bytes of it
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
        """The transport closes itself after this, also where nobody asks for the connection any more."""
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

    def answered(self) -> None:
        """The head of the answer is read: what comes now is its body."""
        self._answered = True

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ASYNC109  # the pool's interface
        if not self._answered and (self._came > _HEAD_MAX or self._lines > _LINES_MAX):
            raise HeadTooLong(f"expected a head of at most {_HEAD_MAX} bytes and {_LINES_MAX} lines, came more")
        if not self._held and not self._ended:
            self._reader = self._loop.create_future()
            await self._within(timeout, self._reader, ReadTimeout)
        if self._held:
            return self._given(max_bytes)
        if self._error is not None:
            raise ReadError(str(self._error)) from self._error
        return b""

    def _given(self, most: int) -> bytes:
        data = self._take(min(most, _BODY_PIECE + self._came // 4 if self._answered else _HEAD_PIECE))
        self._came += len(data)
        if not self._answered:
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
        self._came, self._lines, self._answered = 0, 0, False
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
        """Head and body in one call to the system."""
        if self._unsent and not self._ended:
            self._transport.writelines(self._unsent)
        self._unsent.clear()
        self._waiting = 0

    async def _within(self, seconds: float | None, told: asyncio.Future[None], late: type[Exception]) -> None:
        timer = None if seconds is None else self._loop.call_later(seconds, _fail, told, late)
        try:
            await told
        finally:
            if timer is not None:
                timer.cancel()

    async def aclose(self) -> None:
        self._send()  # a peer that was told of a request is told that it ends here
        self._error = self._error or ConnectionAbortedError("closed on this side")
        self._transport.close()  # tells a peer over TLS
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
        if info == "is_readable":  # asked of every idle connection for every request: whether it is of no more use
            return bool(self._ended or self._held or self._poll.poll(0))
        return self._transport.get_extra_info(_NAMES.get(info, info))


def _wake(told: asyncio.Future[None] | None) -> None:
    if told is not None and not told.done():
        told.set_result(None)


def _fail(told: asyncio.Future[None], late: type[Exception]) -> None:
    if not told.done():
        told.set_exception(late())
