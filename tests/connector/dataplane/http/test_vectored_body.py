"""The gathered write puts the same bytes on the wire as uvicorn's own path, and refuses what it cannot frame."""

from __future__ import annotations

import asyncio
import concurrent.futures
import mmap
import os
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from random import Random
from typing import IO, Any

import pytest
import uvicorn

from connector.dataplane.http import file_sender, vectored_body
from connector.dataplane.http.vectored_body import ABORT, BUFFERS, EXTENSION, FILE, FILES, MORE, MOVED, SEEN, Protocol
from connector.infra.http import http_limits
from connector.infra.http.tls_server import TlsServer
from tests.support.certificates import self_signed
from tests.support.stalls import in_real_time

PIECES = [b"a", os.urandom(3_000_000), b"", memoryview(bytearray(os.urandom(70_000))), b"z" * 10]


async def application(scope: Any, receive: Any, send: Any) -> None:
    """Sends PIECES: gathered where the server offers it, joined otherwise."""
    gathers = EXTENSION in scope.get("extensions", {})
    await send({"type": "http.response.start", "status": 200, "headers": [(b"x-a", b"b")]})
    for piece in PIECES:
        if gathers:
            half = len(piece) // 2
            await send({"type": "http.response.body", BUFFERS: [piece[:half], piece[half:]], "more_body": True})
        elif piece:
            await send({"type": "http.response.body", "body": bytes(piece), "more_body": True})
    await send({"type": "http.response.body", "body": b""})


async def misuse(scope: Any, receive: Any, send: Any) -> None:
    """Buffers before the start, with a length, and at the end: each must raise."""
    for message in (
        {"type": "http.response.body", BUFFERS: [b"x"], "more_body": True},
        {"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"3")]},
        {"type": "http.response.body", BUFFERS: [b"abc"], "more_body": True},
    ):
        try:
            await send(message)
        except RuntimeError:
            scope["state"]["refused"].append(message["type"])
    await send({"type": "http.response.body", "body": b"abc"})


async def stalled(scope: Any, receive: Any, send: Any) -> None:
    """Fills the socket of a client that does not read, then aborts."""
    await send({"type": "http.response.start", "status": 200, "headers": []})
    try:
        async with asyncio.timeout(0.2):
            while True:
                await send({"type": "http.response.body", BUFFERS: [bytes(2**20)], "more_body": True})
    except TimeoutError:
        await send({"type": "http.response.body", ABORT: True})


@asynccontextmanager
async def served(
    app: Any, *, http: Any = Protocol, certificate: Path | None = None, buffer: int = 0
) -> AsyncIterator[int]:
    """`buffer`: bytes that the kernel takes for a reader who does not read yet; else it takes megabytes."""
    listening = socket.create_server(("127.0.0.1", 0))
    if buffer:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer)
    config = uvicorn.Config(
        app, http=http, log_level="critical", lifespan="off", date_header=False, ssl_certfile=certificate
    )
    server = uvicorn.Server(config) if http == "httptools" else TlsServer(config)
    task = asyncio.ensure_future(server.serve(sockets=[listening]))
    while not server.started:
        await asyncio.sleep(0.01)
    try:
        yield listening.getsockname()[1]
    finally:
        server.should_exit = server.force_exit = True
        await task


async def exchange(port: int, request: bytes, certificate: Path | None = None) -> bytes:
    context = None if certificate is None else ssl.create_default_context(cafile=certificate)
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
    writer.write(request)
    answer = await reader.read(-1)
    writer.close()
    return answer


REQUEST = b"GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n"
PIPELINED = b"GET / HTTP/1.1\r\nhost: a\r\n\r\n" + REQUEST


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return self_signed(tmp_path_factory.mktemp("tls") / "certificate.pem")


@pytest.mark.parametrize("secure", [False, True], ids=["plain", "TLS"])
@pytest.mark.parametrize("request_", [REQUEST, PIPELINED], ids=["one", "pipelined"])
async def test_bytes_on_the_wire_are_those_of_the_stock_path(request_: bytes, secure: bool, certificate: Path) -> None:
    known = certificate if secure else None
    async with served(application, http="httptools", certificate=known) as port:
        stock = await exchange(port, request_, known)
    async with served(application, certificate=known) as port:
        assert await exchange(port, request_, known) == stock


async def test_what_is_no_request_is_not_answered_in_the_middle_of_an_answer() -> None:
    left = asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", BUFFERS: [b"begun"], "more_body": True})
        while (await receive())["type"] != "http.disconnect":
            pass
        left.set()

    async with served(app) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(REQUEST.replace(b"connection: close\r\n", b""))
        answer = await reader.readuntil(b"begun\r\n")
        writer.write(b"\0no request\r\n\r\n")
        assert answer.startswith(b"HTTP/1.1 200")
        assert await reader.read(-1) == b""
        await left.wait()
        writer.close()
        assert (await exchange(port, b"\0no request\r\n\r\n")).startswith(b"HTTP/1.1 400")


