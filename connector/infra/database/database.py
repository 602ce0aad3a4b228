"""How a service's own database is opened and migrated: what the connector's store and the catalogue's have in common.

Only stores import this. SQLite: WAL with synchronous=FULL, and BEGIN said by us. PostgreSQL: a pool that checks its
connections, and waits for nothing without an end (`postgresql`). A schema that this program does not know is refused,
so that an old program never writes into a new one.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url, text
from sqlalchemy.exc import DBAPIError

from connector.errors import Busy, Conflict

if TYPE_CHECKING:
    from alembic.config import Config


_BEFORE_AT = re.compile(r"[^\s'\"]*@")
LASTING = 2  # how much at once may keep a connection for minutes


def open_engine(url: str, *, pool_size: int, patient: bool = False) -> Engine:
    """An engine for `url`, set up the way our stores need it. `patient`: a statement may take hours, for migrations."""
    parsed = make_url(url)
    if parsed.get_backend_name() != "sqlite":
        from connector.infra.database.postgres_options import open_server

        return open_server(parsed, pool_size=pool_size, overflow=pool_size + LASTING, patient=patient)
    file = sqlite_file(url)
    if file is not None:
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise Busy(
                f"the folder of the database {named(parsed)} cannot be made ({error.strerror}); check HANSE_DATA_DIR "
                "and HANSE_DATABASE_URL, and what the user of this program may write to"
            ) from None
    engine = create_engine(parsed, pool_size=pool_size, connect_args={"timeout": 10.0, "check_same_thread": False})

    @event.listens_for(engine, "do_connect")
    def make(*_: Any) -> None:
        """For our eyes only, as tokens are in it; what SQLite has beside it is as the file itself."""
        if file is not None:
            with suppress(OSError):  # there already, or connecting says why not
                os.close(os.open(file, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))

    @event.listens_for(engine, "connect")
    def configure(connection: Any, _: Any) -> None:
        connection.isolation_level = None  # we say BEGIN ourselves: the driver's own is too late for IMMEDIATE
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "busy_timeout=10000"):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        mode = "IMMEDIATE" if connection.get_execution_options().get("writing") else "DEFERRED"
        say(connection, f"BEGIN {mode}")

    return engine


def sqlite_file(url: str) -> Path | None:
    """The file of an SQLite database."""
    parsed = make_url(url)
    if parsed.get_backend_name() != "sqlite" or parsed.database in (None, "", ":memory:"):
        return None
    return Path(str(parsed.database))


def missing(url: str) -> str:
    """The path of a SQLite database that nobody has made yet, which opening it would do; else empty."""
    path = sqlite_file(url)
    return "" if path is None or path.exists() else str(path)


def named(url: str | URL) -> str:
    """A database as it may be shown: without a user's password, or whatever else stands behind a `?`."""
    parsed = make_url(url)
    return parsed.difference_update_query(list(parsed.query)).render_as_string(hide_password=True)


def say(connection: Connection, sql: str) -> None:
    """Run a statement that has no values and no answer, by the driver alone."""
    with closing(connection.connection.cursor()) as cursor:
        run_by_driver(connection, cursor.execute, sql, ())


def run_by_driver(connection: Connection, execute: Callable[[str, Any], Any], sql: str, parameters: Any) -> None:
    """Run `execute` of a cursor on a connection: its errors are SQLAlchemy's, and a connection that is gone is not used
    again."""
    dialect = connection.dialect
    try:
        execute(sql, parameters)
    except dialect.loaded_dbapi.Error as error:
        gone = dialect.is_disconnect(error, connection.connection, None)
        if gone:
            connection.invalidate(error)
        raise DBAPIError.instance(
            sql, None, error, dialect.loaded_dbapi.Error, connection_invalidated=gone, dialect=dialect
        ) from error


def connected(engine: Engine) -> Connection:
    """A connection; Busy, with what to look at, where there is none."""
    try:
        return engine.connect()
    except DBAPIError as error:
        raise Busy(
            f"the database {named(engine.url)} cannot be opened ({_said(error)}); check that it runs, and "
            "HANSE_DATABASE_URL"
        ) from error


def _said(error: DBAPIError) -> str:
    """The first line, without what may be the end of a password that has an `@` in it."""
    return _BEFORE_AT.sub("***@", str(error.orig).strip().partition("\n")[0])


def config(folder: Path, connection: Connection | None = None) -> Config:
    """Alembic's configuration for the migrations in `folder`, on `connection`."""
    from alembic.config import Config

    made = Config()
    made.set_main_option("script_location", str(folder))
    made.attributes["connection"] = connection
    return made


def upgrade(url: str, *, folder: Path, lock: int) -> tuple[str, str]:
    """Bring a database to the newest schema in one transaction: the revisions before and after ("" for an empty one).

    `lock` lets one process at a time migrate a PostgreSQL that several share. Conflict for a schema nobody here knows,
    Busy for a database that cannot be opened, or takes none of it, in its own words.
    """
    from alembic import command
    from alembic.runtime.migration import MigrationContext
    from alembic.script import ScriptDirectory

    engine = open_engine(url, pool_size=1, patient=True)
    try:
        with connected(engine).execution_options(writing=True) as connection, connection.begin():
            if connection.dialect.name == "postgresql":
                connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": lock})
            before = MigrationContext.configure(connection).get_current_revision() or ""
            script = ScriptDirectory.from_config(config(folder))
            head = script.get_current_head() or ""
            known = {revision.revision for revision in script.walk_revisions()}
            if before and before not in known:
                raise Conflict(
                    f"the database has schema {before!r}, which this program does not know; it was written by a newer "
                    "Hanse: start that one, or restore a backup"
                )
            if before != head:
                command.upgrade(config(folder, connection), "head")
            return before, head
    except DBAPIError as error:  # of names alone: nothing of what is stored goes into these statements
        raise Busy(
            f"the database {named(engine.url)} cannot be brought to the schema of this program ({_said(error)}), and "
            "is as it was; make room on its disk, or give the connector's user what it lacks there, and try again",
            code="schema_refused",
        ) from error
    finally:
        engine.dispose()
