"""Memory that workers fill and a loop reads: not filled while anybody has it, and not lost with a worker."""

from __future__ import annotations

import gc
import multiprocessing
import os
import random
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest
from hanse.errors import Broken
from hanse.loaders.torch import shm_arena
from hanse.loaders.torch.shm_arena import Arena

from tests.support.own_name import changed

pytestmark = pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="the system has no memory files")


def put(shared: Arena, text: bytes, *, parts: int = 1) -> tuple[Any, Any]:
    """Text in a slot of its own, sent so many times: where it is, and what this process has of it."""
    room = shared.room(len(text))
    if room is None:
        return None, None
    memoryview(room).cast("B")[:] = text
    found = shared.place(room.address, room.address + room.size)
    assert found is not None
    assert found[1] == 0
    for _ in range(parts):
        shared.count_sent(found[0])
    return found[0], room


def fill(shared: Arena, texts: list[bytes], parts: int, told: Any, go: Any) -> None:
    """As a worker: each text into a slot of its own, and on when told to, with nothing kept of it."""
    for text in texts:
        place, _ = put(shared, text, parts=parts)
        del _
        told.send(place)
        go.recv()


class Worker:
    def __init__(self, shared: Arena, texts: list[bytes], *, parts: int = 1, method: str = "fork") -> None:
        context = multiprocessing.get_context(method)
        (self._told, told), (go, self._go) = context.Pipe(duplex=False), context.Pipe(duplex=False)
        self.process = context.Process(target=fill, args=(shared, texts, parts, told, go))  # type: ignore[attr-defined]  # each kind has one
        self.process.start()

    def next(self, *, last: bool = False) -> Any:
        assert self._told.poll(60)
        place = self._told.recv()
        if not last:
            self._go.send(None)
        return place

    def end(self) -> None:
        self.process.kill()
        self.process.join(60)


@pytest.fixture
def started() -> Any:
    workers: list[Worker] = []

    def start(*given: Any, **options: Any) -> Worker:
        workers.append(Worker(*given, **options))
        return workers[-1]

    yield start
    for worker in workers:
        worker.end()


Start = Callable[..., Worker]


def text(taken: Any, size: int = 5) -> bytes:
    return bytes(memoryview(taken)[:size])


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_what_a_worker_fills_is_read_where_it_is(started: Start, method: str) -> None:
    shared = Arena()
    worker = started(shared, [b"first", b"other"], method=method)
    first, second = shared.take(worker.next()), shared.take(worker.next(last=True))
    assert (text(first), text(second)) == (b"first", b"other")


def test_a_slot_is_filled_again_when_nobody_has_any_of_it(started: Start) -> None:
    shared = Arena()
    worker = started(shared, [b"first", b"second", b"third"])
    place = worker.next()
    part = memoryview(shared.take(place))[1:3]
    other = worker.next(last=True)
    assert (other[1] != place[1], bytes(part)) == (True, b"ir")
    part.release()
    del part
    gc.collect()
    worker._go.send(None)
    again = worker.next(last=True)
    assert (again[:2], again != place) == (place[:2], True)
    assert text(shared.take(again)) == b"third"


def test_a_slot_is_filled_again_when_all_parts_of_it_have_come_and_gone(started: Start) -> None:
    shared = Arena()
    worker = started(shared, [b"first", b"other", b"third"], parts=3)
    place = worker.next()
    once, twice = shared.take(place), shared.take(place)
    assert once is twice
    del once, twice
    other = worker.next(last=True)
    assert other[1] != place[1], "a part of the first is on its way"
    assert text(shared.take(place)) == b"first"
    worker._go.send(None)
    assert worker.next(last=True)[1] == place[1]


def test_a_slot_of_which_the_worker_has_something_is_not_filled_again() -> None:
    shared = Arena()
    place, room = put(shared, b"first", parts=0)
    other, _ = put(shared, b"other", parts=0)
    assert other[1] != place[1]
    del room
    assert put(shared, b"third", parts=0)[0][1] == place[1]


def test_a_worker_whose_slots_are_all_held_is_told_so(started: Start) -> None:
    shared = Arena()
    worker = started(shared, [b"x"] * (shm_arena._SLOTS + 1))
    held = [shared.take(worker.next()) for _ in range(shm_arena._SLOTS)]
    assert len(held) == shm_arena._SLOTS
    assert worker.next(last=True) is None
    assert Arena().room(shm_arena._SLOT + 1) is None


def test_what_is_received_leaves_room_for_what_is_put_together() -> None:
    shared, size = Arena(), shm_arena._LEAST
    received = [shared.memory(size) for _ in range(shm_arena._SLOTS)]
    assert [one.size for one in received] == [size] * shm_arena._SLOTS
    shares = [shared.place(one.address, one.address + size) is not None for one in received]
    assert shares == [True] * (shm_arena._SLOTS - shm_arena._SPARE) + [False] * shm_arena._SPARE
    assert shared.room(1) is not None