async def test_buffers_outside_a_chunked_body_are_refused() -> None:
    refused: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        scope.setdefault("state", {})["refused"] = refused
        await misuse(scope, receive, send)

    async with served(app) as port:
        answer = await exchange(port, REQUEST)
    assert refused == ["http.response.body", "http.response.body"]
    assert answer.endswith(b"\r\n\r\nabc")


@pytest.mark.parametrize("secure", [False, True], ids=["plain", "TLS"])
async def test_a_client_that_does_not_read_is_cut_off(secure: bool, certificate: Path) -> None:
    known = certificate if secure else None
    context = ssl.create_default_context(cafile=known) if known else None
    async with served(stalled, certificate=known) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=2**10, ssl=context)
        writer.write(REQUEST)
        await asyncio.sleep(0.5)
        with pytest.raises((ConnectionResetError, asyncio.IncompleteReadError)):
            await reader.readexactly(1 << 30)
        writer.close()


async def from_files(scope: Any, receive: Any, send: Any) -> None:
    """Sends PIECES as chunks: parts of a file where the server offers it, memory otherwise."""
    await send({"type": "http.response.start", "status": 200, "headers": [(b"x-a", b"b")]})
    with tempfile.TemporaryFile() as file:
        file.write(b"before" + b"".join(bytes(piece) for piece in PIECES))
        file.flush()
        at = len(b"before")
        for piece in PIECES:
            message: dict[str, Any] = {"type": "http.response.body", "more_body": True}
            if FILES in scope.get("extensions", {}):
                await send(message | {FILE: [(file.fileno(), at, len(piece))]})
            elif piece:
                await send(message | {"body": bytes(piece)})
            at += len(piece)
    await send({"type": "http.response.body", "body": b""})


async def slow(port: int) -> bytes:
    """A reader that takes a little at a time."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=2**12)
    writer.write(REQUEST)
    parts = []
    while part := await reader.read(200_000):
        parts.append(part)
        await asyncio.sleep(0.01)
    writer.close()
    return b"".join(parts)


async def test_parts_of_files_are_the_same_bytes_for_any_reader() -> None:
    async with served(from_files, http="httptools") as port:
        stock = [await exchange(port, request) for request in (REQUEST, PIPELINED)]
    async with served(from_files) as port:
        assert [await exchange(port, request) for request in (REQUEST, PIPELINED)] == stock
        assert await slow(port) == stock[0]


def short(raised: list[type[BaseException]], message: Callable[[IO[bytes]], dict[str, Any]]) -> Any:
    """An application that sends what `message` makes of a file. One that is too short ends the answer."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        with tempfile.TemporaryFile(buffering=0) as file:
            try:
                await send({"type": "http.response.body", "more_body": True} | message(file))
            except (EOFError, OSError) as error:
                raised.append(type(error))
                await send({"type": "http.response.body", ABORT: True})

    return app


async def test_a_file_that_is_too_short_never_completes_a_chunk() -> None:
    raised: list[type[BaseException]] = []

    def message(file: IO[bytes]) -> dict[str, Any]:
        file.write(b"x" * 1000)
        return {FILE: [(file.fileno(), 0, 2000)]}

    async with served(short(raised, message)) as port:
        answer = await exchange(port, REQUEST)
    assert raised == [EOFError]
    assert not answer.partition(b"\r\n\r\n")[2].endswith(b"\r\n")


@pytest.mark.parametrize("more", [{}, {SEEN: len}], ids=["unseen", "seen"])
async def test_a_file_that_is_cut_short_while_it_is_sent_ends_the_read_and_not_the_process(more: Any) -> None:
    """The kernel alone looks into the map: it says EFAULT, and there is no bus error."""
    raised: list[type[BaseException]] = []

    def message(file: IO[bytes]) -> dict[str, Any]:
        file.truncate(64 * 2**20)
        return more | {FILE: [(file.fileno(), 0, 64 * 2**20)], MOVED: lambda: file.truncate(2**20)}

    async with served(short(raised, message)) as port:
        await slow(port)
    assert raised == [EOFError]


