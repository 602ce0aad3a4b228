"""Worker pool for queries. Runs in the main process, which loads neither DuckDB nor pyarrow.

    async with Pool(work_dir, size=2, warm=1) as pool:
        async with pool.run(Job(relations={"t": ...}, sql="SELECT ...")) as result:
            result.schema                       # IPC schema message (bytes)
            async for frame in result:          # Frame(rows, nbytes, payload, digest): one IPC message each
                ...
            result.totals                       # {"rows", "batches", "bytes"}, once the loop has ended
        profile = await pool.ask(Job(kind="profile", relations={"t": ...}))    # a JSON value

Promises:

- At most `size` processes. Further jobs wait: at most `waiting` of them, each at most `wait_seconds`, then Unavailable.
- Free workers go round-robin between consumers. If one consumer holds all of several workers while another has waited
  for ten seconds, its newest job is ended, unless that job adds noise. Workers shared by streams do not count. A
  consumer that holds the only unshared worker loses it only if its reader has asked for nothing for ten seconds.
- A job that works longer than its limits without a frame is interrupted. Its worker is killed `GRACE` seconds later
  (`worker_process`), or, if other scans share it, when those have ended. A worker that uses more than its jobs' memory
  and 300 MB is killed. A worker that dies fails its own jobs only, and is replaced.
- A worker gets jobs only while the paths that it may open are the directories of its start (`allowed_paths`).
- A slow reader slows the worker: at most the slots of the ring are read ahead. Leaving the `async with` block early,
  or being cancelled in it, stops the work.
- Every incomplete end raises a ConnectorError with a code, never with the engine's message.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import ExitStack, asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import IO, Any, Self

from connector import raw_access
from connector.engine.pool import object_lender
from connector.engine.pool import protocol as wire
from connector.engine.pool.allowed_paths import Roots
from connector.engine.pool.crash_log import LastWords
from connector.engine.pool.error_codes import error_of
from connector.engine.pool.object_lender import Library
from connector.engine.pool.protocol import Job
from connector.engine.pool.sandbox import environment, memory_of
from connector.engine.pool.worker_process import KEPT_MB, Result, WorkerProcess
from connector.errors import Unavailable
from connector.infra.concurrency.turn_queue import TurnQueue
from connector.telemetry import logger

_REST = 0.1
_PATIENCE = 10.0  # seconds that a job waits before a worker of another consumer is taken back
_OURS = frozenset({"owner", "coordinator"})  # work for the operator is not ended for others
_GIVEN_BACK = 6.0  # seconds after which a worker at rest has given its memory back; `memory_limits.REST` is shorter
_RSS_EVERY = 0.1
_RSS_SLACK_MB = 300
# Batches of megabytes come and go all the time. While a job runs, and until the worker rests (`memory_limits.REST`),
# their memory is kept for the next batch: giving it back to the kernel costs more page faults than the copy.
_ALLOCATION = {
    # The C library's heap, which Arrow may use as well, gives back and takes again what each row group of wide columns
    # takes. What this one sets aside must not be memory that the process may fill without asking: so it is little, and
    # asked for when it is used.
    "ARROW_DEFAULT_MEMORY_POOL": "mimalloc",
    "MIMALLOC_ARENA_RESERVE": str(64 * 2**10),  # KB
    "MIMALLOC_ARENA_EAGER_COMMIT": "0",
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": str(32 * 2**20),
    "MALLOC_TRIM_THRESHOLD_": str(KEPT_MB * 2**20),
    # The engine's own allocator gives address space back, too: what is kept of it, with nothing in it, would count
    # against the process's limit, and be as much again as the engine's memory where a query spills. It keeps what was
    # freed until we tell it (`allocator`), in one arena: what one thread has freed, every other can take.
    "DUCKDB_JE_MALLOC_CONF": "retain:false,narenas:1,dirty_decay_ms:-1",
}
_START_SECONDS = 30.0
_NO_WORKER = "expected a query worker to start, it did not; try again, or look at the memory of the machine"
_NO_CHANNEL = "expected a channel to a query worker, there is none; try again, or let the connector open more files"

_log = logger("query")


Watch = Callable[[Result], Coroutine[Any, Any, None]]


class Pool:
    """The worker processes of one connector."""

    def __init__(
        self,
        work_dir: Path,
        *,
        size: int = 2,
        warm: int = 1,
        streams_per_worker: int = 32,
        waiting: int = 64,
        wait_seconds: float = 30.0,
        idle_seconds: float = 60.0,
        readable: Sequence[Path] | None = None,
        writable: Sequence[Path] = (),
        library: Library | None = None,
    ) -> None:
        """`library` lends blocks of objects in stores.

        `readable` and `writable` are the only directories that a worker can open (None: not confined).
        """
        self._work_dir = Path(os.path.realpath(work_dir))
        self._size, self._warm = size, min(warm, size)
        self._streams_per_worker = streams_per_worker
        self._idle_seconds = idle_seconds
        self._turns = TurnQueue(size, waiting=waiting, wait_seconds=wait_seconds)
        self._idle: list[WorkerProcess] = []
        self._busy: set[WorkerProcess] = set()
        self._starting = 0
        self._takers: list[asyncio.Future[None]] = []  # waiting jobs, oldest first
        self._tasks: set[asyncio.Task[None]] = set()
        self._closed = False
        self._library = library
        self._writable = tuple(writable)
        self._allowed, paths = "null", list[str]()
        if readable is not None:  # where links lead is for each worker to see
            allowed = {
                "readable": list(map(os.path.abspath, readable)),
                "writable": list(map(os.path.abspath, writable)),
            }
            self._allowed, paths = json.dumps(allowed), [*allowed["readable"], *allowed["writable"]]
        self._roots = Roots(paths)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def start(self) -> None:
        """Start the warm workers in the background; a worker that does not start is only logged."""
        for directory in (self._work_dir, *self._writable):
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        await asyncio.to_thread(_remove_left_over, self._work_dir)
        await self._roots.look()
        for path in self._roots.missing():
            _log.warning("a directory of data is not there; its files can be read as soon as it is", path=path)
        self._background(self._keep_warm())
        self._background(self._reap())

    async def close(self) -> None:
        """Stop every worker; running jobs end with an error."""
        self._closed = True
        for task in tuple(self._tasks):
            task.cancel()
        for worker in (*self._idle, *self._busy):
            worker.kill("shutting_down")
            await self._bury(worker)
        self._idle.clear()
        self._busy.clear()
        self._roots.close()
        self._tell_takers()

    @asynccontextmanager
    async def run(
        self, job: Job, *, watch: Watch | None = None, after: asyncio.Future[Any] | None = None
    ) -> AsyncIterator[Result]:
        """Run a job that returns frames.

        `watch(result)` runs in parallel from the start of the job, before there is a schema; it may `interrupt` the
        job. The job is prepared at once but reads its first row only after `after` has returned, and none if that
        raises. A job whose worker other jobs may need waits for `after` first.

        Raises: the errors of `error_codes`, and Unavailable.
        """
        if after is not None and self._sharing(job) is None and not self._turns.has_spare:
            await asyncio.shield(after)
            after = None
        result = await self._begin(job if after is None else replace(job, held=True))
        watching = None if watch is None else asyncio.ensure_future(watch(result))
        try:
            if after is not None:
                await asyncio.shield(after)
                await result.go()
            await result.begin()
            yield result
        finally:
            if watching is not None:
                watching.cancel()
            self._finish(result)

    async def ask(
        self, job: Job, *, on_progress: Callable[[str, int], None] = lambda *_: None, seconds: float | None = None
    ) -> Any:
        """Run a job that returns one JSON value (report, describe, profile, convert, check_arrow).

        `on_progress` gets the stage of a long job and how many files are done. `seconds` is passed to `TurnQueue.take`.
        When this raises, also by cancellation, the worker has dropped the job.
        """
        result = await self._begin(job, seconds=seconds)
        try:
            kind, _, payload, _ = await result.next()
            while kind == wire.PROGRESS:
                on_progress(*json.loads(bytes(payload)))
                kind, _, payload, _ = await result.next()
            return json.loads(bytes(payload))
        except BaseException:
            await asyncio.shield(self._background(result.settle()))
            raise
        finally:
            self._finish(result)

    @property
    def processes(self) -> int:
        return len(self._idle) + len(self._busy) + self._starting

    @property
    def rss_mb(self) -> int:
        """Return the resident memory of all workers, for the health page."""
        return sum(worker.rss_mb() for worker in (*self._idle, *self._busy))

    async def _begin(self, job: Job, *, seconds: float | None = None) -> Result:
        if not _is_governed(job):
            raw_access.check()
        await self._roots.look()
        worker = self._sharing(job)
        if worker is None:
            await self._turn(job.consumer, seconds)
            try:
                worker = await self._take_worker()
            except BaseException:
                self._turns.give_back(job.consumer)
                raise
            worker.taken_by = job.consumer
        try:
            result, theirs = _open_result(worker, job)
        except OSError as error:  # no more descriptors, or memory to share
            self._background(self._release_worker(worker))
            raise Unavailable(f"{_NO_CHANNEL} ({error.strerror})") from error
        try:
            with theirs, ExitStack() as stack:
                desk = [end.fileno() for end in self._open_desk(result, stack)]
                ring = [] if result.ring is None else [result.ring.descriptor]
                flags = wire.WITH[bool(desk), bool(ring)]
                socket.send_fds(worker.control, [flags], [theirs.fileno(), *desk, *ring])
            await result.start()
        except OSError:  # its socket is closed already; else its reader is the first to see it
            try:
                raise await result.died() from None
            finally:
                self._background(self._end(result))
        except BaseException:
            self._background(self._end(result))
            raise
        if worker.watch is None:
            worker.watch = asyncio.get_running_loop().create_task(self._watch(worker))
        return result

    async def _turn(self, consumer: str, seconds: float | None) -> None:
        asking = self._background(self._patience(consumer))
        try:
            await self._turns.take(consumer, seconds=seconds)
        finally:
            asking.cancel()

    async def _patience(self, wanting: str) -> None:
        while True:
            await asyncio.sleep(_PATIENCE)
            self._ask_back(wanting)

    def _ask_back(self, wanting: str) -> None:
        """End the newest job of a consumer that holds all of several workers, after another consumer has waited for
        long.

        Its place then goes to others first: its reader may still read slowly what is in the ring. A job that adds noise
        is not ended: nothing of it is read slowly, and each new attempt would spend its budget again. Workers shared by
        streams belong to no consumer. A consumer that holds the only unshared worker loses it only by reading slowly:
        otherwise its long work would start again for each waiting job.
        """
        alone = [result for worker in self._busy if not worker.shared for result in worker.results]
        theirs = {result.job.consumer for result in alone}
        if len(self._busy) < max(2, self._size) or len(theirs) != 1 or not theirs.isdisjoint({wanting, *_OURS}):
            return
        ended = [one for one in alone if _may_be_ended(one, several=len(alone) > 1)]
        if ended:
            last = max(ended, key=lambda one: one.begun)
            worker = last._worker
            worker.kill("worker_wanted")
            self._busy.discard(worker)
            self._background(self._bury(worker))  # its files on disk are not needed any more
            self._turns.give_back(worker.taken_by, after_others=True)

    def _open_desk(self, result: Result, stack: ExitStack) -> list[socket.socket]:
        """Return the worker's end of the socket over which a job borrows blocks of objects; empty for a job without
        objects."""
        loans = object_lender.loans_of(result.job)
        if not loans or self._library is None:
            return []
        result.desk, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._background(object_lender.lend(result.desk, loans, self._library))
        return [stack.enter_context(theirs)]

    def _sharing(self, job: Job) -> WorkerProcess | None:
        """Return a worker that runs streams and has room for one more, for a job that may share."""
        if not job.shared:
            return None
        fitting = [
            worker
            for worker in self._busy
            if self._fit(worker)
            and not worker.doomed
            and worker.shared
            and len(worker.results) < self._streams_per_worker
        ]
        return min(fitting, key=lambda worker: len(worker.results), default=None)

    async def _take_worker(self) -> WorkerProcess:
        """Return a free worker, or the first that becomes free; a new one costs half a second and memory.

        A worker whose job has ended by itself is free in a moment, so a new process is started only where no worker is
        free or about to be. If a worker becomes free before the new one has started, it is taken, and the new one waits
        for other jobs.
        """
        hired: asyncio.Task[None] | None = None
        while (worker := await self._rested()) is None:
            if self._closed:
                raise error_of("shutting_down", {})
            if hired is not None and hired.done():
                hired.result()
                hired = None
            enough = self._starting > len(self._takers) or any(one.ending for one in self._busy)
            if hired is None and not enough and self.processes < self._size:
                hired = self._hire()
            freed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._takers.append(freed)
            try:
                await freed
            finally:
                self._takers.remove(freed)
        self._busy.add(worker)
        return worker

    async def _rested(self) -> WorkerProcess | None:
        """Return the most recently used free worker that has had time to open its next engine; else the oldest."""
        while self._idle:
            cut = time.monotonic() - _REST
            place = max((place for place, worker in enumerate(self._idle) if worker.idle_since <= cut), default=0)
            worker = self._idle.pop(place)
            if self._fit(worker):
                return worker
            worker.kill("recycled")
            await self._bury(worker)
        return None

    def _fit(self, worker: WorkerProcess) -> bool:
        """Whether the worker lives and may open the current directories."""
        return worker.alive() and worker.roots == self._roots.now

    def _rest(self, worker: WorkerProcess) -> None:
        worker.idle_since = time.monotonic()
        self._idle.append(worker)
        self._tell_takers()

    def _tell_takers(self) -> None:
        """Wake the waiting jobs after a change."""
        for taker in self._takers:
            if not taker.done():
                taker.set_result(None)

    def _finish(self, result: Result) -> None:
        worker, work = result._worker, self._background(self._end(result))
        if result.ended and worker.results == {result}:
            worker.ending = work

    async def _end(self, result: Result) -> None:
        """Clean up after a job."""
        worker = result._worker
        await result.settle()
        result.close()
        worker.results.discard(result)
        worker.ending = None
        self._tell_takers()  # who waited for it looks again: others may have begun in it, or it may not be fit any more
        await self._release_worker(worker)

    async def _release_worker(self, worker: WorkerProcess) -> None:
        """Let a worker without jobs rest, or bury and replace it."""
        if worker.results:
            return
        if worker.watch is not None:
            worker.watch.cancel()
            worker.watch = None
        has_place = worker in self._busy
        self._busy.discard(worker)
        if self._closed or worker.doomed or not worker.alive() or worker.worn:
            worker.kill("recycled")
            await self._bury(worker)
        else:
            self._rest(worker)
        if has_place:
            self._turns.give_back(worker.taken_by)
        await self._keep_warm()

    async def _keep_warm(self) -> None:
        with suppress(Unavailable):  # it is in the log; the next job tries again
            while not self._closed and self.processes < self._warm:
                await self._hire()

    def _hire(self) -> asyncio.Task[None]:
        """Start a process; it counts from now on, and serves the first job that wants it."""
        self._starting += 1
        work = self._background(self._start_and_rest())
        work.add_done_callback(_log_failed_start)  # its caller may have gone
        return work

    async def _start_and_rest(self) -> None:
        """Start a process, and let it rest until a job takes it."""
        try:
            worker = await self._start_worker()
        finally:
            self._starting -= 1
            self._tell_takers()
        self._rest(worker)

    async def _start_worker(self) -> WorkerProcess:
        """Return a process that has reported that it is ready. Raises: Unavailable where none starts."""
        try:
            worker = await self._spawn_process()
        except (OSError, MemoryError) as error:  # no more processes, descriptors, memory, or disk
            reason = error.strerror if isinstance(error, OSError) else "no memory"  # and no path
            raise Unavailable(f"{_NO_WORKER} ({reason})") from error
        late = False
        try:
            async with asyncio.timeout(_START_SECONDS):
                ready = await asyncio.get_running_loop().sock_recv(worker.control, 1)
        except TimeoutError:
            ready, late = b"", True
        except OSError:
            ready = b""
        if not ready:
            await worker.give_up_start(late=late)
            await self._bury(worker)
            raise Unavailable(_NO_WORKER)
        worker.began_mb = memory_of(worker.process.pid).data // 2**20
        return worker

    async def _spawn_process(self) -> WorkerProcess:
        """Run `engine.worker`, which confines itself (`sandbox.confine`) before it loads the engine."""
        ours, theirs = socket.socketpair()
        roots = self._roots.now  # if they change while it starts, the next look finds out
        with ExitStack() as failed:
            failed.callback(ours.close)
            folder = Path(tempfile.mkdtemp(prefix=f"worker-{os.getpid()}-", dir=self._work_dir))
            failed.callback(shutil.rmtree, folder, ignore_errors=True)
            said, stderr = await self._ear(failed)
            with theirs, stderr:
                process = await asyncio.create_subprocess_exec(
                    sys.executable, "-m", "connector.engine.worker", str(theirs.fileno()), str(folder), self._allowed,
                    pass_fds=(theirs.fileno(),), cwd=folder, stdin=asyncio.subprocess.DEVNULL,
                    stdout=asyncio.subprocess.DEVNULL, stderr=stderr,
                    env=environment(**_ALLOCATION),
                )  # fmt: skip
            failed.pop_all()
        ours.setblocking(False)
        return WorkerProcess(process, ours, folder, said, roots)

    async def _ear(self, failed: ExitStack) -> tuple[LastWords, IO[bytes]]:
        """Return the reader of a worker's standard error, and the file that the worker writes to."""
        reading, writing = (os.fdopen(end, mode, 0) for end, mode in zip(os.pipe(), ("rb", "wb"), strict=True))
        with ExitStack() as unheard:
            unheard.callback(writing.close)
            unheard.callback(reading.close)
            pipe, said = await asyncio.get_running_loop().connect_read_pipe(LastWords, reading)
            unheard.pop_all()
        failed.callback(pipe.close)
        return said, writing

    async def _bury(self, worker: WorkerProcess) -> None:
        worker.control.close()
        if worker.ring is not None:
            worker.ring.close()
        await worker.bury()
        await asyncio.to_thread(shutil.rmtree, worker.folder, ignore_errors=True)

    async def _watch(self, worker: WorkerProcess) -> None:
        """While a worker works, kill it when it uses more memory than its jobs may.

        A process may keep what a job has freed for the other jobs in it, so the highest sum of limits counts.
        """
        most = worker.jobs_mb
        while worker.alive():
            await asyncio.sleep(_RSS_EVERY)
            most = max(most, worker.jobs_mb)
            if worker.own_mb() > most + _RSS_SLACK_MB:
                worker.kill("memory_limit")

    async def _reap(self) -> None:
        """Stop workers that are worn out, or that have been idle for long and are not among those kept warm."""
        while True:
            await asyncio.sleep(min(5.0, self._idle_seconds / 4))
            await self._roots.look()
            now = time.monotonic()
            for worker in tuple(self._idle):
                if worker not in self._idle:
                    continue  # it was taken while another was buried
                rested = now - worker.idle_since
                if rested > _GIVEN_BACK and worker.ring is not None:
                    worker.ring.rest()
                unneeded = rested > self._idle_seconds and self.processes > self._warm
                if unneeded or (rested > _GIVEN_BACK and worker.swollen) or not self._fit(worker):
                    self._idle.remove(worker)
                    worker.kill("idle")
                    await self._bury(worker)
            await self._keep_warm()

    def _background(self, work: Any) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def _is_governed(job: Job) -> bool:
    """Whether it is a participant's read, which has passed the gate and is recorded under its agreements."""
    return ":" in job.consumer  # a DID


