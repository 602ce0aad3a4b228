"""uvicorn's HTTP protocol with limits on heads, pipelined requests, time and connections.

The limits hold before a client is authenticated. A head has a maximum size and must arrive in time; a body or an answer
must make progress. At the connection limit, the connection closes whose client has been silent for the longest: honest
clients send something soon, and many of them may share an address. The size of a body is limited by its reader; the
number of requests a second is left to the proxy. Use it as `uvicorn.Config(http=LimitedHttpProtocol)`, for TLS with
`tls_server.TlsServer`. Depends on uvicorn's internals, whose version range is pinned.
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

from httptools import HttpParserError, HttpParserUpgrade, HttpRequestParser
from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

HEAD_MAX = 2**18  # bytes: the names of thousands of columns
_HEAD_TOO_LARGE = f"Expected a head of at most {HEAD_MAX} bytes."
_INVALID = "Invalid HTTP request received."
_FRAMING = 4  # bytes of a field in addition to its name and value: a colon, a space, an end of line
FIELDS_MAX = 256  # of a head, and of the trailers of a body: an empty field is 4 bytes on the wire and 150 in memory
HEAD_SECONDS = 30.0  # also for a TLS handshake, and how long a connection may be idle
SILENCE_SECONDS = 180.0  # in the middle of a body or response: its reader or sender has reported a problem by then
REFUSED_SECONDS = 5.0  # a refused client may read our answer; closing while it sends would reset the connection
WAITING_MAX = 32  # pipelined requests; few clients send any
DESCRIPTORS_MAX = 65_536
OUR_DESCRIPTORS = 256  # reserved for files, workers and the database
LARGE = 2**22  # bytes of a block: more than a batch that is sent, whose memory is reused
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of mallopt


def raise_descriptors() -> None:
    """Raise this process's soft limit on open files to the hard limit, at most `DESCRIPTORS_MAX`."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, DESCRIPTORS_MAX)), hard))


def return_large_blocks() -> None:
    """Make glibc return large freed blocks, such as bodies, to the system.

    By default it does so only for the first one: later blocks of that size come from its heaps, which never shrink.
    Other C libraries have no such setting.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_MMAP_THRESHOLD, LARGE)
        mallopt(
            _TRIM_THRESHOLD, 2 * LARGE
        )  # the value glibc would have learnt: less than this stays at the end of each heap


def connections_max() -> int:
    """The connections that a listener may have at once. Three listeners (public, console, Flight) share the descriptors
    that the process itself does not need."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(1, (soft - OUR_DESCRIPTORS) // 3)


