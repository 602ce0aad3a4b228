"""Bringing the catalogue's database to the schema of this program: `upgrade` at start and by `hanse catalogue migrate`.

A schema that this program does not know (a newer one) is refused, so that an old program never writes into it.
"""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, text

from catalogue.store.engine import open_engine
from connector.errors import Conflict

_LOCK = 0x48414E43  # "HANC": one migration at a time on a PostgreSQL shared by several processes


def config(connection: Connection | None = None) -> Config:
    """Alembic's configuration for our migrations, on `connection`."""
    made = Config()
    made.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    made.attributes["connection"] = connection
    return made


def upgrade(url: str) -> tuple[str, str]:
    """Migrate the database to the newest schema; the revisions before and after ("" for an empty database)."""
    engine = open_engine(url, pool_size=1)
    try:
        with engine.connect().execution_options(writing=True) as connection, connection.begin():
            if connection.dialect.name == "postgresql":
                connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _LOCK})
            before = MigrationContext.configure(connection).get_current_revision() or ""
            script = ScriptDirectory.from_config(config())
            head = script.get_current_head() or ""
            known = {revision.revision for revision in script.walk_revisions()}
            if before and before not in known:
                raise Conflict(
                    f"the catalogue's database has schema {before!r}, which this program does not know; it was written "
                    "by a newer Hanse: start that one, or restore a backup"
                )
            if before != head:
                command.upgrade(config(connection), "head")
            return before, head
    finally:
        engine.dispose()
