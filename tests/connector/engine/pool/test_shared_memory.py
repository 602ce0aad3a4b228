"""Shared memory of a job: a slot is used again when its last holder lets go, and never while somebody holds it."""

from __future__ import annotations

import gc
import itertools
import mmap
import os
import socket
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from connector.engine.pool.shared_memory import Ring, slot_bytes
from connector.engine.pool.worker_process import WorkerProcess


@pytest.fixture
def freed() -> list[int]:
    return []


@pytest.fixture
def ring(freed: list[int]) -> Ring:
    return Ring(2, slot_bytes(2**16), released=freed.append)


def test_a_slot_comes_back_with_its_last_view(ring: Ring, freed: list[int]) -> None:
    view = ring.take(1, 100)
    part = view[10:20]
    del view
    assert (freed, ring.in_use) == ([], 1)
    del part
    assert (freed, ring.in_use) == ([1], 0)


def test_the_other_end_writes_what_this_one_reads_and_only_reads(ring: Ring) -> None:
    with mmap.mmap(ring.descriptor, 2 * ring.size) as theirs:
        theirs[ring.size : ring.size + 5] = b"batch"
        view = ring.take(1, 5)
        assert bytes(view) == b"batch"
        assert view.readonly


def test_views_outlive_the_ring(ring: Ring, freed: list[int]) -> None:
    view = ring.take(0, 8)
    ring.close()
    assert bytes(view) == bytes(8)
    del view
    assert freed == [0]


@pytest.mark.parametrize(("slot", "length"), [(2, 1), (-1, 1), (0, 10**9)], ids=["beyond", "below", "too long"])
def test_nonsense_of_a_worker_is_refused(ring: Ring, slot: int, length: int) -> None:
    with pytest.raises(ValueError, match="free slot"):
        ring.take(slot, length)


def test_a_held_slot_is_not_given_twice(ring: Ring) -> None:
    held = ring.take(0, 1)
    with pytest.raises(ValueError, match="free slot"):
        ring.take(0, 1)
    assert len(held) == 1


def test_nobody_can_cut_the_memory_off(ring: Ring) -> None:
    with pytest.raises(PermissionError):
        os.ftruncate(ring.descriptor, 0)


def open_rings() -> list[str]:
    found = []
    for number in os.listdir("/proc/self/fd"):
        with suppress(FileNotFoundError):  # closed meanwhile by another thread
            if "hanse-ring" in os.readlink(f"/proc/self/fd/{number}"):
                found.append(number)
    return found


def test_a_ring_that_is_in_a_circle_leaves_nothing_open_when_it_is_closed() -> None:
    """As that of a job is, by what it tells. Nothing may wait for the collector of garbage, which can take long."""
    circle: list[Ring] = []
    gc.collect()
    gc.disable()
    try:
        before = open_rings()
        circle.append(Ring(2, slot_bytes(2**16), released=lambda _: circle.reverse()))
        view = circle[0].take(0, 8)
        assert len(open_rings()) == len(before) + 2
        circle[0].close()
        assert bytes(view) == bytes(8)
        del view
        assert open_rings() == before
    finally:
        gc.enable()
    with pytest.raises(ValueError, match="free slot"):
        circle[0].take(0, 8)


def test_memory_at_rest_is_given_back_and_can_be_used_again(ring: Ring) -> None:
    with mmap.mmap(ring.descriptor, 2 * ring.size) as theirs:
        theirs[:5] = b"batch"
        assert bytes(ring.take(0, 5)) == b"batch"
        blocks = os.fstat(ring.descriptor).st_blocks
        ring.rest()
        assert os.fstat(ring.descriptor).st_blocks < blocks
        theirs[:5] = b"after"
        assert bytes(ring.take(0, 5)) == b"after"


def test_a_ring_that_nobody_knows_any_more_hears_of_its_slots() -> None:
    """Also where a collector of garbage comes by meanwhile: else its memory would stay open for ever."""
    told: list[int] = []

    def lent() -> tuple[int, memoryview]:
        """As a worker's whose job has ended: only what is told of its slots knows it."""
        mine = Ring(2, 4096, released=told.append)

        def released(slot: int) -> None:
            told.append(slot)
            mine.close()

        mine.released = released
        return mine.descriptor, mine.take(1, 5)

    descriptor, view = lent()
    gc.collect()
    os.fstat(descriptor)
    del view
    assert told == [1]
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(descriptor)


def test_a_slot_that_comes_back_late_is_no_news_for_the_next_job(ring: Ring, freed: list[int]) -> None:
    view = ring.take(0, 1)
    ring.released = [].append
    del view
    assert freed == [0]


def test_who_waits_for_a_ring_hears_once_that_nobody_holds_it(ring: Ring) -> None:
    heard: list[int] = []
    views = [[ring.take(0, 1)], [ring.take(1, 1)]]
    ring.when_free(lambda: heard.append(ring.in_use))
    letting_go = [threading.Thread(target=view.clear) for view in views]
    ring._kinds = Together(ring._kinds)
    for thread in letting_go:
        thread.start()
    for thread in letting_go:
        thread.join()
    assert heard == [0]
    ring.when_free(lambda: heard.append(ring.in_use))
    assert heard == [0, 0]


class Together(dict[int, Any]):
    """Nobody who takes something out goes on before a second one has done so, if one can."""

    barrier = threading.Barrier(2)

    def __delitem__(self, key: int) -> None:
        super().__delitem__(key)
        with suppress(threading.BrokenBarrierError):
            self.barrier.wait(0.5)


class Leaving(Ring):
    """Its last reader lets go just when somebody has seen that it is held."""

    view: list[memoryview]

    @property
    def in_use(self) -> int:
        found = super().in_use
        self.view.clear()
        return found


def test_a_ring_that_is_let_go_of_while_its_job_ends_waits_for_the_next_one() -> None:
    worker = WorkerProcess(Alive(), socket.socket(), Path())  # type: ignore[arg-type]
    with worker.control:
        ring = Leaving(1, 4096, released=lambda _: None)
        ring.view = [ring.take(0, 1)]
        worker.take_ring(ring)
        ring.view.clear()
        assert worker.lend_ring(1, 4096) is ring
        ring.close()


def test_a_ring_that_two_readers_let_go_of_at_once_is_lent_once() -> None:
    worker = WorkerProcess(Alive(), socket.socket(), Path())  # type: ignore[arg-type]
    with worker.control:
        ring = Late(2, 4096, released=lambda _: None)
        views = [[ring.take(0, 1)], [ring.take(1, 1)]]
        worker.take_ring(ring)
        ring._kinds = Together(ring._kinds)
        letting_go = [threading.Thread(target=view.clear) for view in views]
        for thread in letting_go:
            thread.start()
        while worker.ring is None:
            time.sleep(0.01)
        first = worker.lend_ring(2, 4096)
        ring.go.set()
        for thread in letting_go:
            thread.join()
        second = worker.lend_ring(2, 4096)
        assert first is not second
        for one in (first, second):
            assert one.descriptor >= 0
            one.close()


class Late(Ring):
    """Of two who see that nobody holds it, the second goes on later."""

    seen = itertools.count()
    go = threading.Event()

    @property
    def in_use(self) -> int:
        found = super().in_use
        if not found and next(self.seen):
            self.go.wait(5)
        return found


class Alive:
    """A process, as far as a ring asks."""

    returncode = None
