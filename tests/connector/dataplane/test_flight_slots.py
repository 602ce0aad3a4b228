"""The slots between connector and Flight process: what a thread hands over in its turn, and when it ends."""

from __future__ import annotations

import asyncio
import mmap
import os
import select
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path

import pytest

from connector.dataplane.flight import link, slots
from connector.dataplane.flight.slots import Slots
from connector.dataplane.senders import OURS, in_thread
from connector.query.spans import Span

SIZE = 1000
MANY = 50


class Reader:
    """The other end of a channel, as the Flight process has it."""

    def __init__(self, channel: socket.socket) -> None:
        self.channel = channel
        self.memory: dict[int, mmap.mmap] = {}

    def next(self) -> tuple[int, bytes]:
        """Slot and bytes of the next batch."""
        kind, slot, size, descriptor = link.receive_header(self.channel)
        assert kind == link.BATCH
        if descriptor is not None:
            self.memory[slot] = mmap.mmap(descriptor, os.fstat(descriptor).st_size)
            os.close(descriptor)
        return slot, self.memory[slot][:size]

    def give_back(self, slot: int) -> None:
        self.channel.send(bytes((slot,)))

    def nothing(self) -> bool:
        """Whether no frame waits."""
        return not select.select([self.channel], [], [], 0)[0]


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, Reader]]:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    theirs.settimeout(10)
    with ours, theirs:
        yield ours, Reader(theirs)


@pytest.fixture
def spans(tmp_path: Path) -> Iterator[list[Span]]:
    """Parts of a file, each of other bytes."""
    path = tmp_path / "parts"
    path.write_bytes(b"".join(bytes((number,)) * SIZE for number in range(MANY)))
    with ExitStack() as stack:
        file = stack.enter_context(path.open("rb"))
        yield [Span(file, number * SIZE, SIZE) for number in range(MANY)]


def given(spans: list[Span]) -> tuple[Callable[[], Span | None], list[str]]:
    """These spans, one for each call, and the threads that asked."""
    left, asked = iter(spans), []

    def more() -> Span | None:
        asked.append(threading.current_thread().name)
        return next(left, None)

    return more, asked


async def test_a_thread_hands_over_many_parts_in_a_turn(
    pair: tuple[socket.socket, Reader], spans: list[Span], monkeypatch: pytest.MonkeyPatch
) -> None:
    channel, reader = pair
    monkeypatch.setattr(slots, "TURN", 60.0)
    monkeypatch.setattr(slots, "_PATIENCE", 60.0)
    made, (more, asked) = Slots(channel), given(spans)

    def read() -> list[bytes]:
        found = []
        for _ in spans:
            slot, data = reader.next()
            found.append(data)
            reader.give_back(slot)
        return found

    reading = asyncio.ensure_future(asyncio.to_thread(read))
    assert await made.put_spans(more) is False
    assert await reading == [bytes((number,)) * SIZE for number in range(MANY)]
    assert len(asked) == MANY + 1
    assert len(set(asked)) == 1
    assert threading.current_thread().name not in asked
    await made.close()


async def test_a_thread_does_not_wait_long_for_its_reader_and_asks_for_nothing_before_there_is_room(
    pair: tuple[socket.socket, Reader], spans: list[Span]
) -> None:
    channel, reader = pair
    made, (more, asked) = Slots(channel), given(spans)
    assert await made.put_spans(more) is True
    assert len(asked) == link.SLOTS
    waiting = asyncio.ensure_future(made.put_spans(more))
    await asyncio.sleep(0.05)
    assert (waiting.done(), len(asked)) == (False, link.SLOTS)
    slot, _ = await asyncio.to_thread(reader.next)
    reader.give_back(slot)
    async with asyncio.timeout(10):
        assert await waiting is True
    assert len(asked) == link.SLOTS + 1
    assert {reader.next()[1][0] for _ in range(link.SLOTS)} == {1, 2, 3, link.SLOTS}
    await made.close()


async def test_a_turn_ends_for_others(
    pair: tuple[socket.socket, Reader], spans: list[Span], monkeypatch: pytest.MonkeyPatch
) -> None:
    channel, _ = pair
    monkeypatch.setattr(slots, "TURN", 0.0)
    made, (more, asked) = Slots(channel), given(spans)
    assert await made.put_spans(more) is True
    assert len(asked) == 1
    await made.close()


@pytest.mark.parametrize("closed", [False, True], ids=["cancelled", "closed"])
async def test_what_is_stopped_waits_for_its_thread_and_hands_over_nothing_more(
    pair: tuple[socket.socket, Reader], spans: list[Span], closed: bool
) -> None:
    channel, reader = pair
    made, begun, go_on, asked = Slots(channel), threading.Event(), threading.Event(), []

    def more() -> Span | None:
        asked.append(1)
        begun.set()
        go_on.wait()
        return spans[0]

    sending = asyncio.ensure_future(made.put_spans(more))
    await asyncio.to_thread(begun.wait)
    ending = asyncio.ensure_future(made.close()) if closed else sending
    for _ in range(3):
        await asyncio.sleep(0.01)
        ending.cancel()
    await asyncio.sleep(0.01)
    waited = not ending.done()
    go_on.set()
    assert waited
    await asyncio.wait((ending, sending))
    with suppress(asyncio.CancelledError):
        await sending
    assert (len(asked), reader.nothing()) == (1, True)
    if not closed:
        await made.close()
    assert asyncio.get_running_loop().remove_reader(channel) is False


async def test_files_on_a_disk_that_hangs_hold_up_none_of_another(
    pair: tuple[socket.socket, Reader], spans: list[Span]
) -> None:
    over, (channel, reader) = threading.Event(), pair
    hung = [asyncio.ensure_future(in_thread(over.wait, stop=over.set, device=one)) for one in (OURS, 1) * MANY]
    made, (more, _) = Slots(channel), given(spans[:1])
    try:
        async with asyncio.timeout(20):
            assert await made.put_spans(more, device=2) is False
        assert reader.next() == (link.SLOTS - 1, bytes(SIZE))
    finally:
        over.set()
        await asyncio.wait(hung)
        await made.close()


@pytest.mark.parametrize("turning", [False, True])
async def test_a_reader_that_has_gone_is_noticed(
    pair: tuple[socket.socket, Reader], spans: list[Span], turning: bool
) -> None:
    channel, reader = pair
    made, (more, _) = Slots(channel), given(spans)
    if turning:
        assert await made.put_spans(more) is True
    assert not made.left.is_set()
    reader.channel.close()
    async with asyncio.timeout(10):
        await made.left.wait()
    await made.close()


async def test_batches_in_memory_go_the_same_way(pair: tuple[socket.socket, Reader]) -> None:
    channel, reader = pair
    made = Slots(channel)
    for number in range(3 * link.SLOTS):
        await made.put(bytes((number,)) * (SIZE + number * mmap.PAGESIZE))
        slot, data = reader.next()
        assert data == bytes((number,)) * (SIZE + number * mmap.PAGESIZE)
        reader.give_back(slot)
    await made.close()


async def test_a_slot_that_is_given_back_twice_is_free_once(pair: tuple[socket.socket, Reader]) -> None:
    channel, reader = pair
    made = Slots(channel)
    await made.put(b"a")
    slot, _ = reader.next()
    for _ in range(3):
        reader.channel.send(bytes((slot, slot, 200)) * 20)
        await asyncio.sleep(0.02)
    for _ in range(link.SLOTS):
        await made.put(b"b")
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await made.put(b"c")
    await made.close()
