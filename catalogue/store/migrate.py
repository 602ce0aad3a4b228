"""Bringing the catalogue's database to the schema of this program: at start and by `hanse catalogue migrate`."""

from __future__ import annotations

from pathlib import Path

from connector import database

FOLDER = Path(__file__).parent / "migrations"
_LOCK = 0x48414E43  # "HANC"


def upgrade(url: str) -> tuple[str, str]:
    """Migrate the database to the newest schema; the revisions before and after ("" for an empty database)."""
    return database.upgrade(url, folder=FOLDER, lock=_LOCK)
