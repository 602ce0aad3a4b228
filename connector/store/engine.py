"""The connector's database: opens it and runs units of work as transactions.

SQLite: WAL with synchronous=FULL and one writer thread. Units of work that arrive together share one commit, each in
its own savepoint, so that one sync to disk serves all of them. PostgreSQL: several threads, one transaction per unit.
"""

from __future__ import annotations

import asyncio
import itertools
import queue
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

from sqlalchemy import Connection, Engine, make_url
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from connector.acting import Acting, current
from connector.errors import AlreadyExists, Unavailable
from connector.events import Bus, Event
from connector.infra.concurrency.thread_pool import WAITING_MAX, BoundedThreadPool
from connector.infra.database.database import LONG_READS_MAX, open_engine, run_statement
from connector.store.error_mapping import ErrorMapper
from connector.store.queries.audit import make_origin
from connector.store.refusal_sampling import RefusalSampler
from connector.store.transaction import Transaction
from connector.telemetry import logger

T = TypeVar("T")
Work = Callable[[Transaction], T]
EventHook = Callable[[Transaction, Event], None]  # stores more rows with an event, in the same transaction

_SNAPSHOT = "REPEATABLE READ"  # PostgreSQL's default level takes a new snapshot for each statement
_GROUP_MAX = 256  # units of work in one SQLite commit
_RETRIES = 5
_COUNT_SECONDS = 60.0
_LOOK_UP_SECONDS, _LOOK_UP_PAUSE = 5.0, 0.1  # how long, and how often, to ask what became of a lost commit
_NO_WRITER = "the database writer has stopped and no change can be stored; restart the connector"
UNKNOWN = (
    "outcome_unknown"  # code of Unavailable where the connection broke during a commit and the outcome cannot be read
)
_log = logger("store")