async def test_a_file_that_is_whole_and_cannot_be_read_is_not_told_as_shorter(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel says the same of a disk that fails as of a file that has been cut short."""
    nobodys = memoryview(mmap.mmap(-1, 4096, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, prot=0))
    monkeypatch.setattr(file_sender, "_map_window", lambda *_: nobodys)
    raised: list[type[BaseException]] = []

    def message(file: IO[bytes]) -> dict[str, Any]:
        file.truncate(4096)
        return {FILE: [(file.fileno(), 0, 4096)]}

    async with served(short(raised, message)) as port:
        await exchange(port, REQUEST)
    assert raised == [OSError]


async def test_a_part_may_be_larger_than_what_is_mapped_at_once() -> None:
    data = os.urandom(2 * file_sender._WINDOW + 4321)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        with tempfile.TemporaryFile() as file:
            file.write(data)
            file.flush()
            for at, end in (
                (123, file_sender._WINDOW - 1),
                (file_sender._WINDOW - 1, len(data)),
                (file_sender._WINDOW, len(data)),
            ):
                part = {"type": "http.response.body", FILE: [(file.fileno(), at, end - at)], "more_body": True}
                await send(part)
        await send({"type": "http.response.body", "body": b""})

    async with served(app) as port:
        for read in (exchange(port, REQUEST), slow(port)):
            came = decoded((await read).partition(b"\r\n\r\n")[2])
            assert came == data[123:] + data[file_sender._WINDOW :]


async def test_a_file_that_is_cut_short_between_two_parts_ends_the_read() -> None:
    """Within its last page the kernel says nothing of it."""
    raised: list[type[BaseException]] = []

    def message(file: IO[bytes]) -> dict[str, Any]:
        file.write(b"x" * 4096)
        parts = [(file.fileno(), 100, 3000)]

        def more() -> Any:
            file.truncate(200)
            return [parts.pop()] if parts else None

        return {FILE: [(file.fileno(), 0, 100)], MORE: more}

    async with served(short(raised, message)) as port:
        await exchange(port, REQUEST)
    assert raised == [EOFError]


@pytest.mark.parametrize("seen", [False, True], ids=["unseen", "seen"])
async def test_pieces_of_files_and_memory_are_one_chunk(seen: bool) -> None:
    """Many more than one call takes, of two files, in any order, also for a reader who takes a little at a time. Who
    has to see them sees them all, in that order, and nothing of what is around them."""
    random = Random(5)
    wholes = [random.randbytes(30 * 2**20) for _ in range(2)]  # several windows
    sizes = random.choices((0, 1, 5, 4096, 90_000), (6, 6, 6, 6, 1), k=1500)
    spans = [(random.randrange(len(wholes[0]) - 100_000), size) for size in sizes]
    memory = [random.randbytes(random.choice((1, 8, 3000))) for _ in range(400)]
    order = random.sample(range(1900), 1900)
    shown = bytearray()
    more: dict[str, Any] = {SEEN: shown.extend} if seen else {}

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        with tempfile.TemporaryFile() as one, tempfile.TemporaryFile() as two:
            for file, whole in zip((one, two), wholes, strict=True):
                file.write(whole)
                file.flush()
            places = [((one, two)[number % 2].fileno(), *span) for number, span in enumerate(spans)]
            pieces = [*places, memoryview(memory[0]), *memory[1:]]
            parts = [pieces[number] for number in order]
            message = {"type": "http.response.body", "more_body": True} | more
            await send(message | {FILE: parts, MORE: lambda left=[parts[::-1]]: left.pop() if left else None})
            await send(message | {FILE: [(one.fileno(), 5, 0)]})  # not the end of the body
            await send(message | {FILE: [b"x"]})
        await send({"type": "http.response.body", "body": b""})

    pieces = [wholes[number % 2][at : at + size] for number, (at, size) in enumerate(spans)] + memory
    expected = [pieces[number] for number in order]
    async with served(app, buffer=2**16) as port:
        for read in (exchange(port, REQUEST), slow(port)):
            body = (await read).partition(b"\r\n\r\n")[2]
            assert int(body[: body.index(b"\r")], 16) == sum(map(len, expected))
            came = decoded(body)
            assert came == b"".join(expected + expected[::-1]) + b"x"
            assert not seen or shown == came
            shown.clear()


@pytest.mark.parametrize("at", [0, 1, 2])
async def test_a_piece_of_a_file_that_is_cut_short_ends_the_read(at: int) -> None:
    raised: list[type[BaseException]] = []

    def message(file: IO[bytes]) -> dict[str, Any]:
        file.write(b"x" * 5000)
        file.flush()
        parts: list[Any] = [b"memory", (file.fileno(), 0, 200)]
        return {FILE: [*parts[:at], (file.fileno(), 4000, 1001), *parts[at:]]}

    async with served(short(raised, message)) as port:
        assert b"memory" not in await exchange(port, REQUEST)
    assert raised == [EOFError]


async def test_what_follows_a_part_is_asked_for_beside_the_event_loop() -> None:
    asked: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        with tempfile.TemporaryFile() as file:
            file.write(bytes(range(200)) * 50_000)
            file.flush()
            parts = [(at, 1_000_000) for at in range(1_000_000, 10_000_000, 1_000_000)]

            def more() -> Any:
                asked.append(threading.current_thread().name)
                return [(file.fileno(), *parts.pop(0))] if parts else None

            part = {"type": "http.response.body", FILE: [(file.fileno(), 0, 1_000_000)], "more_body": True}
            await send(part | {MORE: more})
        await send({"type": "http.response.body", "body": b""})

    async with served(app) as port:
        for read in (exchange(port, REQUEST), slow(port)):
            assert decoded((await read).partition(b"\r\n\r\n")[2]) == bytes(range(200)) * 50_000
    assert len(asked) == 20
    assert all(name.startswith("sender") for name in asked)


@pytest.mark.parametrize("size", [2**20, 8 * 2**20], ids=["whole", "in pieces"])
async def test_nothing_goes_on_to_a_client_that_has_left(size: int) -> None:
    """Whoever sends is told: what would have been let through the gate for nobody would count all the same."""
    ended: asyncio.Future[tuple[int, str]] = asyncio.get_running_loop().create_future()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for sent in range(100):
            try:
                await send({"type": "http.response.body", BUFFERS: [bytes(size)], "more_body": True})
            except ConnectionAbortedError as error:
                ended.set_result((sent, str(error)))
                return
        ended.set_result((100, "nobody said so"))

    async with served(app) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(REQUEST)
        await reader.readexactly(100)
        await asyncio.sleep(0.1)  # what the kernels hold is full
        writer.transport.abort()
        sent, why = await asyncio.wait_for(ended, 60)
    assert (sent < 50, why) == (True, "the client has left")


@pytest.mark.parametrize(("secure", "room"), [(False, 2**17), (True, 2**19)], ids=["plain", "TLS"])
@pytest.mark.parametrize("size", [20_000, 100_000, 600_000, 1_000_000])
async def test_a_part_is_asked_for_when_the_one_before_has_gone(
    size: int, secure: bool, room: int, certificate: Path
) -> None:
    """Small ones while there is room for them."""
    sent = 0

    async def app(scope: Any, receive: Any, send: Any) -> None:
        nonlocal sent
        await send({"type": "http.response.start", "status": 200, "headers": []})
        with suppress(ConnectionAbortedError):
            while True:
                sent += 1
                await send({"type": "http.response.body", BUFFERS: [bytes(size)], "more_body": True})

    known = certificate if secure else None
    async with served(app, buffer=4096, certificate=known) as port:
        reader, writer = await little(port, known)
        writer.write(REQUEST)
        await reader.readuntil(b"\r\n\r\n")
        await asyncio.sleep(0.2)
        assert size <= sent * size <= max(size, room)
        writer.transport.abort()


def decoded(body: bytes) -> bytes:
    """What a chunked body holds."""
    parts = []
    while (cut := body.partition(b"\r\n"))[0] != b"0":
        size = int(cut[0], 16)
        parts.append(cut[2][:size])
        assert cut[2][size : size + 2] == b"\r\n"
        body = cut[2][size + 2 :]
    return b"".join(parts)


@pytest.mark.parametrize("leaves", [True, False], ids=["leaves", "does not read"])
async def test_a_reader_that_leaves_or_waits_holds_nothing(leaves: bool) -> None:
    ended = asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        with tempfile.TemporaryFile() as file:
            file.truncate(2**28)
            message = {"type": "http.response.body", FILE: [(file.fileno(), 0, 2**28)], "more_body": True}
            try:
                async with asyncio.timeout(None if leaves else 0.2):
                    await send(message)
            except ConnectionAbortedError:
                assert leaves
            except TimeoutError:
                await send({"type": "http.response.body", ABORT: True})
        ended.set()

    async with served(app) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=2**10)
        writer.write(REQUEST)
        await reader.read(100)
        if leaves:
            writer.transport.abort()
        async with asyncio.timeout(60):
            await ended.wait()
        writer.close()


async def test_streams_that_share_a_thread_do_not_share_its_memory() -> None:
    """One makes it wait in the middle of what it has read; then it reads for another."""
    shown = [bytearray(), bytearray()]
    with tempfile.TemporaryFile() as file, concurrent.futures.ThreadPoolExecutor(1) as thread:
        file.write(b"a" * 2**20 + b"b" * 2**20)
        file.flush()
        parts = [[(file.fileno(), number * 2**20, 2**20)] for number in (0, 1)]
        sending = [
            vectored_body._FileSending(one, before=None, more=None, seen=shown[n].extend) for n, one in enumerate(parts)
        ]
        pairs = [socket.socketpair() for _ in parts]
        came = [b"", b""]
        for ours, theirs in pairs:
            ours.setblocking(False)
            theirs.setblocking(False)
        done = [False, False]
        while not all(done):
            for number, (ours, theirs) in enumerate(pairs):
                done[number] = done[number] or thread.submit(sending[number].push, ours).result()
                with suppress(BlockingIOError):
                    while part := theirs.recv(50_000):
                        came[number] += part
        for number, letter in enumerate((b"a", b"b")):
            assert came[number] == b"100000\r\n" + letter * 2**20 + b"\r\n"
            assert shown[number] == letter * 2**20
        for pair in pairs:
            for one in pair:
                one.close()


async def counting(scope: Any, receive: Any, send: Any) -> None:
    """Answers with the number of bytes that came, slowly where that is asked for."""
    size, more = 0, True
    while more:
        message = await receive()
        size, more = size + len(message.get("body", b"")), message.get("more_body", False)
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"8")]})
    await asyncio.sleep(float(scope["query_string"] or b"0"))
    await send({"type": "http.response.body", "body": b"%8d" % size})


async def told(port: int, *sent: bytes, pause: float = 0.0) -> bytes:
    """What comes back, up to the end of the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    async with asyncio.timeout(60):
        with suppress(ConnectionError):
            for part in sent:
                if writer.is_closing():  # the other side has closed, and we have seen it: uvloop would take it amiss
                    break
                writer.write(part)
                await writer.drain()
                await asyncio.sleep(pause)
        answer = b""
        with suppress(ConnectionError):
            while part := await reader.read(65536):
                answer += part
    writer.close()
    return answer


@pytest.mark.parametrize(
    "endless",
    [
        b"GET / HTTP/1.1\r\na: ",
        b"GET /",
        b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n1;a=",
        b"GET / HTTP/1.1\r\na",
    ],
    ids=["value", "address", "extension of a chunk", "name"],
)
async def test_a_head_without_an_end_is_not_kept(endless: bytes) -> None:
    async with served(counting) as port:
        answer = await told(port, endless, *[b"b" * 2**16] * 100)
    assert answer == b"" or answer.startswith(b"HTTP/1.1 400 ")  # gone before we had read it


@pytest.mark.parametrize("http", [Protocol, http_limits.LimitedHttpProtocol])
async def test_connections_leave_descriptors_for_what_the_process_opens(
    monkeypatch: pytest.MonkeyPatch, http: Any
) -> None:
    """Who is being answered keeps a place, and whoever comes beside as many of these as there may be is refused."""
    monkeypatch.setattr(http_limits, "connections_max", lambda: 3)
    one = b"GET / HTTP/1.1\r\nconnection: close\r\n\r\n"
    answered = asyncio.Event()

    async def waiting(scope: Any, receive: Any, send: Any) -> None:
        if scope["query_string"]:
            await answered.wait()
        await counting({**scope, "query_string": b""}, receive, send)

    async with served(waiting, http=http) as port:
        held = [await asyncio.open_connection("127.0.0.1", port) for _ in range(3)]
        for _, writer in held:
            writer.write(b"GET /?wait HTTP/1.1\r\nconnection: close\r\n\r\n")
        async with asyncio.timeout(60):
            while await told(port, one) != b"":  # the three are there
                await asyncio.sleep(0.01)
            answered.set()
            for reader, _ in held:
                assert (await reader.read()).startswith(b"HTTP/1.1 200 ")
            while not (await told(port, one)).startswith(b"HTTP/1.1 200 "):
                await asyncio.sleep(0.01)
        for _, writer in held:
            writer.close()


@pytest.mark.parametrize("secure", [False, True], ids=["plain", "TLS"])
async def test_who_was_silent_for_the_longest_makes_room(
    monkeypatch: pytest.MonkeyPatch, secure: bool, certificate: Path
) -> None:
    """Not whoever comes, nor whoever has said something since, in a body or with a request."""
    monkeypatch.setattr(http_limits, "connections_max", lambda: 3)
    context = ssl.create_default_context(cafile=certificate) if secure else None
    async with served(counting, certificate=certificate if secure else None) as port, asyncio.timeout(60):

        async def client() -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
            return await asyncio.open_connection("127.0.0.1", port, ssl=context)

        sending, asking = await client(), await client()
        silent, _ = await asyncio.open_connection("127.0.0.1", port)  # over TLS it never begins with that
        await asyncio.sleep(0.1)
        sending[1].write(b"POST /?0 HTTP/1.1\r\nconnection: close\r\ncontent-length: 20\r\n\r\n")
        asking[1].write(b"GET /?0 HTTP/1.1\r\n\r\n")
        assert (await asking[0].readuntil(b"%8d" % 0)).startswith(b"HTTP/1.1 200 ")
        last = await client()
        with suppress(ConnectionError):
            assert await silent.read() == b""
        for _ in range(10):
            sending[1].write(b"ab")
            last[1].write(b"GET /?0 HTTP/1.1\r\n\r\n")  # as new as the body
            assert (await last[0].readuntil(b"%8d" % 0)).startswith(b"HTTP/1.1 200 ")
            new = await client()
            new[1].write(REQUEST.replace(b"/", b"/?0", 1))
            assert (await new[0].read()).startswith(b"HTTP/1.1 200 ")
            new[1].close()
        assert (await sending[0].read()).endswith(b"%8d" % 20)
        with suppress(ConnectionError, ssl.SSLError):
            assert await asking[0].read() == b""
        for _, writer in (sending, asking, last):
            writer.close()


def test_a_connector_opens_as_many_files_as_its_operator_allows() -> None:
    program = """
import resource
from connector.infra.http import http_limits as http_limits
resource.setrlimit(resource.RLIMIT_NOFILE, (300, 1000))
few = http_limits.connections_max()
http_limits.raise_descriptors()
print(few, resource.getrlimit(resource.RLIMIT_NOFILE), http_limits.connections_max())
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[0] == "14 (1000, 1000) 248"


@pytest.mark.parametrize(
    "before",
    [b"GET / HTTP/1.1\r\n%s", b"POST / HTTP/1.1\r\n%stransfer-encoding: chunked\r\n\r\n0\r\n"],
    ids=["head", "trailers"],
)
async def test_a_request_of_very_many_fields_is_refused_before_they_are_kept(before: bytes) -> None:
    head = before % b"connection: close\r\n"
    async with served(counting) as port:
        few = await told(port, head + b"a:\r\n" * (http_limits.FIELDS_MAX - 2) + b"\r\n")
        many = await told(port, head + b"a:\r\n" * 2 * http_limits.FIELDS_MAX + b"\r\n")
    assert (many[:13], few[:13]) == (b"HTTP/1.1 400 ", b"HTTP/1.1 200 ")


@pytest.mark.parametrize(
    ("fields", "whole"),
    [([250_000], True), ([300_000], False), ([1_200] * 200, True), ([1_500] * 200, False)],
    ids=["a long field", "one that is too long", "many fields", "too much of them"],
)
async def test_a_head_that_is_too_large_is_refused_also_where_it_is_there_at_once(
    fields: list[int], whole: bool
) -> None:
    lines = b"".join(b"x%d: %s\r\n" % (number, b"a" * size) for number, size in enumerate(fields))
    async with served(counting) as port:
        answer = await told(port, b"GET / HTTP/1.1\r\nconnection: close\r\n%s\r\n" % lines)
    assert answer.startswith(b"HTTP/1.1 200 " if whole else b"HTTP/1.1 400 ")
    assert whole or answer.endswith(b"Expected a head of at most 262144 bytes.")


@pytest.mark.parametrize("http", [Protocol, http_limits.LimitedHttpProtocol])
async def test_requests_without_an_end_are_not_kept_while_one_is_answered(http: Any) -> None:
    one, last = b"GET / HTTP/1.1\r\n\r\n", b"GET / HTTP/1.1\r\nconnection: close\r\n\r\n"
    async with served(counting, http=http) as port:
        few = await told(port, one * http_limits.WAITING_MAX + last)
        many = await told(port, one * (http_limits.WAITING_MAX + 1) + last)
    assert (few.count(b"HTTP/1.1 200 "), many) == (http_limits.WAITING_MAX + 1, b"")


@pytest.mark.parametrize("http", [Protocol, http_limits.LimitedHttpProtocol])
@pytest.mark.parametrize("offer", [b"", b"connection: upgrade\r\nupgrade: h2c\r\n"], ids=["plain", "offering"])
async def test_of_thousands_of_requests_in_one_packet_a_few_are_looked_at(http: Any, offer: bytes) -> None:
    heads: list[bytes] = []

    class Noting(http):  # type: ignore[misc]
        def on_message_complete(self) -> None:
            heads.append(self.url)
            super().on_message_complete()

    async with served(counting, http=Noting) as port:
        assert await told(port, b"GET / HTTP/1.1\r\n%s\r\n" % offer * 3_000) == b""
    assert len(heads) < 4 * http_limits.WAITING_MAX


OFFERS = {
    "h2c": b"upgrade: h2c\r\nconnection: upgrade, http2-settings\r\nhttp2-settings: AAMAAABk\r\n",
    "websocket": b"Connection: Upgrade\r\nUpgrade: websocket\r\nsec-websocket-version: 13\r\n",
}


@pytest.mark.parametrize("http", [Protocol, http_limits.LimitedHttpProtocol])
@pytest.mark.parametrize("offer", OFFERS.values(), ids=OFFERS)
async def test_the_body_of_a_request_that_offers_another_protocol_is_no_request(http: Any, offer: bytes) -> None:
    """Clients in Java offer one of each first request. Behind a proxy, the answer to what a body has would be another
    client's."""
    inner = b"GET /inner HTTP/1.1\r\n\r\n"
    bodies = {
        b"content-length: %d\r\n\r\n" % len(inner): inner,
        b"transfer-encoding: chunked\r\n\r\n": b"%x\r\n%s\r\n0\r\n\r\n" % (len(inner), inner),
    }
    last = b"GET / HTTP/1.1\r\nconnection: close\r\n\r\n"
    async with served(counting, http=http) as port:
        for length, body in bodies.items():
            head = b"POST / HTTP/1.1\r\n" + offer + length
            for sent in ((head, body, last), (head[:40], head[40:] + body + last), (head + body[:9], body[9:], last)):
                answers = (await told(port, *sent, pause=0.05)).split(b"HTTP/1.1 200 OK")
                assert [int(one[-8:]) for one in answers[1:]] == [len(inner), 0]


@pytest.mark.parametrize("http", [Protocol, http_limits.LimitedHttpProtocol])
async def test_a_request_that_offers_another_protocol_is_answered_as_any(http: Any) -> None:
    closing = b"GET / HTTP/1.1\r\nconnection: close, upgrade\r\nupgrade: h2c\r\n\r\n"
    async with served(counting, http=http) as port:
        assert (await told(port, closing)).startswith(b"HTTP/1.1 200 ")
        assert (await told(port, closing * 2)).count(b"HTTP/1.1 ") == 1
        assert (await told(port, b"CONNECT a:1 HTTP/1.1\r\n\r\n")).startswith(b"HTTP/1.1 400 ")


async def test_a_head_of_thousands_of_names_and_a_body_of_any_size_are_no_endless_heads() -> None:
    close = b"connection: close\r\n"
    head = b"POST /?0 HTTP/1.1\r\na: " + b"b" * 200_000 + b"\r\n" + close
    async with served(counting) as port:
        for size in (0, 3_000_000):
            length = b"content-length: %d\r\n\r\n" % size
            assert (await told(port, head + length, b"c" * size)).endswith(b"%8d" % size)
        body = b"transfer-encoding: chunked\r\n\r\n" + chunks(1, 1_024) + chunks(300, 5_000) + b"0\r\n\r\n"
        assert (await told(port, head + body)).endswith(b"%8d" % (1_024 + 300 * 5_000))


def chunks(size: int, many: int) -> bytes:
    return (b"%x\r\n" % size + b"x" * size + b"\r\n") * many


@pytest.mark.parametrize("secure", [False, True], ids=["plain", "TLS"])
async def test_a_refused_client_gets_the_answer_and_is_cut_off_though_it_sends_on(
    monkeypatch: pytest.MonkeyPatch, secure: bool, certificate: Path
) -> None:
    """What it sends is not parsed."""
    monkeypatch.setattr(http_limits, "REFUSED_SECONDS", 0.3)
    known = certificate if secure else None
    context = ssl.create_default_context(cafile=known) if known else None
    async with served(counting, certificate=known) as port, asyncio.timeout(60):
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
        writer.write(b"no request\r\n\r\n")
        answer = b""
        with suppress(ConnectionError, ssl.SSLError):
            while not reader.at_eof():
                answer += await reader.read(2**16)
                writer.write(REQUEST * 10)
                await writer.drain()
                await asyncio.sleep(0.01)
        writer.transport.abort()
    assert answer.count(b"HTTP/1.1 ") == answer.count(b"HTTP/1.1 400 ") == 1


@pytest.mark.parametrize(
    "sent",
    [
        [],
        [b"G"],
        [b"GET / HTTP/1.1\r\n", *[b"a: b\r\n"] * 100],
        [b"GET / HTTP/1.1\r\n\r\n", b"\r\n"],
        [b"POST / HTTP/1.1\r\ncontent-length: 5\r\n\r\n"],
        [b"POST / HTTP/1.1\r\ncontent-length: 5\r\n\r\n", b"a", b"b"],
    ],
    ids=["nothing", "a letter", "line after line", "no second request", "no body", "half a body"],
)
async def test_a_request_that_does_not_come_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch, sent: list[bytes]
) -> None:
    monkeypatch.setattr(http_limits, "HEAD_SECONDS", 0.3)
    monkeypatch.setattr(http_limits, "SILENCE_SECONDS", 0.3)
    async with served(counting) as port:
        async with asyncio.timeout(20):
            await told(port, *sent, pause=0.02)


