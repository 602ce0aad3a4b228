"""How calls of Flight end that do not end well: what is beside them on the connection, and what is kept of them."""

from __future__ import annotations

import asyncio
import gc
import os
import socket
import ssl
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.flight as fl
import pytest
import pytest_asyncio
from h2 import events
from h2.config import H2Configuration
from h2.connection import ConnectionState, H2Connection
from h2.errors import ErrorCodes
from h2.settings import SettingCodes

from connector.dataplane.flight import flightsql, framing, grpc_call
from connector.dataplane.flight.http2 import http2_connection, message_buffers, protobuf
from connector.dataplane.flight.http2.frame_writer import Outward, Taker
from connector.dataplane.flight.http2.http2_connection import Call, Connection, Connections
from connector.dataplane.flight.http2.message_buffers import Message
from connector.dataplane.flight.listener import Front
from connector.dataplane.governed_stream import GovernedStream
from connector.dataplane.http import send_threads
from connector.errors import Busy, Refused
from tests.support import flying, provider
from tests.support.certificates import self_signed, server_side
from tests.support.flying import flyer
from tests.support.own_name import changed
from tests.support.provider import Provider, settled
from tests.support.waiting import until

pytestmark = pytest.mark.asyncio(loop_scope="module")

OK = (":status", "200")
WINDOW = 65_535  # of a connection, and of a stream, where nobody says anything else
DEVICE = 4_711  # whose threads are a test's alone
Answer = Callable[[Call], Awaitable[None]]


class Client:
    """A client of HTTP/2 that gives its windows as it is told. `heard` is called with all that comes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, window: int) -> None:
        self.h2 = H2Connection(H2Configuration(header_encoding="utf-8"))
        self.h2.local_settings[SettingCodes.INITIAL_WINDOW_SIZE] = window
        self.h2.local_settings.acknowledge()
        self._reader, self._writer = reader, writer
        self.data: dict[int, bytearray] = {}
        self.trailers: dict[int, dict[str, str]] = {}
        self.ended: set[int] = set()
        self.gone = False
        self.h2.initiate_connection()
        self.flush()
        self._reading = asyncio.ensure_future(self._read())

    def flush(self) -> None:
        self._writer.write(self.h2.data_to_send())

    def ask(self, path: str = "/", body: bytes = b"", **headers: str) -> int:
        """A call; its number."""
        number = self.h2.get_next_available_stream_id()
        told = [(":method", "POST"), (":path", path), (":scheme", "http"), (":authority", "owner")]
        more = [(name.replace("_", "-"), value) for name, value in headers.items()]
        self.h2.send_headers(number, [*told, ("content-type", "application/grpc"), *more])
        self.h2.send_data(number, body, end_stream=True)
        self.data[number] = bytearray()
        self.flush()
        return number

    def give(self, size: int, number: int | None = None) -> None:
        """Let through more of a call's answer."""
        self.h2.increment_flow_control_window(size)
        if number is not None:
            self.h2.increment_flow_control_window(size, number)
        self.flush()

    def set_window(self, size: int) -> None:
        """Of each call, as from its beginning."""
        self.h2.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: size})
        self.flush()

    def reset(self, number: int) -> None:
        self.h2.reset_stream(number, ErrorCodes.CANCEL)
        self.flush()

    def pause(self) -> None:
        """Read nothing more of what comes."""
        self._reading.cancel()

    def go_on(self) -> None:
        self._reading = asyncio.ensure_future(self._read())

    async def close(self) -> None:
        self._reading.cancel()
        self._writer.close()
        with suppress(OSError, ssl.SSLError):
            await self._writer.wait_closed()

    async def _read(self) -> None:
        with suppress(OSError):
            while found := await self._reader.read(65_536):
                for event in self.h2.receive_data(found):
                    self._heard(event)
                with suppress(OSError):
                    self.flush()
        self.gone = True

    def _heard(self, event: Any) -> None:
        if isinstance(event, events.DataReceived):
            self.data[event.stream_id] += event.data
        elif isinstance(event, events.ResponseReceived | events.TrailersReceived):
            self.trailers[event.stream_id] = dict(event.headers)
        elif isinstance(event, events.StreamEnded | events.StreamReset):
            self.ended.add(event.stream_id)


