"""Calls of one HTTP/2 connection that take turns at its socket, on each event loop: windows and settings that change
while bytes are read, and who is told what while another call has the turn."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from connector.dataplane.flight.http2.frame_writer import Outward, Taker
from connector.dataplane.flight.http2.http2_connection import Call
from connector.dataplane.flight.http2.message_buffers import Message
from connector.dataplane.http import file_sender
from connector.dataplane.http.file_sender import Part
from tests.support import frames
from tests.support.certificates import self_signed
from tests.support.frames import HUGE, Place, Wire, enveloped, wired
from tests.support.waiting import until

SIZE = 6_000_000
TRAILERS = [("grpc-status", "0")]


class Answers:
    """What calls are answered with, by their paths. `held`: whoever looks at a file's bytes waits for `let`."""

    def __init__(self, folder: Path) -> None:
        self.raw = random.Random(1).randbytes(SIZE)
        self.path = folder / "data"
        self.path.write_bytes(self.raw)
        self.file = self.path.open("rb")
        self.held, self.let = threading.Event(), threading.Event()
        self.calls: dict[str, Call] = {}
        self.errors: list[BaseException] = []

    async def __call__(self, call: Call) -> None:
        name = call.path.rpartition("/")[2]
        self.calls[name] = call
        call.begin([(":status", "200")])
        try:
            await getattr(self, name)(call)
        except BaseException as error:
            self.errors.append(error)
            if not isinstance(error, Exception):
                raise
        call.finish(TRAILERS)

    async def memory(self, call: Call) -> None:
        await call.send(Message([enveloped(self.raw)]))

    async def small(self, call: Call) -> None:
        await call.send(Message([enveloped(b"small")]))

    async def nothing(self, call: Call) -> None:
        pass

    async def files(self, call: Call) -> None:
        await self._files(call, None)

    async def looked_at(self, call: Call) -> None:
        """Each byte is looked at as it goes, which a test may hold."""
        await self._files(call, self._look)

    def _look(self, piece: memoryview) -> None:
        self.held.set()
        self.let.wait()

    async def _files(self, call: Call, seen: Callable[[memoryview], object] | None) -> None:
        parts: list[Part] = [b"\0" + SIZE.to_bytes(4, "big"), (self.file.fileno(), 0, SIZE)]
        if call.sends_files:
            await call.send_files(iter([Message(parts, seen)]), device=0, moved=lambda: None)
        else:
            await self.memory(call)


@pytest.fixture
def answers(tmp_path: Path) -> Iterator[Answers]:
    made = Answers(tmp_path)
    yield made
    made.let.set()


@pytest_asyncio.fixture(params=["plain", "tls"])
async def place(request: pytest.FixtureRequest, tmp_path: Path, answers: Answers) -> AsyncIterator[Place]:
    certificate = str(self_signed(tmp_path / "owner.pem")) if request.param == "tls" else ""
    async with frames.answering(answers, certificate=certificate) as started:
        yield started


@pytest_asyncio.fixture
async def plain(answers: Answers) -> AsyncIterator[Place]:
    async with frames.answering(answers) as started:
        yield started


async def ponged(wire: Wire) -> None:
    """A ping and its answer: what was said before is known."""
    before = len(wire.pongs)
    wire.ping()
    await wire.until(lambda: len(wire.pongs) > before)


