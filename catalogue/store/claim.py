"""A catalogue's directory and database are one process's: two would build the index for each other, and visit everybody
twice."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path

from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import SQLAlchemyError

from connector.database import connected, open_engine, sqlite_file
from connector.errors import Busy, Conflict
from connector.locks import locked
from connector.telemetry import logger

_SERVES = 0x48414E44  # beside the number that migrations lock
_LOOK_SECONDS = 5.0


def _end() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


@contextmanager
def alone(directory: Path, url: str, *, lost: Callable[[], None] = _end) -> Iterator[None]:
    """Keep both this process's alone for as long as the block lasts. Conflict where one is another's.

    In PostgreSQL that is a lock of a connection's: it is free seconds after its process or its machine is gone, and
    when the server starts again. So it is looked after, and taken anew; `lost` is called where it is another's by then.
    """
    with ExitStack() as held:
        own, other = directory / "catalogue.lock", "give this one a directory"  # a connector may have it as well
        held.enter_context(closing(locked(own, "HANSE_DATA_DIR", other, who="catalogue")))
        if (file := sqlite_file(url)) is not None:
            lock = file.with_name(f"{file.name}.lock")
            held.enter_context(closing(locked(lock, "HANSE_DATABASE_URL", "give this one a database", who="catalogue")))
        else:
            held.enter_context(_kept(url, lost))
        yield


@contextmanager
def _kept(url: str, lost: Callable[[], None]) -> Iterator[None]:
    engine, over = open_engine(url, pool_size=1), threading.Event()
    try:
        first = _claimed(engine)
        watch = threading.Thread(target=_watch, args=(engine, first, over, lost), name="catalogue-claim", daemon=True)
        watch.start()
        try:
            yield
        finally:
            over.set()
            watch.join(_LOOK_SECONDS)
    finally:
        engine.dispose()


def _watch(engine: Engine, held: Connection, over: threading.Event, lost: Callable[[], None]) -> None:
    """Look after the lock until it is `over`. A database that is away is nobody else's either."""
    connection: Connection | None = held
    while not over.wait(_LOOK_SECONDS):
        try:
            if connection is None:
                connection = _claimed(engine)
            connection.execute(text("SELECT 1"))
        except Conflict as error:
            logger("claim").error("database_taken", reason=error.message)
            lost()
            return
        except (Busy, SQLAlchemyError):
            _closed(connection)
            connection = None
    _closed(connection)


def _claimed(engine: Engine) -> Connection:
    """A connection that has the lock. Conflict where another one has it."""
    connection = connected(engine).execution_options(isolation_level="AUTOCOMMIT")
    try:
        _claim(connection)
    except BaseException:
        _closed(connection)
        raise
    return connection


def _closed(connection: Connection | None) -> None:
    """Without its lock, which it would keep in the pool."""
    if connection is not None:
        with suppress(SQLAlchemyError):
            connection.invalidate()
            connection.close()


def _claim(connection: Connection) -> None:
    connection.execute(
        text("SELECT set_config(name, '0', false) FROM pg_settings WHERE name = 'idle_session_timeout'")
    )  # between two looks there may be more
    if not connection.scalar(text("SELECT pg_try_advisory_lock(:key)"), {"key": _SERVES}):
        raise Conflict(
            "HANSE_DATABASE_URL: another catalogue serves from this database; stop that one, or give this one a "
            "database of its own"
        )
