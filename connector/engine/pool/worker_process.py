"""A worker process and a running job, as the main process sees them. `pool` starts them and hands them out."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from connector.engine.pool import protocol as wire
from connector.engine.pool.allowed_paths import Seen
from connector.engine.pool.crash_log import LastWords, how_ended
from connector.engine.pool.error_codes import ROWS_TOO_LARGE, error_of
from connector.engine.pool.protocol import Job
from connector.engine.pool.sandbox import memory_of
from connector.engine.pool.shared_memory import Ring, slot_bytes
from connector.errors import ConnectorError
from connector.infra.jemalloc import REUSED_MB
from connector.telemetry import logger

GRACE = 1.2  # seconds that a job has to stop, or to clean up after its end; then its process is given up
KEPT_MB = 64  # what a process may hold beyond _RECYCLE_MB between two jobs
_TOGETHER = 2**15  # bytes: frames up to this size are read from the socket several at once
_RECYCLE_MB = 125  # of its own, at rest; a process starts with 65
_MAPPED_MB = 96  # mapped to write to, at rest, and not before the first job: 40 of it may be stacks kept for threads
_WISHED = frozenset({"recycled", "idle", "shutting_down", "worker_wanted"})  # ends that need no explanation

_log = logger("query")


@dataclass(frozen=True, slots=True)
class Frame:
    """One batch: its rows, its bytes on the wire, the IPC message, and the digest of all messages up to it.

    The message lies in memory that is reused once `payload` is released: release it as soon as it is sent.
    """

    rows: int
    nbytes: int
    payload: memoryview
    digest: bytes
    block: int = -1  # that its rows are of, in a read of blocks

    @classmethod
    def of(cls, rows: int, payload: bytearray | memoryview, digest: bytes, *, block: int = -1) -> Self:
        """Return the frame of what `Result.next` returned."""
        whole = payload if isinstance(payload, memoryview) else memoryview(payload)
        return cls(rows, len(payload), whole, digest, block)


@dataclass(slots=True, eq=False)
class WorkerProcess:
    """A worker process and the jobs that run in it."""

    process: asyncio.subprocess.Process
    control: socket.socket
    folder: Path
    said: LastWords = field(default_factory=LastWords)
    roots: Seen = ()  # the directories that it is shut into
    results: set[Result] = field(default_factory=set)
    killed: str = ""  # the code that its jobs get
    ended: bool = False  # by us, and not by itself or the system
    doomed: bool = False  # a job of it did not end as it should: it takes no other, and ends with those that it has
    taken_by: str = ""  # the consumer for whom it was taken
    watch: asyncio.Task[None] | None = None
    idle_since: float = 0.0
    ring: Ring | None = None  # of its last job
    lending: threading.RLock = field(default_factory=threading.RLock)
    began_mb: int = 0  # mapped to write to before its first job
    ending: asyncio.Task[None] | None = None  # its job has ended by itself, and it will be free in a moment

    @property
    def shared(self) -> bool:
        return any(result.job.shared for result in self.results)

    def alive(self) -> bool:
        return not self.killed and self.process.returncode is None

    def lend_ring(self, slots: int, size: int) -> Ring:
        """Return shared memory for a new job: that of the last job, where it fits."""
        with self.lending:
            ring, self.ring = self.ring, None
        if ring is not None and (ring.slots, ring.size) != (slots, size):
            ring.close()
            ring = None
        return ring or Ring(slots, size, released=_ignore_slot)

    def take_ring(self, ring: Ring) -> None:
        """Take the memory of an ended job back; it serves the next job once no slot is in use."""
        ring.when_free(lambda: self._keep(ring))

    def _keep(self, ring: Ring) -> None:
        with self.lending:  # rings come back in any thread
            ring.released = _ignore_slot  # the old callback holds its job, with its request and its ring
            if kept := self.ring is None and not self.doomed and self.alive():
                self.ring = ring
        if not kept:
            ring.close()

    def give_up(self, result: Result) -> None:
        """Kill the process of a job that does not end as it should, as soon as no other job runs in it."""
        self.doomed = True
        if not self.results - {result}:
            self.kill("worker_crashed")

    def kill(self, code: str) -> None:
        """End the process now; its jobs end with `code`."""
        self.killed = self.killed or code
        if self.process.returncode is None:
            self.ended = True
            with suppress(ProcessLookupError):
                self.process.send_signal(signal.SIGKILL)

    async def give_up_start(self, *, late: bool) -> None:
        """End a process that did not become ready. A `late` one gets a second to report where it hangs."""
        self.killed = "start_late" if late else "start_failed"
        with suppress(ProcessLookupError, TimeoutError):
            if late:
                self.process.send_signal(signal.SIGABRT)
            async with asyncio.timeout(1):
                await self.process.wait()
        self.kill(self.killed)

    async def bury(self) -> None:
        """Wait for the end of the process; log an unexpected end with its explanation."""
        with suppress(ProcessLookupError):
            await self.process.wait()
        await self.said.end()
        ours = self.ended and self.process.returncode == -signal.SIGKILL
        code = "worker_crashed" if self.killed in {"", *_WISHED} else self.killed
        if ours and self.killed in _WISHED and not self.doomed:
            return
        by = "the connector" if ours else "itself or the system"
        if ours and self.doomed:
            by += ", as a job did not end as it should"
        ended = how_ended(self.process.returncode)
        _log.warning("a query worker ended", code=code, ended=ended, by=by, said=self.said.lines())

    @property
    def jobs_mb(self) -> int:
        """Memory that its jobs may use."""
        return sum(result.job.limits.memory_mb for result in self.results)

    def rss_mb(self) -> int:
        """Return its resident memory."""
        return memory_of(self.process.pid).resident // 2**20

    def own_mb(self) -> int:
        """Return its resident memory that the kernel cannot take back: without pages of mapped files."""
        return memory_of(self.process.pid).own // 2**20

    def mapped_mb(self) -> int:
        """Return what it has mapped for writing since before its first job."""
        return memory_of(self.process.pid).data // 2**20 - self.began_mb

    @property
    def worn(self) -> bool:
        """Whether it holds more memory after a job than may stay for the next one, of its own or mapped.

        Arrow keeps what its largest batches took. Each later job would have so much less, and in the end nothing.
        """
        kept = KEPT_MB + REUSED_MB
        return self.own_mb() > _RECYCLE_MB + kept or self.mapped_mb() > _MAPPED_MB + kept

    @property
    def swollen(self) -> bool:
        """Whether it rests with so much memory that the next job would have less.

        Mapped memory counts too: the process may fill it again without asking.
        """
        held = memory_of(self.process.pid)
        return held.own // 2**20 > _RECYCLE_MB or held.data // 2**20 > self.began_mb + _MAPPED_MB


class Result:
    """A running query: its schema, its frames, and its totals once all frames are read."""

    def __init__(self, worker: WorkerProcess, job: Job, channel: socket.socket) -> None:
        self.job = job
        self.schema = b""
        self.trailer = b""
        self.digest = b""
        self.totals: dict[str, int] = {}
        self.block = -1  # of the message that came last
        self.answers: list[dict[str, Any]] = []  # what is in those that came unread, in the order of the job's blobs
        self.ended = False
        self.begun = time.monotonic()
        self.worked = 0.0  # seconds that we waited for the worker
        self._given: float | None = None  # when the reader got its last frame
        self.desk: socket.socket | None = None  # where the worker borrows blocks of objects
        self._worker = worker
        self._channel = channel
        self._come = bytearray()  # bytes received but not read
        self._loop = asyncio.get_running_loop()
        self.ring: Ring | None = None
        if job.kind == "query":
            self.ring = worker.lend_ring(job.slots, slot_bytes(job.batch_bytes))
            self.ring.released = lambda slot: self._tell(slot + 1)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Frame:
        kind, rows, payload, digest = await self.next()
        if kind != wire.BATCH:
            raise StopAsyncIteration
        return Frame.of(rows, payload, digest, block=self.block)

    async def start(self) -> None:
        """Send the job to the worker."""
        await self._loop.sock_sendall(self._channel, self.job.encode())

    async def begin(self) -> None:
        """Wait for everything that comes before the first batch."""
        kind, _, payload, _ = await self.next()
        while kind != wire.TRAILER:
            if kind == wire.ANSWERS:
                self.answers = json.loads(bytes(payload))
            else:
                self.schema = bytes(payload) if kind == wire.SCHEMA else b""
            kind, _, payload, _ = await self.next()
        self.trailer = bytes(payload)

    async def go(self) -> None:
        """Let a held job work. Waits for room in the socket: the worker may still be reading the job."""
        with suppress(OSError):  # the job is over
            await self._loop.sock_sendall(self._channel, bytes((wire.GO,)))

    async def next(self) -> tuple[int, int, bytearray | memoryview, bytes]:
        """Return the next frame within the job's time limits, or raise the error that ended the job."""
        if self.ended:
            return wire.END, 0, bytearray(), self.digest
        if self.ring is not None and self.ring.in_use == self.ring.slots:
            self._tell(wire.ANYWAY)
        begun, self._given = time.monotonic(), None
        try:
            async with asyncio.timeout(self._seconds_left()):
                frame = await self._frame()
        except TimeoutError:
            self._worker_log("time_limit")
            await self.stop()
            raise error_of(
                "time_limit", {"seconds": self.job.limits.total_seconds or self.job.limits.seconds}
            ) from None
        finally:
            self._given = time.monotonic()
            self.worked += self._given - begun
        return self._accept_frame(*frame)

    @property
    def unasked(self) -> float:
        """Seconds since the reader last asked for a frame.

        Not the sum of all its waits: a steady reader of a large result also waits long in total.
        """
        return 0.0 if (given := self._given) is None else time.monotonic() - given

    def interrupt(self) -> None:
        """Tell the worker to stop; a waiting reader soon gets the error `cancelled`."""
        with suppress(OSError):
            self._channel.shutdown(socket.SHUT_WR)
        if self.desk is not None:  # a worker that waits for a block does not hear of it otherwise
            with suppress(OSError):
                self.desk.shutdown(socket.SHUT_RDWR)

    async def stop(self) -> None:
        """End the work: interrupt, then kill. Safe to call at any time."""
        self.interrupt()
        try:
            async with asyncio.timeout(GRACE):
                await self._drain()
        except TimeoutError:
            self._worker.give_up(self)
        self.ended = True

    async def settle(self) -> None:
        """Wait until the worker has cleaned up after a job that ended by itself."""
        if not self.ended:
            await self.stop()
        elif self._worker.alive():
            try:
                async with asyncio.timeout(GRACE):
                    await self._drain()
            except TimeoutError:
                self._worker.give_up(self)

    def close(self) -> None:
        self.ended = True
        self._channel.close()
        if self.ring is not None:
            self._worker.take_ring(self.ring)

    def _tell(self, said: int) -> None:
        with suppress(OSError):  # the job is over
            self._channel.send(bytes((said,)))

    def _seconds_left(self) -> float:
        limits = self.job.limits
        if limits.total_seconds is None:
            return limits.seconds
        return max(0.0, min(limits.seconds, limits.total_seconds - self.worked))

    async def _frame(self) -> tuple[int, int, bytearray | memoryview, bytes]:
        header = await self._receive(wire.HEADER.size)
        kind, digest_length, slot, rows, length, self.block, digest = wire.HEADER.unpack(header)
        if length > wire.PAYLOAD_MAX:
            raise self._nonsense()
        payload = self._shared(slot - 1, length) if slot else await self._receive(length)
        return kind, rows, payload, digest[:digest_length]

    def _shared(self, slot: int, length: int) -> memoryview:
        try:
            if self.ring is None:
                raise ValueError("expected no slot")
            return self.ring.take(slot, length)
        except ValueError:
            raise self._nonsense() from None

    def _nonsense(self) -> ConnectorError:
        """Kill a worker that breaks the protocol, and return the error."""
        self._worker.kill("worker_crashed")
        return error_of("worker_crashed", {})

    async def _receive(self, size: int) -> bytearray:
        """Return exactly so many bytes. Small frames are read from the socket several at once."""
        if size > _TOGETHER:
            return await self._receive_large(size)
        while len(self._come) < size:
            try:
                more = await self._loop.sock_recv(self._channel, _TOGETHER)
            except OSError:
                more = b""
            if not more:
                raise await self.died()
            self._come += more
        data = self._come[:size]
        del self._come[:size]
        return data

    async def _receive_large(self, size: int) -> bytearray:
        """Return exactly so many bytes, each copied once."""
        data, got = bytearray(size), len(self._come)
        data[:got] = self._come
        self._come.clear()
        view = memoryview(data)
        while got < size:
            try:
                more = await self._loop.sock_recv_into(self._channel, view[got:])
            except OSError:
                more = 0
            if not more:
                raise await self.died()
            got += more
        return data

    async def died(self) -> ConnectorError:
        """Return the error of a job whose socket the worker closed before its end.

        The process was killed or has crashed. If it lives, one session could not even report its end: the other
        sessions may finish, but the worker takes no more jobs.
        """
        self.ended = True
        with suppress(TimeoutError):
            async with asyncio.timeout(1):
                await self._worker.process.wait()
        code = self._worker.killed or "worker_crashed"
        if self._worker.alive():
            self._worker_log(code, wire.NO_REPORT)
            self._worker.give_up(self)
        else:
            self._worker_log(code, ended=how_ended(self._worker.process.returncode))
            self._worker.kill(code)
        return self._error(code, {})

    def _error(self, code: str, facts: dict[str, Any], message: str = "") -> ConnectorError:
        """Return the error for the job's caller."""
        rows = code == "memory_limit" and self.job.kind == "query" and self.job.ordered
        return error_of(code, facts, message or (ROWS_TOO_LARGE if rows else ""))

    def _accept_frame(
        self, kind: int, rows: int, payload: bytearray | memoryview, digest: bytes
    ) -> tuple[int, int, bytearray | memoryview, bytes]:
        if kind in (wire.SCHEMA, wire.BATCH, wire.END):
            self.digest = digest
        if kind == wire.END:
            self.ended, self.totals = True, json.loads(bytes(payload))
        elif kind == wire.VALUE:
            self.ended = True
        elif kind == wire.ERROR:
            self.ended = True
            error = json.loads(bytes(payload))
            self._worker_log(error["code"], error["class"])
            if error["class"] == wire.NO_REPORT:
                self._worker.give_up(self)
            raise self._error(error["code"], error["facts"], error["message"])
        return kind, rows, payload, digest

    async def _drain(self) -> None:
        scratch = bytearray(2**18)
        with suppress(OSError):
            while await self._loop.sock_recv_into(self._channel, scratch):
                pass

    def _worker_log(self, code: str, kind: str = "", **more: Any) -> None:
        _log.info("job ended", code=code, engine_error=kind, consumer=self.job.consumer, task=self.job.kind, **more)


def _ignore_slot(_: int) -> None:
    """Ignore a slot that comes back while no job runs."""
