"""Memory limits of a worker process, and what it keeps between jobs. Runs in a worker only.

Between jobs it keeps heap memory, an unused engine, and engines with their open files for the next job of the same
consumer (decision record 0016). While jobs run it keeps nothing more, as that would count against their memory.
"""

from __future__ import annotations

import ctypes
import resource
import threading
import time
from collections import OrderedDict
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from connector.engine.pool.protocol import Job
from connector.engine.worker.read import duckdb_engine
from connector.engine.worker.read.job_files import Opening
from connector.infra import jemalloc
from connector.infra.jemalloc import REUSED_MB

_SLACK = 300 * 2**20  # what a worker may take beyond its jobs' limits
_SLACK_MIN = 56 * 2**20  # of that: left to a person's SQL in any case; the pool ends a worker that holds more
_FIRST = 32 * 2**20  # of that: code and stacks that a job is the first to touch
_STACK = 8 * 2**20  # of a thread, mapped
_STACKS = 5 * _STACK  # of threads that have ended, which the C library keeps for others
_CPU_SLACK = 30
REST = 5.0  # seconds without a job until what was kept for the next one is let go of
# Seconds without a job until the next one's engine is made. That takes ten milliseconds of a processor, which the rest
# of a question may need: its other fragments run here or beside us, and its answers are merged right now.
SOON = 0.05
# Address space of scans for each byte that they may write to: for a large block Arrow's allocator reserves as much
# again or twice that, without write access.
_RESERVED = 4
_KEPT = 3  # engines with the files of jobs that have ended
_KEPT_MEMORY = 32 * 2**20  # they and all else that those jobs have left: whoever comes next has so much less
_KEPT_MAPPED = 2 * _KEPT_MEMORY  # the same with what is mapped, and can be filled again without asking
_REUSED = REUSED_MB * 2**20  # what the engine takes first: a part of what the next job may take


@dataclass(frozen=True, slots=True)
class Memory:
    """Memory of this process in bytes: address space, writable part, and what is in memory."""

    space: int = 0
    data: int = 0
    anonymous: int = 0
    resident: int = 0

    @property
    def untouched(self) -> int:
        """Writable bytes that are not in memory."""
        return self.data - self.anonymous

    def with_more(self, other: Memory) -> Memory:
        """Return the sum of both."""
        return Memory(
            self.space + other.space,
            self.data + other.data,
            self.anonymous + other.anonymous,
            self.resident + other.resident,
        )

    def without(self, size: int, there: int | None = None) -> Memory:
        """Return the figures less `size` mapped bytes, `there` of them in memory (None: all)."""
        less = max(0, size)
        there = less if there is None else there
        return Memory(self.space - less, self.data - less, self.anonymous - there, self.resident - there)

    @classmethod
    def now(cls) -> Memory:
        with open("/proc/self/status", encoding="ascii") as status:
            told = dict(line.split(":", 1) for line in status if line.startswith(("Vm", "Rss")))
        return cls(*(int(told[name].split()[0]) * 1024 for name in ("VmSize", "VmData", "RssAnon", "VmRSS")))


# An unused engine.
_ENGINE = Memory(space=8 * 2**20, data=4 * 2**20, anonymous=4 * 2**20, resident=4 * 2**20)


