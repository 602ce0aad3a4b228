"""The catalogue's database: opens it and runs transactions. SQLite (WAL, synchronous=FULL) or PostgreSQL."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from functools import partial
from typing import TypeVar

from sqlalchemy import make_url
from sqlalchemy.exc import DataError, OperationalError
from sqlalchemy.orm import Session

from catalogue.store.transaction import CatalogueTransaction
from connector.errors import Invalid, Unavailable
from connector.infra.concurrency.thread_pool import BoundedThreadPool
from connector.infra.database.database import open_engine

T = TypeVar("T")
Work = Callable[[CatalogueTransaction], T]


class CatalogueStore:
    """The catalogue's database. SQLite has one writer thread, so that writers queue instead of waiting for a lock.

    Raises Invalid for a value that the database cannot store, such as text with NUL in PostgreSQL.
    """

    def __init__(self, url: str, *, clock: Callable[[], float] = time.time, pool_size: int = 4) -> None:
        self.clock = clock
        self.is_sqlite = make_url(url).get_backend_name() == "sqlite"
        self.engine = open_engine(url, pool_size=pool_size)
        self._readers = BoundedThreadPool(pool_size, "catalogue-read")
        self._writers = BoundedThreadPool(1 if self.is_sqlite else pool_size, "catalogue-write")

    async def write(self, work: Work[T]) -> T:
        """Run `work(tx)` and commit. Returns its result once the commit is durable.

        An exception rolls everything back. Raises Unavailable if too many writes wait.
        """
        return await asyncio.wrap_future(self._writers.submit(partial(self.write_now, work)))

    async def read(self, work: Work[T]) -> T:
        """Run `work(tx)` on a snapshot and roll back. Raises Unavailable if too many reads wait."""
        return await asyncio.wrap_future(self._readers.submit(partial(self.read_now, work)))

    def write_now(self, work: Work[T]) -> T:
        """As `write`, in the caller's thread (command line, indexer)."""
        try:
            with (
                self.engine.connect().execution_options(writing=True) as connection,
                Session(connection, expire_on_commit=False) as session,
            ):
                result = work(CatalogueTransaction(session, now=self.clock()))
                session.commit()
                return result
        except OperationalError as error:
            raise _busy_error(error) from error
        except DataError as error:
            raise _bad_input_error(error) from error

    def read_now(self, work: Work[T]) -> T:
        """As `read`, in the caller's thread."""
        try:
            with self.engine.connect() as connection, Session(connection, expire_on_commit=False) as session:
                return work(CatalogueTransaction(session, now=self.clock()))
        except OperationalError as error:
            raise _busy_error(error) from error
        except DataError as error:
            raise _bad_input_error(error) from error

    def close(self) -> None:
        """Finish what was submitted, then close every connection."""
        self._writers.close()
        self._readers.close()
        self.engine.dispose()


def _busy_error(error: OperationalError) -> Unavailable:
    return Unavailable("the database cannot be used now; try again in a moment", private=repr(error.orig)[:500])


def _bad_input_error(error: DataError) -> Invalid:
    return Invalid(
        "expected values that the database can hold, came one that it cannot, as a text with NUL; leave that out",
        private=repr(error.orig)[:500],
    )
