"""Reading ahead: bounded, in order, and stopped when nobody wants more."""

from __future__ import annotations

import gc
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hanse.errors import AccessRevoked, Busy, HanseError, QuotaSpent, StreamFailed, Unreachable
from hanse.loaders import prefetch
from hanse.loaders.prefetch import read_ahead
from hanse.retry import Patience, is_temporary


class Source:
    """Numbers from 0, and how many were taken."""

    def __init__(self, count: int, *, error: Exception | None = None) -> None:
        self.count, self.error, self.taken, self.closed = count, error, 0, threading.Event()

    def __call__(self) -> Iterator[int]:
        try:
            for number in range(self.count):
                self.taken += 1
                yield number
            if self.error is not None:
                raise self.error
        finally:
            self.closed.set()


def settled(value: Callable[[], int], *, least: int) -> int:
    """The value a moment after it has come so far."""
    ends = time.monotonic() + 60
    while value() < least and time.monotonic() < ends:
        time.sleep(0.01)
    time.sleep(0.15)
    return value()


@pytest.mark.parametrize(("nbytes", "waiting"), [(1, 2), (25, 3), (100, 11)], ids=["one at a time", "two", "ten"])
def test_no_more_than_the_bound_waits(nbytes: int, waiting: int) -> None:
    source = Source(1000)
    found = read_ahead(source(), nbytes=nbytes, size=lambda _: 10)
    assert next(found) == 0
    assert settled(lambda: source.taken, least=waiting + 1) == waiting + 1
    found.close()
    assert source.closed.wait(60)


def test_at_the_end_all_are_told_at_once_and_waited_for_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prefetch, "_END_SECONDS", 0.4)
    told, goes_on = threading.Event(), threading.Event()

    def waiting(until: threading.Event) -> Iterator[int]:
        yield 0
        until.wait(60)
        yield 1

    def telling() -> Iterator[int]:
        try:
            yield from range(100)
        finally:
            told.set()

    readers = [read_ahead(waiting(told), nbytes=1, size=lambda _: 1)]  # ends as soon as the last one is told to
    readers += [read_ahead(waiting(goes_on), nbytes=1, size=lambda _: 1) for _ in range(30)]
    readers += [read_ahead(telling(), nbytes=1, size=lambda _: 1)]
    for reader in readers:
        assert next(reader) == 0
    first = next(iter(prefetch._RUNNING))
    begun = time.monotonic()
    prefetch._stop_all()
    assert time.monotonic() - begun < 15 * prefetch._END_SECONDS  # one after the other: 30 times
    assert not first.is_alive()
    goes_on.set()
    for reader in readers:
        reader.close()
    assert not prefetch._RUNNING


def test_what_the_end_of_the_process_breaks_off_is_told_to_nobody() -> None:
    """Not to a thread that the interpreter takes down with itself, which would show it as an error of the program."""
    woken = threading.Event()

    def source() -> Iterator[int]:
        yield 0
        woken.wait(60)
        raise StreamFailed("closed")

    told: list[Any] = []

    def reading() -> None:
        try:
            told.extend(read_ahead(source(), nbytes=1, size=lambda _: 1, wake=woken.set))
        except StreamFailed as error:
            told.append(error)

    reader = threading.Thread(target=reading, daemon=True)
    reader.start()
    settled(lambda: len(told), least=0)
    ((filling, queue),) = prefetch._RUNNING.items()
    prefetch._stop_all()
    reader.join(0.3)
    alive, items = reader.is_alive(), list(queue._items)
    queue._items.append((None, 0))  # let it go
    with queue._changed:
        queue._changed.notify_all()
    reader.join()
    assert (alive, items, filling.is_alive(), told) == (True, [], False, [0])