@pytest.mark.parametrize("kind", ["memory", "files"])
async def test_a_window_that_has_shrunk_below_zero_is_waited_for(
    place: Place, answers: Answers, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks, windows = [0], Outward.windows

    def look(outward: Outward, call: Taker) -> int:
        looks[0] += 1
        assert looks[0] < 1000, "it asks for ever"
        return windows(outward, call)

    monkeypatch.setattr(Outward, "windows", look)
    async with wired(place, INITIAL_WINDOW=50_000) as wire:
        number = wire.ask(kind, b"")
        await wire.until(lambda: wire.answers[number].window == 0)
        wire.settle(INITIAL_WINDOW=10_000)
        await ponged(wire)
        assert wire.answers[number].window == -40_000
        await asyncio.sleep(0.1)
        assert looks[0] < 20
        wire.grant(40_001, number)
        await wire.until(lambda: len(wire.answers[number].data) == 50_001)
        wire.grant(HUGE - 1, number)
        wire.grant(HUGE - wire.window)
        await wire.whole(number, generous=False)
        assert wire.answers[number].messages() == [answers.raw]


async def test_whoever_waits_is_told_though_the_frame_that_it_waited_for_is_of_a_call_that_was_reset(
    place: Place, answers: Answers
) -> None:
    async with wired(place, buffer=4096, INITIAL_WINDOW=HUGE, MAX_FRAME=2**24 - 1) as wire:
        wire.grant(HUGE - frames.WINDOW)
        first = wire.ask("memory", b"")
        await until(lambda: "memory" in answers.calls)
        await asyncio.sleep(0.1)
        second = wire.ask("nothing", b"")
        await until(lambda: answers.calls.get("nothing") is not None and answers.calls["nothing"].ended)
        wire.reset(first)
        await until(lambda: answers.calls["memory"].gone)
        await wire.until(lambda: wire.answers[second].ended)
        third = wire.ask("small", b"")
        await wire.whole(third)
        assert wire.answers[third].messages() == [b"small"]


@pytest.mark.parametrize("other", ["small", "nothing"])
async def test_who_waits_for_its_reader_s_window_holds_up_no_other_call(
    plain: Place, answers: Answers, other: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long its thread would wait; and what is said of calls that send nothing does not wait either."""
    monkeypatch.setattr(file_sender, "_PATIENCE", 600.0)
    monkeypatch.setattr(file_sender, "TURN", 600.0)
    async with wired(plain, INITIAL_WINDOW=10_000) as wire, asyncio.timeout(20):
        slow = wire.ask("files", b"")
        await wire.until(lambda: wire.answers[slow].window == 0)
        for _ in range(3):
            wire.grant(1000, slow)
            await wire.until(lambda: wire.answers[slow].window == 0)
            number = wire.ask(other, b"")
            await wire.until(lambda number=number: wire.answers[number].ended)
        wire.reset(slow)
        await until(lambda: answers.calls["files"].gone)


@pytest.mark.parametrize(
    "settings",
    [{"MAX_FRAME": 16_384}, {"INITIAL_WINDOW": 0}, {"MAX_FRAME": 20_000, "INITIAL_WINDOW": 100_000}],
    ids=str,
)
async def test_no_frame_is_larger_than_settings_that_were_acknowledged_before_it(
    plain: Place, answers: Answers, settings: dict[str, int]
) -> None:
    """Settings that come while bytes are read for frames of the size before."""
    async with wired(plain, INITIAL_WINDOW=HUGE, MAX_FRAME=2**24 - 1) as wire:
        wire.grant(HUGE - frames.WINDOW)
        number = wire.ask("looked_at", b"")
        await until(answers.held.is_set)
        wire.settle(**settings)
        wire.ping(b"question")
        await asyncio.sleep(0.1)
        answers.let.set()
        await wire.until(lambda: wire.pongs)
        await ponged(wire)
        if wire.answers[number].window <= 0:
            wire.grant(HUGE - wire.answers[number].window, number)
        await wire.whole(number)
        assert wire.answers[number].messages() == [answers.raw]


@pytest.mark.parametrize("kind", ["memory", "files"])
async def test_a_small_call_is_answered_while_a_large_one_runs(place: Place, answers: Answers, kind: str) -> None:
    async with wired(place, buffer=4096, INITIAL_WINDOW=SIZE - 1) as wire:  # the last of it waits for us
        wire.grant(HUGE - frames.WINDOW)
        large = wire.ask(kind, b"")
        await wire.until(lambda: wire.answers[large].data)
        small = wire.ask("small", b"")
        await wire.until(lambda: wire.answers[small].over)
        assert not wire.answers[large].ended
        wire.grant(SIZE, large)
        await wire.whole(large, generous=False)
        assert wire.answers[large].messages() == [answers.raw]
