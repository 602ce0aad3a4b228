"""Bringing the connector's database to the schema of this program: at start and by `hanse connector migrate`."""

from __future__ import annotations

from pathlib import Path

from connector.infra.database import database

FOLDER = Path(__file__).parent / "migrations"
_LOCK = 0x48414E53  # "HANS"


def upgrade(url: str) -> tuple[str, str]:
    """Migrate the database to the newest schema; the revisions before and after ("" for an empty database)."""
    return database.upgrade(url, folder=FOLDER, lock=_LOCK)


def missing(url: str) -> bool:
    """Whether it is an SQLite database that nobody has made yet."""
    return bool(database.missing_file(url))


def named(url: str) -> str:
    """The database as it may be shown to an operator."""
    return database.display_url(url)


def sqlite_file(url: str) -> Path | None:
    """Where an SQLite database really is, whatever links lead there; None for any other."""
    path = database.sqlite_file(url)
    return path and path.resolve()
