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


def keeping(monkeypatch: pytest.MonkeyPatch, *engines: int, left: int = 0) -> tuple[Worker, list[int]]:
    """A worker that keeps engines of so many MB, the oldest first, beside `left` that no engine has; whom it closed."""
    one, closed = worker(), []
    one.bare = Memory(data=100 * MB, resident=100 * MB)
    held = dict(enumerate(engines))

    def close(number: int) -> None:
        closed.append(number)
        del held[number]

    def now(_: Worker) -> Memory:
        return Memory(data=(100 + left + sum(held.values())) * MB, resident=(100 + left + sum(held.values())) * MB)

    for number in held:
        opening = SimpleNamespace(close=lambda number=number: close(number), rested_at=time.monotonic())
        one.kept[str(number)] = opening  # type: ignore[assignment]
    monkeypatch.setattr(Worker, "_held", now)
    return one, closed


@pytest.mark.parametrize(
    ("engines", "left", "closed", "resting"),
    [
        ((), 0, [], 100),
        ((), 7, [], 107),
        ((10, 10), 0, [], 100),  # whoever comes has them counted as his own
        ((20, 20), 0, [0], 100),
        ((20, 20, 15), 0, [0, 1], 100),
        ((20, 20), 40, [0, 1], 140),
        ((50,), 0, [0], 100),
    ],
)
def test_what_is_kept_counts_as_the_next_job_s_own_and_is_little(
    monkeypatch: pytest.MonkeyPatch, engines: tuple[int, ...], left: int, closed: list[int], resting: int
) -> None:
    one, told = keeping(monkeypatch, *engines, left=left)
    one._rest()
    assert (told, one.resting.data // MB) == (closed, resting)


def test_an_idle_worker_lets_go_before_anybody_waits_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session.engine, "connect", object)
    one, told = keeping(monkeypatch, 20, 20)
    one._tidy_up()
    assert (told, one.tidy, one.spare is not None) == ([0], True, True)