@pytest.mark.parametrize("size", [1, shm_arena._LEAST - 1, shm_arena._SLOT + 1])
def test_what_is_small_or_too_large_is_received_in_memory_of_arrow(size: int) -> None:
    shared = Arena()
    found = shared.memory(size)
    assert (found.size, shared.place(found.address, found.address + size)) == (size, None)


def test_memory_of_many_sizes_leaves_nothing_to_collect() -> None:
    shared = Arena()
    shared.memory(shm_arena._LEAST)
    gc.collect()
    for more in range(20):
        shared.memory(shm_arena._LEAST + more)
    assert gc.collect() == 0


def test_memory_beyond_a_slot_has_no_place() -> None:
    shared = Arena()
    (region, slot, _), room = put(shared, b"first")
    assert shared.place(room.address + 2, room.address + shm_arena._SLOT) == ((region, slot, 1), 2)
    assert shared.place(room.address + 2, room.address + shm_arena._SLOT + 1) is None
    assert shared.place(room.address + shm_arena._SLOT, room.address + shm_arena._SLOT + 1) is None, (
        "nobody has that slot"
    )
    assert shared.place(room.address - 1, room.address) is None


def test_workers_that_live_at_once_fill_different_memory(started: Start) -> None:
    shared = Arena()
    places = [started(shared, [b"x"]).next(last=True) for _ in range(3)]
    assert len({region for region, _, _ in places}) == 3


def test_what_a_worker_sent_to_nobody_is_free_for_the_next_and_what_is_held_is_not(started: Start) -> None:
    shared = Arena()
    first = started(shared, [b"held.", b"lost."], parts=2)
    kept = first.next()
    held = shared.take(kept)
    lost = first.next(last=True)
    first.end()
    second = started(shared, [b"again", b"more.", b"third"])
    places = [second.next(), second.next(last=True)]
    assert places[0][:2] == lost[:2]
    with pytest.raises(Broken, match="has ended"):
        shared.take(lost)
    assert text(held) == b"held."
    assert [text(shared.take(place)) for place in places] == [b"again", b"more."]
    del held
    gc.collect()
    second._go.send(None)
    assert second.next(last=True)[:2] in (kept[:2], places[0][:2])


def test_what_a_fork_of_the_loop_forgets_stays_the_loops(started: Start) -> None:
    shared = Arena()
    worker = started(shared, [b"first", b"second"])
    held = shared.take(worker.next(last=True))
    if (pid := os.fork()) == 0:
        del held
        gc.collect()
        os._exit(0)
    os.waitpid(pid, 0)
    worker._go.send(None)
    worker.next(last=True)
    assert text(held) == b"first"


def test_a_part_that_comes_while_another_thread_forgets_the_one_before_is_counted(started: Start) -> None:
    shared = Arena()
    worker = started(shared, [b"first", b"other"], parts=2)
    place = worker.next(last=True)
    held = [shared.take(place)]
    forgets = threading.Thread(target=held.clear)
    with shared._reading[os.getpid()]._lock:  # as `take` has it: the other thread waits for us
        forgets.start()
        while held:
            time.sleep(0.001)
        again = shared.take(place)
    forgets.join(60)
    del again
    gc.collect()
    worker._go.send(None)
    assert worker.next(last=True)[1] == place[1], "all of it has come and gone"


