"""Opening the database, and running transactions on it.

SQLite: WAL with synchronous=FULL, and one writer thread. Units of work that arrive together share one commit, each in a
savepoint of its own: one sync to disk pays for all of them. PostgreSQL: a few threads, one transaction per unit.
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

from connector.errors import AlreadyExists, Busy
from connector.events import Bus, Event
from connector.infra.concurrency.thread_pool import WAITING_MAX, BoundedThreadPool
from connector.infra.database.database import LONG_READS_MAX, open_engine, run_statement
from connector.store.error_mapping import Failures
from connector.store.queries.audit import mark
from connector.store.refusal_sampling import Refusals
from connector.store.transaction import Transaction
from connector.telemetry import logger

T = TypeVar("T")
Work = Callable[[Transaction], T]
Outlet = Callable[[Transaction, Event], None]  # stores something more with an event, in the same transaction

_SNAPSHOT = "REPEATABLE READ"  # PostgreSQL's own has a new snapshot for each statement
_GROUP_MAX = 256  # units of work in one SQLite commit
_RETRIES = 5
_COUNT_SECONDS = 60.0
_LOOK_UP_SECONDS, _LOOK_UP_PAUSE = 5.0, 0.1  # how long who waits for a commit waits for what became of it
_NO_WRITER = "nothing can be kept any more: what writes to the database has ended; start the connector anew"
UNKNOWN = "outcome_unknown"  # code of Busy where the database went away in a commit, and cannot be asked
_log = logger("store")


class Store:
    """One database. `bus` receives events after their commit, in the thread of the event loop that wrote."""

    def __init__(self, url: str, *, bus: Bus | None = None, pool_size: int = 8) -> None:
        self.bus = bus or Bus()
        self.refusals = Refusals()
        self._failures = Failures()
        self._telling = asyncio.Lock()
        self.outlets: list[Outlet] = []
        self.origin = uuid.uuid4().hex  # of our events, among those of other processes on the same database
        self.is_sqlite = make_url(url).get_backend_name() == "sqlite"
        self.engine = open_engine(url, pool_size=pool_size)
        # As the database was when a reader began, whatever is committed meanwhile: so SQLite reads by itself.
        self._reading = self.engine if self.is_sqlite else self.engine.execution_options(isolation_level=_SNAPSHOT)
        self._readers = BoundedThreadPool(pool_size, "store-read")
        self._lasting = BoundedThreadPool(LONG_READS_MAX, "store-lasting")
        self._doubts: dict[str, Transaction] = {}  # what may have been committed, by its origin
        self._writer: _GroupWriter | _PooledWriter = (
            _GroupWriter(self.engine, self._failures, self.origin)
            if self.is_sqlite
            else _PooledWriter(self.engine, self._failures, pool_size, self.origin, self._doubts)
        )

    async def write(self, work: Work[T]) -> T:
        """Run `work(tx)` and commit; what it returns, once the commit is durable. An exception undoes everything."""
        whole = self._with_outlets(work) if self.outlets else work
        committing: Future[tuple[T, Transaction]] = self._writer.submit(whole)
        try:
            result, tx = await asyncio.wrap_future(committing)
        except asyncio.CancelledError:  # what is committed happened, whoever waits for it
            committing.add_done_callback(partial(self._tell_later, asyncio.get_running_loop()))
            raise
        self._tell(tx)
        return result

    async def refused(self, event: Event) -> None:
        """Record a refusal that has changed nothing; of a flood of them, some one by one, and the others as a count.
        What names an agreement and no dataset is told of the agreement's."""
        if self.refusals.take(event, time.monotonic()):
            await self.write(partial(_publish, [event]))

    async def tell_counted(self) -> None:
        """Record how many more there were; what cannot be recorded now stays for the next time."""
        async with self._telling:
            if counted := self.refusals.counted(time.monotonic()):
                await self.write(partial(_publish, counted))
                self.refusals.forget(counted)

    async def count_refusals(self) -> None:
        """Record these counts each minute, until cancelled."""
        while True:
            await asyncio.sleep(_COUNT_SECONDS)
            with suppress(Busy):
                await asyncio.shield(self.tell_counted())  # what is committed is forgotten, whoever waits for it

    def _tell(self, tx: Transaction) -> None:
        """What follows a commit: in the thread of the event loop."""
        for act in tx.afterwards:
            act()
        for happened in tx.published:
            self.bus.deliver(happened)

    def _tell_later(self, loop: asyncio.AbstractEventLoop, committed: Future[tuple[Any, Transaction]]) -> None:
        if not committed.cancelled() and committed.exception() is None:
            with suppress(RuntimeError):  # the loop is closed: nobody listens any more
                loop.call_soon_threadsafe(self._tell, committed.result()[1])

    async def look_up(self) -> None:
        """Tell of what was committed after all where nobody could say so when its answer was lost."""
        for origin, tx in tuple(self._doubts.items()):
            asked = partial(_asked_whether_kept, self.engine, self._failures, tx)
            kept = await asyncio.wrap_future(self._readers.submit(asked))
            if kept is not None:
                del self._doubts[origin]
            if kept:
                self._tell(tx)

    def _with_outlets(self, work: Work[T]) -> Work[T]:
        def whole(tx: Transaction) -> T:
            result = work(tx)
            for happened in tuple(tx.published):
                for outlet in self.outlets:
                    outlet(tx, happened)
            return result

        return whole

    async def read(self, work: Work[T]) -> T:
        """Run `work(tx)` on a snapshot, which locks nothing; nothing it does is kept. Busy where the database does not
        answer."""
        return await asyncio.wrap_future(self._readers.submit(partial(self.read_now, work)))

    async def read_lasting(self, work: Work[T]) -> T:
        """The same, for what may take minutes: in threads of their own, so that nobody's question waits for it."""
        return await asyncio.wrap_future(self._lasting.submit(partial(self.read_now, work)))

    def read_now(self, work: Work[T]) -> T:
        """The same, in this thread: for who builds parts, while nothing runs."""
        try:
            with self._reading.connect() as connection:
                connection.begin()  # rolled back as the connection is given back
                with closing(Transaction(connection, now=time.time())) as tx:
                    return work(tx)
        except (DBAPIError, PoolTimeout) as error:
            raise self._failures.refusal(error) from error

    async def check(self) -> None:
        """Busy where the database does not let us read, or takes no changes, or nobody is here to write them. It is
        asked by reading: a change would wait for those ahead of it, and for what they have locked."""
        if not self._writer.alive:
            raise Busy(_NO_WRITER)
        _, may_change = await self.read(lambda tx: (tx.tokens.count(), tx.may_change()))
        if not may_change:
            raise Busy("the database takes no changes now: it is a standby, or set to read only")

    def close(self) -> None:
        """Finish what was submitted, then close every connection."""
        self._writer.close()
        self._readers.close()
        self._lasting.close()
        self.engine.dispose()


