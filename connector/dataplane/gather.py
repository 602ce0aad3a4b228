"""Batches to the socket as they are: uvicorn's HTTP protocol with a gathered write (data-plane, section 3).

uvicorn joins chunk size, body and line end into new bytes for each chunk: for bodies of megabytes that copy costs more
than the network. Here a body may be a list of buffers, which goes to the transport in one vectored write as one HTTP
chunk. Offered to the application as the extension `hanse.gather`; a body message then has the keys

    hanse.buffers  a list of buffers, none of which may change until it is sent
    hanse.file     a part of a file: (descriptor, offset, bytes), sent by the kernel as one chunk (sendfile). Where the
                   extension `hanse.files` is offered; `send` returns when all of it has gone, and calls
    hanse.moved    as it goes. EOFError where the file is shorter, ConnectionAbortedError where the client has left.
    hanse.trailers at the end of a chunked body: (name, value) pairs that go after its last chunk
    hanse.abort    true: close the connection at once, without waiting for a reader that does not read

The kernel's copy of a file goes to the socket behind the transport's back, on a descriptor of our own: only when the
transport has nothing to write, and nothing else writes during an answer.

It rests on uvicorn's internals (the range is pinned; a contract test compares the bytes with the stock path) and knows
nothing of what it carries. Use it as `uvicorn.Config(http=Protocol)`.
"""

from __future__ import annotations

import asyncio
import functools
import os
import select
import socket
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING, Any, cast

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

if TYPE_CHECKING:
    from uvicorn._types import ASGI3Application

EXTENSION = "hanse.gather"
FILES = "hanse.files"
FILE = "hanse.file"
MOVED = "hanse.moved"
BUFFERS = "hanse.buffers"
TRAILERS = "hanse.trailers"
ABORT = "hanse.abort"
_SENDERS = 8
_PATIENCE = 0.02  # seconds after which a thread does not wait for its reader: there are few, and others' streams wait


class Cycle(RequestResponseCycle):
    """One request and its answer, with the two keys above."""

    async def send(self, message: Any) -> None:
        """As uvicorn's, and gathered where the message has buffers. Silent once the client has left."""
        if message.get(ABORT):
            self.transport.abort()
        elif BUFFERS in message:
            await self._gathered(message)
        elif FILE in message:
            await self._from_file(message)
        elif TRAILERS in message:
            await self._trailed(message)
        else:
            await super().send(message)

    async def _trailed(self, message: Mapping[str, Any]) -> None:
        if self.flow.write_paused and not self.disconnected:
            await self.flow.drain()
        if self.disconnected:
            return
        if not self.response_started or self.response_complete or not self.chunked_encoding or message.get("body"):
            raise RuntimeError("expected trailers at the end of a chunked body")
        lines = b"".join(name + b": " + value + b"\r\n" for name, value in message[TRAILERS])
        self.transport.write(b"0\r\n" + lines + b"\r\n")
        self.chunked_encoding = False  # so that completing the answer writes nothing more
        await super().send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _gathered(self, message: Mapping[str, Any]) -> None:
        if not await self._ready(message):
            return
        buffers = message[BUFFERS]
        # An empty chunk would end the body.
        if total := sum(buffer.nbytes if isinstance(buffer, memoryview) else len(buffer) for buffer in buffers):
            self.transport.writelines([b"%x\r\n" % total, *buffers, b"\r\n"])

    async def _from_file(self, message: Mapping[str, Any]) -> None:
        number, at, size = message[FILE]
        if not size:
            return
        await self._ready(message)
        self._must_be_there()
        self.transport.write(b"%x\r\n" % size)
        pause = 0.0
        while self.transport.get_write_buffer_size() and not self.disconnected:
            await asyncio.sleep(pause)
            pause = 0.005
        self._must_be_there()
        with socket.socket(fileno=os.dup(self.transport.get_extra_info("socket").fileno())) as out:
            while size:
                try:
                    sent = await _in_thread(_push, out.fileno(), number, at, size)
                except (ConnectionError, TimeoutError):
                    self.transport.abort()
                    raise ConnectionAbortedError("the client has left") from None
                self._must_be_there()
                at, size = at + sent, size - sent
                message.get(MOVED, lambda: None)()
                if size:
                    await _writable(out)
                    self._must_be_there()
        self.transport.write(b"\r\n")

    def _must_be_there(self) -> None:
        # Whoever sends parts of files may never wait for anything else: told by silence, it would go through them all.
        if self.disconnected or self.transport.is_closing():
            raise ConnectionAbortedError("the client has left")

    async def _ready(self, message: Mapping[str, Any]) -> bool:
        """Wait until the transport takes more. False where the client has left."""
        if self.flow.write_paused and not self.disconnected:
            await self.flow.drain()
        if self.disconnected:
            return False
        if not self.response_started or self.response_complete:
            raise RuntimeError("expected buffers between the start and the end of an answer")
        if self.scope["method"] == "HEAD" or not self.chunked_encoding or not message.get("more_body"):
            raise RuntimeError("expected buffers as a part of a chunked body, not as its end")
        return True


def _push(out: int, number: int, at: int, size: int) -> int:
    """Bytes that the socket has taken until its reader made us wait. In a thread: the file may be on the disk only."""
    sent, until = 0, time.monotonic() + _PATIENCE
    waiting = select.poll()
    waiting.register(out, select.POLLOUT)
    while sent < size:
        try:
            more = os.sendfile(out, number, at + sent, size - sent)
        except BlockingIOError:
            left = until - time.monotonic()
            if left <= 0 or not waiting.poll(left * 1000):
                break
            continue
        if not more:
            raise EOFError("expected a file as long as it was, came a shorter one")
        sent += more
    return sent


@functools.cache
def _senders() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(_SENDERS, thread_name_prefix="sendfile")


async def _in_thread(work: Callable[..., int], *given: int) -> int:
    """Its result. Who is cancelled waits, too, however often: descriptors that it uses must not be closed under it,
    as the next connection or file to be opened would have the same numbers."""
    job = _senders().submit(work, *given)
    running = asyncio.wrap_future(job)
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        while not job.cancel() and not job.done():
            with suppress(asyncio.CancelledError):
                await asyncio.wait((running,))
        raise


async def _writable(out: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    free = asyncio.Event()
    loop.add_writer(out.fileno(), free.set)
    try:
        await free.wait()
    finally:
        loop.remove_writer(out.fileno())


class Protocol(HttpToolsProtocol):
    """uvicorn's protocol on httptools, with cycles of ours."""

    answering: Cycle | None = None

    def connection_lost(self, exc: Exception | None) -> None:
        """As uvicorn's, which tells the request that came last: of pipelined ones the first is being answered."""
        cycle = self.answering
        if cycle is not None and not cycle.response_complete:
            cycle.disconnected = True
            cycle.message_event.set()
        super().connection_lost(exc)

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        # The class comes from a name in uvicorn's module; here is where normal and pipelined requests both pass.
        cycle.__class__ = Cycle
        self.answering = cast("Cycle", cycle)
        extensions: dict[str, Any] = cycle.scope.setdefault("extensions", {})
        extensions[EXTENSION] = {}
        if self.transport.get_extra_info("sslcontext") is None and hasattr(os, "sendfile"):
            extensions[FILES] = {}
        super()._start_asgi_task(cycle, app)