def _open_result(worker: WorkerProcess, job: Job) -> tuple[Result, socket.socket]:
    """Return the job as a result of this worker, and the worker's end of its socket."""
    with ExitStack() as failed:
        ours, theirs = map(failed.enter_context, socket.socketpair())
        ours.setblocking(False)
        result = Result(worker, job, ours)
        failed.pop_all()
    worker.results.add(result)
    return result, theirs


def _may_be_ended(one: Result, *, several: bool) -> bool:
    """Whether a job of the consumer that holds all unshared workers, `several` or only one, may be ended for others.

    Checks of uploaded data may not: they take much less than a quarter of their time limit.
    """
    if one.job.kind == "check_arrow":
        return time.monotonic() - one.begun > one.job.limits.seconds / 4
    return one.job.kind == "query" and not one.job.noise and (several or one.unasked > _PATIENCE)


def _log_failed_start(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        _log.warning("a worker did not start", reason=str(error))


def _remove_left_over(work_dir: Path) -> None:
    """Remove the folders of workers whose connector has died: the data of their queries must not stay on disk."""
    for folder in work_dir.glob("worker-*-*"):
        process = folder.name.split("-")[1]
        if process == str(os.getpid()) or not Path("/proc", process).exists():
            shutil.rmtree(folder, ignore_errors=True)
