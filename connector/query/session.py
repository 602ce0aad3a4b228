"""The inside of a worker process: job sockets taken, sessions run, the process kept within its limits.

Over the control socket come job sockets, one per job; on each a job comes in and frames go out
(`connector.query.job`). The main thread only watches: a job socket that closes cancels its job, a control socket that
closes ends the process. What the engine says about an error stays here; a code goes out.
"""

from __future__ import annotations

import ctypes
import itertools
import json
import mmap
import os
import resource
import select
import shutil
import socket
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from connector.errors import HanseError
from connector.query import engine, tasks
from connector.query import job as wire
from connector.query.codes import Coded
from connector.query.job import Job
from connector.query.opening import Opening, key_of
from connector.query.resting import Floor

_INTERRUPT_EVERY = 0.05
_PATIENCE = 0.1
_DECODE_AT_ONCE = 2
_SLACK = 300 * 2**20  # what a worker may take beyond its jobs' limits
_SLACK_MIN = 56 * 2**20  # of that: left to somebody's SQL in any case; the pool ends a process that rests on more
_FIRST = 32 * 2**20  # of that: code and stacks that a job is the first to touch
_CPU_SLACK = 30
REST = 5.0  # seconds without a job until what was kept for the next one is let go of
# Seconds without a job until the next one's engine is made. That takes ten milliseconds of a processor, which the rest
# of a question may need: its other fragments run here or beside us, and its answers are merged right now.
SOON = 0.05
_KEPT = 3  # engines with the files of jobs that have ended
_KEPT_MEMORY = 32 * 2**20  # they and all else that those jobs have left: whoever comes next has so much less
_KEPT_MAPPED = 2 * _KEPT_MEMORY  # the same with what is mapped, and can be filled again without asking
_TOLD_EVERY = 0.1
_NOT_OF_ROWS = frozenset({"cancelled", "source_unreadable"})


class Session:
    """One job on its socket, in a thread of its own."""

    def __init__(
        self, channel: socket.socket, folder: Path, worker: Worker, *, desk: socket.socket | None, shared: int | None
    ) -> None:
        self.channel = channel
        self.desk = desk  # where blocks of objects are borrowed
        self.shared = shared  # descriptor of the ring's memory
        self.folder = folder
        self.worker = worker
        self.cancelled = False
        self.job: Job | None = None
        self.opening: Opening | None = None  # the job's engine and files
        self.guard = threading.Lock()  # whoever interrupts finds an engine that is ours
        self.whole = False  # the job ended as it should
        self.memory_mb = 0
        self.plain = False  # nobody wrote SQL for it
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.maker = ThreadPoolExecutor(1)  # makes the next batch while one is sent
        self.told = ("", 0.0)  # the last stage, and when

    def cancel(self) -> None:
        """Interrupt what runs; called again and again until the session ends, as an interrupt can come too early."""
        self.cancelled = True
        self.interrupt()

    def interrupt(self) -> None:
        """Stop what the engine does now."""
        with self.guard:
            if self.opening is not None and (con := self.opening.con) is not None:
                self.opening.key = ""  # nobody has it after us
                with suppress(Exception):
                    con.interrupt()

    def open(self, job: Job) -> Opening:
        """What the job may read: kept from one before, or yet to be opened."""
        key = key_of(job)
        self.opening = found = self.worker.kept_for(key) or self.open_new(job, key=key)
        return found

    def open_new(self, job: Job, *, key: str = "") -> Opening:
        """What the job may read, yet to be opened, and for it alone without a key."""
        self.opening = found = Opening(job.limits, self.folder, desk=self.desk, key=key)
        return found

    @property
    def files(self) -> list[engine.Files]:
        return [] if self.opening is None else self.opening.files

    def check(self) -> None:
        """Raise where the caller has gone."""
        if self.cancelled:
            raise Coded("cancelled")

    def reached(self, stage: str, done: int) -> None:
        """Tell how many files are done in a stage of a long job: ten times a second, and at its start."""
        self.check()
        now = time.monotonic()
        if self.told[0] != stage or now >= self.told[1] + _TOLD_EVERY:
            self.told = (stage, now)
            self.send(wire.PROGRESS, json.dumps([stage, done]).encode())

    def send(
        self, kind: int, *parts: Any, size: int | None = None, rows: int = 0, digest: bytes = b"", slot: int = 0
    ) -> None:
        """One frame; blocks while the reader is slow. `parts` go out without being joined; none if `slot` has them."""
        length = sum(len(part) for part in parts) if size is None else size
        header = wire.HEADER.pack(kind, len(digest), slot, rows, length, digest)
        try:
            send_all(self.channel, [header, *parts])
        except OSError:
            raise Coded("cancelled") from None

    def credits(self, idle: Callable[[], None]) -> bytes:
        """Wait for what the connector says of the ring: numbers of free slots, or ANYWAY. `idle` is called now and
        then if it takes a while."""
        told = select.poll()
        told.register(self.channel, select.POLLIN | select.POLLRDHUP)
        while not told.poll(_PATIENCE * 1000):
            idle()
        try:
            found = self.channel.recv(16)
        except OSError:
            found = b""
        if not found:
            raise Coded("cancelled")
        return found

    def _run(self) -> None:
        try:
            self.maker.submit(int).result()  # its thread starts now, while nothing limits our memory
            self._work()
        finally:
            self._close()

    def _work(self) -> None:
        try:
            self.job = job = read_job(self.channel)
            self.worker.admit(self, job)
            tasks.run(self, job)
            self.whole = not self.cancelled
        except Coded as end:
            self._fail(end.code, type(end).__name__, facts=end.facts)
        except HanseError as error:
            self._fail(error.code, type(error).__name__, facts=error.facts, message=error.message)
        except BaseException as error:  # noqa: BLE001  whatever the engine raises becomes a code; its text stays here
            self._fail_because(error, asked=self.job is not None and self.job.kind in ("query", "report"))

    def _fail_because(self, error: BaseException, *, asked: bool) -> None:
        """A file that changed while it was read is the reason, whatever the engine makes of it."""
        for found in self.files:
            try:
                found.check_unchanged()
            except HanseError as changed:
                self._fail(changed.code, type(changed).__name__, facts=changed.facts, message=changed.message)
                return
            except Coded as end:
                self._fail(end.code, type(end).__name__, facts=end.facts)
                return
        code, kind = engine.code_of(error, asked=asked), type(error).__name__
        if self.job is not None and self.job.noise and code not in _NOT_OF_ROWS:
            # Which error it is depends on the rows, exactly: none of them is told from another.
            code, kind = "noise_failed", "Exception"
        self._fail(code, kind)

    def _fail(self, code: str, kind: str, *, facts: dict[str, Any] | None = None, message: str = "") -> None:
        """Tell a code; `message` only where the sentence is ours."""
        told = {
            "code": "cancelled" if self.cancelled else code,
            "class": kind,
            "facts": facts or {},
            "message": message,
        }
        with suppress(Coded, OSError):
            self.send(wire.ERROR, json.dumps(told).encode())

    def _close(self) -> None:
        self.maker.shutdown()
        with self.guard:
            opening, self.opening = self.opening, None
        if opening is not None and self.whole and _rests(opening):
            self.worker.keep(opening)
        elif opening is not None:
            opening.close()
        if self.desk is not None:
            self.desk.close()
        if self.shared is not None:
            os.close(self.shared)
        self.worker.ended(self)


