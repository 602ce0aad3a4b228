"""A connection of a Flight client: HTTP/2 (RFC 9113) with the states, headers and limits of the `h2` library, and data
that goes from where it lies to the socket in frames (data-plane, section 3).

The library would copy each piece of data twice, into frames of 16 kB. Here frames are as large as their reader allows,
and parts of files go as they are, by a thread where they lie on a disk. What the library is told of that are the two
windows that it counts: `reserve` is the one place that touches them. It is not made for threads, so whoever talks to
it holds `lock`.

Who calls is not known before a request is there: requests, their bodies and everything else that a client may send are
bounded here, and what they mean is nobody's business in here.
"""

from __future__ import annotations

import asyncio
import os
import socket
import threading
from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, cast

from h2 import events
from h2.connection import ConnectionState
from h2.errors import ErrorCodes
from h2.exceptions import H2Error

from connector.bounds import HEAD_SECONDS
from connector.dataplane.flight.messages import Data, Message
from connector.dataplane.flight.states import States
from connector.dataplane.senders import in_thread
from connector.dataplane.sending import Outgoing, Part, Waiting, Window, writable
from connector.errors import BadInput, Busy, Limited
from connector.telemetry import logger

BODY_MAX = 2**20  # bytes of a request
_BODY_SECONDS = 10.0
_REST_SECONDS = 600.0  # without a call: whoever comes back connects anew without a word
_PARTING_SECONDS = 1.0  # for what was on its way to us as we said goodbye
_PIECE = 2**20  # bytes of data that are handed over at once, and of a frame at most
_READ = 2**12  # bytes that are looked at before others have their turn: hundreds of frames, or of calls
_WAITING = 2**18  # bytes of answers to what is no call (acknowledgements) that a client may leave unread
_LEFT = 4 * 2**20  # bytes that it may leave unread in all
_CALM, _CALM_AGAIN = 2000.0, 200.0  # what costs us and brings it nothing: so many at first, and so many a second
_RESET = 8  # of these, for a call that is begun and broken off
_EARNED = 4  # of these, for each frame of data: a reader gives room for it twice, and may measure its way
_log = logger("flight")

Headers = Sequence[tuple[str, str]]


class Call:
    """One request and its answer. `task` answers it and is cancelled when the client leaves."""

    def __init__(self, connection: Connection, number: int, headers: Iterable[tuple[Any, Any]]) -> None:
        self.number = number
        self.headers: dict[str, list[str]] = {}
        for name, value in headers:
            self.headers.setdefault(_text(name), []).append(_text(value))
        self.path = self.headers.get(":path", [""])[0]
        self.gone = False
        self.task: asyncio.Task[None] | None = None
        self.begun = self.ended = self.whole = False
        self._connection = connection
        self._body = bytearray()
        self._too_much = False
        self._came = asyncio.Event()
        self._until = asyncio.get_running_loop().time() + _BODY_SECONDS

    @property
    def sends_files(self) -> bool:
        """Whether parts of files go as they are: what is encrypted is in memory before."""
        return not self._connection.encrypts

    @property
    def over(self) -> bool:
        """Whether nothing can be said to the client any more."""
        return self.gone or self._connection.closes

    async def body(self, enough: int = BODY_MAX + 1) -> bytes:
        """The request, all of it or as soon as so much is there. Limited where it does not come in time, BadInput
        where it is larger than one may be."""
        try:
            async with asyncio.timeout_at(self._until):
                while not self.whole and not self._too_much and len(self._body) < enough:
                    self._came.clear()
                    await self._came.wait()
        except TimeoutError:
            raise Limited(f"expected a request within {_BODY_SECONDS:g} s; send it again", code="body_late") from None
        if self._too_much:
            raise BadInput(f"expected a request of at most {BODY_MAX} bytes, came more", code="request_too_large")
        return bytes(self._body)

    def begin(self, headers: Headers) -> None:
        """The head of the answer."""
        self.begun = True
        self._connection.head(self, headers, last=False)

    async def send(self, part: Message, moved: Callable[[], object] = lambda: None) -> None:
        """What lies in memory. `moved` is called as its reader takes it. ConnectionAbortedError where it has left."""
        await self._connection.send(self, iter((part,)), moved)

    async def send_files(self, parts: Iterator[Message], *, device: int, moved: Callable[[], object]) -> None:
        """What lies in files of that device, and memory, for as long as there is more; `parts` is asked in a thread.
        EOFError where a file has been cut short: its reader gets no whole message of it. Busy where its disk does not
        answer: the connection has ended then. What `parts` raises comes back as it is, and the call goes on."""
        await self._connection.send(self, parts, moved, device=device)

    def finish(self, trailers: Headers) -> None:
        """The end of the answer; all of it where it has not begun."""
        if not self.ended:
            self.ended = True
            self._connection.head(self, trailers, last=True)

    def break_off(self) -> None:
        """An answer that cannot be ended as one that is whole."""
        if not self.ended:
            self.ended = True
            self._connection.reset(self, ErrorCodes.INTERNAL_ERROR)

    def took(self, data: bytes) -> None:
        """More of the body has come."""
        if len(self._body) + len(data) > BODY_MAX:
            self._too_much = True
            self._body.clear()
        elif not self._too_much:
            self._body += data
        self._came.set()

    def has_all(self) -> None:
        """The body has ended."""
        self.whole = True
        self._came.set()

    def leave(self) -> None:
        """The client is not interested any more."""
        self.gone = self.ended = True
        if self.task is not None:
            self.task.cancel()


