"""Bounds for what is asked of a listener: uvicorn's HTTP protocol, with an end to heads, bodies, rests and queues.

Who asks is not known before it is there, so nobody's endless head fills memory, and nobody's silence keeps a
connection. Where a listener has as many connections as it may, whose next bytes are awaited for the longest makes room
for whoever comes: who means it says something within a moment, and many honest clients may have one address. How large
a body may be says whoever reads it; here, into how many pieces it may fall: each costs more than its bytes do. Use it
as `uvicorn.Config(http=Bounded)`, over TLS with `listening.Server`; it rests on uvicorn's internals, whose range is
pinned.
"""

from __future__ import annotations

import asyncio
import ctypes
import resource
import socket
from array import array
from collections.abc import Sequence
from contextlib import suppress
from fcntl import ioctl
from termios import TIOCOUTQ
from typing import Any

from httptools import HttpParserError, HttpParserUpgrade, HttpRequestParser
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol
from uvicorn.server import ServerState

from connector.infra.net import chunk_limit

HEAD_MAX = 2**18  # bytes: the names of thousands of columns
_HEAD_TOO_LARGE = f"Expected a head of at most {HEAD_MAX} bytes."
_INVALID = "Invalid HTTP request received."
_FRAMING = 4  # bytes of a field beside its name and value: a colon, a space, an end of line
FIELDS_MAX = 256  # of a head, and of the trailers of a body: an empty one is four bytes on the wire and 150 in memory
HEAD_SECONDS = 30.0  # as long as a connection may rest
WAITING_MAX = 32  # requests that are sent before the one ahead of them is answered; few clients do so at all
DESCRIPTORS_MAX = 65_536
OUR_DESCRIPTORS = 256  # for files, workers and the database
LARGE = 2**22  # bytes of a block: more than a batch that is sent has, whose memory is taken again and again
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of mallopt
# In the middle of a body, or of an answer: who reads or sends it has said what is wrong by then.
SILENCE_SECONDS = 180.0
# Of a request that is refused before it is there: a connection that is closed while its peer still sends is reset, and
# takes our answer with it.
REST, REST_SECONDS = 8 * 2**20, 5.0


def raise_descriptors() -> None:
    """Let this process open as many files as its operator's limit allows; the usual one is for programs of another
    kind."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, DESCRIPTORS_MAX)), hard))


def return_large_blocks() -> None:
    """Let memory of large blocks go back to the system when they are freed, as bodies are.

    glibc begins so and stops with the first: it takes the next ones of that size from its threads' heaps, which stay
    as large as they ever were. Other C libraries have no such call.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_MMAP_THRESHOLD, LARGE)
        mallopt(_TRIM_THRESHOLD, 2 * LARGE)  # as it would have learnt: what is less is kept at the end of each heap


