"""Flight's HTTP/2 before a client that decides each frame: windows, several calls at once, abuse, ends. What it gets is
what pyarrow's client gets."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import random
import socket
import struct
import time
import tracemalloc
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pytest
import pytest_asyncio
from hyperframe.frame import (
    ContinuationFrame,
    DataFrame,
    Frame,
    GoAwayFrame,
    HeadersFrame,
    PingFrame,
    PriorityFrame,
    RstStreamFrame,
    WindowUpdateFrame,
)  # fmt: skip

from connector.dataplane.cache.stream_cache import PreparedStreams
from connector.dataplane.flight import flightsql
from connector.dataplane.flight import listener as front_of
from connector.dataplane.flight.http2 import frame_writer, http2_connection, protobuf
from connector.dataplane.flight.http2.stream_limits import States
from connector.dataplane.flight.listener import Front
from connector.infra.http import tls_server
from tests.support import flying, frames, provider
from tests.support.certificates import self_signed
from tests.support.flying import flyer
from tests.support.frames import HUGE, PREFACE, Wire, arrow_of, enveloped, wired
from tests.support.provider import Provider, settled
from tests.support.waiting import until

pytestmark = pytest.mark.asyncio(loop_scope="module")

SQL = 'SELECT id, name, x FROM "clinic".numbers ORDER BY id'
SMALL = 'SELECT id, name FROM "clinic".numbers WHERE id < 40 ORDER BY id'
BATCHES = 12  # of the file, of a megabyte each


@dataclass(frozen=True)
class Asked:
    """One read: the message of its DoGet, what it gives, and the bearer's ticket."""

    ticket: str
    message: bytes
    messages: Sequence[bytes]  # without the last, which holds an end record
    rows: pa.Table


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Provider]:
    """No room for copies: what is sent from files is the owner's."""
    prepared = PreparedStreams(tmp_path_factory.mktemp("streams"), quota=0)
    async with provider.running(tmp_path_factory.mktemp("provider"), rows=20_000, prepared=prepared) as started:
        yield started


@pytest.fixture(scope="module")
def pem(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(self_signed(tmp_path_factory.mktemp("owner") / "owner.pem"))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def plain(running: Provider) -> AsyncIterator[Front]:
    async with flying.flying(running) as started:
        yield started


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def secure(running: Provider, pem: str) -> AsyncIterator[Front]:
    async with flying.flying(running, certificate=pem) as started:
        yield started


@pytest.fixture(autouse=True)
def _short_goodbyes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http2_connection, "_PARTING_SECONDS", 0.1)


@pytest.fixture(params=["plain", "tls"])
def front(request: pytest.FixtureRequest, plain: Front, secure: Front) -> Front:
    return plain if request.param == "plain" else secure


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def reads(running: Provider, plain: Front, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Asked]:
    """A dataset from its file, one from the engine, and a small answer: with what pyarrow's client gets."""
    path = tmp_path_factory.mktemp("file") / "t.arrow"
    dice = random.Random(2)
    batches = [pa.record_batch({"id": [at], "c": [dice.randbytes(2**20)]}) for at in range(BATCHES)]
    with pa.ipc.new_file(path, batches[0].schema) as writer:
        for batch in batches:
            writer.write_batch(batch)
    file = running.ticket(await running.agree(name="file", path=path, kind="arrow_ipc"))
    numbers = running.ticket(await running.agree())
    return {
        "file": await asked(running, plain, file, provider.OWNER, "file"),
        "memory": await asked(running, plain, numbers, sql=SQL),
        "small": await asked(running, plain, numbers, sql=SMALL),
    }


async def asked(running: Provider, front: Front, ticket: str, *path: str, **envelope: Any) -> Asked:
    def go() -> tuple[bytes, pa.Table]:
        with flyer(front, ticket) as client:
            (endpoint,) = client.info(*path, **envelope).endpoints
            table, _ = flying.whole(client.get(endpoint.ticket))  # the first pass of a file is the engine's
            return endpoint.ticket.ticket, table

    sealed, table = await asyncio.to_thread(go)
    await settled(running)
    if path:  # from then on its messages are those of the file, which stays open
        await until(lambda: running.reads.origin.prepared)
    message = b"\x0a" + _varint(len(sealed)) + sealed
    async with wired(front, INITIAL_WINDOW=HUGE, MAX_FRAME=2**24 - 1) as wire:
        wire.grant(HUGE - frames.WINDOW)
        number = wire.ask("DoGet", message, ticket=ticket)
        await wire.whole(number, generous=False)
        found = wire.answers[number].messages()
    one = Asked(ticket, message, found[:-1], table)
    same(one, wire, number)
    return one


