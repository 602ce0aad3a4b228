"""A connection of a Flight client: HTTP/2 (RFC 9113) with the states, headers and limits of the `h2` library; what goes
out over it is the business of `outward`.

Who calls is not known before a request is there: requests, their bodies and everything else that a client may send are
bounded here, and what they mean is nobody's business in here.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable, Coroutine, Iterable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, cast

from h2 import events
from h2.connection import ConnectionState
from h2.errors import ErrorCodes
from h2.exceptions import H2Error

from connector.dataplane.flight.http2.fair_reader import Helpings
from connector.dataplane.flight.http2.frame_writer import Outward
from connector.dataplane.flight.http2.message_buffers import Message
from connector.dataplane.flight.http2.stream_limits import States
from connector.errors import BadInput, Limited
from connector.infra.http.http_limits import HEAD_SECONDS
from connector.telemetry import logger

BODY_MAX = 2**20  # bytes of a request
_BODY_SECONDS = 10.0
_REST_SECONDS = 600.0  # without a call: whoever comes back connects anew without a word
_PARTING_SECONDS = 1.0  # for what was on its way to us as we said goodbye
_READ = 2**12  # bytes that are taken from a client before it is its turn
_CALM, _CALM_AGAIN = 2000.0, 200.0  # what costs us and brings it nothing: so many at first, and so many a second
_RESET = 8  # of these, for a call that is begun and broken off, or asked in vain
_MUCH, _FEW = 512, 16  # bytes of a body in one frame; frames of less, of one call, that are not counted among these
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
        self.known = False  # somebody known asks for something that there is: says whoever answers it
        self.small = 0  # frames of its body that brought little
        self._connection = connection
        self._body = bytearray()
        self._too_much = False
        self._came = asyncio.Event()
        self._until = asyncio.get_running_loop().time() + _BODY_SECONDS

    @property
    def sends_files(self) -> bool:
        """Whether parts of files go as they are: what is encrypted is in memory before."""
        return not self._connection.outward.encrypts

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
        await self._connection.outward.send(self, iter((part,)), moved)

    async def send_files(self, parts: Iterator[Message], *, device: int, moved: Callable[[], object]) -> None:
        """What lies in files of that device, and memory, for as long as there is more; `parts` is asked in a thread.
        EOFError where a file has been cut short: its reader gets no whole message of it. Busy where its disk does not
        answer: the connection has ended then. What `parts` raises comes back as it is, and the call goes on."""
        await self._connection.outward.send(self, parts, moved, device=device)

    def finish(self, trailers: Headers, *, in_vain: bool = False) -> None:
        """The end of the answer; all of it where it has not begun. `in_vain`: there was nothing to answer, and whoever
        goes on so is sent away."""
        if not self.ended:
            self.ended = True
            self._connection.head(self, trailers, last=True)
            if in_vain:
                self._connection.asked_in_vain()

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
        self.outward = Outward()
        self._buffer = memoryview(bytearray(_READ))
        self._calls: dict[int, Call] = {}
        self._calm, self._calm_at = _CALM, self._loop.time()
        self._forgiven = 0  # frames that came for those of data that have gone
        self._late: asyncio.TimerHandle | None = None
        self._shaking: socket.socket | None = None
        self._transport: asyncio.Transport | None = None
        self._closing = self._parting = False
        self._dismissed = False  # with our goodbye, while calls are answered to their end
        self._waits = False  # for its turn, with something that has come

    # A place among the connections, from before a TLS handshake.

    def begin_handshake(self, client: socket.socket) -> bool:
        """Take a place; whether there is one. Then call `end_handshake` when the handshake is over."""
        self._shaking = client
        return self._connections.enter(self)

    def end_handshake(self) -> None:
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
        tls = transport.get_extra_info("ssl_object")
        self.outward.begin(self._transport, encrypts=tls is not None)
        if tls is not None and tls.selected_alpn_protocol() != "h2":
            self._transport.abort()
            return
        with self.outward.states() as h2:
            h2.initiate_connection()
        self.outward.flush()
        self._expect(HEAD_SECONDS)

    def get_buffer(self, sizehint: int) -> memoryview:
        """Where what comes is put."""
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        """So much has come. It is looked at when it is our turn, and nothing more is taken until then."""
        if not self.closes:
            self._receive(bytes(self._buffer[:nbytes]))

    def look(self, most: int) -> int:
        """See `helpings.Guest`."""
        self._waits = False
        if self.closes:
            return 0
        left = self._receive(b"", most)
        if not self._waits:
            self._take_more()
        return most - left

    def _receive(self, data: bytes, most: int = 0) -> int:
        """Look at so much of what has come; what is left of that. Windows are opened at once."""
        found: list[Any] = []
        broken = False
        with self.outward.states() as h2:
            h2.came.left = most
            try:
                found = h2.receive_data(data)
            except (H2Error, ValueError) as error:  # the library has said goodbye
                broken = True
                _log.info("a Flight client broke the protocol", why=type(error).__name__)
        for event in found:
            self._heard(event)
        self._weigh(found)
        if broken:
            self._close(None)
        elif self._calm < 0:
            self._send_away()
        if h2.came.more and not self._waits and not self.closes:
            self._wait()
        self.outward.flush()
        return h2.came.left

    def _wait(self) -> None:
        """For our turn, and take nothing more until then."""
        assert self._transport is not None
        self._waits = True
        self._transport.pause_reading()
        self._connections.helpings.ask(self)

    def _take_more(self) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.resume_reading()

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
            with self.outward.states() as h2:
                _go_on(h2)
            self._rest()
        elif isinstance(event, events.StreamReset):
            if (call := self._calls.get(event.stream_id)) is not None:
                call.leave()
        elif isinstance(event, events.WindowUpdated | events.RemoteSettingsChanged):
            self.outward.room()

    def asked_in_vain(self) -> None:
        """A call has brought us nothing. It costs what one costs that is broken off."""
        self._count(_RESET)
        if self._calm < 0:
            self._send_away()

    def _send_away(self) -> None:
        """Whoever costs us much and brings nothing. What somebody known has asked beside that is answered to its end,
        as long as not as much comes once more; whatever is asked after our goodbye is not."""
        if self._dismissed or not any(call.known and not call.ended for call in self._calls.values()):
            self._close(ErrorCodes.ENHANCE_YOUR_CALM)
            return
        self._closing, self._dismissed, self._calm = True, True, _CALM
        with suppress(H2Error), self.outward.states() as h2:
            h2.close_connection(ErrorCodes.ENHANCE_YOUR_CALM)
            _go_on(h2)
        self.outward.flush()

    def _weigh(self, found: Sequence[Any]) -> None:
        """Count the frames that brought no call and nothing of a body, and calls that were broken off."""
        useful = sum(map(self._brings, found))
        resets = sum(isinstance(one, events.StreamReset) for one in found)
        came = self.outward.h2.came
        self._count(max(0, came.count - useful) + resets * _RESET)
        came.count = 0

    def _count(self, size: int) -> None:
        """What costs us and brings nothing. As many as fit to the data that the client has got are none too many."""
        forgiven = min(size, self.outward.frames * _EARNED - self._forgiven)
        self._forgiven += forgiven
        now = self._loop.time()
        self._calm = min(_CALM, self._calm + (now - self._calm_at) * _CALM_AGAIN) - (size - forgiven)
        self._calm_at = now

    def _brings(self, event: Any) -> bool:
        """Whether a frame brought a call or something of a body: its end, much at once, or one of its few small ones.
        A megabyte in frames of one byte takes seconds."""
        if not isinstance(event, events.DataReceived):
            return isinstance(event, events.RequestReceived)
        if not event.data or len(event.data) >= _MUCH or event.stream_ended is not None:
            return bool(event.data)
        call = self._calls.get(event.stream_id)
        if call is not None:
            call.small += 1
        return call is not None and call.small <= _FEW

    def _took(self, event: events.DataReceived) -> None:
        with suppress(H2Error), self.outward.states() as h2:  # the call has ended
            h2.acknowledge_received_data(event.flow_controlled_length or 0, event.stream_id)
        if (call := self._calls.get(event.stream_id)) is not None:
            call.took(event.data or b"")

    def _asked(self, event: events.RequestReceived) -> None:
        number = event.stream_id
        call = Call(self, number, event.headers or ())
        self._calls[number] = call
        self._expect(None)
        if self._closing:
            self._count(_RESET)
            self.reset(call, ErrorCodes.REFUSED_STREAM)
            del self._calls[number]
            return
        call.task = self._loop.create_task(self._answer(call))
        call.task.add_done_callback(partial(self._answered, call))

    def _answered(self, call: Call, task: asyncio.Task[None]) -> None:
        # Asked also where it was cancelled: that error, where nobody fetches it, has the frames of the task, of which
        # one has the task, and would keep what was being sent until the collector comes by.
        with suppress(asyncio.CancelledError):
            if (error := task.exception()) is not None:
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
        if code is not None and not self._dismissed:
            with suppress(H2Error), self.outward.states() as h2:
                h2.close_connection(code)
        if self.outward.busy:  # whoever does not read is not waited for
            self._transport.abort()
            return
        self.outward.flush()
        self._expect(None)
        if code is ErrorCodes.NO_ERROR:
            self._parting = True
            self._take_more()  # and let it go
            self._late = self._loop.call_later(_PARTING_SECONDS, self._end)
        else:
            self._end()

    def _end(self) -> None:
        """Nothing more is to be said, nor heard."""
        if self._transport is not None:
            self._transport.close()
            self._late = self._loop.call_later(HEAD_SECONDS, self._transport.abort)

    def pause_writing(self) -> None:
        """As asyncio's."""
        self.outward.pause()

    def resume_writing(self) -> None:
        """As asyncio's."""
        self.outward.resume()

    def connection_lost(self, exc: Exception | None) -> None:
        """The client has left."""
        self._connections.leave(self)
        if self._late is not None:
            self._late.cancel()
        for call in tuple(self._calls.values()):
            call.leave()
        self.outward.end()

    # What is said of a call.

    def head(self, call: Call, headers: Headers, *, last: bool) -> None:
        """The beginning of an answer, or its end."""
        with suppress(H2Error), self.outward.states() as h2:  # the client has left
            h2.send_headers(call.number, list(headers), end_stream=last)
            if last and not call.whole:  # what is still to come of the request is of no use
                h2.reset_stream(call.number, ErrorCodes.NO_ERROR)
        self.outward.flush()

    def reset(self, call: Call, code: ErrorCodes) -> None:
        """Break a call off."""
        with suppress(H2Error), self.outward.states() as h2:
            h2.reset_stream(call.number, code)
        self.outward.flush()


class Connections:
    """All connections of a listener: so many at most. Whose next request is awaited for the longest makes room."""

    def __init__(self, most: int) -> None:
        self._most = most
        self.helpings = Helpings()
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


def _go_on(h2: States) -> None:
    """The library takes a goodbye for the end of all; what runs goes on (RFC 9113, section 6.8)."""
    h2.state_machine.state = ConnectionState.SERVER_OPEN


def _text(raw: bytes) -> str:
    return raw.decode("ascii", "replace")