@asynccontextmanager
async def answering(
    *answers: Answer, tls: Path | None = None, sndbuf: int = 0
) -> AsyncIterator[tuple[int, list[Connection]]]:
    """A port where the first call of a connection is answered by the first of these, and so on; and its connections."""
    made: list[Connection] = []
    places = Connections(16)

    def connection() -> Connection:
        left = iter(answers)

        async def answer(call: Call) -> None:
            await next(left)(call)

        made.append(Connection(answer, places))
        return made[-1]

    context = server_side(tls) if tls is not None else None
    if context is not None:
        context.set_alpn_protocols(["h2"])
    listening = socket.create_server(("127.0.0.1", 0))
    if sndbuf:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, sndbuf)
    server = await asyncio.get_running_loop().create_server(connection, sock=listening, ssl=context)
    try:
        yield listening.getsockname()[1], made
    finally:
        for one in made:
            one.hang_up()
        server.close()
        await server.wait_closed()


@asynccontextmanager
async def connected(
    port: int, *, tls: Path | None = None, window: int = WINDOW, rcvbuf: int = 0
) -> AsyncIterator[Client]:
    """A client of that port."""
    context = None
    if tls is not None:
        context = ssl.create_default_context(cafile=str(tls))
        context.set_alpn_protocols(["h2"])
    raw = socket.socket()
    if rcvbuf:
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, rcvbuf)
    raw.setblocking(False)
    await asyncio.get_running_loop().sock_connect(raw, ("127.0.0.1", port))
    named = {"server_hostname": "127.0.0.1"} if tls is not None else {}
    streams = await asyncio.open_connection(sock=raw, ssl=context, limit=1024, **named)
    client = Client(*streams, window=window)
    try:
        yield client
    finally:
        await client.close()


def giving(size: int) -> Answer:
    """An answer of so many bytes of memory."""

    async def answer(call: Call) -> None:
        call.begin([OK])
        await call.send(Message([bytes(size)]))
        call.finish([("grpc-status", "0")])

    return answer


async def refusing(call: Call) -> None:
    """An answer that is a head only."""
    call.finish([OK, ("grpc-status", "7")])


@pytest.fixture
def one_sender(monkeypatch: pytest.MonkeyPatch) -> Iterator[ThreadPoolExecutor]:
    """The threads that send are one: what is given to it after a job is done after it."""
    with ThreadPoolExecutor(1, thread_name_prefix="sender") as pool:
        monkeypatch.setattr(send_threads, "_senders", lambda device: pool)
        yield pool


@pytest.mark.parametrize("encrypted", [False, True], ids=["plain", "tls"])
async def test_a_window_that_was_made_smaller_than_what_has_gone_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encrypted: bool
) -> None:
    tls = self_signed(tmp_path / "owner.pem") if encrypted else None
    asked, windows = [0], Outward.windows

    def counted(self: Outward, call: Taker) -> int:
        asked[0] += 1
        if asked[0] > 1000:
            raise AssertionError("asked without end")
        return windows(self, call)

    monkeypatch.setattr(Outward, "windows", counted)
    async with answering(giving(50_000), tls=tls) as (port, _), connected(port, tls=tls, window=1000) as client:
        number = client.ask()
        await until(lambda: len(client.data[number]) == 1000)
        client.set_window(0)
        await asyncio.sleep(0.2)
        assert number not in client.ended
        client.set_window(60_000)
        await until(lambda: number in client.ended)
        assert len(client.data[number]) == 50_000


def hanging(over: threading.Event, begun: threading.Event, part: bytes) -> Iterator[Message]:
    """Messages whose file's disk hangs until `over`."""
    begun.set()
    over.wait()
    yield Message([part])


async def abandoned_as_its_disk_hangs(call: Call, parts: Iterator[Message], begun: threading.Event) -> None:
    with pytest.raises(Busy):
        await call.send_files(parts, device=DEVICE, moved=lambda: None)


async def abandoned_by_us(call: Call, parts: Iterator[Message], begun: threading.Event) -> None:
    sending = asyncio.ensure_future(call.send_files(parts, device=DEVICE, moved=lambda: None))
    await until(begun.is_set)
    sending.cancel()
    await asyncio.sleep(0.05)


