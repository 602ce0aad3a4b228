"""Lets only one process use a catalogue's directory and database. Two would visit each member twice."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path

from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import SQLAlchemyError

from connector.errors import Unavailable, WrongState
from connector.infra.database.database import open_connection, open_engine, sqlite_file
from connector.infra.lock_file import acquire_lock
from connector.telemetry import logger

_SERVES = 0x48414E44  # beside the number that migrations lock
_HOLDER = text(
    "SELECT pid FROM pg_locks JOIN pg_database ON pg_database.oid = database AND datname = current_database() "
    "WHERE locktype = 'advisory' AND classid = 0 AND objid = :key AND granted"
)
_LOOK_SECONDS, _RETAKE_SECONDS = 2.0, 0.2
_TRIES = 10


@contextmanager
def hold_exclusively(directory: Path, url: str, *, lost: Callable[[WrongState], None]) -> Iterator[None]:
    """Keep both this process's alone for as long as the block lasts. WrongState where one is another's.

    In PostgreSQL that is a lock of a connection's: it is free seconds after its process or its machine is gone, and
    when the server starts again. So it is looked after, and taken anew; `lost` is called where it is another's by then.
    """
    with ExitStack() as held:
        own, other = directory / "catalogue.lock", "give this one a directory"  # a connector may have it as well
        held.enter_context(closing(acquire_lock(own, "HANSE_DATA_DIR", other, service="catalogue")))
        if (file := sqlite_file(url)) is not None:
            lock = file.with_name(f"{file.name}.lock")
            held.enter_context(
                closing(acquire_lock(lock, "HANSE_DATABASE_URL", "give this one a database", service="catalogue"))
            )
        else:
            held.enter_context(_hold_lock(url, lost))
        yield


@contextmanager
def _hold_lock(url: str, lost: Callable[[WrongState], None]) -> Iterator[None]:
    engine, over = open_engine(url, pool_size=1), threading.Event()
    try:
        ours: set[int] = set()
        about = (engine, _connect_and_lock(engine, ours), ours, over, lost)
        watch = threading.Thread(target=_watch, args=about, name="catalogue-claim", daemon=True)
        watch.start()
        try:
            yield
        finally:
            over.set()
            watch.join(5.0)
    finally:
        engine.dispose()


def _watch(
    engine: Engine, held: Connection, ours: set[int], over: threading.Event, lost: Callable[[WrongState], None]
) -> None:
    """Check the lock until `over` is set, and take it again after a lost connection.

    While the database is unreachable no other process can take it. `ours`: backend ids of this process's connections.
    """
    connection: Connection | None = held
    while not over.wait(_RETAKE_SECONDS if connection is None else _LOOK_SECONDS):
        try:
            connection = connection or _connect_and_lock(engine, ours)
            ours = {_read_backend_pid(connection)}
        except WrongState as error:
            logger("claim").error("database_taken", reason=error.message)
            lost(error)
            return
        except (Unavailable, SQLAlchemyError):
            _close(connection)
            connection = None
    _close(connection)


def _read_backend_pid(connection: Connection) -> int:
    """The backend id of the connection."""
    return int(connection.scalar(text("SELECT pg_backend_pid()")) or 0)


def _connect_and_lock(engine: Engine, ours: set[int]) -> Connection:
    """Connect and take the lock; the backend id is added to `ours`.

    Raises WrongState if another process has the lock, and Unavailable if a lost connection of this process still has
    it.
    """
    connection = open_connection(engine).execution_options(isolation_level="AUTOCOMMIT")
    try:
        ours.add(_read_backend_pid(connection))
        _claim(connection, ours)
    except BaseException:
        _close(connection)
        raise
    return connection


def _close(connection: Connection | None) -> None:
    """Without its lock, which it would keep in the pool."""
    if connection is not None:
        with suppress(SQLAlchemyError):
            connection.invalidate()
            connection.close()


def _claim(connection: Connection, ours: set[int]) -> None:
    connection.execute(
        text("SELECT set_config(name, '0', false) FROM pg_settings WHERE name = 'idle_session_timeout'")
    )  # between two looks there may be more
    for _ in range(_TRIES):
        if connection.scalar(text("SELECT pg_try_advisory_lock(:key)"), {"key": _SERVES}):
            return
        if (holder := connection.scalar(_HOLDER, {"key": _SERVES})) is not None:  # else it was let go of in between
            break
    if holder in ours:
        raise Unavailable("the database is still ours by a connection that is gone")
    raise WrongState(
        "HANSE_DATABASE_URL: another catalogue serves from this database; stop that one, or give this one a database "
        "of its own"
    )