def merge_repeated_fields(fields: Sequence[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """The fields of a head with repeated fields joined to one list (RFC 9110, 5.3), so that all readers see the same
    value. A repeated field that is no list, such as Authorization, becomes invalid."""
    merged: dict[bytes, bytes] = {}
    for name, value in fields:
        before = merged.get(name)
        merged[name] = value if before is None else before + (b"; " if name == b"cookie" else b", ") + value
    return list(merged.items())


class LimitedHttpProtocol(HttpToolsProtocol):
    """uvicorn's protocol on httptools, with a limit on everything that a client can send or withhold."""

    _handshake: socket.socket | None = None  # the socket while its TLS handshake runs
    _offer: bytes = b""  # the head of a request that offered another protocol, without the offer
    _problem = ""  # what is wrong with the request, if the parser does not know it
    _refused = False  # the current request is refused: its rest is dropped
    _pending_bytes = 0  # bytes since the last complete part of a request
    _timer: asyncio.TimerHandle | None = None

    @property
    def _silent(self) -> dict[LimitedHttpProtocol, None]:
        """The connections of this listener whose client may have to send next, longest wait first."""
        found: dict[LimitedHttpProtocol, None] = vars(self.server_state).setdefault("silent", {})
        return found

    def begin_handshake(self, client: socket.socket) -> bool:
        """Count the connection before its TLS handshake; False if there is no room. Call `end_handshake` afterwards."""
        self._handshake = client
        return self._take_place()

    def end_handshake(self) -> None:
        """Note that the handshake has ended, with or without success."""
        self._handshake = None
        if self.scheme is None:  # the handshake failed
            self._give_up_place()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """As uvicorn's, but close the connection at once if there is no room for it."""
        has_place = self in self.connections or self._take_place()
        super().connection_made(transport)
        self._handshake = None
        if has_place:
            self._start_timer(HEAD_SECONDS)
        else:
            self.transport.abort()

    def _take_place(self) -> bool:
        if len(self.connections) >= connections_max() and not self._make_room():
            return False
        self.connections.add(self)
        self._silent[self] = None
        return True

    def _give_up_place(self) -> None:
        self.connections.discard(self)
        self._silent.pop(self, None)

    def _make_room(self) -> bool:
        """Close the connection whose client has been silent for the longest; False if none is silent."""
        while self._silent:
            oldest = next(iter(self._silent))
            del self._silent[oldest]
            if oldest._awaits_client:
                oldest._give_up_place()
                oldest._abort()
                return True
        return False

    def _abort(self) -> None:
        """Close at once, without waiting for the client."""
        if self._handshake is None:
            self.transport.abort()
            return
        with suppress(OSError):  # the client has left
            self._handshake.shutdown(socket.SHUT_RDWR)  # this ends the handshake

    def shutdown(self) -> None:
        """As uvicorn's, but also end a handshake or a refused request."""
        if self._handshake is not None or self._refused:
            self._abort()
        else:
            super().shutdown()

    def data_received(self, data: bytes) -> None:
        """As uvicorn's, but refuse a head over the limit: the parser would keep all of it."""
        if self._refused:
            return
        self._unset_keepalive_if_required()
        self._pending_bytes += len(data)
        self._parse(data)
        if self._refused or self.transport.is_closing():
            return
        if self._pending_bytes > HEAD_MAX:
            self.send_400_response(_HEAD_TOO_LARGE)
        elif not self._pending_bytes and not self._unsent_bytes:  # a part of a body came
            self._start_timer(SILENCE_SECONDS)

    def _parse(self, data: bytes) -> None:
        """As uvicorn's, but ignore an offer to upgrade to another protocol.

        The body and what follows are then plain HTTP (RFC 9110, 7.8). The parser would skip the body and read it as
        further requests, which is request smuggling. So the head is parsed again without the offer.
        """
        left = [data]
        while left:
            part = left.pop()
            try:
                self.parser.feed_data(part)
            except HttpParserUpgrade as offer:
                left += part[offer.args[0] :], self._offer
                self._offer = b""
                self.parser = HttpRequestParser(self)  # the old parser refuses more data
                self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
            except HttpParserError:
                self.send_400_response(self._problem or _INVALID)
                return

    def send_400_response(self, msg: str) -> None:
        """As uvicorn's, but drop what still comes before closing, so that the client gets the response."""
        if self.transport.is_closing():
            return
        fields = [
            *self.server_state.default_headers,
            (b"content-type", b"text/plain; charset=utf-8"),
            (b"content-length", b"%d" % len(msg)),
            (b"connection", b"close"),
        ]
        lines = [b"%s: %s\r\n" % field for field in fields]
        self.transport.write(b"".join((STATUS_LINE[400], *lines, b"\r\n", msg.encode("ascii"))))
        if self.transport.can_write_eof():  # TLS cannot close one direction
            self.transport.write_eof()
        self._refused = True
        self._notify_handler()
        self.flow.resume_reading()
        self._start_timer(REFUSED_SECONDS)

    def _notify_handler(self) -> None:
        """Tell the handler of the latest request that its client is gone."""
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True
            self.cycle.message_event.set()

    def on_message_begin(self) -> None:
        """As uvicorn's, but limit pipelined requests, as a packet can hold thousands. Our error stops the parser."""
        if len(self.pipeline) >= WAITING_MAX:
            self.transport.close()
            raise ValueError(f"expected at most {WAITING_MAX} pipelined requests, got more")
        super().on_message_begin()
        self._start_timer(HEAD_SECONDS)

    def on_header(self, name: bytes, value: bytes) -> None:
        """As uvicorn's, but limit the number of fields. Our error stops the parser, and the response is 400."""
        if len(self.headers) >= FIELDS_MAX:
            raise ValueError(f"expected at most {FIELDS_MAX} fields, got more")
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        """As uvicorn's, but merge repeated fields and check the size of the head.

        Trailers go to the same list later; the application's copy has none of them. A head can arrive too fast for
        `data_received` to measure it, so it is measured here. Our error stops the parser.
        """
        if len(self.url) + sum(len(name) + len(value) + _FRAMING for name, value in self.headers) > HEAD_MAX:
            self._problem = _HEAD_TOO_LARGE
            raise ValueError(self._problem)
        if self.parser.should_upgrade():
            self._offer = self._head_without_offer()
            return
        self._pending_bytes = 0
        self._start_timer(SILENCE_SECONDS)
        self.scope["headers"] = merge_repeated_fields(self.headers)
        super().on_headers_complete()

    def _head_without_offer(self) -> bytes:
        """The head of the current request without its offer to upgrade. Raises: ValueError for CONNECT."""
        method = self.parser.get_method()
        if method == b"CONNECT":
            raise ValueError("expected a request for this server, got CONNECT")
        lines = [b"%s: %s\r\n" % field for field in self.headers if field[0] != b"upgrade"]
        return b"%s %s HTTP/%s\r\n%s\r\n" % (
            method, self.url, self.parser.get_http_version().encode(), b"".join(lines),
        )  # fmt: skip

    def on_body(self, body: bytes) -> None:
        """As uvicorn's, but note that a part of the request is complete."""
        self._pending_bytes = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """As uvicorn's, but note that the client need not send more."""
        if not self._offer:
            self._pending_bytes = 0
            self._silent.pop(self, None)
            super().on_message_complete()

    def on_response_complete(self) -> None:
        """As uvicorn's, but note that the client must read the rest, or send next."""
        super().on_response_complete()
        self._start_timer(SILENCE_SECONDS if self._unsent_bytes else HEAD_SECONDS)

    def pause_writing(self) -> None:
        """As uvicorn's, but note that the client must read next."""
        super().pause_writing()
        self._start_timer(SILENCE_SECONDS)

    def resume_writing(self) -> None:
        """As uvicorn's, but note that the client has read."""
        super().resume_writing()
        self._start_timer(SILENCE_SECONDS)

    @property
    def _unsent_bytes(self) -> int:
        """Bytes of responses that the client's kernel has not taken yet; with TLS, an estimate."""
        if self._handshake is not None:
            return 0
        if (left := int(self.transport.get_write_buffer_size())) or self.scheme != "https":
            return left
        # The event loop does not show its buffer of encrypted bytes. While it has some, so has our kernel: ask that.
        waiting = array("i", [0])
        with suppress(OSError, ValueError):  # the client has left
            ioctl(self.transport.get_extra_info("socket").fileno(), TIOCOUTQ, waiting)
        return waiting[0]

    @property
    def _is_idle(self) -> bool:
        """Whether no request is being answered."""
        return self.cycle is None or self.cycle.response_complete

    @property
    def _awaits_client(self) -> bool:
        """Whether the client must send the next bytes."""
        if self._unsent_bytes:
            return False
        return self._refused or self._is_idle or (self.cycle.more_body and not self.flow.read_paused)

    def _start_timer(self, seconds: float) -> None:
        """Close the connection unless its client sends or reads more within that time."""
        if self._timer is not None:
            self._timer.cancel()
        self._silent.pop(self, None)
        self._silent[self] = None
        self._timer = self.loop.call_later(seconds, self._on_timeout, self._unsent_bytes)

    def _on_timeout(self, before: int) -> None:
        self._timer = None
        left = self._unsent_bytes
        # While nothing is written, fewer bytes are left if the client reads.
        nothing_written = self._is_idle or self.flow.write_paused or not self.cycle.response_started
        if left and nothing_written and left >= before:
            self.transport.abort()
        elif self._awaits_client or self._refused:
            self._silent[self] = None  # over TLS it lasts until the client agrees, or is needed by another one
            self.transport.close()
        else:
            self._start_timer(SILENCE_SECONDS)

    def connection_lost(self, exc: Exception | None) -> None:
        """As uvicorn's, but give up the connection's place."""
        if self._timer is not None:
            self._timer.cancel()
        self._give_up_place()
        super().connection_lost(exc)
