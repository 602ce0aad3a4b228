"""Worker processes for queries, asked from the main process, which itself loads neither the engine nor Arrow.

    async with Pool(work_dir, size=2, warm=1) as pool:
        async with pool.run(Job(relations={"t": ...}, sql="SELECT ...")) as result:
            result.schema                       # IPC schema message (bytes)
            async for frame in result:          # Frame(rows, nbytes, payload, digest): one IPC message each
                ...
            result.totals                       # {"rows", "batches", "bytes"}, once the loop has ended
        profile = await pool.ask(Job(kind="profile", relations={"t": ...}))    # a JSON value

What is promised:
- at most `size` processes; more jobs wait, at most `waiting` of them and at most `wait_seconds`: then Busy. Free
  workers go round between consumers, so nobody's queue holds up another's, and of two workers or more one consumer has
  not all for longer than ten seconds while another waits: the last that it took is ended, unless it adds noise. Those
  that streams share do not count, whoever reads in them, and who has only one beside them loses it only where its
  reader has asked for nothing for ten seconds;
- a job that works longer than its limits without a frame is interrupted, and its worker killed `GRACE` seconds later
  (`worker_process`), where scans of others share it when those have ended; one that takes more than its memory
  and 300 MB is killed; a worker that dies costs its own jobs an error and nothing else, and is replaced;
- a worker has jobs only while the paths that it may open are the directories that they were when it started (`roots`);
- a slow reader slows the worker (nothing is read ahead but the slots of the ring); leaving the `async with` block
  early, or being cancelled in it, stops the work;
- every end that is not complete raises: a HanseError with a code, never with the engine's words.
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
from connector.engine.pool.worker_process import KEPT_MB, Result, Worker
from connector.errors import Busy
from connector.infra.concurrency.turn_queue import TurnQueue
from connector.telemetry import logger

_REST = 0.1
_PATIENCE = 10.0  # seconds that others wait for one consumer who has all workers
_OURS = frozenset({"owner", "coordinator"})  # who works for the operator: that is not ended for others
_GIVEN_BACK = 6.0  # seconds after which a worker at rest has given its memory back; `keeping.REST` is shorter
_RSS_EVERY = 0.1
_RSS_SLACK_MB = 300
# Batches of megabytes come and go all the time: while a job runs, and until the worker rests (`keeping.REST`), their
# memory is kept for the next one instead of being given back to the kernel, whose page faults would cost more than the
# copy.
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
    """The workers of one connector."""

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

        `readable` and `writable`: the only directories that a worker can open (None: not confined).
        """
        self._work_dir = Path(os.path.realpath(work_dir))
        self._size, self._warm = size, min(warm, size)
        self._streams_per_worker = streams_per_worker
        self._idle_seconds = idle_seconds
        self._turns = TurnQueue(size, waiting=waiting, wait_seconds=wait_seconds)
        self._idle: list[Worker] = []
        self._busy: set[Worker] = set()
        self._starting = 0
        self._takers: list[asyncio.Future[None]] = []  # who waits for a worker, longest first
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
        """Make ready; the workers that are kept warm start beside us, and one that does not is only logged."""
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
        """A job that gives frames. Raises what the table of errors below holds, and Busy.

        `watch(result)` runs beside the job from its start, before there is a schema; it may `interrupt` it. The job
        reads its first row when `after` is over; where that raises, none. It is made ready meanwhile, unless somebody
        else may want the worker.
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
        self, job: Job, *, told: Callable[[str, int], None] = lambda *_: None, seconds: float | None = None
    ) -> Any:
        """A job that gives one JSON value (report, describe, profile, convert, check_arrow).

        `told` hears the stage of a long one and how many files are done; `seconds`: as of `TurnQueue.take`. When this
        raises, also because it was cancelled, the worker has let go of the job.
        """
        result = await self._begin(job, seconds=seconds)
        try:
            kind, _, payload, _ = await result.next()
            while kind == wire.PROGRESS:
                told(*json.loads(bytes(payload)))
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
        """Resident memory of all workers, for the health page."""
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
                self._turns.give_back()
                raise
        try:
            result, theirs = _given(worker, job)
        except OSError as error:  # no more descriptors, or memory to share
            self._background(self._left(worker))
            raise Busy(f"{_NO_CHANNEL} ({error.strerror})") from error
        try:
            with theirs, ExitStack() as stack:
                desk = [end.fileno() for end in self._desk(result, stack)]
                ring = [] if result.ring is None else [result.ring.descriptor]
                told = wire.WITH[bool(desk), bool(ring)]
                socket.send_fds(worker.control, [told], [theirs.fileno(), *desk, *ring])
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
        """Somebody has waited for long: where one other consumer has all of several workers, it loses the last that it
        took, and the place is free now, for others first: its reader may take the rest of what is there as slowly as
        it likes. None that adds noise: nobody reads it slowly, and its budget would be spent anew by each attempt.

        Workers that streams share are nobody's, whoever has streams in them. Who has no other than the one that is left
        beside them loses it only by reading slowly: its long work would be begun anew for each who waits."""
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
            self._background(self._bury(worker))  # what it had on disk is nobody's any more
            self._turns.give_back(after_others=last.job.consumer)

    def _desk(self, result: Result, stack: ExitStack) -> list[socket.socket]:
        """For a job that reads objects: the worker's end of the socket over which it borrows their blocks."""
        loans = object_lender.loans_of(result.job)
        if not loans or self._library is None:
            return []
        result.desk, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._background(object_lender.lend(result.desk, loans, self._library))
        return [stack.enter_context(theirs)]

    def _sharing(self, job: Job) -> Worker | None:
        """A worker that streams already and has room for one more, for a job that may share."""
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

    async def _take_worker(self) -> Worker:
        """One that is free, or the first that will be: a new one takes half a second to start, and memory.

        One whose job has ended by itself cleans up, and is free in a moment; only where there is none, and may be more,
        a new one is started. Whoever was freed before that one had started is taken, and it waits for others.
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

    async def _rested(self) -> Worker | None:
        """Of those that are free the one used last that has had time to open its next engine; else the oldest."""
        while self._idle:
            cut = time.monotonic() - _REST
            place = max((place for place, worker in enumerate(self._idle) if worker.idle_since <= cut), default=0)
            worker = self._idle.pop(place)
            if self._fit(worker):
                return worker
            worker.kill("recycled")
            await self._bury(worker)
        return None

    def _fit(self, worker: Worker) -> bool:
        """Whether it lives, and may open what is to be read now."""
        return worker.alive() and worker.roots == self._roots.now

    def _rest(self, worker: Worker) -> None:
        worker.idle_since = time.monotonic()
        self._idle.append(worker)
        self._tell_takers()

    def _tell_takers(self) -> None:
        """Something has changed that somebody may wait for."""
        for taker in self._takers:
            if not taker.done():
                taker.set_result(None)

    def _finish(self, result: Result) -> None:
        worker, work = result._worker, self._background(self._end(result))
        if result.ended and worker.results == {result}:
            worker.ending = work

    async def _end(self, result: Result) -> None:
        """After a job: clean up."""
        worker = result._worker
        await result.settle()
        result.close()
        worker.results.discard(result)
        worker.ending = None
        self._tell_takers()  # who waited for it looks again: others may have begun in it, or it may not be fit any more
        await self._left(worker)

    async def _left(self, worker: Worker) -> None:
        """Where a worker has no job any more: let it rest, or bury and replace it."""
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
            self._turns.give_back()
        await self._keep_warm()

    async def _keep_warm(self) -> None:
        with suppress(Busy):  # it is in the log, and whoever wants one tries again
            while not self._closed and self.processes < self._warm:
                await self._hire()

    def _hire(self) -> asyncio.Task[None]:
        """A new process, which counts as one from now on, for whoever comes first."""
        self._starting += 1
        work = self._background(self._hired())
        work.add_done_callback(_heard)  # nobody may be there any more to hear of it
        return work

    async def _hired(self) -> None:
        try:
            worker = await self._started()
        finally:
            self._starting -= 1
            self._tell_takers()
        self._rest(worker)

    async def _started(self) -> Worker:
        try:
            worker = await self._process()
        except (OSError, MemoryError) as error:  # no more processes, descriptors, memory, or disk
            reason = error.strerror if isinstance(error, OSError) else "no memory"  # and no path
            raise Busy(f"{_NO_WORKER} ({reason})") from error
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
            raise Busy(_NO_WORKER)
        worker.began_mb = memory_of(worker.process.pid).data // 2**20
        return worker

    async def _process(self) -> Worker:
        ours, theirs = socket.socketpair()
        roots = self._roots.now  # where it comes to see others, the next look tells
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
        return Worker(process, ours, folder, said, roots)

    async def _ear(self, failed: ExitStack) -> tuple[LastWords, IO[bytes]]:
        """What hears the standard error of a worker, and what that one is to write to."""
        reading, writing = (os.fdopen(end, mode, 0) for end, mode in zip(os.pipe(), ("rb", "wb"), strict=True))
        with ExitStack() as unheard:
            unheard.callback(writing.close)
            unheard.callback(reading.close)
            pipe, said = await asyncio.get_running_loop().connect_read_pipe(LastWords, reading)
            unheard.pop_all()
        failed.callback(pipe.close)
        return said, writing

    async def _bury(self, worker: Worker) -> None:
        worker.control.close()
        if worker.ring is not None:
            worker.ring.close()
        await worker.bury()
        await asyncio.to_thread(shutil.rmtree, worker.folder, ignore_errors=True)

    async def _watch(self, worker: Worker) -> None:
        """While a worker works: kill it when it takes more memory than its jobs may.

        What a job has freed, its process may keep for those that go on beside it: so the most of them counts.
        """
        most = worker.jobs_mb
        while worker.alive():
            await asyncio.sleep(_RSS_EVERY)
            most = max(most, worker.jobs_mb)
            if worker.own_mb() > most + _RSS_SLACK_MB:
                worker.kill("memory_limit")

    async def _reap(self) -> None:
        """Stop workers that nobody has needed for a while, down to those kept warm, and those of no more use."""
        while True:
            await asyncio.sleep(min(5.0, self._idle_seconds / 4))
            await self._roots.look()
            now = time.monotonic()
            for worker in tuple(self._idle):
                if worker not in self._idle:
                    continue  # somebody has taken it while we buried another
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


def _given(worker: Worker, job: Job) -> tuple[Result, socket.socket]:
    """A job as one of the worker's, and that one's end of its socket."""
    with ExitStack() as failed:
        ours, theirs = map(failed.enter_context, socket.socketpair())
        ours.setblocking(False)
        result = Result(worker, job, ours)
        failed.pop_all()
    worker.results.add(result)
    return result, theirs


def _may_be_ended(one: Result, *, several: bool) -> bool:
    """Whether a job of who has all workers that no streams share, `several` or the only one, may be ended for others.

    What somebody else sent is checked in much less than a quarter of its time, if it is as large as it says."""
    if one.job.kind == "check_arrow":
        return time.monotonic() - one.begun > one.job.limits.seconds / 4
    return one.job.kind == "query" and not one.job.noise and (several or one.unasked > _PATIENCE)


def _heard(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        _log.warning("a worker did not start", reason=str(error))


def _remove_left_over(work_dir: Path) -> None:
    """Folders of workers whose connector has died with them: what their queries had put there must not stay."""
    for folder in work_dir.glob("worker-*-*"):
        process = folder.name.split("-")[1]
        if process == str(os.getpid()) or not Path("/proc", process).exists():
            shutil.rmtree(folder, ignore_errors=True)
