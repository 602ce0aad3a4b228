"""Batches to the socket as they are: uvicorn's HTTP protocol with a gathered write (data-plane, section 3).

uvicorn joins chunk size, body and line end into new bytes for each chunk: for bodies of megabytes that copy costs more
than the network. Here a body may be a list of buffers, which goes to the transport in one vectored write as one HTTP
chunk. Offered to the application as the extension `hanse.gather`; a body message then has the keys

    hanse.buffers  a list of buffers, none of which may change until it is sent
    hanse.file     a part of a file: (descriptor, offset, bytes), sent by a thread as one chunk. Where the
                   extension `hanse.files` is offered; `send` returns when all of it has gone, and calls
    hanse.before   before the first byte of it, in the thread that sends (what it raises, `send` raises), and
    hanse.moved    as it goes. EOFError where the file is shorter, ConnectionAbortedError where the client has left.
    hanse.trailers at the end of a chunked body: (name, value) pairs that go after its last chunk
    hanse.abort    true: close the connection at once, without waiting for a reader that does not read

A part of a file goes to the socket behind the transport's back, on a descriptor of our own: only when the
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
import threading
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
BEFORE = "hanse.before"
MOVED = "hanse.moved"
BUFFERS = "hanse.buffers"
TRAILERS = "hanse.trailers"
ABORT = "hanse.abort"
_SENDERS = 8
_PIECE = 2**20
_AHEAD = 8 * 2**20  # bytes behind a part that are read from the disk while it goes
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
        chunk = _Chunk(*message[FILE], before=message.get(BEFORE))
        if not chunk.left:
            return
        await self._ready(message)
        self._must_be_there()
        pause = 0.0
        while self.transport.get_write_buffer_size() and not self.disconnected:
            await asyncio.sleep(pause)
            pause = 0.005
        self._must_be_there()
        with socket.socket(fileno=os.dup(self.transport.get_extra_info("socket").fileno())) as out:
            while not await self._pushed(chunk, out):
                message.get(MOVED, lambda: None)()
                await _writable(out)
                self._must_be_there()

    async def _pushed(self, chunk: _Chunk, out: socket.socket) -> bool:
        """Send as much as the reader takes without making us wait. Whether that was all."""
        try:
            whole = await _in_thread(chunk.push, out)
        except (ConnectionError, TimeoutError):
            self.transport.abort()
            raise ConnectionAbortedError("the client has left") from None
        self._must_be_there()
        return whole

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


class _Chunk:
    """A part of a file as one HTTP chunk, and how much of it has gone."""

    def __init__(self, number: int, at: int, size: int, *, before: Callable[[], object] | None) -> None:
        self._number, self._at, self._size, self._before = number, at, size, before
        self._head, self._tail = (b"%x\r\n" % size, b"\r\n") if size else (b"", b"")
        self._gone = 0

    @property
    def left(self) -> int:
        """Bytes that have not gone, with those of the frame."""
        return len(self._head) + self._size + len(self._tail) - self._gone

    def push(self, out: socket.socket) -> bool:
        """Send until all has gone (True) or the reader has made us wait. In a thread: the file may be on the disk only.

        Through a little memory that stays in the processor's cache, and not by `sendfile`: that hands the file's own
        pages to a reader on the same machine, who then copies from memory that no cache holds.
        """
        if self._before is not None:
            self._before()
            self._before = None
        until = time.monotonic() + _PATIENCE
        waiting = select.poll()
        waiting.register(out, select.POLLOUT)
        os.posix_fadvise(self._number, self._at, self._size + _AHEAD, os.POSIX_FADV_WILLNEED)
        ready = memoryview(b"")
        while self.left:
            ready = ready or self._piece()
            try:
                sent = out.send(ready)
            except BlockingIOError:
                left = until - time.monotonic()
                if left <= 0 or not waiting.poll(left * 1000):
                    return False
            else:
                self._gone, ready = self._gone + sent, ready[sent:]
        return True

    def _piece(self) -> memoryview:
        """The next bytes of head, file and tail, in this thread's memory."""
        memory = _memory()
        head = self._head[self._gone :]
        filled, read = len(head), min(max(0, self._gone - len(self._head)), self._size)
        memory[:filled] = head
        if wanted := min(_PIECE, self._size - read):
            got = os.preadv(self._number, [memory[filled : filled + wanted]], self._at + read)
            if not got:
                raise EOFError("expected a file as long as it was, came a shorter one")
            filled, read = filled + got, read + got
        if read == self._size:
            tail = self._tail[max(0, self._gone - len(self._head) - self._size) :]
            memory[filled : filled + len(tail)] = tail
            filled += len(tail)
        return memory[:filled]


_threads = threading.local()


def _memory() -> memoryview:
    """The calling thread's own, for a piece and its frame."""
    if not hasattr(_threads, "memory"):
        _threads.memory = memoryview(bytearray(_PIECE + 64))
    found: memoryview = _threads.memory
    return found


@functools.cache
def _senders() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(_SENDERS, thread_name_prefix="file-to-socket")


async def _in_thread(work: Callable[[socket.socket], bool], out: socket.socket) -> bool:
    """Its result. Who is cancelled waits, too, however often: descriptors that it uses must not be closed under it,
    as the next connection or file to be opened would have the same numbers."""
    job = _senders().submit(work, out)
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
        if self.transport.get_extra_info("sslcontext") is None:
            extensions[FILES] = {}
        super()._start_asgi_task(cycle, app)