class Store:
    """The connector's database. `bus` receives events after their commit, in the thread of the writing event loop."""

    def __init__(self, url: str, *, bus: Bus | None = None, pool_size: int = 8) -> None:
        self.bus = bus or Bus()
        self.refusals = RefusalSampler()
        self._errors = ErrorMapper()
        self._recording_counts = asyncio.Lock()
        self.event_hooks: list[EventHook] = []
        # Marks this process's events among those of other processes on the same database.
        self.origin = uuid.uuid4().hex
        self.is_sqlite = make_url(url).get_backend_name() == "sqlite"
        self.engine = open_engine(url, pool_size=pool_size)
        # A reader sees one snapshot, whatever is committed meanwhile. SQLite does so by default.
        self._reading = self.engine if self.is_sqlite else self.engine.execution_options(isolation_level=_SNAPSHOT)
        self._readers = BoundedThreadPool(pool_size, "store-read")
        self._lasting = BoundedThreadPool(LONG_READS_MAX, "store-lasting")
        self._doubts: dict[str, Transaction] = {}  # transactions whose outcome is unknown, by origin
        self._writer: _GroupWriter | _PooledWriter = (
            _GroupWriter(self.engine, self._errors, self.origin)
            if self.is_sqlite
            else _PooledWriter(self.engine, self._errors, pool_size, self.origin, self._doubts)
        )

    async def write(self, work: Work[T]) -> T:
        """Run `work(tx)` and commit. Returns its result once the commit is durable.

        An exception rolls everything back.

        Raises:
            Unavailable: the database cannot be written now. With the code `outcome_unknown` the change may have been
            stored.
            AlreadyExists: a constraint of the database was violated.
        """
        acting = current()
        named = work if acting is None else _as_caller(work, acting)
        unit = self._with_hooks(named) if self.event_hooks else named
        committing: Future[tuple[T, Transaction]] = self._writer.submit(unit)
        try:
            result, tx = await asyncio.wrap_future(committing)
        except asyncio.CancelledError:  # the commit may still happen, and its events must be delivered
            committing.add_done_callback(partial(self._deliver_later, asyncio.get_running_loop()))
            raise
        self._deliver(tx)
        return result

    async def record_refusal(self, event: Event) -> None:
        """Record a refusal that changed nothing. Above the rate limit it is only counted.

        An event with an agreement and no dataset gets the agreement's dataset.
        """
        if self.refusals.admit(event, time.monotonic()):
            await self.write(partial(_publish, [event]))

    async def record_refusal_counts(self) -> None:
        """Record the counts of refusals above the rate limit. Counts that cannot be stored now are kept for later."""
        async with self._recording_counts:
            if counts := self.refusals.list_counts(time.monotonic()):
                await self.write(partial(_publish, counts))
                self.refusals.forget_recorded(counts)

    async def run_refusal_counter(self) -> None:
        """Record the counts of refusals once a minute, until cancelled."""
        while True:
            await asyncio.sleep(_COUNT_SECONDS)
            with suppress(Unavailable):
                await asyncio.shield(self.record_refusal_counts())  # a commit must also clear the counts

    def _deliver(self, tx: Transaction) -> None:
        """Deliver the events of a commit, in the thread of the event loop."""
        for event in tx.published:
            self.bus.deliver(event)

    def _deliver_later(self, loop: asyncio.AbstractEventLoop, committed: Future[tuple[Any, Transaction]]) -> None:
        if not committed.cancelled() and committed.exception() is None:
            with suppress(RuntimeError):  # the loop is closed
                loop.call_soon_threadsafe(self._deliver, committed.result()[1])

    async def resolve_unknown_commits(self) -> None:
        """Ask again for commits whose answer was lost, and deliver the events of those that were stored."""
        for origin, tx in tuple(self._doubts.items()):
            find = partial(_find_commit, self.engine, self._errors, tx)
            stored = await asyncio.wrap_future(self._readers.submit(find))
            if stored is not None:
                del self._doubts[origin]
            if stored:
                self._deliver(tx)

    def _with_hooks(self, work: Work[T]) -> Work[T]:
        def run(tx: Transaction) -> T:
            result = work(tx)
            for event in tuple(tx.published):
                for hook in self.event_hooks:
                    hook(tx, event)
            return result

        return run

    async def read(self, work: Work[T]) -> T:
        """Run `work(tx)` on a snapshot without locks, then roll back. Raises: Unavailable if the database is away."""
        return await asyncio.wrap_future(self._readers.submit(partial(self.read_now, work)))

    async def read_long(self, work: Work[T]) -> T:
        """As `read`, for work that may take minutes: in separate threads, so that short reads do not wait for it."""
        return await asyncio.wrap_future(self._lasting.submit(partial(self.read_now, work)))

    def read_now(self, work: Work[T]) -> T:
        """As `read`, in the calling thread: for start-up, before the event loop runs."""
        try:
            with self._reading.connect() as connection:
                connection.begin()  # rolled back when the connection returns to the pool
                with closing(Transaction(connection, now=time.time())) as tx:
                    return work(tx)
        except (DBAPIError, PoolTimeout) as error:
            raise self._errors.map_error(error) from error

    async def check_writable(self) -> None:
        """Raise Busy unless the database can be read and written.

        The check only reads: a write would wait for the writes ahead of it and for their locks.
        """
        if not self._writer.alive:
            raise Unavailable(_NO_WRITER)
        _, writable = await self.read(lambda tx: (tx.tokens.count(), tx.is_writable()))
        if not writable:
            raise Unavailable(
                "expected a writable database, got one that is a standby or read only; connect to the primary"
            )

    def close(self) -> None:
        """Finish what was submitted, then close every connection."""
        self._writer.close()
        self._readers.close()
        self._lasting.close()
        self.engine.dispose()


def _as_caller(work: Work[T], acting: Acting) -> Work[T]:
    """Return the work of a request, which tells the transaction the request's caller."""

    def run(tx: Transaction) -> T:
        tx.acting = acting
        return work(tx)

    return run


def _publish(events: Sequence[Event], tx: Transaction) -> None:
    for event in events:
        dataset = tx.agreements.read_dataset_id(event.agreement) if event.agreement and not event.dataset else ""
        tx.publish(replace(event, dataset=dataset) if dataset else event)