@pytest.mark.parametrize("abandoned", [abandoned_as_its_disk_hangs, abandoned_by_us])
async def test_what_a_thread_has_found_too_late_takes_nothing_from_other_calls(
    monkeypatch: pytest.MonkeyPatch, one_sender: ThreadPoolExecutor, abandoned: Any
) -> None:
    over, begun = threading.Event(), threading.Event()
    monkeypatch.setattr(send_threads, "_SECONDS", 0.3)

    async def first(call: Call) -> None:
        call.begin([OK])
        await abandoned(call, hanging(over, begun, bytes(60_000)), begun)
        call.finish([("grpc-status", "14")])

    async with answering(first, giving(60_000)) as (port, _), connected(port) as client:
        one = client.ask()
        await until(begun.is_set)
        await asyncio.sleep(0.1)
        if abandoned is abandoned_by_us:
            over.set()
        await until(lambda: one in client.ended)
        over.set()
        await asyncio.wrap_future(one_sender.submit(int))
        other = client.ask()  # within the window of the connection, of which nothing has been used
        await until(lambda: other in client.ended)
        assert (len(client.data[one]), len(client.data[other])) == (0, 60_000)
        assert client.trailers[one] == {"grpc-status": "14"}


async def test_what_could_not_be_read_takes_nothing_from_other_calls(tmp_path: Path) -> None:
    short = tmp_path / "short"
    short.write_bytes(bytes(10))

    async def cut(call: Call) -> None:
        call.begin([OK])
        with short.open("rb") as file, pytest.raises(EOFError):
            await call.send_files(iter([Message([(file.fileno(), 0, 16_000)])]), device=DEVICE, moved=lambda: None)
        call.finish([("grpc-status", "13")])

    async with answering(cut, cut, cut, cut, giving(60_000)) as (port, _), connected(port) as client:
        for _ in range(5):
            number = client.ask()
            await until(lambda number=number: number in client.ended)
        assert len(client.data[number]) == 60_000


async def test_what_was_to_be_said_meanwhile_is_said_after_a_call_that_was_given_up(
    one_sender: ThreadPoolExecutor,
) -> None:
    over, begun = threading.Event(), threading.Event()

    async def first(call: Call) -> None:
        call.begin([OK])
        await call.send_files(hanging(over, begun, bytes(10)), device=DEVICE, moved=lambda: None)

    async with answering(first, refusing) as (port, _), connected(port) as client:
        one = client.ask()
        await until(begun.is_set)
        other = client.ask()
        client.reset(one)
        await asyncio.sleep(0.1)
        over.set()
        await until(lambda: other in client.ended)
        assert client.trailers[other] == {":status": "200", "grpc-status": "7"}


async def test_a_frame_is_filled_up_without_a_look_at_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, loop = tmp_path / "large", threading.get_ident()
    path.write_bytes(b"x" * 2**20)

    def read(*given: int) -> bytes:
        assert threading.get_ident() != loop, "everybody waits for this disk"
        return os.pread(*given)

    for module in (message_buffers, framing):
        monkeypatch.setattr(module, "os", changed(os, pread=read))

    async def first(call: Call) -> None:
        call.begin([OK])
        with path.open("rb") as file:
            await call.send_files(iter([Message([(file.fileno(), 0, 2**20)])]), device=DEVICE, moved=lambda: None)

    async with answering(first, giving(50_000), sndbuf=4096) as (port, made), connected(port, rcvbuf=4096) as client:
        one = client.ask()
        await until(lambda: len(client.data[one]) > 0)
        client.pause()
        client.give(2**20, one)
        await until(lambda: made[0].outward.pending.left)
        client.reset(one)
        await until(lambda: not made[0].outward.pending.left)
        client.go_on()
        other = client.ask()
        await until(lambda: other in client.ended)
        assert len(client.data[other]) == 50_000
        assert not client.gone


async def test_an_answer_as_large_as_the_window_needs_no_more_of_it() -> None:
    async with answering(giving(WINDOW), sndbuf=4096) as (port, made), connected(port, rcvbuf=4096) as client:
        client.pause()
        number = client.ask()
        await until(lambda: made and made[0].outward.pending.left)
        client.go_on()
        await until(lambda: number in client.ended)
        assert len(client.data[number]) == WINDOW


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def running(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Provider]:
    async with provider.running(tmp_path_factory.mktemp("provider"), rows=20_000) as started:
        yield started


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def impatient(running: Provider) -> AsyncIterator[Front]:
    """A reader that takes nothing for a second is cut off."""
    async with flying.flying(running, stall_seconds=1.0) as started:
        yield started


PATH = (provider.OWNER, "numbers")


async def passed(running: Provider, front: Front, **envelope: str) -> tuple[str, bytes]:
    """A ticket, and the Flight ticket of all rows, or of an envelope, as a request for them."""
    ticket = running.ticket(await running.agree())

    def go() -> bytes:
        with flyer(front, ticket) as client:
            found: bytes = client.info(*(() if envelope else PATH), **envelope).endpoints[0].ticket.ticket
            return found

    return ticket, protobuf.write([(1, await asyncio.to_thread(go))])