class MemoryLimits:
    """Sets the process limits for its jobs and keeps engines between jobs.

    Used by the threads of sessions and by the main thread. `lock` guards what they share.
    """

    def __init__(self, lock: threading.RLock) -> None:
        self.lock = lock
        self.spare: Any = None  # an engine for any job
        self.kept: OrderedDict[str, Opening] = OrderedDict()  # with the files of jobs that have ended, by their key
        self.resting = Memory()  # before the jobs that run now
        self.bare = Memory()  # when nothing was kept
        self.stacks = _STACKS  # mapped for threads at most
        self.most = 0  # MB that the jobs since then might take together at any one time
        self.untouched = 0  # mapped and not in memory before the first job: stacks above all
        self.tidy = False  # ready for the next job
        self.left = False  # memory that no job uses

    def start(self) -> None:
        """Before the first job."""
        self.prepare()
        self.untouched = Memory.now().untouched

    def prepare(self) -> None:
        """Create the next engine while no job waits for it."""
        with self.lock:
            if self.spare is None:
                self.spare = duckdb_engine.connect()

    def keep(self, opening: Opening) -> None:
        """Let it wait for a job of the same consumer over the same files."""
        opening.rested_at = time.monotonic()
        with self.lock:
            before = self.kept.pop(opening.key, None)
            self.kept[opening.key] = opening
        if before is not None:
            before.close()
        if len(self.kept) > _KEPT:
            self._forget_oldest()

    def kept_for(self, key: str) -> Opening | None:
        """What was kept for jobs of this key, unless a file has changed since."""
        with self.lock:
            found = self.kept.pop(key, None)
        if found is None or found.current():
            return found
        found.close()
        return None

    def forget(self) -> None:
        """Close what is kept: the jobs have not come."""
        while self.kept:
            self._forget_oldest()

    def _forget_oldest(self) -> None:
        with self.lock:
            oldest = self.kept.popitem(last=False)[1] if self.kept else None
        if oldest is not None:
            oldest.close()

    def engine(self) -> Any:
        """Return an unused engine."""
        with self.lock:
            spare, self.spare = self.spare, None
        return duckdb_engine.connect() if spare is None else spare

    def ended(self) -> None:
        """A job has left something."""
        self.tidy, self.left = False, True

    def limit(self, jobs: Sequence[tuple[int, bool]]) -> None:
        """Set the limits of the process for its jobs: MB of each, 0 while unknown, and whether it is a plain scan.

        The limit is what was held before plus what the jobs may take; without jobs there is no limit.
        A person's SQL stays, together with what the process held before, within limit and slack. Plain scans may use
        the whole slack, because a row group is as large as its owner made it. They share a process, and the heap may
        keep what one has freed: a limit that fell with each end would take memory from the others.
        Writable memory is limited (RLIMIT_DATA), and address space for kernels that count only the heap in that. Plain
        scans have several times the address space, or the largest values could not be read.

        A thread that gets no memory for its stack dies before it reports its start, and its starter waits forever. So
        the limit is lifted for each start, and set again when the job is known.
        """
        asked, more, plain = [most for most, _ in jobs], None, all(ours for _, ours in jobs)
        if asked and all(asked):
            if jemalloc.count_unused_bytes() > sum(asked) * 2**20 // 2:
                jemalloc.purge()  # a small job wants memory for other things than its engine, too
            self.most = max(self.most, sum(asked)) if plain else sum(asked)
            # However much is mapped: a worker that gave its jobs nothing would refuse all that come. It is ended soon.
            more = max(self.most * 2**20 + (_SLACK if plain else self._slack()), self.most * 2**20 // 2)
        space = _RESERVED if plain else 1
        held = ((resource.RLIMIT_DATA, self.resting.data, 1), (resource.RLIMIT_AS, self.resting.space, space))
        for limit, before, times in held:
            hard = resource.getrlimit(limit)[1]
            resource.setrlimit(limit, (hard if more is None else before + times * more, hard))

    def _slack(self) -> int:
        """Return the slack less what the process holds: in memory, or mapped and writable without asking.

        _SLACK_MIN remains, because stacks of threads are mapped and never filled. A fragmented heap is filled, and
        reduces it.
        """
        mapped = self.resting.untouched - self.untouched
        left = max(_SLACK_MIN, _SLACK - _FIRST - self.resting.resident - mapped)
        return left - max(0, mapped - self.stacks)

    def begin(self) -> None:
        """Measure the memory in use before the first of the jobs that come. Their limit is counted from it.

        `bare` is the memory in use when no engine was kept. What was filled since then belongs to kept engines. It
        counts as memory of the next job, as it did for the job that opened the engine. What is mapped but not filled
        takes nothing from the next job.
        """
        while self.kept and next(iter(self.kept.values())).rested_at + REST < time.monotonic():
            self._forget_oldest()  # its consumer sent no further job in time
        held = self._shed()
        self.resting, self.most = held.without(held.anonymous - self.bare.anonymous) if self.kept else held, 0
        self.stacks = _STACKS + sum(opening.limits.threads for opening in self.kept.values()) * _STACK

    def _shed(self) -> Memory:
        """Release kept memory until the next job has its slack. Returns the memory that is still in use.

        Unused heap goes first, then kept engines, the oldest first.
        """
        for shed in (self._give_back, *[self._forget_oldest] * len(self.kept)):
            held = self._current_use()
            there, mapped = held.anonymous - self.bare.anonymous, held.data - self.bare.data
            if there <= _KEPT_MEMORY and mapped <= _KEPT_MAPPED and jemalloc.count_unused_bytes() <= _REUSED:
                return held
            shed()
        self.bare = self._current_use()
        return self.bare

    def _current_use(self) -> Memory:
        """Return the memory in use, as limits count it.

        Unused heap of up to `_REUSED` is left out: the next job's engine takes it first, within the job's own limit.
        At most what was filled since `bare` counts as filled heap; the rest was reserved and never touched. Where no
        engine is ready, the memory of one is added: the first job opens it.
        """
        held, unused = Memory.now(), min(jemalloc.count_unused_bytes(), _REUSED)
        held = held.without(unused, max(0, min(unused, held.anonymous - self.bare.anonymous)))
        return held if self.spare is not None else held.with_more(_ENGINE)

    def _give_back(self) -> None:
        """Memory kept for the next batch goes back to the kernel; other C libraries than glibc keep none."""
        self.left = False
        jemalloc.purge()
        pa.default_memory_pool().release_unused()  # Arrow's own
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)

    def pause(self) -> float | None:
        """Seconds without a job until there is something to do; None where there is nothing any more."""
        if not self.tidy:
            return SOON
        return REST if self.left or self.kept else None

    def quiet(self) -> None:
        """Give back what was kept, in steps, while no job comes."""
        self._rested() if self.tidy else self._tidy_up()

    def _tidy_up(self) -> None:
        """Do what the next job would wait for otherwise. While jobs run it would count against their memory."""
        with suppress(Exception):  # the next job makes its own engine, and says what is wrong
            self.prepare()
        self._shed()
        self.tidy = True

    def _rested(self) -> None:
        """Give back everything that was kept, as no job has come."""
        self.forget()
        self._give_back()


def limit_cpu(job: Job) -> None:
    """Set the last time limit: processor seconds after which the kernel ends the process."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    seconds = int(used.ru_utime + used.ru_stime + job.limits.seconds * job.limits.threads) + _CPU_SLACK
    soft, hard = resource.getrlimit(resource.RLIMIT_CPU)
    if soft == resource.RLIM_INFINITY or seconds > soft:
        resource.setrlimit(resource.RLIMIT_CPU, (seconds if hard < 0 else min(seconds, hard), hard))
