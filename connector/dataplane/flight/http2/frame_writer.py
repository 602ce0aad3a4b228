"""What goes out over the connection of a Flight client: data from where it lies to the socket, in frames, and all else
that is to be said (data-plane, section 3).

The library would copy each piece of data twice, into frames of 16 kB. Here frames are as large as their reader allows,
and parts of files go as they are, by a thread where they lie on a disk. What the library is told of that are the two
windows that it counts: `reserve` is the one place that touches them. It is not made for threads, so whoever talks to
it holds `lock` (`states`).
"""

from __future__ import annotations

import asyncio
import os
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from functools import partial
from typing import Protocol

from connector.dataplane.flight.http2.message_buffers import Data, Message
from connector.dataplane.flight.http2.stream_limits import States
from connector.dataplane.http.file_sender import Outgoing, Part, Waiting, Window, writable
from connector.dataplane.http.send_threads import in_thread
from connector.errors import Busy

_PIECE = 2**20  # bytes of data that are handed over at once, and of a frame at most
_WAITING = 2**18  # bytes of answers to what is no call (acknowledgements) that a client may leave unread
_LEFT = 4 * 2**20  # bytes that it may leave unread in all


class Taker(Protocol):
    """A call whose answer goes out."""

    number: int
    gone: bool


class Outward:
    """What goes out over one connection, from when there is a transport; several calls take turns with their data."""

    def __init__(self) -> None:
        self.lock = threading.Condition()  # of the library and of what is to be said; a window has moved
        self.h2 = States()
        self.pending = Outgoing()  # of frames with data whose beginning has gone: of whoever has the turn
        self.frames = 0  # of data that have gone
        self.encrypts = False
        self._said = bytearray()  # frames without data that are to go out
        self._turn = asyncio.Lock()  # of whoever writes data
        self._others = 0  # calls that wait for it
        self._quiet = asyncio.Event()  # all that the transport was given has gone
        self._quiet.set()
        self._moved = asyncio.Event()  # a window may have room
        self._transport: asyncio.Transport | None = None

    def begin(self, transport: asyncio.Transport, *, encrypts: bool) -> None:
        """From now on there is somebody to send to."""
        self._transport, self.encrypts = transport, encrypts
        # We are told when the transport has something, and when all has gone: over TLS, 0 of 0 counts as something.
        transport.set_write_buffer_limits(int(encrypts), 0)

    @contextmanager
    def states(self) -> Iterator[States]:
        """The library, to be told or asked something; what it answers is said by the next `flush`."""
        with self.lock:
            try:
                yield self.h2
            finally:
                self._said += self.h2.data_to_send()
                self.lock.notify_all()

    @property
    def busy(self) -> bool:
        """Whether somebody is in the middle of a frame, or the client has not taken what was written."""
        return self._turn.locked() or bool(self._transport and self._transport.get_write_buffer_size())

    def pause(self) -> None:
        """The transport has something that has not gone."""
        self._quiet.clear()

    def resume(self) -> None:
        """It has gone."""
        self._quiet.set()

    def room(self) -> None:
        """A window may let something through."""
        self._moved.set()

    def end(self) -> None:
        """The client has left: nobody waits for it."""
        self.resume()
        self.room()
        with self.lock:
            self.lock.notify_all()

    async def send(
        self, call: Taker, parts: Iterator[Message], moved: Callable[[], object], *, device: int | None = None
    ) -> None:
        """Messages of a call, as its reader makes room for them; `moved` is called as they go. `device`: that of the
        files that they are of, which a thread sends. Errors: see `Call.send_files`."""
        if self.encrypts:
            await self._encrypted(call, parts, moved)
            return
        with socket.socket(fileno=os.dup(self._there(call).get_extra_info("socket").fileno())) as out:
            sending = _Sending(self, call, parts, patient=device is not None)
            while not await self._in_turn(call, sending, out, moved, device):
                await asyncio.sleep(0)
                if sending.has_more:
                    await self._room(call)

    async def _in_turn(
        self, call: Taker, sending: _Sending, out: socket.socket, moved: Callable[[], object], device: int | None
    ) -> bool:
        """Send as much as fits into one turn. Whether that was all."""
        try:
            async with self._own_turn():
                await self._emptied(call)
                try:
                    whole = await self._run(partial(sending.run, out), sending, out, device)
                    if sending.moves():
                        moved()
                    while self.pending.left:
                        await writable(out)
                        self._there(call)
                        await self._run(partial(sending.rest, out), sending, out, device)
                        moved()  # the kernel tells of room in lumps
                finally:
                    self._settle()
        finally:  # also what others had to say, where this call is given up
            self.flush()
        return whole

    @asynccontextmanager
    async def _own_turn(self) -> AsyncIterator[None]:
        """The right to write. A thread that has it, and waits for its reader's window, leaves it to us."""
        with self.lock:
            self._others += 1
            self.lock.notify_all()
        try:
            await self._turn.acquire()
        finally:
            with self.lock:
                self._others -= 1
        try:
            yield
        finally:
            self._turn.release()

    async def _run(self, work: Callable[[], bool], sending: _Sending, out: socket.socket, device: int | None) -> bool:
        """In a thread where the disk may have to be waited for."""
        try:
            if device is None:
                return work()
            return await in_thread(work, stop=sending.stop, device=device, out=out)
        except (Busy, ConnectionError):
            if sending.pushing:  # a lost thread still has what it was sending; else it is this call only that has ended
                self.pending = Outgoing()
                self._shut()
            raise

    def _shut(self) -> None:
        """Closed or not by a thread that is lost, nothing goes out any more."""
        assert self._transport is not None
        with suppress(OSError), socket.socket(fileno=os.dup(self._transport.get_extra_info("socket").fileno())) as ours:
            ours.shutdown(socket.SHUT_RDWR)
        self._transport.abort()

    def _settle(self) -> None:
        """A frame that has begun goes out whole, for the calls beside this one, though nobody waits for it: zeros for
        what lies in files, whose disk may hang. The last of a message is in memory when it begins, so none is whole by
        such zeros."""
        left, self.pending = self.pending.left, Outgoing()
        if left and self._transport is not None and not self._transport.is_closing():
            self._transport.write(b"".join(bytes(part[2]) if isinstance(part, tuple) else part for part in left))

    async def _encrypted(self, call: Taker, parts: Iterator[Message], moved: Callable[[], object]) -> None:
        for message in parts:
            data = Data(message)
            while data.left:
                if not await self._piece_encrypted(call, data):
                    await self._room(call)
                elif data.moves():
                    moved()

    async def _piece_encrypted(self, call: Taker, data: Data) -> bool:
        """Whether there was room for something."""
        try:
            async with self._own_turn():
                await self._emptied(call)
                if frames := self.reserve(call, data, _PIECE // 4):
                    self._there(call).write(b"".join(frames))  # type: ignore[arg-type]  # it is all in memory
                    await self._emptied(call)
        finally:
            self.flush()
        return bool(frames)

    async def _emptied(self, call: Taker) -> None:
        """Wait until the transport has nothing more to write."""
        self._there(call)
        await self._quiet.wait()
        self._there(call)

    async def _room(self, call: Taker) -> None:
        """Wait until the client's windows let something through."""
        while self.windows(call) <= 0:  # whoever makes its windows smaller owes us some
            self._moved.clear()
            await self._moved.wait()
            self._there(call)

    def _there(self, call: Taker) -> asyncio.Transport:
        if call.gone or self._transport is None or self._transport.is_closing():
            raise ConnectionAbortedError("the client has left")
        return self._transport

    def flush(self) -> None:
        """Say what is to be said, where nobody is in the middle of a frame: else whoever is says it."""
        transport = self._transport
        if transport is None or transport.is_closing():
            return
        if not self._turn.locked():
            with self.lock:
                said, self._said = bytes(self._said), bytearray()
            if said:
                transport.write(said)
        if len(self._said) > _WAITING or transport.get_write_buffer_size() > _LEFT:
            transport.abort()

    def windows(self, call: Taker) -> int:
        """Bytes of data that the client's windows let through."""
        with self.lock:
            return self._windows(call)

    def _windows(self, call: Taker) -> int:
        stream = self.h2.streams.get(call.number)
        if stream is None or call.gone:
            raise ConnectionAbortedError("the client has left")
        return min(self.h2.outbound_flow_control_window, stream.outbound_flow_control_window)

    def reserve(self, call: Taker, data: Data, most: int, begins: Callable[[], bool] = lambda: True) -> list[Part]:
        """Frames with the next of `data`, as much as the client's windows let through, after all else that is to be
        said; empty where they let nothing through, or nothing `begins` any more. From a thread, too.

        What has to be read is read before anything is reserved: it may take its time and fail, the client may change
        its mind meanwhile, and what is to be said for other calls waits for nobody's disk.
        """
        if (size := min(most, data.next, self.windows(call))) <= 0:
            return []
        data.prepare(size)
        with self.lock:
            if (size := min(size, self._windows(call))) <= 0 or not begins():
                return []
            self.h2.outbound_flow_control_window -= size
            self.h2.streams[call.number].outbound_flow_control_window -= size
            frame = min(_PIECE, self.h2.max_outbound_frame_size)
            frames = list(data.framed(size, frame, call.number))
            self.frames += -(-size // frame)
            said, self._said = bytes(self._said), bytearray()
        return [said, *frames] if said else frames

    def wait_for_room(self, seconds: float) -> bool:
        """In a thread that may write: whether a window has moved within that time, and nobody else has anything to say
        meanwhile. What waits for one reader's window holds up no other call."""
        with self.lock:
            return seconds > 0 and not self._wanted() and self.lock.wait(seconds) and not self._wanted()

    def _wanted(self) -> bool:
        return self._others > 0 or bool(self._said)


class _Sending:
    """Messages of one call on their way."""

    def __init__(self, outward: Outward, call: Taker, messages: Iterator[Message], *, patient: bool) -> None:
        self._outward, self._call, self._messages = outward, call, messages
        self._patient = patient  # in a thread, which may wait for a moment
        self._data: Data | None = None
        self._window = Window()
        self._stopped = self._moves = False
        self.pushing = False  # a frame may have begun

    def stop(self) -> None:
        """Have a thread that sends end before it sends more."""
        with self._outward.lock:
            self._stopped = True

    @property
    def has_more(self) -> bool:
        """Whether there is more of the message that was begun."""
        return self._data is not None and self._data.left > 0

    def _begins(self) -> bool:
        """Whether a frame may begin; it has then. Called with the connection's lock."""
        self.pushing = not self._stopped
        return self.pushing

    def run(self, out: socket.socket) -> bool:
        """Send until there is no more (True), or the reader has made us wait, or others wait."""
        wait = Waiting(out) if self._patient else None
        while not self._stopped and (data := self._next()) is not None:
            frames = self._outward.reserve(self._call, data, _PIECE, self._begins)
            if not frames:
                if self._stopped or wait is None or not self._outward.wait_for_room(wait.left):
                    return False
                continue
            self._moves |= data.moves()
            self._outward.pending.left.extend(frames)
            if not self.rest(out, wait):
                return False
            if wait is None or wait.over:
                break
        return not self._stopped and self._next() is None

    def moves(self) -> bool:
        """Whether a message has gone, or a lump of one, since this was asked last."""
        moves, self._moves = self._moves, False
        return moves

    def rest(self, out: socket.socket, wait: Waiting | None = None) -> bool:
        """Send what of frames has not gone. Whether that was all."""
        self.pushing = not self._outward.pending.push(out, self._window, wait)
        return not self.pushing

    def _next(self) -> Data | None:
        while self._data is None or not self._data.left:
            message = next(self._messages, None)
            if message is None:
                return None
            self._data = Data(message)
        return self._data