async def late(scope: Any, receive: Any, send: Any) -> None:
    """Reads the body when it has time for it."""
    await asyncio.sleep(1)
    await counting(scope, receive, send)


@in_real_time
async def test_a_body_takes_its_time_where_it_comes_or_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_limits, "HEAD_SECONDS", 0.3)
    monkeypatch.setattr(http_limits, "SILENCE_SECONDS", 0.3)
    head = b"POST /?0 HTTP/1.1\r\nconnection: close\r\ncontent-length: "
    async with served(counting) as port:
        assert (await told(port, head + b"10\r\n\r\n", *[b"a"] * 10, pause=0.1)).endswith(b"%8d" % 10)
    async with served(late) as port:
        assert (await told(port, head + b"5000000\r\n\r\n", b"a" * 5_000_000)).endswith(b"%8d" % 5_000_000)


@in_real_time
async def test_an_answer_takes_its_time_though_the_next_request_has_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_limits, "HEAD_SECONDS", 0.2)
    async with served(counting) as port:
        answer = await told(port, b"GET /?1 HTTP/1.1\r\n\r\nG")
    assert answer.endswith(b"%8d" % 0)


LARGE = 20_000_000


async def large(scope: Any, receive: Any, send: Any) -> None:
    """An answer of one piece, as JSON and pages are: complete for the server before the client has any of it."""
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % LARGE)]})
    await send({"type": "http.response.body", "body": bytes(LARGE)})


