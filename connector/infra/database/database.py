"""Opens and migrates a service's database; shared by the stores of the connector and the catalogue.

Only stores import this. SQLite: WAL with synchronous=FULL, and explicit BEGIN. PostgreSQL: a pool that checks its
connections, and a time limit on every wait (`postgres_options`). A schema that this program does not know is refused,
so that an old program never writes into a newer database.
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

from connector.errors import Unavailable, WrongState

if TYPE_CHECKING:
    from alembic.config import Config


_PASSWORD_END = re.compile(r"[^\s'\"]*@")
LONG_READS_MAX = 2  # reads at once that may keep a connection for minutes


def open_engine(url: str, *, pool_size: int, patient: bool = False) -> Engine:
    """An engine for `url`, configured for our stores. `patient`: a statement may take hours, for migrations.

    Raises: Unavailable if the folder of a SQLite database cannot be created.
    """
    parsed = make_url(url)
    if parsed.get_backend_name() != "sqlite":
        from connector.infra.database.postgres_options import open_server

        return open_server(parsed, pool_size=pool_size, overflow=pool_size + LONG_READS_MAX, patient=patient)
    file = sqlite_file(url)
    if file is not None:
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise Unavailable(
                f"the folder of the database {display_url(parsed)} cannot be created ({error.strerror}); check "
                "HANSE_DATA_DIR and HANSE_DATABASE_URL, and what the user of this program may write to"
            ) from None
    engine = create_engine(parsed, pool_size=pool_size, connect_args={"timeout": 10.0, "check_same_thread": False})

    @event.listens_for(engine, "do_connect")
    def make(*_: Any) -> None:
        """Create the file with mode 0600, as it holds tokens. SQLite gives its journal files the same mode."""
        if file is not None:
            with suppress(OSError):  # it exists, or connecting will report the reason
                os.close(os.open(file, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))

    @event.listens_for(engine, "connect")
    def configure(connection: Any, _: Any) -> None:
        connection.isolation_level = None  # we send BEGIN ourselves: the driver sends it too late for IMMEDIATE
        for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "busy_timeout=10000"):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        mode = "IMMEDIATE" if connection.get_execution_options().get("writing") else "DEFERRED"
        run_statement(connection, f"BEGIN {mode}")

    return engine


def sqlite_file(url: str) -> Path | None:
    """The file of a SQLite database; None for a database in memory or on a server."""
    parsed = make_url(url)
    if parsed.get_backend_name() != "sqlite" or parsed.database in (None, "", ":memory:"):
        return None
    return Path(str(parsed.database))


def missing_file(url: str) -> str:
    """The path of a SQLite database that does not exist yet (opening would create it); otherwise empty."""
    path = sqlite_file(url)
    return "" if path is None or path.exists() else str(path)


def display_url(url: str | URL) -> str:
    """The URL without its password and query, for messages."""
    parsed = make_url(url)
    return parsed.difference_update_query(list(parsed.query)).render_as_string(hide_password=True)


def run_statement(connection: Connection, sql: str) -> None:
    """Run a statement without parameters or result, directly on the driver."""
    with closing(connection.connection.cursor()) as cursor:
        run_by_driver(connection, cursor.execute, sql, ())


def run_by_driver(connection: Connection, execute: Callable[[str, Any], Any], sql: str, parameters: Any) -> None:
    """Call a cursor's `execute` and raise its errors as SQLAlchemy would; a lost connection leaves the pool.

    Raises: DBAPIError.
    """
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


def open_connection(engine: Engine) -> Connection:
    """A connection. Raises: Unavailable if the database cannot be opened."""
    try:
        return engine.connect()
    except DBAPIError as error:
        raise Unavailable(
            f"the database {display_url(engine.url)} cannot be opened ({_error_line(error)}); check that it runs, and "
            "check HANSE_DATABASE_URL"
        ) from error


def _error_line(error: DBAPIError) -> str:
    """The first line of an error, without what may be the end of a password that contains `@`."""
    return _PASSWORD_END.sub("***@", str(error.orig).strip().partition("\n")[0])


def alembic_config(folder: Path, connection: Connection | None = None) -> Config:
    """Alembic's configuration for the migrations in `folder`, on `connection`."""
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(folder))
    config.attributes["connection"] = connection
    return config


def upgrade(url: str, *, folder: Path, lock: int) -> tuple[str, str]:
    """Migrate a database to the newest schema in one transaction; return the revisions before and after.

    The revision before is "" for an empty database. `lock` is the key of an advisory lock, so that a single process
    migrates a PostgreSQL database that several share. Raises: WrongState for an unknown schema, Unavailable if the
    database cannot be opened or rejects the migration.
    """
    from alembic import command
    from alembic.runtime.migration import MigrationContext
    from alembic.script import ScriptDirectory

    engine = open_engine(url, pool_size=1, patient=True)
    try:
        with open_connection(engine).execution_options(writing=True) as connection, connection.begin():
            if connection.dialect.name == "postgresql":
                connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": lock})
            before = MigrationContext.configure(connection).get_current_revision() or ""
            script = ScriptDirectory.from_config(alembic_config(folder))
            head = script.get_current_head() or ""
            known = {revision.revision for revision in script.walk_revisions()}
            if before and before not in known:
                raise WrongState(
                    f"the database has schema {before!r}, which this program does not know; it was written by a newer "
                    "Hanse: start the newer program, or restore a backup"
                )
            if before != head:
                command.upgrade(alembic_config(folder, connection), "head")
            return before, head
    except DBAPIError as error:  # safe to show: these statements hold names, no stored values
        raise Unavailable(
            f"the database {display_url(engine.url)} cannot be migrated to the schema of this program "
            f"({_error_line(error)}); nothing was changed; make room on its disk, or give the connector's user the "
            "missing permission, and try again",
            code="schema_refused",
        ) from error
    finally:
        engine.dispose()