def _publish(events: Sequence[Event], tx: Transaction) -> None:
    for event in events:
        its = tx.agreements.dataset_of(event.agreement) if event.agreement and not event.dataset else ""
        tx.publish(replace(event, dataset=its) if its else event)


def _run(connection: Connection, work: Work[T], *, origin: str, shared: bool = False) -> tuple[T, Transaction]:
    """One unit of work in an open transaction, `shared` with others or not. Who opened it undoes it after an error."""
    with closing(Transaction(connection, now=time.time(), origin=origin, shared=shared)) as tx:
        try:
            result = work(tx)
            tx.finish()
        except IntegrityError as error:
            raise AlreadyExists("the same was stored by somebody else a moment ago; read it again") from error
        return result, tx


class _GroupWriter:
    """The single writer of an SQLite file."""

    def __init__(self, engine: Engine, failures: Failures, origin: str) -> None:
        self._engine, self._failures, self._origin = engine, failures, origin
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
            raise Busy("the connector is shutting down; try again in a moment")
        if not self.alive:
            raise Busy(_NO_WRITER)
        try:
            self._waiting.put_nowait((work, future))
        except queue.Full:
            raise Busy(f"more than {WAITING_MAX} changes wait for the database; try again in a moment") from None
        return future

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            if self.alive:
                self._waiting.put(None)
            self._thread.join()

    def _loop(self) -> None:
        while (first := self._waiting.get()) is not None:
            stop = self._together(first)
            del first  # what it was asked for, which may be megabytes and hold files open, while nothing comes
            if stop:
                break
        self._give_back()

    def _together(self, first: tuple[Work[Any], Future[Any]]) -> bool:
        """Commit it with those that wait behind it; whether nothing comes any more."""
        group, over = [first], False
        while not over and len(group) < _GROUP_MAX and not self._waiting.empty():
            more = self._waiting.get_nowait()
            if more is None:
                over = True
            else:
                group.append(more)
        self._commit_or_tell(group)
        return over

    def _commit_or_tell(self, group: list[tuple[Work[Any], Future[Any]]]) -> None:
        """Whatever goes wrong, nobody of the group waits for ever, and those after it have a writer."""
        try:
            self._commit(group)
        except BaseException as error:  # noqa: BLE001  # failures of the database are answered before they come here
            unknown = Busy("the connector failed as it kept this; look whether it did", code=UNKNOWN)
            for _, future in group:
                if future.running() or (not future.done() and future.set_running_or_notify_cancel()):
                    future.set_exception(unknown)
            _log.error("writer_failed", exc_info=error)

    @contextmanager
    def _transaction(self) -> Iterator[Connection]:
        """On one connection for all of them, until something fails: the pool knows what to do with it then."""
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
                        continue  # whoever asked has gone away before it began; from here on it cannot be cancelled
                    run_statement(connection, "SAVEPOINT unit")  # SQLAlchemy's own cost more than what most units do
                    try:
                        done.append((future, _run(connection, work, origin=self._origin, shared=True)))
                    except Exception as error:  # noqa: BLE001  # the unit's own failure goes to its caller, whole
                        run_statement(connection, "ROLLBACK TO unit")
                        future.set_exception(self._failures.refusal(error))
                    run_statement(connection, "RELEASE unit")
        except Exception as error:  # noqa: BLE001  # no commit: nobody of the group may believe in one
            refusal = self._failures.refusal(error)
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
                outcome = _run(connection, work, origin=self._origin)
        except Exception as error:  # noqa: BLE001  # the unit's own failure, or the database's
            future.set_exception(self._failures.refusal(error))
        else:
            future.set_result(outcome)


