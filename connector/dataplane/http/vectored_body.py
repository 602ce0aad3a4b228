"""Vectored body writes: uvicorn's HTTP protocol, extended to send buffers and parts of files without copying them.

uvicorn joins chunk size, body and line end into new bytes for each chunk. For bodies
of megabytes that copy costs more than the network. Here a body may be a list of buffers, which goes to the transport in
one vectored write as one HTTP chunk. Offered to the application as the extension `hanse.gather`, with these keys of a
body message:

    hanse.buffers  a list of buffers, which must not change until they are sent. Raises ConnectionAbortedError where the
                   client has left
    hanse.moved    with it: called while it is sent, if it is more than is handed over at once
    hanse.file     a list of parts of files, each (descriptor, offset, bytes), and of buffers, sent by a thread as one
                   chunk. A descriptor must stay open until `send` returns, which is when all parts were sent. Offered
                   with the extension `hanse.files`. Raises EOFError where a file is shorter, ConnectionAbortedError
                   where the client has left, Unavailable where the disk does not answer
    hanse.device   with it: the device of the files, which has threads of its own
    hanse.before   called before its first byte, in the sending thread; `send` raises what it raises
    hanse.moved    called while it is sent
    hanse.seen     called in that thread with all bytes of the parts in order, each before it is sent
    hanse.more     called in that thread after the parts were sent: returns the next parts, sent as a chunk of their
                   own, or None. It must refer to the files of all parts: where `send` raises Unavailable because the
                   disk does not answer, a thread still uses their descriptors
    hanse.trailers at the end of a chunked body: (name, value) pairs that follow its last chunk
    hanse.abort    true: close the connection at once, without waiting for a reader that does not read

Parts of files go to the socket on a descriptor of our own, bypassing the transport: only while the transport has
nothing to write, and nothing else writes during an answer.

Depends on uvicorn's internals: its version range is pinned, and a contract test compares the bytes with the stock path.
Must not know what the bodies contain. Use it as `uvicorn.Config(http=Protocol)`.
"""

from __future__ import annotations

import asyncio
import os
import socket
import threading
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from itertools import compress, islice
from typing import TYPE_CHECKING, Any, cast

from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from connector.dataplane.http.file_sender import (
    Outgoing,
    OutgoingParts,
    SendTurn,
    Window,
    check_lengths,
    file_cut_error,
    size_of,
    wait_writable,
)
from connector.dataplane.http.send_threads import OURS, run_in_send_thread
from connector.errors import Unavailable
from connector.infra.http.http_limits import LimitedHttpProtocol

if TYPE_CHECKING:
    from uvicorn._types import ASGI3Application

EXTENSION = "hanse.gather"
FILES = "hanse.files"
FILE = "hanse.file"
DEVICE = "hanse.device"
BEFORE = "hanse.before"
SEEN = "hanse.seen"
MOVED = "hanse.moved"
MORE = "hanse.more"
BUFFERS = "hanse.buffers"
TRAILERS = "hanse.trailers"
ABORT = "hanse.abort"
_PIECE = 2**19  # bytes that are encrypted at a time
_AHEAD = 4 * 2**20  # bytes in memory that are handed over at once: a usual batch
_ROOM = 2**19  # bytes of observed files: they stay in a processor's cache from their copy to the socket

More = Callable[[], OutgoingParts | None]
Seen = Callable[[bytes | memoryview], object]
_thread = threading.local()