async def piecewise(scope: Any, receive: Any, send: Any) -> None:
    """As `large`, in pieces, each when there is room for it."""
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % LARGE)]})
    for _ in range(100):
        await send({"type": "http.response.body", "body": bytes(LARGE // 100), "more_body": True})
    await send({"type": "http.response.body", "body": b""})


async def little(
    port: int, certificate: Path | None = None, *, room: int = 4096, limit: int = 1024
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection whose reader's kernel takes next to nothing for it: `room` bytes."""
    small = socket.socket()
    small.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, room)
    small.connect(("127.0.0.1", port))
    named = None if certificate is None else "127.0.0.1"
    context = None if certificate is None else ssl.create_default_context(cafile=certificate)
    return await asyncio.open_connection(sock=small, limit=limit, ssl=context, server_hostname=named)


async def slowly(port: int, certificate: Path | None, *, rests: Coroutine[Any, Any, object], pause: float) -> int:
    """How much comes of `large` where its reader first rests, and then between pieces."""
    reader, writer = await little(port, certificate, room=2**16, limit=2**16)
    writer.write(b"GET / HTTP/1.1\r\n\r\n")
    await rests
    await reader.readuntil(b"\r\n\r\n")
    came = 0
    with suppress(ConnectionError, ssl.SSLError):
        while came < LARGE and (piece := await reader.read(2**18)):
            came += len(piece)
            await asyncio.sleep(pause)
    writer.transport.abort()
    return came


@in_real_time
async def test_who_takes_nothing_of_an_answer_makes_room_and_who_reads_slowly_has_all_of_it(
    monkeypatch: pytest.MonkeyPatch, certificate: Path
) -> None:
    """However the answer goes out. All at once, as each of these waits most of its time, at a listener of its own."""
    monkeypatch.setattr(http_limits, "SILENCE_SECONDS", 1.5)
    monkeypatch.setattr(http_limits, "connections_max", lambda: 2)
    await asyncio.gather(*map(room_is_made, (large, piecewise, piecewise), (None, None, certificate)))


async def room_is_made(app: Any, known: Path | None) -> None:
    """By whom takes nothing, once it has done so for long enough, and not by whom reads slowly."""
    async with served(app, certificate=known) as port:
        made = asyncio.Event()
        slow = asyncio.create_task(slowly(port, known, rests=asyncio.sleep(0), pause=0.06))  # who is looked at first
        nothing = asyncio.create_task(slowly(port, known, rests=made.wait(), pause=0))
        await asyncio.sleep(0.3)
        with pytest.raises((OSError, EOFError)):
            await started(port, known)
        await asyncio.sleep(2.2)
        await started(port, known)
        made.set()
        assert await slow == LARGE
        assert await nothing < LARGE


async def started(port: int, certificate: Path | None) -> None:
    """Ask, and leave as the answer begins."""
    context = None if certificate is None else ssl.create_default_context(cafile=certificate)
    reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
    try:
        writer.write(b"GET / HTTP/1.1\r\n\r\n")
        await reader.readuntil(b"\r\n\r\n")
    finally:
        writer.transport.abort()


async def test_who_is_still_taking_an_answer_makes_no_room_for_others(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_limits, "connections_max", lambda: 2)
    async with served(large) as port:
        taking = asyncio.create_task(slowly(port, None, rests=asyncio.sleep(1), pause=0))
        await asyncio.sleep(0.3)
        silent = [await asyncio.open_connection("127.0.0.1", port) for _ in range(4)]
        assert await taking == LARGE
        assert [reader.at_eof() for reader, _ in silent[:3]] == [True] * 3
        for _, writer in silent:
            writer.close()


async def ending(scope: Any, receive: Any, send: Any) -> None:
    """An answer that nobody has to wait with, and that a small buffer of the kernel does not hold."""
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % ENDING)]})
    await send({"type": "http.response.body", "body": bytes(ENDING)})


