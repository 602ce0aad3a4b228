"""The inside of a worker process: job sockets taken, sessions run, the process kept within its limits.

Over the control socket come job sockets, one per job; on each a job comes in and frames go out
(`protocol`). The main thread only watches: a job socket that closes cancels its job, a control socket that
closes ends the process. What the engine says about an error stays here; a code goes out.
"""

from __future__ import annotations

import itertools
import json
import mmap
import os
import select
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from connector.engine.pool import crash_report
from connector.engine.pool import protocol as wire
from connector.engine.pool.error_codes import Coded
from connector.engine.pool.protocol import Job
from connector.engine.worker import tasks
from connector.engine.worker.memory_limits import MemoryLimits, limit_cpu
from connector.engine.worker.read import duckdb_engine
from connector.engine.worker.read.job_files import Opening, key_of, limits_of, mixes, readers
from connector.engine.worker.read.object_channel import ObjectChannel
from connector.engine.worker.read.scan_scheduler import Floor
from connector.errors import HanseError

_INTERRUPT_EVERY = 0.05
_PATIENCE = 0.1
_DECODE_AT_ONCE = 2
_TOLD_EVERY = 0.1
_NOT_OF_ROWS = frozenset({"cancelled", "source_unreadable"})


def _last_word(code: str) -> bytes:
    told = json.dumps({"code": code, "class": wire.NO_REPORT, "facts": {}, "message": ""}).encode()
    return wire.HEADER.pack(wire.ERROR, 0, 0, 0, len(told), -1, b"") + told


# Errors of sessions that can make none any more: ready, as there may be no memory.
_NOT_BEGUN = _last_word("worker_crashed")
_NOT_ENDED = _last_word("engine_failed")
_NOT_ENDED_WITH_NOISE = _last_word("noise_failed")


class Session:
    """One job on its socket, in a thread of its own."""

    def __init__(
        self, channel: socket.socket, folder: Path, worker: Worker, *, desk: ObjectChannel | None, shared: int | None
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
        self.unsent: list[Any] = []  # frames that go with the next
        self.torn = False  # a part of a frame is out: what followed it would be taken for the rest

    def cancel(self) -> None:
        """Interrupt what runs; called again and again until the session ends, as an interrupt can come too early."""
        self.cancelled = True
        self.interrupt()

    def interrupt(self) -> None:
        """Stop what the engine does now."""
        with self.guard:
            if self.opening is not None:
                self.opening.interrupt()

    def open(self, job: Job) -> Opening:
        """What the job may read: kept from one before, or yet to be opened."""
        key = key_of(job)
        self.opening = found = self.worker.keeping.kept_for(key) or self.open_new(job, key=key)
        return found

    def open_new(self, job: Job, *, key: str = "") -> Opening:
        """What the job may read, yet to be opened, and for it alone without a key."""
        self.opening = found = Opening(
            limits_of(job), self.folder, desk=self.desk, key=key, readers=readers(job), ordered=mixes(job)
        )
        return found

    @property
    def files(self) -> list[duckdb_engine.Files]:
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
        self,
        kind: int,
        *parts: Any,
        size: int | None = None,
        rows: int = 0,
        digest: bytes = b"",
        slot: int = 0,
        block: int = -1,
        more: bool = False,
    ) -> None:
        """One frame; blocks while the reader is slow. `parts` go out without being joined; none if `slot` has them.
        `more`: another follows at once, and they go together."""
        length = sum(len(part) for part in parts) if size is None else size
        header = wire.HEADER.pack(kind, len(digest), slot, rows, length, block, digest)
        self.unsent += (header, *parts)
        if more:
            return
        if self.torn:
            raise Coded("cancelled")
        views, self.unsent = views_of(self.unsent), []
        self.torn = True
        try:
            send_all(self.channel, views)
        except OSError:
            raise Coded("cancelled") from None
        self.torn = False

    def wait_for_go(self, job: Job) -> None:
        """Nothing of a held job is read before."""
        if job.held and self.channel.recv(1) != bytes((wire.GO,)):
            raise Coded("cancelled")

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

    def end(self, error: BaseException) -> None:
        """It could not begin."""
        self._say_last(error)
        self._close()

    def _run(self) -> None:
        try:
            self.maker.submit(int).result()  # its thread starts now, while nothing limits our memory
            self._work()
        except BaseException as error:  # noqa: BLE001  of an error report, say: others read in this process
            self._say_last(error)
        finally:
            self._close()

    def _say_last(self, error: BaseException) -> None:
        """Where no report can be made: an end that is no crash of the process."""
        noise = self.job is not None and self.job.noise
        if not noise:
            crash_report.tell(error)
        word = _NOT_BEGUN if self.job is None else _NOT_ENDED_WITH_NOISE if noise else _NOT_ENDED
        if not self.torn:
            with suppress(OSError):
                self.channel.sendall(word)

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
            except Exception:  # noqa: BLE001, S110  it cannot be told, as memory is short still: `error` is the reason
                pass
        code, kind = duckdb_engine.code_of(error, asked=asked), type(error).__name__
        if self.job is not None and self.job.noise and code not in _NOT_OF_ROWS:
            # Which error it is depends on the rows, exactly: none of them is told from another.
            code, kind = "noise_failed", "Exception"
        elif self.torn:
            crash_report.tell(error)  # nobody else would hear of it
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
        with ExitStack() as last:  # each of it, whatever another raises: our caller waits until the socket is closed
            last.callback(self.worker.ended, self)
            if self.shared is not None:
                last.callback(os.close, self.shared)
            if self.desk is not None:
                last.callback(self.desk.socket.close)
            last.callback(self._leave_opening)
            self.maker.shutdown()

    def _leave_opening(self) -> None:
        with self.guard:
            opening, self.opening = self.opening, None
        if opening is not None and self.whole and _rests(opening):
            self.worker.keeping.keep(opening)
        elif opening is not None:
            opening.close()


