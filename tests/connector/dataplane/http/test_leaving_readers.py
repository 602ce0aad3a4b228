"""Readers of files who leave, pipeline, are cancelled twice or take a little at a time: nobody else gets their bytes,
and nobody else waits."""

from __future__ import annotations

import asyncio
import gc
import socket
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

import pytest

from connector.dataplane.governed_stream import GovernedStream
from connector.dataplane.http import file_sender, send_threads, vectored_body
from connector.dataplane.http.file_spans import Span
from connector.dataplane.http.request_context import Exchange
from connector.dataplane.http.routes import _DataRoutes
from connector.dataplane.http.vectored_body import BEFORE, FILE, Cycle
from connector.datasets.sources.source_files import FileRef
from connector.errors import Unavailable
from tests.connector.dataplane.http.test_vectored_body import served
from tests.support.clocks import hands

TWO = b"GET / HTTP/1.1\r\nhost: a\r\n\r\n" * 2
SIZE = 2**26


class Wire:
    """A transport with nothing to write."""

    def __init__(self, out: socket.socket) -> None:
        self.out = out

    def write(self, data: bytes) -> None:
        """Only what the kernel sends counts here."""

    def get_write_buffer_size(self) -> int:
        return 0

    def is_closing(self) -> bool:
        return False

    def get_extra_info(self, name: str) -> socket.socket:
        return self.out


def cycle(out: socket.socket) -> Cycle:
    """A request on this socket, in the middle of its answer."""
    made = cast("Any", Cycle.__new__(Cycle))
    made.transport, made.disconnected, made.scope = Wire(out), False, {"method": "GET"}
    made.response_started, made.response_complete, made.chunked_encoding = True, False, True
    made.flow = type("Flow", (), {"write_paused": False})
    return cast("Cycle", made)


async def test_descriptors_stay_open_as_long_as_a_thread_uses_them() -> None:
    """Cancelled twice while it waits for a thread: the next connection has the numbers, and must not get the bytes."""
    busy = threading.Event()
    for _ in range(send_threads._SENDERS):
        send_threads._executor_of(send_threads.OURS).submit(busy.wait)
    mine, _peer = socket.socketpair()
    mine.setblocking(False)
    with tempfile.TemporaryFile() as file:
        file.write(b"S" * 1000)
        file.flush()
        message = {FILE: [(file.fileno(), 0, 1000)], "more_body": True}
        sending = asyncio.ensure_future(cycle(mine).send(message))
        for _ in range(2):
            await asyncio.sleep(0.02)
            sending.cancel()
        await asyncio.sleep(0.02)
        others = [end for _ in range(4) for end in socket.socketpair()]
        busy.set()
        await asyncio.wait((sending,))
        await asyncio.to_thread(send_threads._executor_of(send_threads.OURS).submit(len, "").result)
    for other in others:
        other.setblocking(False)
        with pytest.raises(BlockingIOError):
            other.recv(1)
    for one in (mine, *others):
        one.close()


async def test_files_on_a_disk_that_hangs_hold_up_none_of_another() -> None:
    """Of an owner's, as the transport sends them."""
    over = threading.Event()
    pairs = [socket.socketpair() for _ in range(send_threads._SENDERS + 2)]
    with tempfile.TemporaryFile("w+b", buffering=0) as file:
        file.write(b"S" * 1000)
        ref = FileRef("/disk/file", dev=1, inode=1, size=1000, mtime_ns=0)
        sending = [asyncio.ensure_future(sent(out, Span(file, 0, 1000, ref), over.wait)) for out, _ in pairs[:-1]]
        try:
            async with asyncio.timeout(20):
                for other in (Span(file, 0, 1000), Span(file, 0, 1000, replace(ref, dev=2))):
                    await sent(pairs[-1][0], other)
                    assert pairs[-1][1].recv(2000).count(b"S") == 1000
            assert not any(one.done() for one in sending)
        finally:
            over.set()
            await asyncio.wait(sending)
    for one in (end for pair in pairs for end in pair):
        one.close()


async def test_a_disk_that_is_slow_is_none_that_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    """What it has given of a large batch has been sent meanwhile."""
    monkeypatch.setattr(send_threads, "_SECONDS", 1.0)
    monkeypatch.setattr(file_sender, "_WINDOW", 2**16)
    mapped = file_sender._map_window

    def slowly(number: int, start: int) -> memoryview:
        time.sleep(0.15)
        return mapped(number, start)

    monkeypatch.setattr(file_sender, "_map_window", slowly)
    out, peer = socket.socketpair()
    with out, peer, tempfile.TemporaryFile("w+b", buffering=0) as file:
        file.truncate(10 * 2**16)
        reading = asyncio.ensure_future(asyncio.to_thread(all_of, peer, 10 * 2**16))
        await sent(out, Span(file, 0, 10 * 2**16))
        await reading