def get(client: Client, ticket: str, message: bytes) -> int:
    body = b"\0" + len(message).to_bytes(4, "big") + message
    return client.ask(f"{grpc_call.SERVICE}DoGet", body, authorization=f"Bearer {ticket}")


async def nothing(client: Client, number: int) -> None:
    """Takes nothing."""


async def byte_by_byte(client: Client, number: int) -> None:
    """Takes a byte now and then."""
    async with asyncio.timeout(20):
        while number not in client.ended:
            client.give(1, number)
            await asyncio.sleep(0.1)


@pytest.mark.parametrize("takes", [nothing, byte_by_byte])
@pytest.mark.parametrize("first", [0, 2000], ids=["the schema", "a batch"])
async def test_a_reader_that_gives_next_to_no_window_is_cut_off(
    running: Provider, impatient: Front, takes: Any, first: int
) -> None:
    ticket, message = await passed(running, impatient)
    async with connected(impatient.port, window=first) as client:
        number = get(client, ticket, message)
        await takes(client, number)
        await until(lambda: number in client.ended)
        assert client.trailers[number]["grpc-message"].startswith("client_stalled: ")
    await settled(running)
    assert running.of_kind("ReadEnded")[-1].code == "client_stalled"


async def test_who_takes_no_table_of_the_catalogue_is_cut_off(
    running: Provider, impatient: Front, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grpc_call, "_STALL_SECONDS", 0.5, raising=False)
    ticket = running.ticket(await running.agree())
    async with connected(impatient.port, window=0) as client:
        number = get(client, ticket, protobuf.write([(1, flightsql.pack("CommandGetTables", []))]))
        await until(lambda: number in client.ended)
        assert client.trailers[number]["grpc-message"].startswith("client_stalled: ")


async def test_a_reader_that_cancels_and_leaves_leaves_nothing_behind(running: Provider, impatient: Front) -> None:
    ticket, message = await passed(running, impatient)
    async with connected(impatient.port, window=2000) as client:
        number = get(client, ticket, message)
        await until(lambda: len(client.data[number]) == 2000)
        client.reset(number)
    await settled(running)
    await until(lambda: not len(tuple(impatient._connections)))
    assert (impatient._desk._running, impatient._desk._open) == ({}, {})
    assert running.of_kind("ReadEnded")[-1].code == "client_gone"


async def test_a_reader_that_leaves_before_the_first_row_is_in_the_log_as_one_that_leaves(
    running: Provider, impatient: Front
) -> None:
    long = "SELECT count(*) FROM clinic.numbers a, clinic.numbers b, clinic.numbers c WHERE a.x < b.x * c.x"
    ticket, message = await passed(running, impatient, sql=long)
    started, ends = len(running.of_kind("ReadStarted")), len(running.of_kind("ReadEnded"))
    async with connected(impatient.port) as client:
        number = get(client, ticket, message)
        await until(lambda: len(running.of_kind("ReadStarted")) > started)
        client.reset(number)
        await until(lambda: len(running.of_kind("ReadEnded")) > ends)
    ended = running.of_kind("ReadEnded")[-1]
    assert (ended.outcome, ended.code, ended.reason) == ("broken", "client_gone", "the client left")


@pytest.mark.parametrize("leaves", ["the call", "the connection", "nothing"])
async def test_what_was_being_sent_to_a_reader_that_leaves_goes_with_it(
    running: Provider, impatient: Front, leaves: str
) -> None:
    """Not when the collector of garbage comes by: batches of thirty megabytes would stand in line for it."""
    ticket, message = await passed(running, impatient)
    gc.collect()
    gc.disable()
    try:
        async with connected(impatient.port, window=2000) as client:
            number = get(client, ticket, message)
            await until(lambda: len(client.data[number]) == 2000)
            if leaves == "the call":
                client.reset(number)
                await settled(running)
            elif leaves == "nothing":  # and is cut off
                await until(lambda: number in client.ended)
        await settled(running)
        await until(lambda: not len(tuple(impatient._connections)))
        assert not [one for one in gc.get_objects() if isinstance(one, GovernedStream | Call)]
    finally:
        gc.enable()


def handed(text: str) -> bytes:
    """The request for the info of a prepared statement with this handle."""
    return flightsql.pack("CommandPreparedStatementQuery", [(1, text)])


