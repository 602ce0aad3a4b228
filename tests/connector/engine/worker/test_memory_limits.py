"""What a worker keeps for its next job, and how little of it there is."""

from __future__ import annotations

import resource
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from connector.engine.pool import pool
from connector.engine.pool.protocol import Limits
from connector.engine.pool.sandbox import environment
from connector.engine.worker import memory_limits
from connector.engine.worker.memory_limits import Memory, MemoryLimits
from tests.support.own_name import changed

MB = 2**20


def empty() -> MemoryLimits:
    return MemoryLimits(threading.RLock())


def opening(close: Callable[[], None], seconds: float = 0.0) -> Any:
    """What has rested for so long."""
    return SimpleNamespace(close=close, rested_at=time.monotonic() - seconds, limits=Limits(threads=2))


def test_an_engine_that_has_waited_long_goes_though_others_keep_the_worker_busy(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(MemoryLimits, "_current_use", lambda _: Memory())
    monkeypatch.setattr(memory_limits, "REST", 3_600.0)
    one, closed = empty(), []
    for key, seconds in (("gone", memory_limits.REST + 1), ("new", 0.0)):
        one.kept[key] = opening(lambda key=key: closed.append(key), seconds)
    one.begin()
    assert closed == ["gone"]
    assert list(one.kept) == ["new"]


class Heap:
    """What a worker holds in MB: the engines that it keeps, the oldest first, and what else its jobs have left."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *engines: int, left: int = 0, mapped: int = 0) -> None:
        self.keeping, self.closed, self.given_back = empty(), list[int](), 0
        self.keeping.bare = Memory(*[100 * MB] * 4)
        self.engines, self.left, self.mapped = dict(enumerate(engines)), left, mapped
        for number in self.engines:
            self.keeping.kept[str(number)] = opening(lambda number=number: self.close(number))
        monkeypatch.setattr(memory_limits.duckdb_engine, "connect", object)
        monkeypatch.setattr(MemoryLimits, "_current_use", lambda _: self.held())
        give_back = MemoryLimits._give_back
        monkeypatch.setattr(MemoryLimits, "_give_back", lambda one: (give_back(one), self.give_back()))

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
    heap.keeping.begin()
    assert (heap.closed, heap.keeping.resting.data // MB) == (closed, resting)


@pytest.mark.parametrize(
    ("unused", "left", "resting", "asked"),
    [
        (0, 0, 100, 0),
        (100, 0, 100, 0),  # in memory, and the next job's engine takes it first
        (100, 20, 120, 0),
        (300, 0, 100, 1),  # more than that is given back
    ],
)
def test_what_the_engine_has_freed_is_a_part_of_what_the_next_job_may_take(
    monkeypatch: pytest.MonkeyPatch, unused: int, left: int, resting: int, asked: int
) -> None:
    freed = Freed(monkeypatch, unused)
    now = 100 + left
    monkeypatch.setattr(Memory, "now", lambda: Memory(*[(now + freed.mb) * MB] * 4))
    one = empty()
    one.bare, one.spare = Memory(*[100 * MB] * 4), object()
    one.begin()
    assert (one.resting.data // MB, freed.asked) == (resting, asked)


@pytest.mark.parametrize("kept", [False, True])
@pytest.mark.parametrize(
    ("unused", "touched", "others", "limit", "asked"),
    [
        (0, 0, 0, 100, 0),
        (100, 100, 0, 100, 0),
        (150, 60, 0, 100, 0),  # a statement has as much as ever though a part of it was never touched,
        (150, 0, 0, 100, 0),
        (150, 60, 40, 140, 0),  # and what else is mapped counts as before
        (193, 60, 0, 100, 1),  # more is given back, touched or not
    ],
)
def test_what_the_engine_has_set_aside_and_never_touched_takes_nothing_from_a_statement(
    monkeypatch: pytest.MonkeyPatch, *, kept: bool, unused: int, touched: int, others: int, limit: int, asked: int
) -> None:
    freed = Freed(monkeypatch, unused)

    def now() -> Memory:
        there = 100 + (touched if freed.mb else 0)
        mapped = 100 + freed.mb + others
        return Memory(mapped * MB, mapped * MB, there * MB, there * MB)

    monkeypatch.setattr(Memory, "now", now)
    one = empty()
    one.bare, one.spare = Memory(*[100 * MB] * 4), object()
    if kept:
        one.kept["engine"] = opening(lambda: None)
    one.begin()
    assert (one.resting.data // MB, freed.asked) == (limit, asked)
    assert one.resting.untouched // MB == others


@pytest.mark.parametrize(("most", "asked"), [(512, 0), (400, 0), (256, 1)])
def test_a_small_job_does_not_find_its_memory_taken_by_what_the_engine_has_freed(
    monkeypatch: pytest.MonkeyPatch, most: int, asked: int
) -> None:
    monkeypatch.setattr(memory_limits, "resource", changed(resource, setrlimit=lambda *_: None))
    freed = Freed(monkeypatch, 150)
    for jobs in ([], [(0, False)], [(most, False)]):
        empty().limit(jobs)
    assert freed.asked == asked


@pytest.mark.parametrize(("mapped", "more"), [(0, 136), (100, 64), (400, 34), (4000, 34)])
def test_a_statement_has_half_of_its_memory_however_much_is_mapped(
    monkeypatch: pytest.MonkeyPatch, mapped: int, more: int
) -> None:
    limits: list[int] = []
    noted = changed(resource, setrlimit=lambda _, both: limits.append(both[0] // MB))
    monkeypatch.setattr(memory_limits, "resource", noted)
    monkeypatch.setattr(memory_limits.jemalloc, "count_unused_bytes", lambda: 0)
    one = empty()
    one.resting = Memory(*[(100 + mapped) * MB] * 2, 100 * MB, 200 * MB)
    one.limit([(68, False)])
    assert limits == [100 + mapped + more] * 2


def test_a_scan_has_address_space_for_what_arrow_sets_aside_beside_large_values(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    limits: list[int] = []
    noted = changed(resource, setrlimit=lambda _, both: limits.append(both[0] // MB))
    monkeypatch.setattr(memory_limits, "resource", noted)
    monkeypatch.setattr(memory_limits.jemalloc, "count_unused_bytes", lambda: 0)
    one = empty()
    one.resting = Memory(400 * MB, 100 * MB, 100 * MB, 200 * MB)
    one.limit([(128, True)])
    assert limits == [100 + 428, 400 + 4 * 428]


class Freed:
    """What the engine's allocator has been given back, in MB, and how often it was asked to let go of it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, mb: int) -> None:
        self.mb, self.asked = mb, 0
        monkeypatch.setattr(memory_limits.jemalloc, "count_unused_bytes", lambda: self.mb * MB)
        monkeypatch.setattr(memory_limits.jemalloc, "purge", self.give_back)

    def give_back(self) -> None:
        self.mb, self.asked = 0, self.asked + 1


def test_an_idle_worker_lets_go_before_anybody_waits_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    heap = Heap(monkeypatch, 20, 20)
    heap.keeping.quiet()
    assert (heap.closed, heap.keeping.tidy, heap.keeping.spare is not None) == ([0], True, True)


@pytest.mark.parametrize("given_back", [0, 40])
def test_what_is_kept_goes_after_its_time_whatever_was_given_back_before(
    monkeypatch: pytest.MonkeyPatch, given_back: int
) -> None:
    heap = Heap(monkeypatch, 10, left=40 if given_back else 0)
    heap.given_back, heap.keeping.left = given_back, True
    assert heap.keeping.pause() == memory_limits.SOON
    heap.keeping.quiet()
    assert (heap.closed, heap.keeping.pause()) == ([], memory_limits.REST)
    heap.keeping.quiet()
    assert (heap.closed, heap.keeping.pause()) == ([0], None)


def test_arrow_in_a_worker_sets_little_aside() -> None:
    """What its allocator may fill without asking the kernel would be beside the limits of a job."""
    program = (
        "import pyarrow as pa\n"
        "def data(): return next(int(l.split()[1]) for l in open('/proc/self/status') if l.startswith('VmData'))\n"
        "before = data()\n"
        "held = [pa.allocate_buffer(2**20) for _ in range(8)]\n"
        "print(pa.default_memory_pool().backend_name, (data() - before) // 1024)"
    )
    backend, mapped = in_a_worker(program)
    assert backend == "mimalloc"
    assert int(mapped) < 64


def test_the_engine_s_memory_is_taken_again_or_given_back() -> None:
    program = (
        "from connector.infra import jemalloc as jemalloc\n"
        "from connector.engine.worker.read import duckdb_engine as duckdb_engine\n"
        "from connector.engine.worker.memory_limits import Memory\n"
        "con = duckdb_engine.connect()\n"
        "con.execute('SET threads = 2')\n"
        "groups = 'SELECT i % 1000000 AS k, count(*) AS n FROM range(3000000) t(i) GROUP BY k'\n"
        "def ask(): con.sql(f'SELECT max(n) FROM ({groups})').fetchall()\n"
        "told = []\n"
        "for _ in range(3):\n"
        "    ask()\n"
        "    told += [jemalloc.count_unused_bytes() // 2**20, Memory.now().data // 2**20]\n"
        "jemalloc.purge()\n"
        "print(*told, jemalloc.count_unused_bytes() // 2**20, Memory.now().data // 2**20)"
    )
    first, held, *_, last, still, left, without = map(int, in_a_worker(program))
    assert min(first, last) > 30
    assert still < held + first // 2
    assert (left, without < held - first // 2) == (0, True)


def in_a_worker(program: str) -> list[str]:
    """What a program prints where memory is had as in a worker."""
    return subprocess.run(
        [sys.executable, "-c", program],
        env=environment(**pool._ALLOCATION), capture_output=True, text=True, check=True,
    ).stdout.split()  # fmt: skip
