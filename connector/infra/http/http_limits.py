"""uvicorn's HTTP protocol with limits on heads, pipelined requests, silence and connections.

The limits hold before a client is authenticated: a head has a maximum size, and a silent connection is closed.
At the connection limit, the connection closes whose client has been silent for the longest: honest clients send
something soon, and many of them may share an address. The size of a body is limited by its reader; here, the number of
pieces is limited, as each costs more than its bytes. Use it as `uvicorn.Config(http=LimitedHttpProtocol)`, for TLS
with `tls_server.TlsServer`. Depends on uvicorn's internals, whose version range is pinned.
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
_FRAMING = 4  # bytes of a field in addition to its name and value: a colon, a space, an end of line
FIELDS_MAX = 256  # of a head, and of the trailers of a body: an empty field is 4 bytes on the wire and 150 in memory
HEAD_SECONDS = 30.0  # also how long a connection may be idle
WAITING_MAX = 32  # pipelined requests; few clients send any
DESCRIPTORS_MAX = 65_536
OUR_DESCRIPTORS = 256  # reserved for files, workers and the database
LARGE = 2**22  # bytes of a block: more than a batch that is sent, whose memory is reused
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of mallopt
# In the middle of a body or response: its reader or sender has reported a problem by then.
SILENCE_SECONDS = 180.0
# Of a request that is refused early, this much is read and dropped: closing while the client still sends would reset
# the connection and lose our response.
REST, REST_SECONDS = 8 * 2**20, 5.0


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

    _pieces = _body = 0  # of the body that is arriving: its pieces and their bytes
    _head_without_offer = b""  # the head of a request that offered an upgrade, without the offer
    _problem = ""  # what is wrong with the request, if the parser does not know it
    _refused = False  # the current request is refused: its rest is dropped
    _pending_bytes = 0  # bytes since the last complete part of a request, or since the refusal
    _timer: asyncio.TimerHandle | None = None
    _handshake: socket.socket | None = None  # the socket while its TLS handshake runs

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        # In addition to uvicorn's set of connections: those whose client must send next, longest wait first.
        self._silent: dict[LimitedHttpProtocol, None] = vars(server_state).setdefault("silent", {})
        # Those whose client must read: since when (in order) how many bytes are unsent.
        self._receiving: dict[LimitedHttpProtocol, tuple[float, int]] = vars(server_state).setdefault("taking", {})

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
        entered = self in self.connections
        super().connection_made(transport)
        self._handshake = None
        if entered or self._take_place():
            self._start_timer(HEAD_SECONDS)
        else:
            self.transport.abort()

    def _take_place(self) -> bool:
        self.connections.add(self)
        if len(self.connections) > connections_max() and not self._make_room():
            self._give_up_place()
            return False
        self._silent[self] = None
        return True

    def _give_up_place(self) -> None:
        self.connections.discard(self)
        self._silent.pop(self, None)
        self._receiving.pop(self, None)

    def _make_room(self) -> bool:
        """Close a silent or stalled connection; False if it finds none."""
        first = self._find_silent() or self._find_stalled()
        if first is None:
            return False
        first._give_up_place()
        first._abort()
        return True

    def _find_silent(self) -> LimitedHttpProtocol | None:
        while self._silent:
            first = next(iter(self._silent))
            del self._silent[first]
            if left := first._unsent_bytes:  # the client must still read the response
                self._receiving[first] = self.loop.time(), left
            elif first._awaits_client:
                return first
        return None

    def _find_stalled(self) -> LimitedHttpProtocol | None:
        """A connection whose client has read nothing of its response for too long."""
        now = self.loop.time()
        while self._receiving:
            first, (since, before) = next(iter(self._receiving.items()))
            if now - since < SILENCE_SECONDS:
                return None
            if (left := first._unsent_bytes) >= before:
                return first
            del self._receiving[first]
            if left:
                self._receiving[first] = now, left
            else:
                first._note_awaited()
        return None

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

    def _abort(self) -> None:
        """Close at once, without waiting for the client."""
        if self._handshake is None:
            self.transport.abort()
            return
        with suppress(OSError):  # the client has left
            self._handshake.shutdown(socket.SHUT_RDWR)  # this ends the handshake

    def shutdown(self) -> None:
        """As uvicorn's, but also end a running handshake or a refused request."""
        if self._handshake is not None:
            self._abort()
        elif self._refused:
            self.transport.close()
        else:
            super().shutdown()

    def data_received(self, data: bytes) -> None:
        """As uvicorn's, but refuse a head over the limit: the parser would keep all of it."""
        self._pending_bytes += len(data)
        if self._refused:
            if self._pending_bytes > REST:
                self.transport.close()
            return
        self._parse(data)
        if len(self.pipeline) > WAITING_MAX:  # each response lets in more requests than it takes out
            self.pipeline.clear()
            self.transport.close()
        if self._refused or self.transport.is_closing():
            return
        if self._pending_bytes > HEAD_MAX:
            self.send_400_response(_HEAD_TOO_LARGE)
        elif self._is_idle and self._timer is None:  # the bytes did not begin a request
            self._start_timer(HEAD_SECONDS)

    def _parse(self, data: bytes) -> None:
        """As uvicorn's, but ignore an offer to upgrade to another protocol.

        The body and what follows are then plain HTTP (RFC 9110, 7.8). The parser would skip the body and read it as
        further requests, which is request smuggling. So the head is parsed again without the offer.
        """
        self._unset_keepalive_if_required()
        left: list[bytes | memoryview] = [memoryview(data)]
        while left:
            part = left.pop()
            try:
                self.parser.feed_data(part)
            except HttpParserUpgrade as offer:
                left += part[offer.args[0] :], self._head_without_offer
                self._head_without_offer = b""
                self.parser = HttpRequestParser(self)  # the old parser refuses more data
                self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
            except HttpParserError:
                self._head_without_offer = b""
                if not self.transport.is_closing():
                    self.logger.warning(_INVALID)
                    self.send_400_response(_INVALID)
                return

    def send_400_response(self, msg: str) -> None:
        """As uvicorn's, but read and drop some of the request before closing, so that the client gets the response."""
        if self.transport.is_closing():
            return
        body = (self._problem or msg).encode("ascii")
        fields = [
            *self.server_state.default_headers,
            (b"content-type", b"text/plain; charset=utf-8"),
            (b"content-length", b"%d" % len(body)),
            (b"connection", b"close"),
        ]
        lines = [b"%s: %s\r\n" % field for field in fields]
        self.transport.write(b"".join((STATUS_LINE[400], *lines, b"\r\n", body)))
        if self.transport.can_write_eof():  # TLS cannot close one direction
            self.transport.write_eof()
        self._refused, self._pending_bytes = True, 0
        self._notify_handler()
        self.flow.resume_reading()
        self._start_timer(REST_SECONDS)

    def _notify_handler(self) -> None:
        """Tell the handler of the latest request that its client is gone."""
        if self.cycle is not None and not self.cycle.response_complete:
            self.cycle.disconnected = True
            self.cycle.message_event.set()

    def on_message_begin(self) -> None:
        """As uvicorn's, but limit pipelined requests, as a packet can hold thousands. Our error stops the parser."""
        if len(self.pipeline) > WAITING_MAX:
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
            self._head_without_offer = self._remove_upgrade()
            return
        self._pending_bytes = self._pieces = self._body = 0
        self._start_timer(SILENCE_SECONDS)
        self.scope["headers"] = merge_repeated_fields(self.headers)
        super().on_headers_complete()

    def _remove_upgrade(self) -> bytes:
        """The head of the current request without its offer to upgrade. Raises: ValueError for CONNECT."""
        method = self.parser.get_method()
        if method == b"CONNECT":
            raise ValueError("expected a request for this server, got CONNECT")
        lines = [b"%s %s HTTP/%s" % (method, self.url, self.parser.get_http_version().encode())]
        for name, value in self.headers:
            kept = value
            if name == b"connection":
                kept = b",".join(word for word in value.split(b",") if word.strip().lower() != b"upgrade")
            if name != b"upgrade":
                lines.append(b"%s: %s" % (name, kept))
        return b"\r\n".join((*lines, b"", b""))

    def on_body(self, body: bytes) -> None:
        """As uvicorn's, but refuse a body in too many small pieces. Our error stops the parser; the response is 400."""
        self._pending_bytes = 0
        self._pieces, self._body = self._pieces + 1, self._body + len(body)
        if chunk_limit.is_exceeded(self._pieces, self._body):
            self._problem = (
                f"Expected pieces of {chunk_limit.LEAST} bytes on average in a body of more than {chunk_limit.ANY}."
            )
            raise ValueError(self._problem)
        self._start_timer(SILENCE_SECONDS)
        super().on_body(body)

    def on_message_complete(self) -> None:
        """As uvicorn's, but stop the timer: the response is due now."""
        if self._head_without_offer:
            return
        self._pending_bytes = 0
        self._stop_timer()
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """As uvicorn's, but note that the client must send next."""
        super().on_response_complete()
        self._note_awaited()

    def pause_writing(self) -> None:
        """As uvicorn's, but note that the client must read next."""
        super().pause_writing()
        self._silent.pop(self, None)
        self._receiving.pop(self, None)  # re-inserted, to keep the order of times
        self._receiving[self] = self.loop.time(), self._unsent_bytes

    def resume_writing(self) -> None:
        """As uvicorn's, but note that the client has read enough."""
        super().resume_writing()
        self._receiving.pop(self, None)
        self._note_awaited()

    def _start_timer(self, seconds: float) -> None:
        """Close the connection unless the client sends more within that time."""
        self._stop_timer()
        # A client that reads nothing stays on the list, whatever else it sends.
        if self in self._receiving and not self._unsent_bytes:
            del self._receiving[self]
        self._note_awaited()
        self._timer = self.loop.call_later(seconds, self._on_timeout)

    def _note_awaited(self) -> None:
        """If the client must send next, put it last on the list of silent clients."""
        self._silent.pop(self, None)
        if self._awaits_client:
            self._silent[self] = None

    def _stop_timer(self) -> None:
        self._silent.pop(self, None)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    @property
    def _is_idle(self) -> bool:
        """Whether no request is being answered."""
        return self.cycle is None or self.cycle.response_complete

    @property
    def _awaits_client(self) -> bool:
        """Whether the client must send the next bytes."""
        reads = self._refused or self._is_idle or (self.cycle.more_body and not self.flow.read_paused)
        return self not in self._receiving and reads

    def _on_timeout(self) -> None:
        self._timer = None
        if self._awaits_client or self._refused:
            self.transport.close()
        else:  # a response is being made or read meanwhile, or we have paused reading
            self._start_timer(HEAD_SECONDS)

    def connection_lost(self, exc: Exception | None) -> None:
        """As uvicorn's, but give up the connection's place."""
        self._stop_timer()
        self._give_up_place()
        super().connection_lost(exc)
