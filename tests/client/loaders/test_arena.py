"""Memory that workers fill and a loop reads: not filled while anybody has it, and not lost with a worker."""

from __future__ import annotations

import gc
import multiprocessing
import os
import sys
from collections.abc import Callable
from typing import Any

import pytest
from hanse.errors import Broken
from hanse.loaders import arena
from hanse.loaders.arena import Arena

pytestmark = pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="the system has no memory files")


def fill(shared: Arena, texts: list[bytes], told: Any, go: Any) -> None:
    """As a worker: each text into a slot of its own, and on when told to."""
    for text in texts:
        room = shared.room(len(text))
        if room is not None:
            room[1][: len(text)] = text
        told.send(room[0] if room is not None else None)
        go.recv()


class Worker:
    def __init__(self, shared: Arena, texts: list[bytes], *, method: str = "fork") -> None:
        context = multiprocessing.get_context(method)
        (self._told, told), (go, self._go) = context.Pipe(duplex=False), context.Pipe(duplex=False)
        self.process = context.Process(target=fill, args=(shared, texts, told, go))  # type: ignore[attr-defined]  # each kind has one
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


@pytest.mark.parametrize("method", ["fork", "spawn", "forkserver"])
def test_what_a_worker_fills_is_read_where_it_is(started: Start, method: str) -> None:
    shared = Arena()
    worker = started(shared, [b"one", b"two"], method=method)
    first, second = shared.take(worker.next(), 3), shared.take(worker.next(last=True), 3)
    assert (bytes(first), bytes(second)) == (b"one", b"two")


def test_a_slot_is_filled_again_when_nobody_has_any_of_it(started: Start) -> None:
    shared = Arena()
    worker = started(shared, [b"first", b"second", b"third"])
    place = worker.next()
    part = memoryview(shared.take(place, 5))[1:3]
    other = worker.next(last=True)
    assert (other != place, bytes(part)) == (True, b"ir")
    part.release()
    del part
    gc.collect()
    worker._go.send(None)
    assert worker.next(last=True) == place
    assert bytes(shared.take(place, 5)) == b"third"


def test_a_worker_whose_slots_are_all_held_is_told_so(started: Start) -> None:
    shared = Arena()
    worker = started(shared, [b"x"] * (arena._SLOTS + 1))
    held = [shared.take(worker.next(), 1) for _ in range(arena._SLOTS)]
    assert len(held) == arena._SLOTS
    assert worker.next(last=True) is None
    assert Arena().room(arena._SLOT + 1) is None


def test_workers_that_live_at_once_fill_different_memory(started: Start) -> None:
    shared = Arena()
    places = [started(shared, [b"x"]).next(last=True) for _ in range(3)]
    assert len({region for region, _, _ in places}) == 3


def test_what_a_worker_sent_to_nobody_is_free_for_the_next_and_what_is_held_is_not(started: Start) -> None:
    shared = Arena()
    first = started(shared, [b"held", b"lost"])
    held = shared.take(first.next(), 4)
    lost = first.next(last=True)
    first.end()
    second = started(shared, [b"again", b"more."])
    places = [second.next(), second.next(last=True)]
    assert places[0][:2] == lost[:2]
    with pytest.raises(Broken, match="is gone"):
        shared.take(lost, 4)
    assert bytes(held) == b"held"
    assert [bytes(shared.take(place, 5)) for place in places] == [b"again", b"more."]


def test_what_a_fork_of_the_loop_forgets_stays_the_loops(started: Start) -> None:
    shared = Arena()
    worker = started(shared, [b"first", b"second"])
    held = shared.take(worker.next(last=True), 5)
    if (pid := os.fork()) == 0:
        del held
        gc.collect()
        os._exit(0)
    os.waitpid(pid, 0)
    worker._go.send(None)
    worker.next(last=True)
    assert bytes(held) == b"first"


def test_what_was_not_sent_is_given_back(started: Start) -> None:
    shared = Arena()
    place, _ = shared.room(1) or ((0, 0, 0), b"")
    shared.give_back(place)
    assert (shared.room(1) or ((1, 1, 1), b""))[0] == place


def test_without_memory_to_share_there_is_no_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "memfd_create")
    assert Arena().room(1) is None


def test_a_batch_may_be_forgotten_when_the_interpreter_has_ended_our_module(
    started: Callable[..., Worker], monkeypatch: pytest.MonkeyPatch
) -> None:
    shared, said = Arena(), []
    taken = shared.take(started(shared, [b"last"]).next(), 4)
    monkeypatch.setattr(sys, "unraisablehook", said.append)
    with monkeypatch.context() as ending:
        for name in ("os", "_FREE"):
            ending.setattr(arena, name, None)
        del taken
        gc.collect()
    assert said == []