def _varint(value: int) -> bytes:
    return bytes([value]) if value < 0x80 else bytes([value & 0x7F | 0x80]) + _varint(value >> 7)


def ask(wire: Wire, one: Asked) -> int:
    return wire.ask("DoGet", one.message, ticket=one.ticket)


def same(one: Asked, wire: Wire, number: int) -> None:
    """What came is what pyarrow gets, byte for byte."""
    answer = wire.answers[number]
    assert answer.status == "0", answer.trailers
    found = answer.messages()
    assert [hash(message) for message in found[:-1]] == [hash(message) for message in one.messages]
    table, beside = arrow_of(found)
    assert table.equals(one.rows)
    assert b'"complete"' in beside[-1]


@asynccontextmanager
async def served_meanwhile(front: Front, one: Asked) -> AsyncIterator[list[float]]:
    """An honest client reads again and again while the block runs, and once more behind it; the seconds that this loop
    was held, each: of the processor, as a machine that stands still is nobody's flood."""
    held: list[float] = []
    done = asyncio.Event()

    async def beat() -> None:
        before = time.thread_time()
        while True:
            await asyncio.sleep(0.001)  # not at once again: that would take all that is left of the processor
            now = time.thread_time()
            held.append(now - before)
            before = now

    async def read() -> None:
        over = False
        while not over:
            over = done.is_set()
            async with wired(front) as wire:
                number = ask(wire, one)
                await wire.whole(number)
                same(one, wire, number)

    beating, reading = asyncio.ensure_future(beat()), asyncio.ensure_future(read())
    try:
        yield held
        done.set()
        await reading
    finally:
        beating.cancel()
        reading.cancel()


# 1. Flow control


@dataclass(frozen=True)
class Windows:
    """How a reader gives room: `step` bytes of each stream and of the connection when there is none, after settings at
    so many bytes."""

    step: int
    wide: int = 0  # of the connection beside that
    begin: tuple[tuple[str, int], ...] = ()
    then: tuple[tuple[int, str, int], ...] = ()  # bytes that have come, a setting, its value


async def drink(wire: Wire, number: int, how: Windows) -> None:
    answer, left = wire.answers[number], list(how.then)
    while not answer.over:
        while left and len(answer.data) >= left[0][0]:
            _, name, value = left.pop(0)
            wire.settle(**{name: value})
        if not wire._offered:
            for room, stream in ((wire.window, 0), (answer.window, number)):
                if room <= 0:
                    wire.grant(how.step - room, stream)
        assert await wire.frame() is not None


@pytest.mark.parametrize(
    ("kind", "how"),
    [
        ("small", Windows(1, begin=(("INITIAL_WINDOW", 1),))),
        ("small", Windows(100, begin=(("INITIAL_WINDOW", 0),))),
        ("memory", Windows(997, begin=(("INITIAL_WINDOW", 10),))),
        ("memory", Windows(frames.WINDOW, begin=(("INITIAL_WINDOW", HUGE), ("MAX_FRAME", 2**24 - 1)))),
        ("memory", Windows(40_000, then=((10_000, "INITIAL_WINDOW", 100), (100_000, "INITIAL_WINDOW", 200_000)))),
        ("file", Windows(20_011, begin=(("INITIAL_WINDOW", 100),))),
        ("file", Windows(2**20, begin=(("MAX_FRAME", 2**24 - 1),))),
        ("file", Windows(2**24, begin=(("MAX_FRAME", 2**24 - 1), ("INITIAL_WINDOW", HUGE)))),
        (
            "file",
            Windows(
                300_000,
                begin=(("MAX_FRAME", 2**24 - 1),),
                then=((2**20, "MAX_FRAME", 16_384), (2**21, "INITIAL_WINDOW", 0), (2**22, "MAX_FRAME", 50_000),
                      (2**22, "INITIAL_WINDOW", 2**20), (2**23, "INITIAL_WINDOW", 1)),
            ),
        ),
    ],
    ids=str,
)  # fmt: skip
async def test_whatever_a_reader_s_windows_and_frames_it_gets_the_same(
    running: Provider, front: Front, reads: dict[str, Asked], kind: str, how: Windows
) -> None:
    async with wired(front, **dict(how.begin)) as wire:
        number = ask(wire, reads[kind])
        await drink(wire, number, how)
        same(reads[kind], wire, number)
    await settled(running)