async def test_a_reader_who_leaves_while_the_disk_hangs_leaves_it_the_disk_s_fault(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(send_threads, "_SECONDS", 0.2)
    begun, over = threading.Event(), threading.Event()
    told: asyncio.Queue[BaseException] = asyncio.Queue()

    def hang() -> None:
        begun.set()
        over.wait()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        with tempfile.TemporaryFile() as file:
            file.truncate(100)
            message = {"type": "http.response.body", FILE: [(file.fileno(), 0, 100)], "more_body": True}
            sending = asyncio.ensure_future(send(message | {BEFORE: hang}))
            while (await receive())["type"] != "http.disconnect":
                pass
            sending.cancel()
            try:
                await sending
            except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001  whichever it is
                await told.put(error)

    async with served(app) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(TWO[: len(TWO) // 2])
        await asyncio.to_thread(begun.wait)
        await reader.read(100)
        writer.transport.abort()
        try:
            async with asyncio.timeout(60):
                assert isinstance(await told.get(), Unavailable)
        finally:
            over.set()


def all_of(peer: socket.socket, size: int) -> None:
    """Read so many bytes."""
    while size > 0:
        size -= len(peer.recv(size))


async def sent(out: socket.socket, span: Span, hung: Callable[[], object] | None = None) -> None:
    """A span on its way; a thread that looks at a disk that has `hung` waits."""
    out.setblocking(False)

    async def send(message: Any) -> None:
        await cycle(out).send(message | {BEFORE: hung or (lambda: None)})

    await Exchange({"headers": []}, cast("Any", None), send).file(span, lambda: None)


async def test_what_a_thread_said_of_a_reader_who_has_left_is_in_nobody_s_log() -> None:
    loop = asyncio.get_running_loop()
    told: list[Any] = []
    loop.set_exception_handler(lambda _, context: told.append(context))
    begun, left = threading.Event(), threading.Event()

    def work() -> None:
        begun.set()
        left.wait()
        raise BrokenPipeError

    def stop() -> None:
        left.set()
        time.sleep(0.05)  # the thread is done, and nobody here has heard of it

    sending = asyncio.ensure_future(send_threads.run_in_send_thread(work, stop=stop))
    await asyncio.to_thread(begun.wait)
    sending.cancel()
    await asyncio.wait((sending,))
    assert sending.cancelled()
    del sending
    gc.collect()
    await asyncio.sleep(0)
    assert told == []


async def again(send: Any, message: dict[str, Any]) -> None:
    """Parts, and nothing else to wait for in between."""
    for _ in range(20):
        await send(message)


async def test_the_first_of_two_pipelined_requests_hears_that_its_client_has_left() -> None:
    told: asyncio.Queue[str] = asyncio.Queue()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        async def gone() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass
            await told.put("gone")

        leaving = asyncio.ensure_future(gone())
        await send({"type": "http.response.start", "status": 200, "headers": []})
        with tempfile.TemporaryFile() as file:
            file.truncate(SIZE)
            message = {"type": "http.response.body", FILE: [(file.fileno(), 0, SIZE)], "more_body": True}
            with pytest.raises(ConnectionAbortedError):
                await again(send, message)
        await told.put("refused")
        await leaving

    async with served(app) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=2**10)
        writer.write(TWO)
        await reader.read(100)
        writer.transport.abort()
        async with asyncio.timeout(60):
            assert {await told.get(), await told.get()} == {"gone", "refused"}


def test_a_thread_is_given_back_although_its_reader_takes_a_little_all_the_time() -> None:
    """Readers who are never waited for long, each holding one of the few threads, would keep all others waiting."""
    with socket.create_server(("127.0.0.1", 0)) as listening, socket.socket() as peer:
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 16_384)
        peer.connect(listening.getsockname())
        out, _ = listening.accept()
        sent = pushed(out, peer)
    assert 0 < sent < SIZE // 4


def pushed(out: socket.socket, peer: socket.socket) -> int:
    """What one turn of a thread sends to a reader of small steps."""
    out.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)
    out.setblocking(False)
    enough = threading.Event()

    def sip() -> None:
        while peer.recv(16_384) and not enough.is_set():
            time.sleep(0.001)

    reading = threading.Thread(target=sip)
    with tempfile.TemporaryFile() as file:
        file.truncate(SIZE)
        reading.start()
        try:
            pushed = vectored_body._FileSending([(file.fileno(), 0, SIZE // 4)], before=None, more=None)
            assert not pushed.push(out)
            assert pushed._chunk is not None
            return SIZE // 4 - sum(map(file_sender.size_of, pushed._chunk.left))
        finally:
            enough.set()
            out.close()
            reading.join()


@pytest.mark.parametrize("over", [False, True], ids=["running", "revoked"])
async def test_what_passed_before_a_revocation_is_not_taken_for_ever(over: bool) -> None:
    """A little before each stall keeps a read that goes on, and not one that has ended."""
    taken = 0

    class Sips(Exchange):
        async def file(self, span: Any, following: Any, moved: Any = None) -> None:
            nonlocal taken
            while taken < 20:
                await clock.go_on(0.05)
                taken += 1
                moved()

        async def abort(self) -> None:
            """As if it had gone."""

    codes: list[str] = []
    stream = type(
        "Stream",
        (),
        {"over": over, "following": None, "abandon": staticmethod(lambda code, _reason: codes.append(code))},
    )
    exchange = Sips({"headers": []}, cast("Any", None), cast("Any", None))
    transport = _DataRoutes(cast("Any", None), cast("Any", None), owner="o", stall_seconds=0.4)
    with hands(stands=True) as clock, tempfile.TemporaryFile() as file:
        part = transport._send_part(exchange, cast("GovernedStream", stream), Span(file, 0, 1))
        if over:
            with pytest.raises(ConnectionAbortedError):
                await part
        else:
            await part
    assert codes == (["client_stalled"] if over else [])
    assert taken < 20 if over else taken == 20


class Cut:
    """A connection whose network has gone."""

    def sendmsg(self, _: Any) -> int:
        raise OSError(113, "No route to host")


async def test_a_connection_that_fails_in_any_way_is_a_client_that_has_left() -> None:
    nothing: Any = None
    with pytest.raises(ConnectionAbortedError, match="has left"):
        vectored_body._Chunk([b"x"]).push(cast("Any", Cut()), nothing, nothing)