def _rests(opening: Opening) -> bool:
    """Whether another job may have it; not where that cannot be told, as memory is short still."""
    try:
        return opening.rest()
    except Exception:  # noqa: BLE001  the session must end in any case: its caller waits
        return False


@dataclass(frozen=True, slots=True)
class Memory:
    """Of this process, in bytes: address space, what of it can be written to, and what is in memory."""

    space: int = 0
    data: int = 0
    anonymous: int = 0
    resident: int = 0

    @property
    def untouched(self) -> int:
        """What can be written to and is not in memory yet, or no more."""
        return self.data - self.anonymous

    def with_more(self, other: Memory) -> Memory:
        """Both together."""
        return Memory(
            self.space + other.space,
            self.data + other.data,
            self.anonymous + other.anonymous,
            self.resident + other.resident,
        )

    def without(self, size: int) -> Memory:
        """Less so much that is in memory; the same where that is not positive."""
        less = max(0, size)
        return Memory(self.space - less, self.data - less, self.anonymous - less, self.resident - less)

    @classmethod
    def now(cls) -> Memory:
        with open("/proc/self/status", encoding="ascii") as status:
            told = dict(line.split(":", 1) for line in status if line.startswith(("Vm", "Rss")))
        return cls(*(int(told[name].split()[0]) * 1024 for name in ("VmSize", "VmData", "RssAnon", "VmRSS")))


# An engine that nobody has used.
_ENGINE = Memory(space=8 * 2**20, data=4 * 2**20, anonymous=4 * 2**20, resident=4 * 2**20)