def _rests(opening: Opening) -> bool:
    """Whether another job may have it; not where that cannot be told, as memory is short still."""
    try:
        return opening.rest()
    except Exception:  # noqa: BLE001  the session must end in any case: its caller waits
        return False


class Worker:
    """The watching side: takes job sockets, runs sessions, limits the process."""

    def __init__(self, control: socket.socket, folder: Path) -> None:
        self.control = control
        self.folder = folder
        self.sessions: dict[int, Session] = {}
        self.lock = threading.RLock()
        self.keeping = MemoryLimits(self.lock)
        self.numbers = itertools.count(1)  # of folders
        self.wake_in, self.wake_out = socket.socketpair()
        self.floor = Floor(max(_DECODE_AT_ONCE, os.cpu_count() or 1))
        self.shared: tuple[int, mmap.mmap] | None = None  # the memory file that we have mapped last

    def warm_up(self) -> None:
        """Before the first job, and before `run`."""
        duckdb_engine.warm_up()
        with ThreadPoolExecutor(2) as two:  # a job's threads get the stacks of these
            list(two.map(time.sleep, (0.01, 0.01)))
        self.keeping.start()

    def run(self) -> None:
        """Until the control socket closes."""
        self.control.sendall(b"+")  # ready
        while True:
            try:
                self._look()
            except MemoryError:  # a session has taken all: it ends soon, and others read on
                time.sleep(_INTERRUPT_EVERY)

    def _look(self) -> None:
        """Wait until something happens, and do what it wants."""
        watched = select.poll()
        watched.register(self.control, select.POLLIN | select.POLLHUP)
        watched.register(self.wake_out, select.POLLIN)
        with self.lock:
            sessions = dict(self.sessions)
        for descriptor, session in sessions.items():
            if not session.cancelled:
                watched.register(descriptor, select.POLLRDHUP | select.POLLHUP | select.POLLERR)
        pressing = any(session.cancelled for session in sessions.values())
        seconds = _INTERRUPT_EVERY if pressing else None if sessions else self.keeping.pause()
        happened = watched.poll(None if seconds is None else seconds * 1000)
        if not happened and not sessions:
            self.keeping.quiet()
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

    def admit(self, session: Session, job: Job) -> None:
        """Set the limits of the process to those of the jobs in it."""
        session.memory_mb = job.limits.memory_mb + job.limits.temp_mb // 64
        session.plain = job.shared or job.ordered or job.kind not in ("query", "report")
        self._limit_memory()
        limit_cpu(job)

    def ended(self, session: Session) -> None:
        """Forget a session, close its socket (the caller sees that we are free)."""
        descriptor = session.channel.fileno()
        with self.lock:
            self.sessions.pop(descriptor, None)
            self.keeping.ended()
        session.channel.close()
        self.wake_in.send(b".")
        self._limit_memory()

    def _limit_memory(self) -> None:
        with self.lock:  # who has ended and who begins at once: what the later of them sees is what is set
            self.keeping.limit([(session.memory_mb, session.plain) for session in self.sessions.values()])

    def map(self, descriptor: int, size: int) -> mmap.mmap:
        """The memory shared with the connector. What we have mapped already keeps its pages at hand."""
        number = os.fstat(descriptor).st_ino
        with self.lock:
            if self.shared is None or self.shared[0] != number:
                self.shared = number, mmap.mmap(descriptor, size)
            return self.shared[1]

    def _take(self) -> None:
        try:
            data, descriptors, _, _ = socket.recv_fds(self.control, 1, 3)
        except OSError:
            data, descriptors = b"", []
        if not data:
            shutil.rmtree(self.folder, ignore_errors=True)
            os._exit(0)  # the connector is gone or wants us gone; there is nothing to save
        with_desk, with_ring = next(both for both, told in wire.WITH.items() if told == data)
        if len(descriptors) < 1 + with_desk + with_ring:  # the caller sees its socket closed
            crash_report.say("no more descriptors")
            for descriptor in descriptors:
                os.close(descriptor)
            return
        channel = socket.socket(fileno=descriptors[0])
        channel.setblocking(True)
        desk = ObjectChannel(socket.socket(fileno=descriptors[1])) if with_desk else None
        shared = descriptors[-1] if with_ring else None
        self._begin(Session(channel, self.folder / f"job-{next(self.numbers)}", self, desk=desk, shared=shared))

    def _begin(self, session: Session) -> None:
        try:
            with self.lock:
                if not self.sessions:
                    self.keeping.begin()
                self.sessions[session.channel.fileno()] = session
            self._limit_memory()
            session.thread.start()
        except Exception as error:  # noqa: BLE001  no thread, no memory, no file: others read in this process
            session.end(error)


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


def views_of(parts: list[Any]) -> list[memoryview]:
    """The bytes of parts, where they are; nothing of those that have none."""
    return [memoryview(part).cast("B") for part in parts if len(part)]


def send_all(channel: socket.socket, views: list[memoryview]) -> None:
    """All of them, in as few calls as the kernel takes, none of them joined."""
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
