"""The limits of a worker process while jobs come and go in it."""

from __future__ import annotations

import resource
import socket
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from connector.query import session
from connector.query.session import Memory, Session, Worker


@pytest.fixture
def limits(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Every limit of what can be written to that is set, in MB; none is set in this process."""
    told: list[int] = []

    def setrlimit(which: int, pair: tuple[int, int]) -> None:
        if which == resource.RLIMIT_DATA:
            told.append(pair[0] // 2**20)

    monkeypatch.setattr(session.resource, "setrlimit", setrlimit)
    return told


def worker() -> Worker:
    ours, _ = socket.socketpair()
    made = Worker(ours, Path("nowhere"))
    made.resting = Memory(data=100 * 2**20)
    return made


def jobs(*sizes: int, plain: bool) -> dict[int, Any]:
    return {number: SimpleNamespace(memory_mb=size, plain=plain) for number, size in enumerate(sizes)}


def test_a_scan_that_ends_takes_no_memory_from_those_beside_it(limits: list[int]) -> None:
    one = worker()
    for sizes in ((128,), (128, 128), (128, 128, 128), (128,)):
        one.sessions = jobs(*sizes, plain=True)
        one._limit_memory()
    grown = [limit - limits[0] for limit in limits]
    assert grown == [0, 128, 256, 256]


def test_a_statement_of_somebody_has_its_own_limit_whatever_ran_before(limits: list[int]) -> None:
    one = worker()
    for size in (512, 128):
        one.sessions = jobs(size, plain=False)
        one._limit_memory()
    assert limits[0] - limits[1] == 384


def test_a_job_that_begins_while_the_one_before_ends_has_its_limit(
    limits: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    one = worker()
    one.sessions = jobs(0, plain=False)  # it has come, and nobody knows its limits yet
    known, getrlimit = threading.Thread(target=one._limit_memory), resource.getrlimit

    def meanwhile(which: int) -> tuple[int, int]:
        if threading.current_thread() is threading.main_thread() and not known.ident:
            one.sessions[0].memory_mb = 512
            known.start()
            known.join(0.3)
        return getrlimit(which)

    monkeypatch.setattr(session.resource, "getrlimit", meanwhile)
    one._limit_memory()  # by the thread of the job before
    known.join()
    assert limits[-1] > 512


def test_a_session_ends_though_its_engine_cannot_be_put_to_rest(tmp_path: Path) -> None:
    ended: list[Session] = []
    channel, theirs = socket.socketpair()
    one = Session(channel, tmp_path, SimpleNamespace(ended=ended.append), desk=None, shared=None)  # type: ignore[arg-type]
    one.whole, closed = True, []

    def rest() -> bool:
        raise MemoryError

    one.opening = SimpleNamespace(rest=rest, close=lambda: closed.append(True))  # type: ignore[assignment]
    with channel, theirs:
        one._close()
    assert (ended, closed) == ([one], [True])


def test_an_engine_that_has_waited_long_goes_though_others_keep_the_worker_busy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Worker, "_held", lambda _: Memory())
    one, closed = worker(), []
    for key, seconds in (("gone", session.REST + 1), ("new", 0.0)):
        opening = SimpleNamespace(close=lambda key=key: closed.append(key), rested_at=time.monotonic() - seconds)
        one.kept[key] = opening  # type: ignore[assignment]
    one._rest()
    assert closed == ["gone"]
    assert list(one.kept) == ["new"]


MB = 2**20


class Heap:
    """What a worker holds in MB: the engines that it keeps, the oldest first, and what else its jobs have left."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *engines: int, left: int = 0, mapped: int = 0) -> None:
        self.worker, self.closed, self.given_back = worker(), list[int](), 0
        self.worker.bare = Memory(*[100 * MB] * 4)
        self.engines, self.left, self.mapped = dict(enumerate(engines)), left, mapped
        for number in self.engines:
            opening = SimpleNamespace(close=lambda number=number: self.close(number), rested_at=time.monotonic())
            self.worker.kept[str(number)] = opening  # type: ignore[assignment]
        monkeypatch.setattr(session.engine, "connect", object)
        monkeypatch.setattr(Worker, "_held", lambda _: self.held())
        give_back = Worker._give_back
        monkeypatch.setattr(Worker, "_give_back", lambda one: (give_back(one), self.give_back()))

    def close(self, number: int) -> None:
        self.closed.append(number)
        del self.engines[number]

    def give_back(self) -> None:
        self.left -= self.given_back

    def held(self) -> Memory:
        there = (100 + self.left + sum(self.engines.values())) * MB
        return Memory(there + self.mapped * MB, there + self.mapped * MB, there, there)


@pytest.mark.parametrize(
    ("engines", "left", "mapped", "closed", "resting"),
    [
        ((), 0, 0, [], 100),
        ((), 7, 0, [], 107),
        ((10, 10), 0, 0, [], 100),  # whoever comes has them counted as his own,
        ((10, 10), 0, 40, [], 140),  # and not what is mapped alone
        ((20, 20), 0, 0, [0], 100),
        ((20, 20, 15), 0, 0, [0, 1], 100),
        ((20, 20), 40, 0, [0, 1], 140),
        ((10, 10), 0, 50, [0], 150),
        ((50,), 0, 0, [0], 100),
    ],
)
def test_what_is_kept_counts_as_the_next_job_s_own_and_is_little(
    monkeypatch: pytest.MonkeyPatch,
    engines: tuple[int, ...],
    left: int,
    mapped: int,
    closed: list[int],
    resting: int,
) -> None:
    heap = Heap(monkeypatch, *engines, left=left, mapped=mapped)
    heap.worker._rest()
    assert (heap.closed, heap.worker.resting.data // MB) == (closed, resting)


def test_an_idle_worker_lets_go_before_anybody_waits_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    heap = Heap(monkeypatch, 20, 20)
    heap.worker._tidy_up()
    assert (heap.closed, heap.worker.tidy, heap.worker.spare is not None) == ([0], True, True)


@pytest.mark.parametrize("given_back", [0, 40])
def test_what_is_kept_goes_after_its_time_whatever_was_given_back_before(
    monkeypatch: pytest.MonkeyPatch, given_back: int
) -> None:
    heap = Heap(monkeypatch, 10, left=40 if given_back else 0)
    heap.given_back, heap.worker.keeping = given_back, True
    assert heap.worker._pause() == session.SOON
    heap.worker._tidy_up()
    assert (heap.closed, heap.worker._pause()) == ([], session.REST)
    heap.worker._rested()
    assert (heap.closed, heap.worker._pause()) == ([0], None)