class Cycle(RequestResponseCycle):
    """One request and its answer, with the keys above."""

    async def send(self, message: Any) -> None:
        """Send a message as uvicorn does, or vectored where it has buffers or files.

        Other messages are dropped silently once the client has left. Vectored ones raise ConnectionAbortedError, so
        that no more of the body passes the gate.
        """
        if message.get(ABORT):
            self.transport.abort()
        elif BUFFERS in message:
            await self._send_buffers(message)
        elif FILE in message:
            await self._send_files(message)
        elif TRAILERS in message:
            await self._send_trailers(message)
        else:
            await super().send(message)

    async def _send_trailers(self, message: Mapping[str, Any]) -> None:
        await self._wait_for_drain()
        if self.disconnected:
            return
        if not self.response_started or self.response_complete or not self.chunked_encoding or message.get("body"):
            raise RuntimeError("expected trailers at the end of a chunked body")
        lines = b"".join(name + b": " + value + b"\r\n" for name, value in message[TRAILERS])
        self.transport.write(b"0\r\n" + lines + b"\r\n")
        self.chunked_encoding = False  # so that completing the answer writes no second end
        await super().send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _send_buffers(self, message: Mapping[str, Any]) -> None:
        await self._wait_ready(message)
        buffers = message[BUFFERS]
        # An empty chunk would end the body.
        if total := sum(buffer.nbytes if isinstance(buffer, memoryview) else len(buffer) for buffer in buffers):
            whole = [b"%x\r\n" % total, *buffers, b"\r\n"]
            moved = message.get(MOVED, lambda: None)
            if self._is_encrypted:  # each piece is sent while it is in the processor's cache
                await self._write_in_pieces(whole, _PIECE, moved)
            elif total > _AHEAD:
                await self._write_in_pieces(whole, _AHEAD, moved)
            else:
                self.transport.writelines(whole)
            # Wait before more passes the gate: what has passed it is sent, whatever ends the read meanwhile.
            await self._wait_for_drain()
            self._require_connected()

    async def _write_in_pieces(self, buffers: list[Any], size: int, moved: Callable[[], object]) -> None:
        """Write piece by piece, each after the reader has taken the previous one, to detect a reader that stalls."""
        for buffer in buffers:
            data = memoryview(buffer).cast("B")
            for at in range(0, len(data), size):
                if await self._wait_for_drain():
                    moved()
                self._require_connected()
                self.transport.write(data[at : at + size])

    async def _wait_for_drain(self) -> bool:
        """Wait until the transport takes more, or the client has left. Returns whether it had to wait."""
        if waits := self.flow.write_paused and not self.disconnected:
            await self.flow.drain()
        return waits

    @property
    def _is_encrypted(self) -> bool:
        return self.transport.get_extra_info("sslcontext") is not None

    async def _send_files(self, message: Mapping[str, Any]) -> None:
        sending = _FileSending(
            message[FILE], before=message.get(BEFORE), more=message.get(MORE), seen=message.get(SEEN)
        )
        await self._wait_ready(message)
        pause = 0.0
        while self.transport.get_write_buffer_size() and not self.disconnected:
            await asyncio.sleep(pause)
            pause = 0.005
        self._require_connected()
        with socket.socket(fileno=os.dup(self.transport.get_extra_info("socket").fileno())) as out:
            while not await self._push(sending, out, device=message.get(DEVICE, OURS)):
                message.get(MOVED, lambda: None)()
                await wait_writable(out)
                self._require_connected()

    async def _push(self, sending: _FileSending, out: socket.socket, *, device: int) -> bool:
        """Send as much as the reader takes without blocking. Returns whether that was everything."""
        try:
            whole = await run_in_send_thread(partial(sending.push, out), stop=sending.stop, device=device, out=out)
        except Unavailable:
            with suppress(OSError):  # the reader may have left
                self._shut_down()
            raise
        except (ConnectionError, TimeoutError):
            self.transport.abort()
            raise ConnectionAbortedError("the client has left") from None
        self._require_connected()
        return whole

    def _shut_down(self) -> None:
        """Shut the socket down: a lost thread may still hold it open, and must send nothing more."""
        with socket.socket(fileno=os.dup(self.transport.get_extra_info("socket").fileno())) as ours:
            ours.shutdown(socket.SHUT_RDWR)

    def _require_connected(self) -> None:
        # Raise instead of ignoring: a sender of files that never waits would otherwise go through all of them.
        if self.disconnected or self.transport.is_closing():
            raise ConnectionAbortedError("the client has left")

    async def _wait_ready(self, message: Mapping[str, Any]) -> None:
        """Wait until the transport takes more. Raises: ConnectionAbortedError where the client has left."""
        await self._wait_for_drain()
        self._require_connected()
        if not self.response_started or self.response_complete:
            raise RuntimeError("expected buffers between the start and the end of an answer")
        if self.scope["method"] == "HEAD" or not self.chunked_encoding or not message.get("more_body"):
            raise RuntimeError("expected buffers as a part of a chunked body, not as its end")


