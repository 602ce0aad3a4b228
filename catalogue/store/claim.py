"""A catalogue's directory and database are one process's: two would build the index for each other, and visit everybody
twice."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

from sqlalchemy import Connection, text

from connector.database import connected, open_engine, sqlite_file
from connector.errors import Conflict
from connector.locks import locked

_SERVES = 0x48414E44  # beside the number that migrations lock


@contextmanager
def alone(directory: Path, url: str) -> Iterator[None]:
    """Keep both this process's alone for as long as the block lasts. Conflict where one is another's.

    In PostgreSQL that is a lock of a connection's: it is free seconds after its process or its machine is gone.
    """
    with ExitStack() as held:
        own, other = directory / "serve.lock", "give this one a directory"
        held.enter_context(closing(locked(own, "HANSE_DATA_DIR", other, who="catalogue")))
        if (file := sqlite_file(url)) is not None:
            lock = file.with_name(f"{file.name}.lock")
            held.enter_context(closing(locked(lock, "HANSE_DATABASE_URL", "give this one a database", who="catalogue")))
        else:
            engine = open_engine(url, pool_size=1)
            held.callback(engine.dispose)
            _claim(held.enter_context(connected(engine)).execution_options(isolation_level="AUTOCOMMIT"))
        yield


def _claim(connection: Connection) -> None:
    connection.execute(
        text("SELECT set_config(name, '0', false) FROM pg_settings WHERE name = 'idle_session_timeout'")
    )  # it says nothing from now on
    if not connection.scalar(text("SELECT pg_try_advisory_lock(:key)"), {"key": _SERVES}):
        raise Conflict(
            "HANSE_DATABASE_URL: another catalogue serves from this database; stop that one, or give this one a "
            "database of its own"
        )