@pytest.mark.parametrize(
    "asked",
    [
        fl.FlightDescriptor.for_path(),
        fl.FlightDescriptor.for_path(*PATH, "more"),
        fl.FlightDescriptor.for_command(handed('{"sql":"SELECT ?","values":[1]}')),
        fl.FlightDescriptor.for_command(handed('{"sql":"SELECT ?","values":[["int"]]}')),
        fl.FlightDescriptor.for_command(handed('{"sql":"SELECT ?","values":[["int","1","2"]]}')),
        fl.FlightDescriptor.for_command(handed('{"sql":"SELECT ?","values":[["int",["1"]]]}')),
        fl.FlightDescriptor.for_command(handed('{"sql":"SELECT ?","values":[[{},"1"]]}')),
        fl.FlightDescriptor.for_command(handed('{"sql":"SELECT ?","values":[["text","\\ud800"]]}')),
        fl.FlightDescriptor.for_command(handed('{"sql":"SELECT \\ud800 FROM clinic.numbers","values":[]}')),
        fl.FlightDescriptor.for_command(b'{"sql":"SELECT \\ud800 FROM clinic.numbers"}'),
    ],
    ids=lambda one: str(one.command or one.path)[-60:],
)
async def test_what_is_asked_in_another_form_is_bad_input(
    running: Provider, impatient: Front, asked: fl.FlightDescriptor
) -> None:
    ticket = running.ticket(await running.agree())

    def go() -> None:
        with flyer(impatient, ticket) as client:
            client.client.get_flight_info(asked, client.options)

    with pytest.raises(pa.ArrowInvalid, match=r"^\w+: "):
        await asyncio.to_thread(go)
    await settled(running)


@pytest.mark.parametrize("header", ["hanse-purpose", "hanse-application"])
async def test_what_is_declared_at_length_is_bad_input(running: Provider, impatient: Front, header: str) -> None:
    ticket = running.ticket(await running.agree())

    def go(size: int) -> None:
        with flyer(impatient, ticket, headers=[(header.encode(), b"x" * size)]) as client:
            client.info(*PATH)

    await asyncio.to_thread(go, 1024)
    with pytest.raises(pa.ArrowInvalid, match=f"^request_invalid: expected one header {header} of at most 1024"):
        await asyncio.to_thread(go, 1025)


@pytest.mark.parametrize("letter", ["a", "%", "\u00e9", "\u6f22", "\U0001f600", "\ud800", "\r\n"])
async def test_a_refusal_in_any_script_fits_into_a_head(letter: str) -> None:
    error = Refused(letter * 1000, code="revoked", rule=letter * 200)

    async def refused(call: Call) -> None:
        grpc_call.Exchange(call).finish(error)

    async with answering(refused) as (port, _), connected(port) as client:
        number = client.ask()
        await until(lambda: number in client.ended)
        head = client.trailers[number]
    assert sum(len(name) + len(value) + 32 for name, value in head.items()) <= 8192
    assert unquote(head["grpc-message"], errors="strict").startswith("revoked: ")
    assert head["grpc-status"] == "7"
    assert head["grpc-message"].isprintable()


@pytest.mark.parametrize(("reads", "borne"), [(True, True), (False, False)], ids=["reading", "not reading"])
async def test_who_measures_its_way_as_it_reads_is_no_nuisance(
    monkeypatch: pytest.MonkeyPatch, reads: bool, borne: bool
) -> None:
    monkeypatch.setattr(http2_connection, "_CALM", 100.0)
    monkeypatch.setattr(http2_connection, "_CALM_AGAIN", 0.0)
    async with answering(giving(1000)) as (port, _), connected(port, window=0) as client:
        number = client.ask()
        for size in range(1, 201):
            client.h2.ping(b"measured")  # as a Go client does with what comes to it
            client.flush()
            if reads:
                client.give(1, number)
                await until(lambda size=size: len(client.data[number]) == size)
        if borne:
            await asyncio.sleep(0.2)
            assert not client.gone
        else:
            await until(lambda: client.gone)


async def test_a_client_that_takes_its_leave_gets_what_it_has_asked_for() -> None:
    async with answering(giving(100_000)) as (port, _), connected(port) as client:
        number = client.ask()
        await until(lambda: len(client.data[number]) == WINDOW)
        client.h2.close_connection()
        client.flush()
        await asyncio.sleep(0.1)
        client.h2.state_machine.state = ConnectionState.CLIENT_OPEN  # the library would say nothing more
        client.give(100_000, number)
        await until(lambda: number in client.ended)
        assert (len(client.data[number]), client.trailers[number]) == (100_000, {"grpc-status": "0"})
        await until(lambda: client.gone)
