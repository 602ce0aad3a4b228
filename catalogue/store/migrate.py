"""Bringing the catalogue's database to the schema of this program: at start and by `hanse catalogue migrate`."""

from __future__ import annotations

from pathlib import Path

from connector.errors import NotFound
from connector.infra.database import database

FOLDER = Path(__file__).parent / "migrations"
_LOCK = 0x48414E43  # "HANC"


def upgrade(url: str) -> tuple[str, str]:
    """Migrate the database to the newest schema; the revisions before and after ("" for an empty database)."""
    return database.upgrade(url, folder=FOLDER, lock=_LOCK)


def check_made(url: str) -> None:
    """NotFound where no catalogue has made this database: whoever asks stands elsewhere, or lacks its settings."""
    if path := database.missing_file(url):
        raise NotFound(
            f"expected the database of a catalogue, came nothing at {path}; set HANSE_DATA_DIR or HANSE_DATABASE_URL "
            "as the catalogue has it, or make a new one with `hanse catalogue serve` or `migrate`"
        )