class Worker:
    """The watching side: takes job sockets, runs sessions, limits the process."""

    def __init__(self, control: socket.socket, folder: Path) -> None:
        self.control = control
        self.folder = folder
        self.sessions: dict[int, Session] = {}
        self.lock = threading.RLock()
        self.numbers = itertools.count(1)  # of folders
        self.spare: Any = None  # an engine for any job
        self.kept: OrderedDict[str, Opening] = OrderedDict()  # with the files of jobs that have ended, by their key
        self.wake_in, self.wake_out = socket.socketpair()
        self.floor = Floor(max(_DECODE_AT_ONCE, os.cpu_count() or 1))
        self.resting = Memory()  # before the jobs that run now
        self.bare = Memory()  # when nothing was kept
        self.most = 0  # MB that the jobs since then might take together at any one time
        self.untouched = 0  # mapped and not in memory before the first job: stacks above all
        self.tidy = False  # ready for the next job
        self.keeping = False  # memory that no job uses
        self.shared: tuple[int, mmap.mmap] | None = None  # the memory file that we have mapped last

    def run(self) -> None:
        """Until the control socket closes."""
        engine.warm_up()
        with ThreadPoolExecutor(2) as two:  # a job's threads get the stacks of these
            list(two.map(time.sleep, (0.01, 0.01)))
        self.prepare()
        self.untouched = Memory.now().untouched
        self.control.sendall(b"+")  # ready
        while True:
            watched = select.poll()
            watched.register(self.control, select.POLLIN | select.POLLHUP)
            watched.register(self.wake_out, select.POLLIN)
            with self.lock:
                sessions = dict(self.sessions)
            for descriptor, session in sessions.items():
                if not session.cancelled:
                    watched.register(descriptor, select.POLLRDHUP | select.POLLHUP | select.POLLERR)
            pressing = any(session.cancelled for session in sessions.values())
            seconds = _INTERRUPT_EVERY if pressing else None if sessions else self._pause()
            happened = watched.poll(None if seconds is None else seconds * 1000)
            if not happened and not sessions:
                self._rested() if self.tidy else self._tidy_up()
            for descriptor, _ in happened:
                if descriptor == self.control.fileno():
                    self._take()
                elif descriptor == self.wake_out.fileno():
                    self.wake_out.recv(64)
                else:
                    sessions[descriptor].cancelled = True
            for session in sessions.values():
                if session.cancelled:
                    session.cancel()

    @property
    def crowded(self) -> bool:
        """Whether more jobs are here than can work at once."""
        return len(self.sessions) > self.floor.places

    def prepare(self) -> None:
        """Make the next engine while nobody waits for it."""
        with self.lock:
            if self.spare is None:
                self.spare = engine.connect()

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
        """An engine that nobody has used."""
        with self.lock:
            spare, self.spare = self.spare, None
        return engine.connect() if spare is None else spare

    def admit(self, session: Session, job: Job) -> None:
        """Set the limits of the process to those of the jobs in it."""
        session.memory_mb = job.limits.memory_mb + job.limits.temp_mb // 64
        session.plain = job.shared or job.kind not in ("query", "report")
        self._limit_memory()
        self.limit_cpu(job)

    def limit_cpu(self, job: Job) -> None:
        """The last clock, for when nobody else watches: processor seconds beyond which the kernel ends us."""
        used = resource.getrusage(resource.RUSAGE_SELF)
        seconds = int(used.ru_utime + used.ru_stime + job.limits.seconds * job.limits.threads) + _CPU_SLACK
        soft, hard = resource.getrlimit(resource.RLIMIT_CPU)
        if soft == resource.RLIM_INFINITY or seconds > soft:
            resource.setrlimit(resource.RLIMIT_CPU, (seconds if hard < 0 else min(seconds, hard), hard))

    def ended(self, session: Session) -> None:
        """Forget a session, close its socket (the caller sees that we are free)."""
        descriptor = session.channel.fileno()
        with self.lock:
            self.sessions.pop(descriptor, None)
            self.tidy, self.keeping = False, True
        session.channel.close()
        self.wake_in.send(b".")
        self._limit_memory()

    def _limit_memory(self) -> None:
        """As much memory as there was before, and what the jobs may take; no limit while there is none.

        What somebody's SQL fills counts with what the process held before: together they stay within limit and slack,
        however fast it grows. Scans of ours may take the slack whole; a row group is as large as its owner made it.
        They share a process, and what one has freed the heap may keep: a limit that fell with each that ends would take
        its memory from those that go on.
        Counted is what can be written to (RLIMIT_DATA); address space as well, for kernels that count the heap only.

        A thread that cannot get its memory dies before it says that it lives, and whoever starts it waits for ever:
        so the limit is lifted for each start, and set again when the job is known.
        """
        with self.lock:  # who has ended and who begins at once: what the later of them sees is what is set
            sessions = tuple(self.sessions.values())
            asked = [session.memory_mb for session in sessions]
            more = None
            if asked and all(asked):
                plain = all(session.plain for session in sessions)
                self.most = max(self.most, sum(asked)) if plain else sum(asked)
                more = self.most * 2**20 + (_SLACK if plain else self._slack())
            for limit, before in ((resource.RLIMIT_DATA, self.resting.data), (resource.RLIMIT_AS, self.resting.space)):
                hard = resource.getrlimit(limit)[1]
                resource.setrlimit(limit, (hard if more is None else before + more, hard))

    def _slack(self) -> int:
        """What is left of the slack beside what the process rests on."""
        return max(_SLACK_MIN, _SLACK - _FIRST - self._beside())

    def _beside(self) -> int:
        """What there is beside the jobs: in memory, or mapped again without asking."""
        return self.resting.resident + self.resting.untouched - self.untouched

    def _rest(self) -> None:
        """See what we rest on before the first of the jobs that come.

        Of what came since nothing was kept, that which is in memory counts as the next job's own, as it did for the job
        that opened an engine; what is mapped alone does not, and takes nothing from the job.
        """
        while self.kept and next(iter(self.kept.values())).rested_at + REST < time.monotonic():
            self._forget_oldest()  # whom it waits for has not come, though others keep us busy
        held = self._shed()
        self.resting, self.most = held.without(held.anonymous - self.bare.anonymous) if self.kept else held, 0

    def _shed(self) -> Memory:
        """Let go of what is kept, the oldest first, down to what leaves the next job its slack; what is held then."""
        for shed in (self._give_back, *[self._forget_oldest] * len(self.kept)):
            held = self._held()
            there, mapped = held.anonymous - self.bare.anonymous, held.data - self.bare.data
            if there <= _KEPT_MEMORY and mapped <= _KEPT_MAPPED:
                return held
            shed()
        self.bare = self._held()
        return self.bare

    def _held(self) -> Memory:
        """What we hold, with the engine that the first job opens itself where it comes before one is made for it."""
        held = Memory.now()
        return held if self.spare is not None else held.with_more(_ENGINE)

    def _give_back(self) -> None:
        """Memory kept for the next batch goes back to the kernel; other C libraries than glibc keep none."""
        self.keeping = False
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)

    def map(self, descriptor: int, size: int) -> mmap.mmap:
        """The memory shared with the connector. What we have mapped already keeps its pages at hand."""
        number = os.fstat(descriptor).st_ino
        with self.lock:
            if self.shared is None or self.shared[0] != number:
                self.shared = number, mmap.mmap(descriptor, size)
            return self.shared[1]

    def _pause(self) -> float | None:
        """Seconds without a job until there is something to do; None where there is nothing any more."""
        if not self.tidy:
            return SOON
        return REST if self.keeping or self.kept else None

    def _tidy_up(self) -> None:
        """What the next job would wait for otherwise. Beside jobs it would count against their memory."""
        with suppress(Exception):  # the next job makes its own engine, and says what is wrong
            self.prepare()
        self._shed()
        self.tidy = True

    def _rested(self) -> None:
        """Nobody has come: all that was kept goes."""
        self.forget()
        self._give_back()

    def _take(self) -> None:
        try:
            data, descriptors, _, _ = socket.recv_fds(self.control, 1, 3)
        except OSError:
            data, descriptors = b"", []
        if not data:
            shutil.rmtree(self.folder, ignore_errors=True)
            os._exit(0)  # the connector is gone or wants us gone; there is nothing to save
        channel = socket.socket(fileno=descriptors[0])
        channel.setblocking(True)
        with_desk, with_ring = next(both for both, told in wire.WITH.items() if told == data)
        desk = socket.socket(fileno=descriptors[1]) if with_desk else None
        shared = descriptors[-1] if with_ring else None
        session = Session(channel, self.folder / f"job-{next(self.numbers)}", self, desk=desk, shared=shared)
        with self.lock:
            if not self.sessions:
                self._rest()
            self.sessions[channel.fileno()] = session
        self._limit_memory()
        session.thread.start()