class Connection(asyncio.BufferedProtocol):
    """One client's connection. `answer` is called for each request; `connections` holds all that there are."""

    def __init__(self, answer: Callable[[Call], Coroutine[Any, Any, None]], connections: Connections) -> None:
        self._answer = answer
        self._connections = connections
        self._loop = asyncio.get_running_loop()
        self.lock = threading.Condition()  # of the library and of what is to be said; a window has moved
        self._h2 = States()
        self._said = bytearray()  # frames without data that are to go out
        self.pending = Outgoing()  # of frames with data whose beginning has gone: of whoever has the turn
        self._turn = asyncio.Lock()  # of whoever writes data
        self._buffer = memoryview(bytearray(_READ))
        self._quiet = asyncio.Event()  # all that the transport was given has gone
        self._moved = asyncio.Event()  # a window may have room
        self._calls: dict[int, Call] = {}
        self._calm, self._calm_at = _CALM, self._loop.time()
        self._frames = self._forgiven = 0  # of data that have gone; frames that came for these
        self._late: asyncio.TimerHandle | None = None
        self._shaking: socket.socket | None = None
        self._transport: asyncio.Transport | None = None
        self.encrypts = False
        self._closing = self._parting = False

    # A place among the connections, from before a TLS handshake.

    def knock(self, client: socket.socket) -> bool:
        """Take a place; whether there is one. Then call `shaken` when the handshake is over."""
        self._shaking = client
        return self._connections.enter(self)

    def shaken(self) -> None:
        """The handshake has ended, one way or the other."""
        self._shaking = None
        if self._transport is None:
            self._connections.leave(self)

    def hang_up(self) -> None:
        """End the connection now."""
        if self._transport is not None:
            self._transport.abort()
        elif self._shaking is not None:
            with suppress(OSError):
                self._shaking.shutdown(socket.SHUT_RDWR)

    @property
    def rests(self) -> bool:
        """Whether nothing is asked."""
        return not self._calls

    @property
    def closes(self) -> bool:
        """Whether the connection has ended, or does so."""
        return self._parting or self._transport is None or self._transport.is_closing()

    # What comes.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The handshake is done."""
        self._transport = cast("asyncio.Transport", transport)
        self._shaking = None
        self._quiet.set()
        tls = transport.get_extra_info("ssl_object")
        self.encrypts = tls is not None
        # We are told when the transport has something, and when all has gone: over TLS, 0 of 0 counts as something.
        self._transport.set_write_buffer_limits(int(self.encrypts), 0)
        if tls is not None and tls.selected_alpn_protocol() != "h2":
            self._transport.abort()
            return
        with self.lock:
            self._h2.initiate_connection()
        self._flush()
        self._expect(HEAD_SECONDS)

    def get_buffer(self, sizehint: int) -> memoryview:
        """Where what comes is put."""
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        """So much has come."""
        if self.closes:
            return
        found: list[Any] = []
        broken = False
        with self.lock:
            try:
                found = self._h2.receive_data(bytes(self._buffer[:nbytes]))
            except (H2Error, ValueError) as error:  # the library has said goodbye
                broken = True
                _log.info("a Flight client broke the protocol", why=type(error).__name__)
            self._said += self._h2.data_to_send()
            self.lock.notify_all()
        self._weigh(found)
        for event in found:
            self._heard(event)
        if broken or self._calm < 0:
            self._close(None if broken else ErrorCodes.ENHANCE_YOUR_CALM)
        self._flush()

    def _heard(self, event: Any) -> None:
        if isinstance(event, events.DataReceived):
            self._took(event)
        elif isinstance(event, events.RequestReceived):
            self._asked(event)
        elif isinstance(event, events.StreamEnded):
            if (call := self._calls.get(event.stream_id)) is not None:
                call.has_all()
        elif isinstance(event, events.ConnectionTerminated):
            self._closing = True
            with self.lock:  # the library takes it for the end of all; what runs goes on (RFC 9113, section 6.8)
                self._h2.state_machine.state = ConnectionState.SERVER_OPEN
            self._rest()
        elif isinstance(event, events.StreamReset):
            if (call := self._calls.get(event.stream_id)) is not None:
                call.leave()
        elif isinstance(event, events.WindowUpdated | events.RemoteSettingsChanged):
            self._moved.set()

    def _weigh(self, found: Sequence[Any]) -> None:
        """Count the frames that brought no call and nothing of a body, and calls that were broken off. As many as fit
        to the data that the client has got are none too many."""
        useful = sum(isinstance(one, events.RequestReceived) or bool(getattr(one, "data", b"")) for one in found)
        resets = sum(isinstance(one, events.StreamReset) for one in found)
        size = max(0, self._h2.came.count - useful) + resets * _RESET
        self._h2.came.count = 0
        forgiven = min(size, self._frames * _EARNED - self._forgiven)
        self._forgiven += forgiven
        now = self._loop.time()
        self._calm = min(_CALM, self._calm + (now - self._calm_at) * _CALM_AGAIN) - (size - forgiven)
        self._calm_at = now

    def _took(self, event: events.DataReceived) -> None:
        with self.lock:
            with suppress(H2Error):  # the call has ended
                self._h2.acknowledge_received_data(event.flow_controlled_length or 0, event.stream_id)
            self._said += self._h2.data_to_send()
        if (call := self._calls.get(event.stream_id)) is not None:
            call.took(event.data or b"")

    def _asked(self, event: events.RequestReceived) -> None:
        number = event.stream_id
        call = Call(self, number, event.headers or ())
        self._calls[number] = call
        self._expect(None)
        if self._closing:
            self.reset(call, ErrorCodes.REFUSED_STREAM)
            del self._calls[number]
            return
        call.task = self._loop.create_task(self._answer(call))
        call.task.add_done_callback(partial(self._answered, call))

    def _answered(self, call: Call, task: asyncio.Task[None]) -> None:
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.exception("unforeseen", exc_info=error)
        call.break_off()
        del self._calls[call.number]
        self._rest()

    def _rest(self) -> None:
        if self._calls or self._parting:
            return
        if self._closing:
            self._close(ErrorCodes.NO_ERROR)
        else:
            self._expect(_REST_SECONDS)

    def _expect(self, seconds: float | None) -> None:
        """A request within that time."""
        if self._late is not None:
            self._late.cancel()
            self._late = None
        if seconds is not None:
            self._connections.rests(self)
            self._late = self._loop.call_later(seconds, self._close, ErrorCodes.NO_ERROR)

    def close(self) -> None:
        """Say goodbye: no further call is answered, and those that run are ended."""
        for call in tuple(self._calls.values()):
            call.leave()
        if self._transport is None:  # its handshake is under way, and need not end
            self.hang_up()
        self._close(ErrorCodes.NO_ERROR)

    def _close(self, code: ErrorCodes | None) -> None:
        """Over, with a reason where the library has not given one.

        A client asks anew elsewhere what it asked after the last request that our goodbye names (RFC 9113, section
        6.8), but not where it finds the connection broken before it has read that, which a socket is that is closed
        while something comes. So we listen for a while, in which clients close it themselves."""
        if self._transport is None or self.closes:
            return
        if code is not None:
            with self.lock, suppress(H2Error):
                self._h2.close_connection(code)
                self._said += self._h2.data_to_send()
        if self._turn.locked() or self._transport.get_write_buffer_size():  # whoever does not read is not waited for
            self._transport.abort()
            return
        self._flush()
        self._expect(None)
        if code is ErrorCodes.NO_ERROR:
            self._parting = True
            self._late = self._loop.call_later(_PARTING_SECONDS, self._end)
        else:
            self._end()

    def _end(self) -> None:
        """Nothing more is to be said, nor heard."""
        if self._transport is not None:
            self._transport.close()
            self._late = self._loop.call_later(HEAD_SECONDS, self._transport.abort)

    def pause_writing(self) -> None:
        """The transport has something that has not gone."""
        self._quiet.clear()

    def resume_writing(self) -> None:
        """It has gone."""
        self._quiet.set()

    def connection_lost(self, exc: Exception | None) -> None:
        """The client has left."""
        self._connections.leave(self)
        if self._late is not None:
            self._late.cancel()
        for call in tuple(self._calls.values()):
            call.leave()
        self._quiet.set()
        self._moved.set()
        with self.lock:
            self.lock.notify_all()

    # What goes.

    def head(self, call: Call, headers: Headers, *, last: bool) -> None:
        """The beginning of an answer, or its end."""
        with self.lock, suppress(H2Error):  # the client has left
            self._h2.send_headers(call.number, list(headers), end_stream=last)
            if last and not call.whole:  # what is still to come of the request is of no use
                self._h2.reset_stream(call.number, ErrorCodes.NO_ERROR)
            self._said += self._h2.data_to_send()
        self._flush()

    def reset(self, call: Call, code: ErrorCodes) -> None:
        """Break a call off."""
        with self.lock, suppress(H2Error):
            self._h2.reset_stream(call.number, code)
            self._said += self._h2.data_to_send()
        self._flush()

    async def send(
        self, call: Call, parts: Iterator[Message], moved: Callable[[], object], *, device: int | None = None
    ) -> None:
        """See `Call.send` and `Call.send_files`."""
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
        self, call: Call, sending: _Sending, out: socket.socket, moved: Callable[[], object], device: int | None
    ) -> bool:
        """Send as much as fits into one turn. Whether that was all."""
        try:
            async with self._turn:
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
            self._flush()
        return whole

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

    async def _encrypted(self, call: Call, parts: Iterator[Message], moved: Callable[[], object]) -> None:
        for message in parts:
            data = Data(message)
            while data.left:
                if not await self._piece_encrypted(call, data):
                    await self._room(call)
                elif data.moves():
                    moved()

    async def _piece_encrypted(self, call: Call, data: Data) -> bool:
        """Whether there was room for something."""
        try:
            async with self._turn:
                await self._emptied(call)
                if frames := self.reserve(call, data, _PIECE // 4):
                    self._there(call).write(b"".join(frames))  # type: ignore[arg-type]  # it is all in memory
                    await self._emptied(call)
        finally:
            self._flush()
        return bool(frames)

    async def _emptied(self, call: Call) -> None:
        """Wait until the transport has nothing more to write."""
        self._there(call)
        await self._quiet.wait()
        self._there(call)

    async def _room(self, call: Call) -> None:
        """Wait until the client's windows let something through."""
        while self.windows(call) <= 0:  # whoever makes its windows smaller owes us some
            self._moved.clear()
            await self._moved.wait()
            self._there(call)

    def _there(self, call: Call) -> asyncio.Transport:
        if call.gone or self._transport is None or self._transport.is_closing():
            raise ConnectionAbortedError("the client has left")
        return self._transport

    def _flush(self) -> None:
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

    def windows(self, call: Call) -> int:
        """Bytes of data that the client's windows let through."""
        with self.lock:
            return self._windows(call)

    def _windows(self, call: Call) -> int:
        stream = self._h2.streams.get(call.number)
        if stream is None or call.gone:
            raise ConnectionAbortedError("the client has left")
        return min(self._h2.outbound_flow_control_window, stream.outbound_flow_control_window)

    def reserve(self, call: Call, data: Data, most: int, begins: Callable[[], bool] = lambda: True) -> list[Part]:
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
            self._h2.outbound_flow_control_window -= size
            self._h2.streams[call.number].outbound_flow_control_window -= size
            frame = min(_PIECE, self._h2.max_outbound_frame_size)
            frames = list(data.framed(size, frame, call.number))
            self._frames += -(-size // frame)
            said, self._said = bytes(self._said), bytearray()
        return [said, *frames] if said else frames

    def wait_for_room(self, seconds: float) -> bool:
        """In a thread: whether a window has moved within that time."""
        with self.lock:
            return seconds > 0 and self.lock.wait(seconds)


class _Sending:
    """Messages of one call on their way."""

    def __init__(self, connection: Connection, call: Call, messages: Iterator[Message], *, patient: bool) -> None:
        self._connection, self.call, self._messages = connection, call, messages
        self._patient = patient  # in a thread, which may wait for a moment
        self._data: Data | None = None
        self._window = Window()
        self._stopped = self._moves = False
        self.pushing = False  # a frame may have begun

    def stop(self) -> None:
        """Have a thread that sends end before it sends more."""
        with self._connection.lock:
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
            frames = self._connection.reserve(self.call, data, _PIECE, self._begins)
            if not frames:
                if self._stopped or wait is None or not self._connection.wait_for_room(wait.left):
                    return False
                continue
            self._moves |= data.moves()
            self._connection.pending.left.extend(frames)
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
        self.pushing = not self._connection.pending.push(out, self._window, wait)
        return not self.pushing

    def _next(self) -> Data | None:
        while self._data is None or not self._data.left:
            message = next(self._messages, None)
            if message is None:
                return None
            self._data = Data(message)
        return self._data


class Connections:
    """All connections of a listener: so many at most. Whose next request is awaited for the longest makes room."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._all: set[Connection] = set()
        self.none = asyncio.Event()  # there is no connection
        self.none.set()
        self._resting: dict[Connection, None] = {}

    def __iter__(self) -> Iterator[Connection]:
        return iter(tuple(self._all))

    def enter(self, one: Connection) -> bool:
        """Whether there is a place for it."""
        while len(self._all) >= self._most:
            first = next((other for other in self._resting if other.rests), None)
            if first is None:
                return False
            self.leave(first)
            first.hang_up()
        self._all.add(one)
        self.none.clear()
        self._resting[one] = None
        return True

    def rests(self, one: Connection) -> None:
        """Nothing is asked over it from now on."""
        if one in self._all:
            self._resting.pop(one, None)
            self._resting[one] = None

    def leave(self, one: Connection) -> None:
        """It has ended."""
        self._all.discard(one)
        self._resting.pop(one, None)
        if not self._all:
            self.none.set()


def _text(raw: bytes) -> str:
    return raw.decode("ascii", "replace")
