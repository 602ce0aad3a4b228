"""The limits of a worker process while jobs come and go in it."""

from __future__ import annotations

import resource
import socket
import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from connector.engine.pool import protocol as wire
from connector.engine.pool.protocol import Job
from connector.engine.worker import memory_limits, tasks
from connector.engine.worker.memory_limits import Memory
from connector.engine.worker.read.object_channel import ObjectChannel
from connector.engine.worker.session import Session, Worker
from tests.support.own_name import changed


@pytest.fixture
def limits(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Every limit of what can be written to that is set, in MB; none is set in this process."""
    told: list[int] = []

    def setrlimit(which: int, pair: tuple[int, int]) -> None:
        if which == resource.RLIMIT_DATA:
            told.append(pair[0] // 2**20)

    monkeypatch.setattr(memory_limits, "resource", changed(resource, setrlimit=setrlimit))
    return told


def worker() -> Worker:
    ours, _ = socket.socketpair()
    made = Worker(ours, Path("nowhere"))
    made.keeping.resting = Memory(data=100 * 2**20)
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


def test_a_scan_that_takes_no_turns_has_the_memory_of_one_that_does(limits: list[int]) -> None:
    """Its files have names for places, and nothing else is different."""
    one = worker()
    for job in (Job(shared=True, ordered=True), Job(ordered=True)):
        one.sessions = jobs(0, plain=False)
        one.admit(one.sessions[0], job)
    assert limits[0] == limits[1]


@pytest.mark.parametrize(
    ("mapped", "left"),
    [(0, 81), (40, 56), (100, -4), (140, -44)],  # 40 MB are stacks of threads, which nobody fills
)
def test_what_would_be_filled_again_without_asking_is_taken_from_a_statement(
    limits: list[int], mapped: int, left: int
) -> None:
    one = worker()
    one.keeping.untouched = 130 * 2**20
    one.keeping.resting = Memory(data=(80 + 130 + mapped) * 2**20, anonymous=80 * 2**20, resident=187 * 2**20)
    one.sessions = jobs(256, plain=False)
    one._limit_memory()
    assert limits == [80 + 130 + mapped + 256 + left]


def test_a_job_that_begins_while_the_one_before_ends_has_its_limit(
    limits: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    one = worker()
    one.sessions = jobs(0, plain=False)  # it has come, and nobody knows its limits yet
    known = threading.Thread(target=one._limit_memory)

    def meanwhile(which: int) -> tuple[int, int]:
        if threading.current_thread() is threading.main_thread() and not known.ident:
            one.sessions[0].memory_mb = 512
            known.start()
            known.join(0.3)
        return resource.getrlimit(which)

    monkeypatch.setattr(memory_limits, "resource", changed(memory_limits.resource, getrlimit=meanwhile))
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


def test_a_session_ends_whatever_its_engine_and_files_say_to_that(tmp_path: Path) -> None:
    ended: list[Session] = []
    (channel, theirs), (desk, _) = socket.socketpair(), socket.socketpair()
    worker: Any = SimpleNamespace(ended=ended.append)
    one = Session(channel, tmp_path, worker, desk=ObjectChannel(desk), shared=None)

    def close() -> None:
        raise MemoryError

    one.opening = SimpleNamespace(close=close)  # type: ignore[assignment]
    with channel, theirs, pytest.raises(MemoryError):
        one._close()
    assert ended == [one]
    assert desk.fileno() == -1


def test_what_happened_first_is_told_where_files_cannot_be_looked_at(tmp_path: Path) -> None:
    channel, theirs = socket.socketpair()
    nobody: Any = None
    one = Session(channel, tmp_path, nobody, desk=None, shared=None)

    def check_unchanged() -> None:
        raise OSError

    one.opening = SimpleNamespace(files=[SimpleNamespace(check_unchanged=check_unchanged)])  # type: ignore[assignment]
    with channel, theirs:
        one._fail_because(MemoryError(), asked=True)
        assert b'"memory_limit"' in theirs.recv(2**16)


def test_frames_that_follow_at_once_leave_together() -> None:
    ours, theirs = socket.socketpair()
    nobody: Any = None
    session = Session(theirs, Path("nowhere"), nobody, desk=None, shared=None)
    ours.setblocking(False)
    session.send(wire.BATCH, size=7, slot=1, more=True)
    with pytest.raises(BlockingIOError):
        ours.recv(1)
    session.send(wire.END, b"{}")
    came = ours.recv(2**16)
    size = wire.HEADER.size
    heads = [wire.HEADER.unpack(came[at : at + size]) for at in (0, size)]
    assert [(kind, slot, length) for kind, _, slot, _, length, _, _ in heads] == [(wire.BATCH, 1, 7), (wire.END, 0, 2)]
    assert came[2 * size :] == b"{}"
    session.send(wire.END, b"{}")
    assert len(ours.recv(2**16)) == size + 2  # nothing twice


@pytest.mark.parametrize(
    ("following", "over"), [(None, True), ("a part", False), (RuntimeError(), False), (..., False)]
)
def test_an_answer_is_over_where_nothing_follows_and_that_is_known(following: Any, over: bool) -> None:
    future: Future[Any] = Future()
    if isinstance(following, Exception):
        future.set_exception(following)
    elif following is not ...:
        future.set_result(following)
    coming = object.__new__(tasks._Prefetcher)
    coming._coming = deque([future])
    assert coming.has_ended() is over


@pytest.mark.parametrize(("size", "ahead"), [(3 * 2**20, 2), (2**26, 0)], ids=["small", "large"])
def test_nothing_is_made_beside_a_large_batch_but_the_second(size: int, ahead: int) -> None:
    made: list[int] = []

    def parts() -> Iterator[Any]:
        for number in range(9):
            made.append(number)
            yield number

    with ThreadPoolExecutor(1) as maker:
        session: Any = SimpleNamespace(worker=SimpleNamespace(crowded=False), maker=maker)
        coming = tasks._Prefetcher(session, parts())
        for number, part in enumerate(coming):
            coming.set_size(size)
            maker.submit(int).result()  # all that was asked for is there
            assert (part, made) == (number, list(range(max(2, min(9, number + 1 + ahead)))))
