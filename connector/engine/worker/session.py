"""Job loop of a worker process: accepts job sockets, runs a session for each, applies limits. Runs in a worker only.

The control socket passes in a socket for each job, on which a job comes in and frames go out (`protocol`). The main
thread only watches: a closed job socket cancels its job, a closed control socket ends the process. Error texts of the
engine stay here; a code goes out.
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
from connector.errors import ConnectorError

_INTERRUPT_EVERY = 0.05
_PATIENCE = 0.1
_DECODE_AT_ONCE = 2
_PROGRESS_EVERY_S = 0.1
_NOT_OF_ROWS = frozenset({"cancelled", "source_unreadable"})


def _last_word(code: str) -> bytes:
    told = json.dumps({"code": code, "class": wire.NO_REPORT, "facts": {}, "message": ""}).encode()
    return wire.HEADER.pack(wire.ERROR, 0, 0, 0, len(told), -1, b"") + told


# Error frames for sessions that cannot build one. Built in advance, as memory may be short.
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
        self.guard = threading.Lock()  # an interrupt must not reach an engine that was passed on
        self.whole = False  # the job ended as it should
        self.memory_mb = 0
        self.plain = False  # no person wrote SQL for it
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.maker = ThreadPoolExecutor(1)  # makes the next batch while one is sent
        self.progress = ("", 0.0)  # the last stage sent, and when
        self.unsent: list[Any] = []  # frames that go with the next
        self.torn = False  # a part of a frame is out: what followed it would be taken for the rest

    def cancel(self) -> None:
        """Interrupt what runs. Called repeatedly until the session ends, as an interrupt can come too early."""
        self.cancelled = True
        self.interrupt()

    def interrupt(self) -> None:
        """Stop what the engine does now."""
        with self.guard:
            if self.opening is not None:
                self.opening.interrupt()

    def open(self, job: Job) -> Opening:
        """Return the job's files and engine: kept from an earlier job, or not yet opened."""
        key = key_of(job)
        self.opening = found = self.worker.keeping.kept_for(key) or self.open_new(job, key=key)
        return found

    def open_new(self, job: Job, *, key: str = "") -> Opening:
        """Return files and engine, not yet opened. Without a key they are for this job only."""
        self.opening = found = Opening(
            limits_of(job), self.folder, desk=self.desk, key=key, readers=readers(job), ordered=mixes(job)
        )
        return found

    @property
    def files(self) -> list[duckdb_engine.Files]:
        return [] if self.opening is None else self.opening.files

    def check(self) -> None:
        """Raises: Coded("cancelled") if the caller has left."""
        if self.cancelled:
            raise Coded("cancelled")

    def reached(self, stage: str, done: int) -> None:
        """Send how many files are done in a stage of a long job: at its start, and at most ten times a second."""
        self.check()
        now = time.monotonic()
        if self.progress[0] != stage or now >= self.progress[1] + _PROGRESS_EVERY_S:
            self.progress = (stage, now)
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
        """Send one frame; blocks while the reader is slow.

        `parts` are sent without joining them; a payload in `slot` has no parts. `more`: another frame follows
        at once, and both are sent together.
        """
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
        """Wait until a held job may read. Raises: Coded("cancelled")."""
        if job.held and self.channel.recv(1) != bytes((wire.GO,)):
            raise Coded("cancelled")

    def credits(self, idle: Callable[[], None]) -> bytes:
        """Wait for bytes of the connector about the ring: numbers of free slots, or ANYWAY.

        `idle` is called repeatedly while it takes long.
        """
        watched = select.poll()
        watched.register(self.channel, select.POLLIN | select.POLLRDHUP)
        while not watched.poll(_PATIENCE * 1000):
            idle()
        try:
            found = self.channel.recv(16)
        except OSError:
            found = b""
        if not found:
            raise Coded("cancelled")
        return found

    def end(self, error: BaseException) -> None:
        """Report that the session could not start, and close it."""
        self._say_last(error)
        self._close()

    def _run(self) -> None:
        try:
            self.maker.submit(int).result()  # its thread starts now, while nothing limits our memory
            self._work()
        except BaseException as error:  # noqa: BLE001  other sessions run in this process
            self._say_last(error)
        finally:
            self._close()

    def _say_last(self, error: BaseException) -> None:
        """Send a prepared error where no report can be built, so that the end does not look like a crash."""
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
        except ConnectorError as error:
            self._fail(error.code, type(error).__name__, facts=error.facts, message=error.message)
        except BaseException as error:  # noqa: BLE001  whatever the engine raises becomes a code; its text stays here
            self._fail_because(error, asked=self.job is not None and self.job.kind in ("query", "report"))

    def _fail_because(self, error: BaseException, *, asked: bool) -> None:
        """Report an error. A file that changed while it was read is the cause, whatever the engine reports."""
        for found in self.files:
            try:
                found.check_unchanged()
            except ConnectorError as changed:
                self._fail(changed.code, type(changed).__name__, facts=changed.facts, message=changed.message)
                return
            except Coded as end:
                self._fail(end.code, type(end).__name__, facts=end.facts)
                return
            except Exception:  # noqa: BLE001, S110  memory may still be short: report `error`
                pass
        code, kind = duckdb_engine.code_of(error, asked=asked), type(error).__name__
        if self.job is not None and self.job.noise and code not in _NOT_OF_ROWS:
            # The error depends on the exact rows, so all errors look the same.
            code, kind = "noise_failed", "Exception"
        elif self.torn:
            crash_report.tell(error)  # it cannot be sent any more
        self._fail(code, kind)

    def _fail(self, code: str, kind: str, *, facts: dict[str, Any] | None = None, message: str = "") -> None:
        """Send an error code. `message`: only text of our own, never of the engine."""
        told = {
            "code": "cancelled" if self.cancelled else code,
            "class": kind,
            "facts": facts or {},
            "message": message,
        }
        with suppress(Coded, OSError):
            self.send(wire.ERROR, json.dumps(told).encode())

    def _close(self) -> None:
        with ExitStack() as last:  # each step, even if another raises: the caller waits until the socket is closed
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
    """Whether another job may use it; False on any error, as memory may still be short."""
    try:
        return opening.rest()
    except Exception:  # noqa: BLE001  the session must end in any case: its caller waits
        return False


