"""Schema migration of the catalogue's database, at start and by `hanse catalogue migrate`."""

from __future__ import annotations

from pathlib import Path

from connector.errors import Absent
from connector.infra.database import database

FOLDER = Path(__file__).parent / "migrations"
_LOCK = 0x48414E43  # "HANC"


def upgrade(url: str) -> tuple[str, str]:
    """Migrate to the newest schema. Returns the revisions before ("" for an empty database) and after."""
    return database.upgrade(url, folder=FOLDER, lock=_LOCK)


def check_made(url: str) -> None:
    """Raise Absent if the SQLite database does not exist: the settings or the working directory are others."""
    if path := database.missing_file(url):
        raise Absent(
            f"expected the database of a catalogue, got nothing at {path}; set HANSE_DATA_DIR or HANSE_DATABASE_URL "
            "as the catalogue has it, or make a new one with `hanse catalogue serve` or `migrate`"
        )