def read_job(channel: socket.socket) -> Job:
    """The job and its blobs."""
    (length,) = wire.LENGTH.unpack(receive(channel, wire.LENGTH.size))
    if length > wire.JOB_MAX:
        raise Coded("job_invalid")
    job, sizes = wire.decode(bytes(receive(channel, length)))
    return replace(job, blobs=tuple(bytes(receive(channel, size)) for size in sizes))


def receive(channel: socket.socket, size: int) -> bytearray:
    """Exactly `size` bytes."""
    data = bytearray(size)
    view, got = memoryview(data), 0
    while got < size:
        if not (more := channel.recv_into(view[got:])):
            raise Coded("cancelled")
        got += more
    return data


def send_all(channel: socket.socket, parts: list[Any]) -> None:
    """Every part, in as few calls as the kernel takes, none of them joined."""
    views = [memoryview(part).cast("B") for part in parts if len(part)]
    for group in _groups(views):
        while group:
            sent = channel.sendmsg(group)
            while group and sent >= len(group[0]):
                sent -= len(group.pop(0))
            if sent:
                group[0] = group[0][sent:]


def _groups(views: list[memoryview]) -> Iterator[list[memoryview]]:
    most = 1024  # IOV_MAX
    for start in range(0, len(views), most):
        yield views[start : start + most]