def connections_max() -> int:
    """How many connections a listener has at once: three of them (the public one, the console's and Flight's) leave
    descriptors for what the process itself opens."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(1, (soft - OUR_DESCRIPTORS) // 3)


def once_each(fields: Sequence[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """The fields of a head, what came in several lines as the one list that it is (RFC 9110, 5.3): nobody reads the
    first of them where another reads the last. What is no list (Authorization) fits nothing then."""
    found: dict[bytes, bytes] = {}
    for name, value in fields:
        before = found.get(name)
        found[name] = value if before is None else before + (b"; " if name == b"cookie" else b", ") + value
    return list(found.items())


class Bounded(HttpToolsProtocol):
    """uvicorn's protocol on httptools; nothing that is asked is endless."""

    _pieces = _body = 0  # of the body that comes: its pieces, and their bytes
    _plain = b""  # the head of a request that offers to go on with another protocol, without the offer
    _wrong = ""  # what is wrong with what came, where the parser does not know it
    _refused = False  # the request that comes: its rest is read away
    _unfinished = 0  # bytes that came since anything of a request was whole, or it was refused
    _late: asyncio.TimerHandle | None = None
    _shaking: socket.socket | None = None  # its TLS handshake is under way

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        # Beside uvicorn's set of all connections of the listener: whose next bytes are awaited, since when in order.
        self._silent: dict[Bounded, None] = vars(server_state).setdefault("silent", {})
        # And who has much of an answer still to take: since when (in order) so many bytes are left.
        self._taking: dict[Bounded, tuple[float, int]] = vars(server_state).setdefault("taking", {})

    def knock(self, client: socket.socket) -> bool:
        """Take a place before the TLS handshake; whether there is one. Then call `shaken` when that is over."""
        self._shaking = client
        return self._enter()

    def shaken(self) -> None:
        """The handshake has ended, one way or the other."""
        self._shaking = None
        if self.scheme is None:  # no connection came of it
            self._leave()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """As uvicorn's."""
        entered = self in self.connections
        super().connection_made(transport)
        self._shaking = None
        if entered or self._enter():
            self._expect(HEAD_SECONDS)
        else:
            self.transport.abort()

    def _enter(self) -> bool:
        self.connections.add(self)
        if len(self.connections) > connections_max() and not self._make_room():
            self._leave()
            return False
        self._silent[self] = None
        return True

    def _leave(self) -> None:
        self.connections.discard(self)
        self._silent.pop(self, None)
        self._taking.pop(self, None)

    def _make_room(self) -> bool:
        """Whether somebody was silent, or takes nothing, and has been sent away."""
        first = self._most_silent() or self._stuck()
        if first is None:
            return False
        first._leave()
        first._hang_up()
        return True

    def _most_silent(self) -> Bounded | None:
        while self._silent:
            first = next(iter(self._silent))
            del self._silent[first]
            if left := first._left:  # answered, and the end of that is still to be taken
                self._taking[first] = self.loop.time(), left
            elif first._owes:
                return first
        return None

    def _stuck(self) -> Bounded | None:
        """Who has taken nothing of an answer for too long."""
        now = self.loop.time()
        while self._taking:
            first, (since, before) = next(iter(self._taking.items()))
            if now - since < SILENCE_SECONDS:
                return None
            if (left := first._left) >= before:
                return first
            del self._taking[first]
            if left:
                self._taking[first] = now, left
            else:
                first._await()
        return None

    @property
    def _left(self) -> int:
        """Bytes of answers that the client has not taken yet, nor its kernel for it; over TLS some number of them."""
        if self._shaking is not None:
            return 0
        if (left := int(self.transport.get_write_buffer_size())) or self.scheme != "https":
            return left
        # What is encrypted waits where the loop does not show it. While it does, our kernel has some of it, too.
        waiting = array("i", [0])
        with suppress(OSError, ValueError):  # the client has left
            ioctl(self.transport.get_extra_info("socket").fileno(), TIOCOUTQ, waiting)
        return waiting[0]

    def _hang_up(self) -> None:
        """Now: whoever is polite waits for the other side."""
        if self._shaking is None:
            self.transport.abort()
            return
        with suppress(OSError):  # the client has left
            self._shaking.shutdown(socket.SHUT_RDWR)  # the handshake ends with that

    def shutdown(self) -> None:
        """As uvicorn's."""
        if self._shaking is not None:
            self._hang_up()
        elif self._refused:
            self.transport.close()
        else:
            super().shutdown()

    def data_received(self, data: bytes) -> None:
        """As uvicorn's. What is longer than a head may be is not waited for: the parser would keep all of it."""
        self._unfinished += len(data)
        if self._refused:
            if self._unfinished > REST:
                self.transport.close()
            return
        self._parse(data)
        if len(self.pipeline) > WAITING_MAX:  # each answer lets more of them in than it takes out
            self.pipeline.clear()
            self.transport.close()
        if self._refused or self.transport.is_closing():
            return
        if self._unfinished > HEAD_MAX:
            self.send_400_response(_HEAD_TOO_LARGE)
        elif self._rests and self._late is None:  # what came is no beginning of a request
            self._expect(HEAD_SECONDS)

    def _parse(self, data: bytes) -> None:
        """As uvicorn's, but where a request offers to go on with another protocol. None is taken up here, so its body
        is one, and what comes after it is HTTP (RFC 9110, 7.8): the parser has no body then, and would take that for
        requests that nobody has sent."""
        self._unset_keepalive_if_required()
        left: list[bytes | memoryview] = [memoryview(data)]
        while left:
            part = left.pop()
            try:
                self.parser.feed_data(part)
            except HttpParserUpgrade as offer:
                left += part[offer.args[0] :], self._plain
                self._plain = b""
                self.parser = HttpRequestParser(self)  # the other one may read nothing more
                self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
            except HttpParserError:
                self._plain = b""
                if not self.transport.is_closing():
                    self.logger.warning(_INVALID)
                    self.send_400_response(_INVALID)
                return

    def send_400_response(self, msg: str) -> None:
        """As uvicorn's, which closes at once. Here some of what is still to come is taken, and not looked at, so that
        its sender gets to hear of it."""
        if self.transport.is_closing():
            return
        body = (self._wrong or msg).encode("ascii")
        fields = [
            *self.server_state.default_headers,
            (b"content-type", b"text/plain; charset=utf-8"),
            (b"content-length", b"%d" % len(body)),
            (b"connection", b"close"),
        ]
        lines = [b"%s: %s\r\n" % field for field in fields]
        self.transport.write(b"".join((STATUS_LINE[400], *lines, b"\r\n", body)))
        if self.transport.can_write_eof():  # TLS has no such end
            self.transport.write_eof()
        self._refused, self._unfinished = True, 0
        self._disconnect()
        self.flow.resume_reading()
        self._expect(REST_SECONDS)

    def _disconnect(self) -> None:
        """Whoever answers the request that came last hears that nobody listens any more."""
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True
            self.cycle.message_event.set()

    def on_message_begin(self) -> None:
        """As uvicorn's. A packet has thousands: of too many none is looked at, and the parser stops at our error."""
        if len(self.pipeline) > WAITING_MAX:
            self.transport.close()
            raise ValueError(f"expected at most {WAITING_MAX} requests that wait, came more")
        super().on_message_begin()
        self._expect(HEAD_SECONDS)

    def on_header(self, name: bytes, value: bytes) -> None:
        """As uvicorn's. Of too many none is kept: the parser stops at our error, and the answer is 400."""
        if len(self.headers) >= FIELDS_MAX:
            raise ValueError(f"expected at most {FIELDS_MAX} fields, came more")
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """As uvicorn's. The application has each field once, and none of the trailers, which come to the same list. A
        head that came too fast to be waited for is measured here: the parser stops at our error."""
        if len(self.url) + sum(len(name) + len(value) + _FRAMING for name, value in self.headers) > HEAD_MAX:
            self._wrong = _HEAD_TOO_LARGE
            raise ValueError(self._wrong)
        if self.parser.should_upgrade():
            self._plain = self._without_offer()
            return
        self._unfinished = self._pieces = self._body = 0
        self._expect(SILENCE_SECONDS)
        self.scope["headers"] = once_each(self.headers)
        super().on_headers_complete()

    def _without_offer(self) -> bytes:
        """The head that has come, as of a request that offers no other protocol. Of CONNECT nothing would be left."""
        method = self.parser.get_method()
        if method == b"CONNECT":
            raise ValueError("expected a request for something here, came one for a tunnel")
        lines = [b"%s %s HTTP/%s" % (method, self.url, self.parser.get_http_version().encode())]
        for name, value in self.headers:
            kept = value
            if name == b"connection":
                kept = b",".join(word for word in value.split(b",") if word.strip().lower() != b"upgrade")
            if name != b"upgrade":
                lines.append(b"%s: %s" % (name, kept))
        return b"\r\n".join((*lines, b"", b""))

    def on_body(self, body: bytes) -> None:
        """As uvicorn's. Of one in crumbs no more is taken: the parser stops at our error, and the answer is 400."""
        self._unfinished = 0
        self._pieces, self._body = self._pieces + 1, self._body + len(body)
        if chunk_limit.too_many(self._pieces, self._body):
            self._wrong = (
                f"Expected pieces of {chunk_limit.LEAST} bytes on average in a body of more than {chunk_limit.ANY}."
            )
            raise ValueError(self._wrong)
        self._expect(SILENCE_SECONDS)
        super().on_body(body)

    def on_message_complete(self) -> None:
        """As uvicorn's."""
        if self._plain:
            return
        self._unfinished = 0
        self._expect_nothing()
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """As uvicorn's."""
        super().on_response_complete()
        self._await()

    def pause_writing(self) -> None:
        """As uvicorn's."""
        super().pause_writing()
        self._silent.pop(self, None)
        self._taking.pop(self, None)  # they are in the order of their times
        self._taking[self] = self.loop.time(), self._left

    def resume_writing(self) -> None:
        """As uvicorn's."""
        super().resume_writing()
        self._taking.pop(self, None)
        self._await()

    def _expect(self, seconds: float) -> None:
        """More of a request within that time."""
        self._expect_nothing()
        # Whatever else it sends: who takes nothing is looked at as long as it does so.
        if self in self._taking and not self._left:
            del self._taking[self]
        self._await()
        self._late = self.loop.call_later(seconds, self._too_late)

    def _await(self) -> None:
        """From now on, if anything is awaited."""
        self._silent.pop(self, None)
        if self._owes:
            self._silent[self] = None

    def _expect_nothing(self) -> None:
        self._silent.pop(self, None)
        if self._late is not None:
            self._late.cancel()
            self._late = None

    @property
    def _rests(self) -> bool:
        """Whether nothing is being answered."""
        return self.cycle is None or self.cycle.response_complete

    @property
    def _owes(self) -> bool:
        """Whether the next bytes are the client's."""
        reads = self._refused or self._rests or (self.cycle.more_body and not self.flow.read_paused)
        return self not in self._taking and reads

    def _too_late(self) -> None:
        self._late = None
        if self._owes or self._refused:
            self.transport.close()
        else:  # the next request has begun while an answer is made or taken, or it is ours to read on
            self._expect(HEAD_SECONDS)

    def connection_lost(self, exc: Exception | None) -> None:
        """As uvicorn's."""
        self._expect_nothing()
        self._leave()
        super().connection_lost(exc)
