"""Schema migration of the connector's database, at start and by `hanse connector migrate`."""

from __future__ import annotations

from pathlib import Path

from connector.infra.database import database

FOLDER = Path(__file__).parent / "migrations"
_LOCK = 0x48414E53  # "HANS"


def upgrade(url: str) -> tuple[str, str]:
    """Migrate to the newest schema. Returns the revisions before ("" for an empty database) and after."""
    return database.upgrade(url, folder=FOLDER, lock=_LOCK)


def is_missing(url: str) -> bool:
    """Whether the URL names an SQLite file that does not exist yet."""
    return bool(database.missing_file(url))


def redact_password(url: str) -> str:
    """The database URL without its password, to be shown to an operator."""
    return database.display_url(url)


def sqlite_file(url: str) -> Path | None:
    """The file of an SQLite database with links resolved; None for PostgreSQL."""
    path = database.sqlite_file(url)
    return path and path.resolve()