@pytest.mark.parametrize("of", ["stream", "connection"])
async def test_a_window_that_overflows_ends_what_it_is_of(
    running: Provider, front: Front, reads: dict[str, Asked], of: str
) -> None:
    async with wired(front, INITIAL_WINDOW=0) as wire:
        number, other = ask(wire, reads["file"]), ask(wire, reads["small"])
        await wire.until(lambda: wire.answers[number].heads)
        for _ in range(2):  # what the first lets through may come before the second is looked at
            wire.grant(HUGE, number if of == "stream" else 0)
        if of == "stream":
            await wire.until(lambda: wire.answers[number].reset is not None)
            assert wire.answers[number].reset == 3  # FLOW_CONTROL_ERROR
            wire.grant(HUGE, other)
            await wire.whole(other, generous=False)
            same(reads["small"], wire, other)
        else:
            goaway = await wire.end()
            assert goaway is not None
            assert goaway.error_code == 3
    await settled(running)


# 2. Several calls on one connection


async def test_calls_at_once_do_not_mix(running: Provider, front: Front, reads: dict[str, Asked]) -> None:
    async with wired(front, INITIAL_WINDOW=100_000) as wire:
        wanted = {ask(wire, reads[kind]): kind for kind in ("file", "memory", "small") * 2}
        await wire.whole(*wanted)
        for number, kind in wanted.items():
            same(reads[kind], wire, number)
        turns = sum(one != other for one, other in zip(wire.order, wire.order[1:], strict=False))
        assert turns > len(wanted)  # one after the other would be one less
    await settled(running)


@pytest.mark.parametrize("kind", ["file", "memory"])
async def test_a_call_that_is_reset_in_the_middle_of_a_frame_leaves_the_others_alone(
    running: Provider, front: Front, reads: dict[str, Asked], kind: str
) -> None:
    async with wired(front, buffer=4096, INITIAL_WINDOW=HUGE, MAX_FRAME=2**24 - 1) as wire:
        wire.grant(HUGE - frames.WINDOW)
        first, second = ask(wire, reads["file"]), ask(wire, reads[kind])
        await wire.until(lambda: wire.answers[first].data)
        third = ask(wire, reads["small"])
        await asyncio.sleep(0.2)  # its socket is full
        wire.reset(first)
        await wire.whole(second, third, generous=False)
        same(reads[kind], wire, second)
        same(reads["small"], wire, third)
        assert not wire.answers[first].ended
    await settled(running)
    assert not running.reads.live


async def test_a_call_that_is_not_read_does_not_stop_the_others(
    running: Provider, front: Front, reads: dict[str, Asked]
) -> None:
    async with wired(front, INITIAL_WINDOW=0) as wire:
        stuck = [ask(wire, reads[kind]) for kind in ("file", "memory", "file", "file")]  # there are two workers
        await wire.until(lambda: all(wire.answers[one].heads for one in stuck))
        for kind in ("small", "file", "memory"):
            number = ask(wire, reads[kind])
            wire.grant(HUGE, number)
            await drink(wire, number, Windows(10**6))
            same(reads[kind], wire, number)
        assert not any(wire.answers[one].data for one in stuck)
        for one in stuck:
            wire.reset(one)
        await settled(running)


# 3. Abuse


def settings(*told: tuple[int, int]) -> bytes:
    """A frame of settings, also of those that nobody knows."""
    body = b"".join(struct.pack("!HL", *one) for one in told)
    return len(body).to_bytes(3, "big") + b"\x04\0" + bytes(4) + body


