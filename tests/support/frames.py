"""A client of HTTP/2 and gRPC at the level of frames: it says what it is told to, and judges every frame that comes.

Nothing of ours and nothing of `h2` is in it: frames are those of `hyperframe`, windows and sizes are counted here as
RFC 9113 tells a reader to. It reads when it is asked to, so a test decides who is stuck.
"""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
from hpack import Decoder, Encoder
from hyperframe.frame import (
    DataFrame,
    Frame,
    GoAwayFrame,
    HeadersFrame,
    PingFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)  # fmt: skip

from connector.dataplane.flight.http2.http2_connection import Call, Connection, Connections
from connector.dataplane.flight.listener import Front, Listen
from connector.dataplane.flight.listener import _context as front_context
from connector.infra.http.tls_server import HandshakeListener
from tests.support.flying import reached

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
SERVICE = "/arrow.flight.protocol.FlightService/"
WINDOW, FRAME = 65_535, 16_384  # of whoever has said nothing else (RFC 9113, section 6.5.2)
HUGE = 2**31 - 1
INITIAL_WINDOW, MAX_FRAME, TABLE_SIZE = (
    SettingsFrame.INITIAL_WINDOW_SIZE, SettingsFrame.MAX_FRAME_SIZE, SettingsFrame.HEADER_TABLE_SIZE,
)  # fmt: skip
_PATIENCE = 120.0  # seconds, for what a busy machine does late


@dataclass
class Answer:
    """What has come for one stream."""

    window: int
    heads: list[dict[str, str]] = field(default_factory=list)
    data: bytearray = field(default_factory=bytearray)
    ended: bool = False
    reset: int | None = None

    @property
    def trailers(self) -> dict[str, str]:
        """The last head: of an answer that is none, the only one."""
        return self.heads[-1] if self.heads else {}

    @property
    def status(self) -> str:
        return self.trailers.get("grpc-status", "")

    @property
    def over(self) -> bool:
        return self.ended or self.reset is not None

    def messages(self) -> list[bytes]:
        """The messages of gRPC, all of them whole."""
        found, at = [], 0
        while at < len(self.data):
            flag, size = self.data[at], int.from_bytes(self.data[at + 1 : at + 5], "big")
            assert flag == 0
            assert len(self.data) >= at + 5 + size, "a message that is cut off"
            found.append(bytes(self.data[at + 5 : at + 5 + size]))
            at += 5 + size
        return found


