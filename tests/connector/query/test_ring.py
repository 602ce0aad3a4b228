"""Shared memory of a job: a slot is used again when its last holder lets go, and never while somebody holds it."""

from __future__ import annotations

import gc
import mmap
import os
from contextlib import suppress

import pytest

from connector.query.ring import Ring, slot_bytes


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
    assert (freed, ring.held) == ([], 1)
    del part
    assert (freed, ring.held) == ([1], 0)


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