def blocks(wire: Wire, block: bytes, *, ends: bool = True) -> Iterator[bytes]:
    """A head in as many frames as it needs, or one that goes on."""
    number, wire._next = wire._next, wire._next + 2
    pieces = [block[at : at + frames.FRAME] for at in range(0, len(block), frames.FRAME)]
    for at, piece in enumerate(pieces):
        flags = ["END_HEADERS"] if ends and at == len(pieces) - 1 else []
        kind = ContinuationFrame if at else HeadersFrame
        yield kind(number, data=piece, flags=flags).serialize()


def resets(wire: Wire, ticket: str = "") -> Iterator[bytes]:
    for _ in range(6_000):
        head = wire.head("DoGet", headers=[("authorization", f"Bearer {ticket or 'nobody'}")])
        yield head.serialize() + RstStreamFrame(head.stream_id).serialize()


def same_frames(frame: Frame | bytes, count: int = 30_000) -> Callable[[Wire], Iterator[bytes]]:
    raw = frame if isinstance(frame, bytes) else frame.serialize()
    return lambda wire: iter([raw] * count)


def bodies(wire: Wire) -> Iterator[bytes]:
    head = wire.head("DoGet", headers=[("authorization", "Bearer nobody")])
    yield head.serialize()
    yield from [DataFrame(head.stream_id).serialize()] * 30_000


def ended(kind: Any, **told: Any) -> Callable[[Wire], Iterator[bytes]]:
    """Frames for a call that was refused, behind another one."""

    def raw(wire: Wire) -> Iterator[bytes]:
        calls = [wire.head("DoGet", flags=["END_HEADERS", "END_STREAM"]) for _ in range(2)]
        yield from (one.serialize() for one in calls)
        yield from [kind(calls[0].stream_id, **told).serialize()] * 30_000

    return raw


def bomb(wire: Wire) -> Iterator[bytes]:
    """A header of 4 kB that is named four thousand times."""
    wire.say(wire.head("DoGet", headers=[("large", "x" * 4000)]))
    yield from blocks(wire, b"\xbe" * 4000)


CALM, PROTOCOL = 11, 1
FLOODS: dict[str, tuple[Callable[[Wire], Iterator[bytes]], tuple[int, ...]]] = {
    "pings": (same_frames(PingFrame(0, opaque_data=b"x" * 8)), (CALM,)),
    "settings": (same_frames(settings()), (CALM,)),
    "settings of nobody": (
        lambda wire: iter([settings(*((at * 2700 + one + 100, 1) for one in range(2700))) for at in range(12)]
                          + [settings()] * 10_000), (CALM,)),
    "settings to and fro": (same_frames(settings((1, 100), (4, 1)) + settings((1, 2**31), (4, HUGE))), (CALM,)),
    "priorities": (same_frames(PriorityFrame(1, depends_on=3)), (CALM,)),
    "frames of no known kind": (same_frames(b"\0\0\0\x77\0" + bytes(4)), (CALM,)),
    "rooms": (same_frames(WindowUpdateFrame(0, window_increment=1)), (CALM,)),
    "resets": (resets, (CALM,)),
    "empty bodies": (bodies, (CALM,)),
    "rooms of ended calls": (ended(WindowUpdateFrame, window_increment=1), (CALM,)),
    "resets of ended calls": (ended(RstStreamFrame), (CALM,)),
    "a frame of 16 MB": (lambda wire: iter([b"\xff\xff\xff\0\0\0\0\0\1", bytes(2**22)]), (6,)),
    "a head that goes on": (lambda wire: blocks(wire, b"\x90" * 4 * 2**20, ends=False), (PROTOCOL,)),
    "a head of a megabyte": (lambda wire: blocks(wire, b"\x20" * (2**20 - 16_384)), (PROTOCOL,)),
    "a head that unfolds": (bomb, (PROTOCOL, CALM)),
    "too many calls": (
        lambda wire: (wire.head("DoGet", flags=["END_HEADERS"], headers=[("authorization", "Bearer x")]).serialize()
                      for _ in range(500)), (PROTOCOL, CALM)),
    "a stream of its own": (same_frames(HeadersFrame(2, data=b"\x82", flags=["END_HEADERS"])), (PROTOCOL,)),
}  # fmt: skip


def read_of(raw: bytes) -> float:
    """The seconds that as many pings as are read at once cost here and now."""
    connection = States()
    connection.receive_data(PREFACE + settings())
    began = time.thread_time()
    connection.receive_data(raw)
    return time.thread_time() - began