class _FileSending:
    """Parts of files being sent, one chunk after the other."""

    def __init__(
        self, first: OutgoingParts, *, before: Callable[[], object] | None, more: More | None, seen: Seen | None = None
    ) -> None:
        self._made = _Chunk if seen is None else partial(_ObservedChunk, seen=seen)
        self._chunk: _Chunk | None = self._made(first)
        self._before, self._more = before, more or (lambda: None)
        self._stopped = False

    def stop(self) -> None:
        """Make the sending thread return before it sends more."""
        self._stopped = True

    def push(self, out: socket.socket) -> bool:
        """Send until everything was sent (True), or the reader blocks, or other streams wait.

        Call in a thread: the files may be on disk only.
        """
        if self._before is not None:
            self._before()
            self._before = None
        wait, window = SendTurn(out), Window()
        while (chunk := self._chunk) is not None:
            if self._stopped or not chunk.push(out, window, wait):
                return False
            self._chunk = self._made(parts) if (parts := self._more()) is not None else None
            if self._chunk is not None and wait.over:
                return False
        return True


class _Chunk(Outgoing):
    """Parts of files, and buffers, as one HTTP chunk, and what is still to be sent of it."""

    def __init__(self, parts: OutgoingParts) -> None:
        sizes = list(map(size_of, parts))
        size = sum(sizes)
        # An empty chunk would end the body.
        super().__init__((b"%x\r\n" % size, *compress(parts, sizes), b"\r\n") if size else ())
        self._parts = parts  # checked before the first of them is sent

    def push(self, out: socket.socket, window: Window, wait: SendTurn | None = None) -> bool:
        """See `Outgoing.push`. Checks the files' lengths before the first part is sent."""
        parts, self._parts = self._parts, ()
        check_lengths(parts)
        return super().push(out, window, wait)


class _ObservedChunk(_Chunk):
    """A chunk whose bytes are shown to a callback: files are read into a small buffer of the thread."""

    def __init__(self, parts: OutgoingParts, *, seen: Seen) -> None:
        super().__init__(parts)
        self._seen = seen
        self.left, self._unseen = deque(islice(self.left, 1)), deque(islice(self.left, 1, None))

    def push(self, out: socket.socket, window: Window, wait: SendTurn | None = None) -> bool:
        """See `_Chunk.push`. What is left is copied, since the thread's buffer serves another stream next."""
        whole, room = super().push(out, window, wait), _thread_buffer().obj
        self.left = deque(bytes(one) if isinstance(one, memoryview) and one.obj is room else one for one in self.left)
        return whole

    def _refill(self) -> bool:
        """Read and show the next bytes. Returns whether there are any."""
        room = _thread_buffer()
        while self._unseen and room:
            part = self._unseen.popleft()
            if isinstance(part, tuple):
                number, at, size = part
                if not (got := os.preadv(number, [room[:size]], at)):
                    raise file_cut_error()
                if got < size:
                    self._unseen.appendleft((number, at + got, size - got))
                part, room = room[:got], room[got:]
            if self._unseen:  # the last piece is the end of the chunk, not a part
                self._seen(part)
            self.left.append(part)
        return bool(self.left)


def _thread_buffer() -> memoryview:
    """Return the buffer of this thread."""
    if not hasattr(_thread, "room"):
        _thread.room = memoryview(bytearray(_ROOM))
    found: memoryview = _thread.room
    return found


class Protocol(LimitedHttpProtocol):
    """uvicorn's protocol on httptools, with limits, and with `Cycle` for its requests."""

    answering: Cycle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """See uvicorn. Over TLS, writes wait as soon as any data is buffered.

        Otherwise half a megabyte could be buffered unnoticed, followed by more of an answer that has passed the gate.
        """
        super().connection_made(transport)
        if self.scheme == "https":
            transport.set_write_buffer_limits(1, 0)  # with 0, an empty buffer would count as full

    def connection_lost(self, exc: Exception | None) -> None:
        """See uvicorn, which notifies only the latest request. With pipelining, the first one is being answered."""
        self._notify_handler()
        super().connection_lost(exc)

    def _notify_handler(self) -> None:
        cycle = self.answering
        if cycle is not None and not cycle.response_complete:
            cycle.disconnected = True
            cycle.message_event.set()
        super()._notify_handler()

    def send_400_response(self, msg: str) -> None:
        """See uvicorn. In the middle of an answer only closes the connection: the response would become a part of
        it."""
        cycle = self.answering
        if cycle is not None and cycle.response_started and not cycle.response_complete:
            self.transport.close()
        else:
            super().send_400_response(msg)

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        # uvicorn names the class in its module. Normal and pipelined requests both pass here.
        cycle.__class__ = Cycle
        self.answering = cast("Cycle", cycle)
        extensions: dict[str, Any] = cycle.scope.setdefault("extensions", {})
        extensions[EXTENSION] = {}
        if not self.answering._is_encrypted:
            extensions[FILES] = {}
        super()._start_asgi_task(cycle, app)