def test_threads_that_ask_for_the_first_room_at_once_have_a_slot_each(monkeypatch: pytest.MonkeyPatch) -> None:
    shared, locked, rooms = Arena(), shm_arena._lock_region, []

    def slowly(file: int) -> int:
        time.sleep(0.2)
        return locked(file)

    monkeypatch.setattr(shm_arena, "_lock_region", slowly)
    threads = [threading.Thread(target=lambda: rooms.append(shared.room(5))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    places = [shared.place(room.address, room.address + 5) for room in rooms]
    assert len({place[0][1] for place in places if place is not None}) == len(threads)


def fill_and_read(shared: Arena, told: Any, go: Any) -> None:
    """As a worker that looks itself at what it has put there."""
    place, _ = put(shared, b"first", parts=2)
    assert text(shared.take(place)) == b"first"
    gc.collect()
    told.send(place)
    go.recv()


def test_a_worker_that_was_forked_from_a_loop_that_has_read_keeps_its_region(started: Start) -> None:
    shared = Arena()
    shared.take(started(shared, [b"x"]).next())  # so that the next ones inherit what the loop has mapped
    context = multiprocessing.get_context("fork")
    (come, told), (go, goes) = context.Pipe(duplex=False), context.Pipe(duplex=False)
    worker = context.Process(target=fill_and_read, args=(shared, told, go), daemon=True)
    worker.start()
    assert come.poll(60)
    first = come.recv()
    second = started(shared, [b"other"]).next(last=True)
    goes.send(None)
    worker.join(60)
    assert first[0] != second[0]


def test_a_slot_that_a_loop_reads_is_not_filled_again_whatever_it_says_of_the_parts() -> None:
    shared = Arena()
    place, room = put(shared, b"first", parts=2)
    held = shared.take(place)
    del room
    shm_arena._write(
        shared._reading[os.getpid()]._maps[place[0]], place[1], shm_arena._RETURNED, 2
    )  # as of one read twice
    assert put(shared, b"other")[0][1] != place[1]
    assert text(held) == b"first"


def test_where_memory_cannot_be_mapped_there_is_no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    def mapped(*_: object) -> Any:
        raise OSError("no addresses are left")

    shared = Arena()
    monkeypatch.setattr(shm_arena, "_map_region", mapped)
    assert (shared.room(1), shared.place(0, 1), shared.memory(2**20).size) == (None, None, 2**20)


def test_a_file_that_cannot_be_as_large_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    def truncated(*_: object) -> None:
        raise OSError("file too large")

    monkeypatch.setattr(shm_arena, "os", changed(os, ftruncate=truncated))
    before = len(os.listdir("/proc/self/fd"))
    arenas = [Arena() for _ in range(3)]
    assert ([one.room(1) for one in arenas], len(os.listdir("/proc/self/fd"))) == ([None] * 3, before)


def test_regions_begin_where_pages_of_every_size_do() -> None:
    assert (shm_arena._REGION % 2**16, shm_arena._HEAD % 2**16) == (0, 0)


@pytest.mark.parametrize("locks", [True, False], ids=["", "without locks that are inherited"])
def test_what_a_fork_of_the_loop_has_stays_as_it_is_until_it_ends(
    started: Start, locks: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    shared = Arena()
    worker = started(shared, [b"first", b"other", b"third"])
    place = worker.next(last=True)
    held = [shared.take(place)]
    if not locks:
        monkeypatch.setattr(shm_arena, "_lock_slots", refused)
    (go, goes), (come, told) = os.pipe(), os.pipe()
    if (pid := os.fork()) == 0:
        os.close(goes)
        os.read(go, 1)
        os.write(told, text(held[0]))
        os._exit(0)
    held.clear()
    gc.collect()
    worker._go.send(None)
    other = worker.next(last=True)
    os.close(goes)
    assert os.read(come, 5) == b"first"
    os.waitpid(pid, 0)
    shared.take(other)
    worker._go.send(None)
    third = worker.next(last=True)
    assert (other[1] != place[1], third[1] == place[1]) == (True, locks)


def refused(*_: object) -> int:
    raise OSError("no such locks")


def fill_at_random(shared: Arena, count: int, told: Any) -> None:
    """As a worker: `count` numbers, each in memory of its own, of which a few are kept for a while."""
    drawn, kept = random.Random(7), []
    for number in range(count):
        parts = drawn.randrange(4)
        place, room = put(shared, number.to_bytes(8, "little") * 64, parts=parts)
        while place is None:
            time.sleep(0.001)
            place, room = put(shared, number.to_bytes(8, "little") * 64, parts=parts)
        kept = [*kept, room][-drawn.randrange(1, 6) :]
        told.send((number, place, parts))
    told.send(None)


def test_whatever_is_held_and_forgotten_in_whichever_order_stays_as_it_was() -> None:
    shared, drawn = Arena(), random.Random(11)
    context = multiprocessing.get_context("fork")
    come, told = context.Pipe(duplex=False)
    worker = context.Process(target=fill_at_random, args=(shared, 3000, told))
    worker.start()
    held: list[tuple[int, Any]] = []
    seen, waiting = 0, []
    try:
        while (came := come.recv()) is not None:
            number, place, parts = came
            waiting += [(number, place)] * parts
            while len(waiting) > 8:
                number, place = waiting.pop(0)
                held.append((number, shared.take(place)))
                seen += 1
            drawn.shuffle(held)
            for number, taken in held:
                assert text(taken, 512) == number.to_bytes(8, "little") * 64
            del held[drawn.randrange(12) :]
    finally:
        worker.kill()
        worker.join(60)
    assert seen > 4000


def test_without_memory_to_share_there_is_no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shm_arena, "os", changed(os, without=["memfd_create"]))
    shared = Arena()
    assert (shared.room(1), shared.place(0, 1), shared.memory(2**20).size) == (None, None, 2**20)


def test_a_batch_may_be_forgotten_when_the_interpreter_has_ended_our_module(
    started: Callable[..., Worker], monkeypatch: pytest.MonkeyPatch
) -> None:
    shared, said = Arena(), []
    taken = shared.take(started(shared, [b"last"]).next())
    monkeypatch.setattr(sys, "unraisablehook", said.append)
    with monkeypatch.context() as ending:
        for name in ("os", "_NUMBER", "_RECORD", "_RETURNED", "_IN_USE"):
            ending.setattr(shm_arena, name, None)
        del taken
        gc.collect()
    assert said == []