class Worker:
    """Accepts job sockets, runs their sessions, and limits the process."""

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
        """Load libraries and start threads. Call once, before `run`."""
        duckdb_engine.warm_up()
        with ThreadPoolExecutor(2) as two:  # the stacks of these threads are reused by jobs
            list(two.map(time.sleep, (0.01, 0.01)))
        self.keeping.start()

    def run(self) -> None:
        """Serve until the control socket closes."""
        self.control.sendall(b"+")  # ready
        while True:
            try:
                self._look()
            except MemoryError:  # one session used up the memory: it ends soon, others go on
                time.sleep(_INTERRUPT_EVERY)

    def _look(self) -> None:
        """Wait for one event and handle it."""
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
        """Whether there are more jobs than can work at once."""
        return len(self.sessions) > self.floor.places

    def admit(self, session: Session, job: Job) -> None:
        """Set the limits of the process to those of the jobs in it."""
        session.memory_mb = job.limits.memory_mb + job.limits.temp_mb // 64
        session.plain = job.shared or job.ordered or job.kind not in ("query", "report")
        self._limit_memory()
        limit_cpu(job)

    def ended(self, session: Session) -> None:
        """Remove a session and close its socket, by which the caller sees that we are free."""
        descriptor = session.channel.fileno()
        with self.lock:
            self.sessions.pop(descriptor, None)
            self.keeping.ended()
        session.channel.close()
        self.wake_in.send(b".")
        self._limit_memory()

    def _limit_memory(self) -> None:
        with self.lock:  # sessions end and start at once: the last of them sets the limit
            self.keeping.limit([(session.memory_mb, session.plain) for session in self.sessions.values()])

    def map(self, descriptor: int, size: int) -> mmap.mmap:
        """Return the memory shared with the connector. The last mapping is kept, with its pages."""
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
            os._exit(0)  # the connector has ended or ends us; there is nothing to save
        with_desk, with_ring = next(both for both, sent in wire.WITH.items() if sent == data)
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
        except Exception as error:  # noqa: BLE001  no thread, memory or file: other sessions go on
            session.end(error)


def read_job(channel: socket.socket) -> Job:
    """Return the job with its blobs. Raises: Coded("job_invalid") if it is too large."""
    (length,) = wire.LENGTH.unpack(receive(channel, wire.LENGTH.size))
    if length > wire.JOB_MAX:
        raise Coded("job_invalid")
    job, sizes = wire.decode(bytes(receive(channel, length)))
    return replace(job, blobs=tuple(bytes(receive(channel, size)) for size in sizes))


def receive(channel: socket.socket, size: int) -> bytearray:
    """Return exactly `size` bytes. Raises: Coded("cancelled") if the socket closes before."""
    data = bytearray(size)
    view, got = memoryview(data), 0
    while got < size:
        if not (more := channel.recv_into(view[got:])):
            raise Coded("cancelled")
        got += more
    return data


def views_of(parts: list[Any]) -> list[memoryview]:
    """Return views of the parts that are not empty, without a copy."""
    return [memoryview(part).cast("B") for part in parts if len(part)]


def send_all(channel: socket.socket, views: list[memoryview]) -> None:
    """Send all views in as few calls as possible, without joining them."""
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