class _PooledWriter:
    """Writers of a PostgreSQL database: a thread each, retried where the database says that two of them collided.

    A commit whose answer is lost is looked up, if anybody is to hear of it; what cannot be in time is left in `doubts`.
    """

    alive = True  # its threads answer with whatever fails in them, and go on

    def __init__(
        self, engine: Engine, failures: Failures, size: int, process: str, doubts: dict[str, Transaction]
    ) -> None:
        self._engine, self._failures, self._process, self._doubts = engine, failures, process, doubts
        self._numbers = itertools.count()
        self._threads = BoundedThreadPool(size, "store-write")

    def submit(self, work: Work[Any]) -> Future[Any]:
        return self._threads.submit(partial(self._attempts, work))

    def close(self) -> None:
        self._threads.close()

    def _attempts(self, work: Work[Any]) -> Any:
        for attempt in range(_RETRIES):
            committing: Transaction | None = None
            try:
                with self._engine.connect() as connection, connection.begin():
                    outcome = _run(connection, work, origin=mark(self._process, next(self._numbers)))
                    committing = outcome[1]
                return outcome
            except (DBAPIError, PoolTimeout) as error:
                collided = isinstance(error, DBAPIError) and getattr(error.orig, "sqlstate", "") in ("40001", "40P01")
                if committing is not None and not collided and self._was_kept(committing):
                    return outcome
                if not collided:
                    raise self._failures.refusal(error) from error
                time.sleep(0.01 * 2**attempt)
        raise Busy("the database stayed contended; try again in a moment")

    def _was_kept(self, tx: Transaction) -> bool:
        """Whether it was committed. Busy, of the code UNKNOWN, where the database does not say in time."""
        until = time.monotonic() + _LOOK_UP_SECONDS
        while tx.number and time.monotonic() < until:
            with suppress(Busy):
                kept = _asked_whether_kept(self._engine, self._failures, tx)
                if kept is not None:
                    return kept
            time.sleep(_LOOK_UP_PAUSE)
        if tx.number and len(self._doubts) < WAITING_MAX:
            self._doubts[tx.origin] = tx
        raise Busy("the database went away as it kept this; look whether it did", code=UNKNOWN)


def _asked_whether_kept(engine: Engine, failures: Failures, tx: Transaction) -> bool | None:
    """Whether this transaction's records are there: None while they may still come. Busy where nobody answers.

    Its number says only whether it is over: a server that lost the last of its log, or a standby in its place, gives
    the number out again. What it has written under an origin of its own was written by nobody else.
    """
    try:
        with engine.connect() as connection:
            if tx.number is None or _may_come(connection, tx.number):
                return None
            with connection.begin(), closing(Transaction(connection, now=tx.now)) as looking:  # and sees what is over
                return looking.audit.has(tx.origin, ts=tx.now)
    except (DBAPIError, PoolTimeout) as error:
        raise failures.refusal(error) from error


def _may_come(connection: Connection, number: int) -> bool:
    """Whether a transaction may be kept yet: it is not over, or this is a standby, which hears of it later."""
    with connection.begin():
        if connection.exec_driver_sql("SELECT pg_is_in_recovery()").scalar():
            return True
    try:
        with connection.begin():
            status = connection.exec_driver_sql("SELECT txid_status(%s)", (number,)).scalar()
    except DBAPIError as error:
        if getattr(error.orig, "sqlstate", "") != "22023":
            raise
        return False  # a server that has not come to this number does not know of the transaction that had it
    return bool(status == "in progress")