def test_an_iterator_that_the_collector_finds_in_its_own_thread_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    strange: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", strange.append)
    forgotten, collected = threading.Event(), threading.Event()

    def source() -> Iterator[int]:
        yield 0
        forgotten.wait(60)
        gc.collect()
        collected.set()
        yield 1

    circle: list[Any] = [read_ahead(source(), nbytes=1, size=lambda _: 1)]
    assert next(circle[0]) == 0
    ((thread, _),) = prefetch._RUNNING.items()
    circle.append(circle)
    gc.disable()
    try:
        del circle
        forgotten.set()
        assert collected.wait(60)
    finally:
        gc.enable()
    thread.join(60)
    assert (strange, thread.is_alive(), dict(prefetch._RUNNING)) == ([], False, {})


def test_items_come_in_order_and_the_error_after_them() -> None:
    found = read_ahead(Source(50, error=Busy("full"))(), nbytes=30, size=lambda _: 10)
    assert [next(found) for _ in range(50)] == list(range(50))
    with pytest.raises(Busy):
        next(found)


@pytest.mark.parametrize("nbytes", [10, "10"], ids=["by its items", "by its queue"])
def test_whatever_fails_where_is_read_ahead_is_raised_where_it_is_waited_for(nbytes: Any) -> None:
    found = read_ahead(iter([10, 10, "ten"]), nbytes=nbytes, size=lambda item: item)
    taken: list[Any] = []

    def take() -> None:
        with pytest.raises(TypeError):
            taken.extend(found)
        taken.append("raised")

    reader = threading.Thread(target=take, daemon=True)
    reader.start()
    reader.join(60)
    assert taken[-1] == "raised"


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (Unreachable("x"), True),
        (Busy("x", code="streams_max"), True),
        (Busy("x", code="quota_spent"), False),
        (QuotaSpent("x"), False),
        (AccessRevoked("x"), False),
        (StreamFailed("x", code="worker_crashed"), True),
        (StreamFailed("x", code="disk_full"), True),
        (StreamFailed("x", code="engine_failed"), False),
    ],
    ids=str,
)
def test_only_what_passes_by_itself_is_waited_for(error: HanseError, expected: bool) -> None:
    assert is_temporary(error) is expected


def test_patience_ends_when_nothing_came_for_its_time_and_begins_anew_with_a_row() -> None:
    clock = [0.0]
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        clock[0] += seconds

    patience = Patience(10, sleep=sleep, now=lambda: clock[0])
    for _ in range(3):
        patience.pause_or_raise(Unreachable("down"))
    patience.reset()
    began = clock[0]
    with pytest.raises(Unreachable):
        _bear_for_ever(patience)
    assert 10 <= clock[0] - began < 16
    assert slept[3] < 0.06
    with pytest.raises(AccessRevoked):
        Patience(10, sleep=sleep).pause_or_raise(AccessRevoked("over"))


def _bear_for_ever(patience: Patience) -> None:
    while True:
        patience.pause_or_raise(Unreachable("down"))


LEAVING = """
import time
import pyarrow as pa
from hanse.loaders.prefetch import read_ahead

class Slow:
    closed = False
    def __init__(self):
        sink = pa.BufferOutputStream()
        batch = pa.record_batch([range(1000)], ["n"])
        with pa.ipc.new_stream(sink, batch.schema) as out:
            for _ in range(1000):
                out.write_batch(batch)
        self.data = pa.BufferReader(sink.getvalue())
    def read(self, size=-1):
        time.sleep(0.001)
        return self.data.read_buffer(size)
    def readable(self):
        return True

class Late:
    sleep = staticmethod(time.sleep)
    def __del__(self):
        self.sleep(0.2)  # what ends with the interpreter takes its time

late = Late()
rows = read_ahead(pa.ipc.open_stream(Slow()), nbytes=1 << 30, size=lambda batch: batch.nbytes)
assert next(rows).num_rows == 1000
"""


@pytest.mark.parametrize("attempt", range(5))  # as it was, three of five were taken down
def test_a_program_that_ends_while_more_is_read_ends_well(attempt: int) -> None:
    ran = subprocess.run([sys.executable, "-c", LEAVING], capture_output=True, text=True)
    assert (ran.returncode, ran.stderr) == (0, "")