@pytest.mark.parametrize("flood", FLOODS)
async def test_a_flood_ends_its_connection_and_holds_nobody(
    running: Provider, front: Front, reads: dict[str, Asked], flood: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    frames_of, codes = FLOODS[flood]
    told: list[str] = []
    monkeypatch.setattr(http2_connection, "_log", Log(told))
    async with wired(front) as wire:
        raw = b"".join(frames_of(wire))
        async with traced() as grown:
            usual = max(read_of(PingFrame(0, opaque_data=b"x" * 8).serialize() * 960) for _ in range(2))
            async with served_meanwhile(front, reads["small"]) as held:
                goaway = await pour(wire, raw)
    assert goaway is None or goaway.error_code in codes  # None: it did not come through to us
    assert grown() < 2**24
    assert len(told) <= 2
    assert max(held) < 40 * usual


async def test_a_body_that_comes_byte_by_byte_ends_its_connection(
    front: Front, reads: dict[str, Asked], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A frame costs as much as an empty frame does. The connection ends long before the time for a body is over."""
    monkeypatch.setattr(http2_connection, "_BODY_SECONDS", 600.0)
    async with wired(front) as wire, asyncio.timeout(120):
        shown = ("authorization", f"Bearer {reads['small'].ticket}")
        head = wire.head("DoGet", flags=["END_HEADERS"], headers=[shown])
        goaway = await pour(wire, head.serialize() + DataFrame(head.stream_id, data=b"\0").serialize() * 30_000)
    assert goaway is None or goaway.error_code == CALM


@asynccontextmanager
async def traced() -> AsyncIterator[Callable[[], int]]:
    """The most bytes that were held while the block ran, beside those at its begin."""
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    found = [0]
    try:
        yield lambda: found[0]
        found[0] = tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()


async def pour(wire: Wire, raw: bytes) -> GoAwayFrame | None:
    """Send all that, and read what comes of it to the end."""
    listening_to = asyncio.ensure_future(wire.end())
    try:
        for at in range(0, len(raw), 2**13):
            if not listening_to.done():
                wire.say(raw[at : at + 2**13])
                with contextlib.suppress(ConnectionError):
                    await wire.writer.drain()
        return await listening_to
    finally:
        listening_to.cancel()


class Log:
    """Who is told what."""

    def __init__(self, told: list[str]) -> None:
        self._told = told

    def info(self, text: str, **_: Any) -> None:
        self._told.append(text)

    error = exception = info


@pytest.mark.parametrize(
    ("junk", "protocols"),
    [
        (b"", ("h2",)),
        (PREFACE[:9], ("h2",)),
        (PREFACE + settings(), ("h2",)),
        (PREFACE + settings() + HeadersFrame(1, data=b"\x82").serialize(), ("h2",)),
        (b"GET / HTTP/1.1\r\nhost: here\r\n\r\n", ("h2",)),
        (b"\x16\x03\x01\xff\xff" + b"x" * 100, ("h2",)),
        (PREFACE + settings(), ()),
        (PREFACE + settings(), ("http/1.1",)),
    ],
    ids=["nothing", "half a preface", "no call", "half a head", "HTTP/1.1", "TLS again", "no ALPN", "another ALPN"],
)
async def test_whoever_does_not_ask_is_sent_away(
    front: Front, junk: bytes, protocols: Sequence[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http2_connection, "HEAD_SECONDS", 0.3)
    with contextlib.suppress(OSError):  # TLS has not come about
        async with wired(front, begin=False, protocols=protocols) as wire:
            wire.say(junk)
            await wire.end()
    await until(lambda: not list(front._connections))


async def test_a_handshake_that_does_not_end_is_ended(secure: Front, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tls_server, "HEAD_SECONDS", 0.3)
    for junk in (b"", b"\x16\x03\x01\x02\x00\x01"):
        reader, writer = await asyncio.open_connection("127.0.0.1", secure.port)
        writer.write(junk)
        assert await reader.read() == b""
        writer.close()
    await until(lambda: not list(secure._connections))


def socket_of(wire: Wire) -> Any:
    """What reads from its socket: beneath TLS, which itself reads on for 256 kB when it is told not to."""
    transport: Any = wire.writer.transport
    return transport._ssl_protocol._transport if hasattr(transport, "_ssl_protocol") else transport


@pytest.mark.parametrize("asked_for", ["pings", "calls"])
async def test_whoever_does_not_read_is_cut_off(
    front: Front, reads: dict[str, Asked], asked_for: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http2_connection, "_CALM", 10.0**9)  # else it would be for that
    monkeypatch.setattr(frame_writer, "_LEFT", 2**14)
    monkeypatch.setattr(frame_writer, "_WAITING", 2**13)
    async with wired(front, buffer=4096) as wire:
        socket_of(wire).pause_reading()
        (connection,) = (each for each in front._connections if each.rests)
        kernel = connection._transport.get_extra_info("socket")  # type: ignore[union-attr]
        kernel.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2**14)  # else megabytes go that nobody reads
        async with served_meanwhile(front, reads["small"]):
            while not connection.closes:
                for _ in range(30):
                    if asked_for == "pings":
                        wire.ping()
                    else:
                        wire.ask("DoGet", b"")
                with contextlib.suppress(ConnectionError):
                    await wire.writer.drain()
                while not connection.closes and not connection.rests:
                    await asyncio.sleep(0.001)
                await asyncio.sleep(0.001)


async def test_a_request_that_drips_or_is_too_large_is_refused_and_nothing_of_it_is_kept(
    front: Front, reads: dict[str, Asked], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http2_connection, "_BODY_SECONDS", 2.0)
    shown = ("authorization", f"Bearer {reads['small'].ticket}")
    async with wired(front) as wire:
        drips, large, nobody = (
            wire.head("DoGet", flags=["END_HEADERS"], headers=one) for one in ([shown], [shown], [])
        )  # fmt: skip
        wire.say(drips, large, nobody)
        done = lambda: all(wire.answers[one.stream_id].reset is not None for one in (drips, large, nobody))  # noqa: E731
        listening_to = asyncio.ensure_future(wire.until(done))
        while not listening_to.done():
            wire.say(DataFrame(drips.stream_id, data=b"x"))
            for one in (large, nobody):
                if not wire.answers[one.stream_id].over:
                    wire.say(*[DataFrame(one.stream_id, data=bytes(2**13))] * 4)
            await asyncio.sleep(0.01)
        await listening_to
        found = [wire.answers[one.stream_id] for one in (drips, large, nobody)]
        assert [one.status for one in found] == ["14", "3", "16"]
        assert ["body_late" in found[0].trailers["grpc-message"], found[0].reset] == [True, 0]
        assert "request_too_large" in found[1].trailers["grpc-message"]
        number = ask(wire, reads["small"])
        await wire.whole(number)
        same(reads["small"], wire, number)


async def test_ten_thousand_calls_are_answered_one_after_the_other_and_none_is_kept(
    plain: Front, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http2_connection, "_CALM", 10.0**9)  # else whoever is refused so often is sent away
    async with wired(plain) as wire:
        (connection,) = plain._connections
        for _ in range(200):
            numbers = [wire.ask("DoGet", b"") for _ in range(50)]
            await wire.whole(*numbers)
            assert {wire.answers.pop(one).status for one in numbers} == {"16"}
        assert (len(connection._calls), len(connection.outward.h2._closed_streams)) == (0, 2**10)
        assert len(connection.outward.h2.streams) <= 50


@pytest.mark.parametrize("kind", ["silent", "resting"])
async def test_where_there_are_many_connections_whoever_asks_has_a_place(
    running: Provider, reads: dict[str, Asked], kind: str
) -> None:
    async with flying.flying(running, connections=4) as front, contextlib.AsyncExitStack() as stack:
        first = [await stack.enter_async_context(wired(front, begin=kind != "silent")) for _ in range(4)]
        if kind == "resting":
            for wire in first:
                await wire.whole(wire.ask("DoGet", b""))
        for _ in range(3):
            wire = await stack.enter_async_context(wired(front))
            number = ask(wire, reads["small"])
            await wire.whole(number)
            same(reads["small"], wire, number)
        assert len(list(front._connections)) == 4
        assert await first[0].end() is None


async def test_where_everybody_reads_one_more_is_not_let_in(running: Provider, reads: dict[str, Asked]) -> None:
    async with flying.flying(running, connections=2) as front, contextlib.AsyncExitStack() as stack:
        wires = [await stack.enter_async_context(wired(front, INITIAL_WINDOW=0)) for _ in range(2)]
        numbers = [ask(wire, reads["file"]) for wire in wires]
        for wire, number in zip(wires, numbers, strict=True):
            await wire.until(lambda wire=wire, number=number: wire.answers[number].heads)
        async with wired(front, begin=False) as other:
            assert await other.end() is None
        for wire, number in zip(wires, numbers, strict=True):
            await drink(wire, number, Windows(2**20))
            same(reads["file"], wire, number)
    await settled(running)


async def test_frames_by_chance_end_a_connection_and_nothing_else(
    running: Provider, front: Front, reads: dict[str, Asked], monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    monkeypatch.setattr(http2_connection, "_log", Log(told))
    wrong: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: wrong.append(context))
    dice = random.Random(17)
    try:
        async with served_meanwhile(front, reads["small"]):
            for _ in range(40):
                async with wired(front) as wire:
                    wire.say(*(by_chance(wire, dice, reads["small"]) for _ in range(20)), b"\xff" * 2**15)
                    await wire.end()
    finally:
        asyncio.get_running_loop().set_exception_handler(None)
    assert not wrong
    assert "unforeseen" not in told
    assert len(told) <= 40
    await settled(running)


def by_chance(wire: Wire, dice: random.Random, one: Asked) -> bytes:
    head = wire.head("DoGet", headers=[("authorization", f"Bearer {one.ticket}")])
    raw = bytearray(
        dice.choice(
            [head.serialize() + DataFrame(head.stream_id, data=enveloped(one.message)).serialize(),
             settings((4, 70_000)), PingFrame(0, opaque_data=bytes(8)).serialize(),
             RstStreamFrame(head.stream_id).serialize(),
             WindowUpdateFrame(head.stream_id, window_increment=100).serialize(), dice.randbytes(20),
             GoAwayFrame(0, last_stream_id=1).serialize(), PriorityFrame(1, depends_on=3).serialize()]
        )
    )  # fmt: skip
    if dice.random() < 0.3:
        raw[dice.randrange(len(raw))] ^= 1 << dice.randrange(8)
    return bytes(raw)


ONE = b"\x0a\0"  # the smallest field of bytes


def nested(*numbers: int, raw: bytes) -> bytes:
    """A message in a field of a message, and so on, from the inside."""
    for number in numbers:
        raw = protobuf.write([(number, raw)])
    return raw


ENDPOINTS = nested(3, raw=ONE * 10_000) * 52  # of a FlightInfo
PREPARED = flightsql.pack("CommandPreparedStatementQuery", [(1, flightsql.handle("SELECT ?", []))])
LARGE = {  # of a megabyte each, and half a million fields
    "GetFlightInfo": enveloped(ONE * 500_000),
    "DoAction": enveloped(protobuf.write([(1, "CancelFlightInfo"), (2, nested(1, raw=ENDPOINTS))])),
    "DoPut": enveloped(nested(2, 1, raw=PREPARED)) + enveloped(ONE * 10_000) * 51,
}


@pytest.mark.parametrize("method", LARGE)
async def test_a_request_of_half_a_million_fields_holds_nobody(
    front: Front, reads: dict[str, Asked], method: str
) -> None:
    async with served_meanwhile(front, reads["small"]) as held, wired(front) as wire:
        head = wire.head(method, headers=[("authorization", f"Bearer {reads['small'].ticket}")])
        wire.say(head)
        for at in range(0, len(LARGE[method]), frames.FRAME):
            wire.say(DataFrame(head.stream_id, data=LARGE[method][at : at + frames.FRAME]))
            wire.ping()
            await wire.until(lambda at=at: len(wire.pongs) > at // frames.FRAME)
        wire.say(DataFrame(head.stream_id, flags=["END_STREAM"]))
        await wire.whole(head.stream_id)
    assert wire.answers[head.stream_id].status == "3"
    assert "of at most 256 fields" in wire.answers[head.stream_id].trailers["grpc-message"]
    assert max(held) < 20 * max(read_of(PingFrame(0, opaque_data=b"x" * 8).serialize() * 960) for _ in range(5))


# 4. and 5. Ends


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "tls"])
async def test_the_end_of_the_front_ends_everybody(
    running: Provider, reads: dict[str, Asked], pem: str, tls: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By itself: nobody is waited for until patience is at an end."""
    monkeypatch.setattr(front_of, "_STOP_SECONDS", 600)
    monkeypatch.setattr(tls_server, "HEAD_SECONDS", 600)
    tasks, open_before = asyncio.all_tasks(), descriptors()
    async with contextlib.AsyncExitStack() as stack:
        async with flying.flying(running, certificate=pem if tls else "") as front:
            silent = await stack.enter_async_context(socket_to(front))
            idle = await stack.enter_async_context(wired(front))
            full = await stack.enter_async_context(wired(front, buffer=4096, INITIAL_WINDOW=HUGE, MAX_FRAME=2**24 - 1))
            full.grant(HUGE - frames.WINDOW)
            stuck = await stack.enter_async_context(wired(front, INITIAL_WINDOW=0))
            for wire in (full, stuck):
                number = ask(wire, reads["file"])
                await wire.until(lambda wire=wire, number=number: wire.answers[number].heads)
            await asyncio.sleep(0.2)  # its socket is full
            async with asyncio.timeout(60):
                await front.stop()
        assert (await idle.end()).error_code == 0  # type: ignore[union-attr]
        with contextlib.suppress(EOFError):
            await stuck.until(lambda: False)
        await full.end()
        with contextlib.suppress(ConnectionError):
            while await asyncio.get_running_loop().sock_recv(silent, 1000):
                pass
    await settled(running)
    # What was raised and its frames refer to each other, and to files.
    await until(lambda: gc.collect() >= 0 and asyncio.all_tasks() <= tasks and descriptors() <= open_before)


@asynccontextmanager
async def socket_to(front: Front) -> AsyncIterator[socket.socket]:
    with socket.socket() as raw:
        raw.setblocking(False)
        await asyncio.get_running_loop().sock_connect(raw, ("127.0.0.1", front.port))
        yield raw


async def by_chance_of(front: Front, reads: dict[str, Asked], dice: random.Random) -> None:
    """One connection whose calls are of random kinds, windows and ends; those that are read to the end are the same."""
    begin = {
        "INITIAL_WINDOW": dice.choice((0, 1_000, 65_535, 2**20)),
        "MAX_FRAME": dice.choice((16_384, 2**20, 2**24 - 1)),
    }
    async with wired(front, buffer=dice.choice((0, 4096)), **begin) as wire:
        wanted = {
            ask(wire, reads[kind]): kind for kind in dice.choices(("file", "memory", "small"), k=dice.randrange(1, 4))
        }
        ends = {one: dice.choice((None, None, dice.randrange(2_000_000))) for one in wanted}
        leaves = dice.choice((False, False, False, True))
        step = dice.choice((70_000, 300_000, 2**22))
        while pending := [one for one in wanted if not wire.answers[one].over]:
            for one in (0, *pending):
                room = wire.answers[one].window if one else wire.window
                if not wire._offered and room <= 0:
                    wire.grant(dice.randrange(1, step) - room, one)
            if dice.random() < 0.02:
                wire.settle(**{dice.choice(("INITIAL_WINDOW", "MAX_FRAME")): dice.randrange(16_384, 2**18)})
            assert await wire.frame() is not None
            for one in pending:
                if (end := ends[one]) is not None and len(wire.answers[one].data) >= end and not wire.answers[one].over:
                    wire.reset(one)
                    wire.answers[one].reset = 8
                    if leaves:
                        return
        for one, kind in wanted.items():
            if wire.answers[one].ended:
                same(reads[kind], wire, one)


@pytest.mark.parametrize("seed", range(12))
async def test_whatever_happens_by_chance_a_whole_answer_is_the_same(
    running: Provider, front: Front, reads: dict[str, Asked], seed: int
) -> None:
    dice = random.Random(seed)
    await asyncio.gather(*(by_chance_of(front, reads, random.Random(dice.random())) for _ in range(2)))
    await settled(running)
    assert not running.reads.live
    await until(lambda: not list(front._connections))