def _run_unit(connection: Connection, work: Work[T], *, origin: str, shared: bool = False) -> tuple[T, Transaction]:
    """Run one unit of work in an open transaction. The caller commits, or rolls back after an error.

    `shared`: other units of work are in the same transaction.
    """
    with closing(Transaction(connection, now=time.time(), origin=origin, shared=shared)) as tx:
        try:
            result = work(tx)
            tx.finish()
        except IntegrityError as error:
            raise AlreadyExists("another request stored the same row a moment ago; read it again") from error
        return result, tx


class _GroupWriter:
    """The single writer of an SQLite file."""

    def __init__(self, engine: Engine, errors: ErrorMapper, origin: str) -> None:
        self._engine, self._errors, self._origin = engine, errors, origin
        self._waiting: queue.Queue[tuple[Work[Any], Future[Any]] | None] = queue.Queue(WAITING_MAX)
        self._closed = False
        self._connection: Connection | None = None
        self._thread = threading.Thread(target=self._loop, name="store-write", daemon=True)
        self._thread.start()

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def submit(self, work: Work[Any]) -> Future[Any]:
        future: Future[Any] = Future()
        if self._closed:
            raise Unavailable("the connector is shutting down; try again in a moment")
        if not self.alive:
            raise Unavailable(_NO_WRITER)
        try:
            self._waiting.put_nowait((work, future))
        except queue.Full:
            raise Unavailable(f"more than {WAITING_MAX} changes wait for the database; try again in a moment") from None
        return future

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            if self.alive:
                self._waiting.put(None)
            self._thread.join()

    def _loop(self) -> None:
        while (first := self._waiting.get()) is not None:
            stop = self._commit_group(first)
            del first  # it may hold megabytes and open files while the thread waits for the next unit
            if stop:
                break
        self._give_back()

    def _commit_group(self, first: tuple[Work[Any], Future[Any]]) -> bool:
        """Commit the unit together with those that wait behind it. Returns whether the writer is to stop."""
        group, over = [first], False
        while not over and len(group) < _GROUP_MAX and not self._waiting.empty():
            more = self._waiting.get_nowait()
            if more is None:
                over = True
            else:
                group.append(more)
        self._commit_or_fail(group)
        return over

    def _commit_or_fail(self, group: list[tuple[Work[Any], Future[Any]]]) -> None:
        """Commit the group. After any failure every caller gets an answer and the writer goes on."""
        try:
            self._commit(group)
        except BaseException as error:  # noqa: BLE001  # database errors are handled in `_commit`
            unknown = Unavailable(
                "the connector failed while it stored this change; check whether it was stored", code=UNKNOWN
            )
            for _, future in group:
                if future.running() or (not future.done() and future.set_running_or_notify_cancel()):
                    future.set_exception(unknown)
            _log.error("writer_failed", exc_info=error)

    @contextmanager
    def _transaction(self) -> Iterator[Connection]:
        """A transaction on the writer's one connection. After a failure the connection goes back to the pool."""
        if self._connection is None:
            self._connection = self._engine.connect().execution_options(writing=True)
        try:
            with self._connection.begin():
                yield self._connection
        except BaseException:
            self._give_back()
            raise

    def _give_back(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close()

    def _commit(self, group: list[tuple[Work[Any], Future[Any]]]) -> None:
        if len(group) == 1:
            self._commit_alone(*group[0])
            return
        done: list[tuple[Future[Any], Any]] = []
        try:
            with self._transaction() as connection:
                for work, future in group:
                    if not future.set_running_or_notify_cancel():
                        continue  # cancelled before it began; from here on it cannot be cancelled
                    run_statement(connection, "SAVEPOINT unit")  # SQLAlchemy's savepoints cost more than most units
                    try:
                        done.append((future, _run_unit(connection, work, origin=self._origin, shared=True)))
                    except Exception as error:  # noqa: BLE001  # the unit's own failure goes to its caller
                        run_statement(connection, "ROLLBACK TO unit")
                        future.set_exception(self._errors.map_error(error))
                    run_statement(connection, "RELEASE unit")
        except Exception as error:  # noqa: BLE001  # no commit: every unit of the group failed
            refusal = self._errors.map_error(error)
            for _, future in group:
                if future.running() or (not future.done() and future.set_running_or_notify_cancel()):
                    future.set_exception(refusal)
            return
        for future, outcome in done:
            future.set_result(outcome)

    def _commit_alone(self, work: Work[Any], future: Future[Any]) -> None:
        if not future.set_running_or_notify_cancel():
            return
        try:
            with self._transaction() as connection:
                outcome = _run_unit(connection, work, origin=self._origin)
        except Exception as error:  # noqa: BLE001  # the unit's own failure, or the database's
            future.set_exception(self._errors.map_error(error))
        else:
            future.set_result(outcome)


class _PooledWriter:
    """Writer threads of a PostgreSQL database. A unit is retried after a serialization failure or a deadlock.

    After a lost connection a commit with events is looked up. If that fails in time, the transaction stays in `doubts`.
    """

    alive = True  # its threads survive any failure of a unit

    def __init__(
        self, engine: Engine, errors: ErrorMapper, size: int, process: str, doubts: dict[str, Transaction]
    ) -> None:
        self._engine, self._errors, self._process, self._doubts = engine, errors, process, doubts
        self._numbers = itertools.count()
        self._threads = BoundedThreadPool(size, "store-write")

    def submit(self, work: Work[Any]) -> Future[Any]:
        return self._threads.submit(partial(self._run_with_retries, work))

    def close(self) -> None:
        self._threads.close()

    def _run_with_retries(self, work: Work[Any]) -> Any:
        for attempt in range(_RETRIES):
            committing: Transaction | None = None
            try:
                with self._engine.connect() as connection, connection.begin():
                    outcome = _run_unit(connection, work, origin=make_origin(self._process, next(self._numbers)))
                    committing = outcome[1]
                return outcome
            except (DBAPIError, PoolTimeout) as error:
                collided = isinstance(error, DBAPIError) and getattr(error.orig, "sqlstate", "") in ("40001", "40P01")
                if committing is not None and not collided and self._was_stored(committing):
                    return outcome
                if not collided:
                    raise self._errors.map_error(error) from error
                time.sleep(0.01 * 2**attempt)
        raise Unavailable("the database stayed contended; try again in a moment")

    def _was_stored(self, tx: Transaction) -> bool:
        """Whether the transaction was committed.

        Raises Unavailable with the code UNKNOWN if the database does not say in time.
        """
        until = time.monotonic() + _LOOK_UP_SECONDS
        while tx.transaction_id and time.monotonic() < until:
            with suppress(Unavailable):
                stored = _find_commit(self._engine, self._errors, tx)
                if stored is not None:
                    return stored
            time.sleep(_LOOK_UP_PAUSE)
        if tx.transaction_id and len(self._doubts) < WAITING_MAX:
            self._doubts[tx.origin] = tx
        raise Unavailable(
            "the database connection broke during the commit; check whether the change was stored", code=UNKNOWN
        )


def _find_commit(engine: Engine, errors: ErrorMapper, tx: Transaction) -> bool | None:
    """Whether the transaction was committed; None while it is undecided. Raises Unavailable if the database does not
    answer.

    The PostgreSQL transaction id says only whether the transaction is over: a server that lost the end of its log, or a
    standby that took its place, assigns the id again. The transaction's own origin in a record proves the commit.
    """
    try:
        with engine.connect() as connection:
            if tx.transaction_id is None or _is_undecided(connection, tx.transaction_id):
                return None
            with connection.begin(), closing(Transaction(connection, now=tx.now)) as later:  # begun after it was over
                return later.audit.has_record(tx.origin, ts=tx.now)
    except (DBAPIError, PoolTimeout) as error:
        raise errors.map_error(error) from error


def _is_undecided(connection: Connection, number: int) -> bool:
    """Whether a transaction may still be committed: it is in progress, or this server is a standby and may lag."""
    with connection.begin():
        if connection.exec_driver_sql("SELECT pg_is_in_recovery()").scalar():
            return True
    try:
        with connection.begin():
            status = connection.exec_driver_sql("SELECT txid_status(%s)", (number,)).scalar()
    except DBAPIError as error:
        if getattr(error.orig, "sqlstate", "") != "22023":
            raise
        return False  # the server has not assigned this id yet: the transaction was lost
    return bool(status == "in progress")