ENDING = 60_000


@pytest.mark.parametrize("secure", [False, True], ids=["plain", "TLS"])
async def test_who_is_still_taking_the_end_of_an_answer_makes_no_room_for_others(
    monkeypatch: pytest.MonkeyPatch, certificate: Path, secure: bool
) -> None:
    """Nor later, where the rest of it was taken meanwhile and the next request begins."""
    monkeypatch.setattr(http_limits, "connections_max", lambda: 2)
    known = certificate if secure else None
    async with served(ending, buffer=4096, certificate=known) as port:
        reader, writer = await little(port, known)
        for _ in range(2):
            writer.write(b"GET / HTTP/1.1\r\n\r\n")
            await reader.readuntil(b"\r\n\r\n")
            silent = [await asyncio.open_connection("127.0.0.1", port) for _ in range(3)]
            assert len(await reader.readexactly(ENDING)) == ENDING
            assert [await one.read() for one, _ in silent[:2]] == [b""] * 2
            silent[2][1].close()
        writer.close()


@pytest.mark.parametrize(
    ("secure", "head", "body"),
    [
        (False, b"", b""),
        (False, b"GET / HT", b""),
        (False, b"POST / HTTP/1.1\r\ncontent-length: 99999\r\n\r\n", b"x"),
        (True, b"GET / HT", b""),
    ],
    ids=["nothing", "half a head", "a body, byte by byte", "half a head, over TLS"],
)
async def test_who_takes_nothing_of_the_end_of_an_answer_makes_room_whatever_it_sends(
    monkeypatch: pytest.MonkeyPatch, certificate: Path, secure: bool, head: bytes, body: bytes
) -> None:
    monkeypatch.setattr(http_limits, "HEAD_SECONDS", 0.2)
    monkeypatch.setattr(http_limits, "SILENCE_SECONDS", 1.0)
    monkeypatch.setattr(http_limits, "connections_max", lambda: 2)
    monkeypatch.setattr(sys.modules[__name__], "ENDING", 25_000)
    known = certificate if secure else None
    async with served(ending, buffer=4096, certificate=known) as port:
        takers = [await little(port, known) for _ in range(2)]
        for reader, writer in takers:
            writer.write(b"GET / HTTP/1.1\r\n\r\n")
            await reader.readuntil(b"\r\n\r\n")
            writer.write(head)
        async with asyncio.timeout(20):
            while not await let_in(port, known):
                await asyncio.sleep(0.05)
                for _, writer in takers:
                    writer.write(body)
        for _, writer in takers:
            writer.transport.abort()


async def let_in(port: int, certificate: Path | None) -> bool:
    with suppress(OSError, EOFError):
        await started(port, certificate)
        return True
    return False