class Wire:
    """One connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader, self.writer = reader, writer
        self._encoder, self._decoder = Encoder(), Decoder()
        self._offered: deque[Mapping[int, int]] = deque()  # settings that are not acknowledged
        self._next = 1
        self.window = WINDOW
        self.initial, self.frame_max = WINDOW, FRAME
        self.answers: dict[int, Answer] = defaultdict(lambda: Answer(self.initial))
        self.pongs: list[bytes] = []
        self.acks = 0
        self.goaway: GoAwayFrame | None = None
        self.largest = 0  # of all frames of data
        self.order: list[int] = []  # streams, as their data came

    # What it says.

    def say(self, *frames: Frame | bytes) -> None:
        self.writer.write(b"".join(one if isinstance(one, bytes) else one.serialize() for one in frames))

    def settle(self, **settings: int) -> None:
        """Settings, by their names in this module."""
        told = {globals()[name]: value for name, value in settings.items()}
        self._offered.append(told)
        self.say(SettingsFrame(0, settings=told))

    def ping(self, word: bytes = b"\0" * 8) -> None:
        self.say(PingFrame(0, opaque_data=word))

    def head(self, method: str, *, flags: Sequence[str] = ("END_HEADERS",), headers: Iterable[Any] = ()) -> Frame:
        """The head of a call, on a stream of its own; of several frames where it is large."""
        number, self._next = self._next, self._next + 2
        block = self._encoder.encode(
            [(":method", "POST"), (":scheme", "http"), (":path", SERVICE + method), (":authority", "here"),
             ("content-type", "application/grpc"), ("te", "trailers"), *headers]
        )  # fmt: skip
        self.answers[number] = Answer(self.initial)
        return HeadersFrame(number, data=block, flags=list(flags))

    def ask(self, method: str, message: bytes, *, ticket: str = "", more: Iterable[Any] = ()) -> int:
        """A call; the number of its stream."""
        shown = [("authorization", f"Bearer {ticket}")] if ticket else []
        head = self.head(method, headers=[*shown, *more])
        self.say(head, DataFrame(head.stream_id, data=enveloped(message), flags=["END_STREAM"]))
        return head.stream_id

    def grant(self, size: int, number: int = 0) -> None:
        """Room for data: of a stream, or of the connection."""
        self.say(WindowUpdateFrame(number, window_increment=size))
        if number:
            self.answers[number].window += size
        else:
            self.window += size

    def reset(self, number: int) -> None:
        self.say(RstStreamFrame(number, error_code=8))

    # What it hears.

    async def frame(self) -> Frame | None:
        """The next one, judged; None at the end."""
        try:
            async with asyncio.timeout(_PATIENCE):
                head = await self._reader.readexactly(9)
                found, size = Frame.parse_frame_header(memoryview(head))
                assert size <= self.frame_max, f"a frame of {size} bytes, where {self.frame_max} are allowed"
                found.parse_body(memoryview(await self._reader.readexactly(size)))
        except (asyncio.IncompleteReadError, ConnectionError, ssl.SSLError):
            return None
        self._heard(found)
        return found

    def _heard(self, found: Frame) -> None:
        answer = self.answers[found.stream_id]
        if isinstance(found, DataFrame):
            size = found.flow_controlled_length
            assert not answer.ended, "data after the end"
            assert answer.heads, "data before a head"
            assert size <= min(self.window, answer.window), f"{size} bytes, room for {self.window}, {answer.window}"
            self.window -= size
            answer.window -= size
            answer.data += found.data
            self.largest = max(self.largest, size)
            self.order.append(found.stream_id)
        elif isinstance(found, HeadersFrame):
            assert "END_HEADERS" in found.flags
            answer.heads.append(dict(self._decoder.decode(found.data)))
        elif isinstance(found, RstStreamFrame):
            answer.reset = found.error_code
        elif isinstance(found, PingFrame) and "ACK" in found.flags:
            self.pongs.append(found.opaque_data)
        elif isinstance(found, SettingsFrame) and "ACK" in found.flags:
            self._accepted()
        elif isinstance(found, SettingsFrame):
            self.say(SettingsFrame(0, flags=["ACK"]))
        elif isinstance(found, GoAwayFrame):
            self.goaway = found
        if "END_STREAM" in found.flags:
            answer.ended = True

    def _accepted(self) -> None:
        """From its acknowledgement on a setting holds."""
        self.acks += 1
        told = self._offered.popleft() if self._offered else {}  # none of those that were said as bytes
        self.frame_max = told.get(MAX_FRAME, self.frame_max)
        if (initial := told.get(INITIAL_WINDOW)) is not None:
            for answer in self.answers.values():
                answer.window += initial - self.initial
            self.initial = initial

    async def until(self, done: Callable[[], Any], *, each: Callable[[Frame], object] = lambda _: None) -> None:
        """Read until that is true; `each` is shown every frame. EOFError where the connection ends before."""
        while not done():
            found = await self.frame()
            if found is None:
                raise EOFError(f"the connection ended: {self.goaway}")
            each(found)

    async def whole(self, *numbers: int, generous: bool = True) -> None:
        """Read these calls to their ends, with room given back for all that comes."""

        def give(found: Frame) -> None:
            if generous and isinstance(found, DataFrame) and found.flow_controlled_length:
                self.grant(found.flow_controlled_length)
                if not self.answers[found.stream_id].over:
                    self.grant(found.flow_controlled_length, found.stream_id)

        await self.until(lambda: all(self.answers[one].over for one in numbers), each=give)

    async def end(self) -> GoAwayFrame | None:
        """Read until the other side has closed; what it said of that."""
        while await self.frame() is not None:
            pass
        return self.goaway


@asynccontextmanager
async def wired(
    front: Front | Place, *, buffer: int = 0, protocols: Sequence[str] = ("h2",), begin: bool = True, **settings: int
) -> AsyncIterator[Wire]:
    """A connection with these settings. `buffer`: bytes that its kernel keeps for it, as few as that allows."""
    client = socket.socket()
    if buffer:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
    client.setblocking(False)
    await asyncio.get_running_loop().sock_connect(client, ("127.0.0.1", front.port))
    secure = _context(front, protocols)
    reader, writer = await asyncio.open_connection(
        sock=client, limit=2**15, ssl=secure, server_hostname="127.0.0.1" if secure else None
    )
    wire = Wire(reader, writer)
    try:
        if begin:
            wire.say(PREFACE)
            wire.settle(**settings)
            await wire.until(lambda: not wire._offered)
        yield wire
    finally:
        writer.transport.abort()


def _context(front: Front | Place, protocols: Sequence[str]) -> ssl.SSLContext | None:
    _, roots = reached(front)
    if not roots:
        return None
    context = ssl.create_default_context(cadata=roots.decode().partition("-----BEGIN PRIVATE")[0])
    if protocols:
        context.set_alpn_protocols(list(protocols))
    return context


def enveloped(message: bytes) -> bytes:
    """A message of gRPC."""
    return b"\0" + len(message).to_bytes(4, "big") + message


def arrow_of(messages: Iterable[bytes]) -> tuple[pa.Table, list[bytes]]:
    """The table that some FlightData are, and what stood beside its batches."""
    stream, beside = bytearray(), []
    for message in messages:
        fields = dict(_fields(message))
        header, body = fields.get(2, b""), fields.get(1000, b"")
        padding = -len(header) % 8
        stream += b"\xff\xff\xff\xff" + (len(header) + padding).to_bytes(4, "little") + header + bytes(padding) + body
        if 3 in fields:
            beside.append(bytes(fields[3]))
    return pa.ipc.open_stream(bytes(stream)).read_all(), beside


def _fields(message: bytes) -> Iterator[tuple[int, bytes]]:
    """The fields of a FlightData, which are all bytes."""
    at = 0
    while at < len(message):
        key, at = _number(message, at)
        size, at = _number(message, at)
        assert key & 7 == 2
        yield key >> 3, message[at : at + size]
        at += size


def _number(message: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        value |= (message[at] & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if message[at - 1] < 0x80:
            return value, at


@dataclass(frozen=True)
class Place:
    """Where to connect to, as of a `Front`."""

    port: int
    _listen: Listen
    connections: Connections


@asynccontextmanager
async def answering(
    answer: Callable[[Call], Coroutine[Any, Any, None]], *, certificate: str = "", most: int = 16
) -> AsyncIterator[Place]:
    """Connections as the front makes them, whose calls are answered by a test."""
    listening = socket.create_server(("127.0.0.1", 0))
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2**16)  # else megabytes that nobody reads have gone
    connections = Connections(most)
    listen = Listen("127.0.0.1", listening.getsockname()[1], certificate)
    door = HandshakeListener(listening, lambda: Connection(answer, connections), front_context(listen))
    try:
        yield Place(listen.port, listen, connections)
    finally:
        door.close()
        listening.close()
        for one in connections:
            one.hang_up()
        await door.wait_closed()
        await connections.none.wait()
